"""`python -m jaxresnet summary` and `python -m jaxresnet report FOLDER`."""

from pathlib import Path

from jaxresnet.cli import fail
from jaxresnet.config import ModelConfig
from jaxresnet.errors import UserError


def main() -> None:
    import tyro

    subcommands = tyro.extras.SubcommandApp()

    @subcommands.command(name="summary")
    def _(model: tyro.conf.OmitArgPrefixes[ModelConfig] = ModelConfig()) -> None:  # noqa: B008 - frozen
        """Print a network's layers, shapes, parameters and multiply-adds."""
        from jaxresnet.summary import summary

        print(summary(model))

    @subcommands.command(name="report")
    def _(folder: tyro.conf.Positional[Path]) -> None:
        """Redraw tables, figures and report.html of a comparison, of a measurement, or of a folder of them, without
        training."""
        from jaxresnet.measurement import measurement_path
        from jaxresnet.report import render, render_measurement, render_tree
        from jaxresnet.results import config_path

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

    try:
        subcommands.cli(prog="python -m jaxresnet", description=__doc__)
    except UserError as e:
        fail(e)


if __name__ == "__main__":
    main()
