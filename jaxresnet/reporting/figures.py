"""The look of all figures, and the figure of a comparison: loss and accuracy over the epochs.

Matplotlib is used through its objects and without pyplot, which keeps global state and may want a display. Colours are
those of Okabe and Ito, which stay apart under the common colour blindnesses. Markers and line styles say the same again
in grey.
"""

import io
import os
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxresnet.errors import short, warn
from jaxresnet.files import write_bytes
from jaxresnet.results.findings import AS_PUBLISHED
from jaxresnet.results.store import Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")  # one more than colours: the pairs repeat after 56 arms
GREY = "#555555"
DPI = 150
WILD = 6.0  # times the median loss: from here on the loss axis is logarithmic, or it would flatten all other losses
SCORED: dict[str, Any] = {"ls": "none", "marker": "*", "ms": 11, "mec": "black", "mew": 0.6, "zorder": 5}
PUBLISHED: dict[str, Any] = {"ls": "none", "ms": 12, "mfc": "none", "mew": 2.2, "zorder": 6}
SPLITS = {"val": "validation", "test": "test"}


def draw(path: Path, make: "Callable[[], Figure]", all_colours: bool = False) -> bytes | None:
    """Write the figure that `make` returns to `path`, and return its PNG bytes.

    A figure that cannot be drawn costs that figure: a warning says why, an older one at `path` is removed, and None is
    returned. Raises StorageError where `path` cannot be written."""
    try:
        png = to_png(make, all_colours)
    except Exception as e:  # Matplotlib, its settings and fonts, Pillow: nothing that the numbers depend on
        warn(f"{path}: not drawn ({type(e).__name__}: {short(e)}); all else is there")
        path.unlink(missing_ok=True)
        return None
    write_bytes(path, png)
    return png


def to_png(make: "Callable[[], Figure]", all_colours: bool = False) -> bytes:
    """PNG bytes of the figure that `make` returns, in Matplotlib's default style, whatever the user's own is.

    Without `all_colours` 256 of them are kept, which looks the same in a third of the bytes, except for photographs.
    """
    first = "matplotlib" not in sys.modules
    chosen = os.environ.pop("MPLBACKEND", None)  # a notebook's, which Matplotlib may refuse; a PNG needs none
    try:
        from matplotlib import rcParams, style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    if first and chosen:
        with suppress(ValueError):
            rcParams["backend"] = chosen  # for the user's own figures, as if it had been read
    from PIL import Image

    drawn, png = io.BytesIO(), io.BytesIO()
    with style.context(["default", {"text.parse_math": False}]):  # a "$" in a name is no formula
        figure = make()
        FigureCanvasAgg(figure)
        figure.savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})  # no version: same runs, same bytes
    if all_colours:
        return drawn.getvalue()
    image = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(png, format="png", dpi=(DPI, DPI), optimize=True)
    return png.getvalue()


def tidy(axes: "Axes") -> None:
    """The common look: a light grid behind the data and no frame on two sides."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(figure: "Figure", handles: "list[Any]", columns: int, title: str, **look: Any) -> None:
    """A legend below the axes; its title says what marks and lines are."""
    small = {"fontsize": 9, "title_fontsize": 9, "frameon": False}
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=title, **small, **look)


def make_curves(results: Results, title: str) -> "Figure":
    """Loss (nats) and accuracy (%) over the epochs: the mean over seeds, with a band from least to most."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 5), layout="constrained", facecolor="white")
    loss, accuracy = figure.subplots(1, 2)
    drawn = {arm: _drawn_runs(results, arm) for arm in results.runs}
    rows = [row for runs in drawn.values() for run in runs for row in run.rows]
    split = next((s for s in SPLITS if any(row.get(f"{s}_accuracy") is not None for row in rows)), None)
    for index, (arm, runs) in enumerate(drawn.items()):
        look = _look(index)
        for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
            _draw_curve(axes, runs, f"train_{quantity}", f"{arm}, training", look)
            if split:
                _draw_curve(axes, runs, f"{split}_{quantity}", f"{arm}, {SPLITS[split]}", look)
        epochs, scores = results.scores(arm, "best_epoch"), results.scores(arm, "test_accuracy")
        accuracy.plot(
            [epoch + 1 for epoch in epochs.values()],
            list(scores.values()),
            label=f"{arm}, scored",
            **{**look, **SCORED},
        )
        if arm in results.published:  # at the right edge: its epoch may lie beyond ours
            best, edge = results.published[arm]["best"], accuracy.get_yaxis_transform()
            label = f"{arm}, published {best:.2f} %"
            accuracy.plot([1], [best], transform=edge, clip_on=False, label=label, **look, **PUBLISHED)
    for axes, label in ((loss, "loss (nats)"), (accuracy, "accuracy (%)")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        tidy(axes)
        if not rows:
            axes.text(0.5, 0.5, "no finished epoch yet", transform=axes.transAxes, ha="center")
    _scale_loss(loss, rows)
    figure.suptitle(textwrap.fill(title, 112))
    handles = _handles(results, split)
    longest = max(len(str(handle.get_label())) for handle in handles)
    add_legend(figure, handles, 3 if longest < 40 else 2, _caption(results, drawn))
    return figure


def _drawn_runs(results: Results, arm: str) -> list[Run]:
    """The finished runs; while there are none, those under way. Mixed, the mean would jump where a run stops."""
    runs = results.finished(arm) or list(results.runs[arm].values())
    return [run for run in runs if run.rows]


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _draw_curve(axes: "Axes", runs: list[Run], key: str, label: str, look: dict[str, Any]) -> None:
    """The mean of `key` over the runs, at the epochs that all of them measured, with a band from least to most."""
    series = [{row["epoch"] + 1: row[key] for row in run.rows if row.get(key) is not None} for run in runs]
    epochs = sorted(set.intersection(*map(set, series))) if series else []
    if not epochs:
        return
    values = np.array([[one[epoch] for epoch in epochs] for one in series])
    training = key.startswith("train")
    style = {"linestyle": "--", "linewidth": 1.2, "markerfacecolor": "white"} if training else {"linewidth": 1.8}
    every = max(1, len(epochs) // 10)  # markers tell the arms apart; on every epoch of 51 they would hide the line
    axes.plot(epochs, values.mean(0), label=label, markersize=5, markevery=every, **look, **style)
    if len(runs) > 1:
        shade = {"color": look["color"], "alpha": 0.12 if training else 0.25, "linewidth": 0}
        axes.fill_between(epochs, values.min(0), values.max(0), **shade)


def _scale_loss(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    """A logarithmic axis where a few wild epochs would flatten all others on a linear one."""
    from matplotlib.ticker import LogLocator

    losses = [row[key] for row in rows for key in ("train_loss", "val_loss", "test_loss") if row.get(key) is not None]
    if losses and max(losses) > WILD * float(np.median(losses)):
        axes.set(yscale="log", ylabel="loss (nats, logarithmic)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")


def _handles(results: Results, split: str | None) -> "list[Line2D]":
    """Arms by colour and marker, then what the line styles mean, so the legend does not grow as arms times styles."""
    from matplotlib.lines import Line2D

    def handle(label: str, **look: Any) -> "Line2D":
        return Line2D([], [], label=label, **{"color": GREY, **look})

    handles = []
    for index, (arm, runs) in enumerate(results.runs.items()):
        unfinished = all(run.scores is None for run in runs.values())
        label = textwrap.fill(arm + " (no run finished)" * unfinished, 60)
        handles.append(handle(label, markersize=5, **_look(index)))
    handles.append(handle("training, mean over the epoch", linestyle="--", linewidth=1.2))
    if split:
        handles.append(handle(SPLITS[split], linewidth=1.8))
    if results.selections:
        handles.append(handle("test score of a run", **SCORED))
    if results.published:
        handles.append(handle("published (the arm's mark, at the edge)", marker="o", **PUBLISHED))
    return handles


def _caption(results: Results, drawn: dict[str, list[Run]]) -> str:
    """What lines and bands are, and under it which marks were chosen on the test set."""
    counts = sorted({len(runs) for runs in drawn.values() if runs})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "no"
    text = "one seed" if counts == [1] else f"lines: mean over {seeds} seeds; bands: least to most over the seeds"
    marks = ["test scores"] * ("test" in results.selections) + ["published figures"] * bool(results.published)
    return text + f"\n{' and '.join(marks)}: {AS_PUBLISHED}" * bool(marks)
