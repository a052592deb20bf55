"""The figure of a measurement of networks: parameters and multiply-adds against the time of a training step."""

from typing import TYPE_CHECKING, Any

from jaxresnet.reporting.figures import COLOURS, GREY, tidy, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TICKS = 40  # of an axis; the published networks need 13


def draw_models(measurement: dict[str, Any], budget: int) -> bytes:
    """The figure as PNG bytes. measurement: as in measurement.json. budget: parameters, drawn as a line."""
    return to_png(lambda: make_models(measurement, budget))


def make_models(measurement: dict[str, Any], budget: int) -> "Figure":
    """Two axes that share the step time (ms, median, with a bar from least to most over the rounds): against it the
    millions of parameters, with the budget as a line, and the millions of multiply-adds. A mark a network that ran,
    with its number in it, which the legend explains. The horizontal axes are logarithmic: most networks lie close."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MultipleLocator, NullLocator

    timing = measurement["timing"]
    ran = {name: one for name, one in measurement["models"].items() if one["step_seconds"]}
    figure = Figure(figsize=(10, 5.4), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, spacing in ((left, "params", 1), (right, "macs", 50)):
        for index, (name, one) in enumerate(ran.items()):
            x, y = one[key] / 1e6, 1e3 * one["median_step_seconds"]
            low, high = 1e3 * min(one["step_seconds"]), 1e3 * max(one["step_seconds"])
            colour = COLOURS[index % len(COLOURS)]
            axes.vlines(x, low, high, color=colour, linewidth=1.5)
            look = {"marker": "o", "markersize": 13, "markerfacecolor": "white", "markeredgewidth": 2}
            axes.plot(x, y, color=colour, linestyle="none", label=f"{_mark(name)}: {_explained(name, one)}", **look)
            axes.text(x, y, _mark(name), ha="center", va="center_baseline", fontsize=9)
        values = [one[key] / 1e6 for one in ran.values()]
        axes.set_xscale("log")
        axes.set_xlim(0.9 * min(values), 1.1 * max(values))
        if max(values) / spacing < MOST_TICKS:  # else there would be thousands, or millions from a damaged file
            axes.xaxis.set_major_locator(MultipleLocator(spacing))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        tidy(axes)
    left.axvline(budget / 1e6, color=GREY, linestyle=":", linewidth=1.5, label=f"{budget:,} parameters")
    narrower = "" if timing["width"] == "full" else f",\nof networks with {timing['width']} of the width"
    left.set(xlabel="parameters (millions)", ylabel=f"training step, batch {timing['batch_size']} (ms){narrower}")
    right.set(xlabel="multiply-adds of the forward pass, one image (millions)")
    figure.suptitle(f"What the networks cost: {measurement['environment']['device']}, {timing['precision']}")
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        title=f"marks: median of {timing['rounds']} rounds; bars: least to most",
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        markerscale=0.6,
    )
    return figure


def _mark(name: str) -> str:
    """What stands in the mark: "5" for "configuration 5", "N" for "narrowed ResNet-18"."""
    return name.removeprefix("configuration ")[0].upper()


def _explained(name: str, one: dict[str, Any]) -> str:
    model = one["model"]
    kernel, blocks = model["shortcut_kernel"], ",".join(map(str, model["stage_sizes"]))
    return f"{name}, blocks {blocks}, width {model['width']}, shortcut {kernel}x{kernel}"
