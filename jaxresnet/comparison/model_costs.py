"""What networks cost: parameters, multiply-adds and the measured time of a training step, side by side.

measurement.json                             what was counted and measured, with the raw times
model_parameters.md, model_parameters.png    the table and the figure, drawn from it
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import jax

from jaxresnet.config import ModelConfig, to_dict
from jaxresnet.data.synthetic import make_synthetic
from jaxresnet.errors import say
from jaxresnet.files import local_path, write_json
from jaxresnet.hardware import all_devices, environment
from jaxresnet.nn.resnet import count_params
from jaxresnet.nn.summary import count_macs
from jaxresnet.recipes import problem_as_published, problem_here, published
from jaxresnet.reporting.models import render_models
from jaxresnet.results.schemas import MEASUREMENT, measurement_path
from jaxresnet.training.fit import fit

DEMO_WIDTH = 4  # the demo's networks have this fraction of the width: 1 / 4


def measure_models(models: Mapping[str, ModelConfig], folder: str | Path, demo: bool = False) -> str:
    """Count and time all `models` on one device, write the three files, and return the table to print.

    Timed is the whole training step as the published main run has it (augmentation, Adam, Lookahead, totals), in
    float32: batch 128 on a CPU, 512 on accelerators. The networks take turns, so that a machine that slows down for a
    while slows all of them. demo: a quarter of the width, batch 16.
    """
    folder, device = local_path(folder), all_devices()[0]
    on_cpu = device.platform == "cpu"
    batch_size = 16 if demo else 128 if on_cpu else 512
    rounds = 3 if demo else 5
    steps = 2 if demo else 1 if on_cpu else 20  # a turn: accelerators run an epoch of so many in one dispatch
    turns: dict[str, Callable[[], float]] = {}
    for name, model in models.items():
        if problem_here(model) is None:
            timed = replace(model, width=max(1, model.width // DEMO_WIDTH)) if demo else model
            turns[name] = _turn(timed, batch_size, steps, device)
    say(f"timing the training step of {len(turns)} networks; compiling them comes first")
    for turn in turns.values():
        turn()  # compiles, and touches all memory once
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn() / steps)
    measurement = {
        "name": MEASUREMENT,
        "demo": demo,
        "timing": {
            "what": "training step with augmentation, Adam and Lookahead, as in the published run adam_512",
            "batch_size": batch_size,
            "precision": "float32",
            "rounds": rounds,
            "steps_a_round": steps,
            "width": "a quarter" if demo else "full",
        },
        "models": {
            name: {
                "model": to_dict(model),
                "params": count_params(model),
                "macs": count_macs(model),
                "problem_as_published": problem_as_published(model),
                "problem_here": problem_here(model),
                "median_step_seconds": statistics.median(times[name]) if name in times else None,
                "step_seconds": times.get(name),  # one number a round; None for what does not run
            }
            for name, model in models.items()
        },
        "environment": environment([device]),
    }
    write_json(measurement_path(folder), measurement)
    return render_models(folder)


def _turn(model: ModelConfig, batch_size: int, steps: int, device: jax.Device) -> Callable[[], float]:
    """A function that trains for one epoch of `steps` steps and returns the seconds that they took."""
    base = replace(published["adam_512"].config, selection="last", test_every_epoch=False, num_epochs=1)
    config = replace(base, model=replace(model, precision="float32"), batch_size=batch_size, eval_batch_size=batch_size)
    data = make_synthetic(steps * batch_size, batch_size)

    def turn() -> float:
        (row,) = fit(config, data, devices=(device,)).history
        return steps * batch_size / row["images_per_second"]  # of training alone, without compiling

    return turn
