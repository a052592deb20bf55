"""Speed and memory of the training step against PyTorch at its best: same network, batch, Adam and precision, by turns.

    python benchmarks/compare_pytorch.py --device cpu results/compare_pytorch-cpu.json
    python benchmarks/compare_pytorch.py --device cuda --batch-sizes 512 1024 results/compare_pytorch-cuda.json

Ours is the library's own engine, with all that `fit` does in a step: drawing and applying augmentation, totals, norms
of gradients, weights and updates, a check for non-finite numbers. The rivals (see `pytorch_step.py`) have their batches
normalised, unaugmented and on the device in channels-last before the clock starts, and keep no totals: what they leave
out favours them. Lookahead is off on both sides.

Every contender is a process of its own, with the same environment, and works while the others wait. They take turns
of 2,048 images on a CPU, the most that ours trains on in one dispatch there, of a whole epoch on a GPU, in an order
that is reversed every time, and the speed against a rival is the median over rounds of the ratio of their seconds.
Where ours computes in less than float32, on a CPU the rivals run in float32 as well.

Memory is the process's largest resident size on a CPU: Python and libraries (memory_at_start_bytes, which for the
rivals has JAX in it, too: they read the network's config with it) and, on our side, the whole training set, of which
the rivals hold the batches of one turn. On a GPU it is the largest sum of arrays on the device, without the code and
the libraries' own: for JAX from the start, for PyTorch from the end of its warm-up.

build_seconds: importing, building, compiling and the first turn, less a warm turn. Nothing is compiled before on
either side, but the rivals share what torch.compile has made for one of them.

Needs PyTorch (pip install -e '.[parity]'). Ends with status 1 where ours, or every rival of a case, failed.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import typing
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compare_pytorch_worker import OURS
from machine import machine
from turns import Contender, speed_against, take_turns

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.training.engine import IMAGES_PER_DISPATCH

RIVALS = {"cpu": ["eager", "compile"], "cuda": ["eager", "compile", "graphs"]}  # those that run unless others are named
ALL_RIVALS = ["eager", "compile", "graphs", "max-autotune"]
PRECISIONS = [p for p in typing.get_args(typing.get_type_hints(jr.ModelConfig)["precision"]) if p != "auto"]
# Before a turn on a CPU, seconds: threads of the one before may spin so long before they sleep.
PAUSE = {"cpu": 0.3, "cuda": 0.0}


def worker_command(who: str, case: dict[str, Any]) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("compare_pytorch_worker.py")), who, json.dumps(case)]


def worker_environment(device: str, cache: str) -> dict[str, str]:
    """The same for both sides: one GPU that they share, and nothing compiled by earlier runs."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": device,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": cache,
    }
    if device == "cuda":
        environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # else JAX takes most of its memory for itself
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    return environment


def rival_precisions(precision: str, device: str) -> list[str]:
    """Those in which PyTorch runs against ours in `precision`, which may be one that it does not know."""
    if precision == "float32" or (precision == "bfloat16" and device == "cuda"):
        return [precision]
    return ["float32", "bfloat16"]


def contenders_of(case: dict[str, Any], rivals: list[str]) -> dict[str, tuple[str, str]]:
    """{name: (who, precision)}, ours first."""
    against = rival_precisions(case["precision"], case["device"])
    theirs = {f"{rival} {precision}": (rival, precision) for precision in against for rival in rivals}
    return {OURS: (OURS, case["precision"]), **theirs}


def compare(case: dict[str, Any], rivals: list[str], rounds: int, timeout: float, cache: str) -> dict[str, Any]:
    """Run one case. Returns it with what was found: of each contender, of ours against each rival, and the best
    rivals, {precision: name}."""
    environment = worker_environment(case["device"], cache)
    named = contenders_of(case, rivals)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # above 0 at the first case: somebody else works
    with ExitStack() as stack:
        contenders: list[Contender] = []
        for name, (who, precision) in named.items():
            command = worker_command(who, {**case, "precision": precision})
            contenders.append(stack.enter_context(Contender(name, command, environment, timeout)))
            contenders[-1].wait_until_ready()
            if contenders[0].failure:
                break
        check_same_network(contenders)
        take_turns(contenders, rounds, PAUSE[case["device"]])
    flops = 3 * 2 * jr.count_macs(jr.ModelConfig(width=case["width"]))  # backward costs twice the forward pass
    rows = {c.name: row(c, named[c.name][1], case["steps"] * case["batch_size"], flops) for c in contenders}
    working = [c for c in contenders if c.failure is None]
    against = {}
    if contenders[0] in working:
        against = {c.name: speed_against(contenders[0].units, c.units) for c in working[1:]}
    best: dict[str, str] = {}
    for name in sorted(against, key=lambda name: against[name]["speed"]):  # the best one first, by the paired ratios
        best.setdefault(named[name][1], name)
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
    turn = f"{case['steps']} step{'s' * (case['steps'] > 1)} a turn"
    print(f"batch {case['batch_size']}, {case['precision']}, width {case['width']}, {turn}:")
    for name, found in case["contenders"].items():
        label = f"{OURS} {found['precision']}" if name == OURS else name
        if "failed" in found:
            print(f"  {label:<22} failed: {found['failed']}")
            continue
        line = f"{found['images_per_second']:10,.1f} images/s {found['model_flops_per_second'] / 1e12:7.2f} TFLOP/s"
        line += f"  {found['peak_memory_bytes'] / 2**30:6.2f} GiB  built in {found['build_seconds']:5.1f} s"
        if name in case["against"]:
            against = case["against"][name]
            low, high = against["range"]
            line += f"  ours is {against['speed']:.2f} times as fast ({low:.2f} to {high:.2f})"
        print(f"  {label:<22}{line}")
    for precision, name in case["best_rival"].items():
        print(f"  against the best in {precision}, {name}: {case['against'][name]['speed']:.2f} times as fast")
    sys.stdout.flush()


def passed(case: dict[str, Any]) -> bool:
    """Whether ours ran, and a rival to compare it with."""
    return bool(case["against"])


def arguments(argv: list[str]) -> argparse.Namespace:
    if argv and argv[-1].endswith(".json"):
        argv = [argv[-1], *argv[:-1]]  # at the end it would be taken for one more of the list before it
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument("--device", choices=list(RIVALS), default="cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=PRECISIONS, help="ours")
    parser.add_argument("--rivals", nargs="+", choices=ALL_RIVALS, help="default: all but max-autotune")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument(
        "--steps",
        type=int,
        help=f"of a turn, whole dispatches (default: those of {IMAGES_PER_DISPATCH} images on cpu; on cuda an epoch)",
    )
    parser.add_argument("--images", type=int, default=50_000, help="of an epoch (default: %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a contender's start, or its turn")
    args = parser.parse_args(argv)
    args.rivals = args.rivals or RIVALS[args.device]
    for name in args.rivals:
        if args.device == "cpu" and name not in RIVALS["cpu"]:
            parser.error(f"--rivals {name}: needs --device cuda")
    if args.device == "cuda" and args.steps is not None:
        parser.error("--steps: a turn on cuda is an epoch; choose its length with --images")
    if min(args.pairs, args.images, 1 if args.steps is None else args.steps, *args.batch_sizes) < 1:
        parser.error("--pairs, --steps, --images and --batch-sizes must be 1 or more")
    for size in args.batch_sizes:
        if size * steps_of_a_turn(args, size) > args.images:
            parser.error(f"--images {args.images}: too few for a turn at batch size {size}")
    try:
        jr.ModelConfig(width=args.width)
    except jr.ConfigError as e:
        parser.error(str(e))
    return args


def steps_of_a_turn(args: argparse.Namespace, batch_size: int) -> int:
    """--steps, else on a CPU as many as one dispatch of ours holds at most, on a GPU all of an epoch."""
    if args.steps is not None:
        return args.steps
    return max(1, (args.images if args.device == "cuda" else min(args.images, IMAGES_PER_DISPATCH)) // batch_size)


def make_case(args: argparse.Namespace, precision: str, batch_size: int) -> dict[str, Any]:
    case = {"device": args.device, "batch_size": batch_size, "precision": precision, "width": args.width}
    steps = steps_of_a_turn(args, batch_size)
    # On a GPU whole batches, as ours would train on the rest.
    return {**case, "images": args.images if args.device == "cpu" else steps * batch_size, "steps": steps}


def main(argv: list[str]) -> int:
    args = arguments(argv)
    if find_spec("torch") is None:
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
                cases.append(compare(case, args.rivals, args.pairs, args.timeout, cache))
                report(cases[-1])
                if args.out:  # after every case, as the next may be cut short
                    write_json(args.out, written(cases, ["python", *sys.argv]))
    return 0 if all(map(passed, cases)) else 1


def written(cases: list[dict[str, Any]], command: list[str]) -> dict[str, Any]:
    """What the file holds: the environments of both sides, which are the same in all cases, are told once."""
    environments: dict[str, Any] = {"environment": {}, "pytorch": {}}
    stripped = []
    for case in cases:
        rows = {}
        for name, found in case["contenders"].items():
            environments["environment" if name == OURS else "pytorch"] |= found.get("environment", {})
            rows[name] = {key: value for key, value in found.items() if key != "environment"}
        stripped.append({**case, "contenders": rows})
    environments["environment"]["command"] = shlex.join(command)  # a worker knows its own only
    return {**environments, "machine": machine(), "cases": stripped}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
