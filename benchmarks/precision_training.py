"""Training in bfloat16 against float32, seed by seed: the published main run (Adam in Lookahead at batch 512) in both.

    python benchmarks/precision_training.py results/precision-published-15000-images-5-epochs-cpu --data .data \\
        --train-size 15000 --epochs 5 --seeds 0 1 2

A comparison like those of experiments/, into a folder like theirs (figure, tables, curves of every run), continued when
it is called again, with more seeds if wanted. Both arms have the same initial weights, the same order of images and the
same augmentation for a seed, so their difference is what rounding does. On a CPU bfloat16 takes the convolutions of
`jaxresnet.nn.cpu.products`, whatever the CPU.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jaxresnet as jr


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the comparison")
    parser.add_argument("--data", help="CIFAR-10, in any form that jr.load_cifar10 takes")
    parser.add_argument("--epochs", type=int, default=51)
    parser.add_argument("--train-size", type=int, help="use only the first so many training images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args(argv)
    os.environ["JAXRESNET_CPU_BFLOAT16"] = "1"
    changes = {"num_epochs": args.epochs, "train_size": args.train_size, "batch_size": args.batch_size}
    run = replace(jr.published["adam_512"].config, **changes)
    arms = {p: replace(run, model=replace(run.model, precision=p, width=args.width)) for p in ("float32", "bfloat16")}
    data = jr.load_cifar10(args.data)
    report = jr.compare(arms, args.seeds, data, args.out, name="precision", protocol="published").report
    print(f"{report.table}\n\n{report.verdict}")


if __name__ == "__main__":
    main()
