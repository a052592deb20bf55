"""The state before the first step, the statistics that belong to the slow weights, and what is evaluated."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxresnet.config import ModelConfig, OptimConfig
from jaxresnet.nn.resnet import Model, build_model
from jaxresnet.optim.lookahead import LookaheadState
from jaxresnet.optim.optimizers import make_optimizer
from jaxresnet.training.state import Weights, create_train_state, sync_batch_stats, weights_of


def init(key: jax.Array) -> dict:
    return {"params": {"w": jax.random.normal(key, (8,))}, "batch_stats": {"mean": jnp.zeros(8), "var": jnp.ones(8)}}


MODEL = Model(init, lambda variables, images, train: (images, variables))  # one layer will do here
TX = make_optimizer(OptimConfig(), steps_per_epoch=4, num_epochs=3)
create = jax.jit(lambda seed: create_train_state(MODEL, TX, seed))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_seed_decides_everything_whether_traced_or_a_number():
    for seed in (3, 2**32 - 1):
        assert_same(create(np.uint32(seed)), create_train_state(MODEL, TX, seed))
    a, b = create(3), create(4)
    assert (a.params["w"] != b.params["w"]).all() and (a.key != b.key).any()
    key = jax.random.wrap_key_data(a.key)
    assert (init(key)["params"]["w"] != a.params["w"]).all(), "the weights have a key of their own"
    assert a.step.dtype == jnp.int32 and int(a.step) == 0
    assert_same(a.opt_state.slow_params, a.params)
    assert_same(a.slow_batch_stats, a.batch_stats)


def test_the_state_of_a_network_is_float32():
    model = build_model(ModelConfig(stage_sizes=(1,), width=2, pool_size=32, precision="bfloat16"))
    state = jax.eval_shape(lambda: create_train_state(model, TX, 0))
    trees = (state.params, state.batch_stats, state.slow_batch_stats, state.opt_state.slow_params)
    assert {leaf.dtype for tree in trees for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}


def test_slow_statistics_by_hand():
    """k=2, alpha=0.25, fast statistics 4, 8, 12, 16 after steps 1 to 4: 0 -> 2 at step 2, 2 -> 5.5 at step 4."""
    slow = {"mean": jnp.zeros(2)}
    found = []
    for step in range(1, 5):
        fast, opt_state = {"mean": jnp.full(2, 4.0 * step)}, LookaheadState(jnp.int32(step), {}, (), ())
        slow = sync_batch_stats(slow, fast, opt_state, sync_period=2, slow_step_size=0.25)
        found.append(slow["mean"].tolist())
    assert found == [[0, 0], [2, 2], [2, 2], [5.5, 5.5]]


def test_what_is_evaluated():
    fast = {"params": {"w": "fast"}, "batch_stats": {"mean": "fast statistics"}}
    slow = {"params": {"w": "slow"}, "batch_stats": {"mean": "slow statistics"}}
    state = create(0)._replace(**fast, slow_batch_stats=slow["batch_stats"])
    state = state._replace(opt_state=state.opt_state._replace(slow_params=slow["params"]))
    assert weights_of(state) == Weights(fast, slow)
    assert (weights_of(state).variables("fast"), weights_of(state).variables("slow")) == (fast, slow)
    without = weights_of(state._replace(slow_batch_stats={}, opt_state=()))
    assert without == Weights(fast, {}) and without.variables("slow") == fast
