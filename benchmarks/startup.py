"""What a start costs: importing, compiling with nothing on disk and with what the last start left there, the first
step, and memory.

    python benchmarks/startup.py results/startup-cpu.json
    python benchmarks/startup.py out.json --checkouts ../before .               # two checkouts of the library, by turns

Every start is a process of its own that trains two steps of batch 128 of the published network by `fit`, scores 1,000
test images, and does the same with another seed. A round is two starts for each checkout, the first with an empty
compilation cache and the second with the cache that the first has left. Figures are medians over the rounds:

    import_seconds         `from jaxresnet import fit`, with all that it imports
    first_step_seconds     from the call of `fit` to the end of the first dispatch of training
    compile_seconds        what the run took more than the one with the other seed, which compiles nothing
    compiled, from_disk    programs, small ones included
    compiled_again         programs compiled for the other seed
    peak_memory_bytes      the process's largest resident size
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

# Events of `jax.monitoring`. What is read back from disk counts as both.
BUILT, FOUND = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
STARTS = ("empty cache", "second start")


def start(precision: str, width: int, stage_sizes: tuple[int, ...]) -> dict[str, Any]:
    """What one start costs. Imports here, as that is what is measured."""
    begin = time.perf_counter()
    import jaxresnet as jr
    from jaxresnet import fit

    import_seconds = time.perf_counter() - begin
    import jax
    from jax import monitoring
    from turns import resident_peak

    events: Counter[str] = Counter()
    monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: events.update([event]))
    monitoring.register_event_listener(lambda event, **_: events.update([event]))
    pool_size = 32 // 2 ** (len(stage_sizes) - 1)  # each stage but the first halves the images
    model = jr.ModelConfig(stage_sizes, width, pool_size=pool_size, precision=precision)  # type: ignore[arg-type]
    config = jr.TrainConfig(
        model=model, num_epochs=1, batch_size=128, val_size=0, selection="last", eval_weights="fast"
    )
    data, devices = jr.make_synthetic(256, 1000), jax.devices()[:1]

    def run(seed: int) -> tuple[float, float]:
        """Seconds until the first dispatch had ended, and until all had."""
        steps: list[float] = []
        begin = time.perf_counter()
        fit(
            replace(config, seed=seed),
            data,
            devices=devices,
            on_progress=lambda *_: steps.append(time.perf_counter() - begin),
        )
        return steps[0], time.perf_counter() - begin

    first_step_seconds, seconds = run(0)
    compiled = events[BUILT] - events[FOUND]
    _, seconds_again = run(1)
    return {
        "import_seconds": import_seconds,
        "first_step_seconds": first_step_seconds,
        "compile_seconds": seconds - seconds_again,
        "compiled": compiled,
        "from_disk": events[FOUND],
        "compiled_again": events[BUILT] - events[FOUND] - compiled,
        "peak_memory_bytes": resident_peak(),
    }


def started(checkout: Path, cache: str, *settings: Any) -> dict[str, Any]:
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH")))),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",  # what the library's scripts set
    }
    command = [sys.executable, __file__, "--start", json.dumps(settings)]
    output = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="JSON file to write")
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[here], help="default: this one")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (default: %(default)s)")
    parser.add_argument("--stage-sizes", type=int, nargs="+", default=[1, 1, 1, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--start", type=json.loads, help=argparse.SUPPRESS)  # what the child processes run
    args = parser.parse_args(argv)
    if args.start:
        precision, width, stage_sizes = args.start
        print(json.dumps(start(precision, width, tuple(stage_sizes))))
        return
    from machine import machine

    from jaxresnet.files import write_json
    from jaxresnet.hardware import environment

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # above 0: somebody else works, too
    found: dict[Path, dict[str, list[dict[str, Any]]]] = {c: {name: [] for name in STARTS} for c in args.checkouts}
    for i in range(args.rounds):
        for checkout in args.checkouts if i % 2 == 0 else reversed(args.checkouts):
            with tempfile.TemporaryDirectory() as cache:
                for rows in found[checkout].values():
                    rows.append(started(checkout.resolve(), cache, args.precision, args.width, args.stage_sizes))
    cases = []
    for checkout, starts in found.items():
        case: dict[str, Any] = {"checkout": checkout.resolve().name}
        for what, rows in starts.items():
            case[what] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            line = ", ".join(f"{key} {value:,.4g}" for key, value in case[what].items())
            print(f"{checkout}, {what}: {line}", flush=True)
        cases.append(case)
    if args.out:
        about = {"environment": environment(), "machine": machine(), "load_average_before": load}
        settings = {name: getattr(args, name) for name in ("precision", "width", "stage_sizes", "rounds")}
        write_json(args.out, {**about, **settings, "cases": cases})


if __name__ == "__main__":
    main(sys.argv[1:])
