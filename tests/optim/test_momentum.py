"""OneCycle's momentum: the curve against PyTorch's formula, and optimisers that follow it against NumPy."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxresnet import OptimConfig, make_optimizer, make_schedule, published
from jaxresnet.optim.optimizers import Hypers, at_step, epoch_hypers, hypers_of, make_momentum_schedule, per_step

RNG = np.random.default_rng(0)
START = RNG.normal(size=4)
GRADS = RNG.normal(size=(12, 4))  # of twelve steps, whatever the weights are
CYCLE = OptimConfig(schedule="onecycle", cycle_momentum=True, lookahead=False, learning_rate=0.1)
STEPS_PER_EPOCH, NUM_EPOCHS = 4, 3


def momenta(config: OptimConfig, counts, steps_per_epoch: int = 10, num_epochs: int = 10) -> np.ndarray:
    """The momentum at each number of finished steps; by default the run has 100 of them."""
    return np.asarray(jax.jit(make_momentum_schedule(config, steps_per_epoch, num_epochs))(np.asarray(counts)))


def pytorch_momentum(step: int, total_steps: int, pct_start: float) -> float:
    """The momentum of torch.optim.lr_scheduler.OneCycleLR with its defaults, cosine annealing in two phases."""
    phases = [(pct_start * total_steps - 1, 0.95, 0.85), (total_steps - 1, 0.85, 0.95)]
    phase_start = 0.0
    for i, (phase_end, start, end) in enumerate(phases):
        if step <= phase_end or i == len(phases) - 1:
            fraction = (step - phase_start) / (phase_end - phase_start)
            return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
        phase_start = phase_end
    raise AssertionError


# ------------------------------------------------------------------------------------------------------ the curve

LENGTHS = [(100, 0.3), (97, 0.3), (100, 0.05), (40, 0.5), (50, 0.0), (60, 1.0), (2, 0.3), (1, 0.3)]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(("total_steps", "pct_start"), LENGTHS)
def test_momentum_is_pytorchs(total_steps, pct_start, optimizer):
    config = replace(CYCLE, optimizer=optimizer, schedule_length=total_steps, warmup_fraction=pct_start)
    expected = [pytorch_momentum(step, total_steps, pct_start) for step in range(total_steps)]
    np.testing.assert_allclose(momenta(config, range(total_steps)), expected, atol=1e-7)


def test_start_peak_and_end():
    found = momenta(CYCLE, [0, 14.5, 29, 64, 99, 100, 10**6])  # PyTorch's phases end at 29 and 99
    np.testing.assert_allclose(found, [0.95, 0.9, 0.85, 0.9, 0.95, 0.95, 0.95], atol=1e-6)


def test_it_moves_against_the_rate():
    """Where the rate is a fraction f of the way to its peak, the momentum is as far from 0.95 to 0.85."""
    counts = np.arange(100)
    rates = np.asarray(make_schedule(CYCLE, 10, 10)(counts), np.float64)
    start, end = 0.1 / 25, 0.1 / 25 / 1e4
    fraction = np.where(counts <= 29, (rates - start) / (0.1 - start), (rates - end) / (0.1 - end))
    np.testing.assert_allclose(momenta(CYCLE, counts), 0.95 - 0.1 * fraction, atol=1e-6)


def test_without_warmup_it_falls_no_more():
    """PyTorch's first phase ends at step -1 then, so that the second has begun."""
    found = momenta(replace(CYCLE, warmup_fraction=0), range(100))
    assert found[0] == pytest.approx(pytorch_momentum(0, 100, 0.0), abs=1e-7) and 0.85 < found[0] < 0.851
    assert np.all(np.diff(found) > -1e-7) and found[-1] == pytest.approx(0.95)


def test_warmup_over_the_whole_length():
    found = momenta(replace(CYCLE, warmup_fraction=1), range(100))
    assert np.all(np.diff(found) < 1e-7) and found[0] == pytest.approx(0.95) and found[-1] == pytest.approx(0.85)


def test_per_epoch_moves_once_an_epoch():
    """The same curve over 100 epochs of 7 steps, flat within an epoch."""
    found = momenta(replace(CYCLE, schedule_unit="epoch"), range(700), steps_per_epoch=7, num_epochs=100)
    np.testing.assert_allclose(found.reshape(100, 7), momenta(CYCLE, range(100))[:, None].repeat(7, 1), atol=1e-6)


@pytest.mark.parametrize(("name", "steps_per_epoch"), [("adam_one_cycle", 98), ("adam_one_cycle_128", 391)])
def test_published_onecycle_never_leaves_its_start(name, steps_per_epoch):
    """Stepped once an epoch over 1,500,000 epochs, as its rate: in 31 epochs b1 moves by 1e-9."""
    config = published[name].config
    assert config.optim.cycle_momentum and config.num_epochs == 31
    moved = [abs(pytorch_momentum(epoch, config.optim.schedule_length, 0.3) - 0.95) for epoch in range(31)]
    assert max(moved) < 1.2e-9
    found = momenta(config.optim, np.arange(31 * steps_per_epoch), steps_per_epoch, config.num_epochs)
    np.testing.assert_allclose(found, 0.95, atol=1e-7)  # float32


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize(("optimizer", "own"), [("adam", 0.8), ("adamw", 0.8), ("sgd", 0.7)])
def test_constant_where_nothing_cycles(schedule, optimizer, own):
    config = OptimConfig(optimizer=optimizer, schedule=schedule, b1=0.8, momentum=0.7)
    np.testing.assert_array_equal(momenta(config, range(100)), np.full(100, np.float32(own)))


@pytest.mark.parametrize("config", [CYCLE, OptimConfig()], ids=["cycling", "constant"])
def test_float32_for_any_count(config):
    schedule = make_momentum_schedule(config, 10, 10)
    for count in (3, np.int64(3), jnp.int32(3)):
        assert schedule(count).dtype == jnp.float32 and schedule(count).shape == ()
        assert float(schedule(count)) == float(schedule(3))


# ----------------------------------------------------------------------------------------------------- the numbers


def test_epoch_hypers_are_a_rate_and_a_momentum_a_step():
    hypers = [epoch_hypers(CYCLE, STEPS_PER_EPOCH, NUM_EPOCHS, epoch) for epoch in range(NUM_EPOCHS)]
    rates = make_schedule(CYCLE, STEPS_PER_EPOCH, NUM_EPOCHS)(np.arange(12))
    np.testing.assert_allclose(np.concatenate([h.learning_rate for h in hypers]), rates, rtol=1e-6)
    b1 = [pytorch_momentum(step, 12, 0.3) for step in range(12)]
    np.testing.assert_allclose(np.concatenate([h.b1 for h in hypers]), b1, atol=1e-7)
    for h in hypers:
        np.testing.assert_array_equal(h.momentum, np.full(4, np.float32(0.9)))  # SGD's, which Adam does not use
        assert (h.b2, h.eps, h.weight_decay, h.slow_step_size) == (0.999, 1e-8, 0.0, 0.5)


def test_epoch_hypers_of_sgd_cycle_its_momentum():
    hypers = epoch_hypers(replace(CYCLE, optimizer="sgd"), STEPS_PER_EPOCH, NUM_EPOCHS, 1)
    np.testing.assert_allclose(hypers.momentum, [pytorch_momentum(step, 12, 0.3) for step in range(4, 8)], atol=1e-7)
    np.testing.assert_array_equal(hypers.b1, np.full(4, np.float32(0.9)))


def test_epoch_hypers_have_the_same_shapes_for_all_schedules():
    """So that one compiled program serves them."""
    shapes = {
        tuple(jnp.shape(x) for x in epoch_hypers(config, STEPS_PER_EPOCH, NUM_EPOCHS, 0))
        for config in (CYCLE, replace(CYCLE, cycle_momentum=False), OptimConfig(), OptimConfig(schedule="constant"))
    }
    assert shapes == {((4,), (4,), (), (), (4,), (), ())}


def test_one_step_has_its_own_numbers():
    hypers = per_step(hypers_of(OptimConfig())._replace(b1=jnp.array([0.1, 0.2, 0.3])), 3)
    assert at_step(hypers, jnp.int32(1)) == Hypers(*map(jnp.float32, (1e-2, 0.2, 0.999, 1e-8, 0.9, 0.0, 0.5)))


# ------------------------------------------------------------------------------------------------- the optimisers


def trajectory(tx: optax.GradientTransformation) -> tuple[np.ndarray, optax.OptState]:
    """(the weights after each step, (12, 4), the last state)."""
    params = jnp.asarray(START, jnp.float32)
    state = tx.init(params)
    update = jax.jit(tx.update)
    weights = []
    for g in GRADS:
        updates, state = update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        weights.append(np.asarray(params))
    return np.stack(weights), state


def by_hand(config: OptimConfig, cycle=None) -> np.ndarray:
    """The weights after each of the twelve steps, in float64, as the papers and PyTorch write the updates.

    cycle: the momentum of each step, default PyTorch's.
    """
    cycle = [pytorch_momentum(step, 12, 0.3) for step in range(12)] if cycle is None else cycle
    rates = np.asarray(make_schedule(config, STEPS_PER_EPOCH, NUM_EPOCHS)(np.arange(12)), np.float64)
    w, first, second, weights = START, np.zeros(4), np.zeros(4), []
    slow, slow_first = w, first
    for t, (g, b1, rate) in enumerate(zip(GRADS, cycle, rates, strict=True), start=1):
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
    "adam": replace(CYCLE, weight_decay=0.3),
    "adamw": replace(CYCLE, optimizer="adamw", weight_decay=0.3),
    "sgd": replace(CYCLE, optimizer="sgd", weight_decay=0.3),
    "nesterov": replace(CYCLE, optimizer="sgd", nesterov=True, weight_decay=0.3),
}
LOOKAHEAD = {
    f"{name} in Lookahead, {momentum}": replace(
        config, lookahead=True, sync_period=3, slow_step_size=0.4, lookahead_momentum=momentum
    )
    for name, config in OPTIMIZERS.items()
    for momentum in ("none", "reset", "pullback")
}
ALL = {**OPTIMIZERS, **LOOKAHEAD}


@pytest.mark.parametrize("name", ALL)
def test_updates_follow_the_cycle(name):
    config = ALL[name]
    found, _ = trajectory(make_optimizer(config, STEPS_PER_EPOCH, NUM_EPOCHS))
    np.testing.assert_allclose(found, by_hand(config), rtol=1e-5, atol=1e-5)
    constant = by_hand(config, cycle=[0.9] * 12)
    assert np.abs(found - constant).max() > 1e-3, "the cycle matters here"


@pytest.mark.parametrize("name", ALL)
def test_alone_it_equals_the_steps_that_take_numbers(name):
    """A transformation that follows the cycle itself, and one that is given each step's rate and momentum."""
    config = ALL[name]
    constant = replace(config, schedule="constant", cycle_momentum=False)
    params = jnp.asarray(START, jnp.float32)
    state = make_optimizer(constant, 1, 1).init(params)

    @jax.jit
    def update(hypers, step, grads, state, params):
        tx = make_optimizer(constant, 1, 1, at_step(hypers, step % STEPS_PER_EPOCH))
        return tx.update(grads, state, params)

    weights = []
    for step, g in enumerate(GRADS):
        hypers = epoch_hypers(config, STEPS_PER_EPOCH, NUM_EPOCHS, step // STEPS_PER_EPOCH)
        updates, state = update(hypers, step, jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        weights.append(np.asarray(params))
    found, alone = trajectory(make_optimizer(config, STEPS_PER_EPOCH, NUM_EPOCHS))
    np.testing.assert_allclose(np.stack(weights), found, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(alone), "a checkpoint fits both"
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_config_s_own_momentum_is_not_used():
    for optimizer in ("adam", "sgd"):
        config = replace(CYCLE, optimizer=optimizer)
        other = hypers_of(config)._replace(b1=0.1, momentum=0.1)
        found, expected = (
            trajectory(make_optimizer(config, STEPS_PER_EPOCH, NUM_EPOCHS, hypers))[0] for hypers in (other, None)
        )
        np.testing.assert_array_equal(found, expected)
