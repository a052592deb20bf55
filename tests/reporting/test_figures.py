"""What the figure of a comparison draws and labels, and that it is light, small and readable in grey."""

import io

import matplotlib.style
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from support.fake_results import ADAM, LOOKAHEAD, fake_comparison

from jaxresnet.reporting.figures import make_curves, to_png
from jaxresnet.results.findings import AS_PUBLISHED
from jaxresnet.results.store import read_results


def figure_of(folder):
    return make_curves(read_results(folder), "the title")


def caption(figure):
    return figure.legends[0].get_title().get_text()


def test_figure_draws_the_mean_and_the_range(tmp_path):
    figure = figure_of(fake_comparison(tmp_path))
    loss, accuracy = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)", "accuracy (%)"]
    assert "epoch" in loss.get_xlabel() and figure.get_suptitle() == "the title"
    lines = {line.get_label(): line for line in accuracy.get_lines()}
    curves = [f"{arm}, {split}" for arm in (LOOKAHEAD, ADAM) for split in ("training", "validation")]
    assert set(lines) == {*curves, f"{LOOKAHEAD}, scored", f"{ADAM}, scored"}
    assert [line.get_label() for line in loss.get_lines()] == curves
    runs = read_results(tmp_path).runs[ADAM].values()
    measured = np.array([[row["val_accuracy"] for row in run.rows] for run in runs])
    np.testing.assert_allclose(lines["Adam, validation"].get_ydata(), measured.mean(0))
    band = accuracy.collections[-1].get_paths()[0].vertices  # Adam's validation, drawn last
    assert {round(y, 9) for y in band[:, 1]} == {round(y, 9) for y in (*measured.min(0), *measured.max(0))}
    scored = zip(lines["Adam, scored"].get_xdata(), lines["Adam, scored"].get_ydata(), strict=True)
    assert list(scored) == [(run.scores["best_epoch"] + 1, run.scores["test_accuracy"]) for run in runs]
    # Readable in grey: the arms differ in marker, training and validation in line style.
    assert len({line.get_marker() for label, line in lines.items() if "validation" in label}) == 2
    assert lines["Adam, training"].get_linestyle() != lines["Adam, validation"].get_linestyle()
    assert "bands: least to most over the seeds" in caption(figure)


def test_legend_lies_within_the_figure_and_off_the_data(tmp_path):
    arms = [f"SGD, learning rate {index}, and a name that is rather long" for index in range(9)]
    figure = figure_of(fake_comparison(tmp_path, arms=arms, selection="test", published={arms[0]: {"best": 90.0}}))
    FigureCanvasAgg(figure).draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0
    for axes in figure.axes:
        assert not legend.overlaps(axes.get_window_extent())
    assert len({(handle.get_color(), handle.get_marker()) for handle in figure.legends[0].legend_handles[:9]}) == 9
    assert caption(figure).endswith(f"\ntest scores and published figures: {AS_PUBLISHED}")


def test_png_is_light_small_and_the_users_settings_stay(tmp_path):
    results = read_results(fake_comparison(tmp_path, arms=[f"arm {i}" for i in range(6)], num_epochs=51))
    with matplotlib.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        png = to_png(lambda: make_curves(results, "a $ in a name, and $x"))
        assert dict(matplotlib.rcParams) == before
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and image.size == (1500, 750) and image.info["dpi"] == pytest.approx((150, 150), 0.01)
    assert len(png) < 150_000
    assert np.asarray(image.convert("L")).mean() > 200  # white, in spite of the user's dark style


def test_a_wild_first_epoch_does_not_flatten_the_losses(tmp_path):
    """The axis turns logarithmic: everything stays drawn, and 0.5 nats are a visible step from 1.5 to 1."""
    results = read_results(fake_comparison(tmp_path, num_epochs=10))
    loss = make_curves(results, "title").axes[0]
    assert loss.get_yscale() == "linear" and loss.get_ylim()[1] < 2.5 and loss.get_ylabel() == "loss (nats)"
    for run in results.runs[ADAM].values():
        run.rows[0]["train_loss"] = 30.1
    figure = make_curves(results, "title")
    loss, accuracy = figure.axes
    assert loss.get_yscale() == "log" and loss.get_ylabel() == "loss (nats, logarithmic)"
    assert loss.get_ylim()[1] > 30.1 and accuracy.get_yscale() == "linear"
    figure.draw_without_rendering()
    ticks = [label.get_text() for label in loss.get_yticklabels()]
    assert {"1", "2", "5", "10", "20"} <= set(ticks), ticks


def test_a_published_figure_is_the_arms_mark_at_the_edge(tmp_path):
    accuracy = figure_of(fake_comparison(tmp_path, published={ADAM: {"best": 91.26}})).axes[1]
    (mark,) = [line for line in accuracy.get_lines() if line.get_label() == "Adam, published 91.26 %"]
    (curve,) = [line for line in accuracy.get_lines() if line.get_label() == "Adam, validation"]
    assert list(curve.get_xdata()) == list(range(1, 7)) and mark.get_marker() == curve.get_marker()
    ((x, y),) = mark.get_transform().transform(mark.get_xydata())
    assert x == pytest.approx(accuracy.transAxes.transform((1, 0))[0])
    assert y == pytest.approx(accuracy.transData.transform((0, 91.26))[1])


def test_a_comparison_that_has_only_begun(tmp_path):
    nothing = [(arm, seed) for arm in (LOOKAHEAD, ADAM) for seed in range(3)]
    axes = figure_of(fake_comparison(tmp_path / "nothing", not_begun=nothing)).axes[0]
    assert [text.get_text() for text in axes.texts] == ["no finished epoch yet"] and not axes.get_lines()
    figure = figure_of(fake_comparison(tmp_path / "begun", unfinished=nothing[:1], not_begun=nothing[1:]))
    assert "Adam + Lookahead (no run finished)" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert [len(line.get_xdata()) for line in figure.axes[0].get_lines()] == [3, 3] and caption(figure) == "one seed"
