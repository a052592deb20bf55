"""Reading a compiled program: XLA's optimised HLO as text (`compiled.as_text()`) into instructions, and what each must
do at the least, in floating-point operations of convolutions and matrix products and in bytes of memory.

A line of that text is

    %fusion.3 = f32[128,32,32,64]{3,2,1,0} fusion(%a, %b), kind=kLoop, calls=%computation, metadata={op_name="..."}

and a computation is a list of such lines in braces. Names are unique in a program.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# What only moves or reinterprets numbers.
MOVES = {
    *("bitcast", "broadcast", "concatenate", "constant", "copy", "copy-start", "copy-done", "dynamic-slice", "gather"),
    *("dynamic-update-slice", "get-tuple-element", "iota", "pad", "parameter", "reshape", "reverse", "slice"),
    *("transpose", "tuple"),
}
_SLICES = ("slice", "dynamic-slice", "gather")  # read the part of their first operand that they return
_VIEWS = ("bitcast", "reshape", "get-tuple-element")  # cost nothing
_NO_WORK = (*_VIEWS, "parameter", "constant", "tuple")
_NOT_BYTES = {"token": 0.0, "opaque": 0.0, "pred": 1.0, "s4": 0.5, "u4": 0.5}

_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<= ]*)\]")
_START = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)"
)


class Shape(NamedTuple):
    """dtype: as HLO spells it, "f32", "bf16", "u8", "pred" ..."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def nbytes(self) -> float:
        bits = re.match(r"[a-z]+(\d+)", self.dtype)
        each = _NOT_BYTES[self.dtype] if self.dtype in _NOT_BYTES else int(bits[1]) / 8 if bits else 0.0
        return self.size * each


class Product(NamedTuple):
    """A convolution or matrix product in an operation. kind: "convolution" or "dot". dtype: of its first operand."""

    kind: str
    flops: int
    dtype: str
    instruction: "Instruction"


@dataclass(frozen=True)
class Instruction:
    """shapes: of the result, several for a tuple. arguments: the text in the parentheses; operands: the names there.
    called: the computations it names. op_name: JAX's path to it, "" without. attributes: the text behind."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    arguments: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    op_name: str
    attributes: str
    computation: str
    is_root: bool

    def attribute(self, pattern: str) -> str:
        """The first group of `pattern` in the attributes, "" where it does not occur."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""

    @property
    def result(self) -> Shape:
        """The result, or of a tuple its first element: of a library's call the others are its scratch memory."""
        return self.shapes[0] if self.shapes else Shape("opaque", ())


class Program:
    """instructions: by name. computations: {name: instructions in order}."""

    def __init__(self, text: str):
        """text: of a whole module, or of one computation."""
        self.name = match[1] if (match := re.match(r"\s*HloModule ([\w.\-]+)", text)) else ""
        self.computations: dict[str, list[Instruction]] = {}
        current = ""
        for line in text.splitlines():
            if instruction := parse_instruction(line, current):
                self.computations.setdefault(current, []).append(instruction)
            elif match := _COMPUTATION.match(line):
                current = match[1]
        self.instructions = {i.name: i for body in self.computations.values() for i in body}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)
        return users

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """The instructions of a fusion, nested ones as well; of anything else itself."""
        if instruction.opcode not in ("fusion", "async-start"):
            return [instruction]
        return [deep for name in instruction.called for i in self.computations.get(name, []) for deep in self.inside(i)]

    def operand(self, instruction: Instruction, index: int) -> Shape:
        return self.instructions[instruction.operands[index]].result

    def products(self, instruction: Instruction) -> list[Product]:
        return [product for i in self.inside(instruction) if (product := self._product(i))]

    def _product(self, i: Instruction) -> Product | None:
        target = i.attribute(r'custom_call_target="([^"]*)"')
        if i.opcode == "convolution" or "__cudnn$conv" in target:
            return Product("convolution", self._convolution_flops(i, target), self.operand(i, 0).dtype, i)
        if i.opcode == "dot":
            contracted = _numbers(i.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))
        elif i.opcode == "custom-call" and re.search(r"gemm|matmul", target):  # cuBLAS, oneDNN
            contracted = _numbers(i.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]'))
        else:
            return None
        lhs = self.operand(i, 0)
        return Product("dot", 2 * i.result.size * math.prod(lhs.dims[axis] for axis in contracted), lhs.dtype, i)

    def _convolution_flops(self, i: Instruction, target: str) -> int:
        """Every position of the window counts, on padding too; zeros between dilated inputs do not."""
        # cuDNN's gradients are described by the forward convolution that they belong to.
        kernel, output = self.operand(i, 1), i.result
        if "BackwardInput" in target:
            output = self.operand(i, 0)
        elif "BackwardFilter" in target:
            kernel, output = i.result, self.operand(i, 1)
        kernel_labels = i.attribute(r"dim_labels=\w+_(\w+)->")
        window = math.prod(_numbers(i.attribute(r"window=\{[^}]*\bsize=([\dx]+)")))
        zeros = math.prod(_numbers(i.attribute(r"window=\{[^}]*\blhs_dilate=([\dx]+)")))
        return 2 * output.size * window * kernel.dims[kernel_labels.index("i")] // zeros

    def nbytes(self, instruction: Instruction) -> float:
        """Bytes that must cross the memory: every operand and the result once. Of an operand of which only slices or
        rows are taken those count, and of a result that overwrites a part of an operand that part."""
        if instruction.opcode in _NO_WORK:
            return 0.0
        names = list(dict.fromkeys(instruction.operands))
        if instruction.opcode == "fusion" and instruction.called:
            body = self.computations[instruction.called[0]]
            parameters = {i.arguments: i.name for i in body if i.opcode == "parameter"}
            read = sum(
                min(self._read(parameters[str(n)]), self._whole(name)) for n, name in enumerate(instruction.operands)
            )
            root = next(i for i in body if i.is_root)
            return read + self._written(root)
        if instruction.opcode in _SLICES:
            return 2 * instruction.result.nbytes + sum(self._whole(name) for name in names[1:])
        read = sum(self._whole(name) for name in names[instruction.opcode == "dynamic-update-slice" :])
        return read + self._written(instruction)

    def _whole(self, name: str) -> float:
        return sum(shape.nbytes for shape in self.instructions[name].shapes)

    def _read(self, parameter: str) -> float:
        """Bytes of a fusion's parameter that the fusion reads, as far as its direct users tell."""
        total = 0.0
        for user in self.users.get(parameter, []):
            first = user.operands[0] == parameter
            if user.opcode in _SLICES and first:
                total += user.result.nbytes
            elif user.opcode in _VIEWS:
                total += self._read(user.name)
            elif not (user.opcode == "dynamic-update-slice" and first):
                return math.inf
        return total

    def _written(self, instruction: Instruction) -> float:
        if instruction.opcode == "dynamic-update-slice":
            return self.instructions[instruction.operands[1]].result.nbytes
        if instruction.opcode == "custom-call":
            return instruction.result.nbytes
        if instruction.opcode == "tuple":  # the root of a fusion with several results
            return sum(self._written(self.instructions[name]) for name in instruction.operands)
        return sum(shape.nbytes for shape in instruction.shapes)


def parse_instruction(line: str, computation: str = "") -> Instruction | None:
    """One line of HLO text, or None where it is none."""
    line = re.sub(r"/\*.*?\*/", "", line)
    if not (start := _START.match(line)):
        return None
    rest = line[start.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    shapes, rest = rest[:end], rest[end:].strip()
    if not (opcode := re.match(r"[\w\-]+(?=\()", rest)):
        return None
    end = opcode.end() + _closing(rest[opcode.end() :])
    arguments, attributes = rest[opcode.end() + 1 : end], rest[end + 1 :]
    op_name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', attributes)
    called = [name for group in _CALLED.findall(attributes) for name in re.findall(r"%([\w.\-]+)", group)]
    return Instruction(
        name=start[2],
        opcode=opcode[0],
        shapes=tuple(Shape(dtype, _numbers(dims)) for dtype, dims in _SHAPE.findall(shapes)),
        arguments=arguments,
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        called=tuple(called),
        op_name=op_name[1] if op_name else "",
        attributes=attributes,
        computation=computation,
        is_root=bool(start[1]),
    )


def _closing(text: str) -> int:
    """Where the parenthesis closes with which `text` begins."""
    for index, depth in enumerate(_depths(text)):
        if depth == 0:
            return index
    return len(text)


def _depths(text: str) -> Iterator[int]:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        yield depth


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))
