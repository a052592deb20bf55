"""Optimisers against Optax's own, and against the formulas of the papers and of PyTorch written out in NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxresnet import OptimConfig, make_optimizer
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import at_step, epoch_hypers, hypers_of, make_momentum_schedule, make_schedule

RNG = np.random.default_rng(0)
START = RNG.normal(size=4)
GRADS = RNG.normal(size=(12, 4))  # of twelve steps, whatever the weights are
STEPS_PER_EPOCH, NUM_EPOCHS = 4, 3
PLAIN = OptimConfig(schedule="constant", lookahead=False, learning_rate=0.1)


def descend(update, state) -> tuple[np.ndarray, optax.OptState]:
    """(the weights after each step, (12, 4), the last state). update: (step, grads, state, params) -> (updates, state),
    with the steps counted from 0."""
    params = {"w": jnp.asarray(START, jnp.float32)}
    weights = []
    for step, g in enumerate(GRADS):
        updates, state = update(step, {"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        weights.append(np.asarray(params["w"]))
    return np.stack(weights), state


def init(tx: optax.GradientTransformation) -> optax.OptState:
    return tx.init({"w": jnp.asarray(START, jnp.float32)})


def whole(tx: optax.GradientTransformation) -> tuple[np.ndarray, optax.OptState]:
    update = jax.jit(tx.update)
    return descend(lambda step, *args: update(*args), init(tx))


ALIASES = [
    (PLAIN, optax.adam(0.1)),
    (replace(PLAIN, b1=0.8, b2=0.95, eps=1e-3), optax.adam(0.1, 0.8, 0.95, 1e-3)),
    (replace(PLAIN, optimizer="adamw", weight_decay=0.2), optax.adamw(0.1, weight_decay=0.2)),
    (replace(PLAIN, optimizer="sgd"), optax.sgd(0.1, momentum=0.9)),
    (replace(PLAIN, optimizer="sgd", nesterov=True, momentum=0.7), optax.sgd(0.1, 0.7, nesterov=True)),
    (replace(PLAIN, optimizer="sgd", momentum=0.0), optax.sgd(0.1)),
    (replace(PLAIN, schedule="cosine"), optax.adam(optax.cosine_decay_schedule(0.1, 12))),
]


@pytest.mark.parametrize(("config", "tx"), ALIASES, ids=range(len(ALIASES)))
def test_agrees_with_optax(config, tx):
    found, _ = whole(make_optimizer(config, STEPS_PER_EPOCH, NUM_EPOCHS))
    np.testing.assert_allclose(found, whole(tx)[0], rtol=1e-6, atol=1e-6)


def by_hand(config: OptimConfig) -> np.ndarray:
    """The weights after each of the twelve steps, in float64, as the papers and PyTorch write the updates: weight decay
    joins the gradient, and so the moments; AdamW's shrinks the weights beside them."""
    counts = np.arange(12)
    rates = np.float64(make_schedule(config, STEPS_PER_EPOCH, NUM_EPOCHS)(counts))
    momenta = np.float64(make_momentum_schedule(config, STEPS_PER_EPOCH, NUM_EPOCHS)(counts))
    w, first, second, weights = START, np.zeros(4), np.zeros(4), []
    slow, slow_first = w, first
    for t, (g, b1, rate) in enumerate(zip(GRADS, momenta, rates, strict=True), start=1):
        decay = config.weight_decay * w
        if config.optimizer == "sgd":
            g = g + decay
            first = b1 * first + g
            w = w - rate * (g + b1 * first if config.nesterov else first)
        else:
            g = g if config.optimizer == "adamw" else g + decay
            first = b1 * first + (1 - b1) * g
            second = 0.999 * second + 0.001 * g**2
            # The bias of the first moment is corrected as if b1 had always been this step's.
            direction = first / (1 - b1**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
            w = w - rate * (direction + decay if config.optimizer == "adamw" else direction)
        if config.lookahead and t % config.sync_period == 0:
            w = slow = slow + config.slow_step_size * (w - slow)
            if config.lookahead_momentum == "reset":
                first = np.zeros(4)
            elif config.lookahead_momentum == "pullback":
                first = slow_first = slow_first + config.slow_step_size * (first - slow_first)
        weights.append(w)
    return np.stack(weights)


OPTIMIZERS = {
    "adam": replace(PLAIN, weight_decay=0.3),
    "adamw": replace(PLAIN, optimizer="adamw", weight_decay=0.3),
    "sgd": replace(PLAIN, optimizer="sgd", weight_decay=0.3),
    "nesterov": replace(PLAIN, optimizer="sgd", nesterov=True, weight_decay=0.3),
}
SCHEDULES = {
    "constant": {},
    "cosine by epoch": {"schedule": "cosine", "schedule_unit": "epoch"},
    "cycled momentum": {"schedule": "onecycle", "cycle_momentum": True},
}
AROUND = {
    "bare": {},
    **{
        momentum: {"lookahead": True, "sync_period": 3, "slow_step_size": 0.4, "lookahead_momentum": momentum}
        for momentum in ("none", "reset", "pullback")
    },
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_by_hand(name, schedule, around):
    config = replace(OPTIMIZERS[name], **SCHEDULES[schedule], **AROUND[around])
    found, _ = whole(make_optimizer(config, STEPS_PER_EPOCH, NUM_EPOCHS))
    np.testing.assert_allclose(found, by_hand(config), rtol=1e-4, atol=1e-5)
    if config.cycle_momentum:
        without = by_hand(replace(config, cycle_momentum=False))
        assert np.abs(found - without).max() > 1e-3, "the cycle matters here"


@pytest.mark.parametrize("around", ["bare", "pullback"])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_steps_that_are_given_their_numbers_are_the_same_and_share_one_program(name, around):
    """The train step takes each step's numbers; `make_optimizer` follows the schedule itself."""

    base = replace(OPTIMIZERS[name], **AROUND[around])

    @jax.jit
    def update(hypers, step, grads, state, params):
        return make_step_optimizer(base, at_step(hypers, step % STEPS_PER_EPOCH)).update(grads, state, params)

    changed = {"learning_rate": 0.2, "b2": 0.95, "weight_decay": 0.1, "slow_step_size": 0.7}
    for numbers in ({}, SCHEDULES["cycled momentum"], changed):
        config = replace(base, **numbers)
        epochs = [epoch_hypers(config, STEPS_PER_EPOCH, NUM_EPOCHS, epoch) for epoch in range(NUM_EPOCHS)]
        found, state = descend(
            lambda step, *args, epochs=epochs: update(epochs[step // STEPS_PER_EPOCH], step, *args),
            init(make_step_optimizer(config, hypers_of(config))),
        )
        expected, alone = whole(make_optimizer(config, STEPS_PER_EPOCH, NUM_EPOCHS))
        # Not to the last bit: 1 - b2 is rounded to float32 before or after the subtraction.
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        assert jax.tree.structure(state) == jax.tree.structure(alone), "a checkpoint fits both"
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
    assert update._cache_size() == 1


@pytest.mark.parametrize("lookahead", [False, True])
def test_past_the_end_of_the_run_the_last_rate_stays(lookahead):
    """Of 4 steps with a triangular schedule, whose rate is 0 after the last; twelve are taken."""
    config = replace(PLAIN, schedule="triangular", lookahead=lookahead, sync_period=1, slow_step_size=1.0)
    found, _ = whole(make_optimizer(config, 2, 2))
    assert (np.diff(found[:4], axis=0) != 0).all() and (np.diff(found[3:], axis=0) == 0).all()
