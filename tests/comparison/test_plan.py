"""What a comparison is to train, and all that is refused before anything is written."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from support.fake_results import fake_fit
from support.tiny import RUN, contents

from jaxresnet.comparison.compare import compare
from jaxresnet.comparison.plan import check_arms, prepare
from jaxresnet.data.dataset import Split, fingerprint
from jaxresnet.errors import ConfigError, DataError, ResultsError
from jaxresnet.results.schemas import comparison_path
from jaxresnet.results.store import SCORES, read_results, run_id

ONE = jax.devices()[:1]
ARMS = {"Adam + Lookahead": RUN, "Adam": replace(RUN, optim=replace(RUN.optim, lookahead=False))}
SEEDS = (0, 1)
ORDER = [("Adam + Lookahead", 0), ("Adam", 0), ("Adam + Lookahead", 1), ("Adam", 1)]


def plan_tiny(data, out, arms=ARMS, seeds=SEEDS, name="tiny", devices=ONE, **other):
    return prepare(arms, seeds, data, out, name=name, devices=devices, **other)


@pytest.fixture
def begun(tiny_data, tmp_path, monkeypatch):
    """A root of results in which the comparison "tiny" is finished."""
    with monkeypatch.context() as patch:
        patch.setattr("jaxresnet.comparison.executors.fit", fake_fit)
        compare(ARMS, SEEDS, tiny_data, tmp_path / "out", name="tiny", devices=ONE)
    return tmp_path / "out"


# ------------------------------------------------------------------------------------------------------------ plans


def test_every_arm_runs_with_a_seed_before_the_next_seed_begins(tiny_data, tmp_path):
    plan = plan_tiny(tiny_data, tmp_path / "out")
    assert [(run.arm, run.seed) for run in plan.runs] == ORDER and not any(run.done for run in plan.runs)
    for run in plan.runs:
        assert run.config == replace(ARMS[run.arm], seed=run.seed)
        assert run.id == run_id(run.config, fingerprint(tiny_data))
    assert plan.folder == tmp_path / "out" / "tiny" and plan.store == tmp_path / "out" / "runs"
    assert not (tmp_path / "out").exists(), "a plan writes nothing"


def test_what_is_finished_is_known_whatever_comparison_it_was_for(tiny_data, begun):
    assert all(run.done for run in plan_tiny(tiny_data, begun).runs)
    other = plan_tiny(tiny_data, begun, {"B": ARMS["Adam"], "C": replace(RUN, batch_size=32)}, (2, 1), name="other")
    assert [(run.arm, run.seed, run.done) for run in other.runs] == [
        *(("B", 2, False), ("C", 2, False), ("B", 1, True), ("C", 1, False))
    ]
    lost = plan_tiny(tiny_data, begun).runs[2]
    (begun / "runs" / lost.id / SCORES).unlink()
    assert [run.done for run in plan_tiny(tiny_data, begun).runs] == [True, True, False, True]


def test_the_precision_auto_is_settled_once(tiny_data, tmp_path, monkeypatch):
    """By the device at first; then by what the comparison says, for new arms as well."""
    auto = {arm: replace(config, model=replace(config.model, precision="auto")) for arm, config in ARMS.items()}
    first = {"Adam": auto["Adam"]}
    for chosen, precision in (("0", "float32"), ("1", "bfloat16")):
        monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", chosen)
        assert plan_tiny(tiny_data, tmp_path, first).arms["Adam"].model.precision == precision
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "0")
    monkeypatch.setattr("jaxresnet.comparison.executors.fit", fake_fit)
    compare(first, (0,), tiny_data, tmp_path, name="tiny", devices=ONE)
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "1")
    plan = plan_tiny(tiny_data, tmp_path, auto)
    assert {config.model.precision for config in plan.arms.values()} == {"float32"}
    assert [run.done for run in plan.runs] == [False, True, False, False]


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "arms, seeds, message",
    [
        ({}, (0,), "arms: at least one"),
        (ARMS, (), r"seeds=\[\]: at least one"),
        (ARMS, (1, 2, 1), r"seeds=\[1, 2, 1\]: .* none twice"),
        (ARMS, (-1,), "seed=-1"),
        ({"a\x1b": RUN}, (0,), "arm name 'a.x1b': must be a text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arms_and_seeds_are_refused_whatever_the_data(tiny_data, tmp_path, arms, seeds, message):
    for refuse in (lambda: check_arms(arms, seeds), lambda: plan_tiny(tiny_data, tmp_path / "out", arms, seeds)):
        with pytest.raises(ConfigError, match=message):
            refuse()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"arms": {"Adam": RUN, "the same": replace(RUN, seed=5)}}, "arms .* have the same config: leave one"),
        ({"arms": {"Adam": replace(RUN, batch_size=257)}}, "batch_size=257"),
        ({"arms": {"Adam": replace(RUN, model=replace(RUN.model, num_classes=9))}}, "num_classes=9"),
        ({"name": "runs"}, "name='runs': names the folder"),
        ({"name": "../elsewhere"}, "name='../elsewhere': names the folder"),
        ({"spread": "run"}, "spread='run': must be 'data' or 'runs'"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused_before_anything_is_written(tiny_data, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        plan_tiny(tiny_data, tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


@pytest.mark.devices(3)
def test_a_batch_must_divide_over_the_devices_that_share_it(tiny_data, tmp_path):
    three = jax.devices()[:3]
    with pytest.raises(ConfigError, match="batch_size=64: must be a multiple of the 3 devices"):
        plan_tiny(tiny_data, tmp_path, devices=three)
    plan_tiny(tiny_data, tmp_path, devices=three, spread="runs")


class NeverTaken(np.ndarray):
    """Images of which no part may be taken."""

    def __getitem__(self, index):
        raise AssertionError("images are copied to check them")


def test_images_of_another_form_are_refused_and_none_is_copied(tiny_data, tmp_path):
    images, labels = tiny_data.train
    plan_tiny(tiny_data._replace(train=Split(images.view(NeverTaken), labels)), tmp_path)
    with pytest.raises(DataError, match="train split: expected"):
        plan_tiny(tiny_data._replace(train=Split(images.astype(np.float32), labels)), tmp_path)


def test_another_comparison_in_the_folder_is_refused_by_its_fields(tiny_data, begun):
    before = contents(begun)
    changed = replace(RUN, optim=replace(RUN.optim, sync_period=6, learning_rate=0.5))
    other = "choose another name (--name) or output folder (--out)"
    labels = tiny_data.train.labels[::-1].copy()
    for arms, settings, message in (
        (
            {**ARMS, "Adam + Lookahead": changed},
            {},
            "(arms.Adam + Lookahead.optim.learning_rate: 0.01 -> 0.5; "
            f"arms.Adam + Lookahead.optim.sync_period: 5 -> 6); use the old settings, or {other}",
        ),
        ({arm: replace(config, batch_size=32) for arm, config in ARMS.items()}, {}, "(in every arm batch_size: 64 -> "),
        (ARMS, {"protocol": "published"}, "(protocol: 'intended' -> 'published')"),
        (ARMS, {"data": tiny_data._replace(train=Split(tiny_data.train.images, labels))}, "(dataset.crc32: "),
        (
            {"Adam": ARMS["Adam"]},
            {},
            "also holds arm 'Adam + Lookahead'; name all of them, as a comparison only grows",
        ),
        (ARMS, {"seeds": (1, 2)}, f"also holds seed 0; name all of them, as a comparison only grows, or {other}"),
    ):
        with pytest.raises(ResultsError) as caught:
            plan_tiny(settings.pop("data", tiny_data), begun, arms, **settings)
        assert str(caught.value).startswith(f"{begun / 'tiny'}: ") and message in str(caught.value)
    assert contents(begun) == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tiny_data, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ResultsError, match=r"tiny: holds other files and no comparison\.json; choose another name"):
        plan_tiny(tiny_data, tmp_path)
    comparison_path(folder).write_text('{"editor": "vi"}')
    with pytest.raises(ResultsError, match=r"not the comparison\.json of a comparison"):
        plan_tiny(tiny_data, tmp_path)
    assert contents(tmp_path) == {"tiny/thesis.tex": b"mine", "tiny/comparison.json": b'{"editor": "vi"}'}


def test_an_output_folder_that_is_none_is_refused(tiny_data, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "comparison.json").write_text("{}")
    for out, message in (("file", "file: is a file; give a folder"), ("one", "one: is the folder of one comparison")):
        with pytest.raises(ResultsError, match=message):
            prepare({"A": RUN}, (0,), tiny_data, tmp_path / out)


def test_a_damaged_run_or_another_one_under_the_same_id_is_refused(tiny_data, begun):
    """A default that was changed between two versions would make another one."""
    first, *_, last = [begun / "runs" / run.id for run in plan_tiny(tiny_data, begun).runs]
    (last / SCORES).write_text("{")
    with pytest.raises(ResultsError, match=rf"{last.name}/scores\.json, line 1: cut off"):
        plan_tiny(tiny_data, begun)
    saved = json.loads((first / "config.json").read_text())
    saved["config"]["optim"]["b2"] = 0.99
    (first / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ResultsError, match=r"is another run than is asked for \(config\.optim\.b2: 0\.99"):
        plan_tiny(tiny_data, begun, name="other")


def test_a_comparison_saved_before_a_field_was_added_is_continued(tiny_data, begun):
    path = comparison_path(begun / "tiny")
    saved = json.loads(path.read_text())
    for arm in saved["arms"].values():
        del arm["skip_nonfinite"], arm["model"]["initializer"]
    path.write_text(json.dumps(saved))
    assert all(run.done for run in plan_tiny(tiny_data, begun).runs)
    assert not read_results(begun / "tiny").missing


def test_a_run_for_each_device_is_for_one_process(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxresnet.comparison.plan.several", lambda: True)
    with pytest.raises(ConfigError, match=r"needs one process that has all devices.*own seeds"):
        plan_tiny(tiny_data, tmp_path / "out", spread="runs")
