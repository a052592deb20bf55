"""Runs and comparisons on disk: where each file lies, and reading it back with every damage named.

    out/runs/<id>/config.json     one run: its config with the seed, and the fingerprint of its data set
    out/runs/<id>/history.jsonl   a row an epoch
    out/runs/<id>/scores.json     the finished run's scores, and where it was made
    out/runs/<id>/failed.json     why it could not go on, until it is tried again
    out/runs/<id>/checkpoints/    written by `training.fit`
    out/<name>/comparison.json    one comparison: arms, seeds, protocol, data set, and the id of each run

A run is one config on one data set. All comparisons in `out` share it, whatever each calls its arm.
Files are replaced whole, so a reader sees the old one or the new one.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxresnet.config import TrainConfig, differing_fields, to_dict, with_new_fields
from jaxresnet.errors import ResultsError, printable, short
from jaxresnet.files import is_number, is_whole, local_path, parse_json, read_json, read_text, write_json
from jaxresnet.results.schemas import LARGEST_EPOCH, check_parts, optional, read_comparison

RUNS = "runs"  # the store's folder in `out`; no comparison may have this name
CONFIG, HISTORY, SCORES = "config.json", "history.jsonl", "scores.json"
FAILURE, CHECKPOINTS = "failed.json", "checkpoints"
SELECTIONS = ("val", "test", "last")  # the data on which a run's epoch was chosen; "last" is no choice
LARGEST_LOSS = 3.5e38  # nats; float32 ends before it
_REDO = "restore the file from a copy, or delete the run's folder and run the comparison again, which trains it anew"


@dataclass(frozen=True)
class Run:
    """One arm of a comparison with one seed.

    id, folder: the run in the store, whose folder may not be there yet. rows: a dict an epoch, in order; accuracies in
    percent, losses in nats; what was not measured is None or absent. scores: the dict of the finished run; None while
    it is not finished. failure: why it could not go on when it was last tried, None unless that was so.
    """

    arm: str
    seed: int
    rows: list[dict[str, Any]]
    scores: dict[str, Any] | None
    failure: str | None
    id: str
    folder: Path


@dataclass(frozen=True)
class Results:
    """A comparison as read from `folder`: its comparison.json, and its runs as {arm: {seed: run}} in the same order."""

    folder: Path
    config: dict[str, Any]
    runs: dict[str, dict[int, Run]]

    @property
    def synthetic(self) -> bool:
        """True when the images were drawn by a program: no figure may then pass for CIFAR-10's."""
        return self.config["dataset"]["synthetic"]

    @property
    def published(self) -> dict[str, dict[str, Any]]:
        """{arm: {"best": percent, "source": text}}: others' figures to be set beside ours; empty without any.

        An entry may also hold "last" (percent)."""
        return self.config.get("published") or {}

    @property
    def selections(self) -> list[str]:
        """How the finished runs chose their epoch, usually one of "val", "test" and "last"."""
        return sorted({value for arm in self.runs for value in self.scores(arm, "selection").values()})

    @property
    def missing(self) -> list[tuple[str, int]]:
        """(arm, seed) of every run that has not finished."""
        return [(arm, seed) for arm, runs in self.runs.items() for seed, run in runs.items() if run.scores is None]

    @property
    def failures(self) -> dict[tuple[str, int], str]:
        """{(arm, seed): reason} of every run that could not go on when it was last tried."""
        return {
            (arm, seed): run.failure for arm, runs in self.runs.items() for seed, run in runs.items() if run.failure
        }

    def finished(self, arm: str) -> list[Run]:
        """The arm's finished runs, in the order of the seeds."""
        return [run for run in self.runs[arm].values() if run.scores is not None]

    def scores(self, arm: str, name: str) -> dict[int, Any]:
        """{seed: value} of one entry of the finished runs' scores, for example "test_accuracy" (percent)."""
        return {run.seed: run.scores[name] for run in self.finished(arm) if run.scores is not None}


# ----------------------------------------------------------------------------------------------------------- runs


def run_id(config: TrainConfig, data: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that are the same for the same run, and name its folder in the store.

    config: with its seed, and a precision that is not "auto". data: the data set's fingerprint.
    Fields at their defaults do not count: one that is added later, at a default that changes nothing, changes no id.
    """
    counted = _without_defaults(to_dict(config), to_dict(TrainConfig()))
    text = json.dumps({"config": counted, "data": dict(data)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_defaults(value, defaults[name]) if isinstance(value, dict) else value
        for name, value in values.items()
        if value != defaults[name]
    }


def begin_run(folder: Path, config: TrainConfig, data: Mapping[str, Any]) -> None:
    """Make `folder` the run's, and forget why it failed and what a process that was killed has left half-written.

    For the one that holds the folder's lock. Raises ResultsError where the folder is another run's.
    """
    if (folder / CONFIG).is_file():
        _check_run(folder, to_dict(config), data)
    else:
        write_json(folder / CONFIG, {"config": to_dict(config), "data": dict(data)})
    (folder / FAILURE).unlink(missing_ok=True)
    remove_temporary(folder)


def is_finished(folder: Path) -> bool:
    return (folder / HISTORY).is_file() and (folder / SCORES).is_file()


def remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left. For the one that holds the folder's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def read_run(folder: Path, arm: str, seed: int, config: Mapping[str, Any], data: Mapping[str, Any]) -> Run:
    """The run in `folder`, begun or not, as `arm` of a comparison.

    config: what it should be, as a dict with its seed. data: the fingerprint of its data set.
    Raises ResultsError where a file is damaged, or where the folder is another run's, naming the fields that differ.
    """
    if any((folder / name).is_file() for name in (CONFIG, HISTORY, SCORES, FAILURE)):
        _check_run(folder, config, data)
    # Scores are read first, as they are written last: another process may be finishing this run just now.
    scores = _read_scores(folder / SCORES, seed) if (folder / SCORES).is_file() else None
    rows = _read_history(folder / HISTORY) if (folder / HISTORY).is_file() else []
    if scores is not None and rows and rows[-1]["epoch"] < (scores.get("last_epoch") or 0):
        raise ResultsError(f"{folder / HISTORY}: is cut off: epoch {scores['last_epoch']} is missing; {_REDO}")
    failure = _read_failure(folder / FAILURE) if scores is None and (folder / FAILURE).is_file() else None
    return Run(arm, seed, rows, scores, failure, folder.name, folder)


def _check_run(folder: Path, config: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    path = folder / CONFIG
    found = read_json(path, _REDO)
    check_parts(path, found, {"config": dict, "data": dict}, "the config.json of a run", _REDO)
    theirs = {"config": with_new_fields(found["config"]), "data": found["data"]}
    differing = differing_fields(theirs, {"config": with_new_fields(dict(config)), "data": dict(data)})
    if differing:
        which = printable("; ".join(line[:200] for line in differing[:20]))
        raise ResultsError(f"{path}: is another run than is asked for ({which}); use another output folder (--out)")


def _read_failure(path: Path) -> str:
    remedy = "delete it and run the comparison again"
    failure = read_json(path, remedy)
    check_parts(path, failure, {"error": str}, "the failure of a run", remedy)
    return failure["error"]


def _read_history(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    text = read_text(path).removesuffix("\n")
    for number, line in enumerate(text.split("\n") if text else [], 1):
        row = parse_json(path, line, _REDO, number)
        if not isinstance(row, dict) or not is_whole(row.get("epoch"), LARGEST_EPOCH):
            raise ResultsError(f"{path}, line {number}: not a row with a whole-number 'epoch'; {_REDO}")
        if rows and row["epoch"] <= rows[-1]["epoch"]:
            raise ResultsError(f"{path}, line {number}: epoch {row['epoch']} after {rows[-1]['epoch']}; {_REDO}")
        _check_numbers(f"{path}, line {number}", row, ("train_loss", "train_accuracy"))
        rows.append(row)
    return rows


def _read_scores(path: Path, seed: int) -> dict[str, Any]:
    scores = read_json(path, _REDO)
    parts = {
        "seed": lambda value: value == seed,
        "selection": lambda value: value in SELECTIONS,
        "weights": lambda value: value in (None, "fast", "slow"),
        "environment": dict | None,
        "skipped_steps": optional(lambda value: is_whole(value, LARGEST_EPOCH)),
        "earlier_backends": optional([dict]),
    }
    check_parts(path, scores, parts, f"the scores of a run with seed {seed}", _REDO)
    _check_numbers(str(path), scores, ("test_accuracy", "best_epoch"))
    return scores


def _check_numbers(where: str, values: dict[str, Any], required: tuple[str, ...]) -> None:
    """Every loss (nats), accuracy (percent) and epoch is a number in its range, or None where it is not required."""
    for key in (*required, *(key for key in values if key.endswith(("loss", "accuracy", "epoch")))):
        value = values.get(key)
        if value is None and key not in required:
            continue
        highest = 100 if key.endswith("accuracy") else LARGEST_LOSS if key.endswith("loss") else LARGEST_EPOCH
        kind = "whole number" if key.endswith("epoch") else "number"
        if not is_number(value, highest) or (key.endswith("epoch") and type(value) is not int):
            raise ResultsError(f"{where}: {key!r} is {short(value)}, not a {kind} of 0 to {highest:g}; {_REDO}")


# ---------------------------------------------------------------------------------------------------- comparisons


def read_results(folder: str | Path) -> Results:
    """Read a comparison, finished or not, with its runs in the store beside it.

    Raises ResultsError, with the file, the line and the remedy, for a folder that is missing, empty or not a
    comparison's, and for a file that is damaged or belongs to another run.
    """
    folder = local_path(folder)
    config = read_comparison(folder)
    store = Path(os.path.abspath(folder)).parent / RUNS
    if not store.is_dir():
        raise ResultsError(f"{store}: no such folder, and it has the runs of {folder}; move the folder around both")

    def read(arm: str, seed: int) -> Run:
        own = {**config["arms"][arm], "seed": seed}
        return read_run(store / config["runs"][arm][str(seed)], arm, seed, own, config["dataset"])

    return Results(folder, config, {arm: {seed: read(arm, seed) for seed in config["seeds"]} for arm in config["arms"]})
