"""How long training agrees with PyTorch: a published protocol in both, from equal weights, images and draws.

    python benchmarks/parity_training.py --data-dir .data float32.json
    python benchmarks/parity_training.py --data-dir .data --dtype float64 --steps 20 float64.json

Rounding differs, and training magnifies differences, so in float32 the two part after a while. How fast they must part
is shown by a third run: PyTorch again, every weight of its first layer changed by about one part in 10 million (in
float64, in 10**16). Needs PyTorch (pip install -e '.[parity]'); without --data-dir the built-in synthetic images are
trained on.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tests_on_path  # noqa: F401
from support.golden import cases, oracle, ours

import jaxresnet as jr
from jaxresnet.config import to_dict
from jaxresnet.files import write_json
from jaxresnet.hardware import environment
from jaxresnet.interop.torch import torch_arrays
from jaxresnet.training.state import TrainState

# OneCycle starts below its peak, where `training_steps` trains.
RUNS = sorted(name for name, run in jr.published.items() if run.config.optim.schedule == "cosine")
LOOKED_AT = (1, 5, 10, 20, 50, 100, 200)  # steps after which weights are compared
NUDGE = {"float32": 1e-7, "float64": 1e-15}  # about one rounding

Arrays = dict[str, np.ndarray]


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10")
    parser.add_argument("--run", default="adam_128", choices=RUNS, help="the published run (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    args = parser.parse_args()
    config = jr.published[args.run].config
    config = replace(config, model=replace(config.model, width=args.width))
    count = args.steps * config.batch_size
    data = jr.load_cifar10(args.data_dir) if args.data_dir else jr.make_synthetic(count, 10)
    if count > data.train.num_examples:
        parser.error(
            f"--steps {args.steps}: an epoch of {data.name} has {data.train.num_examples // config.batch_size}"
        )
    images, labels = data.train.images[:count], data.train.labels[:count]
    tensors = cases.initial_state_dict(config.model)
    given = (images, labels, cases.draws(len(images), config.augment), args.dtype)

    runs: dict[str, list[float]] = {}
    kept: dict[str, dict[int, Arrays]] = {}
    for name, steps in {
        "PyTorch": oracle.training_steps(config, tensors, *given),
        "PyTorch, nudged": oracle.training_steps(config, tensors, *given, nudge=NUDGE[args.dtype]),
        "jaxresnet": ours.training_steps(config, tensors, *given),
    }.items():
        runs[name], kept[name] = [], {}
        for step, (loss, after) in enumerate(steps, start=1):
            runs[name].append(loss)
            if step in (*LOOKED_AT, args.steps):
                kept[name][step] = parameters(after)
            print(f"{name}: step {step}, loss {loss:.6f}", flush=True)

    parted = {}
    theirs = np.array(runs["PyTorch"])
    for name in ("jaxresnet", "PyTorch, nudged"):
        difference = np.abs(np.array(runs[name]) - theirs) / theirs
        beyond = np.flatnonzero(difference > 1e-3)
        parted[name] = {
            "first_step_beyond_1e-3": int(beyond[0]) + 1 if len(beyond) else None,
            "largest_relative_loss_difference_until_step": {str(n): float(difference[:n].max()) for n in kept[name]},
            "relative_distance_of_weights_after_step": {
                str(n): distance(weights, kept["PyTorch"][n]) for n, weights in kept[name].items()
            },
        }
    last = min(50, args.steps)
    result = {
        "environment": environment() | {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "run": args.run,
        "config": to_dict(config),
        "dtype": args.dtype,
        "data": data.name,
        "num_images": count,
        "against_pytorch": parted,
        "steps_at_the_end": last,
        "mean_loss_at_the_end": {name: float(np.mean(losses[-last:])) for name, losses in runs.items()},
        "losses": runs,
    }
    write_json(args.out, result)
    print(json.dumps(parted, indent=1))


def parameters(after: Any) -> Arrays:
    """The trainable weights of either side, in PyTorch's names and layout, in float32."""
    if isinstance(after, TrainState):
        arrays = torch_arrays({"params": after.params, "batch_stats": after.batch_stats})
    else:
        arrays = oracle.numpy(after.state_dict())
    names = [name for name in arrays if "running" not in name and "tracked" not in name]
    return {name: arrays[name].astype(np.float32) for name in names}


def distance(a: Arrays, b: Arrays) -> float:
    """|a - b| / |b| over all weights together."""
    assert a.keys() == b.keys()
    between = sum(float(np.square(a[name].astype(np.float64) - b[name]).sum()) for name in a)
    return float(np.sqrt(between / sum(float(np.square(b[name].astype(np.float64)).sum()) for name in b)))


if __name__ == "__main__":
    main()
