"""As many runs as a CPU has cores: side by side on one device, or one after the other on a device a core.

    python benchmarks/spread.py results/spread-cpu.json

A unit is a whole `jr.compare` of one arm with new seeds, one epoch each on drawn images: trained, evaluated, saved and
drawn, with everything compiled before. Both ways are a process of their own, since JAX chooses its CPU devices at its
start, and take turns. The speed is the median over turns of the ratio of their seconds.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from machine import machine
from turns import Contender, Unit, resident_peak, serve, speed_against, take_turns

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.hardware import environment, num_cores, use_cores

WAYS = ("runs", "data")  # of `spread` in `jr.compare`


def set_up(spread: Any, case: dict[str, Any]) -> Unit:
    if spread == "data" and not use_cores():
        raise RuntimeError("the cores cannot be devices: one core alone, or JAX has been told how many devices to take")
    data = jr.make_synthetic(case["images"], 500)
    model = jr.ModelConfig(width=case["width"], precision=case["precision"])
    config = jr.TrainConfig(model=model, batch_size=case["batch_size"], num_epochs=1, val_size=0, selection="last")
    seeds = itertools.count()

    def run() -> None:
        with tempfile.TemporaryDirectory() as out:
            these = list(itertools.islice(seeds, num_cores()))
            jr.compare({"Adam + Lookahead": config}, these, data, out, spread=spread, progress=False)

    return Unit(run, resident_peak, lambda: {"num_devices": jax.device_count()})


def measure(case: dict[str, Any], rounds: int, timeout: float) -> dict[str, Any]:
    """Of one case, with what was found."""
    here = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    with ExitStack() as stack:
        contenders = []
        for way in WAYS:
            command = [sys.executable, __file__, "--worker", way, json.dumps(case)]
            contenders.append(stack.enter_context(Contender(way, command, here, timeout)))
            contenders[-1].wait_until_ready()
        take_turns(contenders, rounds)
    for contender in contenders:
        if contender.failure:
            raise SystemExit(f"spread: {contender.name}: {contender.failure}")
    images = case["images"] * num_cores()
    rows = {
        c.name: {
            "images_per_second": images / statistics.median(c.units),
            "turn_seconds": c.units,
            "peak_memory_bytes": c.peak_memory,
            **c.ready,
        }
        for c in contenders
    }
    speed = speed_against(*(contender.units for contender in contenders))
    return {**case, "runs": num_cores(), "ways": rows, "side_by_side_against_data": speed}


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        serve(lambda: set_up(sys.argv[2], json.loads(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--images", type=int, default=4096, help="that a run trains on (default: %(default)s)")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a start, or a turn")
    args = parser.parse_args()
    found: dict[str, Any] = {"environment": environment(), "machine": machine(), "cases": []}
    for batch_size in args.batch_sizes:
        numbers = {"batch_size": batch_size, "precision": args.precision, "images": args.images, "width": args.width}
        case = measure(numbers, args.pairs, args.timeout)
        found["cases"].append(case)
        write_json(args.out, found)
        speed = case["side_by_side_against_data"]
        for way, row in case["ways"].items():
            memory = row["peak_memory_bytes"] / 2**30
            print(f"batch {batch_size}, {way}: {row['images_per_second']:,.0f} images/s, {memory:.2f} GiB")
        print(f"  side by side {speed['speed']:.2f} times as fast ({speed['range'][0]:.2f} to {speed['range'][1]:.2f})")


if __name__ == "__main__":
    main()
