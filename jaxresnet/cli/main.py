"""The main program of all experiment scripts."""

import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxresnet.cli.exits import exit_status, stop_on_signal
from jaxresnet.cli.experiment import Arms, Experiment
from jaxresnet.cli.options import Options, parse
from jaxresnet.comparison.compare import RunsFailed, run_plan
from jaxresnet.comparison.plan import Plan, check_arms, prepare
from jaxresnet.comparison.progress import Hooks, Progress, duration, jobs_of
from jaxresnet.config import TrainConfig, field_value
from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.data.dataset import Dataset, check_data
from jaxresnet.distributed import distributed, from_main, is_main, main_first, several
from jaxresnet.errors import ConfigError, Interrupted, UserError, warn
from jaxresnet.hardware import device_name, multiplies_bfloat16, num_cores, use_cores
from jaxresnet.recipes import SOURCE, published_run
from jaxresnet.reporting.report import render, render_tree
from jaxresnet.results.schemas import measurement_path
from jaxresnet.training.compilation import use_compilation_cache

ALONE = "several processes only train: run the same command in one process for what comes after"
PROTOCOLS = {"intended": "", "published": "-published"}  # what each adds to the name of a comparison's folder


class Asked(NamedTuple):
    """One comparison that a command asks for. name: of its folder."""

    experiment: Experiment
    name: str
    protocol: str
    arms: dict[str, TrainConfig]


def run_experiment(*experiments: Experiment, description: str | None = None, protocol: str = "intended") -> None:
    """Run the command line of a script. Several experiments end in one page over all their results.

    description: printed by --help; default the first experiment's. protocol: the default of --protocol. Everything
    that can be refused is refused before anything is written. Exits with status 0, with 2 after a user's error, or
    with 75 after Ctrl-C or another signal to stop, when the same command continues.
    """
    with exit_status(), distributed():
        use_compilation_cache()
        options, fields = parse(experiments, sys.argv[1:], description or experiments[0].description, protocol)
        asked = comparisons(experiments, options, fields)
        for one in asked:
            check_arms(one.arms, options.seeds)  # before anything is downloaded
        share_cores(options, asked)
        datasets = main_first(lambda: load_data(asked, options))
        plans = [
            prepare(
                one.arms,
                options.seeds,
                data,
                options.out,
                name=one.name,
                protocol=one.protocol,
                published={} if options.demo else published_figures(one.arms),
                spread=options.devices,
            )
            for one, data in zip(asked, datasets, strict=True)
        ]
        run_measurements(experiments, options)
        failed = run_plans(asked, plans, options) if plans else []
        if len(experiments) > 1:
            print(from_main(lambda: _page_over_all(options.out)))
        if failed:
            raise UserError(f"{len(failed)} of {len(plans)} comparisons failed, see above: {', '.join(failed)}")


def share_cores(options: Options, asked: Sequence[Asked]) -> None:
    """Make every core a device for one run alone in bfloat16 on a CPU, so that they share its batch. Several runs
    train side by side on one device, see `compare`."""
    configs = [config for one in asked for config in one.arms.values()]
    if options.devices == "runs" or len(configs) * len(options.seeds) != 1:
        return
    bfloat16 = {"bfloat16", "auto"} if multiplies_bfloat16() else {"bfloat16"}
    if configs[0].model.precision in bfloat16 and configs[0].batch_size % num_cores() == 0:
        use_cores()


def comparisons(experiments: Sequence[Experiment], options: Options, fields: dict[str, Any]) -> list[Asked]:
    """The comparisons that `options` ask for, with `fields` set in every arm. Raises ConfigError for flags that cannot
    hold for them."""
    asked = [
        Asked(
            experiment,
            options.name or name + PROTOCOLS[protocol] + "-demo" * options.demo,
            protocol,
            experiment.arms(name, protocol, options.demo, fields),
        )
        for experiment in experiments
        for name in experiment.select(options.only, options.all)
        if name in experiment.comparisons
        for protocol in options.protocols
    ]
    if fields and not asked:
        flags = ", ".join("--" + name.replace("_", "-") for name in fields)
        raise ConfigError(f"{flags}: no effect, as no network is trained. Add --train, if the script can train")
    if options.name is not None and len(asked) != 1:
        raise ConfigError(
            f"--name {options.name}: is for one comparison, and this command runs {len(asked)}. Choose one with --only "
            "and --protocol"
        )
    return asked


def load_data(asked: Sequence[Asked], options: Options) -> list[Dataset]:
    """The data set of each comparison: CIFAR-10, or in the demo each experiment's own synthetic images."""
    if options.demo:
        made = {one.experiment.demo_images: one.experiment.demo_data() for one in asked}
        return [made[one.experiment.demo_images] for one in asked]
    return [load_cifar10(options.data_dir)] * len(asked) if asked else []


def published_figures(arms: Arms) -> dict[str, dict[str, Any]]:
    """{arm: {"run": name, "best" and "last": percent, "source": text}} of the arms that repeat a published run."""
    figures = {}
    for arm, config in arms.items():
        if repeated := published_run(config):
            name, run = repeated
            figures[arm] = {"run": name, "best": run.best, "last": run.last, "source": SOURCE}
    return figures


def run_measurements(experiments: Sequence[Experiment], options: Options) -> None:
    """Run the measurements that `options` ask for and that are not there yet."""
    for experiment in experiments:
        for name in experiment.select(options.only, options.all):
            if name not in experiment.measurements:
                continue
            folder = options.out / (name + "-demo" * options.demo)
            if measurement_path(folder).is_file():
                print(f"{folder} is there already: remove it to measure again")
            elif several():
                print(f"{folder}: networks are measured by one process; run the same command in one")
            else:
                print(f"{experiment.measurements[name](folder, options.demo)}\n\nresults  {folder}", flush=True)


def run_plans(asked: Sequence[Asked], plans: Sequence[Plan], options: Options) -> list[str]:
    """Train what is missing of every comparison, and print its table, verdict and paths.

    A comparison that fails does not keep the others from running: returns the names of those that failed. A single one
    raises its error.
    """
    for plan in plans:
        print(first_line(plan))
    if options.demo:
        print("the demo shows how it works: its networks and data are so small that accuracies mean little")
    jobs = jobs_of(plans)
    left = sum(not job.done for job in jobs.values())
    print(f"{left} of {len(jobs)} runs to train" if left else f"all {len(jobs)} runs are finished", flush=True)
    start, failed = time.perf_counter(), []
    side_by_side = any(len(plan.teams) > 1 for plan in plans)
    with stop_on_signal(threads=side_by_side) as should_stop, Progress(jobs.values()) as progress:
        for one, plan in zip(asked, plans, strict=True):
            try:
                _run_and_print(one, plan, options.restart, progress.hooks(plan, jobs, should_stop), progress)
            except Interrupted:
                raise
            except Exception as e:
                if len(plans) == 1 or (several() and not isinstance(e, UserError)):
                    raise
                if not isinstance(e, UserError):
                    traceback.print_exception(e)
                if is_main():
                    print(f"error: {e}", file=sys.stderr, flush=True)
                failed.append(plan.folder.name)
    print(f"took     {duration(time.perf_counter() - start)}")
    return failed


def _run_and_print(one: Asked, plan: Plan, restart: bool, hooks: Hooks, progress: Progress) -> None:
    failure = None
    try:
        report = run_plan(plan, restart, hooks).report
    except RunsFailed as e:
        report, failure = e.comparison.report, e
    progress.print(f"\n{report.table}\n\n{report.verdict}\n\nfigure   {report.figure}\nresults  {plan.folder}\n")
    if failure:
        raise failure
    if one.experiment.after:
        progress.print(ALONE if several() else _after(one.experiment, plan))


def _after(experiment: Experiment, plan: Plan) -> str:
    assert experiment.after is not None
    text = experiment.after(plan.folder, plan.data)
    render(plan.folder)  # its page shows what `after` wrote
    return f"{text}\n"


def _page_over_all(root: Path) -> str:
    try:
        tree = render_tree(root)
    except Exception as e:  # each comparison has its own page, and what failed is still to be said
        warn(f"{root / 'report.html'}: not written ({e!r})")
        return ""
    return f"\n{tree.table}\n\npage     {tree.html}"


def first_line(plan: Plan) -> str:
    """Comparison, protocol, devices, precision, data set, sizes, arms and seeds. Where arms differ, each value once."""

    def of(name: str, form: str = "{:,}") -> str:
        return " / ".join(dict.fromkeys(form.format(field_value(config, name)) for config in plan.arms.values()))

    devices, processes, used = plan.teams[0], jax.process_count(), ""
    if len(plan.teams) > 1:
        used = f": {len(plan.teams)} runs at a time"
    elif len(devices) > 1:
        used = f": {len(devices)} devices that share batches"
        used += f", in {processes} processes" if processes > 1 else ""
    images = dict.fromkeys(f"{check_data(config, plan.data):,}" for config in plan.arms.values())
    parts = [
        plan.folder.name,
        f"{plan.protocol} protocol",
        device_name(devices[0]) + used,
        of("precision", "{}"),
        plan.data.name + (": synthetic data, not CIFAR-10" if plan.data.synthetic else ""),
        f"{' / '.join(images)} training images",
        f"width {of('width')}, batch {of('batch_size')}, epochs {of('num_epochs')}",
        " vs ".join(plan.arms),
        f"seeds {', '.join(map(str, plan.seeds))}",
    ]
    return " | ".join(parts)
