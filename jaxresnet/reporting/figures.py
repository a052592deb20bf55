"""The figure of a comparison: loss and accuracy over the epochs, the mean over seeds with a band from least to most.

Drawn with Matplotlib's objects and without pyplot, which would keep global state and may want a display. Colours are
those of Okabe and Ito, which stay apart under the common colour blindnesses; markers (arms) and line styles (training
or evaluation) say the same again in grey.
"""

import io
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxresnet.recipes import published
from jaxresnet.results.store import Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")  # one more than colours: the pairs repeat after 56 arms
DPI = 150
GREY = "#555555"
# A loss of ln 10 = 2.3 is guessing among ten classes. The loss axis always reaches a little above it, and beyond only
# as far as the bulk of the curves does: a first epoch at 30 would press everything else into a line at the bottom.
WILD = 6.0  # times the median loss: from here on the loss axis is logarithmic


def draw_figure(results: Results, title: str, as_published: str) -> bytes:
    """The figure as PNG bytes. `as_published` labels what was chosen on the test set."""
    return to_png(lambda: make_figure(results, title, as_published))


def to_png(make: "Callable[[], Figure]") -> bytes:
    """PNG bytes of the figure that `make` returns, drawn in Matplotlib's default style.

    The user's own style (a dark one, say) is set aside while drawing and is back afterwards."""
    from matplotlib import style
    from PIL import Image

    drawn, png = io.BytesIO(), io.BytesIO()
    # A "$" in a name is no formula, which could be a wrong one.
    with style.context(["default", {"text.parse_math": False}]):
        make().savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})  # no version: same runs, same bytes
    # 256 colours, which no eye tells from all of them here, in a third of the bytes.
    image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(png, format="png", dpi=(DPI, DPI), optimize=True)
    return png.getvalue()


def tidy(axes: "Axes") -> None:
    """The common look: a light grid behind the data and no frame on two sides."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def make_figure(results: Results, title: str, as_published: str) -> "Figure":
    """A Matplotlib figure with two axes, loss (nats) and accuracy (%)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 5), layout="constrained", facecolor="white")
    loss, accuracy = figure.subplots(1, 2)
    drawn = {arm: _drawn_runs(results, arm) for arm in results.runs}
    rows = [row for runs in drawn.values() for run in runs for row in run.rows]
    split = _evaluation_split(rows)
    one_epoch = len({row["epoch"] for row in rows}) == 1
    for index, (arm, runs) in enumerate(drawn.items()):
        look = _look(index)
        # Curves of one epoch are points on a vertical line: set the arms side by side.
        shift = 0.6 * ((index + 0.5) / len(drawn) - 0.5) if one_epoch else 0.0
        for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
            _draw_curve(axes, runs, f"train_{quantity}", f"{arm}, training", look, shift, training=True)
            if split:
                _draw_curve(axes, runs, f"{split}_{quantity}", f"{arm}, {_NAMES[split]}", look, shift, training=False)
        _draw_scores(accuracy, results, arm, look, shift + 0.05 * one_epoch)
        if entry := results.published.get(arm):
            _draw_published(accuracy, entry, arm, look, beside=one_epoch)
    for axes, label in ((loss, "loss (nats)"), (accuracy, "accuracy (%)")):
        axes.set(xlabel="epoch (the first is 0)", ylabel=label)
        if one_epoch:
            axes.set(xlim=(rows[0]["epoch"] - 0.5, rows[0]["epoch"] + 0.5), xticks=[rows[0]["epoch"]])
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        tidy(axes)
        if not rows:
            axes.text(0.5, 0.5, "no finished epoch yet", transform=axes.transAxes, ha="center")
    if rows:
        _scale_loss(loss, rows)
    figure.suptitle(textwrap.fill(title, 112))
    handles = _legend_handles(results, split)
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = min(3, max(1, 143 // (longest + 9)))  # the figure is 143 characters wide; 9 for sample and gap
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        title=_caption(results, drawn, "bars" if one_epoch else "bands", as_published),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    return figure


_NAMES = {"val": "validation", "test": "test"}


def _drawn_runs(results: Results, arm: str) -> list[Run]:
    """The finished runs; while there are none, those under way. Mixed, the mean would jump where a run stops."""
    runs = results.finished(arm) or list(results.runs[arm].values())
    return [run for run in runs if run.rows]


def _evaluation_split(rows: list[dict[str, Any]]) -> str | None:
    """ "val" where the rows hold it, else "test", else None: two curves an arm and panel, not three."""
    return next((s for s in ("val", "test") if any(row.get(f"{s}_accuracy") is not None for row in rows)), None)


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _draw_curve(
    axes: "Axes", runs: list[Run], key: str, label: str, look: dict[str, Any], shift: float, training: bool
) -> None:
    """The mean of `key` over the runs, at the epochs that all of them measured, with a band from least to most."""
    epochs, values = _values(runs, key)
    if not len(epochs):
        return
    mean, low, high = values.mean(0), values.min(0), values.max(0)
    x = epochs + shift
    line_style = {"linestyle": "--", "linewidth": 1.2, "markerfacecolor": "white"} if training else {"linewidth": 1.8}
    every = max(1, len(epochs) // 10)  # markers tell the arms apart; on every epoch of 51 they would hide the line
    axes.plot(x, mean, label=label, markersize=5, markevery=every, **look, **line_style)
    if len(runs) > 1 and len(epochs) > 1:
        axes.fill_between(x, low, high, color=look["color"], alpha=0.12 if training else 0.25, linewidth=0)
    elif len(runs) > 1:  # a band of one epoch has no width
        axes.vlines(x, low, high, color=look["color"], linewidth=1.2)


def _values(runs: list[Run], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The epochs (n,) that all runs measured `key` at, and its values (seeds, n)."""
    series = [{row["epoch"]: row[key] for row in run.rows if row.get(key) is not None} for run in runs]
    epochs = sorted(set.intersection(*map(set, series))) if series else []
    return np.array(epochs), np.array([[one[epoch] for epoch in epochs] for one in series])


def _scale_loss(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    """A logarithmic axis where a few wild epochs would flatten all others on a linear one."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    losses = [row[key] for row in rows for key in ("train_loss", "val_loss", "test_loss") if row.get(key) is not None]
    if min(losses) <= 0 or max(losses) <= WILD * float(np.median(losses)):
        return
    axes.set(yscale="log", ylabel="loss (nats, logarithmic)")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_published(axes: "Axes", entry: dict[str, Any], arm: str, look: dict[str, Any], beside: bool) -> None:
    """The published best: the arm's own mark, large and hollow, at its epoch.

    At the right edge where that epoch is not known, or with `beside`."""
    known = published.get(entry.get("run", ""))
    epoch = None if beside else entry.get("best_epoch", known.best_epoch if known else None)
    axes.plot(
        [1.0 if epoch is None else epoch],
        [entry["best"]],
        transform=axes.get_yaxis_transform() if epoch is None else axes.transData,
        linestyle="none",
        marker=look["marker"],
        markersize=12,
        markerfacecolor="none",
        markeredgecolor=look["color"],
        markeredgewidth=2.2,
        clip_on=False,
        zorder=6,
        label=f"{arm}, published {entry['best']:.2f} %",
    )


def _draw_scores(axes: "Axes", results: Results, arm: str, look: dict[str, Any], shift: float) -> None:
    """A star a finished run: its test accuracy, the one in the table, at the epoch that was chosen."""
    scores = [run.scores for run in results.finished(arm) if run.scores]
    if scores:
        epochs = np.array([one["best_epoch"] for one in scores]) + shift
        accuracies = [one["test_accuracy"] for one in scores]
        star: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 11, "markeredgecolor": "black"}
        axes.plot(
            epochs, accuracies, label=f"{arm}, scored", color=look["color"], markeredgewidth=0.6, zorder=5, **star
        )


def _legend_handles(results: Results, split: str | None) -> "list[Line2D]":
    """Arms by colour and marker, then what the line styles mean, so the legend does not grow as arms times styles."""
    from matplotlib.lines import Line2D

    handles = []
    for index, (arm, runs) in enumerate(results.runs.items()):
        unfinished = all(run.scores is None for run in runs.values())
        label = textwrap.fill(arm + " (no run finished)" * unfinished, 60)
        handles.append(Line2D([], [], markersize=5, label=label, **_look(index)))
    grey: dict[str, Any] = {"color": GREY}
    handles.append(Line2D([], [], linestyle="--", linewidth=1.2, label="training, mean over the epoch", **grey))
    if split:
        handles.append(Line2D([], [], linewidth=1.8, label=_NAMES[split], **grey))
    if results.selections:
        handles.append(Line2D([], [], linestyle="none", marker="*", markersize=11, label="test score of a run", **grey))
    if results.published:
        hollow: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 2}
        handles.append(
            Line2D([], [], linestyle="none", marker="o", label="published (the arm's mark)", **hollow, **grey)
        )
    return handles


def _caption(results: Results, drawn: dict[str, list[Run]], spread: str, as_published: str) -> str:
    """What lines and bands are, and under it which marks were chosen on the test set."""
    counts = sorted({len(runs) for runs in drawn.values() if runs})
    if not counts:
        text = "no run yet"
    elif counts == [1]:
        text = "one seed"
    else:
        seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        text = f"lines: mean over {seeds} seeds; {spread}: least to most over the seeds"
    marks = ["test scores"] * ("test" in results.selections) + ["published figures"] * bool(results.published)
    return text + f"\n{' and '.join(marks)}: {as_published}" * bool(marks)
