"""A comparison: arms times seeds, one run each, on disk and resumable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxresnet.config import TrainConfig, differing_fields, to_dict
from jaxresnet.dataset import Dataset
from jaxresnet.environment import environment
from jaxresnet.errors import ConfigError, ResultsError
from jaxresnet.report import Report, render
from jaxresnet.results import (
    config_path,
    read_results,
    rows_path,
    scores_path,
    slugs,
    write_json,
    write_rows,
)
from jaxresnet.train import Interrupted, Result, Row, check_run, fingerprint, fit


class Comparison(NamedTuple):
    """folder: holds everything, see `results`. report: the table, the verdict, and where they were written."""

    folder: Path
    report: Report


class Hooks(NamedTuple):
    """What a comparison tells its caller while it runs. All may be None.

    on_run(arm, seed): a run starts or continues. on_epoch(history): rows so far, the last one new.
    on_progress(epoch, images done in it). should_stop(): True saves a checkpoint and raises `train.Interrupted`.
    """

    on_run: Callable[[str, int], None] | None = None
    on_epoch: Callable[[list[Row]], None] | None = None
    on_progress: Callable[[int, int], None] | None = None
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
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
) -> Comparison:
    """Train every arm with every seed, or what is missing of it in `out`, then write tables and figure.

    arms: {name: config}; each config's own seed is replaced. seeds: each runs every arm before the next seed starts,
    so that an unfinished comparison holds pairs. published: {arm: {"best": percent, "source": text}}, shown beside.

    Calling it again with the same arguments continues where it stopped, in the middle of an epoch on CPU; with more
    seeds it adds them. Raises ResultsError when `out` holds another comparison, naming the fields that differ.
    """
    check_comparison(arms, seeds, data, devices)
    names = slugs(arms)
    out = Path(out)
    _claim(out, arms, seeds, data, name, protocol, published)
    for seed in seeds:
        for arm, config in arms.items():
            rows, scores = rows_path(out, arm, seed), scores_path(out, arm, seed)
            if rows.is_file() and scores.is_file():
                continue
            if hooks.should_stop and hooks.should_stop():
                raise Interrupted(f"results so far in {out}")
            if hooks.on_run:
                hooks.on_run(arm, seed)

            def on_epoch(history: list[Row], rows: Path = rows) -> None:
                write_rows(rows, history)
                if hooks.on_epoch:
                    hooks.on_epoch(history)

            workdir = out / "checkpoints" / f"{names[arm]}-seed{seed}"
            result: Result = fit(
                replace(config, seed=seed),
                data,
                workdir,
                devices=devices,
                on_epoch=on_epoch,
                on_progress=hooks.on_progress,
                should_stop=hooks.should_stop,
            )
            write_rows(rows, result.history)  # also when all its epochs were in the checkpoint
            # A comparison may be finished on another machine or version than it was begun on: each run says its own.
            write_json(scores, {"arm": arm, **result.summary, "environment": environment()})
    return Comparison(out, render(out))


def check_comparison(
    arms: Mapping[str, TrainConfig], seeds: Sequence[int], data: Dataset, devices: Sequence[jax.Device] | None = None
) -> None:
    """Raise what `compare` raises for arms, seeds and data that cannot work together, before anything is written."""
    slugs(arms)
    if not arms:
        raise ConfigError("arms: at least one is needed")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds={list(seeds)}: at least one is needed, and none twice")
    for config in arms.values():
        for seed in seeds:
            replace(config, seed=seed)  # refuses a seed out of range
        check_run(config, data, devices)


def _claim(
    out: Path,
    arms: Mapping[str, TrainConfig],
    seeds: Sequence[int],
    data: Dataset,
    name: str,
    protocol: str,
    published: Mapping[str, Mapping[str, Any]] | None,
) -> None:
    """Write config.json, or check that the one there is of the same comparison."""
    mine: dict[str, Any] = {
        "name": name,
        "protocol": protocol,
        "dataset": fingerprint(data),
        "seeds": list(seeds),
        "arms": {arm: {k: v for k, v in to_dict(config).items() if k != "seed"} for arm, config in arms.items()},
        "published": {arm: dict(p) for arm, p in (published or {}).items()},
        "environment": environment(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not config_path(out).exists():
            if any(p.name != "checkpoints" and not p.name.startswith(".") for p in out.iterdir()):
                raise ResultsError(f"{out}: holds other files and no config.json; choose an empty or a new folder")
            write_json(config_path(out), mine)
            return
    except OSError as e:
        raise ResultsError(f"{out}: cannot write results there ({e.strerror}); choose another folder") from e
    theirs = read_results(out).config
    fixed = ("name", "protocol", "dataset", "arms")
    changed = differing_fields({k: theirs.get(k) for k in fixed}, {k: mine[k] for k in fixed})
    if changed:
        raise ResultsError(
            f"{out} holds another comparison ({'; '.join(changed)}): use the old settings, or another output folder"
        )
    missing = set(theirs["seeds"]) - set(seeds)
    if missing:
        raise ResultsError(
            f"{out} also holds seeds {sorted(missing)}: name them too (seeds can be added, not taken away), "
            "or use another output folder"
        )
    if list(seeds) != theirs["seeds"]:
        write_json(config_path(out), {**theirs, "seeds": list(seeds)})
