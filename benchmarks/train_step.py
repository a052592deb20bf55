"""Speed, compile time and memory of the training step, against a plain jitted Flax + Optax step on the same model.

    python benchmarks/train_step.py --pairs 3 results/train_step-cpu.json

For each batch size and precision: images/s, seconds an epoch of 50,000 images, compile seconds, and the peak memory of
a process that holds 50,000 images, trains, evaluates and saves. Ours augments and keeps totals, the plain step does
neither. The two take turns in one process and the ratio is the median over pairs, so a machine that slows down for a
while slows both. Each case has a process of its own, for its memory to be its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from library_step import IMAGES_PER_EPOCH, LibraryStep, make_config, peak_memory, steps_of_a_turn
from machine import machine
from turns import seconds, speed_against

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.hardware import environment


def plain_step(config: jr.TrainConfig, data: jr.Split, steps: int) -> Callable[[], None]:
    """The textbook version: the same network and Adam, one `jax.jit`, normalised images, no augmentation."""
    tx = optax.adam(config.optim.learning_rate)
    network = jr.ResNet(config.model, rngs=nnx.Rngs(0))
    graphdef = nnx.graphdef(network)
    params, rest = map(nnx.as_pure, nnx.state(network, nnx.Param, ...))

    def step(params: Any, rest: Any, opt_state: Any, batch: jax.Array, targets: jax.Array) -> tuple[Any, Any, Any]:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graphdef, params, rest)
            losses = optax.softmax_cross_entropy_with_integer_labels(model(batch, True).astype(jnp.float32), targets)
            return losses.mean(), nnx.as_pure(nnx.state(model, nnx.Param, ...)[1])

        grads, new_rest = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), new_rest, opt_state

    jitted = jax.jit(step, donate_argnums=(0, 1, 2))
    carry = (params, rest, tx.init(params))
    size = config.batch_size
    normalised = jnp.asarray(data.images[: steps * size], jnp.float32) / 128 - 1
    targets = jnp.asarray(data.labels[: steps * size])
    batches = [(normalised[i : i + size], targets[i : i + size]) for i in range(0, steps * size, size)]

    def run() -> None:
        nonlocal carry
        for batch in batches:
            carry = jitted(*carry, *batch)
        jax.block_until_ready(carry)

    return run


def measure(batch_size: int, precision: str, pairs: int) -> dict[str, Any]:
    config = make_config(jr.ModelConfig(precision=precision), batch_size)  # type: ignore[arg-type]
    platform = jax.devices()[0].platform
    steps = steps_of_a_turn(platform, precision, batch_size)
    count = IMAGES_PER_EPOCH if platform == "cpu" else steps * batch_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    data = jr.Split(images, rng.integers(0, 10, count).astype(np.int32))

    ours = LibraryStep(config, data, steps)
    ours.run()
    ours.run()
    ours.evaluate_and_save()
    memory = peak_memory()  # of all that a run holds, before the rival allocates anything
    plain = plain_step(config, data, steps)
    plain()
    times = [(seconds(ours.run), seconds(plain)) for _ in range(pairs)]
    our_times, plain_times = map(list, zip(*times, strict=True))
    against = speed_against(our_times, plain_times)
    step = statistics.median(our_times) / steps
    return {
        "batch_size": batch_size,
        "precision": precision,
        "images_per_second": batch_size / step,
        "seconds_per_epoch": IMAGES_PER_EPOCH / batch_size * step,
        "step_seconds": sorted(t / steps for t in our_times),
        "plain_images_per_second": batch_size * steps / statistics.median(plain_times),
        "speed_against_plain": against["speed"],
        "speed_against_plain_range": against["range"],
        "compile_seconds": ours.compile_seconds,
        "peak_memory_bytes": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs of ours and plain")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)  # what the child processes run
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(int(args.case[0]), args.case[1], args.pairs)))
        return
    rows: list[dict[str, Any]] = []
    found = {"environment": environment(), "machine": machine(), "pairs": args.pairs, "cases": rows}
    for precision in args.precisions:
        for batch_size in args.batch_sizes:
            command = [sys.executable, __file__, "--pairs", str(args.pairs), "--case", str(batch_size), precision]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(row := json.loads(result.stdout))
            print(
                f"batch {batch_size} {precision}: {row['images_per_second']:.1f} images/s, "
                f"{row['seconds_per_epoch']:.0f} s an epoch, {row['speed_against_plain']:.2f} x plain, "
                f"compile {row['compile_seconds']:.1f} s, {row['peak_memory_bytes'] / 2**30:.2f} GiB",
                flush=True,
            )
            if args.out:
                write_json(args.out, found)


if __name__ == "__main__":
    main()
