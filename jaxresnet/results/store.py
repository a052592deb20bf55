"""A comparison on disk: where each file lies, how it is written, and reading it back with every damage named.

    out/config.json                     the arms, the seeds, the data set, the environment
    out/runs/<slug>-seed<k>.jsonl       one run, a row an epoch
    out/runs/<slug>-seed<k>.json        the same run's scores, config and environment, written when it has finished
    out/runs/<slug>-seed<k>.failed.json why it could not go on, until it is tried again
    out/summary.json, summary.md, figure.png, report.html    derived from the above by `jaxresnet.reporting.report`

Files are replaced whole, never appended to, so a reader sees the old one or the new one. Keys keep the order in which
they were built (the first arm is drawn and named first), so the same run gives the same bytes.
"""

import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxresnet.config import differing_fields, with_new_fields
from jaxresnet.errors import ConfigError, ResultsError, printable, short
from jaxresnet.files import is_name, is_number, is_whole, parse_json, read_json, read_text

SELECTIONS = ("val", "test", "last")  # the data on which a run's epoch was chosen; "last" is no choice
LONGEST_SLUG = 200  # bytes; file systems take names of 255, and endings and the names of unfinished files are added
LARGEST_LOSS = 3.5e38  # nats; float32 ends before it
LARGEST_EPOCH = 10**9
_REDO = "restore the file from a copy, or delete the files of this run and run the comparison again, which redoes it"


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    rows: a dict an epoch, in order. Accuracies in percent, losses in nats; what was not measured is None or absent.
    scores: the dict of the finished run; None while it is not finished. failure: why it could not go on, None unless
    that was so when it was last tried.
    """

    arm: str
    seed: int
    rows: list[dict[str, Any]]
    scores: dict[str, Any] | None
    failure: str | None = None


@dataclass(frozen=True)
class Results:
    """A comparison as read from `folder`: its config.json, and its runs as {arm: {seed: run}} in config's order.

    strays: names of files in runs/ that belong to no arm and seed of the comparison. They count nowhere.
    """

    folder: Path
    config: dict[str, Any]
    runs: dict[str, dict[int, Run]]
    strays: tuple[str, ...] = ()

    @property
    def synthetic(self) -> bool:
        """True when the images were drawn by a program: no figure may then pass for CIFAR-10's."""
        return self.config["dataset"]["synthetic"]

    @property
    def published(self) -> dict[str, dict[str, Any]]:
        """{arm: {"best": percent, "source": text}}: others' figures to be set beside ours; empty without any.

        An entry may also hold "last" (percent), "best_epoch" (0-based) and "run", its name in `published`."""
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

    def environments(self, arm: str) -> list[dict[str, Any]]:
        """Where each finished run was made, as far as it says."""
        return [run.scores["environment"] for run in self.finished(arm) if run.scores and "environment" in run.scores]

    def scores(self, arm: str, name: str) -> dict[int, Any]:
        """{seed: value} of one entry of the finished runs' scores, for example "test_accuracy" (percent)."""
        return {run.seed: run.scores[name] for run in self.finished(arm) if run.scores is not None}


# ---------------------------------------------------------------------------------------------------------- paths


def slug(arm: str) -> str:
    """An arm's name as part of a file name: "Adam + Lookahead" -> "adam-lookahead". Letters, digits, "." and "_" stay.

    Raises ConfigError when nothing is left, or too much for the name of a file.
    """
    text = re.sub(r"[^\w.]+", "-", unicodedata.normalize("NFKC", arm).casefold()).strip("-.")
    if not text:
        raise ConfigError(f"arm name {arm!r}: needs at least one letter or digit, it becomes part of a file name")
    if len(os.fsencode(text)) > LONGEST_SLUG:
        raise ConfigError(f"arm name {short(arm)}: is too long for a part of a file name ({LONGEST_SLUG} bytes)")
    return text


def slugs(arms: Iterable[str]) -> dict[str, str]:
    """{arm: slug}. Raises ConfigError when two arms would share their files."""
    result: dict[str, str] = {}
    for arm in arms:
        name = slug(arm)
        for other, taken in result.items():
            if taken == name:
                raise ConfigError(f"arms {other!r} and {arm!r} would both write runs/{name}-seed*: rename one of them")
        result[arm] = name
    return result


def config_path(folder: str | Path) -> Path:
    return Path(folder) / "config.json"


def rows_path(folder: str | Path, arm: str, seed: int) -> Path:
    return Path(folder) / "runs" / f"{slug(arm)}-seed{seed}.jsonl"


def scores_path(folder: str | Path, arm: str, seed: int) -> Path:
    return Path(folder) / "runs" / f"{slug(arm)}-seed{seed}.json"


def failure_path(folder: str | Path, arm: str, seed: int) -> Path:
    return Path(folder) / "runs" / f"{slug(arm)}-seed{seed}.failed.json"


def checkpoint_path(folder: str | Path, arm: str, seed: int) -> Path:
    return Path(folder) / "checkpoints" / f"{slug(arm)}-seed{seed}"


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a process that was killed while it wrote has left. For the one that holds the folder's lock."""
    for path in (*Path(folder).glob(".*.tmp"), *Path(folder).glob("runs/.*.tmp")):
        path.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------- reading


def read_results(folder: str | Path) -> Results:
    """Read a comparison, finished or not.

    Raises ResultsError, with the file, the line and the remedy, for a folder that is missing, empty or not a
    comparison's, and for a file that is damaged or belongs to another run or another comparison.
    """
    folder = Path(folder)
    path = config_path(folder)
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder; give the --out folder of a comparison")
    if not path.is_file():
        state = "holds no config.json" if any(folder.iterdir()) else "is empty"
        raise ResultsError(f"{folder}: {state}, so it is not a comparison's folder; give the --out folder of one")
    config = read_json(path, "restore it from a copy, or run the comparison into a new folder")
    _check_config(path, config)
    names = slugs(config["arms"])
    runs = {arm: {k: _read_run(folder, arm, k, config["arms"][arm]) for k in config["seeds"]} for arm in names}
    return Results(folder, config, runs, _strays(folder, config))


def _check_config(path: Path, config: Any) -> None:
    expected: dict[str, Callable[[Any], bool]] = {
        "name": is_name,
        "protocol": is_name,
        "environment": lambda environment: isinstance(environment, dict),
        "arms": lambda arms: isinstance(arms, dict) and len(arms) > 0 and all(map(_is_arm, arms.values())),
        "seeds": lambda seeds: (
            isinstance(seeds, list)
            and all(is_whole(seed, 2**32 - 1) for seed in seeds)
            and len(set(seeds)) == len(seeds) > 0
        ),
        "dataset": lambda dataset: (
            isinstance(dataset, dict) and is_name(dataset.get("name")) and isinstance(dataset.get("synthetic"), bool)
        ),
        "published": lambda published: (  # optional: {arm: {"best": percent, "source": text}}
            published is None or (isinstance(published, dict) and all(map(_is_published, published.values())))
        ),
    }
    for key, is_valid in expected.items():
        if not isinstance(config, dict) or not is_valid(config.get(key)):
            problem = f"{key!r} is missing or malformed, so this is not the config.json of a comparison"
            raise ResultsError(f"{path}: {problem}; give the --out folder of one")


def _is_arm(arm: Any) -> bool:
    """Whether tables and pages can be made of it. Arms of other versions may have other settings."""
    if not isinstance(arm, dict) or any(not isinstance(arm.get(part, {}), dict) for part in ("model", "optim")):
        return False
    counts = (arm.get(name) for name in ("train_size", "val_size", "num_epochs"))
    return all(count is None or is_whole(count, 2**63) for count in counts)


def _is_published(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and is_number(entry.get("best"), 100)
        and is_number(entry.get("last", 0), 100)
        and is_whole(entry.get("best_epoch", 0), LARGEST_EPOCH)
        and all(isinstance(entry.get(name, ""), str) for name in ("source", "run"))
    )


def _strays(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """What lies in runs/ beside the comparison's own files. A dot file is what a crash while writing leaves."""
    paths = (rows_path, scores_path, failure_path)
    own = {path(folder, a, k).name for a in config["arms"] for k in config["seeds"] for path in paths}
    runs = folder / "runs"
    found = {path.name for path in runs.iterdir() if not path.name.startswith(".")} if runs.is_dir() else set()
    return tuple(sorted(found - own))


def _read_run(folder: Path, arm: str, seed: int, config: dict[str, Any]) -> Run:
    path = rows_path(folder, arm, seed)
    rows = _read_rows(path) if path.is_file() else []
    finished = scores_path(folder, arm, seed)
    scores = _read_scores(finished, arm, seed, config) if finished.is_file() else None
    if scores is not None and rows and rows[-1]["epoch"] < (scores.get("last_epoch") or 0):
        problem = f"ends with epoch {rows[-1]['epoch']}, but {finished.name} goes on to {scores['last_epoch']}"
        raise ResultsError(f"{path}, line {len(rows)}: {problem}; {_REDO}")
    failed = failure_path(folder, arm, seed)
    failure = _read_failure(failed) if scores is None and failed.is_file() else None
    return Run(arm, seed, rows, scores, failure)


def _read_failure(path: Path) -> str:
    failure = read_json(path, "delete it and run the comparison again")
    if not isinstance(failure, dict) or not isinstance(failure.get("error"), str):
        raise ResultsError(f"{path}: says no 'error'; delete it and run the comparison again")
    return failure["error"]


def _read_rows(path: Path) -> list[dict[str, Any]]:
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


def _read_scores(path: Path, arm: str, seed: int, config: dict[str, Any]) -> dict[str, Any]:
    scores = read_json(path, _REDO)
    if not isinstance(scores, dict) or (scores.get("arm"), scores.get("seed")) != (arm, seed):
        raise ResultsError(f"{path}: does not belong to arm {arm!r}, seed {seed}; {_REDO}")
    if scores.get("selection") not in SELECTIONS:
        raise ResultsError(f"{path}: 'selection' is {short(scores.get('selection'))}, not one of {SELECTIONS}; {_REDO}")
    _check_numbers(str(path), scores, ("test_accuracy", "best_epoch"))
    if not isinstance(scores.get("weights", ""), str):
        raise ResultsError(f"{path}: 'weights' is {short(scores['weights'])}, not a text; {_REDO}")
    for key in ("config", "environment"):  # those of before these were written lack them
        if not isinstance(scores.get(key, {}), dict):
            raise ResultsError(f"{path}: {key!r} is {short(scores[key])}, not a JSON object; {_REDO}")
    if not is_whole(scores.get("skipped_steps", 0), 10**9):
        raise ResultsError(f"{path}: 'skipped_steps' is {short(scores['skipped_steps'])}, not a whole number; {_REDO}")
    earlier = scores.get("earlier_backends", [])
    if not isinstance(earlier, list) or not all(isinstance(backend, dict) for backend in earlier):
        raise ResultsError(f"{path}: 'earlier_backends' is {short(earlier)}, not a list of JSON objects; {_REDO}")
    if "config" in scores:
        saved = with_new_fields({**config, "seed": seed}), with_new_fields(scores["config"])
        differing = differing_fields(*saved)
        if differing:
            which = printable("; ".join(line[:200] for line in differing[:20]))
            problem = f"was run with another config than arm {arm!r} of config.json ({which})"
            raise ResultsError(f"{path}: {problem}: two comparisons are mixed in this folder; {_REDO}")
    return scores


def _check_numbers(where: str, values: dict[str, Any], required: tuple[str, ...]) -> None:
    """Every loss (nats), accuracy (percent) and epoch is a number in its range, or None where it is not required."""
    for key in (*required, *(key for key in values if key.endswith(("loss", "accuracy", "epoch")))):
        value = values.get(key)
        if value is None and key not in required:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ResultsError(f"{where}: {key!r} is {short(value)}, not a finite number; {_REDO}")
        highest = 100 if key.endswith("accuracy") else LARGEST_LOSS if key.endswith("loss") else LARGEST_EPOCH
        if not 0 <= value <= highest or (key.endswith("epoch") and type(value) is not int):
            kind = "whole number" if key.endswith("epoch") else "number"
            raise ResultsError(f"{where}: {key!r} is {value!r}, not a {kind} of 0 to {highest:g}; {_REDO}")
