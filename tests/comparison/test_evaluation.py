"""Confusion matrices, intervals and worst mistakes worked by hand, and the evaluation of real runs."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.stats import binomtest
from support.fake_results import fake_comparison
from support.tiny import RUN

from jaxresnet.comparison.compare import compare
from jaxresnet.comparison.evaluation import confusion_matrix, evaluate_runs, per_class, wilson_interval, worst_mistakes
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json
from jaxresnet.results.store import CHECKPOINTS, SCORES, read_results


def test_confusion_matrix_has_a_row_a_true_class():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predictions = np.array([0, 2, 2, 1, 0, 2])
    expected = [[1, 0, 2, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 4), expected)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (7, 7), (15, 148), (9126, 10_000)])
def test_wilson_interval_agrees_with_scipy(successes, n):
    expected = binomtest(successes, n).proportion_ci(0.95, "wilson")
    assert wilson_interval(successes, n) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)


def test_scores_of_the_classes():
    cat, dog, none = per_class(np.array([[3, 1, 0], [0, 5, 0], [0, 0, 0]]))
    assert (cat["n"], cat["correct"], cat["accuracy"]) == (4, 3, 75)
    assert (cat["low"], cat["high"]) == wilson_interval(3, 4)
    assert dog["accuracy"] == dog["high"] == 100 and 50 < dog["low"] < 100
    assert none == {"n": 0, "correct": 0, "accuracy": None, "low": None, "high": None}
    cat, _ = per_class((np.array([[8, 2], [0, 10]]) + np.array([[6, 4], [0, 10]])) / 2)
    assert (cat["n"], cat["low"], cat["high"]) == (10, *wilson_interval(7, 10)), "no narrower for a mean over runs"


def test_worst_mistakes_are_the_most_confident_and_the_earlier_of_equals():
    labels = np.array([0, 1, 0, 2, 1])
    wanted = [[0.9, 0.1, 0], [0.7, 0.3, 0], [0, 0.2, 0.8], [0.3, 0.7, 0], [0.5, 0.2, 0.3]]
    probabilities = np.array(wanted, np.float32)
    worst = worst_mistakes(probabilities, labels, 3)
    assert [(one["image"], one["true"], one["predicted"]) for one in worst] == [(2, 0, 2), (1, 1, 0), (3, 2, 1)]
    assert [one["probability"] for one in worst] == pytest.approx([0.8, 0.7, 0.7])
    assert [one["image"] for one in worst_mistakes(probabilities, labels, 24)] == [2, 1, 3, 4]
    assert worst_mistakes(probabilities[:1], labels[:1], 24) == []


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """The root of results around a finished comparison of one arm and two seeds."""
    out = tmp_path_factory.mktemp("final") / "out"
    arms = {"final model": replace(RUN, num_epochs=2)}
    compare(arms, (0, 1), tiny_data, out, name="final_model", devices=jax.devices()[:1])
    return out


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy") / "final_model"


def run_of(folder, seed):
    return read_results(folder).runs["final model"][seed].folder


def test_the_evaluation_is_that_of_the_recorded_runs(folder, tiny_data):
    recorded = read_results(folder).scores("final model", "test_accuracy")
    path = run_of(folder, 1) / SCORES
    scores = json.loads(path.read_text())
    write_json(path, {**scores, "test_accuracy": recorded[1] + 1})  # an image of 100: rounding
    text = evaluate_runs(folder, tiny_data)
    found = json.loads((folder / "evaluation.json").read_text())
    matrices = {seed: np.array(found["runs"][str(seed)]["confusion"]) for seed in (0, 1)}
    for seed, matrix in matrices.items():
        np.testing.assert_array_equal(matrix.sum(1), np.bincount(tiny_data.test.labels, minlength=10))
        assert np.trace(matrix) == pytest.approx(recorded[seed])  # 100 test images
        assert found["runs"][str(seed)]["test_accuracy"] == pytest.approx(recorded[seed])
    np.testing.assert_array_equal(found["confusion_summed_over_seeds"], matrices[0] + matrices[1])
    assert found["mean_over_seeds"]["test_accuracy"] == pytest.approx((recorded[0] + recorded[1]) / 2)
    assert found["class_names"] == list("0123456789") and found["dataset"]["synthetic"] is True
    worst = found["mistakes"]["worst_first"]
    assert found["mistakes"]["seed"] == 0 and len(worst) == 24
    assert all(tiny_data.test.labels[one["image"]] == one["true"] != one["predicted"] for one in worst)
    assert "0" in text and str(folder / "mistakes.png") in text and f", {recorded[1] + 1:.2f} %." in text
    assert {"mistakes.png", "confusion.png", "evaluation.md"} <= {path.name for path in folder.iterdir()}

    write_json(path, {**scores, "test_accuracy": recorded[1] + 2})
    refused = rf"{path.parent.name}/checkpoints: recognises \d+ of 100 test images .* but the run recorded"
    with pytest.raises(ResultsError, match=refused):
        evaluate_runs(folder, tiny_data)


def test_missing_checkpoints_are_named_and_the_others_are_evaluated(folder, tiny_data):
    shutil.rmtree(run_of(folder, 0) / CHECKPOINTS)
    evaluate_runs(folder, tiny_data)
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["seeds"] == [1] and found["seeds_without_checkpoint"] == [0] and found["mistakes"]["seed"] == 1
    shutil.rmtree(run_of(folder, 1) / CHECKPOINTS)
    text = evaluate_runs(folder, tiny_data)
    assert text.startswith("not evaluated: no checkpoints in ") and str(run_of(folder, 1) / CHECKPOINTS) in text


def test_several_arms_are_refused(tmp_path, tiny_data):
    with pytest.raises(ResultsError, match="holds the arms A, B; only one arm can be evaluated"):
        evaluate_runs(fake_comparison(tmp_path / "two", arms=("A", "B")), tiny_data)
