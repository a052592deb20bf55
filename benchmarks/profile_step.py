"""Where the time of a training step goes: its operations, what each is in the network, and how fast it could be.

    python benchmarks/profile_step.py results/profile_step-cpu.json --batch-size 128 --precision float32

It trains through the library's own engine (an epoch in one dispatch on accelerators, a few steps on CPU), records one
short epoch with `jax.profiler`, and matches what ran with the instructions of the compiled program. Beside the
seconds of each operation stands its floor, the larger of two times: its floating-point operations at the speed of a
large matrix product or convolution, and its operands and result, each once, at the speed at which a large array is read
and written. Both speeds are measured in the same process. Numbers that are still in a cache come faster than that:
there a floor can lie above what was seen.

Seconds are of the wall clock, and an instant at which several operations ran is divided equally among them. So they sum
to the time in which the device did anything, and the rest of the step is the host's. On CPU operations run side by side
on several threads, and a thread that has done its part of an operation and waits for the others' still counts as
running it; "occupied" in the JSON is the time of all threads (or of a GPU's streams), undivided. On a GPU the epoch
runs without CUDA graphs, in which the trace would not tell operations apart: --cuda-graphs keeps them.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from events import record
from hlo import Program
from layers import Place, Places, named_layers
from machine import machine
from network import network
from operations import Row, grouped, operations_of
from train_step import matmul_flops, seconds

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.hardware import environment
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.reporting.tables import as_markdown
from jaxresnet.training.engine import Engine, replicate

ROUNDS = 3
HOST = "host, device idle"
SMALLEST_SHARE = 1e-3  # of the step: operations below it are summed up in the JSON
SMALLEST_SHOWN = 5e-3  # layers and passes below it are in the JSON alone


# ------------------------------------------------------------------------------------------------------- measuring


def training(config: jr.TrainConfig, num_images: int) -> tuple[Callable[[], None], Engine]:
    """(train for an epoch of noise on the first device and wait, the engine that does it)."""
    engine = Engine(config, num_images, tuple(jax.devices()[:1]))
    rng = np.random.default_rng(0)
    images = replicate(rng.integers(0, 256, (num_images, 32, 32, 3), np.uint8), engine.devices)
    labels = replicate(rng.integers(0, config.model.num_classes, num_images, np.int32), engine.devices)
    state, hypers = engine.init(0), hypers_of(config.optim)

    def run() -> None:
        nonlocal state
        state, totals = engine.train_epoch(
            state, engine.zero_totals(), hypers, images, labels, 0, after_step=lambda *_: False
        )
        jax.block_until_ready((state, totals))

    return run, engine


@partial(jax.jit, donate_argnums=0)  # in place: fresh memory would cost page faults on CPU
def _add_one(x: jax.Array) -> jax.Array:
    return x + 1


@jax.jit
def _convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    padding, labels = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=labels)


def memory_bandwidth() -> float:
    """Bytes a second that a large array is read and written with, best of seven."""
    count = (64 if jax.devices()[0].platform == "cpu" else 512) * 2**20
    x = _add_one(jnp.zeros(count, jnp.float32))
    times = []

    def run() -> None:
        nonlocal x
        x = jax.block_until_ready(_add_one(x))

    for _ in range(7):
        times.append(seconds(run))
    return 2 * x.nbytes / min(times)


def best_flops(precision: str) -> float:
    """Operations a second of a large matrix product, or of a large convolution where that is faster, as on CPUs."""
    batch, side, features = (128, 8, 256) if jax.devices()[0].platform == "cpu" else (1024, 16, 256)
    images = jnp.ones((batch, side, side, features), precision)
    kernel = jnp.ones((3, 3, features, features), precision)
    jax.block_until_ready(_convolve(images, kernel))
    best = min(seconds(lambda: jax.block_until_ready(_convolve(images, kernel))) for _ in range(7))
    return max(matmul_flops(precision), 2 * images.size * kernel.size / features / best)


def measured_peaks(program: Program) -> dict[str, float]:
    """{"bytes": a second, and for each type that `program` multiplies, "f32" or "bf16": operations a second}."""
    names = {"f32": "float32", "bf16": "bfloat16"}
    used = {product.dtype for i in program.instructions.values() for product in program.products(i)}
    return {"bytes": memory_bandwidth(), **{short: best_flops(names[short]) for short in sorted(used & {*names})}}


# --------------------------------------------------------------------------------------------------------- results


def profile(config: jr.TrainConfig, steps: int) -> dict[str, Any]:
    """The JSON document, but for the environment. All times are of a step, in seconds."""
    with named_layers():
        run, engine = training(config, steps * config.batch_size)
        run()  # compiles
    run()
    program = Program(engine.training_program._compiled.as_text())  # type: ignore[union-attr]
    # In turns, and the best of each: a machine that others use as well has slow moments.
    turns = [(seconds(run) / steps, record(run), measured_peaks(program)) for _ in range(ROUNDS)]
    untraced = min(turn[0] for turn in turns)
    trace = min((turn[1] for turn in turns), key=lambda trace: trace.end - trace.start)
    peaks = {name: max(turn[2][name] for turn in turns) for name in turns[0][2]}
    operations = operations_of(trace, program, Places(program, config.model), peaks, steps)

    wall = (trace.end - trace.start) / steps
    total = Row()
    for operation in operations:
        total.add(operation.row)
    idle = Row(seconds=wall - total.seconds)
    kinds = {**grouped(operations, lambda o: o.kind), HOST: idle}
    layers = {**grouped(operations, lambda o: o.place), Place(HOST, ""): idle}
    large = [o for o in operations if o.row.seconds >= SMALLEST_SHARE * wall]
    rest = Row()
    for operation in operations[len(large) :]:
        rest.add(operation.row)
    return {
        "batch_size": config.batch_size,
        "precision": config.model.precision,
        "width": config.model.width,
        "stage_sizes": list(config.model.stage_sizes),
        "steps": steps,
        "step_seconds": wall,
        "step_seconds_without_profiler": untraced,
        "images_per_second_without_profiler": config.batch_size / untraced,
        "busy_seconds": total.seconds,
        "idle_seconds": idle.seconds,
        "occupied_seconds": total.occupied,
        "peaks": peaks,
        "flops": total.flops,
        "bytes": total.bytes,
        # Of the step as a whole, and then the operations' own one after the other.
        "floor_seconds_flops": total.flops_seconds,
        "floor_seconds_bytes": total.bytes / peaks["bytes"],
        "floor_seconds_operations": total.floor_seconds,
        "augmentation_share": kinds.get("augmentation", Row()).seconds / wall,
        "program_runs_an_epoch": trace.runs.get(program.name),
        "dispatches_an_epoch": trace.launches or None,
        "copies_between_host_and_device_an_epoch": trace.copies,
        "kinds": [{"kind": kind, **row.as_json(wall)} for kind, row in kinds.items()],
        "layers": [{"layer": p.layer, "pass": p.step, **row.as_json(wall)} for p, row in layers.items()],
        "operations": [operation.as_json(wall) for operation in large],
        "smaller_operations": {"count": len(operations) - len(large), **rest.as_json(wall)},
    }


# ----------------------------------------------------------------------------------------------------------- output


def report(result: dict[str, Any], top: int) -> str:
    """The tables, in Markdown."""

    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    def table(rows: list[dict[str, Any]], what: dict[str, str]) -> str:
        header = [*what, "calls", "ms", "share", "GFLOP", "MB", "floor, ms", "floor / seen"]
        cells = [
            [
                *(str(row[name] or "") for name in what.values()),
                number(row["calls"]),
                number(1e3 * row["seconds"]),
                f"{row['share']:.1%}",
                number(row["flops"] / 1e9),
                number(row["bytes"] / 1e6),
                number(1e3 * row["floor_seconds"]),
                "" if row["floor_share"] is None else f"{row['floor_share']:.0%}",
            ]
            for row in rows
        ]
        return as_markdown([header, *cells])

    ms = {
        name: f"{number(1e3 * value)} ms" for name, value in result.items() if "seconds" in name and value is not None
    }
    speeds = [f"{value / 1e9:,.0f} GFLOP/s in {kind}" for kind, value in result["peaks"].items() if kind != "bytes"]
    place = {"layer": "layer", "pass": "pass"}
    return "\n\n".join(
        [
            f"A step of {result['batch_size']} images, {result['precision']}: {ms['step_seconds']} under the profiler, "
            f"{ms['step_seconds_without_profiler']} without "
            f"({result['images_per_second_without_profiler']:,.1f} images/s). Of the former the device was busy for "
            f"{ms['busy_seconds']} and idle for {ms['idle_seconds']}; all threads or streams "
            f"together gave {ms['occupied_seconds']} to operations.",
            f"Measured speeds: {', '.join(speeds)}; {result['peaks']['bytes'] / 1e9:,.1f} GB/s of memory. Floors: "
            f"{ms['floor_seconds_flops']} for the arithmetic of the step, {ms['floor_seconds_bytes']} for the bytes of "
            f"its operations, {ms['floor_seconds_operations']} for the larger of the two in each operation.",
            f"Augmentation: {result['augmentation_share']:.2%} of the step. An epoch of {result['steps']} steps ran "
            f"the training program {result['program_runs_an_epoch'] or 'an unknown number of'} times; dispatches of "
            f"all programs: {result['dispatches_an_epoch'] or 'not in the trace'}; copies between host and device: "
            f"{result['copies_between_host_and_device_an_epoch']}.",
            "By kind, a step:",
            table(result["kinds"], {"kind": "kind"}),
            f"By layer and pass, a step, from {SMALLEST_SHOWN:.1%} on:",
            table([row for row in result["layers"] if row["share"] >= SMALLEST_SHOWN], place),
            f"The {min(top, len(result['operations']))} longest operations, a step:",
            table(result["operations"][:top], {"operation": "operation", **place, "result": "result"}),
        ]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--stage-sizes", type=int, nargs="+", default=[1, 1, 1, 1])
    parser.add_argument("--steps", type=int, help="of the epoch that is recorded; 8 on CPU, else 20")
    parser.add_argument("--top", type=int, default=20, help="operations to print")
    parser.add_argument("--cuda-graphs", action="store_true", help="keep them; their kernels have no names")
    args = parser.parse_args(argv)
    if not args.cuda_graphs:  # read when JAX first looks for devices
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="
    # A program from the cache may have been compiled without the names of the layers.
    jax.config.update("jax_enable_compilation_cache", False)
    model = network(args.stage_sizes, args.width, args.precision)
    config = jr.TrainConfig(model=model, batch_size=args.batch_size, val_size=0, selection="last")
    steps = args.steps or (8 if jax.devices()[0].platform == "cpu" else 20)
    result = profile(config, steps)
    print(report(result, args.top))
    if args.out:
        write_json(args.out, {"environment": environment(jax.devices()[:1]), "machine": machine(), **result})


if __name__ == "__main__":
    main()
