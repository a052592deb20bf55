"""Schedules against their definitions, and the numbers that the train step is given."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxresnet import OptimConfig
from jaxresnet.optim.schedules import (
    Hypers,
    at_step,
    epoch_hypers,
    hypers_of,
    make_momentum_schedule,
    make_schedule,
    per_step,
)

CYCLE = OptimConfig(schedule="onecycle", cycle_momentum=True, learning_rate=0.1)


def rates(config: OptimConfig, counts, steps_per_epoch: int = 10, num_epochs: int = 10) -> np.ndarray:
    """The learning rate at each number of finished steps; by default the run has 100 of them."""
    return make_schedule(config, steps_per_epoch, num_epochs)(np.asarray(counts))


def momenta(config: OptimConfig, counts, steps_per_epoch: int = 10, num_epochs: int = 10) -> np.ndarray:
    return make_momentum_schedule(config, steps_per_epoch, num_epochs)(np.asarray(counts))


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
    values = 0.2 * np.array(list(expected.values()))
    np.testing.assert_allclose(rates(config, list(expected)), values, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(rates(config, [100, 101, 10**6]), values[[-1] * 3], rtol=1e-5, atol=1e-8)  # it stays


def test_the_momentum_moves_against_the_rate():
    counts = [0, 14.5, 29, 64, 99, 100, 10**6]
    np.testing.assert_allclose(momenta(CYCLE, counts), [0.95, 0.9, 0.85, 0.9, 0.95, 0.95, 0.95], atol=1e-6)


@pytest.mark.parametrize("name", [name for name, _ in START_MIDDLE_END])
def test_per_epoch_moves_once_an_epoch(name):
    """The same curves over 100 epochs of 7 steps, flat within an epoch."""
    config = replace(CYCLE, schedule=name, cycle_momentum=name == "onecycle")
    for curve in (rates, momenta):
        every_step = curve(config, range(100))[:, None].repeat(7, 1)
        every_epoch = curve(replace(config, schedule_unit="epoch"), range(700), 7, 100).reshape(100, 7)
        np.testing.assert_allclose(every_epoch, every_step, rtol=1e-6, atol=1e-9)


def test_length_is_the_runs_own_unless_given():
    """Half-way the cosine is at half its height. The run has 10 epochs of 6 steps."""
    config = OptimConfig(schedule="cosine", learning_rate=1.0)
    per_epoch = replace(config, schedule_unit="epoch")
    for one, half_way in (
        (config, 30),
        (replace(config, schedule_length=40), 20),
        (per_epoch, 5 * 6),
        (replace(per_epoch, schedule_length=4), 2 * 6),
    ):
        assert rates(one, half_way, 6, 10) == pytest.approx(0.5)


@pytest.mark.parametrize("config", [CYCLE, OptimConfig()], ids=["cycling", "constant momentum"])
def test_float32_for_any_count(config):
    for schedule in (make_schedule(config, 98, 51), make_momentum_schedule(config, 98, 51)):
        for count in (3, np.int64(3), jnp.int32(3)):
            value = schedule(count)
            assert value.dtype == np.float32 and value.shape == () and value == schedule(np.arange(5))[3]


@pytest.mark.parametrize("name", ["warmup", "warmup_cosine", "triangular"])
def test_no_warmup_and_nothing_else(name):
    config = OptimConfig(schedule=name, learning_rate=1.0)
    assert rates(replace(config, warmup_fraction=0), 0) == 1
    rises = replace(config, warmup_fraction=1)
    np.testing.assert_allclose(rates(rises, range(100)), np.arange(100) / 100, rtol=1e-6)
    np.testing.assert_array_equal(rates(rises, [100, 101]), name != "triangular")  # the last value stays


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize(("optimizer", "own"), [("adam", 0.8), ("adamw", 0.8), ("sgd", 0.7)])
def test_the_momentum_is_constant_where_nothing_cycles(schedule, optimizer, own):
    config = OptimConfig(optimizer=optimizer, schedule=schedule, b1=0.8, momentum=0.7)
    np.testing.assert_array_equal(momenta(config, range(100)), np.full(100, np.float32(own)))


# -------------------------------------------------------------------------------------------- the train step's numbers


@pytest.mark.parametrize(("optimizer", "cycled", "constant"), [("adam", "b1", "momentum"), ("sgd", "momentum", "b1")])
def test_epoch_hypers_are_a_rate_and_a_momentum_a_step(optimizer, cycled, constant):
    config = replace(CYCLE, optimizer=optimizer)
    for epoch in range(3):
        h, counts = epoch_hypers(config, 4, 3, epoch), range(4 * epoch, 4 * epoch + 4)
        np.testing.assert_array_equal(h.learning_rate, rates(config, counts, 4, 3))
        np.testing.assert_array_equal(getattr(h, cycled), momenta(config, counts, 4, 3))
        np.testing.assert_array_equal(getattr(h, constant), np.full(4, np.float32(0.9)))  # which it does not use
        assert (h.b2, h.eps, h.weight_decay, h.slow_step_size) == tuple(map(np.float32, (0.999, 1e-8, 0.0, 0.5)))


def test_epoch_hypers_have_the_same_shapes_for_all_schedules():
    """So that one compiled program serves them."""
    configs = [CYCLE, replace(CYCLE, cycle_momentum=False), OptimConfig(), OptimConfig(schedule="constant")]
    for config in configs:
        found = epoch_hypers(config, 4, 3, 0)
        assert [np.shape(x) for x in found] == [(4,), (4,), (), (), (4,), (), ()]
        assert {x.dtype for x in found} == {np.dtype("float32")}


def test_one_step_has_its_own_numbers():
    hypers = per_step(hypers_of(OptimConfig())._replace(b1=np.array([0.1, 0.2, 0.3])), 3)
    expected = Hypers(*map(jnp.float32, (1e-2, 0.2, 0.999, 1e-8, 0.9, 0.0, 0.5)))
    assert at_step(hypers, 1) == jax.jit(at_step)(hypers, 1) == expected
