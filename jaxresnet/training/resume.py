"""Where a run that was interrupted goes on: at its newest checkpoint that is whole."""

from functools import partial
from pathlib import Path

from jaxresnet.config import differing_fields, with_new_fields
from jaxresnet.distributed import from_main, is_main
from jaxresnet.errors import ResultsError, warn
from jaxresnet.training import checkpoint
from jaxresnet.training.checkpoint import DamagedError, Saved


def resume(folder: str | Path, fresh: Saved, restart: bool) -> Saved:
    """What the newest checkpoint in `folder` that is whole holds; `fresh`, the run at its beginning, without any.

    Checkpoints that are damaged are renamed, with a warning, and the one before is taken. restart: begin anew where
    none is left. Without it ResultsError is raised then, and always where the checkpoints are of another run. Several
    processes call this alike.
    """
    unfinished = [f"{path}: half-written" for path in from_main(lambda: checkpoint.remove_unfinished(folder))]
    before = from_main(lambda: [f"{path}: set aside before" for path in map(str, Path(folder).glob("damaged-*"))])
    damaged: list[str] = []
    for step in from_main(lambda: checkpoint.saved_steps(folder)):
        try:
            newest = _restored(folder, step, fresh)
        except DamagedError as e:
            aside = from_main(partial(checkpoint.set_aside, folder, step))
            damaged.append(f"{e}; kept as {aside}")
            continue
        if damaged or unfinished:
            lost = "; ".join([*damaged, *unfinished])
            _warn(f"{lost}. Continuing from the checkpoint before, {folder}/{step}")
        return newest
    damaged = damaged or before
    lost = "; ".join([*damaged, *unfinished])
    if damaged and not restart:
        raise ResultsError(
            f"no checkpoint to continue from ({lost}). With --restart (fit: restart=True) the run begins anew"
        )
    if lost:
        _warn(f"{lost}. There is no checkpoint before to continue from: the run begins anew")
    return fresh


def _restored(folder: str | Path, step: int, fresh: Saved) -> Saved:
    record, mine = checkpoint.read_record(folder, step), fresh.record
    changed = differing_fields(
        {"config": with_new_fields(record.config), "data": record.data}, {"config": mine.config, "data": mine.data}
    )
    if changed:
        raise ResultsError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}): use the old settings, another output "
            "folder, or delete this one"
        )
    saved = checkpoint.restore(folder, step, fresh)
    saved.record.config = mine.config  # which may have newer fields
    theirs, here = saved.record.backends[-1], mine.backends[0]
    changed = differing_fields({**theirs, "step": 0}, here)
    if changed and len(record.history) < mine.config["num_epochs"]:
        saved.record.backends.append({**here, "step": step})
        _warn(
            f"{folder} continues on other versions or devices than it was begun on ({'; '.join(changed)}): results "
            "agree to rounding, not bit for bit"
        )
    return saved


def _warn(text: str) -> None:
    if is_main():
        warn(text)
