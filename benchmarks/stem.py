"""Whether the first convolution gains from input channels that are zero: three are few for a tensor core.

    python benchmarks/stem.py results/stem-cpu.json

Forward and weight gradient of the 3x3 convolution from 3, 4 and 8 channels to 64, the added ones zero, in turns; the
padding itself is part of what is timed. The results are the same numbers.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from machine import machine
from train_step import seconds_of

from jaxresnet.files import write_json
from jaxresnet.hardware import environment
from jaxresnet.nn.cpu.conv import conv_cpu

CHANNELS = (3, 4, 8)


def passes(channels: int, repeats: int) -> Any:
    """A jitted (images, kernel, doutput) -> (output, kernel's gradient), `repeats` times in one dispatch."""
    platform = jax.devices()[0].platform

    def convolve(images: Array, kernel: Array) -> Array:
        more = channels - images.shape[-1]
        images = jnp.pad(images, ((0, 0), (0, 0), (0, 0), (0, more)))
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, more), (0, 0)))
        conv = conv_cpu if platform == "cpu" else jax.lax.conv_general_dilated
        return conv(images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def both(images: Array, kernel: Array, doutput: Array) -> tuple[Array, Array]:
        output, pull = jax.vjp(lambda kernel: convolve(images, kernel), kernel)
        return output, pull(doutput)[0]

    def many(images: Array, kernel: Array, doutput: Array) -> tuple[Array, Array]:
        output, gradient = both(images, kernel, doutput)
        for _ in range(repeats - 1):  # each waits for the one before
            images, kernel, doutput, output, gradient = jax.lax.optimization_barrier(
                (images, kernel, doutput, output, gradient)
            )
            output, gradient = both(images, kernel, doutput)
        return output, gradient

    return jax.jit(many)


def measure(batch_size: int, precision: str, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.normal(size=shape), precision)
        for shape in ((batch_size, 32, 32, 3), (3, 3, 3, 64), (batch_size, 32, 32, 64))
    ]
    repeats = 1 if jax.devices()[0].platform == "cpu" else 20
    programs = {channels: passes(channels, repeats) for channels in CHANNELS}
    for program in programs.values():
        jax.block_until_ready(program(*arrays))
    times: dict[int, list[float]] = {channels: [] for channels in CHANNELS}
    for turn in range(rounds):
        for channels in CHANNELS if turn % 2 == 0 else CHANNELS[::-1]:
            times[channels].append(seconds_of(programs[channels], *arrays) / repeats)
    return {
        "batch_size": batch_size,
        "precision": precision,
        "seconds": {str(channels): statistics.median(ts) for channels, ts in times.items()},
        "speed_against_3": {
            str(channels): statistics.median(three / t for three, t in zip(times[3], ts, strict=True))
            for channels, ts in times.items()
        },
        "times": {str(channels): ts for channels, ts in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    cases = []
    for precision in args.precisions:
        for batch_size in args.batch_sizes:
            cases.append(case := measure(batch_size, precision, args.rounds))
            figures = ", ".join(
                f"{channels} channels {1e3 * case['seconds'][str(channels)]:.3f} ms "
                f"({case['speed_against_3'][str(channels)]:.2f} x as fast)"
                for channels in CHANNELS
            )
            print(f"batch {batch_size} {precision}: {figures}", flush=True)
            write_json(args.out, {"environment": environment(), "machine": machine(), "cases": cases})


if __name__ == "__main__":
    main()
