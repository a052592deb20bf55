"""The command line that all experiment scripts share: flags to configs, a first line, the comparisons, a last page."""

import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from jaxresnet.compare import Hooks, check_comparison, compare, pending
from jaxresnet.config import ModelConfig, TrainConfig, differing_fields, field_names, field_value, to_dict
from jaxresnet.dataset import Dataset
from jaxresnet.errors import ConfigError, UserError
from jaxresnet.experiment import DEMO_TEST, DEMO_VAL, PROTOCOLS, Arms, Experiment
from jaxresnet.progress import PlannedRun, Progress, duration
from jaxresnet.published import SOURCE, published_run
from jaxresnet.report import Report
from jaxresnet.summary import count_macs
from jaxresnet.train import Interrupted

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Options:
    """Flags of every experiment script; below them every field of the runs' configuration, by its own name."""

    demo: bool = False  # a small built-in synthetic data set and a narrow network: minutes on a CPU, no download
    protocol: Literal["published", "intended", "both"] = "intended"  # as the published project did it, or as it meant
    only: tuple[str, ...] = ()  # names of comparisons to run, of those that this script has
    seeds: tuple[int, ...] = (0, 1, 2)  # each arm runs once with each; arms are compared seed by seed
    devices: Literal["data", "runs"] = "data"  # several devices share every batch, or each has a run of its own
    data_dir: Path | None = None  # a folder with a copy of CIFAR-10; else it is looked for, then downloaded
    out: Path | None = None  # folder of the results; default out/<comparison>; with several, the folder around theirs
    config: TrainConfig = field(default_factory=TrainConfig)  # defaults are those of the first arm

    @property
    def protocols(self) -> tuple[str, ...]:
        return ("published", "intended") if self.protocol == "both" else (self.protocol,)


class Planned(NamedTuple):
    """One comparison that a command is about to run, and the folder of its results."""

    name: str
    protocol: str
    arms: dict[str, TrainConfig]
    out: Path


def run_experiment(experiment: Experiment) -> None:
    """The `main` of an experiment script.

    Published figures are set beside the arms that repeat a published run. Exits with status 0, with 2 after a user's
    error, or with 130 after Ctrl-C, when the same command continues.
    """
    with exit_status():
        options, fields = parse(experiment, sys.argv[1:])
        run_comparisons(plan(experiment, options, fields), options, load_data(options, experiment.demo_images))


@contextmanager
def exit_status() -> Any:
    """Turns a user's error and an interruption into a line on stderr and the exit status."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as e:
        where = f", {e}" if isinstance(e, Interrupted) else ""
        print(f"\nStopped{where}. The same command continues:\n  {_command()}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except UserError as e:
        fail(e)


def fail(error: UserError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def parse(experiment: Experiment, argv: list[str]) -> tuple[Options, dict[str, Any]]:
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

    demo, protocol, name = "--demo" in argv, value_of("--protocol"), value_of("--only")
    if name is None or name not in experiment.comparisons:
        name = next(iter(experiment.comparisons))
    arms = experiment.arms(name, "published" if protocol == "published" else "intended", demo)
    base = next(iter(arms.values()))
    options = tyro.cli(
        Options,
        default=Options(demo=demo, config=base),
        args=argv,
        description=experiment.description,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if (options.protocol == "published", options.demo) != (protocol == "published", demo):
        raise ConfigError("--protocol and --demo set the other flags' defaults: give each once")
    if options.config.seed != base.seed:
        raise ConfigError("--seed: a comparison runs several, name them all: --seeds 0 1 2")
    for name in options.only:
        if name not in experiment.comparisons:
            raise ConfigError(f"--only {name}: must be one of {', '.join(experiment.comparisons)}")
    # Fields that differ from the default, and those that are named although they do not.
    named = {arg.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_") for arg in argv}
    lines = differing_fields(to_dict(base), to_dict(options.config))
    given = {line.partition(":")[0].rpartition(".")[2] for line in lines} | (named & field_names(base))
    return options, {name: field_value(options.config, name) for name in sorted(given)}


def plan(experiment: Experiment, options: Options, fields: Mapping[str, Any]) -> list[Planned]:
    """The comparisons that `options` ask for, each with its arms and its folder."""
    names = options.only or [name for name in experiment.comparisons if name not in experiment.optional]
    pairs = [(name, protocol) for name in dict.fromkeys(names) for protocol in options.protocols]
    around = options.out or Path("out")
    alone = options.out is not None and len(pairs) == 1
    demo = "-demo" if options.demo else ""
    return [
        Planned(
            name,
            protocol,
            experiment.arms(name, protocol, options.demo, fields),
            around if alone else around / f"{name}{PROTOCOLS[protocol]}{demo}",
        )
        for name, protocol in pairs
    ]


def run_comparisons(planned: Sequence[Planned], options: Options, data: Dataset) -> list[Report]:
    """Run every planned comparison or what is missing of it, and print table, verdict and paths of each."""
    for one in planned:
        check_comparison(one.arms, options.seeds, data, devices=_devices_of_a_run(options))
    for one in planned:
        print(first_line(one, options, data))
    runs = {
        (one.out, arm, seed): _planned_run(one, arm, seed, data, done)
        for one in planned
        for arm, seed, done in pending(one.arms, options.seeds, one.out)
    }
    left = [run for run in runs.values() if not run.done]
    skipped = f" ({len(runs) - len(left)} of {len(runs)} runs are finished)" if len(left) < len(runs) else ""
    if left:
        seconds = expected_seconds(left, options)
        print(f"expect about {duration(seconds)} of training, plus compiling{skipped}", flush=True)
    start = time.perf_counter()
    reports = []
    with _stop_on_signal() as stop, Progress(list(runs.values())) as progress:
        for one in planned:
            hooks = _hooks(
                progress, {(arm, seed): run for (out, arm, seed), run in runs.items() if out == one.out}, stop
            )
            comparison = compare(
                one.arms,
                options.seeds,
                data,
                one.out,
                name=one.name,
                protocol=one.protocol,
                published={} if options.demo else published_figures(one.arms),
                spread=options.devices,
                hooks=hooks,
            )
            report = comparison.report
            progress.print(f"\n{report.table}\n\n{report.verdict}\n\nfigure   {report.figure}\nresults  {one.out}")
            reports.append(report)
    print(f"took     {duration(time.perf_counter() - start)}")
    return reports


def _hooks(progress: Progress, runs: Mapping[tuple[str, int], PlannedRun], should_stop: Callable[[], bool]) -> Hooks:
    return Hooks(
        lambda arm, seed: progress.on_run(runs[arm, seed]),
        lambda arm, seed, rows: progress.on_epoch(runs[arm, seed], rows),
        lambda arm, seed, epoch, images: progress.on_progress(runs[arm, seed], epoch, images),
        should_stop,
    )


def published_figures(arms: Arms) -> dict[str, dict[str, Any]]:
    """{arm: {"best": percent, "source": text}} of the arms that repeat a published run."""
    found = {arm: published_run(config) for arm, config in arms.items()}
    return {
        arm: {"run": match[0], "best": match[1].best, "last": match[1].last, "source": SOURCE}
        for arm, match in found.items()
        if match
    }


def load_data(options: Options, demo_images: int) -> Dataset:
    if options.demo:
        from jaxresnet.synthetic import make_synthetic

        if options.data_dir is not None:
            raise ConfigError("--demo runs on its own synthetic data: leave --data-dir out, or leave --demo out")
        return make_synthetic(demo_images + DEMO_VAL, DEMO_TEST)
    from jaxresnet.cifar10 import load_cifar10

    return load_cifar10(options.data_dir)


def _devices_of_a_run(options: Options) -> Any:
    """The devices that share one run's batches; None for all local ones."""
    import jax

    return jax.local_devices()[:1] if options.devices == "runs" else None


def _planned_run(one: Planned, arm: str, seed: int, data: Dataset, done: bool) -> PlannedRun:
    config = one.arms[arm]
    images = (config.train_size or data.train.num_examples) - config.val_size
    return PlannedRun(arm, seed, images, config.num_epochs, 3 * count_macs(config.model), done, str(one.out))


def first_line(one: Planned, options: Options, data: Dataset) -> str:
    """Comparison, device, precision, data set, arms, seeds; settings in which the arms differ, each once."""
    import jax

    from jaxresnet.environment import device_name

    def of(name: str, form: str = "{:,}") -> str:
        return " / ".join(dict.fromkeys(form.format(field_value(config, name)) for config in one.arms.values()))

    devices = jax.local_devices()
    sharing = {"data": "sharing batches", "runs": "a run each"}[options.devices]
    count = f"{len(devices)} ({sharing}) x " if len(devices) > 1 else ""
    kind = f"{data.name}: synthetic data, not CIFAR-10" if data.synthetic else data.name
    models = [config.model for config in one.arms.values()]
    usual = all(model == ModelConfig(precision=model.precision) for model in models)
    network = "" if usual else f"width {of('width')}, "
    images = dict.fromkeys(f"{(c.train_size or data.train.num_examples) - c.val_size:,}" for c in one.arms.values())
    return (
        f"{one.name} | {one.protocol} protocol | {count}{device_name(devices[0])} | {of('precision', '{}')} | {kind}, "
        f"{' / '.join(images)} training images | {network}{of('num_epochs')} epochs, batch {of('batch_size')} | "
        f"{' vs '.join(one.arms)} | seeds {', '.join(map(str, options.seeds))}"
    )


def expected_seconds(runs: Iterable[PlannedRun], options: Options) -> float:
    """A rough guess for all `runs`, from the speed of a matrix product measured now. Epoch lines tell better."""
    import jax
    import jax.numpy as jnp

    size = 1024 if jax.local_devices()[0].platform == "cpu" else 8192
    a = jnp.ones((size, size), options.config.model.precision)
    product = jax.jit(jnp.matmul)
    times = []
    for _ in range(6):  # the best of them: other programs can only slow it down
        start = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - start)
    macs_per_second = size**3 / min(times) * jax.local_device_count()
    efficiency = 0.4  # of a training step against a matrix product, roughly what CPUs and GPUs were seen to reach
    return sum(run.work for run in runs) / (efficiency * macs_per_second)


@contextmanager
def _stop_on_signal() -> Any:
    """Yield should_stop(). The first Ctrl-C or SIGTERM asks for a stop, the second Ctrl-C ends at once.

    To be entered before `Progress`, which replaces stderr by one that takes rich's locks: a signal's handler that waits
    for a lock, which the code that it interrupted may hold, could wait for ever.
    """
    asked, stream = threading.Event(), sys.stderr

    def ask(signum: int, frame: Any) -> None:
        print(
            "\nstopping after this step (on accelerators, this epoch) and saving; press again to end at once",
            file=stream,
            flush=True,
        )
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _command() -> str:
    return shlex.join([sys.orig_argv[0], *sys.argv])  # the interpreter as it was called: .venv/bin/python, for one
