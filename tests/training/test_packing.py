"""The state as vectors: there and back to the bit, for every optimiser, and optimisers see no difference."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import MODEL, RUN, assert_same_to_rounding

from jaxresnet.config import OptimConfig
from jaxresnet.nn.resnet import build_model
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.training.packing import vectors
from jaxresnet.training.state import create_train_state
from jaxresnet.training.steps import make_steps

OPTIMISERS = {
    "Adam": OptimConfig(lookahead=False),
    "Adam in Lookahead": OptimConfig(),
    "Adam in Lookahead that pulls the momentum back": OptimConfig(lookahead_momentum="pullback"),
    "SGD in Lookahead": OptimConfig(optimizer="sgd", learning_rate=0.1),
    "AdamW": OptimConfig(optimizer="adamw", weight_decay=0.1, lookahead=False),
}


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.uniform(0.1, 1, a.shape), a.dtype) if a.dtype == jnp.float32 else a, tree
    )


@pytest.fixture(params=OPTIMISERS.values(), ids=OPTIMISERS)
def optimiser(request):
    return make_step_optimizer(request.param, hypers_of(request.param))


@pytest.fixture
def state(optimiser):
    """Every number of it another one."""
    return random_like(create_train_state(build_model(MODEL), optimiser, 0))


def test_there_and_back_to_the_bit(state):
    layout = vectors(state)
    back = layout.unpack_state(layout.pack_state(state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_nothing_but_vectors_and_numbers_is_left(state):
    packed = vectors(state).pack_state(state)
    assert packed.params.shape == (sum(leaf.size for leaf in jax.tree.leaves(state.params)),)
    key, *rest = sorted(jax.tree.leaves(packed), key=lambda leaf: leaf is not packed.key)
    assert key is packed.key and all(leaf.ndim <= 1 for leaf in rest)
    assert len(rest) <= 12 < len(jax.tree.leaves(state)), "a state of this small network has some forty arrays"


def test_output_channels_are_the_slowest_axis():
    """As cuDNN has them, so that a kernel is a piece of the vector as it lies there."""
    kernel = jnp.arange(3 * 3 * 2 * 4.0).reshape(3, 3, 2, 4)
    state = create_train_state(
        build_model(MODEL), make_step_optimizer(OptimConfig(lookahead=False), hypers_of(RUN.optim)), 0
    )
    layout = vectors(state._replace(params={"kernel": kernel}))
    np.testing.assert_array_equal(layout.pack({"kernel": kernel})[:18], kernel[..., 0].ravel())


def test_an_optimiser_moves_both_alike(optimiser, state):
    layout = vectors(state)
    tree, packed = state, layout.pack_state(state)
    for step in range(6):  # Lookahead synchronises after the fifth
        grads = random_like(state.params, seed=step + 1)
        updates, opt_state = optimiser.update(grads, tree.opt_state, tree.params)
        tree = tree._replace(params=jax.tree.map(jnp.add, tree.params, updates), opt_state=opt_state)
        updates, opt_state = optimiser.update(layout.pack(grads), packed.opt_state, packed.params)
        packed = packed._replace(params=packed.params + updates, opt_state=opt_state)
    assert_same_to_rounding(layout.unpack_state(packed), tree)


def test_only_gpus_have_it():
    """TPUs keep arrays in tiles, where a piece of a vector would have to be rearranged."""
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(make_steps(RUN, 256, 1, "cpu").init, 0).params))
    for platform, expected in (("gpu", True), ("tpu", False), ("cpu", False)):
        steps = make_steps(replace(RUN, batch_size=64), 256, 1, platform)
        assert (f"f32[{size}]" in _epoch_program(steps)) == expected


def _epoch_program(steps) -> str:
    from jaxresnet.optim.schedules import per_step
    from jaxresnet.training.metrics import zero_totals
    from jaxresnet.training.steps import AXIS

    state = jax.eval_shape(steps.init, 0)
    hypers = jax.tree.map(jnp.float32, per_step(hypers_of(RUN.optim), 4))
    images, labels = jnp.zeros((256, 32, 32, 3), jnp.uint8), jnp.zeros(256, jnp.int32)
    with jax.set_mesh(jax.make_mesh((1,), (AXIS,))):
        epoch = jax.shard_map(
            lambda *args: steps.train_epoch(*args, jnp.int32(0)),
            in_specs=jax.sharding.PartitionSpec(),
            out_specs=jax.sharding.PartitionSpec(),
            check_vma=False,
        )
        return str(jax.make_jaxpr(epoch)(state, zero_totals(), hypers, images, labels, jnp.int32(0)))
