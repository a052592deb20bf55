"""The train state as a few long vectors, while it trains.

The network has 38 arrays of weights, and with moments, slow weights and batch statistics a state has 200. XLA compiles
a kernel or more for each in the optimiser and in every norm, and copies each from one pass of the loop over steps to
the next. On a CPU two fifths of the time to compile a step went there. On a GPU half of a step's kernels moved a
kilobyte or so, and cost no less than the time to start them. As vectors they take a handful, and several devices
average all gradients at once. Nothing else changes: every optimiser here treats all numbers alike, so that only the
order in which norms are added up differs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxresnet.training.state import TrainState

BLOCK = 16_384  # numbers of a vector that `norm` takes at a time


class Layout(NamedTuple):
    """pack: any tree, with a vector in place of each tree of weights (params, gradients, moments, slow weights) and of
    each tree of batch statistics. unpack: the inverse. Both take a whole state, `Weights`, variables, or one such tree,
    and compute with NumPy where they are given its arrays."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def vectors(like: TrainState, outputs_first: bool) -> Layout:
    """like: a state of the run, arrays or shapes. Its weights must be of one dtype, and so must its statistics.

    outputs_first: a kernel's output channels are its slowest axis in the vector, as cuDNN takes and returns them, so
    that nothing is transposed. Else kernels lie there as they are."""
    trees = [like.params, like.batch_stats]
    structures = [jax.tree.structure(tree) for tree in trees]
    by_length = {sum(leaf.size for leaf in jax.tree.leaves(tree)): tree for tree in trees}  # weights are far more

    def ordered(leaf: Any, module: Any) -> Any:
        return module.moveaxis(leaf, -1, 0) if outputs_first else leaf

    def as_it_was(part: Any, shape: tuple[int, ...], module: Any) -> Any:
        if not outputs_first:
            return part.reshape(shape)
        return module.moveaxis(part.reshape(shape[-1], *shape[:-1]), 0, -1)

    def to_vector(tree: Any) -> Any:
        leaves = jax.tree.leaves(tree)
        module = _module_of(leaves[0])
        return module.concatenate([ordered(leaf, module).ravel() for leaf in leaves])

    def from_vector(vector: Any, like: Any) -> Any:
        leaves, structure = jax.tree.flatten(like)
        module = _module_of(vector)
        parts = module.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
        arrays = [as_it_was(part, leaf.shape, module) for part, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(structure, arrays)

    def pack(tree: Any) -> Any:
        def is_one(part: Any) -> bool:
            return jax.tree.structure(part) in structures

        return jax.tree.map(lambda part: to_vector(part) if is_one(part) else part, tree, is_leaf=is_one)

    def unpack(tree: Any) -> Any:
        def one(array: Any) -> Any:
            return from_vector(array, by_length[array.size]) if array.ndim == 1 and array.size in by_length else array

        return jax.tree.map(one, tree)

    return Layout(pack, unpack)


def norm(vector: Array) -> Array:
    """The 2-norm of a vector."""
    if vector.size < BLOCK:
        return jnp.linalg.norm(vector)
    return lax.platform_dependent(vector, cpu=_norm_in_blocks, default=jnp.linalg.norm)


def _norm_in_blocks(vector: Array) -> Array:
    """XLA:CPU would write all squares to memory, and add them up one by one. Here each block stays in a core's cache,
    and its squares are added up as vectors of 256."""
    whole = vector.size // BLOCK

    def body(t: Array, total: Array) -> Array:
        part = lax.dynamic_slice_in_dim(vector, t * BLOCK, BLOCK).reshape(-1, 256)
        return total + (part * part).sum(0)

    rest = vector[whole * BLOCK :]
    return jnp.sqrt(lax.fori_loop(0, whole, body, jnp.zeros(256, vector.dtype)).sum() + (rest * rest).sum())


def _module_of(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else jnp
