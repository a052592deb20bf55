"""What networks cost: parameters, multiply-adds and the measured time of a training step, side by side.

`published_models` are the eight configurations that the published project counted parameters of. As written there,
five of them fail in the forward pass; `published_problem` says why, from the shapes.

    measurement.json                             what was counted and measured, with the raw times
    model_parameters.md, model_parameters.png    the table and the figure, drawn from it
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxresnet.config import ModelConfig, to_dict
from jaxresnet.errors import ConfigError
from jaxresnet.files import write_bytes, write_json, write_text
from jaxresnet.hardware import environment
from jaxresnet.nn.summary import PARAMETER_BUDGET, count_macs, layers
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.recipes import published
from jaxresnet.reporting.figure_models import draw_models
from jaxresnet.reporting.tables import aligned, as_bullets, as_markdown, markdown_text, without_columns
from jaxresnet.results.measurement import NAME, measurement_path, read_measurement
from jaxresnet.training.engine import make_engine, replicate

published_models: dict[str, ModelConfig] = {
    "configuration 1": ModelConfig(stage_sizes=(2, 2, 2, 2), shortcut_kernel=3),
    "configuration 2": ModelConfig(shortcut_kernel=3),
    "configuration 3": ModelConfig(shortcut_kernel=2),
    "configuration 4": ModelConfig(stage_sizes=(2, 2, 2, 2)),
    "configuration 5": ModelConfig(),  # the chosen one
    "configuration 6": ModelConfig(pool_size=2),
    "configuration 7": ModelConfig(pool_size=8),
    "configuration 8": ModelConfig(pool_size=16),
}

DEMO_WIDTH = 4  # the demo's networks have this fraction of the width: 1 / 4


def published_problem(model: ModelConfig, image_size: int = 32) -> str | None:
    """Why the published code would fail in the forward pass of this network, or None where it runs.

    There the projection shortcut had no padding, and the linear layer took one number a channel of the pooled map.
    """
    side = image_size
    for stage in range(2, len(model.stage_sizes) + 1):
        path = (side + 2 * 1 - 3) // 2 + 1  # two convolutions of 3x3, the first with stride 2, both padded by 1
        shortcut = (side - model.shortcut_kernel) // 2 + 1  # stride 2, no padding
        if shortcut != path:
            k = model.shortcut_kernel
            return (
                f"the {k}x{k} shortcut of stage {stage}, which is not padded, makes {shortcut}x{shortcut} of a "
                f"{side}x{side} map; it cannot be added to the {path}x{path} of the two convolutions"
            )
        side = path
    pool, channels = model.pool_size, model.width * 2 ** (len(model.stage_sizes) - 1)
    pooled = side // pool
    if pooled == 0:
        return f"a pool of {pool}x{pool} leaves nothing of the last {side}x{side} map"
    if pooled > 1:
        return (
            f"a pool of {pool}x{pool} leaves {pooled}x{pooled} of the last {side}x{side} map: "
            f"{channels * pooled**2:,} numbers, where the linear layer takes {channels:,}"
        )
    return None


def problem_here(model: ModelConfig) -> str | None:
    """Why this library refuses to run the network, or None where it runs."""
    try:
        model.check_pool()
    except ConfigError as e:
        return str(e)
    return None


def count_parameters(model: ModelConfig) -> int:
    """`count_params` from the list of layers, without tracing the network."""
    return sum(layer.params for layer in layers(model))


def widest_under_budget(model: ModelConfig, budget: int = PARAMETER_BUDGET) -> ModelConfig:
    """`model` with the largest width that leaves it below `budget` parameters. Raises ConfigError if none does."""
    width = 0
    while count_parameters(replace(model, width=width + 1)) < budget:
        width += 1
    if width == 0:
        raise ConfigError(f"budget={budget}: {model} has as many parameters or more at any width")
    return replace(model, width=width)


# ---------------------------------------------------------------------------------------------------- measurement


def measure_models(models: Mapping[str, ModelConfig], folder: str | Path, demo: bool = False) -> str:
    """Count and time all `models` on one device, write the three files, and return the table to print.

    Timed is the whole training step as the published main run has it (augmentation, Adam, Lookahead, totals), in
    float32: batch 128 on a CPU, 512 on accelerators. The networks take turns, so that a machine that slows down for a
    while slows all of them. demo: a quarter of the width, batch 16.
    """
    device = jax.local_devices()[0]
    on_cpu = device.platform == "cpu"
    batch_size = 16 if demo else 128 if on_cpu else 512
    rounds = 3 if demo else 5
    steps = 2 if demo else 1 if on_cpu else 20  # a turn: accelerators run an epoch of so many in one dispatch
    turns: dict[str, Callable[[], float]] = {}
    for name, model in models.items():
        if problem_here(model) is None:
            timed = replace(model, width=max(1, model.width // DEMO_WIDTH)) if demo else model
            turns[name] = _turn(timed, batch_size, steps, device)
    print(f"timing the training step of {len(turns)} networks; compiling them comes first", flush=True)
    for turn in turns.values():
        turn()  # compiles, and touches all memory once
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn() / steps)
    measurement = {
        "name": NAME,
        "demo": demo,
        "timing": {
            "what": "training step with augmentation, Adam and Lookahead, as in the published run adam_512",
            "batch_size": batch_size,
            "precision": "float32",
            "rounds": rounds,
            "steps_a_round": steps,
            "width": "a quarter" if demo else "full",
        },
        "models": {name: _counts(model) | _medians(times.get(name)) for name, model in models.items()},
        "environment": environment([device]),
    }
    folder = Path(folder)
    text = _write(folder, measurement)
    write_json(measurement_path(folder), measurement)  # last: what holds it is finished
    return text


def render_models(folder: str | Path) -> str:
    """Write table and figure again from the measurement.json in `folder`, and return the table.

    Raises ResultsError where that is damaged or foreign."""
    return _write(Path(folder), read_measurement(folder))


def _turn(model: ModelConfig, batch_size: int, steps: int, device: jax.Device) -> Callable[[], float]:
    """A function that trains for one epoch of `steps` steps and returns the seconds that it took."""
    base = published["adam_512"].config
    config = replace(base, model=replace(model, precision="float32"), batch_size=batch_size)
    rng = np.random.default_rng(0)  # noise: what an image shows does not change how long a step takes
    num_images = steps * batch_size
    engine = make_engine(config, num_images, (device,))
    images = replicate(rng.integers(0, 256, (num_images, 32, 32, 3), np.uint8), engine.devices)
    labels = replicate(rng.integers(0, model.num_classes, num_images, np.int32), engine.devices)
    state, hypers = engine.init(0), hypers_of(config.optim)

    def turn() -> float:
        nonlocal state
        start = time.perf_counter()
        state, totals = engine.train_epoch(state, engine.zero_totals(), hypers, images, labels, 0)
        jax.block_until_ready((state, totals))
        return time.perf_counter() - start

    return turn


def _counts(model: ModelConfig) -> dict[str, Any]:
    return {
        "model": to_dict(model),
        "params": count_parameters(model),
        "macs": count_macs(model),
        "problem_as_published": published_problem(model),
        "problem_here": problem_here(model),
    }


def _medians(seconds: list[float] | None) -> dict[str, Any]:
    """seconds: a step's, one number a round; None for what does not run."""
    return {"median_step_seconds": statistics.median(seconds) if seconds else None, "step_seconds": seconds}


# ------------------------------------------------------------------------------------------------ table and figure


def _write(folder: Path, measurement: dict[str, Any]) -> str:
    table, notes = _table(measurement), _notes(measurement)
    blocks = [
        "# Parameters, multiply-adds and step time of the published configurations",
        as_markdown(table),
        "\n".join(f"- {markdown_text(note)}" for note in notes),
        "![Parameters and multiply-adds against step time](model_parameters.png)",
        "## Environment",
        as_bullets(measurement["environment"]),
    ]
    write_text(folder / "model_parameters.md", "\n\n".join(blocks) + "\n")
    write_bytes(folder / "model_parameters.png", draw_models(measurement, PARAMETER_BUDGET))
    narrow = without_columns(table, ["least to most"])  # the terminal has no room for all
    return "\n".join([aligned(narrow), "", *notes, "", f"figure   {folder / 'model_parameters.png'}"])


def _table(measurement: dict[str, Any]) -> list[list[str]]:
    header = [
        *("network", "blocks", "width", "shortcut", "pool", "parameters", "multiply-adds", "as published", "here"),
        *("step (ms)", "least to most", "images/s"),
    ]
    rows = [header]
    batch_size = measurement["timing"]["batch_size"]
    for name, one in measurement["models"].items():
        model, seconds = one["model"], one["step_seconds"]
        kernel, pool = model["shortcut_kernel"], model["pool_size"]
        verdicts = ["fails" if one["problem_as_published"] else "runs", "refused" if one["problem_here"] else "runs"]
        timing = ["", "", ""]
        if seconds:
            median = one["median_step_seconds"]
            spread = f"{_ms(min(seconds))} to {_ms(max(seconds))}"
            timing = [_ms(median), spread, f"{batch_size / median:,.0f}"]
        blocks, width = ",".join(map(str, model["stage_sizes"])), str(model["width"])
        shape = [blocks, width, f"{kernel}x{kernel}", f"{pool}x{pool}"]
        rows.append([name, *shape, f"{one['params']:,}", f"{one['macs']:,}", *verdicts, *timing])
    return rows


def _ms(seconds: float) -> str:
    """Milliseconds with three digits or more."""
    ms = 1000 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}"


def _notes(measurement: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the table, a sentence a line."""
    timing, device = measurement["timing"], measurement["environment"]["device"]
    width = "" if timing["width"] == "full" else f", of networks with {timing['width']} of the width given here"
    notes = [
        f"Step: {timing['what']}, batch {timing['batch_size']}, {timing['precision']}{width}, on {device}; median of "
        f"{timing['rounds']} rounds of {timing['steps_a_round']} in which the networks take turns.",
        "Multiply-adds: of the forward pass for one image. Parameters: trainable ones; the budget is "
        f"{PARAMETER_BUDGET:,}.",
    ]
    for key, what in (("problem_as_published", "as published"), ("problem_here", "here")):
        reasons: dict[str, list[str]] = {}
        for name, one in measurement["models"].items():
            if one[key]:
                reasons.setdefault(one[key], []).append(name)
        notes += [f"{' and '.join(names)} {what}: {reason}." for reason, names in reasons.items()]
    return notes
