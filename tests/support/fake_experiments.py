"""Experiments as a script would have them, and what parses and plans their commands."""

from jaxresnet.cli.experiment import Experiment
from jaxresnet.cli.main import plan
from jaxresnet.cli.options import parse
from jaxresnet.recipes import published

BASE = published["adam_512"].config
MAIN = {"Adam + Lookahead": BASE, "Adam": published["adam_512_without_lookahead"].config}
RATES = {"lr 1e-2": published["adam_256"].config, "lr 1e-3": published["adam_256_lr_3"].config}

EXPERIMENT = Experiment("What this script is for.", {"main": MAIN})
OTHER = Experiment("Another.", {"rates-256": RATES, "rates-one": {"A": RATES["lr 1e-2"]}}, optional=("rates-one",))
MEASURED = Experiment(
    "Measured.", {"sizes-trained": MAIN}, ("sizes-trained",), measurements={"sizes": lambda folder, demo: "text"}
)


def exit_code(function, *args):
    try:
        function(*args)
    except SystemExit as e:
        return e.code
    return 0


def parse_main(*argv, experiments=(EXPERIMENT,), **kwargs):
    return parse(experiments, list(argv), **kwargs)


def arms_of(*argv, experiment=EXPERIMENT):
    """{arm: config} of the first comparison that a command runs."""
    options, fields = parse([experiment], list(argv))
    return plan([experiment], options, fields)[0].arms


def measuring(calls, name="sizes"):
    """A measurement that notes its calls, and fails to finish where `calls` says so."""

    def measure(folder, demo):
        calls.append((name, str(folder), demo))
        (folder / "measurement.json").write_text("{}")
        return f"the table of {name}"

    return measure
