"""The network's convolutions on a CPU, all three passes, in the library's way, in XLA's, and in others that were tried.

    python benchmarks/conv_passes.py results/conv_passes-cpu.json

For each 3x3 convolution with more than the stem's channels, a batch of images and both precisions, one program computes
the output, the gradient of the images and that of the kernel:

- `library`: `jaxresnet.nn.cpu.conv.conv_cpu` as a network on this CPU takes it (bfloat16 as on one that multiplies it).
- `XLA`: `lax.conv_general_dilated` and its gradients.
- `at once`: the library's, without chunks of the batch. `half`, `double`: with chunks of half and twice the size.
- `unrolled`: the loop over chunks unrolled, to see whether a loop is slower on the inside.
- `16 rows`: with 16 rows of zeros, not one, to keep a transposed matrix out of a product.

They take turns, and the speed is the median over turns of the ratio of seconds. Results are written over those of the
turn before, so that no fresh memory is paid for.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
from jax import lax
from machine import machine
from train_step import seconds

from jaxresnet.files import write_json
from jaxresnet.hardware import environment
from jaxresnet.nn.cpu import chunks
from jaxresnet.nn.cpu.conv import CPU_COMPILER_OPTIONS, conv_cpu
from jaxresnet.reporting.tables import aligned

CHUNK = chunks.NUMBERS_PER_CHUNK
WAYS: dict[str, Any] = {
    "library": None,
    "XLA": None,
    "at once": ("jaxresnet.nn.cpu.chunks.NUMBERS_PER_CHUNK", 2**60),
    "half": ("jaxresnet.nn.cpu.chunks.NUMBERS_PER_CHUNK", CHUNK // 2),
    "double": ("jaxresnet.nn.cpu.chunks.NUMBERS_PER_CHUNK", CHUNK * 2),
    "unrolled": ("jax.lax.fori_loop", partial(lax.fori_loop, unroll=True)),
    "16 rows": ("jaxresnet.nn.cpu.products._ZERO_ROWS", 16),
}


def passes(way: str, stride: int) -> Any:
    """(results to overwrite, images, kernel, doutput) -> (output, dimages, dkernel)"""

    def compute(_: Any, images: jax.Array, kernel: jax.Array, doutput: jax.Array) -> Any:
        conv: Any = lax.conv_general_dilated if way == "XLA" else conv_cpu
        layout = ("NHWC", "HWIO", "NHWC")
        output, pull = jax.vjp(
            lambda *a: conv(*a, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layout), images, kernel
        )
        return output, *pull(doutput)

    return jax.jit(compute, donate_argnums=0, keep_unused=True, compiler_options=CPU_COMPILER_OPTIONS)


def measure(batch: int, side: int, channels: int, stride: int, precision: str, pairs: int) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    features, outputs = channels * stride, side // stride
    images = jax.random.normal(keys[0], (batch, side, side, channels), precision)
    kernel = jax.random.normal(keys[1], (3, 3, channels, features), precision) / channels
    doutput = jax.random.normal(keys[2], (batch, outputs, outputs, features), precision)
    results = {way: (jnp.zeros_like(doutput), jnp.zeros_like(images), jnp.zeros_like(kernel)) for way in WAYS}
    programs = {}
    for way, change in WAYS.items():
        with patch(*change) if change else patch.dict({}):
            traced = passes(way, stride).lower(results[way], images, kernel, doutput)
        programs[way] = traced.compile()

    def run(way: str) -> None:
        results[way] = jax.block_until_ready(programs[way](results[way], images, kernel, doutput))

    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(pairs + 1):
        for way in list(WAYS)[:: 1 if turn % 2 else -1]:
            times[way].append(seconds(partial(run, way)))
    times = {way: each[1:] for way, each in times.items()}  # but the first
    medians = {way: statistics.median(each) for way, each in times.items()}
    return {
        "batch_size": batch,
        "images": list(images.shape[1:]),
        "features": features,
        "stride": stride,
        "precision": precision,
        "seconds": medians,
        "library_flops": 6 * doutput.size * 9 * channels / medians["library"],
        "library_times_as_fast_as": {
            way: statistics.median(b / a for a, b in zip(times["library"], times[way], strict=True)) for way in WAYS
        },
        "times": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5, help="turns of each")
    args = parser.parse_args()
    stages = [(32 // 2**i, args.width * 2**i) for i in range(4)]
    layers = [*((side, channels, 1) for side, channels in stages), *((*stage, 2) for stage in stages[:-1])]
    cases: list[dict[str, Any]] = []
    rows = [["precision", "images", "stride", "library, ms", "GFLOP/s", *(f"against {way}" for way in list(WAYS)[1:])]]
    for precision in ("float32", "bfloat16"):
        for side, channels, stride in layers:
            cases.append(case := measure(args.batch_size, side, channels, stride, precision, args.pairs))
            write_json(args.out, {"environment": environment(), "machine": machine(), "chunk": CHUNK, "cases": cases})
            against = [f"{case['library_times_as_fast_as'][way]:.2f}" for way in list(WAYS)[1:]]
            shape = "x".join(map(str, case["images"]))
            milliseconds = f"{1e3 * case['seconds']['library']:.0f}"
            rows.append([precision, shape, str(stride), milliseconds, f"{case['library_flops'] / 1e9:.0f}", *against])
            print("  ".join(rows[-1]), flush=True)
    print(aligned(rows))


if __name__ == "__main__":
    main()
