"""`python -m jaxresnet` with `summary`, `report FOLDER`, `convert SOURCE TARGET` or `launch --processes N SCRIPT`."""

import sys
from pathlib import Path
from typing import Literal

from jaxresnet.cli.exits import fail
from jaxresnet.config import ModelConfig
from jaxresnet.errors import UserError


def main() -> None:
    if sys.argv[1:2] == ["launch"]:  # passes on the script's flags, which tyro would take for its own
        from jaxresnet.cli.launch import main as launch

        try:
            sys.exit(launch(sys.argv[2:]))
        except UserError as e:
            fail(e)

    import tyro

    subcommands = tyro.extras.SubcommandApp()

    @subcommands.command(name="launch")
    def _() -> None:
        """Start several processes of a script on this machine, which share its runs: launch --help tells more."""

    @subcommands.command(name="summary")
    def _(model: tyro.conf.OmitArgPrefixes[ModelConfig] = ModelConfig()) -> None:  # noqa: B008 - frozen
        """Print a network's layers, shapes, parameters and multiply-adds."""
        from jaxresnet.nn.summary import summarise

        print(summarise(model))

    @subcommands.command(name="report")
    def _(folder: tyro.conf.Positional[Path]) -> None:
        """Redraw tables, figures and report.html of a comparison, of a measurement, or of a folder of them, without
        training."""
        from jaxresnet.reporting.report import render, render_measurement, render_tree
        from jaxresnet.results.measurement import measurement_path
        from jaxresnet.results.store import config_path

        if config_path(folder).is_file():
            report = render(folder)
            print(f"{report.table}\n\n{report.verdict}\n\nfigure  {report.figure}\npage    {report.html}")
            return
        if measurement_path(folder).is_file():
            table, html = render_measurement(folder)
            print(f"{table}\npage     {html}")
            return
        tree = render_tree(folder)
        for name, report in tree.reports.items():
            print(f"{name}\n{report.verdict}\n")
        print(f"{tree.table}\n\npage    {tree.html}")
        for name, reason in tree.skipped.items():
            print(f"skipped {name}: {reason}")

    @subcommands.command(name="convert")
    def _(
        source: tyro.conf.Positional[Path],
        target: tyro.conf.Positional[Path],
        weights: Literal["fast", "slow"] | None = None,
        wrap: bool = False,
    ) -> None:
        """Convert weights between PyTorch's .pth, .safetensors and checkpoint folders, each to any other.

        Args:
            source: a .pth, .pt or .safetensors file, or a run's checkpoint folder, of which the chosen epoch is taken
            target: a new file of these kinds, or else a new checkpoint folder
            weights: Lookahead's, from a checkpoint folder; without this flag those that the run was scored on
            wrap: write the published project's {"net", "acc", "epoch"} to a .pth, with the accuracy in percent
        """
        from jaxresnet.interop.weight_files import convert

        config, num_params, num_tensors, kind = convert(source, target, weights, wrap)
        sizes = ",".join(map(str, config.stage_sizes))
        print(f"{source} -> {target}" + (f" ({kind} weights)" if kind else ""))
        print(
            f"blocks {sizes}, width {config.width}, shortcuts {config.shortcut_kernel}x{config.shortcut_kernel}, "
            f"{config.num_classes} classes: {num_params:,} parameters, {num_tensors} tensors"
        )

    try:
        subcommands.cli(prog="python -m jaxresnet", description=__doc__)
    except UserError as e:
        fail(e)


if __name__ == "__main__":
    main()
