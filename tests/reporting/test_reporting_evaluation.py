"""What is drawn from evaluation.json alone, and the sheet of mistakes, which needs the images."""

import io

import numpy as np
import pytest
from PIL import Image
from support.fake_results import fake_evaluation

from jaxresnet.reporting.evaluation import make_confusion, make_mistakes, render_evaluation
from jaxresnet.reporting.figures import to_png
from jaxresnet.results.schemas import read_evaluation


@pytest.fixture
def folder(tmp_path):
    return fake_evaluation(tmp_path)


def test_the_text_has_every_class_and_names_the_seeds(folder):
    printed = render_evaluation(folder)
    text = (folder / "evaluation.md").read_text()
    assert text.startswith("# Evaluation of final_model: intended protocol, synthetic data, not CIFAR-10\n\n| class | ")
    for row in (
        "| cat | 100 | 85.0 | 70.0 to 96.3 | 80.0, 90.0 | dog (14.5 %) |",
        "| dog | 100 | 100.0 | 70.0 to 96.3 | 100.0, 100.0 | nothing else |",
        "| frog | 0 |  |  |  |  |",
        "| all | 200 | 92.50 | 88.00 to 95.50 | 90.00, 95.00 |  |",
        "| cat | 170 | 29 | 1 |",
        "| 3 | cat | dog | 99.90 |",
        "| device | cpu |",
    ):
        assert f"\n{row}\n" in text
    assert "Test images, summed over seeds 0, 4." in text
    for note in (
        "Predicted from the checkpoints of seeds 0, 4 (best epoch on the validation set), whose runs recorded 90.00, "
        "94.00 %.",
        "Not evaluated, as their checkpoints are gone: seeds 7.",
    ):
        assert note in text and note in printed
    assert "dog (14.5 %)" in printed and str(folder / "mistakes.png") not in printed, "what is not there is not named"
    assert (folder / "confusion.png").stat().st_size < 300_000
    fake_evaluation(folder, runs={"0": read_evaluation(folder)["runs"]["0"]}, seeds=[0])
    assert "Predicted from the checkpoints of one seed (0)" in render_evaluation(folder)


def test_confusion_figure_has_a_number_in_every_cell(folder):
    figure = make_confusion(read_evaluation(folder))
    axes, bar = figure.axes
    texts = {text.get_position()[::-1]: text.get_text() for text in axes.texts}  # by (row, column)
    rows = [["85.0", "14.5", "0.5"], ["0", "100.0", "0"], ["0", "0", "0"]]
    assert texts == {(i, j): rows[i][j] for i in range(3) for j in range(3)}
    (image,) = axes.get_images()
    assert np.isfinite(image.get_array()).all() and image.get_clim() == (0, 100)
    assert axes.get_xlabel() == "predicted class" and axes.get_ylabel() == "true class (number of test images)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "frog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat (100)", "dog (100)", "frog (0)"]
    assert bar.get_ylabel() == "share of the true class (%), mean over seeds 0, 4"
    assert "synthetic data, not CIFAR-10" in figure.get_suptitle()


def test_mistakes_are_shown_in_every_colour_above_what_they_were_taken_for(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    mistakes = [
        {"image": i, "true": i % 2, "predicted": 1 - i % 2, "probability": 0.999 - i / 100} for i in range(11, 1, -1)
    ]
    evaluation = read_evaluation(fake_evaluation(tmp_path, mistakes={"seed": 4, "worst_first": mistakes}))
    figure = make_mistakes(images, evaluation)
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert len(shown) == 10 and "seed 4: the most confident" in " ".join(figure.get_suptitle().split())
    for axes, one in zip(shown, mistakes, strict=True):
        (image,) = axes.get_images()
        np.testing.assert_array_equal(image.get_array(), images[one["image"]])
    assert shown[0].texts[0].get_text() == "dog\nas cat\n88.9 %"
    png = to_png(lambda: make_mistakes(images, evaluation), all_colours=True)
    assert len(png) < 300_000
    colours = {tuple(one) for one in np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)}
    assert {tuple(one) for mistake in mistakes for one in images[mistake["image"]].reshape(-1, 3)} <= colours
    evaluation["mistakes"]["worst_first"] = []
    assert "no mistakes" in [text.get_text() for text in make_mistakes(images, evaluation).texts]
