"""The operations that ran in a trace, each with its seconds, what it is in the network, and its floor."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from events import Event, Trace, shared_seconds
from hlo import MOVES, Instruction, Program
from layers import PLAN, Place, Places

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
OTHER_PROGRAMS = "other programs"


@dataclass
class Row:
    """Operations of one step together.

    seconds: of the wall clock, divided among what ran at the same time.
    occupied: seconds of all threads or streams, undivided.
    flops: of convolutions and matrix products; flops_seconds: their floor. bytes: see `Program.nbytes`.
    floor_seconds: the larger of the floors of flops and of bytes in each operation, summed up.
    """

    seconds: float = 0.0
    occupied: float = 0.0
    calls: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    flops_seconds: float = 0.0
    floor_seconds: float = 0.0

    def add(self, other: "Row") -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def as_json(self, step: float) -> dict[str, float | None]:
        """With its share of a step of so many seconds, and its floor's share of its seconds."""
        return {
            **asdict(self),
            "share": self.seconds / step,
            "floor_share": self.floor_seconds / self.seconds if self.floor_seconds and self.seconds else None,
        }


@dataclass
class Operation:
    """An HLO instruction of the step, or with `instruction` None something that is in no program that we know."""

    name: str
    kind: str
    place: Place
    row: Row
    instruction: Instruction | None

    def as_json(self, step: float) -> dict[str, Any]:
        i = self.instruction
        result = f"{i.result.dtype}[{','.join(map(str, i.result.dims))}]" if i else None
        what = {"layer": self.place.layer, "pass": self.place.step, "kind": self.kind}
        return {"operation": self.name, "opcode": i and i.opcode, "result": result, **what, **self.row.as_json(step)}


def operations_of(
    trace: Trace, program: Program, places: Places, peaks: dict[str, float], steps: int
) -> list[Operation]:
    """What ran in `trace`, `steps` steps of `program`, a step: a list of `Operation`, the longest first."""
    kernels = {re.sub(r"[.\-]", "_", name): name for name in program.instructions}  # as kernels are called

    def find(event: Event) -> Instruction | None:
        if event.program not in (None, program.name):
            return None
        return program.instructions.get(event.op) or program.instructions.get(kernels.get(event.op, ""))

    found = [(event, find(event)) for event in trace.events]
    # On CPU a loop or call lasts as long as what it runs, and would count twice.
    running = {i.computation for _, i in found if i}
    found = [(event, i) for event, i in found if not (event.on_host and i and running.intersection(i.called))]
    operations: dict[str, Operation] = {}
    calls: dict[str, Counter[str]] = {}
    for (event, i), part in zip(found, shared_seconds([event for event, _ in found]), strict=True):
        name = i.name if i else f"{event.program}: {event.op}" if event.program else event.op
        if name not in operations:
            place = places(i) if i else Place(event.program or "unknown program", "")
            operations[name] = Operation(name, _kind(program, i, place), place, Row(), i)
        operations[name].row.add(Row(seconds=part / steps, occupied=(event.end - event.start) / steps))
        calls.setdefault(name, Counter())[event.kernel] += event.begins
    for name, operation in operations.items():
        operation.row.calls = max(calls[name].values()) / steps  # a library's call may take several kernels
        if operation.instruction:
            _add_floor(operation.row, operation.instruction, program, peaks)
    return sorted(operations.values(), key=lambda operation: -operation.row.seconds)


def _add_floor(row: Row, instruction: Instruction, program: Program, peaks: dict[str, float]) -> None:
    products = program.products(instruction)
    row.flops = row.calls * sum(product.flops for product in products)
    row.bytes = row.calls * program.nbytes(instruction)
    row.flops_seconds = row.calls * sum(p.flops / peaks[p.dtype] for p in products if p.dtype in peaks)
    row.floor_seconds = max(row.flops_seconds, row.bytes / peaks["bytes"])


def _kind(program: Program, instruction: Instruction | None, place: Place) -> str:
    if instruction is None:
        return OTHER_PROGRAMS
    if place.layer in ("augmentation", PLAN, "optimiser"):
        return "augmentation" if place.layer == PLAN else place.layer
    if products := program.products(instruction):
        return "convolution" if any(product.kind == "convolution" for product in products) else "matrix product"
    if instruction.opcode.startswith(COLLECTIVES):
        return "collective"
    inside = program.inside(instruction)
    root = inside[-1] if inside else instruction
    while root.opcode in ("bitcast", "convert") and root.operands:
        root = program.instructions[root.operands[0]]
    moves = root.opcode in ("gather", "scatter") or all(i.opcode in MOVES for i in inside)
    return "gather and copy" if moves else "elementwise and reductions"


def grouped(operations: Iterable[Operation], key: Callable[[Operation], Any]) -> dict[Any, Row]:
    """The sum of the operations of each key, the longest first."""
    rows: dict[Any, Row] = {}
    for operation in operations:
        rows.setdefault(key(operation), Row()).add(operation.row)
    return dict(sorted(rows.items(), key=lambda item: -item[1].seconds))
