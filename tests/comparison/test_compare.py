"""A comparison on disk: what it leaves, that it continues to the same bytes, and what it refuses to mix."""

import html
import json
import os
import shutil
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from support.tiny import RUN, STEADY, contents, stop_after

from jaxresnet.comparison.compare import Hooks, RunsFailed, compare, pending
from jaxresnet.config import ModelConfig, with_fields
from jaxresnet.data.dataset import Split, fingerprint
from jaxresnet.errors import ConfigError, NonFiniteError, ResultsError, StorageError
from jaxresnet.files import lock
from jaxresnet.reporting.report import render
from jaxresnet.results.store import checkpoint_path, failure_path, read_results, scores_path
from jaxresnet.training.engine import Engine
from jaxresnet.training.fit import Interrupted

COMPARE, TRAIN = (
    sys.modules[compare.__module__],
    sys.modules["jaxresnet.training.fit"],
)  # the package's attribute of that name is the function
ONE = jax.devices()[:1]
ARMS = {"Adam + Lookahead": RUN, "Adam": replace(RUN, optim=replace(RUN.optim, lookahead=False))}
SEEDS = (0, 1)
RUNS = [("Adam + Lookahead", 0), ("Adam", 0), ("Adam + Lookahead", 1), ("Adam", 1)]
NAMES = ["adam-lookahead-seed0", "adam-lookahead-seed1", "adam-seed0", "adam-seed1"]
DERIVED = ["summary.json", "summary.md", "figure.png", "report.html"]


def compare_tiny(data, out, arms=ARMS, seeds=SEEDS, **hooks):
    return compare(arms, seeds, data, out, name="tiny", devices=ONE, hooks=Hooks(**hooks))


def not_trained(monkeypatch):
    monkeypatch.setattr(Engine, "train_epoch", None)  # calling it would fail


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """(folder, what compare returned, what it told of runs and epochs, and of steps)."""
    told, steps = [], []
    folder = tmp_path_factory.mktemp("finished") / "out"
    comparison = compare_tiny(
        tiny_data,
        folder,
        on_run=lambda arm, seed: told.append((arm, seed)),
        on_epoch=lambda arm, seed, rows: told.append((arm, seed, len(rows))),
        on_progress=lambda arm, seed, epoch, images: steps.append((arm, seed, epoch, images)),
    )
    return folder, comparison, told, steps


# --------------------------------------------------------------------------------------------------- what it leaves


def test_every_arm_runs_with_a_seed_before_the_next_seed_begins(finished):
    _, _, told, _ = finished
    assert told == [event for run in RUNS for event in (run, (*run, 1), (*run, 2), (*run, 3))]


def test_every_step_is_told_with_its_run(finished):
    _, _, _, steps = finished
    images = (64, 128, 192, 256)
    assert steps == [(*run, epoch, done) for run in RUNS for epoch in range(3) for done in images]


def test_the_folder_holds_what_is_promised(finished, tiny_data):
    folder, comparison, *_ = finished
    runs = [f"runs/{name}.{kind}" for name in NAMES for kind in ("json", "jsonl")]
    assert sorted(contents(folder)) == sorted([*DERIVED, "config.json", *runs])
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == NAMES
    assert comparison.folder == folder and comparison.report.complete

    config = json.loads((folder / "config.json").read_text())
    assert config["seeds"] == [0, 1] and config["protocol"] == "intended"
    assert config["dataset"] == fingerprint(tiny_data)
    assert list(config["arms"]) == list(ARMS)
    assert config["arms"]["Adam"]["optim"]["lookahead"] is False and "seed" not in config["arms"]["Adam"]
    assert {"jax", "device", "commit", "command"} <= config["environment"].keys()

    results = read_results(folder)
    for arm, seed in RUNS:
        run = results.runs[arm][seed]
        assert [row["epoch"] for row in run.rows] == [0, 1, 2]
        assert run.scores["selection"] == "val" and run.scores["num_test"] == 100
        best = max(run.rows, key=lambda row: row["val_accuracy"])
        assert run.scores["val_accuracy"] == best["val_accuracy"] and run.scores["best_epoch"] == best["epoch"]
    assert results.runs["Adam"][0].rows[0]["train_loss"] != results.runs["Adam"][1].rows[0]["train_loss"]

    summary = json.loads((folder / "summary.json").read_text())
    scores = [results.runs["Adam"][seed].scores["test_accuracy"] for seed in SEEDS]
    assert summary["arms"]["Adam"]["mean"] == pytest.approx(np.mean(scores))
    assert summary["arms"]["Adam"]["sd"] == pytest.approx(np.std(scores, ddof=1))
    assert comparison.report.verdict in (folder / "summary.md").read_text().replace("  \n", "\n")


def test_no_number_is_nan_or_infinite(finished):
    """Python's json would write NaN, which no other reader takes."""

    def refuse(constant):
        raise AssertionError(constant)

    folder, *_ = finished
    for path, data in contents(folder).items():
        for text in data.decode().splitlines() if path.endswith(".jsonl") else [data] if path.endswith(".json") else []:
            json.loads(text, parse_constant=refuse)
    assert "nan" not in (folder / "summary.md").read_text().lower()


# -------------------------------------------------------------------------------------------- again, and continued


def test_a_finished_comparison_trains_nothing_and_changes_no_byte(finished, tiny_data, monkeypatch):
    folder, comparison, *_ = finished
    before = contents(folder)
    monkeypatch.setattr(COMPARE, "fit", None)
    again = compare_tiny(tiny_data, folder, on_run=lambda *run: pytest.fail(f"{run} began"))
    assert contents(folder) == before
    assert again.report == comparison.report


@pytest.mark.parametrize("calls", [4, 16 + 1, 16 + 6], ids=["in an epoch", "between runs", "at the end of an epoch"])
def test_an_interrupted_comparison_ends_in_the_same_bytes(finished, tiny_data, tmp_path, calls):
    """A run asks should_stop 16 times: before it begins, after each of 12 steps, and after each of 3 epochs."""
    folder, *_ = finished
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match=str(out)):
        compare_tiny(tiny_data, out, should_stop=stop_after(calls))
    assert not render(out).complete
    told = []
    compare_tiny(tiny_data, out, on_run=lambda *run: told.append(run))
    assert told == RUNS[(calls - 1) // 16 :], "finished runs are left alone"
    assert contents(out, timed=False) == contents(folder, timed=False)


def test_pending_names_the_runs_in_their_order_and_which_are_finished(finished, tiny_data, tmp_path):
    folder, *_ = finished
    assert pending(ARMS, SEEDS, tmp_path / "nothing yet") == [(*run, False) for run in RUNS]
    assert pending(ARMS, SEEDS, folder) == [(*run, True) for run in RUNS]
    assert pending(ARMS, (2, 1), folder) == [(arm, seed, seed == 1) for seed in (2, 1) for arm in ARMS]
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        compare_tiny(tiny_data, out, should_stop=stop_after(16 + 6))
    assert pending(ARMS, SEEDS, out) == [(*run, run == RUNS[0]) for run in RUNS], "an unfinished run is not finished"


def test_lost_scores_are_written_again_without_training(finished, tiny_data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    compare_tiny(tiny_data, out, seeds=(0,))
    before = contents(out, timed=False)
    (out / "runs" / "adam-seed0.json").unlink()
    (out / "runs" / "adam-seed0.jsonl").unlink()
    not_trained(monkeypatch)
    compare_tiny(tiny_data, out, seeds=(0,))
    assert contents(out, timed=False) == before


def test_seeds_can_be_added_and_not_taken_away(finished, tiny_data, tmp_path):
    folder, *_ = finished
    out = tmp_path / "out"
    compare_tiny(tiny_data, out, seeds=(0,))
    before = contents(out)
    told = []
    compare_tiny(tiny_data, out, on_run=lambda *run: told.append(run))
    assert told == RUNS[2:]
    after = contents(out)
    assert all(after[path] == before[path] for path in before if path.startswith("runs/"))
    assert contents(out, timed=False) == contents(folder, timed=False), "as if both had been asked for at once"
    with pytest.raises(ResultsError, match=r"also holds seeds \[1\]: name them too"):
        compare_tiny(tiny_data, out, seeds=(0,))


def test_one_arm_and_one_seed_are_a_comparison_too(finished, tiny_data, tmp_path):
    report = compare_tiny(tiny_data, tmp_path / "out", arms={"Adam": ARMS["Adam"]}, seeds=(3,)).report
    assert report.verdict == "one arm: nothing to compare"
    assert "One seed (3)" in report.table


# -------------------------------------------------------------------------------------------------------- refusals


def test_other_settings_are_refused_by_name(finished, tiny_data):
    folder, *_ = finished
    before = contents(folder)
    changed = {
        "Adam + Lookahead": replace(RUN, optim=replace(RUN.optim, sync_period=6, learning_rate=0.5)),
        "Adam": ARMS["Adam"],
    }
    with pytest.raises(ResultsError, match="holds another comparison") as caught:
        compare_tiny(tiny_data, folder, arms=changed)
    named = "arms.Adam + Lookahead.optim.learning_rate: 0.01 -> 0.5; arms.Adam + Lookahead.optim.sync_period: 5 -> 6"
    assert f"({named})" in str(caught.value)
    with pytest.raises(ResultsError, match=r"\(in every arm batch_size: 64 -> 32\): use the old settings"):
        compare_tiny(tiny_data, folder, arms={arm: replace(config, batch_size=32) for arm, config in ARMS.items()})
    with pytest.raises(ResultsError, match=r"arms\.Adam: "):
        compare_tiny(tiny_data, folder, arms={"Adam + Lookahead": RUN})
    with pytest.raises(ResultsError, match="name: 'tiny' -> 'other'"):
        compare(ARMS, SEEDS, tiny_data, folder, name="other", devices=ONE)
    with pytest.raises(ResultsError, match="protocol: 'intended' -> 'published'"):
        compare(ARMS, SEEDS, tiny_data, folder, name="tiny", protocol="published", devices=ONE)
    assert contents(folder) == before


def test_another_data_set_is_refused(finished, tiny_data):
    folder, *_ = finished
    labels = tiny_data.train.labels[::-1].copy()
    with pytest.raises(ResultsError, match=r"dataset\.crc32"):
        compare_tiny(tiny_data._replace(train=Split(tiny_data.train.images, labels)), folder)


def test_a_folder_of_something_else_is_refused_and_left_alone(tiny_data, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ResultsError, match=r"holds other files and no config\.json"):
        compare_tiny(tiny_data, tmp_path)
    (tmp_path / "config.json").write_text('{"editor": "vi"}')
    with pytest.raises(ResultsError, match=r"not the config\.json of a comparison"):
        compare_tiny(tiny_data, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "thesis.tex"]
    assert (tmp_path / "config.json").read_text() == '{"editor": "vi"}'


@pytest.mark.parametrize("place", ["a file", "below a file", "no permission"])
def test_a_place_that_cannot_be_written_is_refused(tiny_data, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("not a folder")
    out = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "out"}.get(place, tmp_path / "out")
    if place == "no permission":  # chmod would not stop root

        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=f"{out}(/config.json)?: cannot write results there"):
        compare_tiny(tiny_data, out)
    assert not out.is_dir() or not [p for p in out.iterdir() if p.name != ".lock"], "nothing half-written"


@pytest.mark.parametrize(
    "arms, seeds, message",
    [
        ({}, (0,), "arms: at least one"),
        (ARMS, (), r"seeds=\[\]: at least one"),
        (ARMS, (1, 2, 1), r"seeds=\[1, 2, 1\]: .* none twice"),
        (ARMS, (-1,), "seed=-1"),
        ({"Adam 1": RUN, "Adam (1)": RUN}, (0,), "rename one of them"),
        ({"Adam": replace(RUN, batch_size=257)}, (0,), "batch_size=257"),
        ({"Adam": replace(RUN, train_size=999)}, (0,), "train_size=999"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_run_is_refused_before_the_folder_is_claimed(tiny_data, tmp_path, arms, seeds, message):
    """Else the folder would refuse the same command once it is mended."""
    with pytest.raises(ConfigError, match=message):
        compare_tiny(tiny_data, tmp_path / "out", arms=arms, seeds=seeds)
    assert not (tmp_path / "out").exists()


def test_a_run_that_blows_up_leaves_a_sound_folder(tiny_data, tmp_path):
    optim = replace(RUN.optim, learning_rate=1e30, schedule="warmup", schedule_unit="epoch", warmup_fraction=1.0)
    out = tmp_path / "out"
    arms = {"huge": replace(RUN, optim=optim), "Adam": ARMS["Adam"]}
    with pytest.raises(RunsFailed, match=r"out: 1 of 2 runs failed, and no other was lost\. The same command") as error:
        compare_tiny(tiny_data, out, arms=arms, seeds=SEEDS[:1])
    reason = error.value.failures["huge", 0]
    assert "epoch 1, step 4" in reason and f"huge seed 0: {reason}" in str(error.value)
    results = read_results(out)
    assert results.missing == [("huge", 0)] and results.failures == {("huge", 0): reason}
    assert [row["epoch"] for row in results.runs["huge"][0].rows] == [0]
    assert results.runs["Adam"][0].scores is not None, "which comes after it"
    report = error.value.comparison.report
    assert not report.complete and "(incomplete: 1 of 2 runs, 1 failed)" in report.table
    summary = json.loads(report.summary_json.read_text())
    assert summary["missing"] == [{"arm": "huge", "seed": 0, "error": reason}]
    assert f"Failed: huge seed 0: {reason}" in report.summary_md.read_text()
    assert reason.split(". Try")[0] in html.unescape(report.html.read_text())


def test_a_run_that_failed_is_tried_again_and_its_failure_forgotten(tiny_data, tmp_path, monkeypatch):
    """Whatever made it fail is gone: here the seed that the error is for."""
    out, fit = tmp_path / "out", COMPARE.fit

    def fails_once(config, *args, **kwargs):
        if config.seed == 0 and not config.optim.lookahead:
            raise NonFiniteError("seed 0: the loss stopped being finite")
        return fit(config, *args, **kwargs)

    monkeypatch.setattr(COMPARE, "fit", fails_once)
    with pytest.raises(RunsFailed):
        compare_tiny(tiny_data, out)
    assert read_results(out).missing == [("Adam", 0)]
    monkeypatch.setattr(COMPARE, "fit", fit)
    assert compare_tiny(tiny_data, out).report.complete
    assert read_results(out).failures == {} and not list((out / "runs").glob("*.failed.json"))


@pytest.mark.parametrize(
    "error, reason",
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"),
            "JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 1 byte; try a smaller batch_size",
        ),
        (MemoryError("not here"), "MemoryError: not here; try a smaller batch_size"),
        (RuntimeError("a bug\nof two lines"), "RuntimeError: a bug of two lines"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_breaks_does_not_stop_the_others(tiny_data, tmp_path, monkeypatch, capsys, error, reason):
    fit = COMPARE.fit

    def breaks(config, *args, **kwargs):
        if config.optim.lookahead:
            raise error
        return fit(config, *args, **kwargs)

    monkeypatch.setattr(COMPARE, "fit", breaks)
    with pytest.raises(RunsFailed) as failed:
        compare_tiny(tiny_data, tmp_path / "out", seeds=SEEDS[:1])
    assert list(failed.value.failures.values()) == [reason]
    results = read_results(tmp_path / "out")
    assert len(results.missing) == 1 and list(results.failures.values()) == [reason]
    assert "Traceback" in capsys.readouterr().err, "for whoever has to find out why"


def test_a_full_disk_ends_the_comparison(tiny_data, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise StorageError("no room")

    monkeypatch.setattr(COMPARE, "fit", full)
    with pytest.raises(StorageError, match="no room"):
        compare_tiny(tiny_data, tmp_path / "out")
    assert read_results(tmp_path / "out").failures == {}


def test_a_score_that_is_not_finite_is_a_failure_of_its_run_alone(tiny_data, tmp_path, monkeypatch):
    """Running statistics lag behind the weights: evaluation may overflow where no step did."""
    score = TRAIN._Run._score

    def overflows(self, state, name):
        loss, accuracy = score(self, state, name)
        return (float("nan") if self.config.optim.lookahead and self.epoch == 1 else loss), accuracy

    monkeypatch.setattr(TRAIN._Run, "_score", overflows)
    with pytest.raises(RunsFailed) as failed:
        compare_tiny(tiny_data, tmp_path / "out", seeds=SEEDS[:1])
    (reason,) = failed.value.failures.values()
    assert reason.startswith("the validation loss is nan after epoch 1 (counted from 0). Try a lower learning rate")
    results = read_results(tmp_path / "out")
    assert len(results.missing) == 1
    (missing,) = results.missing
    assert [row["epoch"] for row in results.runs[missing[0]][missing[1]].rows] == [0]
    assert {p.name for p in checkpoint_path(tmp_path / "out", *missing).iterdir()} == {"4"}, "the last good one"
    monkeypatch.setattr(TRAIN._Run, "_score", score)
    assert compare_tiny(tiny_data, tmp_path / "out", seeds=SEEDS[:1]).report.complete


def test_checkpoints_that_are_gone_are_not_taken_for_a_run_that_never_began(tiny_data, tmp_path):
    out = tmp_path / "out"
    arms = {"Adam": ARMS["Adam"]}
    with pytest.raises(Interrupted):
        compare_tiny(tiny_data, out, arms=arms, seeds=(0,), should_stop=stop_after(8))
    shutil.rmtree(out / "checkpoints")
    for _ in range(2):
        with pytest.raises(RunsFailed, match=r"holds no checkpoint, but .* has finished epochs.*--restart"):
            compare_tiny(tiny_data, out, arms=arms, seeds=(0,))
    made = compare(arms, (0,), tiny_data, out, name="tiny", devices=ONE, restart=True)
    assert made.report.complete


@pytest.mark.parametrize("text", ["{", '{"arm": "Adam"}', "[]"])
def test_a_damaged_note_of_a_failure_is_named(finished, tmp_path, text):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out, ignore=shutil.ignore_patterns("checkpoints"))
    scores_path(out, "Adam", 0).unlink()
    failure_path(out, "Adam", 0).write_text(text)
    with pytest.raises(ResultsError, match=r"adam-seed0\.failed\.json.*delete it"):
        read_results(out)


def test_a_folder_that_another_process_works_in_is_left_alone(tiny_data, tmp_path):
    out = tmp_path / "out"
    with lock(out), pytest.raises(ResultsError, match="out: in use by process"):
        compare_tiny(tiny_data, out)
    assert not any(out.iterdir())
    with lock(out / "checkpoints" / "adam-seed0"), pytest.raises(RunsFailed, match="adam-seed0: in use by process"):
        compare_tiny(tiny_data, out, arms={"Adam": ARMS["Adam"]}, seeds=(0,))


# -------------------------------------------------------------------------------------------------- compiling once


def test_rates_schedules_lengths_and_seeds_share_their_programs(tiny_data, tmp_path):
    """All but the first run compile nothing."""
    model = ModelConfig(stage_sizes=(1,), width=3, pool_size=32)  # of no other test
    base = replace(STEADY, model=model, num_epochs=1)
    changes = {
        "first": {},
        "rate": {"learning_rate": 1e-4, "b1": 0.5, "weight_decay": 0.1, "slow_step_size": 0.8},
        "constant": {"schedule": "constant"},
        "OneCycle, an epoch at a time": {"schedule": "onecycle", "schedule_unit": "epoch", "schedule_length": 9},
        "warm-up": {"schedule": "warmup_cosine", "warmup_fraction": 0.1},
        "twice as long": {"num_epochs": 2},
        "as published": {"eval_weights": "fast", "test_every_epoch": True},
    }
    arms = {arm: with_fields(base, fields) for arm, fields in changes.items()}
    compiled: dict[tuple[str, int], list[str]] = {}

    def listener(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            list(compiled.values())[-1].append(fun_name)

    def on_run(arm, seed):
        compiled[arm, seed] = []

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        compare(arms, (0, 1), tiny_data, tmp_path / "out", devices=ONE, hooks=Hooks(on_run=on_run))
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert len(compiled) == 14
    first = compiled.pop(("first", 0))
    assert len(first) >= 5, "initial state, plan, step, and evaluation of two data sets"
    assert compiled == {run: [] for run in compiled}
