"""The flags that all experiment scripts share: from the command line to `Options` and changed fields."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import jaxresnet
from jaxresnet.cli.experiment import Experiment
from jaxresnet.config import ALSO_CALLED, TrainConfig, field_names, field_value
from jaxresnet.errors import ConfigError
from jaxresnet.files import local_path


@dataclass(frozen=True)
class Selection:
    """The flags on which the defaults of all others depend."""

    demo: bool = False  # a small synthetic data set and a narrow network: minutes on a CPU, no download
    protocol: Literal["published", "intended", "both"] = "intended"  # as the project published it, or as it meant it
    only: tuple[str, ...] = ()  # run only these comparisons: names of their folders, or the part before the "-"
    # run the optional comparisons too
    all: Annotated[bool, tyro.conf.arg(aliases=("--train",))] = False

    @property
    def protocols(self) -> tuple[str, ...]:
        return ("published", "intended") if self.protocol == "both" else (self.protocol,)


@dataclass(frozen=True)
class Fields(TrainConfig):
    """The configuration as flags. --help leaves out the seed, of which a comparison runs several."""

    seed: tyro.conf.Suppress[Annotated[int, 0, 2**32 - 1]] = 0


@dataclass(frozen=True)
class Options(Selection):
    """Flags of every experiment script. After them, every field of the runs' configuration is a flag of its name."""

    seeds: tuple[int, ...] = (0, 1, 2)  # each arm runs once with each; arms are compared seed by seed
    # data: all devices share every batch. runs: each has a run of its own, and so has every core of a CPU. Without it:
    # runs on a CPU, data elsewhere
    devices: Literal["data", "runs"] | None = None
    data_dir: Path | None = None  # a folder with a copy of CIFAR-10; else it is looked for, then downloaded
    out: Path = Path("out")  # folder of all results: runs in runs/, each comparison in a folder of its name
    name: str | None = None  # another name for the folder of the one comparison that runs
    restart: bool = False  # begin a run anew whose checkpoints are all damaged
    config: Fields = field(default_factory=Fields)  # defaults are those of the first arm


def parse(
    experiments: Sequence[Experiment], argv: Sequence[str], description: str = "", protocol: str = "intended"
) -> tuple[Options, dict[str, Any]]:
    """The flags in `argv`, and {field: value} of the configuration's fields that they set in every arm.

    protocol: the default of --protocol. Raises ConfigError for values that no run can have. Exits with status 2 and
    the nearest names for unknown flags.
    """
    if "--version" in argv:
        print(f"jaxresnet {jaxresnet.__version__}")
        sys.exit(0)
    for flag in argv:
        name = flag.partition("=")[0].removeprefix("--")
        if flag.startswith("--") and name in ALSO_CALLED:
            raise ConfigError(f"--{name}: no such flag (did you mean --{ALSO_CALLED[name].replace('_', '-')}?)")
    default = Selection(protocol=protocol)  # type: ignore[arg-type]  # a caller's text, checked as a flag is
    selection, _ = tyro.cli(Selection, default=default, args=argv, return_unknown_args=True, add_help=False)
    base = _first_arm(experiments, selection)
    options = tyro.cli(
        Options,
        default=Options(**vars(selection), config=Fields(**vars(base))),
        args=argv,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    config = TrainConfig(**vars(options.config))
    options = replace(options, out=local_path(options.out), config=config)  # type: ignore[arg-type]
    flags = [arg.partition("=")[0] for arg in argv if arg.startswith("--")]
    if flags.count("--only") > 1 or ("--only" in flags and not options.only):
        raise ConfigError("--only: give it once, with one or more names: --only schedulers batch_size")
    for name in options.only:
        _check_name(name, experiments, options.all)
    if options.demo and options.data_dir is not None:
        raise ConfigError("--demo runs on synthetic data: leave --data-dir out, or leave --demo out")
    # A flag that is given with its default counts too: the default is that of one arm, the flag is for all.
    names = {flag.replace("_", "-").removeprefix("--").removeprefix("no-").replace("-", "_") for flag in flags}
    return options, {name: field_value(options.config, name) for name in sorted(names & field_names(base))}


def _first_arm(experiments: Sequence[Experiment], selection: Selection) -> TrainConfig:
    """The first arm that runs: its values are the defaults of the configuration's flags."""
    for only in (selection.only, ()):  # `only` may name measurements alone, or nothing
        for experiment in experiments:
            for name in experiment.select(only, True):
                if name in experiment.comparisons:
                    return next(iter(experiment.arms(name, selection.protocols[-1], selection.demo).values()))
    return TrainConfig()


def _check_name(name: str, experiments: Sequence[Experiment], optional: bool) -> None:
    if any(experiment.select([name], optional) for experiment in experiments):
        return
    whole = [known for experiment in experiments for known in experiment.select([], True)]
    known = dict.fromkeys([*whole, *(one.partition("-")[0] for one in whole)])
    raise ConfigError(f"--only {name}: must be one of {', '.join(known)}")
