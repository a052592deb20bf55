"""Which layer of the network, and which pass through it, an operation of the compiled training step belongs to.

`named_layers` makes JAX write the names of the layers, as `jaxresnet.nn.summary` has them, into what it compiles;
`Places` reads them there again. Names change nothing but the metadata of the program.
"""

import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, NamedTuple
from unittest import mock

import jax
import optax
from flax import nnx
from hlo import Instruction, Program, Shape

import jaxresnet as jr
from jaxresnet.nn.cpu.products import IMAGES, KERNEL
from jaxresnet.nn.summary import layers
from jaxresnet.training import steps

# Parts of a step that are not layers, and the functions, as `steps` calls them, that compute them.
PLAN, AUGMENTATION = "epoch plan", "augmentation"
TOTALS = "totals and the rest"
_PARTS = {
    PLAN: ((steps, "epoch_plan"),),
    AUGMENTATION: ((steps, "augment_batch"),),
    "loss": ((steps, "cross_entropy"),),
    "optimiser": ((optax, "apply_updates"), (steps, "sync_batch_stats")),
    TOTALS: ((steps, "batch_sums"),),
}
NETWORK = "network"  # what belongs to no layer of it: the stem's ReLU, the average pool
UNKNOWN = "other"
_CROSSROADS = ("parameter", "constant", "tuple", "while", "call", "conditional")  # join what does not belong together


class Place(NamedTuple):
    """layer: as in `jaxresnet.nn.summary`, "stage1.0" for what a block does between its layers, `NETWORK`, or a key of
    `_PARTS`. step: "forward", "input gradient", "weight gradient", or "backward" where one operation computes all
    gradients; "" for parts that have no gradients."""

    layer: str
    step: str


@contextmanager
def named_layers() -> Iterator[None]:
    """While it holds, what is traced carries the names of layers and parts in the `op_name` of its instructions."""
    call, make_step_optimizer = jr.ResNet.__call__, steps.make_step_optimizer

    def named_call(network: jr.ResNet, *args: Any) -> Any:
        names = {id(module): _layer_name(path) for path, module in nnx.iter_modules(network)}
        classes = {type(module) for path, module in nnx.iter_modules(network) if path and callable(module)}
        with ExitStack() as stack:
            for cls in classes:
                own_name = _scoped(cls.__call__, lambda module, *_: names[id(module)])
                stack.enter_context(mock.patch.object(cls, "__call__", own_name))
            return _scoped(call, lambda *_: NETWORK)(network, *args)

    def named_optimizer(*args: Any) -> optax.GradientTransformation:
        tx = make_step_optimizer(*args)
        return optax.GradientTransformationExtraArgs(tx.init, _scoped(tx.update, lambda *_: "optimiser"))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(jr.ResNet, "__call__", named_call))
        stack.enter_context(mock.patch.object(steps, "make_step_optimizer", named_optimizer))
        for part, functions in _PARTS.items():
            for module, name in functions:
                scoped = _scoped(getattr(module, name), lambda *_, part=part: part)
                stack.enter_context(mock.patch.object(module, name, scoped))
        yield


def _scoped(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
    @wraps(function)
    def scoped(*args: Any, **kwargs: Any) -> Any:
        with jax.named_scope(name(*args)):
            return function(*args, **kwargs)

    return scoped


def _layer_name(path: tuple[Any, ...]) -> str:
    """("stages", 0, 1, "conv2") -> "stage1.1.conv2", as in `jaxresnet.nn.summary`."""
    if path[:1] == ("stages",) and len(path) > 1:
        path = (f"stage{path[1] + 1}", *path[2:])
    return ".".join(map(str, path))


class Places:
    """Finds the place of every instruction of `program`, the training step of `config`, traced under `named_layers`."""

    def __init__(self, program: Program, config: jr.ModelConfig):
        self._program = program
        network = layers(config)
        blocks = {layer.name.rpartition(".")[0] for layer in network} - {""}
        names = [*(layer.name for layer in network), *blocks, *_PARTS, NETWORK]
        self._names = re.compile(
            rf"(?<![\w.])({'|'.join(sorted(map(re.escape, names), key=len, reverse=True))})(?![\w.])"
        )
        self._kernels: dict[str, tuple[int, ...]] = {}  # shapes, (height, width, in, out) or (in, out)
        for layer in network:
            if layer.macs:
                window = (int(layer.kind[-1]),) * 2 if layer.kind.startswith("conv") else ()
                outputs = math.prod(layer.shape)
                features = layer.shape[-1]
                self._kernels[layer.name] = (*window, layer.macs // (math.prod(window) * outputs), features)
        self._found: dict[str, Place] = {}

    def __call__(self, instruction: Instruction) -> Place:
        """From the names it carries; for what XLA added without any, from the nearest that it feeds or comes from."""
        place = self._of(instruction)
        if place.step == "backward" and place.layer in self._kernels:
            near = self._nearby(instruction, lambda i: self._of(i) == place)
            steps = (self._gradient(i, place.layer) for i in near if self._of(i) == place)
            return place._replace(step=next(filter(None, steps), place.step))
        return place

    def _of(self, instruction: Instruction) -> Place:
        """With "backward" for either gradient of a convolution or linear layer."""
        name = instruction.name
        if name not in self._found:
            near = self._nearby(instruction, lambda i: self._named(i) is None)
            self._found[name] = next(filter(None, map(self._named, near)), Place(UNKNOWN, ""))
        return self._found[name]

    def _nearby(self, start: Instruction, through: Callable[[Instruction], bool]) -> Iterator[Instruction]:
        """`start`, then what it feeds and what it comes from, and so on from those for which `through` holds."""
        queue, seen = deque([start]), {start.name}
        while queue and len(seen) < 200:
            yield (instruction := queue.popleft())
            if through(instruction):
                operands = [self._program.instructions[name] for name in instruction.operands]
                for i in [*self._program.users.get(instruction.name, []), *operands]:
                    if i.name not in seen and i.opcode not in _CROSSROADS:
                        seen.add(i.name)
                        queue.append(i)

    def _named(self, instruction: Instruction) -> Place | None:
        """A fusion with a product belongs where that one does, another where its result does. But augmentation, which
        ends in the first thing that the network does to the images, has what is mostly its own."""
        if products := self._program.products(instruction):
            return self._read(products[0].instruction.op_name) or self._read(instruction.op_name)
        own = self._read(instruction.op_name)
        counts: Counter[Place] = Counter()
        for i in self._program.inside(instruction):
            if place := self._read(i.op_name):
                counts[place] += i.result.size
        # A name that is no layer's does not say much: the totals have what holds nothing else.
        most = max(counts, key=lambda place: (place.layer != TOTALS, counts[place]), default=None)
        if own is None or own.layer == TOTALS or (most and most.layer == AUGMENTATION):
            return most or own
        return own

    def _read(self, op_name: str) -> Place | None:
        """jit(train)/transpose(jvp(stage1.0))/stage1.0.conv1/mul -> stage1.0.conv1, backward."""
        if not op_name or "/" not in op_name:  # arguments, and what is inside a reduction
            return None
        names = self._names.findall(op_name)
        operation = op_name.rsplit("/", 1)[1]
        if names:
            layer = names[-1]
        elif "jvp(" in op_name:
            layer = "loss"
        else:  # the rows of the batch are picked by `steps` itself
            layer = AUGMENTATION if operation in ("gather", "dynamic_slice") else TOTALS
        if layer in _PARTS and layer != "loss":
            return Place(layer, "")
        return Place(layer, "backward" if "transpose(" in op_name else "forward")

    def _gradient(self, instruction: Instruction, layer: str) -> str | None:
        """Which gradient of a layer a product is: one that makes a kernel, or a row or tap of it, is the weight
        gradient's, one that takes it the input gradient's. None for what is no product."""
        products = self._program.products(instruction)
        if not products:
            return None
        product, kernel = products[0].instruction, self._kernels[layer]
        for scope, gradient in ((IMAGES, "input gradient"), (KERNEL, "weight gradient")):
            if f"/{scope}/" in product.op_name:
                return gradient
        makes = _is_kernel(product.result, kernel)
        takes = any(_is_kernel(self._program.operand(product, n), kernel) for n in (0, 1))
        if makes != takes:
            return "weight gradient" if makes else "input gradient"
        # A shape may be both, or changed by XLA. cuDNN says it; on CPU the images' gradient is taken by transposition.
        hints = ("convBackwardInput", "transpose()/")
        return "input gradient" if any(hint in product.attributes for hint in hints) else "weight gradient"


def _is_kernel(shape: Shape, kernel: tuple[int, ...]) -> bool:
    """Whether it has the shape of a kernel in some order, or as a matrix the size of it, of a row or of a tap."""
    if len(shape.dims) > 2:
        return sorted(shape.dims) == sorted(kernel)
    return any(shape.size == math.prod(kernel[skip:]) for skip in range(len(kernel) - 1))
