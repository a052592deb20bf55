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
        """Redraw table and figure of a comparison from its folder, without training."""
        from jaxresnet.report import render

        report = render(folder)
        print(f"{report.table}\n\n{report.verdict}\n\nfigure  {report.figure}")

    try:
        subcommands.cli(prog="python -m jaxresnet", description=__doc__)
    except UserError as e:
        fail(e)


if __name__ == "__main__":
    main()
