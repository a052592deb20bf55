"""One step against the same computed plainly, sums that count every image, and the loop against single steps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiny import STEADY_PARTIAL, assert_same_to_rounding

from jaxresnet.data.augment import augment_batch, epoch_plan
from jaxresnet.nn.resnet import build_model
from jaxresnet.optim.optimizers import make_optimizer
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.training import engine
from jaxresnet.training.devices import replicate
from jaxresnet.training.engine import make_engine
from jaxresnet.training.state import TrainState, create_train_state, sync_batch_stats

NUM_TRAIN = 260  # of `STEADY_PARTIAL`: four batches of 64 and one of 4


@pytest.fixture(scope="module")
def one_device():
    return tuple(jax.devices()[:1])


@pytest.fixture(scope="module")
def train(tiny_data):
    return tuple(a[:NUM_TRAIN] for a in tiny_data.train)


def run_epochs(programs, config, data, num_epochs=1):
    """(state, unpacked, totals of the last epoch), from the config's seed."""
    state = engine.init_state(programs, config.seed)
    data = replicate(data, programs.devices)
    for epoch in range(num_epochs):
        hypers = replicate(epoch_hypers(config.optim, 5, config.num_epochs, epoch), programs.devices)
        totals, plan = engine.init_totals(programs), engine.plan_epoch(programs, state, epoch)
        for dispatch in engine.dispatches(programs, 0):
            state, totals = engine.train(programs, state, totals, hypers, *data, plan, dispatch)
    return engine.unpacked(programs, state), totals


def test_an_epoch_equals_plain_jax(one_device, train):
    """With its partial batch and a Lookahead synchronisation, against a loop that anyone would write."""
    config = STEADY_PARTIAL
    state, totals = run_epochs(make_engine(config, NUM_TRAIN, one_device), config, train)

    model = build_model(config.model)
    tx = make_optimizer(config.optim, 5, config.num_epochs)

    @jax.jit
    def step(state, images, labels):
        def loss_fn(params):
            logits, variables = model.apply({"params": params, "batch_stats": state.batch_stats}, images, True)
            log_probabilities = jax.nn.log_softmax(logits)
            return -log_probabilities[jnp.arange(len(labels)), labels].mean(), (variables["batch_stats"], logits)

        (loss, (batch_stats, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        slow = sync_batch_stats(state.slow_batch_stats, batch_stats, opt_state, config.optim.sync_period, 0.5)
        params = optax.apply_updates(state.params, updates)
        norms = jnp.stack([optax.tree.norm(tree) for tree in (grads, params, updates)])
        state = TrainState(state.step + 1, params, batch_stats, slow, opt_state, state.key)
        return state, loss, (logits.argmax(1) == labels).sum(), norms

    expected = jax.jit(lambda: create_train_state(model, tx, config.seed))()
    plan = epoch_plan(jax.random.wrap_key_data(expected.key), 0, NUM_TRAIN, config.augment)
    images, labels = train
    loss_sum, correct_sum, norms_sum = 0.0, 0, np.zeros(3)
    for start in range(0, NUM_TRAIN, config.batch_size):
        rows = jax.tree.map(lambda column, start=start: column[start : start + config.batch_size], plan)
        batch = augment_batch(images[np.asarray(rows.order)], rows, config.augment)
        expected, loss, correct, norms = step(expected, batch, labels[rows.order])
        loss_sum += float(loss) * len(batch)
        correct_sum += int(correct)
        norms_sum += norms

    assert_same_to_rounding(state, expected)
    assert int(totals.sums.count) == NUM_TRAIN
    assert int(totals.sums.correct) == correct_sum
    np.testing.assert_allclose(totals.sums.loss, loss_sum, rtol=1e-5)
    np.testing.assert_allclose(totals.norms, norms_sum, rtol=1e-4)
    assert int(totals.steps) == 5 and int(totals.bad_step) == -1


@pytest.fixture(scope="module")
def step_by_step(one_device, train):
    return run_epochs(make_engine(STEADY_PARTIAL, NUM_TRAIN, one_device), STEADY_PARTIAL, train, num_epochs=2)


@pytest.mark.parametrize(
    "platform, steps_per_dispatch, num_devices",
    [
        pytest.param("gpu", 4, 1, id="an epoch a dispatch, with outputs first in the vectors"),
        pytest.param("cpu", 3, 2, id="three steps a dispatch on two devices", marks=pytest.mark.devices(2)),
    ],
)
def test_steps_in_a_loop_equal_single_steps(platform, steps_per_dispatch, num_devices, train, step_by_step):
    """Two devices share every batch, the last of 4 images too."""
    looped = make_engine(STEADY_PARTIAL, NUM_TRAIN, jax.devices()[:num_devices])
    looped = looped._replace(platform=platform, steps_per_dispatch=steps_per_dispatch)
    results = run_epochs(looped, STEADY_PARTIAL, train, num_epochs=2)
    assert int(results[0].step) == 10 and int(results[1].sums.count) == NUM_TRAIN
    assert_same_to_rounding(results, step_by_step)


def test_bfloat16_trains_several_steps_in_a_loop(train, one_device):
    """What `fit` does on a CPU: the same numbers as a step at a time, to their rounding."""
    config = replace(STEADY_PARTIAL, model=replace(STEADY_PARTIAL.model, precision="bfloat16"))
    together = make_engine(config, NUM_TRAIN, one_device)
    assert together.steps_per_dispatch == 32
    (one, one_totals), (other, other_totals) = (
        run_epochs(programs, config, train) for programs in (together, together._replace(steps_per_dispatch=1))
    )
    np.testing.assert_allclose(one_totals.sums.loss, other_totals.sums.loss, rtol=1e-3)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # a twentieth of what Adam moves a weight in one step


def test_batch_statistics_that_are_not_finite_are_noticed(one_device, train):
    """Weights so large that a variance overflows while the loss, which sees them normalised, is finite."""
    programs = make_engine(STEADY_PARTIAL, NUM_TRAIN, one_device)
    state = engine.unpacked(programs, engine.init_state(programs, 0))
    stem = jax.tree.map(lambda a: a * np.float32(1e19), state.params["conv1"])
    state = engine.packed(programs, state._replace(params={**state.params, "conv1": stem}))
    hypers = replicate(epoch_hypers(STEADY_PARTIAL.optim, 5, 3, 0), one_device)
    plan, data = engine.plan_epoch(programs, state, 0), replicate(train, one_device)
    _, totals = engine.train(programs, state, engine.init_totals(programs), hypers, *data, plan, (0, 1, 64))
    assert int(totals.bad_step) == 0 and np.isfinite(float(totals.sums.loss))
