"""The commands of `python -m jaxresnet`. Each imports what it needs: `report` needs no JAX."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

import jaxresnet
from jaxresnet.cli.exits import exit_status
from jaxresnet.config import ModelConfig
from jaxresnet.files import local_path


def main() -> None:
    commands: dict[str, Callable[..., None]] = {
        "summary": summary,
        "report": report,
        "convert": convert,
        "import": import_results,
    }
    with exit_status(continues=False):
        if sys.argv[1:] == ["--version"]:
            print(f"jaxresnet {jaxresnet.__version__}")
            return
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m jaxresnet")


def summary(model: tyro.conf.OmitArgPrefixes[ModelConfig] = ModelConfig()) -> None:  # noqa: B008 - frozen
    """Print a network's layers, shapes, parameters and multiply-adds."""
    from jaxresnet.nn.summary import summarise

    print(summarise(model))


def report(folder: tyro.conf.Positional[Path]) -> None:
    """Redraw tables, figures and report.html of a comparison, a measurement, or a folder of them. Trains nothing."""
    from jaxresnet.reporting.report import render, render_measurement, render_tree
    from jaxresnet.results.schemas import comparison_path, measurement_path

    folder = local_path(folder)
    if comparison_path(folder).is_file():
        drawn = render(folder)
        print(f"{drawn.table}\n\n{drawn.verdict}\n\nfigure  {drawn.figure}\npage    {drawn.html}")
    elif measurement_path(folder).is_file():
        table, html = render_measurement(folder)
        print(f"{table}\npage     {html}")
    else:
        tree = render_tree(folder)
        for name, drawn in tree.reports.items():
            print(f"{name}\n{drawn.verdict}\n")
        print(f"{tree.table}\n\npage    {tree.html}")
        for name, reason in tree.skipped.items():
            print(f"skipped {name}: {reason}")


def convert(
    source: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    weights: Literal["fast", "slow"] | None = None,
    wrap: bool = False,
    key: str | None = None,
) -> None:
    """Convert weights between PyTorch's .pth or .ckpt, .safetensors and folders of this library, each to any other.

    Args:
        source: a .pth, .pt, .ckpt or .safetensors file, or a run's folder (out/runs/<id>), whose chosen epoch is taken
        target: a new file of these kinds, or else a new folder, which `predict` reads
        weights: Lookahead's, from a run's folder; without this flag those that the run was scored on
        key: which network of a file that holds several, as state_dict_ema, or state_dict.ema_net
        wrap: write the published project's {"net", "acc", "epoch"} to a .pth, with the accuracy in percent
    """
    from jaxresnet.interop.weight_files import convert
    from jaxresnet.nn.resnet import count_params

    read = convert(source, target, weights, wrap, key)
    config, sizes = read.config, ",".join(map(str, read.config.stage_sizes))
    print(f"{source} -> {target}" + (f" ({read.kind} weights)" if read.kind else ""))
    if read.keys:
        others = f"; it also holds {', '.join(read.keys[1:])} (--key)" if read.keys[1:] else ""
        print(f"read the state dict {read.keys[0]!r}{others}")
    if read.left_out:
        print(f"left out, as not of the network: {', '.join(read.left_out)}")
    print(
        f"blocks {sizes}, width {config.width}, shortcuts {config.shortcut_kernel}x{config.shortcut_kernel}, "
        f"{config.num_classes} classes: {count_params(config):,} parameters"
    )


def import_results(folder: tyro.conf.Positional[Path], out: Path = Path("out")) -> None:
    """Import results of the layout before there was a store of runs, with one folder a comparison. Trains nothing.

    Args:
        folder: the folder of one such comparison, or a folder of them
        out: folder of results to import into: runs into runs/, each comparison into a folder of its name
    """
    from jaxresnet.comparison.imports import import_comparison

    for name in import_comparison(folder, out):
        print(f"{folder} -> {out / name}")
