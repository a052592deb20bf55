"""The flags that all experiment scripts share: from the command line to `Options` and changed fields."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from jaxresnet.cli.experiment import Experiment
from jaxresnet.config import TrainConfig, field_names, field_value
from jaxresnet.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Flags of every experiment script; below them every field of the runs' configuration, by its own name."""

    demo: bool = False  # a small built-in synthetic data set and a narrow network: minutes on a CPU, no download
    protocol: Literal["published", "intended", "both"] = "intended"  # as the published project did it, or as it meant
    only: tuple[str, ...] = ()  # run only these comparisons, by the names of their folders or the part before the "-"
    all: bool = False  # run the comparisons too that are left out without --only; --train means the same
    seeds: tuple[int, ...] = (0, 1, 2)  # each arm runs once with each; arms are compared seed by seed
    devices: Literal["data", "runs"] = "data"  # several devices share every batch, or each has a run of its own
    data_dir: Path | None = None  # a folder with a copy of CIFAR-10; else it is looked for, then downloaded
    out: Path | None = None  # folder of the results; default out/<comparison>; with several, the folder around theirs
    restart: bool = False  # begin a run anew whose checkpoints are all damaged
    config: TrainConfig = field(default_factory=TrainConfig)  # defaults are those of the first arm

    @property
    def protocols(self) -> tuple[str, ...]:
        return ("published", "intended") if self.protocol == "both" else (self.protocol,)


def parse(
    experiments: Sequence[Experiment], argv: list[str], description: str = "", protocol: str = "intended"
) -> tuple[Options, dict[str, Any]]:
    """The flags in `argv`, and the fields of the configuration that they set, which hold for every arm.

    --protocol, --demo and --only are read first, since the other flags' defaults follow from them. Raises ConfigError
    for values that no run can have; exits with status 2 and the nearest names for unknown flags.
    """
    import tyro

    def value_of(flag: str) -> str | None:
        value = None  # the last one counts, as it does for tyro
        for i, arg in enumerate(argv):
            if arg == flag:
                value = argv[i + 1] if i + 1 < len(argv) else None
            elif arg.startswith(flag + "="):
                value = arg.partition("=")[2]
        return value

    argv = ["--all" if arg == "--train" else arg for arg in argv]
    demo, chosen = "--demo" in argv, value_of("--protocol") or protocol
    base = _first_arm(experiments, value_of("--only"), chosen, demo)
    options = tyro.cli(
        Options,
        default=Options(demo=demo, protocol=cast(Any, protocol), config=base),
        args=argv,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if (options.protocol, options.demo) != (chosen, demo):
        raise ConfigError("--protocol and --demo set the other flags' defaults: give each once")
    if options.demo and options.data_dir is not None:
        raise ConfigError("--demo runs on its own synthetic data: leave --data-dir out, or leave --demo out")
    times = sum(arg == "--only" or arg.startswith("--only=") for arg in argv)
    if times > 1 or (times and not options.only):
        raise ConfigError("--only: give it once, with one or more names: --only schedulers batch_size")
    for name in options.only:
        if not any(e.select([name], options.all) for e in experiments):
            known = [known for e in experiments for known in e.select([], True)]
            names = list(dict.fromkeys([*known, *(one.partition("-")[0] for one in known)]))
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"--only {name}: must be one of {', '.join(names)}{hint}")
    # Those that are named, be it with their default: the default is that of one arm, the flag is for all.
    flags = {arg.partition("=")[0].removeprefix("--").replace("_", "-") for arg in argv if arg.startswith("--")}
    given = {flag.removeprefix("no-").replace("-", "_") for flag in flags} & field_names(base)
    if "seed" in given:
        raise ConfigError("--seed: a comparison runs several, name them all: --seeds 0 1 2")
    return options, {name: field_value(options.config, name) for name in sorted(given)}


def _first_arm(experiments: Sequence[Experiment], only: str | None, protocol: str, demo: bool) -> TrainConfig:
    """The configuration whose values are the flags' defaults: that of the first arm that runs."""
    for wanted in ([only] if only else [], []):  # `only` may name no comparison
        for experiment in experiments:
            for name in experiment.select(wanted, True):
                if name in experiment.comparisons:
                    arms = experiment.arms(name, "published" if protocol == "published" else "intended", demo)
                    return next(iter(arms.values()))
    return TrainConfig()
