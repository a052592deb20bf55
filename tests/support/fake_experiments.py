"""Experiments as a script would have them, and what parses their commands."""

from jaxresnet.cli.experiment import Experiment
from jaxresnet.cli.main import comparisons
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


def exit_code(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except SystemExit as e:
        return e.code
    return 0


def asked_of(*argv, experiments=(EXPERIMENT,)):
    """The comparisons that a command runs."""
    return comparisons(experiments, *parse(experiments, list(argv)))


def arms_of(*argv, experiment=EXPERIMENT):
    """{arm: config} of the first comparison that a command runs."""
    return asked_of(*argv, experiments=(experiment,))[0].arms
