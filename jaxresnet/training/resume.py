"""Where a run that was interrupted goes on: at its newest checkpoint that is whole."""

import sys
from typing import Any

from jaxresnet.config import differing_fields, with_new_fields
from jaxresnet.errors import ResultsError
from jaxresnet.training.checkpoint import DamagedError, Saved
from jaxresnet.training.processes import is_main


def resume(checkpoints: Any, fresh: Saved, restart: bool) -> Saved:
    """What the newest checkpoint that is whole holds; `fresh`, the run at its beginning, where there is none yet.

    checkpoints: a `Checkpoints`, or what has its methods. Those that are damaged are renamed, with a warning. restart:
    begin anew where none is left, or the one of the chosen epoch is damaged; without it ResultsError is raised. It is
    raised also where the checkpoints are of another run.
    """
    newest = _newest(checkpoints, fresh)
    if newest is not None:
        step, best = int(newest.state.step), newest.record["best_step"]
        if best not in (None, step):
            try:
                checkpoints.restore(best, fresh.state, fresh.totals)
            except DamagedError as e:  # of the chosen epoch, which no other checkpoint holds
                _set_aside(checkpoints, best, e)
                newest = None
    damaged = checkpoints.damaged
    if newest is None:
        damaged = damaged or [f"{path}: set aside before" for path in checkpoints.damaged_before]
    lost = "; ".join([*damaged, *(f"{path}: half-written" for path in checkpoints.half_written)])
    if newest is not None:
        if lost:
            _warn(f"{lost}. Continuing from the checkpoint before, {checkpoints.directory}/{step}")
        _note_backend(checkpoints, newest, fresh.record)
        return newest
    if damaged and not restart:
        raise ResultsError(
            f"no checkpoint to continue from ({lost}). With --restart (fit: restart=True) the run begins anew"
        )
    if lost:
        _warn(f"{lost}. There is no checkpoint before to continue from: the run begins anew")
    for left in checkpoints.steps():
        checkpoints.set_aside(left, "of the run that begins anew")
    return fresh


def _newest(checkpoints: Any, fresh: Saved) -> Saved | None:
    for step in checkpoints.steps():
        try:
            return _restore(checkpoints, step, fresh)
        except DamagedError as e:
            _set_aside(checkpoints, step, e)
    return None


def _set_aside(checkpoints: Any, step: int, error: DamagedError) -> None:
    checkpoints.set_aside(step, str(error).partition(": ")[2])


def _restore(checkpoints: Any, step: int, fresh: Saved) -> Saved:
    saved = checkpoints.record(step)
    changed = differing_fields(
        {"config": with_new_fields(saved.get("config")), "data": saved.get("data")},
        {"config": fresh.record["config"], "data": fresh.record["data"]},
    )
    if changed:
        raise ResultsError(
            f"{checkpoints.directory} holds a run with other settings ({'; '.join(changed)}): "
            "use the old settings, another output folder, or delete this one"
        )
    state, totals, record = checkpoints.restore(step, fresh.state, fresh.totals)
    return Saved(state, totals, {**record, "config": fresh.record["config"]})  # which may have newer fields


def _note_backend(checkpoints: Any, newest: Saved, fresh: dict[str, Any]) -> None:
    """Add this process's versions and devices to the record where they are not those of the checkpoint."""
    (mine,) = fresh["backends"]
    theirs = newest.record.setdefault("backends", [])  # missing in records of older versions
    changed = differing_fields({**theirs[-1], "step": 0}, mine) if theirs else []
    goes_on = len(newest.record["history"]) < fresh["config"]["num_epochs"]
    if not theirs or (changed and goes_on):
        theirs.append({**mine, "step": int(newest.state.step)})
    if changed and goes_on:
        _warn(
            f"{checkpoints.directory} continues on other versions or devices than it was begun on "
            f"({'; '.join(changed)}): results agree to rounding, not bit for bit"
        )


def _warn(text: str) -> None:
    if is_main():
        print(f"warning: {text}", file=sys.stderr, flush=True)
