"""The command line that all experiment scripts share: flags to configs, a first line, the comparisons, a last page."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxresnet.cli.exits import exit_status, stop_on_signal
from jaxresnet.cli.experiment import DEMO_TEST, DEMO_VAL, PROTOCOLS, Arms, Experiment
from jaxresnet.cli.options import Options, parse
from jaxresnet.cli.progress import PlannedRun, Progress, duration
from jaxresnet.comparison.compare import Hooks, RunsFailed, compare
from jaxresnet.comparison.plan import check_arms, check_spread
from jaxresnet.config import ModelConfig, TrainConfig, field_value
from jaxresnet.data.dataset import Dataset
from jaxresnet.errors import ConfigError, ResultsError, StorageError, UserError
from jaxresnet.hardware import resolved
from jaxresnet.nn.summary import count_macs
from jaxresnet.recipes import SOURCE, published_run
from jaxresnet.reporting.report import render, render_tree
from jaxresnet.results.schemas import comparison_path as config_path
from jaxresnet.results.schemas import measurement_path
from jaxresnet.training.compilation import use_compilation_cache
from jaxresnet.training.processes import distributed, from_main, is_main, several, together


class Planned(NamedTuple):
    """One comparison that a command is about to run, and the folder of its results."""

    experiment: Experiment
    name: str
    protocol: str
    arms: dict[str, TrainConfig]
    out: Path


def run_experiment(*experiments: Experiment, description: str | None = None, protocol: str = "intended") -> None:
    """The `main` of an experiment script. Several experiments end in one page over all their folders.

    description: printed by --help, default the first experiment's. protocol: the default of `--protocol`.
    Published figures are set beside the arms that repeat a published run. Exits with status 0, with 2 after a user's
    error, or with 75 after Ctrl-C or SIGTERM, when the same command continues.
    """
    with exit_status(), distributed():
        use_compilation_cache()
        description = description or experiments[0].description
        options, fields = parse(experiments, sys.argv[1:], description, protocol)
        planned = plan(experiments, options, fields)
        if fields and not planned:
            flags = ", ".join("--" + name.replace("_", "-") for name in fields)
            raise ConfigError(f"{flags}: no effect here, as no network is trained; --train trains, where a script can")
        around = options.out or Path("out")
        if len(experiments) > 1 and from_main(config_path(around).exists):
            raise ResultsError(f"{around}: is the folder of one comparison; choose one for all of them")
        from_main(lambda: run_measurements(experiments, options))
        failed = run_comparisons(planned, options) if planned else []
        if len(experiments) > 1:
            print(from_main(lambda: _page_over_all(around)))
        if failed:
            raise UserError(f"{len(failed)} of {len(planned)} comparisons failed, see above: {', '.join(failed)}")


def _page_over_all(around: Path) -> str:
    tree = render_tree(around)
    return f"\n{tree.table}\n\npage     {tree.html}"


def plan(experiments: Sequence[Experiment], options: Options, fields: Mapping[str, Any]) -> list[Planned]:
    """The comparisons that `options` ask for, each with its arms and its folder."""
    return [
        Planned(experiment, name, protocol, experiment.arms(name, protocol, options.demo, fields), folder)
        for experiment, name, protocol, folder in _asked(experiments, options)
        if name in experiment.comparisons
    ]


def run_measurements(experiments: Sequence[Experiment], options: Options) -> None:
    """Run the measurements that `options` ask for and that are not there yet."""
    for experiment, name, _, folder in _asked(experiments, options):
        if name not in experiment.measurements:
            continue
        if measurement_path(folder).is_file():
            print(f"{folder} is there already: remove it to measure again")
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            problem = f"{folder}: cannot write results there ({e.strerror or e}); choose another folder"
            raise StorageError(problem) from e
        print(f"{experiment.measurements[name](folder, options.demo)}\n\nresults  {folder}", flush=True)


def _asked(experiments: Sequence[Experiment], options: Options) -> list[tuple[Experiment, str, str, Path]]:
    """(experiment, name, protocol, folder) of every measurement and comparison that `options` ask for."""
    asked = [
        (experiment, name, protocol)
        for experiment in experiments
        for name in experiment.select(options.only, options.all)
        for protocol in (options.protocols if name in experiment.comparisons else ("intended",))
    ]
    if options.out is not None and len(asked) == len(experiments) == 1:
        return [(*asked[0], options.out)]
    around, demo = options.out or Path("out"), "-demo" if options.demo else ""
    return [(e, name, protocol, around / f"{name}{PROTOCOLS[protocol]}{demo}") for e, name, protocol in asked]


def run_comparisons(planned: Sequence[Planned], options: Options) -> list[str]:
    """Run every planned comparison or what is missing of it, and print table, verdict and paths of each.

    Everything that can be refused is refused before the first one trains. One that fails while it trains does not keep
    the others from running: returned are the names of those that failed. A single one raises its error.
    """
    import jax

    check_spread(options.devices)
    planned = [one._replace(arms=as_begun(one.arms, one.out, jax.devices()[0])) for one in planned]
    for one in planned:
        check_arms(one.arms, options.seeds)  # before anything is downloaded
    data = together(lambda: _load_data(options, planned))
    for one in planned:
        check_comparison(one.arms, options.seeds, data[one.out], devices=_devices_of_a_run(options))
        from_main(partial(_check_folder, one, options, data[one.out]))
    for one in planned:
        print(first_line(one, options, data[one.out]))
    if options.demo:
        print("the demo shows how it works: its networks and data are so small that accuracies mean little")
    if options.devices == "runs" and len(jax.devices()) == 1:
        print("--devices runs: there is one device, so one run goes after the other")
    runs = {
        (one.out, arm, seed): _planned_run(one, arm, seed, data[one.out], done, len(planned) > 1)
        for one in planned
        for arm, seed, done in from_main(partial(pending, one.arms, options.seeds, one.out))
    }
    left = [run for run in runs.values() if not run.done]
    if left:
        skipped = f", {len(runs) - len(left)} of {len(runs)} runs being finished" if len(left) < len(runs) else ""
        seconds = expected_seconds(left, options)
        print(f"expect about {duration(seconds)} of training, plus compiling{skipped}", flush=True)
    else:
        print(f"all {len(runs)} runs are finished: nothing is trained", flush=True)
    start = time.perf_counter()
    failed = []
    with stop_on_signal(options.devices == "runs") as stop, Progress(list(runs.values())) as progress:
        for one in planned:
            mine = {(arm, seed): run for (out, arm, seed), run in runs.items() if out == one.out}
            try:
                text, failure = _run_comparison(one, options, data[one.out], _hooks(progress, mine, stop))
                progress.print(text)
                if failure:
                    raise failure
            except UserError as e:
                if len(planned) == 1:
                    raise
                where = "" if isinstance(e, RunsFailed) else f"{one.out}: "  # which names its folder
                if is_main():
                    print(f"error: {where}{e}", file=sys.stderr, flush=True)
                failed.append(one.out.name)
    print(f"took     {duration(time.perf_counter() - start)}")
    return failed


def _run_comparison(one: Planned, options: Options, data: Dataset, hooks: Hooks) -> tuple[str, RunsFailed | None]:
    """Run a comparison, or what is missing of it, and return the text to print, and the error where runs failed."""
    failure = None
    try:
        report = compare(
            one.arms,
            options.seeds,
            data,
            one.out,
            name=one.name,
            protocol=one.protocol,
            published={} if options.demo else published_figures(one.arms),
            spread=options.devices,
            restart=options.restart,
            hooks=hooks,
        ).report
    except RunsFailed as e:
        report, failure = e.comparison.report, e
    text = f"\n{report.table}\n\n{report.verdict}\n\nfigure   {report.figure}\nresults  {one.out}\n"
    if one.experiment.after and not failure:
        text += from_main(lambda: _after(one, data))
    return text, failure


def _check_folder(one: Planned, options: Options, data: Dataset) -> None:
    check_folder(one.out, one.arms, options.seeds, data, one.name, one.protocol)


def _after(one: Planned, data: Dataset) -> str:
    assert one.experiment.after is not None
    text = one.experiment.after(one.out, data)
    render(one.out)  # for its page to show what `after` wrote
    return f"\n{text}\n"


def _hooks(progress: Progress, runs: Mapping[tuple[str, int], PlannedRun], should_stop: Callable[[], bool]) -> Hooks:
    return Hooks(
        lambda arm, seed: progress.on_run(runs[arm, seed]),
        lambda arm, seed, rows: progress.on_epoch(runs[arm, seed], rows),
        lambda arm, seed, epoch, images: progress.on_progress(runs[arm, seed], epoch, images),
        lambda arm, seed: progress.on_end(runs[arm, seed]),
        should_stop,
    )


def published_figures(arms: Arms) -> dict[str, dict[str, Any]]:
    """{arm: {"run": name, "best" and "last": percent, "source": text}} of the arms that repeat a published run."""
    found = {arm: published_run(config) for arm, config in arms.items()}
    return {
        arm: {"run": match[0], "best": match[1].best, "last": match[1].last, "source": SOURCE}
        for arm, match in found.items()
        if match
    }


def _load_data(options: Options, planned: Sequence[Planned]) -> dict[Path, Dataset]:
    """{folder of a comparison: its data set}: CIFAR-10 for all of them, or each demo's own synthetic images."""
    if options.demo:
        from jaxresnet.data.synthetic import make_synthetic

        sizes = {one.experiment.demo_images for one in planned}
        made = {size: make_synthetic(size + DEMO_VAL, DEMO_TEST) for size in sizes}
        return {one.out: made[one.experiment.demo_images] for one in planned}
    from jaxresnet.data.cifar10 import load_cifar10

    data = load_cifar10(options.data_dir)
    return {one.out: data for one in planned}


def _devices_of_a_run(options: Options) -> Any:
    """The devices that share one run's batches; None for all, of all processes."""
    import jax

    return jax.devices()[:1] if options.devices == "runs" else None


def _planned_run(one: Planned, arm: str, seed: int, data: Dataset, done: bool, named: bool) -> PlannedRun:
    config = one.arms[arm]
    images = (config.train_size or data.train.num_examples) - config.val_size
    comparison = one.out.name if named else ""
    return PlannedRun(arm, seed, images, config.num_epochs, 3 * count_macs(config.model), done, comparison)


def first_line(one: Planned, options: Options, data: Dataset) -> str:
    """Comparison, device, precision, data set, arms, seeds; settings in which the arms differ, each once."""
    import jax

    from jaxresnet.hardware import device_name

    def of(name: str, form: str = "{:,}") -> str:
        return " / ".join(dict.fromkeys(form.format(field_value(config, name)) for config in one.arms.values()))

    devices = jax.devices()
    sharing = {"data": "sharing batches", "runs": "a run each"}[options.devices]
    if several():
        sharing += f", in {jax.process_count()} processes"
    count = f"{len(devices)} ({sharing}) x " if len(devices) > 1 else ""
    kind = f"{data.name}: synthetic data, not CIFAR-10" if data.synthetic else data.name
    models = [config.model for config in one.arms.values()]
    usual = all(model == ModelConfig(precision=model.precision) for model in models)
    network = "" if usual else f"width {of('width')}, "
    epochs = f"{of('num_epochs')} epochs" if of("num_epochs") != "1" else "1 epoch"
    images = dict.fromkeys(f"{(c.train_size or data.train.num_examples) - c.val_size:,}" for c in one.arms.values())
    return (
        f"{one.name} | {one.protocol} protocol | {count}{device_name(devices[0])} | {of('precision', '{}')} | {kind}, "
        f"{' / '.join(images)} training images | {network}{epochs}, batch {of('batch_size')} | "
        f"{' vs '.join(one.arms)} | seeds {', '.join(map(str, options.seeds))}"
    )


def expected_seconds(runs: Iterable[PlannedRun], options: Options) -> float:
    """A rough guess for all `runs`, from the speed of a matrix product measured now. Epoch lines tell better."""
    import jax
    import jax.numpy as jnp

    size = 1024 if jax.devices()[0].platform == "cpu" else 8192
    a = jnp.ones((size, size), resolved(options.config, jax.devices()[0]).model.precision)
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))  # else bfloat16 is float32 on a CPU
    times = []
    for _ in range(6):  # the best of them: other programs can only slow it down
        start = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - start)
    macs_per_second = size**3 / min(times) * len(jax.devices())
    efficiency = 0.4  # of a training step against a matrix product, with room: seen on CPUs is 0.5 to 0.8
    return sum(run.work for run in runs) / (efficiency * macs_per_second)
