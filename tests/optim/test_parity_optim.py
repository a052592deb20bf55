"""Optimisers, Lookahead and schedules against PyTorch's."""

from collections import defaultdict
from dataclasses import fields, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.golden import cases

from jaxresnet import OptimConfig
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import Hypers, hypers_of, make_momentum_schedule, make_schedule

LOOKAHEADS = ("bare", "none", "reset", "pullback")


def kind_of(config: OptimConfig) -> str:
    return config.lookahead_momentum if config.lookahead else "bare"


@cache
def descents() -> dict[str, np.ndarray]:
    """The weights after each of fifty steps, (50, 4). Configs that differ in numbers alone are run side by side."""
    alike = defaultdict(list)
    for name, config in cases.DESCENTS.items():
        alike[replace(config, **{number: getattr(OptimConfig, number) for number in Hypers._fields})].append(name)
    found = {}
    for config, names in alike.items():
        numbers = [hypers_of(cases.DESCENTS[name]) for name in names]
        paths = _descend(config, jax.tree.map(lambda *a: np.float32(a), *numbers))
        found |= dict(zip(names, np.asarray(paths), strict=True))
    return found


def _descend(config: OptimConfig, hypers: Hypers):
    """hypers: of several runs, stacked. (runs, 50, 4)."""
    curvature, noise = cases.DESCENT_CURVATURE, cases.DESCENT_NOISE

    @jax.jit
    @jax.vmap
    def path(hypers):
        tx = make_step_optimizer(config, hypers)

        def step(carry, noise):
            weights, state = carry
            grads = jax.tree.map(lambda w, c, n: c * w + n, weights, curvature, noise)
            updates, state = tx.update(grads, state, weights)
            weights = optax.apply_updates(weights, updates)
            return (weights, state), jnp.concatenate([weights[name] for name in cases.DESCENT_START])

        start = jax.tree.map(jnp.asarray, cases.DESCENT_START)
        return jax.lax.scan(step, (start, tx.init(start)), noise)[1]

    return path(hypers)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("kind", LOOKAHEADS)
def test_fifty_steps(optimizer, kind, pytorch):
    names = [n for n, c in cases.DESCENTS.items() if c.optimizer == optimizer and kind_of(c) == kind]
    assert len(names) >= (2 if kind == "bare" else 24)
    title = f"50 steps of {optimizer}" + ("" if kind == "bare" else f" in Lookahead, momentum {kind}")
    ours = descents()
    pytorch.check(title, {name: ours[name] for name in names}, "descents", tolerance=1e-5)


def test_the_cases_are_those_that_are_asked_for():
    configs = list(cases.DESCENTS.values())
    assert {c.optimizer for c in configs} == {"adam", "adamw", "sgd"}
    around = {(kind_of(c), c.sync_period, c.slow_step_size) for c in configs if c.lookahead}
    assert around == {(m, k, a) for m in LOOKAHEADS[1:] for k in (1, 5, 7) for a in (0.0, 0.5, 0.8, 1.0)}
    inner = {tuple(getattr(c, f.name) for f in fields(c) if "lookahead" not in f.name) for c in cases.INNER}
    assert len(cases.DESCENTS) == len(inner) * (1 + len(around)) == len(cases.INNER) * 37
    assert any(c.nesterov for c in configs) and len({c.eps for c in configs}) >= 3


@cache
def rates() -> dict[str, np.ndarray]:
    """Learning rate and momentum of every step, or, where the schedule moves once an epoch, of every epoch."""
    found = {}
    for name, (config, count) in cases.RATES.items():
        # The published runs' epochs are of hundreds of steps; that all of one are alike is seen on the first and last.
        steps_per_epoch = 1 if config.schedule_unit == "step" else 98
        first = np.arange(count) * steps_per_epoch
        for key, make in {name: make_schedule, f"{name}, momentum": make_momentum_schedule}.items():
            schedule = make(config, steps_per_epoch, count)
            found[key] = schedule(first)
            np.testing.assert_array_equal(schedule(first + steps_per_epoch - 1), found[key])
    return found


@pytest.mark.parametrize("name", cases.RATES)
def test_learning_rate_and_momentum_of_every_step(name, pytorch):
    # Of the largest rate: OneCycle's last is 4e-6 of it.
    for title, key in (("learning rate", name), ("momentum under OneCycle", f"{name}, momentum")):
        pytorch.check(title, {key: rates()[key]}, "rates", tolerance=1e-6)


@pytest.mark.parametrize("name", ["as published: adam_one_cycle", "as published: adam_one_cycle_128"])
def test_onecycle_as_published_stays_at_its_start(name):
    np.testing.assert_allclose(rates()[name], 4e-4, rtol=1e-6)
    np.testing.assert_allclose(rates()[f"{name}, momentum"], 0.95, rtol=1e-6)
