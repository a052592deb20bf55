"""The command line that all experiment scripts share: flags to configs, a first line, the comparison, a last page."""

import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from jaxresnet.compare import Hooks, check_comparison, compare
from jaxresnet.config import ModelConfig, TrainConfig, differing_fields, to_dict
from jaxresnet.dataset import Dataset
from jaxresnet.errors import ConfigError, UserError
from jaxresnet.progress import Progress, duration
from jaxresnet.published import intended
from jaxresnet.summary import count_macs
from jaxresnet.train import Interrupted

MakeArms = Callable[[TrainConfig], Mapping[str, TrainConfig]]

# The demo: small enough for three minutes on two CPU cores. No smaller last batch, so one shape to compile.
DEMO_WIDTH = 16
DEMO: dict[str, Any] = {"batch_size": 64, "num_epochs": 5, "eval_batch_size": 512}
DEMO_TRAIN, DEMO_VAL, DEMO_TEST = 2048, 512, 1024

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Options:
    """Flags of every experiment script; below them every field of the run's configuration, by its own name."""

    demo: bool = False  # a small built-in synthetic data set and a narrow network: minutes on a CPU, no download
    protocol: Literal["published", "intended"] = "intended"  # as the published project did it, or as it was meant
    seeds: tuple[int, ...] = (0, 1, 2)  # each arm runs once with each; arms are compared seed by seed
    data_dir: Path | None = None  # a folder with a copy of CIFAR-10; else it is looked for, then downloaded
    out: Path | None = None  # folder of the results; default out/<script>, out/<script>-demo and so on
    config: TrainConfig = field(default_factory=TrainConfig)


def run_experiment(
    name: str,
    description: str | None,
    base: TrainConfig,
    make_arms: MakeArms,
    published: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """The `main` of an experiment script.

    base: the configuration as published, which flags change. make_arms(config) -> {arm name: config}.
    published: {arm: {"best": percent, "source": text}}, set beside the results of `--protocol published`.
    Exits with status 0, with 2 after a user's error, or with 130 after Ctrl-C, when the same command continues.
    """
    try:
        options = parse(description, base, sys.argv[1:])
        arms = dict(make_arms(options.config))
        _refuse_flags_without_effect(options.config, defaults(base, options.protocol, options.demo), make_arms)
        _run(name, options, arms, published if _like_published(options, base) else None)
    except (Interrupted, KeyboardInterrupt) as e:
        where = f", {e}" if isinstance(e, Interrupted) else ""
        print(f"\nStopped{where}. The same command continues:\n  {_command()}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except UserError as e:
        fail(e)


def fail(error: UserError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def parse(description: str | None, base: TrainConfig, argv: list[str]) -> Options:
    """The flags in `argv`. --protocol and --demo are read first, since the other flags' defaults follow from them.

    Raises ConfigError for values that no run can have; exits with status 2 and the nearest names for unknown flags.
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

    demo = "--demo" in argv
    default = Options(demo=demo, config=defaults(base, value_of("--protocol"), demo))
    options = tyro.cli(
        Options, default=default, args=argv, description=description or "", config=(tyro.conf.OmitArgPrefixes,)
    )
    if (options.protocol == "published", options.demo) != (value_of("--protocol") == "published", demo):
        raise ConfigError("--protocol and --demo set the other flags' defaults: give each once")
    if options.config.seed != base.seed:
        raise ConfigError("--seed: a comparison runs several, name them all: --seeds 0 1 2")
    return options


def defaults(base: TrainConfig, protocol: str | None, demo: bool) -> TrainConfig:
    """The configuration that flags change."""
    config = base if protocol == "published" else intended(base)
    if not demo:
        return config
    model = replace(config.model, width=DEMO_WIDTH)
    return replace(config, **DEMO, model=model, val_size=DEMO_VAL if config.val_size else 0)


def _refuse_flags_without_effect(config: TrainConfig, default: TrainConfig, make_arms: MakeArms) -> None:
    """Raise ConfigError for a flag that the arms of the script set themselves."""
    given = differing_fields(to_dict(default), to_dict(config))
    changed = differing_fields(
        {arm: to_dict(c) for arm, c in make_arms(default).items()},
        {arm: to_dict(c) for arm, c in make_arms(config).items()},
    )
    for line in given:
        name = line.partition(":")[0]
        if not any(f".{name}:" in f".{other}" for other in changed):
            flag = name.rpartition(".")[2].replace("_", "-")
            raise ConfigError(f"--{flag}: has no effect here, the arms of this comparison set it themselves")


def _like_published(options: Options, base: TrainConfig) -> bool:
    """Whether the published figures belong beside these results: same data, same run."""
    return not options.demo and options.config == base


def _run(
    name: str, options: Options, arms: dict[str, TrainConfig], published: Mapping[str, Mapping[str, Any]] | None
) -> None:
    data = _load(options)
    suffix = ("-published" if options.protocol == "published" else "") + ("-demo" if options.demo else "")
    out = options.out or Path("out") / (name + suffix)
    config = options.config
    check_comparison(arms, options.seeds, data)
    print(first_line(options, data, arms), flush=True)
    images = (config.train_size or data.train.num_examples) - config.val_size
    start = time.perf_counter()
    runs = [(arm, seed) for seed in options.seeds for arm in arms]
    with _stop_on_signal() as stop, Progress(runs, images, config.num_epochs) as progress:
        hooks = Hooks(progress.on_run, progress.on_epoch, progress.on_progress, stop)
        report = compare(
            arms, options.seeds, data, out, name=name, protocol=options.protocol, published=published, hooks=hooks
        ).report
    print(f"\n{report.table}\n\n{report.verdict}\n")
    print(f"figure   {report.figure}\nresults  {out}\ntook     {duration(time.perf_counter() - start)}")


def _load(options: Options) -> Dataset:
    if options.demo:
        from jaxresnet.synthetic import make_synthetic

        if options.data_dir is not None:
            raise ConfigError("--demo runs on its own synthetic data: leave --data-dir out, or leave --demo out")
        return make_synthetic(DEMO_TRAIN + DEMO_VAL, DEMO_TEST)
    from jaxresnet.cifar10 import load_cifar10

    return load_cifar10(options.data_dir)


def first_line(options: Options, data: Dataset, arms: Mapping[str, TrainConfig]) -> str:
    """Device, precision, data set, arms, seeds, and the time to expect."""
    import jax

    from jaxresnet.environment import device_name

    devices = jax.local_devices()
    config = options.config
    count = f"{len(devices)} x " if len(devices) > 1 else ""
    kind = f"{data.name}: synthetic data, not CIFAR-10" if data.synthetic else data.name
    network = f"width {config.model.width}, " if config.model != ModelConfig(precision=config.model.precision) else ""
    images = (config.train_size or data.train.num_examples) - config.val_size
    seconds = expected_seconds(arms.values(), data.train.num_examples) * len(options.seeds)
    return (
        f"{count}{device_name(devices[0])} | {config.model.precision} | {kind}, {images:,} training images | {network}"
        f"{config.num_epochs} epochs, batch {config.batch_size} | {' vs '.join(arms)} | {options.protocol} protocol | "
        f"seeds {', '.join(map(str, options.seeds))} | expect about {duration(seconds)} of training, plus compiling"
    )


def expected_seconds(configs: Iterable[TrainConfig], num_images: int) -> float:
    """A rough guess for one run of each, from the speed of a matrix product measured now. Epoch lines tell better."""
    import jax
    import jax.numpy as jnp

    size = 1024 if jax.local_devices()[0].platform == "cpu" else 8192
    configs = list(configs)
    a = jnp.ones((size, size), configs[0].model.precision)
    product = jax.jit(jnp.matmul)
    times = []
    for _ in range(6):  # the best of them: other programs can only slow it down
        start = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - start)
    macs_per_second = size**3 / min(times) * jax.local_device_count()
    efficiency = 0.4  # of a training step against a matrix product, roughly what CPUs and GPUs were seen to reach
    macs = sum(3 * count_macs(c.model) * ((c.train_size or num_images) - c.val_size) * c.num_epochs for c in configs)
    return macs / (efficiency * macs_per_second)


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
