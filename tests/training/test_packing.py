"""The state as vectors: there and back to the bit, and optimisers see no difference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import MODEL, assert_same_bits, assert_same_to_rounding

from jaxresnet.config import OptimConfig
from jaxresnet.nn.resnet import build_model
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.training.packing import norm, vectors
from jaxresnet.training.state import create_train_state, weights_of

OPTIMISERS = {
    "Adam in Lookahead that pulls the momentum back": OptimConfig(lookahead_momentum="pullback", sync_period=2),
    "AdamW": OptimConfig(optimizer="adamw", weight_decay=0.1, lookahead=False),
    "SGD in Lookahead": OptimConfig(optimizer="sgd", learning_rate=0.1, sync_period=2),
}


def random_like(tree, seed=0):
    """Of arrays or shapes; what is no float is zero."""
    rng = np.random.default_rng(seed)

    def numbers(a):
        return (rng.uniform(0.1, 1, a.shape) if a.dtype == jnp.float32 else np.zeros(a.shape)).astype(a.dtype)

    return jax.tree.map(numbers, tree)


def state_shapes(config):
    optimiser = make_step_optimizer(config, hypers_of(config))
    return jax.eval_shape(lambda: create_train_state(build_model(MODEL), optimiser, 0))


@pytest.mark.parametrize("outputs_first", [False, True])
@pytest.mark.parametrize("config", OPTIMISERS.values(), ids=OPTIMISERS)
def test_as_vectors_a_state_is_the_same_and_an_optimiser_moves_it_alike(config, outputs_first):
    tree = random_like(state_shapes(config))
    layout = vectors(tree, outputs_first)
    pack, unpack = jax.jit(layout.pack), jax.jit(layout.unpack)
    packed = pack(tree)
    assert_same_bits(unpack(packed), tree)
    on_host = layout.pack(tree)
    assert_same_bits((on_host, layout.unpack(on_host)), (packed, tree))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((on_host, layout.unpack(on_host))))
    assert packed.params.shape == (sum(leaf.size for leaf in jax.tree.leaves(tree.params)),)
    assert len(jax.tree.leaves(packed)) <= 13 < len(jax.tree.leaves(tree)), "fewer kernels are what it is for"

    @jax.jit
    def moved(state, grads):
        updates, opt_state = make_step_optimizer(config, hypers_of(config)).update(grads, state.opt_state, state.params)
        return state._replace(params=jax.tree.map(jnp.add, state.params, updates), opt_state=opt_state)

    for step in range(2):  # Lookahead synchronises after the second
        grads = random_like(tree.params, seed=step + 1)
        tree, packed = moved(tree, grads), moved(packed, pack(grads))
    assert_same_to_rounding(unpack(packed), tree)


def test_weights_are_packed_as_the_state_is():
    tree = random_like(state_shapes(OptimConfig()))
    layout = vectors(tree, outputs_first=False)
    weights, packed = weights_of(tree), weights_of(layout.pack(tree))
    assert_same_bits((layout.pack(weights), layout.unpack(packed)), (packed, weights))
    assert {leaf.ndim for leaf in jax.tree.leaves(packed)} == {1}


def test_output_channels_are_the_slowest_axis_where_that_is_asked_for():
    """As cuDNN has them, so that a kernel is a piece of the vector as it lies there."""
    kernel = jnp.arange(3 * 3 * 2 * 4.0).reshape(3, 3, 2, 4)
    like = state_shapes(OptimConfig())._replace(params={"kernel": kernel})
    for outputs_first, expected in (True, kernel[..., 0].ravel()), (False, kernel.ravel()[:18]):
        np.testing.assert_array_equal(vectors(like, outputs_first).pack({"kernel": kernel})[:18], expected)


@pytest.mark.parametrize("size", [7, 16_384, 40_001])
def test_the_norm_of_a_vector(size):
    vector = np.random.default_rng(size).normal(size=size).astype(np.float32)
    np.testing.assert_allclose(jax.jit(norm)(vector), np.linalg.norm(vector.astype(np.float64)), rtol=1e-6)
    assert not np.isfinite(norm(np.append(vector, np.float32(np.nan))))
