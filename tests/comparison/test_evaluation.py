"""Confusion matrices, intervals and worst mistakes worked by hand, their figures, and the evaluation of real runs."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from support.tiny import RUN

from jaxresnet.comparison.compare import compare
from jaxresnet.comparison.evaluate_runs import _check_accuracy, evaluate_runs, render_evaluation
from jaxresnet.comparison.evaluation import Mistake, confusion_matrix, per_class, wilson_interval, worst_mistakes
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json
from jaxresnet.reporting.figure_evaluation import draw_mistakes, make_confusion, make_mistakes
from jaxresnet.reporting.report import render
from jaxresnet.results.store import Run, read_results, scores_path

# ---------------------------------------------------------------------------------------------------- the numbers


def test_confusion_matrix_has_a_row_a_true_class():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predictions = np.array([0, 2, 2, 1, 0, 2])
    expected = [[1, 0, 2, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, 4), expected)
    assert confusion_matrix(labels[:0], predictions[:0], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("labels", "predictions"), [([0, 1], [0]), ([[0]], [[0]]), ([0, 3], [0, 0]), ([0, 0], [-1, 0])]
)
def test_confusion_matrix_refuses_what_does_not_fit(labels, predictions):
    with pytest.raises(ValueError, match="expected"):
        confusion_matrix(np.array(labels), np.array(predictions), 3)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_agrees_with_the_published_examples(successes, n, low, high):
    """Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I."""
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (7, 7), (913, 1000), (9126, 10_000)])
def test_wilson_interval_agrees_with_scipy(successes, n):
    expected = binomtest(successes, n).proportion_ci(0.95, "wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_interval_refuses_the_impossible(successes, n):
    with pytest.raises(ValueError, match="expected 0 to n successes"):
        wilson_interval(successes, n)


def test_scores_of_the_classes():
    cat, dog, none = per_class(np.array([[3, 1, 0], [0, 5, 0], [0, 0, 0]]))
    assert (cat.n, cat.correct, cat.accuracy) == (4, 3, 75)
    assert (cat.low, cat.high) == pytest.approx(tuple(100 * end for end in wilson_interval(3, 4)))
    assert dog.accuracy == dog.high == 100 and 50 < dog.low < 100
    assert none == (0, 0, None, None, None)


def test_a_mean_over_runs_does_not_narrow_the_interval():
    first, second = np.array([[8, 2], [0, 10]]), np.array([[6, 4], [0, 10]])
    (score, _) = per_class((first + second) / 2)
    assert (score.n, score.correct, score.accuracy) == (10, 7, 70)
    assert (score.low, score.high) == pytest.approx(tuple(100 * end for end in wilson_interval(7, 10)))


def test_worst_mistakes_are_the_most_confident_and_the_earlier_of_equals():
    labels = np.array([0, 1, 0, 2, 1])
    wanted = [[0.9, 0.1, 0], [0.7, 0.3, 0], [0, 0.2, 0.8], [0.3, 0.7, 0], [0.5, 0.2, 0.3]]
    probabilities = np.array(wanted, np.float32)
    worst = worst_mistakes(probabilities, labels, 3)
    assert [one[:3] for one in worst] == [(2, 0, 2), (1, 1, 0), (3, 2, 1)]
    assert [one.probability for one in worst] == pytest.approx([0.8, 0.7, 0.7])
    assert [one.image for one in worst_mistakes(probabilities, labels, 24)] == [2, 1, 3, 4]
    assert worst_mistakes(probabilities[:1], labels[:1], 24) == []


# ------------------------------------------------------------------------------------------------------- figures


def test_confusion_figure_has_a_number_in_every_cell():
    confusion = np.array([[90.0, 9.5, 0.5], [0, 50, 0], [0, 0, 0]])
    figure = make_confusion(confusion, ("cat", "dog", "frog"), "of a test, synthetic data, not CIFAR-10", "one seed")
    axes, bar = figure.axes
    texts = {text.get_position()[::-1]: text.get_text() for text in axes.texts}  # by (row, column)
    rows = [["90.0", "9.5", "0.5"], ["0", "100.0", "0"], ["0", "0", "0"]]
    assert texts == {(i, j): rows[i][j] for i in range(3) for j in range(3)}
    (image,) = axes.get_images()
    assert np.isfinite(image.get_array()).all() and image.get_clim() == (0, 100)
    assert axes.get_xlabel() == "predicted class" and axes.get_ylabel() == "true class (number of test images)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "frog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat (100)", "dog (50)", "frog (0)"]
    assert bar.get_ylabel() == "share of the true class (%), one seed"
    assert "synthetic data, not CIFAR-10" in figure.get_suptitle()


def test_mistakes_are_shown_above_what_they_were_taken_for():
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    mistakes = [Mistake(i, i % 2, 1 - i % 2, 0.999 - i / 100) for i in range(11, 1, -1)]
    figure = make_mistakes(images, mistakes, ("cat", "dog"), "worst")
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert len(shown) == len(mistakes) == 10
    for axes, mistake in zip(shown, mistakes, strict=True):
        (image,) = axes.get_images()
        np.testing.assert_array_equal(image.get_array(), images[mistake.image])
    assert shown[0].texts[0].get_text() == "dog\nas cat\n88.9 %"
    assert shown[-1].texts[0].get_text() == "cat\nas dog\n97.9 %"


def test_no_mistakes_make_a_sheet_that_says_so():
    figure = make_mistakes(np.zeros((1, 32, 32, 3), np.uint8), [], ("cat", "dog"), "worst")
    assert [text.get_text() for text in figure.texts if text.get_text() != "worst"] == ["no mistakes"]


def test_a_sheet_of_noise_is_still_small(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    mistakes = [Mistake(i, 0, 1, 0.9) for i in range(24)]
    path = tmp_path / "sheet.png"
    path.write_bytes(draw_mistakes(images, mistakes, ("automobile", "airplane"), "worst"))
    assert path.stat().st_size < 300_000
    with Image.open(path) as sheet:
        assert sheet.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        colours = {tuple(colour) for colour in np.asarray(sheet.convert("RGB")).reshape(-1, 3)}
        assert {tuple(colour) for colour in images.reshape(-1, 3)} <= colours, "every pixel in its own colour"
        assert sheet.convert("L").getpixel((0, 0)) == 255


# -------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory):
    """The folder of a finished comparison of one arm and two seeds."""
    out = tmp_path_factory.mktemp("final") / "out"
    compare({"final model": replace(RUN, num_epochs=1)}, (0, 1), tiny_data, out, devices=jax.devices()[:1])
    return out


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_the_evaluation_is_that_of_the_recorded_runs(folder, tiny_data):
    text = evaluate_runs(folder, tiny_data)
    found = json.loads((folder / "evaluation.json").read_text())
    recorded = read_results(folder).scores("final model", "test_accuracy")
    matrices = {seed: np.array(found["runs"][str(seed)]["confusion"]) for seed in (0, 1)}
    for seed, matrix in matrices.items():
        np.testing.assert_array_equal(matrix.sum(1), np.bincount(tiny_data.test.labels, minlength=10))
        assert np.trace(matrix) == pytest.approx(recorded[seed])  # 100 test images
        assert found["runs"][str(seed)]["test_accuracy"] == pytest.approx(recorded[seed])
    np.testing.assert_array_equal(found["confusion_summed_over_seeds"], matrices[0] + matrices[1])
    assert found["mean_over_seeds"]["test_accuracy"] == pytest.approx((recorded[0] + recorded[1]) / 2)
    assert found["class_names"] == list(tiny_data.class_names) and found["dataset"]["synthetic"] is True
    worst = found["mistakes"]["worst_first"]
    assert found["mistakes"]["seed"] == 0 and len(worst) == 24
    assert all(tiny_data.test.labels[one["image"]] == one["true"] != one["predicted"] for one in worst)
    assert [one["probability"] for one in worst] == sorted((one["probability"] for one in worst), reverse=True)
    assert "which give the recorded test accuracy exactly" in text and "Predicted again" not in text
    assert all(note in text for note in found["notes"]) and len(found["notes"]) == 2
    assert "airplane" in text and str(folder / "mistakes.png") in text


def test_the_page_has_every_class_and_is_labelled(folder, tiny_data):
    evaluate_runs(folder, tiny_data)
    page = (folder / "evaluation.md").read_text()
    assert page.startswith("# Evaluation of comparison: intended protocol, synthetic data, not CIFAR-10, 1 epoch\n")
    for name in tiny_data.class_names:
        assert page.count(f"\n| {name} | ") == 2, "in the table of classes and in the matrix"
    assert "Test images, summed over seeds 0, 1." in page and "\n| all | 100 | " in page
    for name in ("confusion.png", "mistakes.png"):
        assert f"({name})" in page
        with Image.open(folder / name) as picture:
            assert (np.asarray(picture.convert("L")) > 250).mean() > 0.2, "drawn on white"
        assert (folder / name).stat().st_size < 300_000


def test_a_run_that_recorded_another_accuracy_is_refused(folder, tiny_data):
    path = scores_path(folder, "final model", 1)
    scores = json.loads(path.read_text())
    write_json(path, {**scores, "test_accuracy": scores["test_accuracy"] + 1})  # an image of 100: rounding
    n = scores["test_accuracy"]
    note = f"Predicted again: seed 1 {n:.2f} %, recorded {n + 1:.2f} %."
    assert note in evaluate_runs(folder, tiny_data) and note in (folder / "evaluation.md").read_text()
    assert note in json.loads((folder / "evaluation.json").read_text())["notes"]
    write_json(path, {**scores, "test_accuracy": scores["test_accuracy"] + 2})
    with pytest.raises(
        ResultsError, match=r"final-model-seed1: recognises \d+ of 100 test images .* but the run recor"
    ):
        evaluate_runs(folder, tiny_data)


def test_fifty_images_of_ten_thousand_may_fall_on_the_other_side(folder):
    results = read_results(folder)
    confusion = np.diag([1000] * 10)
    confusion[0, :2] = [950, 50]
    _check_accuracy(results, Run("final model", 0, [], {"test_accuracy": 100.0}), confusion)
    confusion[0, :2] = [949, 51]
    with pytest.raises(ResultsError, match=r"recognises 9,949 of 10,000 test images \(99\.49 %\)"):
        _check_accuracy(results, Run("final model", 0, [], {"test_accuracy": 100.0}), confusion)


def test_text_and_matrix_are_drawn_again_from_the_numbers_alone(folder, tiny_data):
    evaluate_runs(folder, tiny_data)
    drawn = [folder / name for name in ("evaluation.md", "confusion.png")]
    before = [path.read_bytes() for path in drawn]
    shutil.rmtree(folder / "checkpoints")
    for redraw in (render_evaluation, render):
        for path in drawn:
            path.unlink()
        redraw(folder)
        assert [path.read_bytes() for path in drawn] == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-30], r"line \d+: cut off"),
        (lambda text: "[]", "is not the evaluation of a comparison"),
        (lambda text: text.replace('"class_names"', '"classes"'), "'class_names' is missing or malformed"),
    ],
)
def test_a_damaged_evaluation_is_refused_and_nothing_is_drawn(folder, tiny_data, damage, message):
    evaluate_runs(folder, tiny_data)
    path = folder / "evaluation.json"
    path.write_text(damage(path.read_text()))
    (folder / "evaluation.md").unlink()
    with pytest.raises(
        ResultsError, match=rf"evaluation\.json.*{message}.*delete it and run the same experiment again"
    ):
        render_evaluation(folder)
    assert not (folder / "evaluation.md").exists()


def test_a_missing_checkpoint_is_named_and_the_others_are_evaluated(folder, tiny_data):
    shutil.rmtree(folder / "checkpoints" / "final-model-seed0")
    text = evaluate_runs(folder, tiny_data)
    assert "Not evaluated, as their checkpoints are gone: seeds 0." in text
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["seeds"] == [1] and found["seeds_without_checkpoint"] == [0] and found["mistakes"]["seed"] == 1


def test_a_folder_moved_without_its_checkpoints_says_so(folder, tiny_data):
    shutil.rmtree(folder / "checkpoints")
    text = evaluate_runs(folder, tiny_data)
    assert text.startswith("not evaluated: the checkpoints of seeds 0, 1 are not in ") and str(folder) in text
    assert not list(folder.glob("evaluation.*"))


def test_several_arms_are_refused(folder, tiny_data):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    write_json(path, {**config, "arms": {**config["arms"], "another": config["arms"]["final model"]}})
    with pytest.raises(ResultsError, match="holds the arms final model, another; only one"):
        evaluate_runs(folder, tiny_data)
