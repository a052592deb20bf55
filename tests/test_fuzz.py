"""A few hundred damaged files for every reader, and every failure that fuzzing found, so that it stays mended.

The long version is `benchmarks/fuzz_readers.py`.
"""

import gzip
import json
import logging
import runpy
import sys
import tarfile
import zipfile
from pathlib import Path

import fuzz_targets
import fuzzing
import numpy as np
import pytest
from fake_cifar10 import bin_members, write_tar
from fake_results import ADAM, fake_comparison, fake_measurement
from tiny import collect_garbage

from jaxresnet import cifar10_cache, cifar10_tfds
from jaxresnet.checkpoint import Checkpoints
from jaxresnet.cifar10 import load_cifar10
from jaxresnet.cifar10_tfds import find_prepared, read_prepared
from jaxresnet.config import TrainConfig, from_dict
from jaxresnet.errors import ConfigError, DataError, ResultsError, UserError, WeightsError
from jaxresnet.evaluation_file import evaluation_path, read_evaluation
from jaxresnet.json_files import DEEPEST, LONGEST_TEXT, parse_json
from jaxresnet.measurement import measurement_path, read_measurement
from jaxresnet.predict import load_variables
from jaxresnet.report import render, render_measurement
from jaxresnet.results import config_path, read_results, rows_path, scores_path, slug
from jaxresnet.weight_files import read_weights

INPUTS = 150
LONG = "x" * 1_000_000


@pytest.fixture(autouse=True)
def quiet_and_tidy():
    logging.disable(logging.CRITICAL)  # of Orbax: a line an input
    yield
    logging.disable(logging.NOTSET)
    collect_garbage()


@pytest.fixture
def small_cifar10():
    with fuzz_targets.small_cifar10() as splits:
        yield splits


@pytest.mark.parametrize("make", [*fuzz_targets.DATA, *fuzz_targets.RESULTS, *fuzz_targets.WEIGHTS])
def test_every_input_is_accepted_or_refused(make, tmp_path, small_cifar10):
    target = make(tmp_path / "data")
    if target is None:
        pytest.skip("PyTorch is not installed")
    with fuzzing.quiet():
        count = fuzzing.fuzz(target, max(5, round(INPUTS * target.share)), seed=0)
    assert not count.failures
    assert count.refused > 0 and count.inputs == count.accepted + count.refused


# ------------------------------------------------------------------------------- that the program would see a failure


def outcome(tmp_path, read):
    (tmp_path / "data").mkdir(exist_ok=True)
    return fuzzing.observe(read, tmp_path / "data")


def test_what_counts_as_a_failure(tmp_path, monkeypatch):
    def refuse(text):
        raise UserError(text)

    def sleep(_):
        import time

        try:
            time.sleep(2)
        except Exception:  # as a reader that takes any exception for damage
            refuse("damaged")

    assert outcome(tmp_path, lambda _: None) == "accepted"
    assert outcome(tmp_path, lambda _: refuse("no")) == "refused"
    assert outcome(tmp_path, lambda where: (where / "report").write_text("")) == "accepted"
    assert "KeyError" in outcome(tmp_path, lambda _: {}["x"])
    assert "a message with '\\x1b'" in outcome(tmp_path, lambda _: refuse("\x1b[2J"))
    assert "a message of 30000 characters" in outcome(tmp_path, lambda _: refuse("x" * 30_000))
    outside = tmp_path / "outside"
    assert "beyond its folder: open" in outcome(tmp_path, lambda _: outside.write_text(""))
    assert "beyond its folder: os.remove" in outcome(tmp_path, lambda _: outside.unlink())
    assert "beyond its folder: os.system" in outcome(tmp_path, lambda _: __import__("os").system("true"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{fuzzing.CANARY}.py").write_text("")
    assert f"import {fuzzing.CANARY}" in outcome(tmp_path, lambda _: __import__(fuzzing.CANARY))
    monkeypatch.setattr(fuzzing, "SECONDS", 0.2)
    assert "no answer within 0.2 s" in outcome(tmp_path, sleep)
    if sys.platform == "linux":
        monkeypatch.setattr(fuzzing, "SECONDS", 10.0)
        monkeypatch.setattr(fuzzing, "MEMORY", 1 << 26)
        assert "MiB of memory" in outcome(tmp_path, lambda _: np.ones(1 << 27, np.uint8).sum())


def test_an_input_has_its_number(tmp_path):
    target = fuzz_targets.measurement(tmp_path / "data")
    valid = {"measurement.json": measurement_path(target.folder).read_bytes()}
    first, again, other = (target.change(fuzzing.Random(f"0 x {n}"), valid) for n in (7, 7, 8))
    assert first == again != other
    fuzzing.fuzz(target, 3, 0)
    assert fuzzing.files(target.folder) == [measurement_path(target.folder)]
    assert measurement_path(target.folder).read_bytes() == valid["measurement.json"]


def test_what_was_mended_has_its_test():
    program = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "fuzz_readers.py"))
    assert program["FOUND_AND_MENDED"]
    for what, name in program["FOUND_AND_MENDED"].items():
        assert callable(globals().get(name)), what


# ----------------------------------------------------------------------------------------- JSON that Python would take


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested more than 50 deep"),
        ("[" * 51 + "]" * 51, "nested more than 50 deep"),
        ('{"a": ' * 60 + "1" + "}" * 60, "nested more than 50 deep"),
        ("1" * 5000, r"Exceeds the limit \(4300"),
        ('{"n": [1' + "0" * 30 + "]}", "'n' is a whole number of more than 63 bits"),
        ('{"a": {"n": 1e999}}', "'n' is inf, not a finite number"),
        ('{"n": NaN}', "'n' is nan, not a finite number"),
        ('{"seed": 1, "seed": 2}', "the key 'seed' is there twice"),
        ('{"name": "a\\ud800"}', r"'name' holds the character '\\ud800', which cannot be printed"),
        ('{"name": "\\u001b[2J"}', r"'name' holds the character '\\x1b'"),
        ('{"a\\u0000": 1}', r"the key 'a\\x00' holds the character '\\x00'"),
        (json.dumps({"name": LONG}), "'name' has 1,000,000 characters, more than 100,000"),
    ],
)
def test_json_that_could_not_be_used_or_written_again(text, problem):
    with pytest.raises(ResultsError, match=rf"^x\.json.*{problem}.*; mend it$") as raised:
        parse_json(Path("x.json"), text, "mend it")
    assert len(str(raised.value)) < 500


def test_json_up_to_the_limits_is_read():
    deep = json.loads("[" * DEEPEST + "]" * DEEPEST)
    for value in (deep, {"n": 2**63 - 1}, {"x": -1e308}, "x" * LONGEST_TEXT, "a\tb\r\né 漢 🙂"):
        assert parse_json(Path("x.json"), json.dumps(value), "mend it") == value


# ------------------------------------------------------------------------------------------------------ comparisons


def with_config(folder, change):
    config = json.loads(config_path(fake_comparison(folder)).read_text())
    change(config)
    config_path(folder).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("arms", lambda config: config["arms"][ADAM].update(train_size=[1])),
        ("arms", lambda config: config["arms"][ADAM].update(val_size="all")),
        ("arms", lambda config: config["arms"][ADAM].update(num_epochs={})),
        ("arms", lambda config: config["arms"][ADAM].update(optim="sgd")),
        ("seeds", lambda config: config.update(seeds=[2**32])),
        ("seeds", lambda config: config.update(seeds=[-1])),
        ("name", lambda config: config.update(name="x" * 501)),
        ("published", lambda config: config.update(published={ADAM: {"best": 90, "last": "89"}})),
        ("published", lambda config: config.update(published={ADAM: {"best": 90, "run": []}})),
        ("published", lambda config: config.update(published={ADAM: {"best": 101}})),
    ],
)
def test_a_config_of_which_no_table_could_be_made(tmp_path, key, change):
    with pytest.raises(ResultsError, match=rf"config\.json: '{key}' is missing or malformed"):
        read_results(with_config(tmp_path, change))


def test_an_arm_whose_files_could_have_no_name(tmp_path):
    assert slug("é" * 100) == "é" * 100
    with pytest.raises(ConfigError, match="too long for a part of a file name"):
        slug("é" * 101)
    with pytest.raises(ConfigError, match="too long"):
        read_results(with_config(tmp_path, lambda config: config["arms"].update({LONG[:90_000]: {}})))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"weights": 3}, "'weights' is 3, not a text"),
        ({"test_accuracy": 100.1}, "'test_accuracy' is 100.1, not a number of 0 to 100"),
        ({"test_accuracy": -1e308}, "'test_accuracy' is -1e[+]308"),
        ({"best_epoch": 0.5}, "'best_epoch' is 0.5, not a whole number"),
        ({"best_epoch": 10**12}, "'best_epoch' is 1000000000000"),
        ({"config": {"optim": "x" * 90_000}}, "another config.*two comparisons are mixed"),
        ({"environment": "x" * 90_000}, "'environment' is 'x+...., not a JSON object"),
    ],
)
def test_scores_that_would_break_a_table_or_a_figure(tmp_path, change, problem):
    path = scores_path(fake_comparison(tmp_path), ADAM, 0)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ResultsError, match=problem) as raised:
        read_results(tmp_path)
    assert len(str(raised.value)) < 1500


def test_rows_that_would_break_a_figure(tmp_path):
    path = rows_path(fake_comparison(tmp_path), ADAM, 0)
    first = json.loads(path.read_text().splitlines()[0])
    for change in ({"epoch": 10**10}, {"epoch": -1}, {"val_loss": 1e300}, {"train_loss": -1.0}, {"val_accuracy": 200}):
        path.write_text(json.dumps({**first, **change}) + "\n")
        with pytest.raises(ResultsError, match=rf"jsonl, line 1: .*{next(iter(change))}"):
            read_results(tmp_path)


NAMES = ["$\\frac", "$x$ and $", "a | b\nc", "![x](http://127.0.0.1:9/x.png)", "<script>alert(1)</script>", "../../up"]


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_drawn_and_written_as_text(tmp_path, name):
    folder = tmp_path / "results"
    fake_comparison(folder, arms=(f"A {name}", "B"), seeds=(0,), name=name, environment={name: 1})
    before = fuzzing.files(tmp_path)
    report = render(folder)
    page = report.html.read_text()
    assert "<script" not in page and 'src="http' not in page
    markdown = report.summary_md.read_text()
    assert "![x](http" not in markdown and "<script" not in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(tables) == 4 and len({line.replace("\\|", "").count("|") for line in tables}) == 1
    made = {path.relative_to(folder).as_posix() for path in set(fuzzing.files(tmp_path)) - set(before)}
    assert made == {"summary.json", "summary.md", "figure.png", "report.html"}


def test_a_results_folder_of_links_is_read_and_nothing_is_written_through_them(tmp_path):
    """Links in runs/ are followed, as people keep results on other disks; what is written replaces a link."""
    folder, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    fake_comparison(folder)
    (folder / "runs").rename(elsewhere)
    (folder / "runs").symlink_to(elsewhere)
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (folder / "report.html").symlink_to(secret)
    render(folder)
    assert secret.read_text() == "mine" and not (folder / "report.html").is_symlink()
    row_file = rows_path(folder, ADAM, 0)
    row_file.unlink()
    row_file.symlink_to(secret)
    with pytest.raises(ResultsError, match=r"adam-seed0\.jsonl, line 1: cut off or damaged"):
        read_results(folder)


@pytest.mark.parametrize("value", [10**400, [[[["x"]]]] * 3, LONG, {"a": LONG}, json.loads("[" * 900 + "]" * 900)])
@pytest.mark.parametrize("name", ["learning_rate", "schedule", "nesterov", "sync_period"])
def test_a_config_of_damaged_values_is_refused_in_a_short_message(name, value):
    for values in ({"optim": {name: value}}, {"model": {"stage_sizes": value}}, {LONG: value}):
        with pytest.raises(ConfigError) as raised:
            from_dict(TrainConfig, values)
        assert len(str(raised.value)) < 1000


# ---------------------------------------------------------------------------------- measurements and evaluations


def test_files_that_are_not_there_are_named(tmp_path):
    for read in (read_measurement, read_evaluation):
        with pytest.raises(ResultsError, match=r"\.json: cannot be read \(No such file"):
            read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"params": 10**16},  # millions of ticks on an axis
        {"macs": 0},
        {"step_seconds": [1e300]},
        {"problem_here": "missing"},
        {"model": {"stage_sizes": ["$$"], "width": 64, "shortcut_kernel": 1, "pool_size": 4}},
    ],
    ids=str,
)
def test_a_model_that_could_not_be_drawn(tmp_path, change):
    models = read_measurement(fake_measurement(tmp_path))["models"]
    models["configuration 5"] |= change
    if change == {"problem_here": "missing"}:
        del models["configuration 5"]["problem_here"]
    fake_measurement(tmp_path, models=models)
    with pytest.raises(ResultsError, match="model 'configuration 5' is malformed"):
        read_measurement(tmp_path)


def test_large_networks_are_drawn_with_few_ticks(tmp_path):
    models = read_measurement(fake_measurement(tmp_path))["models"]
    models["configuration 1"] |= {"params": 10**12, "macs": 10**15}
    render_measurement(fake_measurement(tmp_path, models=models))
    assert (tmp_path / "model_parameters.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("num_test", lambda e: e.update(num_test=0)),
        ("class_names", lambda e: e.update(class_names=["cat", 1, "ship"])),
        ("confusion_summed_over_seeds", lambda e: e["confusion_summed_over_seeds"][0].append(1)),
        ("confusion_summed_over_seeds", lambda e: e["confusion_summed_over_seeds"][0].__setitem__(0, 10**17)),
        ("mean_over_seeds", lambda e: e["mean_over_seeds"].update(interval_95=[1])),
        ("mean_over_seeds", lambda e: e["mean_over_seeds"]["classes"][0].update(accuracy=None)),
        ("runs", lambda e: e.update(runs={})),
        ("runs", lambda e: e["runs"]["0"]["classes"].pop()),
        ("mistakes", lambda e: e["mistakes"]["worst_first"][0].update(true=3)),
        ("mistakes", lambda e: e["mistakes"]["worst_first"][0].update(probability="high")),
        ("seeds", lambda e: e.update(seeds=[])),
        ("title", lambda e: e.update(title=["x"])),
        ("environment", lambda e: e.update(environment=[])),
    ],
)
def test_a_malformed_evaluation_names_the_part(tmp_path, part, change):
    fuzz_targets.small_evaluation(tmp_path / "data")
    path = evaluation_path(tmp_path / "data")
    evaluation = read_evaluation(path.parent)
    change(evaluation)
    path.write_text(json.dumps(evaluation))
    with pytest.raises(ResultsError, match=rf"evaluation\.json: '{part}' is missing or malformed"):
        read_evaluation(path.parent)


# --------------------------------------------------------------------------------------------------------- CIFAR-10


@pytest.mark.parametrize(
    "header",
    [
        b"(" * 300,
        b"{'descr': ",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000000000000,)}",
        b"{}",
    ],
)
def test_a_cache_with_a_damaged_header_is_none(tmp_path, small_cifar10, header):
    cifar10_cache.write_cache(tmp_path / "c", {"v": 1}, small_cifar10)
    rewrite_in_cache(tmp_path / "c", "test_labels", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert cifar10_cache.read_cache(tmp_path / "c", {"v": 1}) is None


def rewrite_in_cache(folder, name, content):
    """With a checksum that fits."""
    (folder / f"{name}.npy").write_bytes(content)
    meta = json.loads((folder / "cache.json").read_text())
    meta["crc32"][name] = cifar10_cache.file_crc32(folder / f"{name}.npy")
    (folder / "cache.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "array", [np.zeros(10, np.int64), np.zeros(9, np.int32), np.full(10, 10, np.int32), np.zeros((10, 1), np.int32)]
)
def test_a_cache_of_wrong_arrays_is_none_whatever_its_checksum(tmp_path, small_cifar10, array):
    folder = tmp_path / "c"
    cifar10_cache.write_cache(folder, {"v": 1}, small_cifar10)
    assert cifar10_cache.read_cache(folder, {"v": 1}) is not None
    np.save(tmp_path / "x.npy", array)
    rewrite_in_cache(folder, "test_labels", (tmp_path / "x.npy").read_bytes())
    assert cifar10_cache.read_cache(folder, {"v": 1}) is None


def test_a_cache_description_nested_too_deep_is_none(tmp_path, small_cifar10):
    cifar10_cache.write_cache(tmp_path / "c", {"v": 1}, small_cifar10)
    (tmp_path / "c" / "cache.json").write_text("[" * 100_000)
    assert cifar10_cache.read_cache(tmp_path / "c", {"v": 1}) is None


def test_a_tar_whose_member_says_it_has_exabytes_ends(tmp_path, small_cifar10):
    """`tarfile` would read on at the end of the file until it had passed over all of them."""
    path = write_tar(tmp_path / "any.tar.gz", bin_members(small_cifar10))
    tar = bytearray(gzip.decompress(path.read_bytes()))
    info = tarfile.TarInfo("huge")
    info.size = 2**60
    tar[:0] = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(gzip.compress(tar))
    with fuzzing.time_limit(5), pytest.raises(DataError, match="truncated or damaged"):
        load_cifar10(path, cache_dir=tmp_path / "cache")


def test_an_npz_with_names_of_pages_gives_a_short_message(tmp_path):
    path = tmp_path / "any.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a" * 60_000, b"")
    for content in (path.read_bytes(), path.read_bytes().replace(b"a" * 60_000, b"\x1b" * 60_000, 1)):  # only the first
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"any\.npz: ") as raised:
            load_cifar10(path)
        assert len(str(raised.value)) < 1000 and str(raised.value).isprintable()


@pytest.fixture
def prepared(tmp_path, small_cifar10):
    with fuzzing.quiet():
        cifar10_tfds._prepare(small_cifar10, tmp_path)
    return tmp_path / "cifar10" / "3.0.2"


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_tfds_imports_no_module_that_a_folder_names(prepared, tmp_path, monkeypatch):
    """TFDS imports the module of whatever class features.json names, and so runs it."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    replace_in(prepared / "features.json", "tensorflow_datasets.core.features.text_feature.Text", "evil.Text")
    with pytest.raises(DataError, match=r"features\.json asks for 'evil\.Text', which CIFAR-10 does not need"):
        read_prepared(prepared)
    assert not (tmp_path / "executed").exists()
    import tensorflow_datasets as tfds

    with pytest.raises(ValueError):  # the attack is a real one
        tfds.features.FeatureConnector.from_config(str(prepared))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("template", ["../../{DATASET}-{SPLIT}", "/etc/{SPLIT}", "gs://bucket/{SPLIT}", "..", "a\\\\b"])
def test_tfds_opens_no_file_beyond_its_folder(prepared, template):
    replace_in(prepared / "dataset_info.json", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", template)
    with pytest.raises(DataError, match=r"dataset_info\.json asks for the file .*not one of this folder"):
        read_prepared(prepared)


@pytest.mark.parametrize("formats", [{"fileFormat": {}}, {"fileFormat": ["x"]}, {"alternativeFileFormats": 3}])
def test_a_tfds_folder_of_a_malformed_file_format(prepared, formats):
    info = json.loads((prepared / "dataset_info.json").read_text())
    (prepared / "dataset_info.json").write_text(json.dumps({**info, **formats}))
    with pytest.raises(DataError, match=r"prepared here in the file format|damaged or incomplete"):
        read_prepared(prepared)


def test_tfds_features_that_want_tensorflow_are_damage(prepared):
    replace_in(prepared / "features.json", '"dtype": "uint8"', '"dtype": "uint101"')
    with pytest.raises(DataError, match=r"damaged or incomplete .*Delete this folder"):
        read_prepared(prepared)


def test_a_tfds_description_nested_too_deep_is_no_cifar10(prepared):
    (prepared / "dataset_info.json").write_text("[" * 100_000)
    assert find_prepared(prepared) is None


# ---------------------------------------------------------------------------------------------------------- weights


def test_a_safetensors_header_of_a_million_characters_gives_a_short_message(tmp_path):
    header = json.dumps({LONG: {"dtype": LONG, "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WeightsError, match=r"not a \.safetensors file of weights") as raised:
        read_weights(tmp_path / "w.safetensors")
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("part", ["name", "dtype"])
def test_a_safetensors_with_names_that_a_terminal_obeys_gives_a_printable_message(tmp_path, part):
    tensor = {"dtype": "\x1b[2J" if part == "dtype" else "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"conv1.weight": tensor} if part == "dtype" else {"conv1.\x1b[2J": tensor}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(WeightsError, match=r"\[2J") as raised:
        read_weights(tmp_path / "w.safetensors")
    assert str(raised.value).replace("\n", "").isprintable()


@pytest.fixture
def checkpoint(tmp_path):
    fuzz_targets.small_checkpoint(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(("best_step", value) for value in (10**30, "0", -1, [0])),
        *(("history", value) for value in (3, [1], [{"step": 1}], {"0": 1})),
        *(("converted", value) for value in ("x", {"accuracy": "high"}, {"epoch": 0.5}, {"config": 1})),
    ],
)
def test_a_checkpoints_record_of_wrong_types_is_refused(checkpoint, part, value):
    path = checkpoint / "0" / "_CHECKPOINT_METADATA"
    content = json.loads(path.read_text())
    content["custom_metadata"][part] = value
    content["custom_metadata"].pop("crc32", None)  # an attacker would compute it
    path.write_text(json.dumps(content))
    with pytest.raises(UserError):
        read_weights(checkpoint)


def test_a_checkpoint_names_no_class_that_is_imported_and_no_file_beyond_its_folder(checkpoint, tmp_path, monkeypatch):
    """Orbax looks the classes up among those that it knows, and names files after the arrays that are asked for."""
    (tmp_path / "evil_class.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    step = checkpoint / "0"
    handler = "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"
    replace_in(step / "_CHECKPOINT_METADATA", handler, "evil_class.Handler")
    replace_in(step / "state" / "_METADATA", '"value_type": "jax.Array"', '"value_type": "evil_class.Array"')
    replace_in(step / "state" / "_sharding", "SingleDeviceSharding", "evil_class.Sharding")
    load_variables(checkpoint)  # what they name is not asked for
    assert "evil_class" not in sys.modules and not (tmp_path / "executed").exists()
    replace_in(step / "state" / "_METADATA", '"key": "state"', '"key": "../../../../evil"')
    with pytest.raises(ResultsError), fuzzing.quiet():
        load_variables(checkpoint)


@pytest.mark.parametrize("name", ["_sharding", "_METADATA"])
def test_a_checkpoints_json_nested_too_deep_does_not_crash_the_process(checkpoint, name):
    """TensorStore overflows the stack over it: without the check this test ends pytest."""
    path = checkpoint / "0" / "state" / name
    deep = json.loads(path.read_text()) | {"deep": "@"}
    path.write_text(json.dumps(deep).replace('"@"', "[" * 100_000 + "]" * 100_000))
    with pytest.raises(ResultsError, match=r"/0: the checkpoint cannot be read \(.*(nested|recursion)"):
        load_variables(checkpoint)


def test_a_checkpoints_record_nested_too_deep_is_refused(checkpoint):
    path = checkpoint / "0" / "_CHECKPOINT_METADATA"
    for text in ("[" * 100_000, '{"custom_metadata": ' + "1" * 5000 + "}"):
        path.write_text(text)
        with pytest.raises(UserError), Checkpoints(checkpoint, read_only=True) as checkpoints:
            checkpoints.record(0)


def test_a_config_of_another_run_with_names_that_turn_text_around_gives_a_printable_message(tmp_path):
    folder = fake_comparison(tmp_path / "comparison", arms=("A",), seeds=(0,))
    path = scores_path(folder, "A", 0)
    scores = json.loads(path.read_text())
    path.write_text(json.dumps({**scores, "config": {"batch_size": 512, "\u202e": 1}}))
    with pytest.raises(ResultsError, match="another config than arm 'A'") as raised:
        read_results(folder)
    assert str(raised.value).isprintable()


def test_an_error_without_a_text_is_told_by_name(checkpoint, monkeypatch):
    def fails(*_):
        raise ValueError

    monkeypatch.setattr("orbax.checkpoint.v1.training.Checkpointer.load", fails)
    with pytest.raises(ResultsError, match=r"cannot be read \(ValueError\)"):
        load_variables(checkpoint)
