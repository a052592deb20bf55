"""Speed, compile time and memory of the training step, against a plain jitted Flax + Optax step on the same model.

    python benchmarks/train_step.py results/train_step-cpu.json

For batch 128 and 512 in float32 and bfloat16 it reports images/s, seconds an epoch of 50,000 images, compile seconds,
peak memory of a process that holds 50,000 images, trains, evaluates and saves, and the share of the device's peak,
which is taken as the speed of a large matrix product measured in the same process. Ours and the plain step take turns
in one process and the ratio is the median over pairs, so that a machine that slows down for a while slows both. Each
case has a process of its own, for its memory to be its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from machine import machine
from turns import resident_peak

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.hardware import environment
from jaxresnet.nn.cpu.conv import convolves_in_loops
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.training.checkpoint import Checkpoints
from jaxresnet.training.engine import IMAGES_PER_DISPATCH, make_engine, replicate
from jaxresnet.training.metrics import cross_entropy
from jaxresnet.training.state import eval_variables

IMAGES_PER_EPOCH = 50_000


def our_step(config: jr.TrainConfig, data: jr.Split, steps: int) -> tuple[Callable[[], None], Any, Any]:
    """(run the first `steps` steps of an epoch over `data` and wait, evaluate 1,000 images and save, engine): as `fit`
    does it, with augmentation, Adam, totals and all. These must be whole dispatches, else the first raises ValueError:
    on accelerators all steps of the epoch, on a CPU see `Engine`."""
    engine = make_engine(config, data.num_examples)
    images, labels = replicate(tuple(data), engine.devices)
    state, hypers = engine.init(0), hypers_of(config.optim)

    def run() -> None:
        nonlocal state
        last = steps * config.batch_size
        totals = engine.zero_totals()
        state, totals = engine.train_epoch(
            state, totals, hypers, images, labels, 0, after_step=lambda done, *_: done >= last
        )
        if (ran := int(totals.steps)) != steps:  # this waits
            raise ValueError(f"a turn of {steps} steps came to {ran}: a dispatch is {engine.dispatch}")

    def evaluate_and_save() -> None:
        sums = engine.evaluate(eval_variables(state), images[:1000], labels[:1000])
        jax.block_until_ready(sums)
        with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
            checkpoints.save(state, engine.zero_totals(), {}, None)

    return run, evaluate_and_save, engine


def plain_step(config: jr.TrainConfig, data: jr.Split, steps: int) -> Callable[[], None]:
    """The textbook version: the same network and Adam, one `jax.jit`, normalised images, no augmentation."""
    tx = optax.adam(config.optim.learning_rate)
    network = jr.ResNet(config.model, rngs=nnx.Rngs(0))
    graphdef = nnx.graphdef(network)
    params, rest = map(nnx.as_pure, nnx.state(network, nnx.Param, ...))

    def step(params: Any, rest: Any, opt_state: Any, batch: jax.Array, targets: jax.Array) -> tuple[Any, Any, Any]:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graphdef, params, rest)
            logits = model(batch, True)
            return cross_entropy(logits, targets).mean(), nnx.as_pure(nnx.state(model, nnx.Param, ...)[1])

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


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def seconds_of(program: Callable[..., Any], *args: Any) -> float:
    """Of a call, until its results are there."""
    return seconds(lambda: jax.block_until_ready(program(*args)))


@jax.jit
def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Added up in float32: only so XLA:CPU multiplies bfloat16 as bfloat16."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def matmul_flops(precision: str) -> float:
    """Floating-point operations a second of a large square matrix product, best of seven."""
    size = 2048 if jax.devices()[0].platform == "cpu" else 8192
    a = jnp.ones((size, size), precision)
    jax.block_until_ready(product(a, a))
    return 2 * size**3 / min(seconds(lambda: jax.block_until_ready(product(a, a))) for _ in range(7))


def peak_memory() -> int:
    """Bytes: the device's own count where it has one, else the process's largest resident size."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or resident_peak()


def measure(batch_size: int, precision: str, pairs: int) -> dict[str, Any]:
    base = jr.TrainConfig(batch_size=batch_size, val_size=0, selection="last")
    config = replace(base, model=jr.ModelConfig(precision=precision), optim=jr.OptimConfig(lookahead=False))  # type: ignore[arg-type]
    # A whole epoch where one dispatch holds it; on CPU what a dispatch holds, where that is one step, two of them.
    platform = jax.devices()[0].platform
    images_of_a_turn = IMAGES_PER_EPOCH if platform != "cpu" else IMAGES_PER_DISPATCH
    steps = max(1, images_of_a_turn // batch_size) if convolves_in_loops(platform, precision) else 2
    count = IMAGES_PER_EPOCH if platform == "cpu" else steps * batch_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    data = jr.Split(images, rng.integers(0, 10, count).astype(np.int32))

    ours, evaluate_and_save, engine = our_step(config, data, steps)
    ours()
    ours()
    evaluate_and_save()
    memory = peak_memory()  # of all that a run holds, before the rival allocates anything
    plain = plain_step(config, data, steps)
    plain()
    times = [(seconds(ours), seconds(plain)) for _ in range(pairs)]
    step = statistics.median(t for t, _ in times) / steps
    flops = 3 * 2 * jr.count_macs(config.model) * batch_size / step
    peak = matmul_flops(precision)
    return {
        "batch_size": batch_size,
        "precision": precision,
        "images_per_second": batch_size / step,
        "seconds_per_epoch": IMAGES_PER_EPOCH / batch_size * step,
        "step_seconds": sorted(t / steps for t, _ in times),
        "plain_images_per_second": batch_size * steps / statistics.median(t for _, t in times),
        "speed_against_plain": statistics.median(p / t for t, p in times),
        "speed_against_plain_range": [min(p / t for t, p in times), max(p / t for t, p in times)],
        "compile_seconds": engine.compile_seconds,
        "peak_memory_bytes": memory,
        "matmul_flops": peak,
        "share_of_matmul": flops / peak,
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
                f"compile {row['compile_seconds']:.1f} s, {row['peak_memory_bytes'] / 2**30:.2f} GiB, "
                f"{100 * row['share_of_matmul']:.0f} % of a matrix product",
                flush=True,
            )
            if args.out:
                write_json(args.out, found)


if __name__ == "__main__":
    main()
