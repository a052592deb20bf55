"""A comparison: every arm with every seed, the missing runs trained, and what came of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxresnet.comparison.executors import run_one, spread_over
from jaxresnet.comparison.plan import Plan, PlannedRun, Spread, check_begun, prepare, read_begun
from jaxresnet.comparison.progress import Hooks, Progress, is_watched, jobs_of
from jaxresnet.config import TrainConfig
from jaxresnet.data.dataset import Dataset
from jaxresnet.distributed import agreed, from_main, is_main, on_main
from jaxresnet.errors import Interrupted, UserError
from jaxresnet.files import lock, write_json
from jaxresnet.hardware import environment
from jaxresnet.output import robust_output
from jaxresnet.reporting.report import Report, render
from jaxresnet.results.schemas import comparison_path
from jaxresnet.results.store import remove_temporary


class Comparison(NamedTuple):
    """folder: what is drawn from the comparison, see `results.store`. report: the table, the verdict, and where they
    were written. runs: {(arm, seed): folder of the run in the store}."""

    folder: Path
    report: Report
    runs: dict[tuple[str, int], Path]


class RunsFailed(UserError):
    """Some of `num_runs` runs could not go on; all others are finished. comparison: what there is, with the failures
    named in it. failures: {(arm, seed): reason}."""

    def __init__(self, comparison: Comparison, failures: Mapping[tuple[str, int], str], num_runs: int):
        self.comparison, self.failures = comparison, dict(failures)
        reasons = "".join(f"\n  {arm} seed {seed}: {reason}" for (arm, seed), reason in self.failures.items())
        super().__init__(
            f"{comparison.folder}: {len(failures)} of {num_runs} runs failed, and no other was lost. The same command "
            f"tries them again; do first what each of these asks for:{reasons}"
        )
        self._args = comparison, dict(failures), num_runs

    def __reduce__(self) -> Any:  # pickled by its message alone it could not be made again
        return type(self), self._args


def compare(
    arms: Mapping[str, TrainConfig],
    seeds: Sequence[int],
    data: Dataset,
    out: str | Path = "out",
    *,
    name: str = "comparison",
    protocol: str = "intended",
    published: Mapping[str, Mapping[str, Any]] | None = None,
    devices: Sequence[jax.Device] | None = None,
    spread: Spread | None = None,
    restart: bool = False,
    progress: bool = True,
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
) -> Comparison:
    """Train every arm with every seed, or what is missing of it, then write tables and figure into `out`/`name`.

    arms: {name: config}; each config's own seed is replaced. out: the folder around several comparisons, which share
    the runs in `out`/runs. published: {arm: {"best": percent, "source": text}}, shown beside.
    devices: default all, of all processes. spread: with "data" all devices share every batch, one run after another;
    with "runs" each device trains a run of its own, and a CPU that is one device as many runs as it has cores. None is
    "runs" on such a CPU, unless `devices` are given, else "data". The results agree to rounding. restart: begin runs
    anew whose checkpoints are all damaged. progress: print a line an epoch and the time left, on a terminal or in a
    notebook, unless `hooks` say what is done instead. Several processes call this alike, and see one `out`.

    Calling it again continues where it stopped, on CPU within an epoch; with more arms or seeds it adds them. A run
    that another comparison has trained is not trained again. Raises what `prepare` does before anything is written,
    and ResultsError while another process works on this comparison. A run that cannot go on (see `run_one`) does not
    keep the others from running: RunsFailed is raised after them, and holds what there is.
    """
    plan = prepare(
        arms, seeds, data, out, name=name, protocol=protocol, published=published, devices=devices, spread=spread
    )
    with robust_output():
        if hooks._replace(should_stop=None) != Hooks() or not (progress and is_main() and is_watched()):
            return run_plan(plan, restart, hooks)
        jobs = jobs_of([plan])
        with Progress(jobs.values()) as shown:
            return run_plan(plan, restart, shown.hooks(plan, jobs, hooks.should_stop))


def run_plan(plan: Plan, restart: bool = False, hooks: Hooks = Hooks()) -> Comparison:  # noqa: B008 - immutable
    """Train what is missing of a plan, then write tables and figure; see `compare`."""
    failures: dict[tuple[str, int], str] = {}

    def train(run: PlannedRun, team: Sequence[jax.Device], should_stop: Callable[[], bool]) -> None:
        if agreed(should_stop)():
            raise Interrupted(f"results so far in {plan.folder}")
        if hooks.on_run:
            hooks.on_run(run.arm, run.seed)
        reason = run_one(
            plan.store / run.id,
            run.config,
            plan.data,
            devices=team,
            restart=restart,
            on_epoch=hooks.on_epoch and partial(hooks.on_epoch, run.arm, run.seed),
            on_progress=hooks.on_progress and partial(hooks.on_progress, run.arm, run.seed),
            should_stop=should_stop,
        )
        if reason is not None:
            failures[run.arm, run.seed] = reason
        if hooks.on_end:
            hooks.on_end(run.arm, run.seed)

    with on_main(lock(plan.folder)):
        from_main(lambda: _claim(plan))
        waiting = [run for run in plan.runs if not run.done]
        spread_over(waiting, plan.teams, train, hooks.should_stop or (lambda: False))
        folders = {(run.arm, run.seed): plan.store / run.id for run in plan.runs}
        comparison = Comparison(plan.folder, _render(plan.folder), folders)
    if failures:
        raise RunsFailed(comparison, failures, len(plan.runs))
    return comparison


def _claim(plan: Plan) -> None:
    """Write comparison.json, or add arms and seeds to the one there. For the one that holds the folder's lock."""
    remove_temporary(plan.folder)
    begun = read_begun(plan.folder)
    check_begun(begun, plan)  # once more: the plan may be hours old
    mine = plan.to_json()
    if begun is None:
        mine["environment"] = environment()
    else:
        mine["published"] = {**(begun.get("published") or {}), **mine["published"]}
        mine["environment"] = begun["environment"]
    if mine != begun:
        write_json(comparison_path(plan.folder), mine)


def _render(folder: Path) -> Report:
    """The report, which process 0 writes and tells the others of."""
    told = from_main(lambda: {name: str(value) for name, value in vars(render(folder)).items()})
    paths = {name: Path(told[name]) for name in ("summary_json", "summary_md", "figure", "html")}
    return Report(**paths, table=told["table"], verdict=told["verdict"], complete=told["complete"] == "True")
