"""Schedules against their definitions, optimisers against Optax's own and against formulas written out by hand."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxresnet import OptimConfig, make_optimizer, make_schedule, published
from jaxresnet.optim.optimizers import Hypers, hypers_of

RNG = np.random.default_rng(0)
START = RNG.normal(size=4)
GRADS = RNG.normal(size=(12, 4))  # of twelve steps, whatever the weights are
PLAIN = OptimConfig(schedule="constant", lookahead=False, learning_rate=0.1)


def rates(config: OptimConfig, counts, steps_per_epoch: int = 10, num_epochs: int = 10) -> np.ndarray:
    """The learning rate at each number of finished steps; by default the run has 100 of them."""
    return np.asarray(jax.jit(make_schedule(config, steps_per_epoch, num_epochs))(np.asarray(counts)))


START_MIDDLE_END = [
    ("constant", {0: 1, 50: 1, 100: 1}),
    ("cosine", {0: 1, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 75: (1 - math.sqrt(0.5)) / 2, 100: 0}),
    # Rises over the first 30, then falls over 70.
    ("warmup", {0: 0, 15: 0.5, 30: 1, 65: 1, 100: 1}),
    ("warmup_cosine", {0: 0, 15: 0.5, 30: 1, 65: 0.5, 100: 0}),
    ("triangular", {0: 0, 15: 0.5, 30: 1, 65: 0.5, 100: 0}),
    # PyTorch's phases end at 29 and 99.
    ("onecycle", {0: 1 / 25, 14.5: (1 + 1 / 25) / 2, 29: 1, 64: (1 + 1 / 250_000) / 2, 99: 1 / 250_000}),
]


@pytest.mark.parametrize(("name", "expected"), START_MIDDLE_END)
def test_start_middle_and_end_of_each_schedule(name, expected):
    config = OptimConfig(schedule=name, learning_rate=0.2)
    found = rates(config, list(expected))
    np.testing.assert_allclose(found, 0.2 * np.array(list(expected.values())), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "expected"), START_MIDDLE_END)
def test_the_last_value_stays(name, expected):
    last = list(expected.values())[-1]
    found = rates(OptimConfig(schedule=name, learning_rate=0.2), [100, 101, 10**6])
    np.testing.assert_allclose(found, [0.2 * last] * 3, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "expected"), START_MIDDLE_END)
def test_per_epoch_moves_once_an_epoch(name, expected):
    """The same curve over 100 epochs of 7 steps, flat within an epoch."""
    config = OptimConfig(schedule=name, learning_rate=0.2, schedule_unit="epoch")
    per_step = rates(replace(config, schedule_unit="step"), range(100))
    per_epoch = rates(config, range(700), steps_per_epoch=7, num_epochs=100).reshape(100, 7)
    np.testing.assert_allclose(per_epoch, per_step[:, None].repeat(7, 1), rtol=1e-6, atol=1e-9)


def test_length_is_the_runs_own_unless_given():
    config = OptimConfig(schedule="cosine", learning_rate=1.0)
    assert rates(config, 30, steps_per_epoch=6, num_epochs=10) == pytest.approx(0.5)
    assert rates(replace(config, schedule_length=40), 20, steps_per_epoch=6, num_epochs=10) == pytest.approx(0.5)
    per_epoch = replace(config, schedule_unit="epoch")
    assert rates(per_epoch, 5 * 6, steps_per_epoch=6, num_epochs=10) == pytest.approx(0.5)
    assert rates(replace(per_epoch, schedule_length=4), 2 * 6, steps_per_epoch=6, num_epochs=10) == pytest.approx(0.5)


def test_schedule_gives_float32_for_any_count():
    schedule = make_schedule(OptimConfig(), 98, 51)
    for count in (3, np.int64(3), jnp.int32(3)):
        assert jnp.asarray(schedule(count)).dtype == jnp.float32
        assert float(schedule(count)) == float(schedule(3))


def pytorch_onecycle(step: int, peak: float, total_steps: int, pct_start: float) -> float:
    """torch.optim.lr_scheduler.OneCycleLR with its defaults, cosine annealing in two phases."""
    initial, smallest = peak / 25, peak / 25 / 1e4
    phases = [(pct_start * total_steps - 1, initial, peak), (total_steps - 1, peak, smallest)]
    phase_start = 0.0
    for i, (phase_end, start, end) in enumerate(phases):
        if step <= phase_end or i == len(phases) - 1:
            fraction = (step - phase_start) / (phase_end - phase_start)
            return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))
        phase_start = phase_end
    raise AssertionError


@pytest.mark.parametrize(("total_steps", "pct_start"), [(100, 0.3), (97, 0.3), (100, 0.05), (40, 0.5), (50, 0.0)])
def test_onecycle_is_pytorchs(total_steps, pct_start):
    config = OptimConfig(
        schedule="onecycle", learning_rate=1e-2, schedule_length=total_steps, warmup_fraction=pct_start
    )
    expected = [pytorch_onecycle(step, 1e-2, total_steps, pct_start) for step in range(total_steps)]
    np.testing.assert_allclose(rates(config, range(total_steps)), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["warmup", "warmup_cosine", "triangular"])
def test_without_warmup_the_first_step_has_the_peak(name):
    assert rates(OptimConfig(schedule=name, learning_rate=0.2, warmup_fraction=0), 0) == pytest.approx(0.2)


def test_warmup_over_the_whole_length():
    for name in ("warmup", "warmup_cosine", "triangular"):
        config = OptimConfig(schedule=name, learning_rate=1.0, warmup_fraction=1)
        np.testing.assert_allclose(rates(config, range(100)), np.arange(100) / 100, rtol=1e-6)


def test_published_cosine():
    """Over 97 epochs, of which 51 are run: the rate falls to no less than 4.7e-3."""
    config = published["adam_512"].config
    epochs = np.arange(config.num_epochs)
    found = rates(config.optim, epochs * 98, steps_per_epoch=98, num_epochs=config.num_epochs)
    np.testing.assert_allclose(found, 1e-2 * (1 + np.cos(np.pi * epochs / 97)) / 2, rtol=1e-5)
    assert found[50] == pytest.approx(4.757e-3, rel=1e-3)


@pytest.mark.parametrize(("name", "steps_per_epoch"), [("adam_one_cycle", 98), ("adam_one_cycle_128", 391)])
def test_published_onecycle_never_leaves_its_start(name, steps_per_epoch):
    config = published[name].config
    counts = np.arange(31 * steps_per_epoch)
    found = rates(config.optim, counts, steps_per_epoch, num_epochs=config.num_epochs)
    np.testing.assert_allclose(found, 4e-4, rtol=1e-3)


def trajectory(tx: optax.GradientTransformation, grads=GRADS, start=START) -> np.ndarray:
    """The weights after each step, (steps, 4)."""
    params = {"w": jnp.asarray(start, jnp.float32)}
    state = tx.init(params)
    update = jax.jit(tx.update)
    weights = []
    for g in grads:
        updates, state = update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        weights.append(np.asarray(params["w"]))
    return np.stack(weights)


def ours(config: OptimConfig) -> np.ndarray:
    return trajectory(make_optimizer(config, steps_per_epoch=4, num_epochs=3))


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
    np.testing.assert_allclose(ours(config), trajectory(tx), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_as_pytorch_writes_it(nesterov):
    """Weight decay joins the gradient, before the momentum."""
    config = replace(PLAIN, optimizer="sgd", momentum=0.9, weight_decay=0.3, nesterov=nesterov)
    w, trace, expected = START, np.zeros(4), []
    for g in GRADS:
        g = g + 0.3 * w
        trace = 0.9 * trace + g
        w = w - 0.1 * (g + 0.9 * trace if nesterov else trace)
        expected.append(w)
    np.testing.assert_allclose(ours(config), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_as_written_in_the_paper(decoupled):
    """Adam's decay joins the gradient, and so both moments; AdamW's shrinks the weights beside them."""
    config = replace(PLAIN, optimizer="adamw" if decoupled else "adam", weight_decay=0.3)
    w, mean, square, expected = START, np.zeros(4), np.zeros(4), []
    for t, g in enumerate(GRADS, start=1):
        decay = 0.3 * w
        g = g if decoupled else g + decay
        mean = 0.9 * mean + 0.1 * g
        square = 0.999 * square + 0.001 * g**2
        direction = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        w = w - 0.1 * (direction + decay if decoupled else direction)
        expected.append(w)
    np.testing.assert_allclose(ours(config), expected, rtol=1e-4, atol=1e-5)


def test_the_schedule_multiplies_the_step():
    """SGD without momentum: each step is rate times gradient, whole epochs at one rate."""
    config = replace(PLAIN, optimizer="sgd", momentum=0.0, schedule="cosine", schedule_unit="epoch")
    rate = np.repeat(0.1 * (1 + np.cos(np.pi * np.arange(3) / 3)) / 2, 4)
    np.testing.assert_allclose(ours(config), START - np.cumsum(rate[:, None] * GRADS, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_traced_numbers_are_the_configs_and_share_one_program(optimizer):
    config = OptimConfig(
        optimizer=optimizer, schedule="cosine", weight_decay=0.01, sync_period=3, lookahead_momentum="pullback"
    )
    params = {"w": jnp.asarray(START, jnp.float32)}

    @jax.jit
    def update(hypers: Hypers, grads, state, params):
        return make_optimizer(config, 4, 3, hypers).update(grads, state, params)

    for changed in ({}, {"learning_rate": 0.2, "b1": 0.8, "momentum": 0.5, "weight_decay": 0.3, "slow_step_size": 0.7}):
        with_changes = replace(config, **changed)
        hypers = jax.tree.map(jnp.float32, hypers_of(with_changes))
        state, fast = make_optimizer(config, 4, 3).init(params), params
        weights = []
        for g in GRADS:
            updates, state = update(hypers, {"w": jnp.asarray(g, jnp.float32)}, state, fast)
            fast = optax.apply_updates(fast, updates)
            weights.append(fast["w"])
        # Not to the last bit: 1 - b2 is rounded to float32 before or after the subtraction.
        np.testing.assert_allclose(np.stack(weights), ours(with_changes), rtol=1e-3, atol=1e-5)
    assert update._cache_size() == 1


def test_hypers_are_the_configs_numbers():
    config = OptimConfig(learning_rate=0.2, b1=0.8, b2=0.95, eps=1e-3, momentum=0.5, weight_decay=0.3)
    assert hypers_of(config) == Hypers(0.2, 0.8, 0.95, 1e-3, 0.5, 0.3, 0.5)
