"""What is drawn from evaluation.json alone, and the sheet of mistakes, which needs the images."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json
from jaxresnet.reporting.evaluation import draw_mistakes, make_confusion, make_mistakes, render_evaluation
from jaxresnet.results.schemas import evaluation_path

TITLE = "final_model: intended protocol, synthetic data, not CIFAR-10"


def score(n, accuracy, low=10.0, high=90.0):
    return {"n": n, "accuracy": accuracy, "low": low, "high": high}


def run(recorded, *accuracies):
    classes = [*(score(100, accuracy) for accuracy in accuracies), score(0, None, None, None)]
    return {"test_accuracy": sum(accuracies) / 2, "recorded_test_accuracy": recorded, "classes": classes}


def mistake(image, true, predicted, probability):
    return {"image": image, "true": true, "predicted": predicted, "probability": probability}


EVALUATION = {
    "title": TITLE,
    "selection": "best epoch on the validation set",
    "class_names": ["cat", "dog", "frog"],
    "num_test": 200,
    "seeds": [0, 4],
    "seeds_without_checkpoint": [7],
    "runs": {"0": run(90.0, 80.0, 100.0), "4": run(94.0, 90.0, 100.0)},  # which recorded 90 and 94 %
    "mean_over_seeds": {
        "test_accuracy": 92.5,
        "interval_95": [88.0, 95.5],
        "classes": [score(100, 85.0, 76.7, 90.7), score(100, 100.0, 96.3, 100.0), score(0, None, None, None)],
    },
    "confusion_summed_over_seeds": [[170, 29, 1], [0, 200, 0], [0, 0, 0]],
    "mistakes": {"seed": 0, "worst_first": [mistake(3, 0, 1, 0.999), mistake(1, 0, 2, 0.75)]},
    "environment": {"device": "a CPU"},
}


@pytest.fixture
def folder(tmp_path):
    write_json(evaluation_path(tmp_path), EVALUATION)
    return tmp_path


def test_the_text_has_every_class_and_is_labelled(folder):
    printed = render_evaluation(folder)
    text = (folder / "evaluation.md").read_text()
    assert text.startswith(f"# Evaluation of {TITLE}\n\n| class | test images | accuracy (%), mean of 2 seeds | ")
    for row in (
        "| cat | 100 | 85.0 | 76.7 to 90.7 | 80.0, 90.0 | dog (14.5 %) |",
        "| dog | 100 | 100.0 | 96.3 to 100.0 | 100.0, 100.0 | nothing else |",
        "| frog | 0 |  |  |  |  |",
        "| all | 200 | 92.50 | 88.00 to 95.50 | 90.00, 95.00 |  |",
        "| cat | 170 | 29 | 1 |",
        "| 3 | cat | dog | 99.90 |",
    ):
        assert f"\n{row}\n" in text
    assert "Test images, summed over seeds 0, 4." in text and "- device: `a CPU`" in text
    for note in (
        "Predicted from the checkpoints of seeds 0, 4 (best epoch on the validation set), with other rounding: "
        "seed 4 95.00 %, recorded 94.00 %.",
        "Not evaluated, as their checkpoints are gone: seeds 7.",
    ):
        assert note in text and note in printed
    assert "dog (14.5 %)" in printed and str(folder / "mistakes.png") in printed
    with Image.open(folder / "confusion.png") as picture:
        assert (np.asarray(picture.convert("L")) > 250).mean() > 0.2, "drawn on white"
    assert (folder / "confusion.png").stat().st_size < 300_000


def test_one_seed_has_no_column_of_seeds_and_a_damaged_file_draws_nothing(folder):
    one = {**EVALUATION, "runs": {"0": run(90.0, 80.0, 100.0)}, "seeds": [0], "seeds_without_checkpoint": []}
    write_json(evaluation_path(folder), one)
    printed = render_evaluation(folder)
    assert "seed 0 (best epoch on the validation set), with exactly the recorded test accuracy." in printed
    assert "seeds" not in printed.splitlines()[0] and "Test images, seed 0." in (folder / "evaluation.md").read_text()
    (folder / "evaluation.md").unlink()
    evaluation_path(folder).write_text("[]")
    with pytest.raises(ResultsError, match=r"evaluation\.json"):
        render_evaluation(folder)
    assert not (folder / "evaluation.md").exists()


def test_confusion_figure_has_a_number_in_every_cell():
    figure = make_confusion(EVALUATION)
    axes, bar = figure.axes
    texts = {text.get_position()[::-1]: text.get_text() for text in axes.texts}  # by (row, column)
    rows = [["85.0", "14.5", "0.5"], ["0", "100.0", "0"], ["0", "0", "0"]]
    assert texts == {(i, j): rows[i][j] for i in range(3) for j in range(3)}
    (image,) = axes.get_images()
    assert np.isfinite(image.get_array()).all() and image.get_clim() == (0, 100)
    assert axes.get_xlabel() == "predicted class" and axes.get_ylabel() == "true class (number of test images)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "frog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat (100)", "dog (100)", "frog (0)"]
    assert bar.get_ylabel() == "share of the true class (%), mean over 2 seeds"
    assert "synthetic data, not CIFAR-10" in figure.get_suptitle()


def evaluation_of(mistakes):
    return {**EVALUATION, "mistakes": {"seed": 4, "worst_first": mistakes}}


def test_mistakes_are_shown_above_what_they_were_taken_for():
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    mistakes = [mistake(i, i % 2, 1 - i % 2, 0.999 - i / 100) for i in range(11, 1, -1)]
    figure = make_mistakes(images, evaluation_of(mistakes))
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert len(shown) == len(mistakes) == 10 and "seed 4: the most confident" in " ".join(figure.get_suptitle().split())
    for axes, one in zip(shown, mistakes, strict=True):
        (image,) = axes.get_images()
        np.testing.assert_array_equal(image.get_array(), images[one["image"]])
    assert shown[0].texts[0].get_text() == "dog\nas cat\n88.9 %"
    assert shown[-1].texts[0].get_text() == "cat\nas dog\n97.9 %"
    none = make_mistakes(images, evaluation_of([]))
    assert "no mistakes" in [text.get_text() for text in none.texts]


def test_a_sheet_of_noise_has_every_colour_and_is_still_small():
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    png = draw_mistakes(images, evaluation_of([mistake(i, 0, 1, 0.9) for i in range(24)]))
    assert len(png) < 300_000
    with Image.open(io.BytesIO(png)) as sheet:
        assert sheet.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        colours = {tuple(colour) for colour in np.asarray(sheet.convert("RGB")).reshape(-1, 3)}
        assert {tuple(colour) for colour in images.reshape(-1, 3)} <= colours, "every pixel in its own colour"
        assert sheet.convert("L").getpixel((0, 0)) == 255
