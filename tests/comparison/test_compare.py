"""A comparison that is run: what it leaves, that it continues to the same bytes, and that each run is trained once."""

import html
import json
import os
import shutil
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest
from support.fake_results import fake_fit
from support.tiny import RUN, STEADY, contents, stop_after

from jaxresnet.comparison.compare import Hooks, RunsFailed, compare
from jaxresnet.config import ModelConfig, to_dict, with_fields
from jaxresnet.data.dataset import fingerprint
from jaxresnet.errors import NonFiniteError, ResultsError, StorageError
from jaxresnet.reporting.report import render
from jaxresnet.results.store import CHECKPOINTS, FAILURE, HISTORY, SCORES, read_results
from jaxresnet.training.fit import Interrupted

ONE = jax.devices()[:1]
ARMS = {"Adam + Lookahead": RUN, "Adam": replace(RUN, optim=replace(RUN.optim, lookahead=False))}
ADAM = {"Adam": ARMS["Adam"]}
SEEDS = (0, 1)
RUNS = [("Adam + Lookahead", 0), ("Adam", 0), ("Adam + Lookahead", 1), ("Adam", 1)]
DERIVED = ["summary.json", "summary.md", "figure.png", "report.html"]


def compare_tiny(data, out, arms=ARMS, seeds=SEEDS, name="tiny", restart=False, **hooks):
    return compare(arms, seeds, data, out, name=name, devices=ONE, restart=restart, hooks=Hooks(**hooks))


@pytest.fixture
def replace_fit(monkeypatch):
    """replace_fit(function) puts it in place of `fit`; without one, what takes no time."""
    return lambda instead=fake_fit: monkeypatch.setattr("jaxresnet.comparison.executors.fit", instead)


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """(root of results, what compare returned, what it told of runs and epochs, and of steps)."""
    told, steps = [], []
    out = tmp_path_factory.mktemp("finished") / "out"
    comparison = compare_tiny(
        tiny_data,
        out,
        on_run=lambda arm, seed: told.append((arm, seed)),
        on_epoch=lambda arm, seed, rows: told.append((arm, seed, len(rows))),
        on_progress=lambda arm, seed, epoch, images: steps.append((arm, seed, epoch, images)),
        on_end=lambda arm, seed: told.append((arm, seed, "end")),
    )
    return out, comparison, told, steps


# --------------------------------------------------------------------------------------------------- what it leaves


def test_every_run_epoch_and_step_is_told_in_order(finished):
    _, _, told, steps = finished
    assert told == [event for run in RUNS for event in (run, (*run, 1), (*run, 2), (*run, 3), (*run, "end"))]
    images = (64, 128, 192, 256)
    assert steps == [(*run, epoch, done) for run in RUNS for epoch in range(3) for done in images]


def test_the_folders_hold_what_is_promised(finished, tiny_data):
    out, comparison, *_ = finished
    ids = {run: folder.name for run, folder in comparison.runs.items()}
    assert sorted(ids) == sorted(RUNS) and len(set(ids.values())) == 4
    runs = [f"runs/{run}/{name}" for run in ids.values() for name in ("config.json", HISTORY, SCORES)]
    assert sorted(contents(out)) == sorted([*runs, *(f"tiny/{name}" for name in (*DERIVED, "comparison.json"))])
    assert all(any((out / "runs" / run / CHECKPOINTS).iterdir()) for run in ids.values())
    assert comparison.folder == out / "tiny" and comparison.report.complete

    config = json.loads((out / "tiny" / "comparison.json").read_text())
    assert (config["name"], config["protocol"], config["seeds"]) == ("tiny", "intended", [0, 1])
    assert config["dataset"] == fingerprint(tiny_data)
    assert list(config["arms"]) == list(ARMS) and "seed" not in config["arms"]["Adam"]
    assert config["runs"] == {arm: {str(seed): ids[arm, seed] for seed in SEEDS} for arm in ARMS}
    assert {"jax", "device", "commit", "command"} <= config["environment"].keys()

    results = read_results(out / "tiny")
    for arm, seed in RUNS:
        run = results.runs[arm][seed]
        saved = json.loads((comparison.runs[arm, seed] / "config.json").read_text())
        assert saved == {"config": to_dict(replace(ARMS[arm], seed=seed)), "data": fingerprint(tiny_data)}
        assert [row["epoch"] for row in run.rows] == [0, 1, 2]
        assert run.scores["selection"] == "val" and run.scores["num_test"] == 100
        assert {"jax", "device", "commit", "command"} <= run.scores["environment"].keys()
        best = max(run.rows, key=lambda row: row["val_accuracy"])
        assert run.scores["val_accuracy"] == best["val_accuracy"] and run.scores["best_epoch"] == best["epoch"]
    assert results.runs["Adam"][0].rows[0]["train_loss"] != results.runs["Adam"][1].rows[0]["train_loss"]

    summary = json.loads((out / "tiny" / "summary.json").read_text())
    scores = [results.runs["Adam"][seed].scores["test_accuracy"] for seed in SEEDS]
    assert summary["arms"]["Adam"]["mean"] == pytest.approx(np.mean(scores))
    assert summary["arms"]["Adam"]["sd"] == pytest.approx(np.std(scores, ddof=1))


# -------------------------------------------------------------------------------------------- again, and continued


def test_a_finished_comparison_trains_nothing_and_changes_no_byte(finished, tiny_data, replace_fit):
    out, comparison, *_ = finished
    before = contents(out)
    replace_fit(None)
    again = compare_tiny(tiny_data, out, on_run=lambda *run: pytest.fail(f"{run} began"))
    assert contents(out) == before
    assert again == comparison


@pytest.mark.parametrize("calls", [4, 16 + 1, 16 + 6], ids=["in an epoch", "between runs", "at the end of an epoch"])
def test_an_interrupted_comparison_ends_in_the_same_bytes(finished, tiny_data, tmp_path, calls):
    """A run asks should_stop 16 times: before it begins, after each of 12 steps, and after each of 3 epochs."""
    out = tmp_path / "out"
    with pytest.raises(Interrupted, match=str(out)):
        compare_tiny(tiny_data, out, should_stop=stop_after(calls))
    assert not render(out / "tiny").complete
    told = []
    compare_tiny(tiny_data, out, on_run=lambda *run: told.append(run))
    assert told == RUNS[(calls - 1) // 16 :], "finished runs are left alone"
    assert contents(out, timed=False) == contents(finished[0], timed=False)


def test_lost_scores_are_written_again_without_training(tiny_data, tmp_path):
    made = compare_tiny(tiny_data, tmp_path, ADAM, (0,))
    before = contents(tmp_path, timed=False)
    (folder,) = made.runs.values()
    for name in (HISTORY, SCORES):
        (folder / name).unlink()
    compare_tiny(tiny_data, tmp_path, ADAM, (0,), on_epoch=lambda *_: pytest.fail("trained"))
    assert contents(tmp_path, timed=False) == before


def test_seeds_and_arms_that_are_added_are_all_that_is_trained(finished, tiny_data, tmp_path):
    for arms, seeds, trained in ((ADAM, (0,), RUNS[1:2]), (ADAM, SEEDS, RUNS[3:]), (ARMS, SEEDS, RUNS[::2])):
        before, told = contents(tmp_path), []
        compare_tiny(tiny_data, tmp_path, arms, seeds, on_run=lambda *run, told=told: told.append(run))
        assert told == trained
        assert {path: data for path, data in before.items() if path.startswith("runs/")}.items() <= (
            contents(tmp_path).items()
        )
    assert contents(tmp_path, timed=False) == contents(finished[0], timed=False), "as if all were asked for at once"


def test_published_figures_may_be_added_and_stay(tiny_data, tmp_path, replace_fit):
    replace_fit()
    figures = {"Adam": {"best": 90.0, "source": "a paper"}}
    for published, expected in ((None, {}), (figures, figures), (None, figures)):
        report = compare(ADAM, (0,), tiny_data, tmp_path, devices=ONE, published=published).report
        assert read_results(tmp_path / "comparison").published == expected
    assert report.complete and "one arm" in report.verdict, "one arm with one seed is a comparison too"


# ------------------------------------------------------------------------------------------------- the shared store


def test_a_run_that_two_comparisons_share_is_trained_once(tiny_data, tmp_path, replace_fit):
    replace_fit()
    first = compare_tiny(tiny_data, tmp_path, name="first")
    before, told = contents(tmp_path), []
    arms = {"plain": ARMS["Adam"], "small batch": replace(RUN, batch_size=32)}
    second = compare_tiny(tiny_data, tmp_path, arms, (1, 2), "second", on_run=lambda *run: told.append(run))
    assert told == [("small batch", 1), ("plain", 2), ("small batch", 2)]
    assert second.runs["plain", 1] == first.runs["Adam", 1]
    assert before.items() <= contents(tmp_path).items(), "the first comparison and its runs are as they were"
    assert len(list((tmp_path / "runs").iterdir())) == 7
    results = read_results(tmp_path / "second")
    assert results.runs["plain"][1].rows == read_results(tmp_path / "first").runs["Adam"][1].rows
    assert "plain" in second.report.table and second.report.complete


def test_two_workers_share_a_store(tiny_data, tmp_path, replace_fit):
    """While one trains a run, the other trains what else there is, names the one that holds it, and finds it later."""
    began, may_end, trained = threading.Event(), threading.Event(), []

    def slow(config, *args, **kwargs):
        trained.append((config.optim.lookahead, config.seed))
        if threading.current_thread() is not threading.main_thread():
            began.set()
            assert may_end.wait(60)
        return fake_fit(config, *args, **kwargs)

    replace_fit(slow)
    other = threading.Thread(target=compare_tiny, args=(tiny_data, tmp_path, ADAM, (0,), "first"))
    other.start()
    try:
        assert began.wait(60)
        with pytest.raises(RunsFailed, match=f"in use by process {os.getpid()} ") as error:
            compare_tiny(tiny_data, tmp_path, ARMS, (0,), "second")
        assert list(error.value.failures) == [("Adam", 0)]
        results = read_results(tmp_path / "second")
        assert results.missing == [("Adam", 0)] and results.failures == {}, "it did not fail, it is not finished"
        with pytest.raises(ResultsError, match="first: in use by process"):
            compare_tiny(tiny_data, tmp_path, ARMS, (0,), "first")
    finally:
        may_end.set()
        other.join()
    assert compare_tiny(tiny_data, tmp_path, ARMS, (0,), "second").report.complete
    assert sorted(trained) == [(False, 0), (True, 0)]


def test_a_run_that_was_finished_since_it_was_planned_is_not_trained(tiny_data, tmp_path, replace_fit):
    """By another comparison of the same command, or by another worker."""

    def meanwhile(arm, seed):
        if (arm, seed) == RUNS[0]:
            compare_tiny(tiny_data, tmp_path, ADAM, (0,), "other")
            replace_fit(None)

    replace_fit()
    assert compare_tiny(tiny_data, tmp_path, ARMS, (0,), on_end=meanwhile).report.complete


class Killed(BaseException):
    """As `kill -9` ends a process: no handler runs."""


def test_a_crash_at_any_write_leaves_nothing_half_written(tiny_data, tmp_path, monkeypatch, replace_fit):
    replace_fit()
    monkeypatch.setattr("jaxresnet.comparison.compare._render", lambda folder: None)
    compare_tiny(tiny_data, tmp_path / "whole", seeds=(0,))
    expected, swap, crashes = contents(tmp_path / "whole"), os.replace, 0
    while True:
        out, left = tmp_path / f"out{crashes}", iter(range(crashes))

        def crash(source, target, left=left):
            if next(left, None) is None:
                shutil.copy(source, f"{source[: -len('.tmp')]}.killed.tmp")  # as the file itself is removed on the way
                raise Killed
            swap(source, target)

        monkeypatch.setattr(os, "replace", lambda source, target, crash=crash: crash(str(source), target))
        try:
            compare_tiny(tiny_data, out, seeds=(0,))
            break
        except Killed:
            crashes += 1
        monkeypatch.setattr(os, "replace", swap)
        if (out / "tiny" / "comparison.json").is_file():
            read_results(out / "tiny")
        compare_tiny(tiny_data, out, seeds=(0,))
        assert contents(out) == expected
        assert not list(out.rglob("*.killed.tmp")), "what a killed process left is removed"
    assert crashes >= 12, "comparison.json; of two runs config, history three times, and scores; and the locks"


# --------------------------------------------------------------------------------------------------------- failures


def test_a_run_that_blows_up_leaves_a_sound_folder(tiny_data, tmp_path):
    optim = replace(RUN.optim, learning_rate=1e30, schedule="warmup", schedule_unit="epoch", warmup_fraction=1.0)
    arms = {"huge": replace(RUN, optim=optim), **ADAM}
    with pytest.raises(
        RunsFailed, match=r"tiny: 1 of 2 runs failed, and no other was lost\. The same command"
    ) as error:
        compare_tiny(tiny_data, tmp_path, arms, (0,))
    reason = error.value.failures["huge", 0]
    assert "epoch 1, step 4" in reason and f"huge seed 0: {reason}" in str(error.value)
    results = read_results(tmp_path / "tiny")
    assert results.missing == [("huge", 0)] and results.failures == {("huge", 0): reason}
    assert [row["epoch"] for row in results.runs["huge"][0].rows] == [0]
    assert results.runs["Adam"][0].scores is not None, "which comes after it"
    report = error.value.comparison.report
    assert not report.complete and "1 failed" in report.table
    summary = json.loads(report.summary_json.read_text())
    assert summary["missing"] == [{"arm": "huge", "seed": 0, "error": reason}]
    assert reason.split(". Try")[0] in html.unescape(report.html.read_text())


@pytest.mark.parametrize(
    "error, reason",
    [
        (NonFiniteError("seed 0: the validation loss is nan"), "the validation loss is nan"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"),
            "JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 1 byte; try a smaller batch_size",
        ),
        (RuntimeError("a bug\nof two lines"), "RuntimeError: a bug of two lines"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_breaks_does_not_stop_the_others_and_is_tried_again(
    tiny_data, tmp_path, replace_fit, capsys, error, reason
):
    def breaks(config, *args, on_epoch, **kwargs):
        def on_first(rows):
            on_epoch(rows)
            raise error

        fails = config.seed == 0 and config.optim.lookahead
        return fake_fit(config, *args, on_epoch=on_first if fails else on_epoch, **kwargs)

    replace_fit(breaks)
    with pytest.raises(RunsFailed) as failed:
        compare_tiny(tiny_data, tmp_path)
    assert failed.value.failures == {RUNS[0]: reason}
    results = read_results(tmp_path / "tiny")
    assert results.missing == [RUNS[0]] and results.failures == {RUNS[0]: reason}
    assert len(results.runs["Adam + Lookahead"][0].rows) == 1
    traced = "Traceback" in capsys.readouterr().err
    assert traced != isinstance(error, NonFiniteError), "for whoever has to find out why"
    replace_fit()
    assert compare_tiny(tiny_data, tmp_path).report.complete
    assert read_results(tmp_path / "tiny").failures == {} and not list(tmp_path.rglob(FAILURE))


def test_a_full_disk_ends_the_comparison(tiny_data, tmp_path, replace_fit):
    def full(*args, **kwargs):
        raise StorageError("no room")

    replace_fit(full)
    with pytest.raises(StorageError, match="no room"):
        compare_tiny(tiny_data, tmp_path)
    assert read_results(tmp_path / "tiny").failures == {}


def test_a_place_that_cannot_be_written_is_refused(tiny_data, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def refuse(*_):  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=f"{out}/tiny.*: cannot be written"):
        compare_tiny(tiny_data, out)
    assert not out.is_dir() or not contents(out), "nothing half-written"


def test_checkpoints_that_are_gone_are_not_taken_for_a_run_that_never_began(tiny_data, tmp_path):
    with pytest.raises(Interrupted):
        compare_tiny(tiny_data, tmp_path, ADAM, (0,), should_stop=stop_after(8))
    (folder,) = (tmp_path / "runs").iterdir()
    for checkpoint in (folder / CHECKPOINTS).glob("[0-9]*"):  # the lock's file stays
        shutil.rmtree(checkpoint)
    for _ in range(2):
        with pytest.raises(RunsFailed, match=r"holds no checkpoint, but .* has finished epochs.*--restart"):
            compare_tiny(tiny_data, tmp_path, ADAM, (0,))
    assert compare_tiny(tiny_data, tmp_path, ADAM, (0,), restart=True).report.complete


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
    compiled = []  # of each run, the names of the programs

    def listener(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled[-1].append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        compare_tiny(tiny_data, tmp_path, arms, on_run=lambda *_: compiled.append([]))
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    first, *others = compiled
    assert len(first) >= 5, "initial state, plan, step, and evaluation of two data sets"
    assert others == [[]] * 13
