"""What is drawn from measurement.json alone."""

import numpy as np
import pytest
from support.fake_results import fake_measurement

from jaxresnet.reporting.models import make_models, render_models
from jaxresnet.results.schemas import read_measurement


def test_the_table_says_what_runs_where_and_why_not(tmp_path):
    printed = render_models(fake_measurement(tmp_path))
    text = (tmp_path / "model_parameters.md").read_text()
    header, _, *rows = text.split("\n\n")[1].splitlines()
    names = [cell.strip() for cell in header.strip("|").split("|")]
    first, fifth, last = (dict(zip(names, (c.strip() for c in row.strip("|").split("|")), strict=True)) for row in rows)
    assert first["parameters"] == "12,550,218" and first["multiply-adds"] == "605,754,368"
    assert first["blocks"] == "2,2,2,2" and first["shortcut"] == "3x3" and last["pool"] == "16x16"
    runs = [(c["as published"], c["here"]) for c in (first, fifth, last)]
    assert runs == [("fails", "runs"), ("runs", "runs"), ("fails", "refused")]
    assert (fifth["step (ms)"], fifth["images/s"], last["step (ms)"]) == ("100", "160", "")
    for shown in (printed, text):
        assert "configuration 1 and configuration 8 as published: a reason." in shown
        assert "configuration 8 here: pool_size=16: must be 4." in shown
        assert "of networks with a quarter of the width given here" in shown and "12,550,218" in shown
    assert str(tmp_path / "model_parameters.png") in printed
    assert (tmp_path / "model_parameters.png").stat().st_size < 300_000


def test_the_figure_has_a_mark_a_network_and_the_budget(tmp_path):
    measurement = read_measurement(fake_measurement(tmp_path))
    figure = make_models(measurement)
    for axes, expected in zip(figure.axes, ([12.550218, 4.903242], [605.754368, 253.432832]), strict=True):
        marks = [line for line in axes.get_lines() if line.get_marker() == "o"]
        assert [float(mark.get_xdata()[0]) for mark in marks] == pytest.approx(expected)
        assert [float(mark.get_ydata()[0]) for mark in marks] == pytest.approx([200, 100])
        assert [text.get_text() for text in axes.texts] == ["1", "5"]
        ends = [path.vertices[:, 1] for bars in axes.collections for path in bars.get_paths()]
        np.testing.assert_allclose(ends, [[100, 300], [50, 150]])
    left, right = figure.axes
    assert left.get_xlabel() == "parameters (millions)" and "(millions)" in right.get_xlabel()
    assert left.get_ylabel() == "training step, batch 16 (ms),\nof networks with a quarter of the width"
    measurement["timing"]["width"] = "full"
    assert make_models(measurement).axes[0].get_ylabel() == "training step, batch 16 (ms)"
    (budget,) = (line for line in left.get_lines() if line.get_label() == "5,000,000 parameters")
    assert list(budget.get_xdata()) == [5, 5]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "1: configuration 1, blocks 2,2,2,2, width 64, shortcut 3x3" and len(legend) == 3
