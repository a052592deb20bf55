"""Configs drawn at random: each is read back from JSON as it was, and a run of it takes a step.

The draws are the same in every run (`derandomize`). To look further, raise the examples by a factor, which draws new
ones as well: CONFIG_EXAMPLES=20 python -m pytest -o addopts= tests/test_config_property.py
"""

import json
import os
import typing
from dataclasses import fields

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxresnet import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from jaxresnet.config import field_names, field_value, from_dict, to_dict, with_fields
from jaxresnet.optim.schedules import epoch_hypers, make_momentum_schedule, make_schedule
from jaxresnet.training import engine
from jaxresnet.training.devices import replicate

FACTOR = int(os.environ.get("CONFIG_EXAMPLES", 1))
MAX_INT = 2**31 - 1
SMALL = {  # enough to compile in a second
    "stage_sizes": st.sampled_from([(1,), (1, 1)]),
    "width": st.integers(1, 8),
    "num_classes": st.integers(2, 12),
    "schedule_length": st.none() | st.integers(2, 40) | st.just(MAX_INT),
    "sync_period": st.integers(1, 3) | st.just(MAX_INT),
    "num_epochs": st.integers(2, 6),
    "batch_size": st.integers(1, 6),
    "val_size": st.integers(1, MAX_INT),
}


def of_its_kind(f) -> st.SearchStrategy:
    """What the annotation of a field allows, rates up to 10."""
    if typing.get_origin(f.type) is not typing.Annotated:
        return st.sampled_from(typing.get_args(f.type) or (False, True))
    number, low, high = typing.get_args(f.type)
    if number is float:
        return st.just(low) | st.floats(max(low, 1e-30), min(high, 10))  # float32 takes what is below 1e-38 for 0
    return st.integers(low, high)


CLASSES = (ModelConfig, AugmentConfig, OptimConfig, TrainConfig)
FIELDS = {f.name: f for cls in CLASSES for f in fields(cls) if f.name in field_names(TrainConfig())}


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    values = {name: draw(SMALL[name] if name in SMALL else of_its_kind(f), label=name) for name, f in FIELDS.items()}
    values["pool_size"] = 64 // 2 ** len(values["stage_sizes"])
    values["cycle_momentum"] &= values["schedule"] == "onecycle"
    if values["cycle_momentum"]:
        values |= {"b1": 0.9, "momentum": 0.9}
    values["test_every_epoch"] |= values["selection"] == "test"
    config = with_fields(TrainConfig(), values)
    assert {name: field_value(config, name) for name in values} == values
    return config


@settings(max_examples=60 * FACTOR, derandomize=FACTOR == 1, deadline=None, database=None)
@given(configs())
def test_a_config_is_read_back_and_its_rates_and_momenta_are_finite(config):
    read = from_dict(TrainConfig, json.loads(json.dumps(to_dict(config))))
    assert read == config and hash(read) == hash(config)
    counts = np.array([*range(config.num_epochs * 7 + 1), MAX_INT])
    schedules = (make_schedule, make_momentum_schedule)
    rates, momenta = (make(config.optim, 7, config.num_epochs)(counts) for make in schedules)
    assert (rates >= 0).all() and rates.max() <= config.optim.learning_rate * (1 + 1e-6)
    assert (momenta >= 0).all() and (momenta < 1).all()


@pytest.mark.usefixtures("quick_compilation")
@settings(max_examples=2 * FACTOR, derandomize=FACTOR == 1, deadline=None, database=None)
@given(configs())
def test_a_run_of_a_config_takes_a_step(config):
    images = np.random.default_rng(0).integers(0, 256, (config.batch_size, 32, 32, 3), np.uint8)
    labels = np.arange(config.batch_size, dtype=np.int32) % config.model.num_classes
    programs = engine.make_engine(config, config.batch_size, jax.devices()[:1])
    state, totals = engine.init_state(programs, config.seed), engine.init_totals(programs)
    plan = engine.plan_epoch(programs, state, 0)
    data = replicate((epoch_hypers(config.optim, 1, config.num_epochs, 0), images, labels), programs.devices)
    for dispatch in engine.dispatches(programs, 0):
        state, totals = engine.train(programs, state, totals, *data, plan, dispatch)
    assert int(state.step) == 1 and int(totals.bad_step) == -1 and float(totals.sums.count) == config.batch_size
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, totals)))
