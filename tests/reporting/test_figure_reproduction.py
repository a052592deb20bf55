"""The figure of the reproduction: a row a published run, our runs as differences from it, nothing off the page."""

import io

import numpy as np
import pytest
from PIL import Image
from support.fake_results import fake_reproduction

from jaxresnet.recipes import published
from jaxresnet.reporting.figure_reproduction import draw_reproduction, make_reproduction
from jaxresnet.results.reproduction import read_reproduction


@pytest.fixture
def found(tmp_path):
    runs = {"adam_512": {0: (91.0, 91.0), 1: (91.5, 91.0)}, "adam_256_lr_6": {0: (48.44, 48.0)}}
    fake_reproduction(tmp_path / "a-published", runs)
    fake_reproduction(tmp_path / "a", {"adam_512": {0: (92.26, 92.0), 1: (10.0, 10.0)}}, "intended")
    return read_reproduction(tmp_path)


def test_rows_and_marks(found):
    figure = make_reproduction(found)
    (axes,) = figure.axes
    assert "percentage points" in axes.get_xlabel()
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert ticks == [f"{name}\n{run.best:.2f} %" for name, run in reversed(published.items())]
    y = dict(zip(reversed(published), axes.get_yticks(), strict=True))

    def points(label):
        lines = [line for line in axes.get_lines() if line.get_label() == label]
        return [(x, y) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]

    assert sorted(points("published best")) == sorted((0, tick) for tick in y.values())
    last = {tick: x for x, tick in points("published last")}
    assert last[y["sgd_128"]] == pytest.approx(88.04 - 88.13)
    means = {round(tick): x for x, tick in points("mean") if tick > round(tick)}  # as published, above the middle
    assert means == pytest.approx({y["adam_512"]: 91.25 - 91.26, y["adam_256_lr_6"]: 1.0})
    seeds = [x for x, tick in points("seeds") if round(tick) == y["adam_512"]]
    assert sorted(seeds) == pytest.approx([91.0 - 91.26, 91.5 - 91.26, 1.0])
    spread = [patch for patch in axes.patches if patch.get_width() > 0]
    low, high = next(row for row in found.rows if row.name == "adam_512").spread
    assert [(bar.get_x(), bar.get_width()) for bar in spread] == [pytest.approx((low - 91.26, high - low))]


def test_a_run_that_failed_does_not_flatten_the_others(found):
    (axes,) = make_reproduction(found).axes
    left, right = axes.get_xlim()
    assert -8 < left < -5 and 5 < right < 8  # the spread of two runs half a point apart is 11 points wide
    assert [text.get_text() for text in axes.texts] == ["off the scale: -81.3"]


def spread_ends_and_arrows(folder, scores, name="adam_512"):
    """(low, high) of the bar of one published run, the limits of the axes, and the edges with an arrow."""
    fake_reproduction(folder, {name: dict(enumerate((score, score) for score in scores))})
    found = read_reproduction(folder)
    (axes,) = make_reproduction(found).axes
    (bar,) = (patch for patch in axes.patches if patch.get_width() > 0)
    assert bar.get_x() + published[name].best == pytest.approx(next(r.spread for r in found.rows if r.spread)[0])
    arrows = [line for line in axes.get_lines() if line.get_label() == "spread goes on"]
    markers = {float(line.get_xdata()[0]): line.get_marker() for line in arrows}
    return (bar.get_x(), bar.get_x() + bar.get_width()), axes.get_xlim(), markers


def test_a_spread_within_the_scale_is_shown_to_its_ends(tmp_path):
    (low, high), (left, right), arrows = spread_ends_and_arrows(tmp_path, [90.0, 91.0, 92.0])
    assert -8 < low < -5 and left < low and high < right and not arrows


@pytest.mark.parametrize(
    ("scores", "cut"), [([90.0, 92.0], "<>"), ([80.0, 81.0, 82.0], "<"), ([93.0, 95.0, 97.0], ">")]
)
def test_a_spread_beyond_the_scale_is_cut_with_an_arrow(tmp_path, scores, cut):
    (low, high), (left, right), arrows = spread_ends_and_arrows(tmp_path, scores, "sgd_128")
    assert arrows == {edge: marker for edge, marker in ((left, "<"), (right, ">")) if marker in cut}
    assert (low < left) == ("<" in cut) and (high > right) == (">" in cut) and right - left < 17


def test_legend_lies_off_the_data_and_says_what_the_marks_are(found):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = make_reproduction(found)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
    assert not box.overlaps(figure.axes[0].get_window_extent())
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == 5 and "ours as intended, epoch chosen on validation" in labels
    # Readable in grey: the protocols differ in their marks.
    assert len({handle.get_marker() for handle in legend.legend_handles[:4]}) == 4


def test_png_is_light_and_small(found):
    png = draw_reproduction(found)
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and image.info["dpi"] == pytest.approx((150, 150), 0.01) and len(png) < 300_000
    pixels = np.asarray(image.convert("L"))
    assert pixels.mean() > 200 and pixels[0, 0] == 255
    assert draw_reproduction(found) == png
