"""Recording what a device does with `jax.profiler`, and the trace as a list of operations with their times.

On GPU and TPU the operations are on the device's own lines of the trace. On CPU they are on the lines of XLA's threads:
an operation begins on one thread and hands parts of its work to the others, which the trace tells as well ("Record"
where a part is handed over, "StartRegion" and "StopRegion" where it runs). An operation can so wait in a queue while
others run; only the time that a thread gives to it is taken here.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

_WINDOW = "profiled run"
_LAUNCH = re.compile(r"LoadedExecutable::Execute(Helper|HelperOnSingleDevice)?$")


class Event(NamedTuple):
    """An operation that ran, or a part of it: a kernel, or on CPU one thread's work on it. op: the name of its HLO
    instruction, or again of its kernel where the trace does not tell. program: of its HLO module, None where the trace
    does not tell. start, end: seconds. on_host: ran on the CPU. begins: whether a kernel, or an operation, begins."""

    op: str
    kernel: str
    program: str | None
    start: float
    end: float
    on_host: bool
    begins: bool = True


class Trace(NamedTuple):
    """events: operations from `start` to `end`, in seconds of the trace's clock, between which the run lay.
    runs: how many times each program ran, as far as the trace tells. launches: programs that the host sent to the
    device, 0 where the trace does not tell. copies: of memory from the host to the device, or back."""

    events: list[Event]
    start: float
    end: float
    runs: dict[str, int]
    launches: int
    copies: int


def record(run: Callable[[], None]) -> Trace:
    """Call `run`, which waits for what it starts, under the profiler, and return what the devices did."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every Python call would be an event, and take time
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options), jax.profiler.TraceAnnotation(_WINDOW):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        return read(jax.profiler.ProfileData.from_file(str(path)).planes)


def read(planes: Iterable[Any]) -> Trace:
    """planes: of a `jax.profiler.ProfileData`; anything with the same attributes does."""
    events: list[Event] = []
    runs: dict[str, set[Any]] = {}
    host_names: Counter[str] = Counter()
    window, copies = (0.0, 0.0), 0
    for plane in planes:
        on_host = plane.name.startswith("/host:")
        if not on_host and not plane.name.startswith("/device:"):
            continue
        lines = list(plane.lines)
        if not on_host:  # other lines of a device sum up the streams' (GPU), or the operations (TPU)
            streams = [line for line in lines if line.name.startswith("Stream")]
            lines = streams or [line for line in lines if line.name == "XLA Ops"]
        marks: list[_Mark] = []
        for thread, line in enumerate(lines):
            for event in line.events:
                stats = {str(name): value for name, value in event.stats}
                start, end = event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9
                if on_host and event.name == _WINDOW:
                    window = (start, end)
                elif on_host and event.name.startswith("ThreadpoolListener::"):
                    marks.append(_Mark(start, event.name.split("::")[1], thread, stats.get("_p", stats.get("_c"))))
                elif "hlo_op" in stats or not on_host:
                    copies += event.name.startswith("Memcpy") and not event.name.startswith("MemcpyD2D")
                    # GPUs may name the loops around an instruction, too; TPUs give its text for a name.
                    op = str(stats.get("hlo_op") or event.name.split(" = ")[0]).split("::")[-1].lstrip("%")
                    program = str(stats["hlo_module"]) if "hlo_module" in stats else None
                    found = Event(op, event.name, program, start, end, on_host)
                    if on_host:
                        marks += [_Mark(start, "Begin", thread, found), _Mark(max(end, start + 1e-9), "End", thread)]
                    else:
                        events.append(found)
                    if program and "run_id" in stats:
                        runs.setdefault(program, set()).add(stats["run_id"])
                elif on_host:
                    host_names[event.name] += 1
        events += _on_threads(marks)
    start, end = window
    events = sorted((e for e in events if start <= e.start <= end), key=lambda e: e.start)
    counts = {program: len(ids) for program, ids in runs.items()}
    for name, count in host_names.items():
        if name.endswith(":XLA GPU module"):
            counts[name.split(":")[0]] = count
    launches = max((count for name, count in host_names.items() if _LAUNCH.search(name)), default=0)
    return Trace(events, start, end, counts, launches, copies)


class _Mark(NamedTuple):
    """A moment on a thread. what: "Begin" or "End" of an operation, where `of` is its event, or "Record", "StartRegion"
    or "StopRegion" of a part of its work, where it is a number."""

    time: float
    what: str
    thread: int
    of: Any = None


def _on_threads(marks: list[_Mark]) -> list[Event]:
    """What each thread did when: the innermost operation that it had begun, or that a part of its work belongs to."""
    events: list[Event] = []
    stacks: dict[int, list[Event | None]] = {}
    since: dict[int, float] = {}
    owners: dict[Any, Event | None] = {}
    for mark in sorted(marks, key=lambda mark: (mark.time, mark.what in ("Begin", "StartRegion"))):
        stack = stacks.setdefault(mark.thread, [])
        now = stack[-1] if stack else None
        if mark.what == "Record":
            owners[mark.of] = now
            continue
        if now:
            events.append(now._replace(start=since[mark.thread], end=mark.time, begins=now.start == since[mark.thread]))
        since[mark.thread] = mark.time
        if mark.what == "Begin":
            stack.append(mark.of)
        elif mark.what == "StartRegion":
            owner = owners.get(mark.of)
            stack.append(owner and owner._replace(start=-1.0))  # goes on with what has begun before
        elif stack:
            stack.pop()
    return events


def shared_seconds(events: Sequence[Event]) -> list[float]:
    """Each event's part of the time in which any ran: an instant is divided equally among those that ran then, so that
    the parts sum to that time."""
    changes = sorted(
        [(e.start, True, i) for i, e in enumerate(events)] + [(e.end, False, i) for i, e in enumerate(events)]
    )
    seconds = [0.0] * len(events)
    running: set[int] = set()
    before = 0.0
    for time, begins, i in changes:
        for j in running:
            seconds[j] += (time - before) / len(running)
        before = time
        (running.add if begins else running.discard)(i)
    return seconds
