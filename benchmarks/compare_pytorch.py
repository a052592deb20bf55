"""Speed and memory of the training step against PyTorch at its best: same network, batch, Adam and precision, by turns.

    python benchmarks/compare_pytorch.py --device cpu results/compare_pytorch-cpu.json
    python benchmarks/compare_pytorch.py --device cuda --batch-sizes 512 1024 results/compare_pytorch-cuda.json
    python benchmarks/compare_pytorch.py --rivals --checkout ../before out.json       # what a change of ours does

Ours is the library's own engine, with all that `fit` does in a step: drawing and applying augmentation, totals, norms
of gradients, weights and updates, a check for non-finite numbers; in bfloat16 on a CPU every core is a device, as in a
script with one run. The rivals (`pytorch_step.py`) have their batches normalised, unaugmented and on the device in
channels-last before the clock starts, and keep no totals: what they leave out favours them. Lookahead is off on both
sides. Where ours computes in bfloat16 on a CPU, the rivals run in float32 and in bfloat16. --checkout FOLDER adds the
library of another checkout, with its own benchmarks/, as a contender.

Every contender is a process of its own and works while the others wait. They take turns, of an epoch on a GPU and of a
dispatch on a CPU, in an order that is reversed every time. The speed against a rival is the median over turns of the
ratio of their seconds.

Memory on a CPU is the process's largest resident size: Python, the libraries and, on our side, the whole training set,
of which the rivals hold the batches of one turn. On a GPU it is the largest sum of arrays on the device. build_seconds
is importing, building, compiling and the first turn, less a warm turn; nothing is compiled before.

PyTorch is needed unless --rivals names none (pip install -e '.[parity]'). The exit status is 1 where ours, or every
rival of a case, failed.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from compare_pytorch_worker import OURS
from library_step import IMAGES_PER_EPOCH, steps_of_a_turn
from machine import machine
from turns import Contender, speed_against, take_turns

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.nn.summary import count_macs

RIVALS = {"cpu": ["eager", "compile"], "cuda": ["eager", "compile", "graphs"]}  # those that run unless others are named
ALL_RIVALS = ["eager", "compile", "graphs", "max-autotune"]
# Before a turn on a CPU, seconds: threads of the one before may spin so long before they sleep.
PAUSE = {"cpu": 0.3, "cuda": 0.0}
HERE = Path(__file__).resolve().parents[1]


class Entry(NamedTuple):
    """A contender to start. who: as the worker takes it. checkout: whose library and worker."""

    who: str
    precision: str
    checkout: Path = HERE


def worker_command(entry: Entry, case: dict[str, Any]) -> list[str]:
    worker = entry.checkout / "benchmarks" / "compare_pytorch_worker.py"
    return [sys.executable, str(worker), entry.who, json.dumps({**case, "precision": entry.precision})]


def worker_environment(device: str, cache: str, checkout: Path) -> dict[str, str]:
    """The same for all: one GPU that they share, and nothing compiled by earlier runs."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": device,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH")))),
    }
    if device == "cuda":
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # else JAX takes most of its memory for itself
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    return environment


def contenders_of(case: dict[str, Any], rivals: list[str], checkout: Path | None) -> dict[str, Entry]:
    """By name, ours first."""
    precision = case["precision"]
    also = ["float32"] if precision == "bfloat16" and case["device"] == "cpu" else []
    found = {OURS: Entry(OURS, precision)}
    if checkout:
        found[f"{OURS} in {checkout.name}"] = Entry(OURS, precision, checkout)
    return found | {f"{rival} {p}": Entry(rival, p) for p in [*also, precision] for rival in rivals}


def compare(case: dict[str, Any], entries: dict[str, Entry], rounds: int, timeout: float, cache: str) -> dict[str, Any]:
    """Run one case. Returns it with what was found: of each contender, of ours against each other one, and the best
    rivals, {precision: name}."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # above 0 at the first case: somebody else works
    with ExitStack() as stack:
        contenders: list[Contender] = []
        for name, entry in entries.items():
            environment = worker_environment(case["device"], cache, entry.checkout)
            contender = Contender(name, worker_command(entry, case), environment, timeout)
            contenders.append(stack.enter_context(contender))
            contender.wait_until_ready()
            if contenders[0].failure:
                break
        check_same_network(contenders)
        take_turns(contenders, rounds, PAUSE[case["device"]])
    flops = 3 * 2 * count_macs(jr.ModelConfig(width=case["width"]))  # backward costs twice the forward pass
    rows = {c.name: row(c, entries[c.name].precision, case["steps"] * case["batch_size"], flops) for c in contenders}
    against = {}
    if contenders[0].failure is None:
        against = {c.name: speed_against(contenders[0].units, c.units) for c in contenders[1:] if c.failure is None}
    best: dict[str, str] = {}
    for name in sorted(against, key=lambda name: against[name]["speed"]):  # the best one first, by the paired ratios
        if entries[name].who != OURS:
            best.setdefault(entries[name].precision, name)
    found = {"flops_per_image": flops, "load_average_before": load}
    return {**case, **found, "contenders": rows, "against": against, "best_rival": best}


def check_same_network(contenders: list[Contender]) -> None:
    counts = {c.name: c.ready["parameters"] for c in contenders if c.ready}
    if len(set(counts.values())) > 1:
        raise SystemExit(f"compare_pytorch: not the same network: parameters {counts}")


def row(contender: Contender, precision: str, images: int, flops: int) -> dict[str, Any]:
    """images: of a turn. flops: to train on one image."""
    if contender.failure is not None:
        return {"precision": precision, "failed": contender.failure}
    speed = images / statistics.median(contender.units)
    return {
        "precision": precision,
        "images_per_second": speed,
        "model_flops_per_second": flops * speed,
        "turn_seconds": contender.units,
        "peak_memory_bytes": contender.peak_memory,
        **contender.ready,
    }


def report(case: dict[str, Any]) -> None:
    print(f"batch {case['batch_size']}, {case['precision']}, width {case['width']}, steps a turn: {case['steps']}")
    for name, found in case["contenders"].items():
        if "failed" in found:
            print(f"  {name:<22} failed: {found['failed']}")
            continue
        line = f"{found['images_per_second']:10,.1f} images/s {found['model_flops_per_second'] / 1e12:7.2f} TFLOP/s"
        line += f"  {found['peak_memory_bytes'] / 2**30:6.2f} GiB  built in {found['build_seconds']:5.1f} s"
        if name in case["against"]:
            against = case["against"][name]
            low, high = against["range"]
            line += f"  ours is {against['speed']:.2f} times as fast ({low:.2f} to {high:.2f})"
        print(f"  {name:<22}{line}")
    for precision, name in case["best_rival"].items():
        print(f"  against the best in {precision}, {name}: {case['against'][name]['speed']:.2f} times as fast")
    sys.stdout.flush()


def arguments(argv: list[str]) -> argparse.Namespace:
    if argv and argv[-1].endswith(".json"):
        argv = [argv[-1], *argv[:-1]]  # at the end it would be taken for one more of the list before it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument("--device", choices=list(RIVALS), default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--rivals", nargs="*", choices=ALL_RIVALS, help="default: all but max-autotune")
    parser.add_argument("--checkout", type=lambda name: Path(name).resolve(), help="of this library, to compare with")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of a turn on cpu, whole dispatches (default: see above)")
    parser.add_argument("--images", type=int, default=IMAGES_PER_EPOCH, help="of an epoch (default: %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a contender's start, or its turn")
    args = parser.parse_args(argv)
    args.rivals = RIVALS[args.device] if args.rivals is None else args.rivals
    if args.device == "cpu" and (only := [name for name in args.rivals if name not in RIVALS["cpu"]]):
        parser.error(f"--rivals {' '.join(only)}: needs --device cuda")
    if args.device == "cuda" and args.steps is not None:
        parser.error("--steps: a turn on cuda is an epoch; choose its length with --images")
    return args


def make_case(args: argparse.Namespace, precision: str, batch_size: int) -> dict[str, Any]:
    steps = args.steps or steps_of_a_turn(args.device, precision, batch_size, args.images)
    images = args.images if args.device == "cpu" else steps * batch_size  # whole batches: ours trains on the rest, too
    if not 0 < steps * batch_size <= images:
        raise SystemExit(f"compare_pytorch: --images {args.images}: too few for a turn at batch size {batch_size}")
    case = {"device": args.device, "batch_size": batch_size, "precision": precision, "width": args.width}
    return {**case, "images": images, "steps": steps}


def main(argv: list[str]) -> int:
    args = arguments(argv)
    if args.rivals and find_spec("torch") is None:
        print(
            "compare_pytorch: PyTorch is not installed: pip install -e '.[parity]' (for a GPU, the build for its CUDA: "
            "https://pytorch.org/get-started/locally)",
            file=sys.stderr,
        )
        return 2
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        for precision in args.precisions:
            for batch_size in args.batch_sizes:
                case = make_case(args, precision, batch_size)
                entries = contenders_of(case, args.rivals, args.checkout)
                cases.append(compare(case, entries, args.pairs, args.timeout, cache))
                report(cases[-1])
                if args.out:  # after every case, as the next may be cut short
                    write_json(args.out, written(cases, ["python", *sys.argv]))
    return 0 if all(case["against"] for case in cases) else 1


def written(cases: list[dict[str, Any]], command: list[str]) -> dict[str, Any]:
    """What the file holds: the environments of both sides, which are the same in all cases, are told once."""
    environments: dict[str, Any] = {"environment": {}, "pytorch": {}}
    stripped = []
    for case in cases:
        rows = {}
        for name, found in case["contenders"].items():
            if not name.startswith(f"{OURS} in "):  # another checkout keeps its own, with its commit
                environments["environment" if name == OURS else "pytorch"] |= found.get("environment", {})
                found = {key: value for key, value in found.items() if key != "environment"}
            rows[name] = found
        stripped.append({**case, "contenders": rows})
    environments["environment"]["command"] = shlex.join(command)  # a worker knows its own only
    return {**environments, "machine": machine(), "cases": stripped}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
