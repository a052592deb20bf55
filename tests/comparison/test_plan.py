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
from jaxresnet.errors import ConfigError, ResultsError
from jaxresnet.results.schemas import comparison_path
from jaxresnet.results.store import SCORES, read_results, run_id

ONE = jax.devices()[:1]
ARMS = {"Adam + Lookahead": RUN, "Adam": replace(RUN, optim=replace(RUN.optim, lookahead=False))}
SEEDS = (0, 1)
ORDER = [("Adam + Lookahead", 0), ("Adam", 0), ("Adam + Lookahead", 1), ("Adam", 1)]


def plan_tiny(data, out, arms=ARMS, seeds=SEEDS, name="tiny", devices=ONE, **other):
    return prepare(arms, seeds, data, out, name=name, devices=devices, **other)


@pytest.fixture
def begin(tiny_data, tmp_path, monkeypatch):
    """begin(arms, seeds) finishes the comparison "tiny", undrawn and untrained, and returns the root of results."""
    monkeypatch.setattr("jaxresnet.comparison.executors.fit", fake_fit)
    monkeypatch.setattr("jaxresnet.comparison.compare._render", lambda folder: None)
    return lambda *asked: compare(*asked, tiny_data, tmp_path / "out", name="tiny", devices=ONE).folder.parent


@pytest.fixture
def begun(begin):
    return begin(ARMS, SEEDS)


class NeverTaken(np.ndarray):
    """Images of which no part may be taken: none is copied to check them."""

    def __getitem__(self, index):
        raise AssertionError


def test_every_arm_runs_with_a_seed_before_the_next_seed_begins(tiny_data, tmp_path):
    images, labels = tiny_data.train
    plan = plan_tiny(tiny_data._replace(train=Split(images.view(NeverTaken), labels)), tmp_path / "out")
    assert [(run.arm, run.seed) for run in plan.runs] == ORDER and not any(run.done for run in plan.runs)
    for run in plan.runs:
        assert run.config == replace(ARMS[run.arm], seed=run.seed)
        assert run.id == run_id(run.config, fingerprint(tiny_data))
    assert not (tmp_path / "out").exists(), "a plan writes nothing"


def test_what_is_finished_is_known_whatever_comparison_it_was_for(tiny_data, begun):
    assert all(run.done for run in plan_tiny(tiny_data, begun).runs)
    other = plan_tiny(tiny_data, begun, {"B": ARMS["Adam"], "C": replace(RUN, batch_size=32)}, (2, 1), name="other")
    expected = [("B", 2, False), ("C", 2, False), ("B", 1, True), ("C", 1, False)]
    assert [(run.arm, run.seed, run.done) for run in other.runs] == expected
    lost = plan_tiny(tiny_data, begun).runs[2]
    (begun / "runs" / lost.id / SCORES).unlink()
    assert [run.done for run in plan_tiny(tiny_data, begun).runs] == [True, True, False, True]


def test_the_precision_auto_is_settled_once(tiny_data, tmp_path, begin, monkeypatch):
    """By the device at first; then by what the comparison says, for new arms as well."""
    auto = {arm: replace(config, model=replace(config.model, precision="auto")) for arm, config in ARMS.items()}
    first = {"Adam": auto["Adam"]}
    for chosen, precision in (("0", "float32"), ("1", "bfloat16")):
        monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", chosen)
        assert plan_tiny(tiny_data, tmp_path, first).arms["Adam"].model.precision == precision
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "0")
    out = begin(first, (0,))
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "1")
    plan = plan_tiny(tiny_data, out, auto)
    assert {config.model.precision for config in plan.arms.values()} == {"float32"}
    assert [run.done for run in plan.runs] == [False, True, False, False]


WHATEVER_THE_DATA = {
    "arms: is empty or no dictionary; give .name: config.": {"arms": {}},
    r"seeds=\[\]: at least one": {"seeds": ()},
    r"seeds=\[1, 2, 1\]: .* none twice": {"seeds": (1, 2, 1)},
    "seed=-1": {"seeds": (-1,)},
    "arm name 'a.x1b': must be a text": {"arms": {"a\x1b": RUN}},
}
REFUSED = {
    **WHATEVER_THE_DATA,
    "arms .* have the same config: leave one": {"arms": {"Adam": RUN, "the same": replace(RUN, seed=5)}},
    "batch_size=257": {"arms": {"Adam": replace(RUN, batch_size=257)}},
    "num_classes=9": {"arms": {"Adam": replace(RUN, model=replace(RUN.model, num_classes=9))}},
    "name='runs': names the folder": {"name": "runs"},
    "name='../elsewhere': names the folder": {"name": "../elsewhere"},
    "spread='run': must be 'data' or 'runs'": {"spread": "run"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_run_is_refused_before_anything_is_written(tiny_data, tmp_path, message):
    with pytest.raises(ConfigError, match=message):
        plan_tiny(tiny_data, tmp_path / "out", **REFUSED[message])
    assert not (tmp_path / "out").exists()
    if message in WHATEVER_THE_DATA:
        with pytest.raises(ConfigError, match=message):
            check_arms(**{"arms": ARMS, "seeds": SEEDS, **REFUSED[message]})


def test_on_a_cpu_that_is_one_device_every_core_trains_a_run(tiny_data, tmp_path, monkeypatch):
    one = tuple(jax.devices()[:1])
    monkeypatch.setattr("jaxresnet.comparison.plan.num_cores", lambda: 3)
    monkeypatch.setattr("jaxresnet.comparison.plan.some_devices", lambda given: one)
    cpu = one[0].platform == "cpu"
    assert plan_tiny(tiny_data, tmp_path, devices=None).teams == (one,) * (3 if cpu else 1)
    assert plan_tiny(tiny_data, tmp_path, spread="data", devices=None).teams == (one,)
    assert plan_tiny(tiny_data, tmp_path, {"A": RUN}, (0,), devices=None).teams == (one,), "one run has all cores"
    assert plan_tiny(tiny_data, tmp_path, devices=one).teams == (one,), "what the caller names is not shared out"


@pytest.mark.devices(3)
def test_a_batch_must_divide_over_the_devices_that_share_it(tiny_data, tmp_path):
    three = jax.devices()[:3]
    with pytest.raises(ConfigError, match="batch_size=64: must be a multiple of the 3 devices"):
        plan_tiny(tiny_data, tmp_path, devices=three)
    assert plan_tiny(tiny_data, tmp_path, devices=three, spread="runs").teams == tuple((one,) for one in three)
    arms = {"A": replace(RUN, batch_size=48)}
    assert plan_tiny(tiny_data, tmp_path, arms, devices=three).teams == (tuple(three),)


def test_another_comparison_in_the_folder_is_refused_by_its_fields(tiny_data, begun):
    before = contents(begun)
    changed = replace(RUN, optim=replace(RUN.optim, sync_period=6, learning_rate=0.5))
    other = "choose another name (--name) or output folder (--out)"
    labels = tiny_data.train.labels[::-1].copy()
    for asked, message in (
        (
            {"arms": {**ARMS, "Adam + Lookahead": changed}},
            "(arms.Adam + Lookahead.optim.learning_rate: 0.01 -> 0.5; "
            "arms.Adam + Lookahead.optim.sync_period: 5 -> 6). Give this one a name of its own "
            "(--name tiny-learning_rate-0.5)",
        ),
        ({"arms": {arm: replace(c, batch_size=32) for arm, c in ARMS.items()}}, "(in every arm batch_size: 64 -> "),
        ({"protocol": "published"}, "(protocol: 'intended' -> 'published')"),
        ({"data": tiny_data._replace(train=Split(tiny_data.train.images, labels))}, "(dataset.crc32: "),
        ({"arms": {"Adam": ARMS["Adam"]}}, "also holds arm 'Adam + Lookahead'; name all of them, as a comparison only"),
        ({"seeds": (1, 2)}, f"also holds seed 0; name all of them, as a comparison only grows, or {other}"),
    ):
        with pytest.raises(ResultsError) as caught:
            plan_tiny(**{"data": tiny_data, "out": begun, **asked})
        assert str(caught.value).startswith(f"{begun / 'tiny'}: ") and message in str(caught.value)
    assert contents(begun) == before


@pytest.mark.parametrize(
    "file, text, out, message",
    [
        ("tiny/thesis.tex", "mine", ".", r"tiny: holds other files and no comparison\.json; choose another name"),
        ("tiny/comparison.json", '{"editor": "vi"}', ".", r"not the comparison\.json of a comparison"),
        ("mine", "a file", "mine", "mine: is a file; give a folder"),
        ("comparison.json", "{}", ".", "is the folder of one comparison; give the one around it"),
    ],
)
def test_what_is_in_the_way_is_refused_and_left_alone(tiny_data, tmp_path, file, text, out, message):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        plan_tiny(tiny_data, tmp_path / out)
    assert contents(tmp_path) == {file: text.encode()}


def test_a_damaged_run_is_refused_also_by_a_comparison_that_shares_it(tiny_data, begun):
    *_, last = plan_tiny(tiny_data, begun).runs
    (begun / "runs" / last.id / SCORES).write_text("{")
    for name in ("tiny", "other"):
        with pytest.raises(ResultsError, match=rf"{last.id}/scores\.json, line 1: cut off"):
            plan_tiny(tiny_data, begun, name=name)


def test_what_was_saved_before_a_field_was_added_is_continued(tiny_data, begun):
    def forget(path, configs_in):
        saved = json.loads(path.read_text())
        for config in configs_in(saved):
            del config["skip_nonfinite"], config["model"]["initializer"]
        path.write_text(json.dumps(saved))

    forget(comparison_path(begun / "tiny"), lambda saved: saved["arms"].values())
    for path in (begun / "runs").glob("*/config.json"):
        forget(path, lambda saved: [saved["config"]])
    assert all(run.done for run in plan_tiny(tiny_data, begun).runs)
    assert not read_results(begun / "tiny").missing


def test_a_run_for_each_device_is_for_one_process(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxresnet.comparison.plan.several", lambda: True)
    with pytest.raises(ConfigError, match=r"needs one process that has all devices.*own seeds"):
        plan_tiny(tiny_data, tmp_path / "out", spread="runs")
