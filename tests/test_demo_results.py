"""What the scripts' demos leave behind. `.ci/run` runs them all, and says in $JAXRESNET_DEMOS where they lie."""

import importlib
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest

from jaxresnet.cli.experiment import DEMO_TEST, Experiment
from jaxresnet.data.synthetic import make_synthetic
from jaxresnet.nn.resnet import count_params
from jaxresnet.results.store import read_results

ROOT = os.environ.get("JAXRESNET_DEMOS")
pytestmark = pytest.mark.skipif(not ROOT, reason="set JAXRESNET_DEMOS to the folder of the demos' results")

SCRIPTS = "adam_lookahead batch_size learning_rate sgd_vs_adam schedulers num_epochs model_parameters final_model"
SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))


def comparisons():
    """[(name, arms as intended in the demo), ...] of everything that the scripts run by default."""
    found = []
    for script in SCRIPTS.split():
        e: Experiment = importlib.import_module(script).EXPERIMENT
        found += [(name, e.arms(name, "intended", True)) for name in e.select([], False) if name in e.comparisons]
    assert len(found) == 8
    return found


def folder(name):
    return Path(ROOT or "") / f"{name}-demo"


def table_of(path):
    """{first cell: the other cells} of the rows of the first table in a Markdown file, its header as the first row."""
    lines = path.read_text().split("\n| ", 1)[1].split("\n\n", 1)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: cells for name, *cells in [rows[0], *rows[2:]]}


def test_every_comparison_is_complete_and_finite_and_shares_its_runs():
    ids = []
    for name, arms in comparisons():
        results = read_results(folder(name))
        assert not results.missing and list(results.runs) == list(arms) and results.synthetic, name
        assert results.published == {}, "a published figure says nothing of synthetic data"
        for arm, runs in results.runs.items():
            assert list(runs) == [0, 1, 2], (name, arm)
            for run in runs.values():
                ids.append(run.id)
                assert len(run.rows) == arms[arm].num_epochs, (name, arm)
                for row in run.rows:
                    scores = [row[f"{split}_{what}"] for split in SPLITS for what in ("loss", "accuracy")]
                    assert all(isinstance(score, float) and math.isfinite(score) for score in scores), (name, arm, row)
    assert {path.name for path in (Path(ROOT or "") / "runs").iterdir()} >= set(ids)
    assert len(set(ids)) < len(ids), "a run that several compare is trained once"


def test_every_summary_has_a_row_an_arm_and_the_three_selections():
    for name, arms in comparisons():
        written = (folder(name) / "summary.md").read_text()
        assert "synthetic data, not CIFAR-10" in written, name
        table = table_of(folder(name) / "summary.md")
        assert list(table) == ["arm", *arms], name
        for column in ("best epoch on the validation set", "last epoch", "best epoch on the test set (as published)"):
            (place,) = [i for i, title in enumerate(table["arm"]) if column in title]
            for arm in arms:
                assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", table[arm][place]), (name, column, table[arm])
        assert 20_000 < (folder(name) / "figure.png").stat().st_size < 300_000, name


def test_the_measured_models():
    at = folder("model_parameters")
    measured = json.loads((at / "measurement.json").read_text())
    models = importlib.import_module("model_parameters").MODELS
    assert measured["demo"] is True and list(measured["models"]) == list(models)
    assert sum(one["problem_here"] is None for one in measured["models"].values()) == 6
    table = table_of(at / "model_parameters.md")
    assert list(table)[1:] == list(models)
    for name, one in measured["models"].items():
        assert f"{count_params(models[name]):,}" in table[name], "of the network at full width"
        if one["problem_here"] is None:
            assert len(one["step_seconds"]) == 3 and all(0 < seconds < 60 for seconds in one["step_seconds"]), name
            shown = float(table[name][-2].replace(",", ""))  # milliseconds, with one decimal below 100
            assert shown == pytest.approx(1e3 * one["median_step_seconds"], rel=0.01, abs=0.06), name
        else:
            assert one["step_seconds"] is None and table[name][-2:] == ["", ""], name
    assert 10_000 < (at / "model_parameters.png").stat().st_size < 300_000


def test_the_evaluation_of_the_final_model():
    """The confusion matrices give the accuracies that the runs recorded."""
    at = folder("final_model")
    (runs,) = read_results(at).runs.values()
    evaluation = json.loads((at / "evaluation.json").read_text())
    assert list(evaluation["runs"]) == [str(seed) for seed in runs] == ["0", "1", "2"]
    of_each_class = np.bincount(make_synthetic(10, DEMO_TEST).test.labels, minlength=10)
    for seed, run in runs.items():
        matrix = np.array(evaluation["runs"][str(seed)]["confusion"])
        assert matrix.sum(1).tolist() == of_each_class.tolist(), seed
        assert 100 * np.trace(matrix) / DEMO_TEST == pytest.approx(run.scores["test_accuracy"], abs=0.5), seed
    text = (at / "evaluation.md").read_text()
    assert all(text.count(f"\n| {name} | ") == 2 for name in evaluation["class_names"])  # of classes, and the matrix


def test_one_page_holds_everything_and_needs_no_network():
    page = (Path(ROOT or "") / "report.html").read_text()
    for name, arms in comparisons():
        assert name in page
        assert all(arm in page for arm in arms), name
    assert "model_parameters" in page
    assert page.count("data:image/png;base64,") >= 8 + 3  # a figure each, and those of model_parameters and final_model
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", page)
