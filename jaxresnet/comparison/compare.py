"""A comparison: arms times seeds, one run each, on disk and resumable."""

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxresnet.comparison.teams import check_spread, spread_over
from jaxresnet.config import TrainConfig, differing_fields, to_dict, with_new_fields
from jaxresnet.data.dataset import Dataset, fingerprint
from jaxresnet.errors import ConfigError, ResultsError, StorageError, UserError, printable
from jaxresnet.files import lock, write_json, write_rows
from jaxresnet.hardware import environment, resolved
from jaxresnet.reporting.report import Report, render
from jaxresnet.results.store import (
    checkpoint_path,
    config_path,
    failure_path,
    read_results,
    remove_unfinished,
    rows_path,
    scores_path,
    slugs,
)
from jaxresnet.training.fit import Interrupted, Result, Row, check_run, fit
from jaxresnet.training.processes import check_same, from_main, on_main, several
from jaxresnet.training.shared_run import agreed


class Comparison(NamedTuple):
    """folder: holds everything, see `results`. report: the table, the verdict, and where they were written."""

    folder: Path
    report: Report


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


class Hooks(NamedTuple):
    """What a comparison tells its caller while it runs. All may be None; with spread="runs" they are called from
    several threads.

    on_run(arm, seed): a run starts or continues. on_epoch(arm, seed, history): rows so far, the last one new.
    on_progress(arm, seed, epoch, images done in it). on_end(arm, seed): it is finished and written.
    should_stop(): True saves a checkpoint and raises `train.Interrupted`.
    """

    on_run: Callable[[str, int], None] | None = None
    on_epoch: Callable[[str, int, list[Row]], None] | None = None
    on_progress: Callable[[str, int, int, int], None] | None = None
    on_end: Callable[[str, int], None] | None = None
    should_stop: Callable[[], bool] | None = None


def compare(
    arms: Mapping[str, TrainConfig],
    seeds: Sequence[int],
    data: Dataset,
    out: str | Path,
    *,
    name: str = "comparison",
    protocol: str = "intended",
    published: Mapping[str, Mapping[str, Any]] | None = None,
    devices: Sequence[jax.Device] | None = None,
    spread: Literal["data", "runs"] = "data",
    restart: bool = False,
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
) -> Comparison:
    """Train every arm with every seed, or what is missing of it in `out`, then write tables and figure.

    arms: {name: config}; each config's own seed is replaced. seeds: each runs every arm before the next seed starts,
    so that an unfinished comparison holds pairs. published: {arm: {"best": percent, "source": text}}, shown beside.
    devices: default all, of all processes. spread: "data" shares every batch among them, one run after another; "runs"
    gives each device a run of its own, as many at a time as there are devices. The results agree to rounding. restart:
    begin runs anew whose checkpoints are all damaged. Several processes call this alike: one of them alone has `out`.

    Calling it again with the same arguments continues where it stopped, on CPU within an epoch; with more seeds it
    adds them. Raises ResultsError when `out` holds another comparison, naming the fields that differ, and
    while another process works there, naming that. A run that fails (its loss stops being finite, its checkpoints are
    damaged, the device has too little memory) does not keep the others from running: RunsFailed is raised after them,
    and holds what there is.
    """
    check_spread(spread)
    devices = tuple(jax.devices() if devices is None else devices)
    teams = [(device,) for device in devices] if spread == "runs" else [devices]
    arms = as_begun(arms, out, devices[0])
    check_comparison(arms, seeds, data, teams[0])
    out = Path(out)

    failures: dict[tuple[str, int], str] = {}

    def run(arm: str, seed: int, team: Sequence[jax.Device], should_stop: Callable[[], bool]) -> None:
        if agreed(should_stop)():
            raise Interrupted(f"results so far in {out}")
        failed = failure_path(out, arm, seed)
        from_main(lambda: failed.unlink(missing_ok=True))
        if hooks.on_run:
            hooks.on_run(arm, seed)
        try:
            result = train(arm, seed, team, should_stop)
        except Exception as e:  # its own trouble: the other runs go on
            if isinstance(e, StorageError | Interrupted) or (several() and not isinstance(e, UserError)):
                raise  # everyone's: the disk, a request to stop, or a process that was lost
            failures[arm, seed] = _reason(e, seed)
            from_main(lambda: write_json(failed, {"arm": arm, "seed": seed, "error": failures[arm, seed]}))
            return
        # Its rows also when all its epochs were in the checkpoint.
        from_main(lambda: write_rows(rows_path(out, arm, seed), result.history))
        # A comparison may be finished on another machine or version than it was begun on: each run says its own.
        made = {"config": to_dict(replace(arms[arm], seed=seed)), "environment": environment(team)}
        from_main(lambda: write_json(scores_path(out, arm, seed), {"arm": arm, **result.summary, **made}))
        if hooks.on_end:
            hooks.on_end(arm, seed)

    def train(arm: str, seed: int, team: Sequence[jax.Device], should_stop: Callable[[], bool]) -> Result:
        from_main(lambda: _check_checkpoints(out, arm, seed, restart))

        def on_epoch(history: list[Row]) -> None:
            from_main(lambda: write_rows(rows_path(out, arm, seed), history))
            if hooks.on_epoch:
                hooks.on_epoch(arm, seed, history)

        return fit(
            replace(arms[arm], seed=seed),
            data,
            checkpoint_path(out, arm, seed),
            restart=restart,
            devices=team,
            on_epoch=on_epoch,
            on_progress=hooks.on_progress and partial(hooks.on_progress, arm, seed),
            should_stop=should_stop,
        )

    check_same("a comparison", {"name": name, "protocol": protocol, "arms": list(arms), "seeds": list(seeds)})
    with on_main(lock(out)):
        from_main(lambda: remove_unfinished(out))
        from_main(lambda: _claim(out, arms, seeds, data, name, protocol, published))
        waiting = [(arm, seed) for arm, seed, done in from_main(lambda: pending(arms, seeds, out)) if not done]
        spread_over(waiting, teams, run, hooks.should_stop or (lambda: False))
        comparison = Comparison(out, _render(out))
    if failures:
        raise RunsFailed(comparison, failures, len(arms) * len(seeds))
    return comparison


def _check_checkpoints(out: Path, arm: str, seed: int, restart: bool) -> None:
    """Raise ResultsError where epochs were finished and their checkpoint is gone: to begin anew is not to continue."""
    rows, folder = rows_path(out, arm, seed), checkpoint_path(out, arm, seed)
    if rows.is_file() and rows.stat().st_size and not restart and not (folder.is_dir() and any(folder.iterdir())):
        raise ResultsError(
            f"{folder}: holds no checkpoint, but {rows} has finished epochs. Put the checkpoints back, or begin the "
            "run anew with --restart (compare: restart=True)"
        )


def _reason(error: Exception, seed: int) -> str:
    """In one line, for the results. What nobody foresaw is printed with its traceback as well."""
    text = printable(str(error)).replace("\n", " ")[:10_000]
    if isinstance(error, UserError):
        return text.removeprefix(f"seed {seed}: ")
    traceback.print_exception(error)
    remedy = "; try a smaller batch_size" if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError) else ""
    return f"{type(error).__name__}: {text[:300]}{remedy}"


def _render(out: Path) -> Report:
    """The report, of which several processes are told: one of them has the folder."""
    if not several():
        return render(out)
    told: dict[str, Any] = from_main(
        lambda: {name: str(value) if isinstance(value, Path) else value for name, value in vars(render(out)).items()}
    )
    return Report(**{**told, **{name: Path(told[name]) for name in ("summary_json", "summary_md", "figure", "html")}})


def pending(arms: Iterable[str], seeds: Sequence[int], out: str | Path) -> list[tuple[str, int, bool]]:
    """(arm, seed, whether it is finished in `out`) of every run, in the order in which they run."""
    return [
        (arm, seed, rows_path(out, arm, seed).is_file() and scores_path(out, arm, seed).is_file())
        for seed in seeds
        for arm in arms
    ]


def check_comparison(
    arms: Mapping[str, TrainConfig], seeds: Sequence[int], data: Dataset, devices: Sequence[jax.Device] | None = None
) -> None:
    """Raise what `compare` raises for arms, seeds and data that cannot work together, before anything is written."""
    check_arms(arms, seeds)
    for config in arms.values():
        check_run(config, data, devices)


def check_arms(arms: Mapping[str, TrainConfig], seeds: Sequence[int]) -> None:
    """Raise what `compare` raises for arms and seeds with whatever data."""
    slugs(arms)
    if not arms:
        raise ConfigError("arms: at least one is needed")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds={list(seeds)}: at least one is needed, and none twice")
    for config in arms.values():
        for seed in seeds:
            replace(config, seed=seed)  # refuses a seed out of range


def as_begun(arms: Mapping[str, TrainConfig], out: str | Path, device: jax.Device) -> dict[str, TrainConfig]:
    """`arms` with the precision that "auto" stands for: that of the comparison in `out`, where one was begun there,
    maybe on another device, else that which suits `device`. Several processes call this alike."""

    def recorded() -> dict[str, Any]:
        configs = read_results(out).config["arms"] if config_path(out).exists() else {}
        return {arm: with_new_fields(config)["model"]["precision"] for arm, config in configs.items()}

    begun = from_main(recorded)

    def settled(arm: str, config: TrainConfig) -> TrainConfig:
        precision = begun.get(arm, "auto")
        if config.model.precision != "auto" or precision == "auto":
            return resolved(config, device)
        return replace(config, model=replace(config.model, precision=precision))

    return {arm: settled(arm, config) for arm, config in arms.items()}


def check_folder(
    out: str | Path, arms: Mapping[str, TrainConfig], seeds: Sequence[int], data: Dataset, name: str, protocol: str
) -> dict[str, Any] | None:
    """The config.json of the comparison in `out`, None where nothing is yet.

    Raises ResultsError when `out` holds something else: what `compare` raises, before anything is written.
    """
    out = Path(out)
    if not config_path(out).exists():
        try:
            if out.exists() and any(p.name != "checkpoints" and not p.name.startswith(".") for p in out.iterdir()):
                raise ResultsError(f"{out}: holds other files and no config.json; choose an empty or a new folder")
        except OSError as e:
            raise StorageError(f"{out}: cannot write results there ({e.strerror or e}); choose another folder") from e
        return None
    theirs = read_results(out).config
    mine = {"name": name, "protocol": protocol, "dataset": fingerprint(data), "arms": _without_seeds(arms)}
    kept = {key: theirs.get(key) for key in mine}
    kept["arms"] = {arm: with_new_fields(config) for arm, config in theirs["arms"].items()}
    changed = _in_all_arms(differing_fields(kept, mine), list(arms))
    if changed:
        raise ResultsError(
            f"{out} holds another comparison ({'; '.join(changed)}): use the old settings, or another output folder "
            "(--out)"
        )
    missing = set(theirs["seeds"]) - set(seeds)
    if missing:
        raise ResultsError(
            f"{out} also holds seeds {sorted(missing)}: name them too (seeds can be added, not taken away), "
            "or use another output folder"
        )
    return theirs


def _in_all_arms(lines: list[str], arms: list[str]) -> list[str]:
    """`lines` of `differing_fields`, with what is the same in every one of several arms said once."""
    of = [{line.removeprefix(f"arms.{arm}.") for line in lines if line.startswith(f"arms.{arm}.")} for arm in arms]
    common = sorted(set.intersection(*of)) if len(of) > 1 else []
    said = {f"arms.{arm}.{line}" for arm in arms for line in common}
    return [*(f"in every arm {line}" for line in common), *(line for line in lines if line not in said)]


def _without_seeds(arms: Mapping[str, TrainConfig]) -> dict[str, Any]:
    return {arm: {k: v for k, v in to_dict(config).items() if k != "seed"} for arm, config in arms.items()}


def _claim(
    out: Path,
    arms: Mapping[str, TrainConfig],
    seeds: Sequence[int],
    data: Dataset,
    name: str,
    protocol: str,
    published: Mapping[str, Mapping[str, Any]] | None,
) -> None:
    """Write config.json, or add seeds to the one there."""
    theirs = check_folder(out, arms, seeds, data, name, protocol)
    if theirs is not None:
        if list(seeds) != theirs["seeds"]:
            write_json(config_path(out), {**theirs, "seeds": list(seeds)})
        return
    mine: dict[str, Any] = {
        "name": name,
        "protocol": protocol,
        "dataset": fingerprint(data),
        "seeds": list(seeds),
        "arms": _without_seeds(arms),
        "published": {arm: dict(p) for arm, p in (published or {}).items()},
        "environment": environment(),
    }
    write_json(config_path(out), mine)
