"""What it saves a CPU to train several steps in one dispatch: seconds, and pages of memory asked for anew.

    python benchmarks/steps_per_dispatch.py results/steps_per_dispatch-cpu.json

A program asks the system for its temporary memory whenever it starts, and the kernel clears every page of it at its
first touch. A turn is an epoch of 2,048 images through the library's own engine; dispatches of one step, of a quarter
of the turn and of all of it take turns in one process. For bfloat16 on a CPU that multiplies it: in float32 no steps
can share a dispatch there, as XLA's convolutions are slow in loops.
"""

import argparse
import resource
import statistics
from pathlib import Path
from typing import Any

import jax
from machine import machine
from network import network
from profile_step import training
from turns import seconds

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.hardware import environment, multiplies_bfloat16
from jaxresnet.training.engine import IMAGES_PER_DISPATCH


def measure(model: jr.ModelConfig, batch_size: int, images: int, rounds: int) -> dict[str, Any]:
    config = jr.TrainConfig(model, batch_size=batch_size, val_size=0, selection="last")
    if jax.devices()[0].platform != "cpu" or not multiplies_bfloat16():
        raise SystemExit("needs a CPU that multiplies bfloat16 (or JAXRESNET_CPU_BFLOAT16=1): see --help")
    if images % batch_size:
        raise SystemExit(f"--images {images}: must be a multiple of the batch size {batch_size}")
    train, engine = training(config, images)
    steps = images // batch_size

    def run(steps_per_dispatch: int) -> tuple[float, float]:
        """(seconds, pages) a step."""
        engine.steps_per_dispatch = steps_per_dispatch
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        taken = seconds(train)
        return taken / steps, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps

    counts = sorted({1, max(1, steps // 4), steps})
    for count in counts:
        run(count)  # compiles
    turns: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for turn in range(rounds):
        for count in counts if turn % 2 == 0 else counts[::-1]:
            turns[count].append(run(count))
    alone = [taken for taken, _ in turns[1]]

    def row(count: int) -> dict[str, Any]:
        taken, pages = zip(*turns[count], strict=True)
        ratios = [one / t for one, t in zip(alone, taken, strict=True)]
        return {
            "steps_per_dispatch": count,
            "step_seconds": statistics.median(taken),
            "pages_a_step": statistics.median(pages),
            "speed_against_1": statistics.median(ratios),
            "speed_against_1_quartiles": statistics.quantiles(ratios, method="inclusive")[::2] if rounds > 1 else None,
            "times": taken,
        }

    case = {"batch_size": batch_size, "width": model.width, "stage_sizes": list(model.stage_sizes), "images": images}
    return {**case, "dispatches": [row(count) for count in counts]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--images", type=int, default=IMAGES_PER_DISPATCH, help="of a turn (default: %(default)s)")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--stage-sizes", type=int, nargs="+", default=[1, 1, 1, 1])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    model = network(args.stage_sizes, args.width, "bfloat16")
    cases = []
    for batch_size in args.batch_sizes:
        cases.append(case := measure(model, batch_size, args.images, args.rounds))
        for one in case["dispatches"]:
            print(
                f"batch {batch_size}, steps a dispatch {one['steps_per_dispatch']}: {1e3 * one['step_seconds']:.0f} ms "
                f"and {one['pages_a_step']:,.0f} pages a step, {one['speed_against_1']:.2f} x as fast as one",
                flush=True,
            )
        write_json(args.out, {"environment": environment(), "machine": machine(), "cases": cases})


if __name__ == "__main__":
    main()
