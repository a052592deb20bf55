"""A comparison that is run: what it leaves, that it continues to the same bytes, and that each run is trained once."""

import html
import json
import os
import shutil
import threading
from dataclasses import replace

import jax
import pytest
from support.fake_results import fake_fit
from support.tiny import RUN, contents, stop_after

from jaxresnet.comparison.compare import Hooks, RunsFailed, compare
from jaxresnet.config import to_dict
from jaxresnet.data.dataset import fingerprint
from jaxresnet.errors import Interrupted, NonFiniteError, ResultsError
from jaxresnet.reporting.report import render
from jaxresnet.results.store import CHECKPOINTS, FAILURE, HISTORY, SCORES, read_results

pytestmark = pytest.mark.usefixtures("a_step_a_dispatch")
ONE = jax.devices()[:1]
ARMS = {"Adam + Lookahead": RUN, "Adam": replace(RUN, optim=replace(RUN.optim, lookahead=False))}
ADAM = {"Adam": ARMS["Adam"]}
SEEDS = (0, 1)
RUNS = [("Adam + Lookahead", 0), ("Adam", 0), ("Adam + Lookahead", 1), ("Adam", 1)]


def compare_tiny(data, out, arms=ARMS, seeds=SEEDS, name="tiny", restart=False, **hooks):
    return compare(arms, seeds, data, out, name=name, devices=ONE, restart=restart, hooks=Hooks(**hooks))


@pytest.fixture
def replace_fit(monkeypatch):
    """replace_fit(function) puts it in place of `fit`; without one, what takes no time."""
    return lambda instead=fake_fit: monkeypatch.setattr("jaxresnet.comparison.executors.fit", instead)


@pytest.fixture
def undrawn(monkeypatch):
    """For comparisons that are told from their files."""
    monkeypatch.setattr("jaxresnet.comparison.compare._render", lambda folder: None)


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """(root of results, what compare returned, what it told)."""
    told = []
    out = tmp_path_factory.mktemp("finished") / "out"
    comparison = compare_tiny(
        tiny_data,
        out,
        on_run=lambda *run: told.append(run),
        on_epoch=lambda arm, seed, rows: told.append((arm, seed, f"epoch {len(rows)}")),
        on_progress=lambda *images_done: told.append(images_done),
        on_end=lambda *run: told.append((*run, "end")),
    )
    return out, comparison, told


def test_every_run_epoch_and_step_is_told_in_order(finished):
    def of_epoch(epoch):
        return [*((epoch, images) for images in (64, 128, 192, 256)), (f"epoch {epoch + 1}",)]

    of_run = [(), *of_epoch(0), *of_epoch(1), *of_epoch(2), ("end",)]
    assert finished[2] == [(*run, *event) for run in RUNS for event in of_run]


def test_the_folders_hold_what_is_promised(finished, tiny_data):
    out, comparison, _ = finished
    ids = {run: folder.name for run, folder in comparison.runs.items()}
    assert sorted(ids) == sorted(RUNS) and len(set(ids.values())) == 4
    runs = [f"runs/{run}/{name}" for run in ids.values() for name in ("config.json", HISTORY, SCORES)]
    drawn = ("comparison.json", "summary.json", "summary.md", "figure.png", "report.html")
    assert sorted(contents(out)) == sorted([*runs, *(f"tiny/{name}" for name in drawn)])
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


def test_a_finished_comparison_trains_nothing_and_changes_no_byte(finished, tiny_data, replace_fit):
    out, comparison, _ = finished
    before = contents(out)
    replace_fit(None)
    again = compare_tiny(tiny_data, out, on_run=lambda *run: pytest.fail(f"{run} began"))
    assert contents(out) == before and again == comparison


def test_an_interrupted_comparison_ends_in_the_same_bytes(finished, tiny_data, tmp_path):
    """First in an epoch, then between two runs."""
    out, ended, told = tmp_path / "out", [], []
    for should_stop in (stop_after(4), lambda: bool(ended)):
        with pytest.raises(Interrupted, match=str(out)):
            compare_tiny(tiny_data, out, should_stop=should_stop, on_end=lambda *run: ended.append(run))
        assert not render(out / "tiny").complete
    compare_tiny(tiny_data, out, on_run=lambda *run: told.append(run))
    assert ended == RUNS[:1] and told == RUNS[1:], "finished runs are left alone"
    assert contents(out, timed=False) == contents(finished[0], timed=False)


def test_what_a_finished_run_has_lost_is_written_again_from_its_checkpoints(finished, tiny_data, tmp_path, replace_fit):
    """And without checkpoints it is not taken for one that never began."""
    out = shutil.copytree(finished[0], tmp_path / "out")
    folder = out / "runs" / finished[1].runs["Adam", 0].name
    for name in (HISTORY, SCORES):
        (folder / name).unlink()
    compare_tiny(tiny_data, out, on_epoch=lambda *_: pytest.fail("trained"))
    assert contents(out, timed=False) == contents(finished[0], timed=False)

    (folder / SCORES).unlink()
    for checkpoint in (folder / CHECKPOINTS).glob("[0-9]*"):  # the lock's file stays
        shutil.rmtree(checkpoint)
    replace_fit()
    for _ in range(2):
        with pytest.raises(RunsFailed, match=r"holds no checkpoint, but .* has finished epochs.*--restart"):
            compare_tiny(tiny_data, out)
    assert compare_tiny(tiny_data, out, restart=True).report.complete


def test_seeds_and_arms_that_are_added_are_all_that_is_trained(tiny_data, tmp_path, replace_fit, undrawn):
    replace_fit()
    grown = tmp_path / "grown"
    for arms, seeds, trained in ((ADAM, (0,), RUNS[1:2]), (ADAM, SEEDS, RUNS[3:]), (ARMS, SEEDS, RUNS[::2])):
        before, told = contents(grown), []
        compare_tiny(tiny_data, grown, arms, seeds, on_run=lambda *run, told=told: told.append(run))
        assert told == trained
        changed = {path for path, data in contents(grown).items() if before.get(path, data) != data}
        assert changed <= {"tiny/comparison.json"}
    compare_tiny(tiny_data, tmp_path / "at once")
    assert contents(grown) == contents(tmp_path / "at once")


def test_published_figures_may_be_added_and_stay(tiny_data, tmp_path, replace_fit, undrawn):
    replace_fit()
    figures = {"Adam": {"best": 90.0, "source": "a paper"}}
    for published, expected in ((None, {}), (figures, figures), (None, figures)):
        compare(ADAM, (0,), tiny_data, tmp_path, devices=ONE, published=published)
        assert read_results(tmp_path / "comparison").published == expected


def test_a_run_that_two_comparisons_share_is_trained_once(tiny_data, tmp_path, replace_fit, undrawn):
    replace_fit()
    first = compare_tiny(tiny_data, tmp_path, name="first")
    before, told, trained = contents(tmp_path), [], set()

    def meanwhile(*run):
        told.append(run)
        if len(told) == 1:
            compare_tiny(tiny_data, tmp_path, ADAM, (2,), "third")

    arms = {"plain": ARMS["Adam"], "small batch": replace(RUN, batch_size=32)}
    hooks = {"on_run": meanwhile, "on_epoch": lambda arm, seed, rows: trained.add((arm, seed))}
    second = compare_tiny(tiny_data, tmp_path, arms, (1, 2), "second", **hooks)
    assert told == [("small batch", 1), ("plain", 2), ("small batch", 2)]
    assert trained == {told[0], told[2]}, "the other was finished since it was planned"
    assert second.runs["plain", 1] == first.runs["Adam", 1]
    assert before.items() <= contents(tmp_path).items(), "the first comparison and its runs are as they were"
    assert len(list((tmp_path / "runs").iterdir())) == 7
    results = read_results(tmp_path / "second")
    assert not results.missing
    assert results.runs["plain"][1].rows == read_results(tmp_path / "first").runs["Adam"][1].rows


def test_two_workers_share_a_store(tiny_data, tmp_path, replace_fit, undrawn):
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
    compare_tiny(tiny_data, tmp_path, ARMS, (0,), "second")
    assert not read_results(tmp_path / "second").missing and sorted(trained) == [(False, 0), (True, 0)]


class Killed(BaseException):
    """As `kill -9` ends a process: no handler runs."""


def test_a_crash_at_any_write_leaves_nothing_half_written(tiny_data, tmp_path, monkeypatch, replace_fit, undrawn):
    replace_fit()
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


def test_runs_that_break_do_not_stop_the_others_and_are_tried_again(tiny_data, tmp_path, replace_fit, capsys):
    out_of_memory = "RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"
    broken = {
        NonFiniteError("seed 0: the validation loss is nan"): "the validation loss is nan",
        jax.errors.JaxRuntimeError(out_of_memory): f"JaxRuntimeError: {out_of_memory}; try a smaller batch_size",
        RuntimeError("a bug\nof two lines"): "RuntimeError: a bug of two lines",
    }
    errors, reasons = list(broken), list(broken.values())

    def breaks(config, *args, on_epoch, **kwargs):
        def on_first(rows):
            on_epoch(rows)
            raise errors[config.seed]

        return fake_fit(config, *args, on_epoch=on_first if config.optim.lookahead else on_epoch, **kwargs)

    replace_fit(breaks)
    with pytest.raises(RunsFailed, match=r"3 of 6 runs failed, and no other was lost\. The same command") as failed:
        compare_tiny(tiny_data, tmp_path, seeds=(0, 1, 2))
    failures = {("Adam + Lookahead", seed): reason for seed, reason in enumerate(reasons)}
    assert failed.value.failures == failures and f"Lookahead seed 2: {reasons[2]}" in str(failed.value)
    said = capsys.readouterr().err
    assert said.count("Traceback") == 2 and "validation loss" not in said, "for whoever has to find out why"
    results = read_results(tmp_path / "tiny")
    assert results.missing == list(failures) and results.failures == failures
    assert len(results.runs["Adam + Lookahead"][0].rows) == 1
    report = failed.value.comparison.report
    assert not report.complete and "3 failed" in report.table and reasons[2] in html.unescape(report.html.read_text())
    missing = json.loads(report.summary_json.read_text())["missing"]
    assert missing[2] == {"arm": "Adam + Lookahead", "seed": 2, "error": reasons[2]}
    replace_fit()
    assert compare_tiny(tiny_data, tmp_path, seeds=(0, 1, 2)).report.complete
    assert read_results(tmp_path / "tiny").failures == {} and not list(tmp_path.rglob(FAILURE))
