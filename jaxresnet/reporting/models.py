"""A measurement of networks, drawn from measurement.json: its table, notes and figure."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxresnet.files import write_text
from jaxresnet.recipes import PARAMETER_BUDGET
from jaxresnet.reporting.figures import COLOURS, GREY, add_legend, draw, tidy
from jaxresnet.reporting.tables import aligned, as_bullets, as_markdown, environment_table
from jaxresnet.results.schemas import read_measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render_models(folder: str | Path) -> str:
    """Write model_parameters.md and .png from the measurement.json in `folder`, and return the table to print.

    Raises ResultsError where that is damaged or foreign."""
    folder = Path(folder)
    measurement = read_measurement(folder)
    table, notes = _table(measurement), _notes(measurement)
    figure = folder / "model_parameters.png"
    drawn = draw(figure, lambda: make_models(measurement))
    blocks = [
        "# Parameters, multiply-adds and step time of the published configurations",
        as_markdown(table),
        as_bullets(notes),
        *["![Parameters and multiply-adds against step time](model_parameters.png)"] * bool(drawn),
        "## Environment",
        as_markdown(environment_table(measurement["environment"])),
    ]
    write_text(folder / "model_parameters.md", "\n\n".join(blocks) + "\n")
    return "\n".join([aligned(table), "", *notes, "", *[f"figure   {figure}"] * bool(drawn)])


def _table(measurement: dict[str, Any]) -> list[list[str]]:
    shape = "network", "blocks", "width", "shortcut", "pool", "parameters", "multiply-adds"
    rows = [[*shape, "as published", "here", "step (ms)", "images/s"]]
    for name, one in measurement["models"].items():
        model = one["model"]
        kernel, pool = model["shortcut_kernel"], model["pool_size"]
        sizes = [",".join(map(str, model["stage_sizes"])), str(model["width"]), f"{kernel}x{kernel}", f"{pool}x{pool}"]
        runs = ["fails" if one["problem_as_published"] else "runs", "refused" if one["problem_here"] else "runs"]
        timing = ["", ""]
        if one["step_seconds"]:
            ms, batch = 1000 * one["median_step_seconds"], measurement["timing"]["batch_size"]
            timing = [f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}", f"{1000 * batch / ms:,.0f}"]
        rows.append([name, *sizes, f"{one['params']:,}", f"{one['macs']:,}", *runs, *timing])
    return rows


def _notes(measurement: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the table."""
    timing, device = measurement["timing"], measurement["environment"]["device"]
    width = "" if timing["width"] == "full" else f", of networks with {timing['width']} of the width given here"
    notes = [
        f"Step: {timing['what']}, batch {timing['batch_size']}, {timing['precision']}{width}, on {device}. The time is "
        f"the median of {timing['rounds']} rounds of {timing['steps_a_round']}, in which the networks take turns.",
        "Multiply-adds are those of the forward pass for one image. Parameters are the trainable ones; the budget is "
        f"{PARAMETER_BUDGET:,}.",
    ]
    for key, what in (("problem_as_published", "as published"), ("problem_here", "here")):
        reasons: dict[str, list[str]] = {}
        for name, one in measurement["models"].items():
            if one[key]:
                reasons.setdefault(one[key], []).append(name)
        notes += [f"{' and '.join(names)} {what}: {reason}." for reason, names in reasons.items()]
    return notes


def make_models(measurement: dict[str, Any]) -> "Figure":
    """Step time (ms, median, with a bar from least to most over the rounds) against the millions of parameters, with
    the budget as a line, and against the millions of multiply-adds.

    A network that ran has a mark with its number, which the legend explains. The horizontal axes are logarithmic, as
    most networks lie close."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator, NullLocator

    timing = measurement["timing"]
    ran = {name: one for name, one in measurement["models"].items() if one["step_seconds"]}
    figure = Figure(figsize=(10, 5.4), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, spacing in ((left, "params", 1), (right, "macs", 50)):
        for index, (name, one) in enumerate(ran.items()):
            x, y = one[key] / 1e6, 1e3 * one["median_step_seconds"]
            low, high = 1e3 * min(one["step_seconds"]), 1e3 * max(one["step_seconds"])
            colour, mark = COLOURS[index % len(COLOURS)], _mark(name)
            look: dict[str, Any] = {"markersize": 13, "markerfacecolor": "white", "markeredgewidth": 2}
            axes.vlines(x, low, high, color=colour, linewidth=1.5)
            axes.plot(x, y, "o", color=colour, label=f"{mark}: {_explained(name, one['model'])}", **look)
            axes.text(x, y, mark, ha="center", va="center_baseline", fontsize=9)
        values = [one[key] / 1e6 for one in ran.values()]
        axes.set_xscale("log")
        axes.set_xlim(0.9 * min(values), 1.1 * max(values))
        axes.xaxis.set_major_locator(MultipleLocator(spacing))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        tidy(axes)
    left.axvline(PARAMETER_BUDGET / 1e6, color=GREY, linestyle=":", label=f"{PARAMETER_BUDGET:,} parameters")
    narrower = "" if timing["width"] == "full" else f",\nof networks with {timing['width']} of the width"
    left.set(xlabel="parameters (millions)", ylabel=f"training step, batch {timing['batch_size']} (ms){narrower}")
    right.set(xlabel="multiply-adds of the forward pass, one image (millions)")
    figure.suptitle(f"What the networks cost: {measurement['environment']['device']}, {timing['precision']}")
    caption = f"marks: median of {timing['rounds']} rounds; bars: least to most"
    add_legend(figure, left.get_legend_handles_labels()[0], 2, caption, markerscale=0.6)
    return figure


def _mark(name: str) -> str:
    """What stands in the mark: "5" for "configuration 5", "N" for "narrowed ResNet-18"."""
    return name.removeprefix("configuration ")[0].upper()


def _explained(name: str, model: dict[str, Any]) -> str:
    kernel, blocks = model["shortcut_kernel"], ",".join(map(str, model["stage_sizes"]))
    return f"{name}, blocks {blocks}, width {model['width']}, shortcut {kernel}x{kernel}"
