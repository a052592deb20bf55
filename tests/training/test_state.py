"""The state before the first step, the statistics that belong to the slow weights, and what is evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxresnet import (
    ModelConfig,
    OptimConfig,
    TrainState,
    build_model,
    create_train_state,
    eval_variables,
    make_optimizer,
)
from jaxresnet.nn.resnet import Model
from jaxresnet.optim.lookahead import LookaheadState
from jaxresnet.training.state import sync_batch_stats


def init(key: jax.Array) -> dict:
    return {"params": {"w": jax.random.normal(key, (8,))}, "batch_stats": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}


MODEL = Model(init, lambda variables, images, train: (images, variables))  # one layer will do here


def tx(lookahead: bool):
    return make_optimizer(OptimConfig(lookahead=lookahead), steps_per_epoch=4, num_epochs=3)


create = jax.jit(lambda seed: create_train_state(MODEL, tx(True), seed))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_state_before_the_first_step():
    state = create_train_state(MODEL, tx(True), 0)
    assert state.step.shape == () and state.step.dtype == jnp.int32 and int(state.step) == 0
    assert isinstance(state.opt_state, LookaheadState)
    assert_same(state.opt_state.slow_params, state.params)
    assert_same(state.slow_batch_stats, state.batch_stats)
    assert state.key.dtype == jnp.uint32
    jax.random.wrap_key_data(state.key)  # is key data of the default implementation
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_without_lookahead_there_is_nothing_slow():
    state = create_train_state(MODEL, tx(False), 0)
    assert state.slow_batch_stats == {} and not isinstance(state.opt_state, LookaheadState)


def test_the_seed_decides_everything():
    assert_same(create(3), create(3))
    a, b = create(3), create(4)
    assert (a.params["w"] != b.params["w"]).all()
    assert (a.key != b.key).any()


def test_a_traced_seed_is_the_number():
    assert_same(create(np.uint32(3)), create_train_state(MODEL, tx(True), 3))
    assert_same(create(np.uint32(2**32 - 1)), create_train_state(MODEL, tx(True), 2**32 - 1))


def test_weights_and_run_have_keys_of_their_own():
    state = create(3)
    key = jax.random.wrap_key_data(state.key)
    assert (init(key)["params"]["w"] != state.params["w"]).all()


def test_no_two_arrays_share_a_buffer():
    """So that the whole state can be donated."""
    state = create_train_state(MODEL, tx(True), 0)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_the_state_of_a_network_is_float32():
    model = build_model(ModelConfig(stage_sizes=(1,), width=2, pool_size=32, precision="bfloat16"))
    state = jax.eval_shape(lambda: create_train_state(model, tx(True), 0))
    trees = (state.params, state.batch_stats, state.slow_batch_stats, state.opt_state.slow_params)
    assert {leaf.dtype for tree in trees for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    assert jax.tree.structure(state.slow_batch_stats) == jax.tree.structure(state.batch_stats)


def opt_state(count: int) -> LookaheadState:
    return LookaheadState(jnp.int32(count), {}, (), ())


def test_slow_statistics_by_hand():
    """k=2, alpha=0.25, fast statistics 4, 8, 12, 16 after steps 1 to 4: 0 -> 2 at step 2, 2 -> 5.5 at step 4."""
    slow = {"mean": jnp.zeros(2)}
    found = []
    for step in range(1, 5):
        fast = {"mean": jnp.full(2, 4.0 * step)}
        slow = sync_batch_stats(slow, fast, opt_state(step), sync_period=2, slow_step_size=0.25)
        found.append(slow["mean"].tolist())
    assert found == [[0, 0], [2, 2], [2, 2], [5.5, 5.5]]


def test_slow_statistics_without_lookahead_stay_empty():
    assert sync_batch_stats({}, {"mean": jnp.ones(2)}, (), 1, 0.5) == {}


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_slow_statistics_at_the_edges_of_alpha(alpha):
    slow = sync_batch_stats({"m": jnp.float32(2)}, {"m": jnp.float32(7)}, opt_state(5), 5, alpha)
    assert float(slow["m"]) == (7 if alpha else 2)


def test_what_is_evaluated():
    state = create(0)
    state = state._replace(params={"w": "fast"}, batch_stats={"mean": "fast statistics"})
    state = state._replace(slow_batch_stats={"mean": "slow statistics"})
    state = state._replace(opt_state=state.opt_state._replace(slow_params={"w": "slow"}))
    fast = {"params": {"w": "fast"}, "batch_stats": {"mean": "fast statistics"}}
    assert eval_variables(state) == eval_variables(state, "fast") == fast
    assert eval_variables(state, "slow") == {"params": {"w": "slow"}, "batch_stats": {"mean": "slow statistics"}}
    without = TrainState(state.step, state.params, state.batch_stats, {}, (), state.key)
    assert eval_variables(without, "slow") == eval_variables(without, "fast") == fast
