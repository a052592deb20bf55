"""A comparison on disk: where each file lies, how it is written, and reading it back with every damage named.

    out/config.json                     the arms, the seeds, the data set, the environment
    out/runs/<slug>-seed<k>.jsonl       one run, a row an epoch
    out/runs/<slug>-seed<k>.json        the same run's scores, config and environment, written when it has finished
    out/summary.json, summary.md, figure.png, report.html    derived from the above by `jaxresnet.report`

Files are replaced whole, never appended to, so a reader sees the old one or the new one. Keys keep the order in which
they were built (the first arm is drawn and named first), so the same run gives the same bytes.
"""

import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxresnet.config import differing_fields, with_new_fields
from jaxresnet.errors import ConfigError, ResultsError
from jaxresnet.json_files import parse_json, read_json, read_text

SELECTIONS = ("val", "test", "last")  # the data on which a run's epoch was chosen; "last" is no choice
_REDO = "restore the file from a copy, or delete the files of this run and run the comparison again, which redoes it"


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    rows: a dict an epoch, in order. Accuracies in percent, losses in nats; what was not measured is None or absent.
    scores: the dict of the finished run; None while it is not finished.
    """

    arm: str
    seed: int
    rows: list[dict[str, Any]]
    scores: dict[str, Any] | None


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

    Raises ConfigError when nothing is left.
    """
    text = re.sub(r"[^\w.]+", "-", unicodedata.normalize("NFKC", arm).casefold()).strip("-.")
    if not text:
        raise ConfigError(f"arm name {arm!r}: needs at least one letter or digit, it becomes part of a file name")
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


def checkpoint_path(folder: str | Path, arm: str, seed: int) -> Path:
    return Path(folder) / "checkpoints" / f"{slug(arm)}-seed{seed}"


# -------------------------------------------------------------------------------------------------------- writing


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, creating its folder: a crash leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: os.replace is atomic within a disk
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON. Raises ValueError for NaN or infinity, which JSON cannot hold."""
    write_text(path, _dumps(path, obj, indent=2) + "\n")


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line. Raises ValueError for NaN or infinity, which JSON cannot hold."""
    write_text(path, "".join(_dumps(path, dict(row)) + "\n" for row in rows))


def _dumps(path: str | Path, obj: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(obj, indent=indent, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: not written: {error}") from error


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
    def of_type(kind: type) -> Callable[[Any], bool]:
        return lambda value: isinstance(value, kind)

    expected: dict[str, Callable[[Any], bool]] = {
        "name": of_type(str),
        "protocol": of_type(str),
        "environment": of_type(dict),
        "arms": lambda arms: (
            isinstance(arms, dict)
            and len(arms) > 0
            and all(isinstance(arm, dict) and isinstance(arm.get("model", {}), dict) for arm in arms.values())
        ),
        "seeds": lambda seeds: (
            isinstance(seeds, list) and all(type(k) is int for k in seeds) and len(set(seeds)) == len(seeds) > 0
        ),
        "dataset": lambda dataset: (
            isinstance(dataset, dict)
            and isinstance(dataset.get("name"), str)
            and isinstance(dataset.get("synthetic"), bool)
        ),
        "published": lambda published: (  # optional: {arm: {"best": percent, "source": text}}
            published is None
            or (
                isinstance(published, dict)
                and all(
                    isinstance(one, dict) and isinstance(one.get("best"), int | float) for one in published.values()
                )
            )
        ),
    }
    for key, is_valid in expected.items():
        if not isinstance(config, dict) or not is_valid(config.get(key)):
            problem = f"{key!r} is missing or malformed, so this is not the config.json of a comparison"
            raise ResultsError(f"{path}: {problem}; give the --out folder of one")


def _strays(folder: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """What lies in runs/ beside the comparison's own files. A dot file is what a crash while writing leaves."""
    own = {
        path(folder, a, k).name for a in config["arms"] for k in config["seeds"] for path in (rows_path, scores_path)
    }
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
    return Run(arm, seed, rows, scores)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    text = read_text(path).removesuffix("\n")
    for number, line in enumerate(text.split("\n") if text else [], 1):
        row = parse_json(path, line, _REDO, number)
        if not isinstance(row, dict) or type(row.get("epoch")) is not int:
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
        raise ResultsError(f"{path}: 'selection' is {scores.get('selection')!r}, not one of {SELECTIONS}; {_REDO}")
    _check_numbers(str(path), scores, ("test_accuracy", "best_epoch"))
    for key in ("config", "environment"):  # those of before these were written lack them
        if not isinstance(scores.get(key, {}), dict):
            raise ResultsError(f"{path}: {key!r} is {scores[key]!r}, not a JSON object; {_REDO}")
    if "config" in scores:
        saved = with_new_fields({**config, "seed": seed}), with_new_fields(scores["config"])
        differing = differing_fields(*saved)
        if differing:
            problem = f"was run with another config than arm {arm!r} of config.json ({'; '.join(differing)})"
            raise ResultsError(f"{path}: {problem}: two comparisons are mixed in this folder; {_REDO}")
    return scores


def _check_numbers(where: str, values: dict[str, Any], required: tuple[str, ...]) -> None:
    """Every loss, accuracy and epoch is a finite number, or None where it is not required."""
    for key in (*required, *(key for key in values if key.endswith(("loss", "accuracy", "epoch")))):
        value = values.get(key)
        if value is None and key not in required:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ResultsError(f"{where}: {key!r} is {value!r}, not a finite number; {_REDO}")
