"""What the scripts' demos leave behind, checked for content. `.ci/run` runs the demos and says where they lie."""

import importlib
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from jaxresnet.cli.experiment import DEMO_TEST, Experiment
from jaxresnet.comparison.evaluate_runs import ROUNDING
from jaxresnet.comparison.model_costs import count_parameters
from jaxresnet.data.synthetic import make_synthetic
from jaxresnet.reporting.comparison import describe_comparison
from jaxresnet.reporting.figures import make_curves
from jaxresnet.reporting.models import make_models
from jaxresnet.results.findings import findings
from jaxresnet.results.measurement import read_measurement
from jaxresnet.results.store import read_results, scores_path

ROOT = os.environ.get("JAXRESNET_DEMOS")
pytestmark = pytest.mark.skipif(not ROOT, reason="set JAXRESNET_DEMOS to the folder of the demos' results")

SCRIPTS = (
    *("adam_lookahead", "batch_size", "learning_rate", "sgd_vs_adam", "schedulers", "num_epochs"),
    *("model_parameters", "final_model"),
)
SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))


def experiment(script) -> Experiment:
    return importlib.import_module(script).EXPERIMENT


def comparisons():
    """[(name, arms as intended in the demo), ...] of everything that the scripts run by default."""
    found = []
    for script in SCRIPTS:
        e = experiment(script)
        found += [(name, e.arms(name, "intended", True)) for name in e.select([], False) if name in e.comparisons]
    assert len(found) == 8
    return found


def folder(name):
    return Path(ROOT or "") / f"{name}-demo"


def test_every_comparison_is_complete_and_finite():
    for name, arms in comparisons():
        results = read_results(folder(name))
        assert not results.missing and list(results.runs) == list(arms) and results.synthetic, name
        for arm, runs in results.runs.items():
            assert list(runs) == [0, 1, 2], (name, arm)
            for run in runs.values():
                assert len(run.rows) == arms[arm].num_epochs, (name, arm)
                for row in run.rows:
                    scores = [row[f"{split}_{what}"] for split in SPLITS for what in ("loss", "accuracy")]
                    assert all(isinstance(score, float) and math.isfinite(score) for score in scores), (name, arm, row)


def test_every_table_has_a_row_an_arm_and_the_three_selections():
    for name, arms in comparisons():
        results = read_results(folder(name))
        header, *rows = describe_comparison(results, findings(results)).table
        assert [row[0] for row in rows] == list(arms), name
        for column in ("best epoch on the validation set", "last epoch", "best epoch on the test set (as published)"):
            (place,) = [i for i, title in enumerate(header) if column in title]
            for row in rows:
                assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", row[place]), (name, column, row)
        written = (folder(name) / "summary.md").read_text()
        assert "synthetic data, not CIFAR-10" in written and all(f"| {arm} |" in written for arm in arms), name


def test_every_figure_has_two_curves_an_arm_and_a_legend_of_all_arms():
    for name, arms in comparisons():
        results = read_results(folder(name))
        figure = make_curves(results, "title")
        loss, accuracy = figure.axes
        for axes, unit in ((loss, "nats"), (accuracy, "%")):
            labels = [line.get_label() for line in axes.lines]
            for arm in arms:
                assert {f"{arm}, training", f"{arm}, validation"} <= set(labels), (name, arm, labels)
            for line in axes.lines:
                assert all(map(math.isfinite, map(float, line.get_ydata()))), (name, line)
            assert unit in axes.get_ylabel() and "epoch" in axes.get_xlabel()
        named = [text.get_text() for text in figure.legends[0].get_texts()]
        assert set(arms) <= set(named), (name, named)
        png = (folder(name) / "figure.png").stat().st_size
        assert 20_000 < png < 300_000, (name, png)


def test_the_measured_models():
    at = folder("model_parameters")
    measured, models = read_measurement(at), importlib.import_module("model_parameters").MODELS
    assert measured["demo"] is True and list(measured["models"]) == list(models)
    timed = {name: one for name, one in measured["models"].items() if one["problem_here"] is None}
    assert len(timed) == 6
    for name, one in measured["models"].items():
        if name not in timed:
            assert one["step_seconds"] is None and one["median_step_seconds"] is None, name
            continue
        assert len(one["step_seconds"]) == measured["timing"]["rounds"] == 3, name
        assert all(0 < seconds < math.inf for seconds in [*one["step_seconds"], one["median_step_seconds"]]), name
        assert min(one["step_seconds"]) <= one["median_step_seconds"] <= max(one["step_seconds"]), name

    rows = [line for line in (at / "model_parameters.md").read_text().splitlines() if line.startswith("| ")][1:]
    cells = {row[0]: row[1:] for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in rows)}
    del cells["---"]
    assert list(cells) == list(measured["models"])
    for name, model in models.items():  # of the networks at full width
        assert f"{count_parameters(model):,}" in cells[name], name
        assert (cells[name][-3] != "") == (name in timed), name

    figure = make_models(measured)
    for axes, key in zip(figure.axes, ("params", "macs"), strict=True):
        marks = [line for line in axes.lines if line.get_marker() == "o"]
        drawn = [(float(mark.get_xdata()[0]), float(mark.get_ydata()[0])) for mark in marks]
        expected = [(one[key] / 1e6, 1e3 * one["median_step_seconds"]) for one in timed.values()]
        assert drawn == [pytest.approx(point) for point in expected], key
    assert 10_000 < (at / "model_parameters.png").stat().st_size < 300_000


def test_the_evaluation_of_the_final_model():
    at = folder("final_model")
    results, evaluation = read_results(at), json.loads((at / "evaluation.json").read_text())
    (runs,) = results.runs.values()
    assert list(evaluation["runs"]) == [str(seed) for seed in runs] == ["0", "1", "2"]
    of_each_class = np.bincount(make_synthetic(10, DEMO_TEST).test.labels, minlength=10)
    assert of_each_class.sum() == evaluation["num_test"] == DEMO_TEST
    for seed, run in runs.items():
        found = evaluation["runs"][str(seed)]
        matrix = np.array(found["confusion"])
        assert matrix.sum(1).tolist() == of_each_class.tolist(), seed
        recorded = json.loads(scores_path(at, run.arm, seed).read_text())["test_accuracy"]
        accuracy = 100 * np.trace(matrix) / DEMO_TEST
        assert accuracy == pytest.approx(recorded, abs=100 * ROUNDING + 1e-6), seed
        assert found["test_accuracy"] == pytest.approx(accuracy) and found["recorded_test_accuracy"] == recorded, seed
    text = (at / "evaluation.md").read_text()
    assert all(text.count(f"\n| {name} | ") == 2 for name in evaluation["class_names"])  # of classes, and the matrix
    for picture in ("confusion.png", "mistakes.png"):
        assert 5_000 < (at / picture).stat().st_size < 300_000, picture


def test_one_page_holds_everything_and_needs_no_network():
    page = (Path(ROOT or "") / "report.html").read_text()
    for name, arms in comparisons():
        assert name in page
        assert all(arm in page for arm in arms), name
    assert "model_parameters" in page
    assert page.count("data:image/png;base64,") >= 8 + 3  # a figure each, and those of model_parameters and final_model
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", page)
