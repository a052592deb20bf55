"""Kill a real training process at random instants, start it again, and compare the finished results with those of a
process that nobody touched, byte for byte.

    python benchmarks/interrupt.py results/interrupt.json

The same command is started again after every kill, and may be killed again, until it finishes. Then everything in its
output folder is compared: every file (also that there is no other), without the fields of runs/* that say how long
something took, and the weights of every run's chosen epoch, bit for bit; the checkpoints' own files are not, as their
names are random. Then a new folder begins. One device; the bytes are promised on CPU. Exits with status 1, and keeps
the folder, where anything differs.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tests_on_path  # noqa: F401
from support.watched import COMMAND, END, ROOT, Training, differing, results_of

from jaxresnet.files import write_json
from jaxresnet.hardware import environment


class Kind(NamedTuple):
    """Instants at random between an event and the next of another kind. after None: from the start of the process;
    until None: as soon as the event is seen."""

    after: str | None
    until: str | None


KINDS = {
    "in the steps of an epoch": Kind("epoch printed", "checkpoint begun"),
    "while a checkpoint is written": Kind("checkpoint begun", "checkpoint complete"),
    "while tables and figure are drawn": Kind("report written", END),
    "while a file of them is written": Kind("report written", None),
    "while it starts": Kind(None, "run begins"),
    "while it compiles": Kind("run begins", "checkpoint begun"),
    "at the end of an epoch": Kind("checkpoint complete", "epoch printed"),
    "while a history is written": Kind("history written", None),
    "while scores are written": Kind("scores written", None),
    "at any time": Kind(None, END),
}
# Those in which a process that is asked to stop has something to stop.
ASKED = [k for k in KINDS if k not in ("while it starts", "at any time") and KINDS[k].after != "report written"]


class Kill(NamedTuple):
    """At what instant, as for `Training.wait`, with the delay as a share of the time that the kind spans."""

    kind: str
    nth: int
    share: float
    signum: signal.Signals


def spans(events: list[tuple[float, str]]) -> dict[str, float]:
    """{kind of instant: the seconds that it lasted in an untouched process, the median over the times it came}."""

    def lasted(kind: Kind) -> float:
        starts = [0.0] if kind.after is None else [at for at, name in events if name == kind.after]
        found = [min((e for e, name in events if name == kind.until and e > at), default=at) - at for at in starts]
        return found[0] if kind.until == END else statistics.median(found)

    return {name: lasted(kind) if kind.until else 0.0 for name, kind in KINDS.items()}


def left_behind(out: Path) -> dict[str, Any]:
    """Where the runs stood, and what was half-written, when the process had gone."""
    folders = sorted(out.glob("runs/*/checkpoints"))
    checkpoints = {f.parent.name: sorted(int(c.name) for c in f.iterdir() if c.name.isdigit()) for f in folders}
    unfinished = [c for f in folders for c in f.glob("[0-9]*") if not (c / "record.json").is_file()]
    half_written = [*out.glob("*/.*.tmp"), *out.glob("runs/*/.*.tmp"), *unfinished]
    return {
        "checkpoints_at_steps": checkpoints,
        "half_written": sorted(path.relative_to(out).as_posix() for path in half_written),
    }


def plan(kills: int, asked: int, seed: int, counts: dict[str, int]) -> list[Kill]:
    """As many of every kind, at random instants, in random order. counts: how often each event comes in all."""
    rng = random.Random(seed)

    def at(kind: str, signum: signal.Signals) -> Kill:
        # Of the first half of them, since what is left of a run that was killed before has fewer.
        return Kill(kind, rng.randint(1, max(1, counts.get(KINDS[kind].after or "", 1) // 2)), rng.random(), signum)

    planned = [at(list(KINDS)[i % len(KINDS)], signal.SIGKILL) for i in range(kills)]
    planned += [at(ASKED[i % len(ASKED)], signal.SIGTERM) for i in range(asked)]
    rng.shuffle(planned)
    return planned


def soak(planned: list[Kill], folder: Path, reference: dict[str, str | bytes], seconds: dict[str, float]) -> list[Any]:
    """Carry out the kills. seconds: see `spans`. Returns a record of each, with what differed in the end."""
    records: list[dict[str, Any]] = []
    left, number = planned[::-1], 0
    while left:
        number += 1
        here = folder / str(number)
        here.mkdir()
        killed: list[dict[str, Any]] = []  # in this folder
        while True:
            kill = left[-1] if left else None
            with Training(here) as training:
                record = _kill(training, kill, seconds) if kill else {}
                said, code = training.ended(), training.process.returncode
            if killed:
                for path, name in ((f"{here}/", ""), (f"{ROOT}/", ""), (sys.executable, "python")):
                    said = said.replace(path, name)
                killed[-1]["then_said"] = said.splitlines()
            # One that was asked to stop when nothing was left to train finishes, as does one that is never killed.
            if not record or code == 0:
                break
            left.pop()
            killed.append({**record, "folder": number})
            print(f"{len(records) + len(killed)} of {len(planned)}: {record['signal']} {record['kind']}", flush=True)
        wrong = differing(reference, results_of(training.out)) if code == 0 else [f"exit status {code}: {said}"]
        print(f"folder {number}: {'; '.join(wrong) or 'the same bytes'}", flush=True)
        records += [{**record, "differing": wrong} for record in killed]
        if not wrong:
            shutil.rmtree(here)
        if not killed:
            if wrong:
                sys.exit("and nobody touched the process")
            left[-1] = left[-1]._replace(nth=1, share=left[-1].share / 2)  # the instant never came in a whole run
    return records


def _kill(training: Training, kill: Kill, seconds: dict[str, float]) -> dict[str, Any]:
    """Kill it at the instant. Returns what is to be recorded; nothing where it ended before."""
    if not training.wait(KINDS[kill.kind].after, kill.nth, kill.share * seconds[kill.kind]):
        return {}
    at = training.seconds()
    took = training.signal(kill.signum)
    return {
        "kind": kill.kind,
        "signal": kill.signum.name,
        "seconds_after_start": round(at, 3),
        "exit_status": training.process.returncode,
        "seconds_to_end": round(took, 3),
        **left_behind(training.out),
    }


def passed(record: dict[str, Any]) -> bool:
    """Whether it was killed, or heard that it was to stop, and the results were the same in the end."""
    status = {"SIGKILL": -signal.SIGKILL, "SIGTERM": os.EX_TEMPFAIL}[record["signal"]]
    return not record["differing"] and record["exit_status"] == status


def table(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a kind of instant: how many, and of them finished with identical bytes."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        key = record["signal"], record["kind"]
        row = rows.setdefault(key, {"signal": key[0], "instant": key[1], "kills": 0, "half_written": 0, "identical": 0})
        row["kills"] += 1
        row["identical"] += passed(record)
        row["half_written"] += bool(record["half_written"])
    return [rows[key] for key in sorted(rows, key=lambda key: (key[0], [*KINDS].index(key[1])))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="JSON file to write")
    parser.add_argument("--kills", type=int, default=50, help="with SIGKILL")
    parser.add_argument("--sigterm", type=int, default=10, help="more, with SIGTERM: it stops, saves and exits with 75")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # where the bytes are promised
    start, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="interrupt-"))
    (folder / "untouched").mkdir()
    with Training(folder / "untouched") as training:
        training.wait(END)
    if training.process.returncode:
        sys.exit(f"the untouched process ended with status {training.process.returncode}: {training.ended()}")
    reference = results_of(training.out)
    counts = collections.Counter(name for _, name in training.events)
    print(f"untouched: {training.events[-1][0]:.0f} s; {len(reference)} things to compare", flush=True)

    planned = plan(args.kills, args.sigterm, args.seed, counts)
    records = soak(planned, folder, reference, spans(training.events))
    rows, good = table(records), sum(map(passed, records))
    write_json(
        args.json,
        {
            "environment": environment(),
            "trained": ["python", *(os.path.relpath(part, ROOT) if part == COMMAND[0] else part for part in COMMAND)],
            "seed": args.seed,
            "kills": len(records),
            "identical": good,
            "seconds": round(time.monotonic() - start),
            "compared": sorted(reference),
            "table": rows,
            "records": records,
        },
    )
    print("\n| signal | instant | kills | left something half-written | finished with identical bytes |")
    print("|---" * 5 + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    print(f"\n{good} of {len(records)} kills ended in identical bytes")
    if good < len(records):
        sys.exit(f"folders that differ are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
