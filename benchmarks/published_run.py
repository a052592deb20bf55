"""How long the published main run takes after compiling: 51 epochs of Adam with Lookahead at batch 512, by `jr.fit`.

    python benchmarks/published_run.py out.json --data FOLDER --precision bfloat16 --seeds 0 1 2

seconds is all that `fit` takes, from NumPy arrays to the chosen state: placing the data, training, a score of all test
images and, but for the last run, checkpoints (on accelerators not every epoch, see `fit`). seconds_after_compiling is
that without the compiling of training and evaluation, which the first seed pays and the others share. training_seconds
is training alone. The last run repeats the first seed without checkpoints. Without --data the images are drawn by a
program: the time is the same, the accuracy means nothing. The file is written after every run.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from machine import machine

import jaxresnet as jr
from jaxresnet.config import to_dict
from jaxresnet.files import write_json
from jaxresnet.hardware import environment


def timed(config: jr.TrainConfig, data: jr.Dataset, checkpoints: bool) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if checkpoints else None
        start = time.perf_counter()
        history, summary, *arrays = jr.fit(config, data, folder, devices=jax.devices()[:1])
        jax.block_until_ready(arrays)
        seconds = time.perf_counter() - start
    return {
        "seed": config.seed,
        "checkpoints": checkpoints,
        "seconds": seconds,
        "compile_seconds": summary["compile_seconds"],
        "seconds_after_compiling": seconds - summary["compile_seconds"],
        "training_seconds": summary["seconds"],
        "images_per_second": statistics.median(row["images_per_second"] for row in history),
        "best_test_accuracy": summary["test_accuracy"],
        "last_test_accuracy": history[-1]["test_accuracy"],
        "last_train_loss": history[-1]["train_loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--data", help="CIFAR-10, in any form that jr.load_cifar10 takes (default: drawn images)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="default: those of the published run")
    parser.add_argument("--images", type=int, default=50_000, help="training images to draw, without --data")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--stage-sizes", type=int, nargs="+", default=[1, 1, 1, 1])
    args = parser.parse_args()
    data = jr.load_cifar10(args.data) if args.data else jr.make_synthetic(args.images, max(args.images // 5, 10))
    published = jr.published["adam_512"]
    pool_size = 32 // 2 ** (len(args.stage_sizes) - 1)  # each stage but the first halves the images
    model = jr.ModelConfig(tuple(args.stage_sizes), args.width, pool_size=pool_size, precision=args.precision)
    config = replace(published.config, model=model, num_epochs=args.epochs or published.config.num_epochs)
    found: dict[str, Any] = {
        "environment": environment(jax.devices()[:1]),
        "machine": machine(),
        "data": data.name,
        "synthetic": data.synthetic,
        "config": to_dict(config),
        "published_best": published.best,
        "published_last": published.last,
        "runs": [],
    }
    for seed, checkpoints in [*((seed, True) for seed in args.seeds), (args.seeds[0], False)]:
        found["runs"].append(run := timed(replace(config, seed=seed), data, checkpoints))
        write_json(args.out, found)
        kept = "with" if checkpoints else "without"
        print(
            f"seed {seed}, {args.precision}, {kept} checkpoints: {run['seconds']:.1f} s, "
            f"{run['seconds_after_compiling']:.1f} after compiling, {run['training_seconds']:.1f} of training "
            f"({run['images_per_second']:,.0f} images/s); {data.name}: {run['last_test_accuracy']:.2f} %, best "
            f"{run['best_test_accuracy']:.2f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
