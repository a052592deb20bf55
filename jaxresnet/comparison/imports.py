"""Results of the layout before there was a store, one folder a comparison, as runs of a store.

    <comparison>/config.json                         arms, seeds, data set, environment
    <comparison>/runs/<slug>-seed<k>.jsonl, .json    history and scores of a run
    <comparison>/checkpoints/<slug>-seed<k>/<step>/  Orbax's, with the train state in it

Finished runs are taken over, with the weights of their chosen epoch where the checkpoints are there. An unfinished run
is not: it would go on from a checkpoint of another form. Nothing else reads this layout.
"""

import re
import unicodedata
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from jaxresnet.config import TrainConfig, arm_dict, from_dict, to_dict
from jaxresnet.errors import ResultsError, first_line
from jaxresnet.files import (
    is_number,
    is_whole,
    local_path,
    lock,
    parse_json,
    read_json,
    read_text,
    write_json,
    write_rows,
)
from jaxresnet.reporting.report import render
from jaxresnet.results.schemas import check_parts, comparison_path
from jaxresnet.results.store import CHECKPOINTS, HISTORY, RUNS, SCORES, begin_run, is_finished, run_id
from jaxresnet.training.checkpoint import Record, load_arrays, save_weights
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.predict import blank_state
from jaxresnet.training.state import Weights, weights_of

_REMEDY = "restore it from a copy"


def import_comparison(folder: str | Path, out: str | Path) -> list[str]:
    """Import the comparison in `folder`, or every one in the folders of `folder`, into the results folder `out`.

    Returns the names of the comparisons that `out` then has, and draws each. Runs and comparisons that `out` has
    already stay as they are, so that after an error the same call continues. Raises ResultsError where there is none,
    and where a file is damaged.
    """
    folder, out = local_path(folder), local_path(out)
    found = [folder] if (folder / "config.json").is_file() else sorted(p.parent for p in folder.glob("*/config.json"))
    if not found:
        raise ResultsError(f"{folder}: holds no config.json; give the folder of a comparison, or one around several")
    names = [one.resolve().name for one in found]
    for one, name in zip(found, names, strict=True):
        if not comparison_path(out / name).exists():
            _import(one, out / name)
        render(out / name)
    return names


def _import(folder: Path, target: Path) -> None:
    path = folder / "config.json"
    config = read_json(path, _REMEDY)
    parts = {"arms": dict, "seeds": list, "dataset": dict, "name": str, "protocol": str}
    check_parts(path, config, parts, "the config.json of a comparison", _REMEDY)
    arms = {arm: from_dict(TrainConfig, values, f"{path}: {arm}") for arm, values in config["arms"].items()}
    runs: dict[str, dict[str, str]] = {arm: {} for arm in arms}
    for arm, seed in product(arms, config["seeds"]):
        run = replace(arms[arm], seed=seed)
        runs[arm][str(seed)] = run_id(run, config["dataset"])
        scores = folder / "runs" / f"{_slug(arm)}-seed{seed}.json"
        if scores.is_file():
            _import_run(scores, run, config["dataset"], target.parent / RUNS / runs[arm][str(seed)])
    kept = {name: config.get(name) for name in ("name", "protocol", "dataset", "seeds", "published", "environment")}
    written = {arm: arm_dict(arms[arm]) for arm in arms}
    write_json(comparison_path(target), {**kept, "arms": written, "runs": runs})


def _import_run(scores: Path, config: TrainConfig, dataset: dict[str, Any], target: Path) -> None:
    """Fill the folder `target` of the store, unless it is finished. Scores come last, as they say that it is."""
    if is_finished(target):
        return
    rows = scores.with_suffix(".jsonl")
    lines = enumerate(read_text(rows).splitlines(), 1)
    history = [{"skipped_steps": 0, **parse_json(rows, line, _REMEDY, number)} for number, line in lines]
    found = read_json(scores, _REMEDY)
    parts = {
        "best_epoch": lambda epoch: is_whole(epoch, len(history) - 1),
        "selection": str,
        "test_accuracy": lambda accuracy: is_number(accuracy, 100),
    }
    check_parts(scores, found, parts, f"the scores of the {len(history)} epochs in {rows.name}", _REMEDY)
    step = history[found["best_epoch"]]["step"]
    checkpoint = scores.parents[1] / "checkpoints" / scores.stem / str(step)
    with lock(target):
        begin_run(target, config, dataset)
        if checkpoint.is_dir():
            record = Record(to_dict(config), dataset, history, backends=[{"step": 0}])
            save_weights(target / CHECKPOINTS, _load(checkpoint, config), record)
        write_rows(target / HISTORY, history)
        write_json(target / SCORES, {k: v for k, v in found.items() if k not in ("arm", "config")})


def _load(checkpoint: Path, config: TrainConfig) -> Weights:
    like = {"state": blank_state(config), "totals": zero_totals()}
    try:
        return weights_of(load_arrays(checkpoint, like)["state"])
    except (OSError, ValueError) as e:
        raise ResultsError(f"{checkpoint}: cannot be read ({first_line(e)}); {_REMEDY}, or move it away") from e


def _slug(arm: str) -> str:
    """An arm's name as it was part of a file's name: "Adam + Lookahead" -> "adam-lookahead"."""
    return re.sub(r"[^\w.]+", "-", unicodedata.normalize("NFKC", arm).casefold()).strip("-.")
