"""What augmentation costs, as share of a training step, and beside other ways of writing it.

    python benchmarks/augmentation.py results/augmentation-cpu.json

All ways give the same bits, from the same plan, for whole batches of 50,000 images on the device:

- `library`: `jaxresnet.data.augment`. The batch is gathered, padded, and each image cut out of its padded self by a slice
  that starts where the plan says (XLA makes a gather of it), then mirrored.
- `pixels`: one gather, which finds each pixel of the result in the data set itself, with a mask for the border.
- `offsets`: one static slice of the padded batch for each of the nine rows, then columns, where a crop may start; each
  image takes its own of them. No gather but that of the batch.

They take turns. A unit is one batch on CPU, and 97 in one dispatch on accelerators, as in training. The step that they
are a share of is the library's own, measured in the same process.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from machine import machine
from train_step import our_step, seconds, seconds_of

import jaxresnet as jr
from jaxresnet.data.augment import cutout, normalise
from jaxresnet.files import write_json
from jaxresnet.hardware import environment


def library(images: Array, rows: Any, augment: jr.AugmentConfig) -> Array:
    return jr.augment_batch(images[rows.order], rows, augment)


def pixels(images: Array, rows: Any, augment: jr.AugmentConfig) -> Array:
    pad, (height, width) = augment.crop_padding, images.shape[1:3]
    x = jnp.where(rows.flip[:, None], width - 1 - jnp.arange(width), jnp.arange(width))
    y, x = jnp.arange(height) + (rows.crop_y[:, None] - pad), x + (rows.crop_x[:, None] - pad)
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    taken = images[
        rows.order[:, None, None], jnp.clip(y, 0, height - 1)[:, :, None], jnp.clip(x, 0, width - 1)[:, None]
    ]
    return cutout(normalise(jnp.where(inside[..., None], taken, 0)), rows, augment)


def offsets(images: Array, rows: Any, augment: jr.AugmentConfig) -> Array:
    pad, (height, width) = augment.crop_padding, images.shape[1:3]
    padded = jnp.pad(images[rows.order], ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def own(batch: Array, starts: Array, axis: int, length: int) -> Array:
        slices = [lax.slice_in_dim(batch, i, i + length, axis=axis) for i in range(2 * pad + 1)]
        return lax.select_n(jnp.broadcast_to(starts[:, None, None, None], slices[0].shape), *slices)

    cropped = own(own(padded, rows.crop_y, 1, height), rows.crop_x, 2, width)
    flipped = jnp.where(rows.flip[:, None, None, None], cropped[:, :, ::-1], cropped)
    return cutout(normalise(flipped), rows, augment)


WAYS = {"library": library, "pixels": pixels, "offsets": offsets}


def batches(way: Callable[..., Array], augment: jr.AugmentConfig, size: int, count: int, dtype: str) -> Any:
    """A jitted (images, plan) -> `count` batches, each reduced to a number so that none need be kept."""

    def batch(images: Array, plan: Any, i: Array) -> Array:
        rows = jax.tree.map(lambda column: lax.dynamic_slice_in_dim(column, i * size, size), plan)
        return lax.optimization_barrier(way(images, rows, augment).astype(dtype))  # written out, as for a network

    if count == 1:
        return jax.jit(lambda images, plan: batch(images, plan, jnp.int32(0)))
    return jax.jit(
        lambda images, plan: lax.map(lambda i: batch(images, plan, i)[:, 0, 0, 0], jnp.arange(count, dtype=jnp.int32))
    )


def measure(batch_size: int, num_images: int, pairs: int, width: int, dtype: str) -> dict[str, Any]:
    model = jr.ModelConfig(width=width, precision=dtype)  # type: ignore[arg-type]
    config = jr.TrainConfig(batch_size=batch_size, val_size=0, selection="last", model=model)
    count = 1 if jax.devices()[0].platform == "cpu" else num_images // batch_size
    rng = np.random.default_rng(0)
    data = jr.Split(
        rng.integers(0, 256, (num_images, 32, 32, 3), np.uint8), rng.integers(0, 10, num_images).astype(np.int32)
    )
    images = jnp.asarray(data.images)
    plan = jax.jit(partial(jr.epoch_plan, num_examples=num_images, augment=config.augment))(jax.random.key(0), 0)
    rows = jax.tree.map(lambda column: column[:batch_size], plan)
    results = {name: np.asarray(way(images, rows, config.augment)) for name, way in WAYS.items()}
    for name, result in results.items():
        assert (result == results["library"]).all(), name

    programs = {name: batches(way, config.augment, batch_size, count, dtype) for name, way in WAYS.items()}
    step, _, _ = our_step(config, data, 2 if count == 1 else count)
    step()
    times: dict[str, list[float]] = {name: [] for name in [*WAYS, "step"]}
    for program in programs.values():
        jax.block_until_ready(program(images, plan))
    for turn in range(pairs):
        for name in list(WAYS) if turn % 2 == 0 else list(WAYS)[::-1]:
            times[name].append(seconds_of(programs[name], images, plan) / count)
        if turn < 3:
            times["step"].append(seconds(step) / (2 if count == 1 else count))
    medians = {name: statistics.median(ts) for name, ts in times.items()}
    return {
        "batch_size": batch_size,
        "dtype": dtype,
        "batches_a_dispatch": count,
        "seconds_a_batch": medians,
        "times": times,
        "against_library": {
            name: statistics.median(b / a for a, b in zip(times["library"], times[name], strict=True)) for name in WAYS
        },
        "share_of_step": medians["library"] / medians["step"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--pairs", type=int, default=15, help="turns of each")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the network")
    args = parser.parse_args()
    cases = []
    for batch_size in args.batch_sizes:
        cases.append(case := measure(batch_size, args.images, args.pairs, args.width, args.dtype))
        ways = ", ".join(
            f"{name} {1e3 * case['seconds_a_batch'][name]:.3f} ms ({case['against_library'][name]:.2f} x)"
            for name in WAYS
        )
        print(f"batch {batch_size}: {ways}; {100 * case['share_of_step']:.2f} % of a step", flush=True)
        write_json(args.out, {"environment": environment(), "machine": machine(), "cases": cases})


if __name__ == "__main__":
    main()
