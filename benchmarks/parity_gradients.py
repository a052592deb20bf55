"""How far float32 gradients are from PyTorch's in float64, PyTorch's own and ours, at batch 128 on several batches.

    python benchmarks/parity_gradients.py --data-dir .data results/parity-gradients.json

A ReLU passes a gradient or not. Of the millions of numbers that ReLUs are given in a batch some are within rounding of
zero, so that float32 decides some differently, whoever computes. Needs PyTorch (pip install -e '.[parity]'); without
--data-dir the built-in synthetic images are taken.
"""

import argparse
import statistics
from pathlib import Path

import tests_on_path  # noqa: F401
from support.golden import cases, oracle, ours

import jaxresnet as jr
from jaxresnet.files import write_json
from jaxresnet.hardware import environment


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10")
    parser.add_argument("--batches", type=int, default=10)
    args = parser.parse_args()
    config, batch_size = jr.ModelConfig(), 128
    count = args.batches * batch_size
    data = jr.load_cifar10(args.data_dir) if args.data_dir else jr.make_synthetic(count, 10)
    draws, augment = cases.draws(count, jr.AugmentConfig()), jr.AugmentConfig()
    tensors = cases.state_dict(config)

    errors: dict[str, list[float]] = {"PyTorch": [], "jaxresnet": []}
    for start in range(0, count, batch_size):
        rows = cases.Draws(*(column[start : start + batch_size] for column in draws))
        crops, labels = cases.cropped(data.train.images[rows.order], rows, augment), data.train.labels[rows.order]
        images = cases.augmented(crops, rows, augment, "float32")
        exact = oracle.loss_and_gradients(oracle.network(config, tensors).double(), images, labels)
        sides = {
            "PyTorch": oracle.loss_and_gradients(oracle.network(config, tensors), images, labels),
            "jaxresnet": ours.loss_and_gradients(config, tensors, images, labels),
        }
        for side, grads in sides.items():
            errors[side].append(max(cases.error(grads[name], exact[name]) for name in exact))
            print(f"{side}: {errors[side][-1]:.1e}", flush=True)
    result = {
        "environment": environment() | {"torch": torch.__version__},
        "data": data.name,
        "batch_size": batch_size,
        "median_error": {side: statistics.median(found) for side, found in errors.items()},
        "errors": errors,
    }
    write_json(args.out, result)


if __name__ == "__main__":
    main()
