"""The figures of an evaluation: a confusion matrix, and a sheet of the worst mistakes. See `figure` for the style."""

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxresnet.reporting.figures import DPI, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxresnet.comparison.evaluation import Mistake

SHEET_COLUMNS = 8


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str], title: str, note: str) -> bytes:
    """`make_confusion` as PNG bytes."""
    return to_png(lambda: make_confusion(confusion, class_names, title, note))


def make_confusion(confusion: np.ndarray, class_names: Sequence[str], title: str, note: str) -> "Figure":
    """A heat map with a number in every cell: percent of the row's true class that was taken for the column's.

    confusion: (C, C) counts, or their mean over runs. note: what one number is a mean of, under the colour scale's
    name. Colours go with the square root, so that confusions of a few percent show beside a diagonal of ninety.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    n = confusion.sum(1)
    percent = 100 * confusion / np.maximum(n, 1)[:, None]
    figure = Figure(figsize=(9, 7.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    norm = PowerNorm(0.5, 0, 100)
    image = axes.imshow(percent, cmap="Blues", norm=norm)
    for (row, column), value in np.ndenumerate(percent):
        # Where the colour is dark the number is white; "0" is what never happened, "0.0" what hardly did.
        text = "0" if value == 0 else f"{value:.1f}"
        colour = "white" if float(norm(value)) > 0.6 else "#888888" if value == 0 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right", rotation_mode="anchor")
    names = [f"{name} ({round(float(k)):,})" for name, k in zip(class_names, n, strict=True)]
    axes.set_yticks(range(len(class_names)), names)
    axes.set(xlabel="predicted class", ylabel="true class (number of test images)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.85, ticks=[0, 1, 5, 10, 20, 40, 60, 80, 100])
    bar.set_label(f"share of the true class (%), {note}")
    bar.ax.spines["outline"].set_visible(False)
    figure.suptitle(textwrap.fill(title, 80))
    return figure


def draw_mistakes(images: np.ndarray, mistakes: "Sequence[Mistake]", class_names: Sequence[str], title: str) -> bytes:
    """`make_mistakes` as PNG bytes. In full colour, unlike `to_png`: 256 are too few for two dozen photographs."""
    from matplotlib import style

    png = io.BytesIO()
    with style.context(["default", {"text.parse_math": False}]):
        figure = make_mistakes(images, mistakes, class_names, title)
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})  # no version: same data, same bytes
    return png.getvalue()


def make_mistakes(images: np.ndarray, mistakes: "Sequence[Mistake]", class_names: Sequence[str], title: str) -> "Figure":
    """A sheet of images, each above its true class, the class that it was taken for, and the probability of
    that, in percent.

    images: (N, 32, 32, 3) uint8, those that `Mistake.image` counts.
    """
    from matplotlib.figure import Figure

    rows = max(1, -(-len(mistakes) // SHEET_COLUMNS))
    figure = Figure(figsize=(10, 0.9 + 2 * rows), layout="constrained", facecolor="white")
    cells = list(figure.subplots(rows, SHEET_COLUMNS, squeeze=False).flat)
    for axes in cells:
        axes.set_axis_off()
    for axes, mistake in zip(cells, mistakes, strict=False):
        axes.imshow(images[mistake.image], interpolation="nearest")
        true, predicted = class_names[mistake.true], class_names[mistake.predicted]
        lines = (true, f"as {predicted}", f"{100 * mistake.probability:.1f} %")
        text = "\n".join(textwrap.fill(line, 15) for line in lines)
        axes.text(0.5, -0.06, text, transform=axes.transAxes, ha="center", va="top", fontsize=9)
    if not mistakes:
        figure.text(0.5, 0.5, "no mistakes", ha="center")
    figure.suptitle(textwrap.fill(title, 95))
    return figure
