"""What XLA's compiler options are worth to the training step, each against none.

    python benchmarks/xla_options.py results/xla_options-cpu.json
    python benchmarks/xla_options.py OUT.json --option xla_gpu_autotune_level=0 --option xla_gpu_ftz=true xla_gpu_a=b

What the library trains in one dispatch (a step or a loop over a few on CPU, an epoch on accelerators) is compiled with
each of the candidates below, or with those that `--option` names, all options of one --option together, in a process of
its own: what XLA finds out by trying it keeps for the process. The process without options stays while the others come
and go. It and the candidate take turns, and the speed is the median over turns of the ratio of their seconds. The first
candidate has no options either: its speed tells what is noise.

An option that this version of XLA does not know, or a value that it refuses, is reported as that. loss is the mean over
the first turn, in nats: where it is not that without options, the option changes more than speed. temporary_bytes is
what the program needs besides its arguments and results. The file is written after every candidate.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from machine import machine
from network import network
from turns import Contender, Unit, resident_peak, serve, speed_against, take_turns

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.hardware import environment
from jaxresnet.nn.cpu.conv import CPU_COMPILER_OPTIONS
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.reporting.tables import aligned
from jaxresnet.training.compilation import CompiledOnce
from jaxresnet.training.engine import Engine, replicate

Options = dict[str, Any]
# By backend. Those at the top come first where time is short.
CANDIDATES: dict[str, list[Options]] = {
    "cpu": [
        dict(CPU_COMPILER_OPTIONS),  # the library's own choice
        {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
        {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED"},
        {"xla_cpu_multi_thread_eigen": False},
        {"xla_cpu_use_fusion_emitters": False},
        {"xla_cpu_enable_fast_math": True},
        {"xla_cpu_prefer_vector_width": "512"},  # registers of AVX-512; 256 is the default
        {"xla_cpu_use_onednn": True},
        {"xla_cpu_use_xnnpack": True},
        {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"},
    ],
    "gpu": [
        # CUDA graphs: none of them, and with the loop over steps and all calls of libraries in them.
        {"xla_gpu_enable_command_buffer": ""},
        {"xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,WHILE"},
        {"xla_gpu_experimental_enable_conv_fusion": True},  # what surrounds a convolution goes into cuDNN's kernel
        {"xla_gpu_force_conv_nhwc": True},
        {"xla_gpu_enable_triton_gemm": False},  # cuBLAS multiplies all matrices
        {"xla_gpu_exhaustive_tiling_search": True},
        {"xla_gpu_enable_latency_hiding_scheduler": True},
        {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_DOUBLE_BUFFER"},  # no copies from step to step
        {"xla_gpu_unsupported_enable_triton_multi_output_fusion": True},
        {"xla_gpu_experimental_enable_fusion_autotuner": True},
        {"xla_gpu_cudnn_gemm_fusion_level": "3"},
        {"xla_gpu_enable_cublaslt": True},
        {"xla_gpu_enable_while_loop_double_buffering": True},
        {"xla_gpu_strict_conv_algorithm_picker": False},
        {"xla_gpu_autotune_level": "0"},  # cuDNN's and cuBLAS's own first guesses: what trying is worth
    ],
}
PAUSE = 0.3  # seconds before a turn on CPU: threads of the one before may spin so long before they sleep
UNKNOWN = "unknown to this version of XLA"

# ------------------------------------------------------------------------------------------------------------ a worker


def set_up(case: dict[str, Any], options: Options, candidates: list[Options] | None) -> Unit:
    """A turn is `case["steps"]` steps on CPU, else an epoch. candidates: None for those of the backend. Which of them
    are refused, and why, is said when it is ready."""
    device = jax.devices()[0]
    steps = case["steps"] if device.platform == "cpu" else case["images"] // case["batch_size"]
    count = steps * case["batch_size"]
    model = network(case["stage_sizes"], case["width"], case["precision"])
    config = jr.TrainConfig(model=model, batch_size=case["batch_size"], val_size=0, selection="last")
    engine = Engine(config, count, (device,))
    rng = np.random.default_rng(0)
    images = replicate(rng.integers(0, 256, (count, 32, 32, 3), np.uint8), engine.devices)
    labels = replicate(rng.integers(0, 10, count, np.int32), engine.devices)
    program = engine.training_program
    found: dict[str, Any] = {"compile_seconds": 0.0}

    def compile_it(*args: Any) -> Any:
        """As `Program` does, but where an option cannot be had, this says so."""
        lowered = program._mapped.lower(*args)
        start = time.perf_counter()
        compiled = lowered.compile(options)
        found["compile_seconds"] = time.perf_counter() - start
        found["temporary_bytes"] = getattr(compiled.memory_analysis(), "temp_size_in_bytes", None)
        return compiled

    program._compile = compile_it  # type: ignore[method-assign]
    program._once = CompiledOnce()
    state, hypers = engine.init(0), hypers_of(config.optim)

    def run() -> None:
        nonlocal state
        totals = engine.zero_totals()
        state, totals = engine.train_epoch(state, totals, hypers, images, labels, 0, after_step=lambda *_: False)
        loss = float(totals.sums.loss) / count  # waits for the end
        found.setdefault("loss", loss)

    def about() -> dict[str, Any]:
        asked = CANDIDATES.get(device.platform, []) if candidates is None else candidates
        return {
            **found,
            "unit": f"{steps} steps, a dispatch is {engine.dispatch}",
            "images": count,
            "platform": device.platform,
            "candidates": [[one, why_refused(one)] for one in asked],
            "environment": environment([device]),
        }

    return Unit(run, resident_peak, about)


def why_refused(options: Options) -> str | None:
    """None where XLA takes them: it is asked with a program of one addition."""
    try:
        jax.jit(lambda x: x + 1).lower(np.float32(1)).compile(options)
    except jax.errors.JaxRuntimeError as e:
        return UNKNOWN if "No such compile option" in str(e) else f"refused: {str(e).splitlines()[0]}"
    return None


# ----------------------------------------------------------------------------------------------------------- the parent


def worker(name: str, case: dict[str, Any], options: Options, candidates: Any, timeout: float) -> Contender:
    command = [sys.executable, __file__, "--worker", json.dumps([case, options, candidates])]
    compilation = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    environ = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **compilation}
    return Contender(name, command, environ, timeout)


def measure(case: dict[str, Any], candidates: list[Options] | None, args: argparse.Namespace) -> dict[str, Any]:
    start = time.monotonic()
    with worker("none", case, {}, candidates, args.timeout) as none:
        none.wait_until_ready()
        if none.failure:
            raise SystemExit(f"xla_options: without options: {none.failure}")
        ready = none.ready
        found: dict[str, Any] = {
            "environment": {**ready["environment"], "command": shlex.join(["python", *sys.argv])},
            "machine": machine(),
            **case,
            "unit": ready["unit"],
            "images": ready["images"],
            "none": {name: ready[name] for name in ("compile_seconds", "temporary_bytes", "loss")},
            "candidates": [],
        }
        for options, refused in [({}, None), *ready["candidates"]]:
            if refused is None and time.monotonic() - start > args.seconds:
                refused = f"no time left of {args.seconds:g} s"
            row = {"status": refused} if refused else against(none, case, options, args)
            found["candidates"].append({"options": options, **row})
            print(line(found["candidates"][-1], found["none"]), flush=True)
            write_json(args.out, found)
            if none.failure:
                raise SystemExit(f"xla_options: without options: {none.failure}")
    return found


def against(none: Contender, case: dict[str, Any], options: Options, args: argparse.Namespace) -> dict[str, Any]:
    """A candidate's turns with the process that has no options."""
    with worker(named(options), case, options, [], args.timeout) as candidate:
        candidate.wait_until_ready()
        before = len(none.units)
        if not candidate.failure:
            take_turns([none, candidate], args.pairs, PAUSE if none.ready["platform"] == "cpu" else 0)
        if candidate.failure or none.failure:
            return {"status": f"failed: {candidate.failure or none.failure}"}
        speed = speed_against(candidate.units, none.units[before:])
        return {
            "status": "measured",
            "times_as_fast": speed["speed"],
            "times_as_fast_range": speed["range"],
            "seconds": candidate.units,
            "seconds_without": none.units[before:],
            **{name: candidate.ready[name] for name in ("compile_seconds", "temporary_bytes", "loss")},
        }


def named(options: Options) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items()) or "none, again"


def line(row: dict[str, Any], none: dict[str, Any]) -> str:
    name = named(row["options"])
    if row["status"] != "measured":
        return f"{name}: {row['status']}"
    low, high = row["times_as_fast_range"]
    other_loss = f"; LOSS {row['loss']:.5f}, not {none['loss']:.5f}" if differs(row["loss"], none["loss"]) else ""
    return (
        f"{name}: {row['times_as_fast']:.3f} times as fast ({low:.3f} to {high:.3f}), compiled in "
        f"{row['compile_seconds']:.1f} s (none: {none['compile_seconds']:.1f}){other_loss}"
    )


def differs(loss: float, other: float) -> bool:
    """By more than another order of additions makes."""
    return not abs(loss - other) <= 1e-2 * abs(other)


def report(found: dict[str, Any]) -> str:
    def mib(size: float | None) -> str:
        return "" if size is None else f"{size / 2**20:.0f}"

    measured = [row for row in found["candidates"] if row["status"] == "measured"]
    measured.sort(key=lambda row: -row["times_as_fast"])
    rows = [
        [
            named(row["options"]),
            f"{row['times_as_fast']:.3f}",
            "{:.3f} to {:.3f}".format(*row["times_as_fast_range"]),
            f"{row['compile_seconds']:.1f}",
            mib(row["temporary_bytes"]),
        ]
        for row in measured
    ]
    without = ["none", "1", "", f"{found['none']['compile_seconds']:.1f}", mib(found["none"]["temporary_bytes"])]
    return aligned([["options", "times as fast", "range", "compiling, s", "temporary, MiB"], without, *rows])


def parse_option(text: str) -> tuple[str, Any]:
    """ "a=true" -> ("a", True): XLA takes numbers and names as text, but not these."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=VALUE")
    return name, {"true": True, "false": False}.get(value.lower(), value)


def main(argv: Sequence[str] | None = None) -> int:
    """Status 1 where a candidate that XLA knows failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument(
        *("--option", "-o"), type=parse_option, nargs="+", action="append", metavar="NAME=VALUE", help="may be repeated"
    )
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--stage-sizes", type=int, nargs="+", default=[1, 1, 1, 1])
    parser.add_argument("--steps", type=int, default=2, help="of a turn on CPU (default: %(default)s)")
    parser.add_argument("--images", type=int, default=50_000, help="of an epoch, on accelerators")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no candidate is begun after so many")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the start of one, or its turn")
    args = parser.parse_args(argv)
    kept = ("batch_size", "precision", "width", "stage_sizes", "steps", "images")
    candidates = [dict(options) for options in args.option] if args.option else None
    found = measure({name: getattr(args, name) for name in kept}, candidates, args)
    print(report(found))
    return 1 if any(row["status"].startswith("failed") for row in found["candidates"]) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(lambda: set_up(*json.loads(sys.argv[2])))
    else:
        raise SystemExit(main())
