"""What compiling the eleven published runs costs: the first time, with another seed, and at the next start.

    python benchmarks/compiling.py results/compiling-cpu.json

For every run in `jaxresnet.recipes` it asks for the engine as `fit` does and has all compiled that the run needs: on
CPU a step (or a loop over a few), the smaller last step and evaluation, on accelerators (or with `--as-accelerator`)
the whole epoch and the whole evaluation. Nothing is trained and no data are made: the programs are compiled for arrays
that have a shape only.

- first: a new process, with nothing on disk.
- other seed: the same eleven in the same process with another seed. Nothing may be compiled.
- second start: another process, which finds on disk what the first has left there.

programs: training and evaluation programs that an engine asked for. from_disk: those programs, and small ones, that
were found on disk, where also the first process puts what it compiles: engines that evaluate alike share it so.
compiled: all that XLA compiled, the small ones (initial weights, the plan of an epoch, copies) included. Seconds are of
the wall clock and hold everything, the drawing of initial weights too. import_seconds is apart: from the start of
Python to the end of all imports; device_seconds is what JAX then takes to find its devices.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from jax import monitoring
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from machine import machine
from network import network

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.hardware import environment
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.reporting.tables import aligned
from jaxresnet.training.compilation import use_compilation_cache
from jaxresnet.training.engine import Engine, Program, make_engine
from jaxresnet.training.steps import AXIS, steps_per_epoch

PASSES = ("first", "other seed", "second start")
# Of jax.monitoring. What is found on disk passes through the first as well.
BUILT, FOUND = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"


@dataclass
class Counts:
    """engines: that no run before had. programs, from_disk, compiled: see above."""

    engines: int = 0
    programs: int = 0
    from_disk: int = 0
    compiled: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


# --------------------------------------------------------------------------------------------------- in a child process


def not_run(*args: Any) -> Any:
    """In place of a compiled program: (state, totals), or sums, as they came in."""
    return args[:2] if isinstance(args[0], jr.TrainState) else args[1]


@contextmanager
def without_running(events: Counter) -> Iterator[None]:
    """Programs are compiled as ever, but a call of one gives its first results back as they came in."""
    compile_it = Program._compile

    def compile_only(program: Program, *args: Any) -> Callable[..., Any]:
        events["programs"] += 1
        compile_it(program, *args)
        return not_run

    with patch.object(Program, "_compile", compile_only):
        yield


def split_without_data(num_images: int, devices: tuple[jax.Device, ...]) -> tuple[Any, Any]:
    """(images, labels) as they are placed on the devices, but for their contents."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    return (
        jax.ShapeDtypeStruct((num_images, 32, 32, 3), np.uint8, sharding=sharding),
        jax.ShapeDtypeStruct((num_images,), np.int32, sharding=sharding),
    )


def prepare(config: jr.TrainConfig, engine: Engine, num_train: int, num_test: int) -> None:
    """Everything of a run of `config` up to the end of its first epoch, but for the work of the programs."""
    state, totals = engine.init(config.seed), engine.zero_totals()
    hypers = epoch_hypers(config.optim, steps_per_epoch(num_train, config.batch_size), config.num_epochs, 0)
    train, test = (split_without_data(count, engine.devices) for count in (num_train, num_test))
    state, _ = engine.train_epoch(state, totals, hypers, *train, 0)
    engine.evaluate(jr.eval_variables(state, config.eval_weights), *test)


def child(args: argparse.Namespace) -> dict[str, Any]:
    """The passes that one process makes."""
    import_seconds = time.time() - args.started
    start = time.perf_counter()
    devices = tuple(jax.devices()[:1])
    device_seconds = time.perf_counter() - start
    use_compilation_cache()
    events: Counter = Counter()
    monitoring.register_event_listener(lambda event, **_: events.update([event]))
    monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: events.update([event]))
    model = network(args.stage_sizes, args.width, args.precision)
    seen: set[int] = set()

    def one(config: jr.TrainConfig) -> Counts:
        events.clear()
        start = time.perf_counter()
        engine = make_engine(config, args.train_images, devices)
        engine.whole_epochs = engine.whole_epochs or args.as_accelerator
        prepare(config, engine, args.train_images, args.test_images)
        seconds = time.perf_counter() - start
        is_new = id(engine) not in seen
        seen.add(id(engine))
        return Counts(int(is_new), events["programs"], events[FOUND], events[BUILT] - events[FOUND], seconds)

    found: dict[str, Any] = {"import_seconds": import_seconds, "device_seconds": device_seconds, "passes": {}}
    with without_running(events):
        for seed, name in enumerate(args.child):
            runs = {run: one(replace(jr.published[run].config, model=model, seed=seed)) for run in args.runs}
            found["passes"][name] = {
                "total": asdict(sum(runs.values(), Counts())),
                "runs": {run: asdict(counts) for run, counts in runs.items()},
            }
    return {**found, "environment": environment(devices)}


# ----------------------------------------------------------------------------------------------------------- the parent


def measure(argv: list[str], settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """All passes, in two processes that share a cache which is empty at first."""
    found: dict[str, Any] = {"environment": {}, **settings, "processes": [], "passes": {}}
    with tempfile.TemporaryDirectory() as home:
        environ = {
            k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAXRESNET_COMPILATION"))
        }
        environ |= {"XDG_CACHE_HOME": home, "JAX_ENABLE_COMPILATION_CACHE": "true"}
        for passes in (PASSES[:2], PASSES[2:]):
            flags = [*argv, "--started", repr(time.time()), "--child", *passes]
            command = [sys.executable, __file__, *flags]
            output = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout
            one = json.loads(output.splitlines()[-1])
            found["passes"] |= one.pop("passes")
            found["machine"] = machine()
            found["environment"] = {**one.pop("environment"), "command": shlex.join(["python", *sys.argv])}
            found["processes"].append(one)
            write_json(out, found)  # the next may be cut short
        kept = [path for path in Path(home).rglob("*") if path.is_file()]
        found["bytes_on_disk"] = sum(path.stat().st_size for path in kept)
    return found


def report(found: dict[str, Any]) -> str:
    names = list(found["passes"])
    header = ["run", *(f"{name}: {what}" for name in names for what in ("programs", "seconds"))]

    def row(label: str, counts: list[dict[str, Any]]) -> list[str]:
        return [label, *(text for one in counts for text in (f"{one['programs']}", f"{one['seconds']:.2f}"))]

    runs = [row(run, [found["passes"][name]["runs"][run] for name in names]) for run in found["runs"]]
    total = row("total", [found["passes"][name]["total"] for name in names])
    lines = [aligned([header, *runs, total]), ""]
    for name in names:
        counts = found["passes"][name]["total"]
        lines.append(
            f"{name}: {counts['engines']} new engines asked for {counts['programs']} programs; XLA compiled "
            f"{counts['compiled']}, small ones included, and {counts['from_disk']} were found on disk; "
            f"{counts['seconds']:.1f} s"
        )
    starts = ", ".join(f"{one['import_seconds']:.1f} s + {one['device_seconds']:.1f} s" for one in found["processes"])
    lines.append(f"Python and imports + devices, apart: {starts}; {found['bytes_on_disk'] / 2**20:.1f} MiB on disk")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Status 1 where another seed had anything compiled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--as-accelerator", action="store_true", help="whole epochs, as on accelerators, also on CPU")
    parser.add_argument("--runs", nargs="+", choices=list(jr.published), default=list(jr.published), metavar="RUN")
    parser.add_argument("--width", type=int, default=64, help="of the first stage (default: %(default)s)")
    parser.add_argument("--stage-sizes", type=int, nargs="+", default=[1, 1, 1, 1])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--train-images", type=int, default=50_000)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)  # names of the passes of a child process
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(child(args)))
        return 0
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "started", "child")}
    found = measure(argv, settings, args.out)
    print(report(found))
    write_json(args.out, found)
    again = found["passes"]["other seed"]["total"]
    return 1 if again["programs"] or again["engines"] or again["compiled"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
