"""Many runs at a time, one a device: how well it scales, and whether the runs leave one another alone.

    python benchmarks/sweep.py results/sweep-cpu.json

The same runs, one small network with several seeds, by `jr.compare(..., spread="runs")` over 1, 2, 4 and 8 devices. On
CPU these are virtual ones, which share the cores; each computes with one thread, so that it is like a device of one
core (`--threads all`: every device takes what it can get). Each number of devices is a process of its own. They take
turns, in an order that is reversed every time. A turn is the whole comparison with its checkpoints, but without the
drawing of the report. Compiling comes before and is told apart: programs of training and evaluation, and small ones (of
initial weights, plans, copies), which JAX compiles for each device.

efficiency is T(1) / T(n) / min(n, cores, runs): 1 where n devices do the runs in an n-th of the time, or, where virtual
devices share fewer cores, in the time that so many cores need. More virtual devices than cores can gain nothing. What
they lose is their interference: T(n) / T(m), with m the most devices that had a core each, is 1 where there is none.
CPU seconds, of one turn in all threads of the process, grow with interference and not with what others do on the
machine, whose load when this began is in the JSON; T does with both.

Ends with status 1 where a run's figures are not the same bits on any number of devices, and in every turn, or where
several devices had more compiled than one.
"""

import argparse
import importlib
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from compiling import BUILT
from jax import monitoring
from machine import machine
from network import network
from turns import Contender, Unit, resident_peak, serve, speed_against, take_turns

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.hardware import environment
from jaxresnet.reporting.tables import aligned
from jaxresnet.results.store import read_results
from jaxresnet.training.engine import Program

TIMES = {"seconds", "images_per_second", "compile_seconds", "config", "environment"}  # these may differ
PAUSE = 0.3  # seconds before a turn on CPU: threads of the one before may spin so long before they sleep

# ------------------------------------------------------------------------------------------------------------ a worker


def set_up(num_devices: int, case: dict[str, Any]) -> Unit:
    """case: see `arguments`. Raises RuntimeError where a turn's figures are not those of the first."""
    devices = jax.devices()[:num_devices]
    # Drawn once whatever the number of devices; and Matplotlib need not be there.
    importlib.import_module("jaxresnet.comparison.compare")._render = lambda out: None  # type: ignore[attr-defined]
    built: list[float] = []  # seconds that XLA took, for small programs too: initial weights, plans, copies
    monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: built.append(duration_secs) if event == BUILT else None
    )
    compiling: list[float] = []
    compile_it = Program._compile

    def timed(program: Program, *args: Any) -> Any:
        start = time.perf_counter()
        compiled = compile_it(program, *args)
        compiling.append(time.perf_counter() - start)
        return compiled

    Program._compile = timed  # type: ignore[method-assign, assignment]
    rng = np.random.default_rng(0)

    def noise(count: int) -> jr.Split:
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return jr.Split(images, rng.integers(0, 10, count).astype(np.int32))

    data = jr.Dataset(noise(case["images"]), noise(case["batch_size"]), name="noise", synthetic=True)
    config = jr.TrainConfig(
        model=network(case["stage_sizes"], case["width"], "float32"),
        num_epochs=case["epochs"],
        batch_size=case["batch_size"],
        eval_batch_size=case["batch_size"],
        val_size=0,
        selection="last",
    )
    first: dict[str, Any] = {}

    cpu_seconds = 0.0

    def run() -> None:
        nonlocal cpu_seconds
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            jr.compare({"arm": config}, range(case["runs"]), data, folder, devices=devices, spread="runs")
            found = figures(Path(folder))
        cpu_seconds = time.process_time() - start
        first.update({} if first else found)
        if found != first:
            raise RuntimeError(f"not the figures of the first turn: {', '.join(differing(first, found))}")

    def about() -> dict[str, Any]:
        return {
            "available": len(jax.devices()),
            "cpu_seconds": cpu_seconds,
            "programs": len(compiling),
            "compile_seconds": sum(compiling),
            "small_programs": len(built) - len(compiling),
            "figures": first,
            "environment": environment(devices),
        }

    return Unit(run, resident_peak, about)


def figures(folder: Path) -> dict[str, Any]:
    """{"seed 0": what the run found, times aside}, with every bit of every number."""

    def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key not in TIMES}

    runs = read_results(folder).runs["arm"]
    return {
        f"seed {seed}": {"epochs": [timeless(row) for row in run.rows], "scores": timeless(run.scores or {})}
        for seed, run in runs.items()
    }


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names of the runs that are not the same in both."""
    return [name for name in {**a, **b} if a.get(name) != b.get(name)]


# ----------------------------------------------------------------------------------------------------------- the parent


def worker_environment(threads: str, num_devices: int) -> dict[str, str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
    if threads == "one":
        flags += " --xla_cpu_multi_thread_eigen=false"
    compilation = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return {**os.environ, "XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **compilation}


def measure(case: dict[str, Any], counts: Sequence[int], repeats: int, timeout: float) -> dict[str, Any]:
    """counts: numbers of devices, 1 the first of them."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # cores that others keep busy are missing here
    with ExitStack() as stack:
        contenders: list[Contender] = []
        for count in counts:
            if contenders and count > contenders[0].ready["available"]:
                continue
            command = [sys.executable, __file__, "--worker", str(count), json.dumps(case)]
            environ = worker_environment(case["threads"], max(counts))
            contenders.append(stack.enter_context(Contender(f"{count} devices", command, environ, timeout)))
            contenders[-1].wait_until_ready()
            check(contenders)
        ready = [contender.ready for contender in contenders]
        platform = ready[0]["environment"]["platform"]
        take_turns(contenders, repeats, PAUSE if platform == "cpu" else 0)
        check(contenders)
    cores = machine()["processor"]["cores"] if platform == "cpu" else max(counts)
    rows = summary(dict(zip(counts, [c.units for c in contenders], strict=False)), case["runs"], cores)
    for row, one in zip(rows, ready, strict=True):
        row |= {name: one[name] for name in ("cpu_seconds", "programs", "compile_seconds", "small_programs")}
        row["different_runs"] = differing(ready[0]["figures"], one["figures"])
    return {
        "environment": {**ready[0]["environment"], "command": shlex.join(["python", *sys.argv])},
        "machine": machine(),
        **case,
        "cores": cores,
        "load_average_before": load,
        "devices": rows,
        "figures": ready[0]["figures"],
    }


def check(contenders: Sequence[Contender]) -> None:
    for contender in contenders:
        if contender.failure:
            raise SystemExit(f"sweep: {contender.name}: {contender.failure}")


def summary(times: Mapping[int, Sequence[float]], runs: int, cores: int) -> list[dict[str, Any]]:
    """A row for each number of devices. times: {number of devices: seconds of each turn}, with that for 1."""
    medians = {count: statistics.median(seconds) for count, seconds in times.items()}
    with_a_core_each = max(count for count in times if count == 1 or count <= cores)
    rows = []
    for count, seconds in times.items():
        speed = speed_against(seconds, times[1])
        rows.append(
            {
                "devices": count,
                "seconds": list(seconds),
                "median_seconds": medians[count],
                "runs_per_minute": 60 * runs / medians[count],
                "times_as_fast_as_one": speed["speed"],
                "times_as_fast_as_one_range": speed["range"],
                "efficiency": speed["speed"] / min(count, cores, runs),
                "against_a_core_each": medians[count] / medians[with_a_core_each] if count > cores else None,
            }
        )
    return rows


def problems(found: dict[str, Any]) -> list[str]:
    """What must not be, in words."""
    rows, one = found["devices"], found["devices"][0]
    other = [f"{row['devices']} devices: not the same bits in {', '.join(row['different_runs'])}" for row in rows]
    return [
        *(text for text, row in zip(other, rows, strict=True) if row["different_runs"]),
        *(
            f"{row['devices']} devices: {row['programs']} programs were compiled, and {one['programs']} with one device"
            for row in rows
            if row["programs"] > one["programs"]
        ),
    ]


def report(found: dict[str, Any]) -> str:
    header = ["devices", "seconds", "runs a minute", "times as fast as one", "efficiency", "against a core each"]
    rows = [
        [
            f"{row['devices']}",
            f"{row['median_seconds']:.2f}",
            f"{row['runs_per_minute']:.1f}",
            f"{row['times_as_fast_as_one']:.2f} ({'{:.2f} to {:.2f}'.format(*row['times_as_fast_as_one_range'])})",
            f"{row['efficiency']:.2f}",
            "" if row["against_a_core_each"] is None else f"{row['against_a_core_each']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['programs']}",
            f"{row['compile_seconds']:.1f}",
            f"{row['small_programs']}",
        ]
        for row in found["devices"]
    ]
    return f"{found['runs']} runs, {found['cores']} cores\n" + aligned(
        [[*header, "CPU seconds", "programs", "compiling, s", "small programs"], *rows]
    )


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of them")
    parser.add_argument("--threads", choices=["one", "all"], default="one", help="of a virtual device")
    parser.add_argument("--runs", type=int, default=8, help="seeds (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--stage-sizes", type=int, nargs="+", default=[1, 1, 1, 1])
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the start of one, or its turn")
    args = parser.parse_args(argv)
    args.devices = sorted({1, *args.devices})
    if min(*args.devices, args.runs, args.repeats) < 1:
        parser.error("--devices, --runs and --repeats must be 1 or more")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    kept = ("threads", "runs", "epochs", "images", "batch_size", "width", "stage_sizes")
    found = measure({name: getattr(args, name) for name in kept}, args.devices, args.repeats, args.timeout)
    print(report(found))
    write_json(args.out, found)
    for problem in problems(found):
        print(f"sweep: {problem}", file=sys.stderr)
    return 1 if problems(found) else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(lambda: set_up(int(sys.argv[2]), json.loads(sys.argv[3])))
    else:
        raise SystemExit(main())
