"""What is drawn from evaluation.json and measurement.json.

TO BE REMOVED AT MERGE, with the drawing in `comparison.evaluation` and `comparison.model_costs`: tests/reporting has
its own."""

import json

import numpy as np
import pytest
from PIL import Image
from support.fake_results import fake_comparison, fake_evaluation, fake_measurement

from jaxresnet.comparison.evaluation import Mistake, render_evaluation
from jaxresnet.comparison.model_costs import render_models
from jaxresnet.errors import ResultsError
from jaxresnet.reporting.figure_evaluation import draw_mistakes, make_confusion, make_mistakes
from jaxresnet.reporting.figure_models import make_models
from jaxresnet.reporting.report import render

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


# ---------------------------------------------------------------------------------------- evaluation.md, drawn again


def test_text_and_matrix_are_drawn_again_from_the_numbers_alone(tmp_path):
    fake_comparison(tmp_path, arms=("final model",))
    text = render_evaluation(fake_evaluation(tmp_path))
    assert "Predicted from the checkpoints of seed 0" in text
    drawn = [tmp_path / name for name in ("evaluation.md", "confusion.png")]
    before = [path.read_bytes() for path in drawn]
    page = (tmp_path / "evaluation.md").read_text()
    assert page.startswith("# Evaluation of final_model: intended protocol, synthetic data, not CIFAR-10\n")
    for name in ("cat", "dog"):
        assert page.count(f"\n| {name} | ") == 2, "in the table of classes and in the matrix"
    for redraw in (render_evaluation, render):
        for path in drawn:
            path.unlink()
        redraw(tmp_path)
        assert [path.read_bytes() for path in drawn] == before
    (tmp_path / "evaluation.json").write_text("{")
    (tmp_path / "evaluation.md").unlink()
    with pytest.raises(ResultsError, match=r"evaluation\.json, line 1: cut off"):
        render_evaluation(tmp_path)
    assert not (tmp_path / "evaluation.md").exists()


# ------------------------------------------------------------------------------------- model_parameters, drawn again


def test_the_table_says_what_runs_where_and_why_not(tmp_path):
    text = render_models(fake_measurement(tmp_path))
    page = (tmp_path / "model_parameters.md").read_text()
    header, _, *rows = (line for line in page.splitlines() if line.startswith("|"))
    names = [cell.strip() for cell in header.strip("|").split("|")]
    cells = [dict(zip(names, (c.strip() for c in row.strip("|").split("|")), strict=True)) for row in rows]
    first, fifth, last = cells
    assert first["parameters"] == "12,550,218" and first["multiply-adds"] == "605,754,368"
    assert [(c["as published"], c["here"]) for c in cells] == [
        ("fails", "runs"),
        ("runs", "runs"),
        ("fails", "refused"),
    ]
    assert fifth["step (ms)"] == "100" and fifth["least to most"] == "50.0 to 150" and last["step (ms)"] == ""
    for shown in (text, page):
        assert "configuration 1 and configuration 8 as published: a reason" in shown
        assert "configuration 8 here: pool_size=16: must be 4" in shown


def test_table_and_figure_are_drawn_again_from_the_measurement_alone(tmp_path):
    text = render_models(fake_measurement(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"measurement.json", "model_parameters.md", "model_parameters.png"}
    for name in ("model_parameters.md", "model_parameters.png"):
        (tmp_path / name).unlink()
    assert render_models(tmp_path) == text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(before["model_parameters.png"]) < 300_000


def test_the_figure_has_a_mark_a_network_and_the_budget(tmp_path):
    fake_measurement(tmp_path)
    measurement = json.loads((tmp_path / "measurement.json").read_text())
    figure = make_models(measurement, 5_000_000)
    for axes, expected in zip(figure.axes, ([12.550218, 4.903242], [605.754368, 253.432832]), strict=True):
        marks = [line for line in axes.get_lines() if line.get_marker() == "o"]
        assert [float(mark.get_xdata()[0]) for mark in marks] == pytest.approx(expected)
        assert [float(mark.get_ydata()[0]) for mark in marks] == pytest.approx([200, 100])
        assert [text.get_text() for text in axes.texts] == ["1", "5"]
        assert all(np.isfinite(path.vertices).all() for bars in axes.collections for path in bars.get_paths())
    left, right = figure.axes
    assert left.get_xlabel() == "parameters (millions)" and "(millions)" in right.get_xlabel()
    assert left.get_ylabel().startswith("training step, batch 16 (ms)")
    (budget,) = (line for line in left.get_lines() if line.get_label() == "5,000,000 parameters")
    assert list(budget.get_xdata()) == [5, 5]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "1: configuration 1, blocks 2,2,2,2, width 64, shortcut 3x3" and len(legend) == 3
