"""The train state as a few long vectors, for the loop over an epoch on a GPU.

The network has 38 arrays of weights, and with moments, slow weights and batch statistics a state has 200. XLA gives
the optimiser a kernel or more for each, and copies each from one pass of the loop to the next: half of a step's kernels
then move a kilobyte or so, and cost the time that it takes to start them. As vectors they take a handful, and several
devices average all gradients at once. Nothing else changes: every optimiser here treats all numbers alike, so that only
the order in which norms are added up differs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxresnet.training.state import TrainState


class Layout(NamedTuple):
    """How the loop keeps the weights and the batch statistics of a network: `pack` and `unpack` of each, and of a whole
    state. Packed or not, an optimiser can be given them."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]
    pack_stats: Callable[[Any], Any]
    unpack_stats: Callable[[Any], Any]
    pack_state: Callable[[TrainState], TrainState]
    unpack_state: Callable[[TrainState], TrainState]


def _same(tree: Any) -> Any:
    return tree


AS_IT_IS = Layout(_same, _same, _same, _same, _same, _same)


def vectors(like: TrainState) -> Layout:
    """A vector for all weights, one for each moment and for the slow weights, and one for the batch statistics.

    like: a state of the run, arrays or shapes. All its weights and statistics must be of one dtype.
    """
    structure: Any = jax.tree.structure(like.params)

    def is_params(tree: Any) -> bool:
        return bool(structure == jax.tree.structure(tree))

    def unpack(vector: Array) -> Any:
        return _from_vector(vector, like.params)

    def unpack_stats(vector: Any) -> Any:
        return _from_vector(vector, like.batch_stats)

    def pack_state(state: TrainState) -> TrainState:
        return state._replace(
            params=_to_vector(state.params),
            batch_stats=_to_vector(state.batch_stats),
            slow_batch_stats=_to_vector(state.slow_batch_stats) if state.slow_batch_stats else {},
            opt_state=jax.tree.map(lambda t: _to_vector(t) if is_params(t) else t, state.opt_state, is_leaf=is_params),
        )

    def unpack_state(state: TrainState) -> TrainState:
        return state._replace(
            params=unpack(state.params),
            batch_stats=unpack_stats(state.batch_stats),
            slow_batch_stats=unpack_stats(state.slow_batch_stats) if like.slow_batch_stats else {},
            opt_state=jax.tree.map(
                lambda tree, packed: unpack(packed) if is_params(tree) else packed,
                like.opt_state,
                state.opt_state,
                is_leaf=is_params,
            ),
        )

    return Layout(_to_vector, unpack, _to_vector, unpack_stats, pack_state, unpack_state)


def _to_vector(tree: Any) -> Array:
    """All leaves one after another; a kernel's output channels are its slowest axis, as cuDNN takes and returns them,
    so that packing transposes nothing."""
    return jnp.concatenate([jnp.moveaxis(leaf, -1, 0).ravel() for leaf in jax.tree.leaves(tree)])


def _from_vector(vector: Array, like: Any) -> Any:
    """The inverse: a tree with the shapes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = jnp.split(vector, ends[:-1])
    shapes = [(leaf.shape[-1], *leaf.shape[:-1]) for leaf in leaves]
    return jax.tree.unflatten(
        structure, [jnp.moveaxis(p.reshape(s), 0, -1) for p, s in zip(parts, shapes, strict=True)]
    )
