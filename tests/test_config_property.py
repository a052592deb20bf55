"""Configs drawn at random: valid ones train, JSON of any kind is a config or is refused.

The draws are the same in every run (`derandomize`). To look further, raise the examples by a factor, which draws new
ones as well: CONFIG_EXAMPLES=20 python -m pytest -o addopts= tests/test_config_property.py
"""

import json
import os
import typing
from dataclasses import fields
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxresnet import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from jaxresnet.config import differing_fields, field_names, field_value, from_dict, to_dict, with_fields
from jaxresnet.errors import ConfigError
from jaxresnet.nn.resnet import count_params
from jaxresnet.optim.schedules import epoch_hypers, make_momentum_schedule, make_schedule
from jaxresnet.training import engine
from jaxresnet.training.devices import replicate
from jaxresnet.training.engine import make_engine

FACTOR = int(os.environ.get("CONFIG_EXAMPLES", 1))


def examples(count: int) -> settings:
    """`count` examples, always the same ones unless there are to be more. They compile: no deadline."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count * FACTOR, derandomize=FACTOR == 1, deadline=None, database=None, suppress_health_check=slow
    )


DECAYS = st.just(0.0) | st.floats(1e-30, 0.999999)
FRACTIONS = st.just(0.0) | st.floats(1e-30, 1)  # float32 takes one below 1e-38 for 0

# Small enough to compile in a second. What a field's value may be beside other fields' is mended in `valid_values`.
NUMBERS: dict[str, st.SearchStrategy] = {
    "stage_sizes": st.sampled_from([(1,), (1, 1)]),
    "width": st.integers(1, 8),
    "pool_size": st.none(),
    "num_classes": st.integers(2, 12),
    "crop_padding": st.integers(0, 31),
    "cutout_size": st.integers(0, 64),
    "learning_rate": st.floats(0, 10),
    "b1": DECAYS,
    "b2": DECAYS,
    "eps": st.floats(1e-20, 1e3),
    "momentum": DECAYS,
    "weight_decay": st.floats(0, 10),
    "schedule_length": st.none() | st.integers(2, 40) | st.just(2**31 - 1),
    "warmup_fraction": FRACTIONS,
    "sync_period": st.integers(1, 3) | st.just(2**31 - 1),
    "slow_step_size": FRACTIONS,
    "seed": st.integers(0, 2**32 - 1),
    "num_epochs": st.integers(2, 6),
    "batch_size": st.integers(1, 6),
    "eval_batch_size": st.integers(1, 2**20),
    "train_size": st.none() | st.integers(12, 20),
    "val_size": st.integers(1, 6),
    "skip_nonfinite": st.integers(0, 3),
}
CHOICES = {
    f.name: st.sampled_from(typing.get_args(f.type) or (False, True))
    for cls in (ModelConfig, AugmentConfig, OptimConfig, TrainConfig)
    for f in fields(cls)
    if f.type is bool or typing.get_origin(f.type) is typing.Literal
}


@st.composite
def valid_values(draw: st.DrawFn) -> dict[str, Any]:
    """{name: value} of all fields of a run, which go together."""
    values = {name: draw(strategy, label=name) for name, strategy in {**NUMBERS, **CHOICES}.items()}
    values["pool_size"] = 64 // 2 ** len(values["stage_sizes"])
    values["cycle_momentum"] &= values["schedule"] == "onecycle"
    if values["cycle_momentum"]:
        values |= {"b1": 0.9, "momentum": 0.9}
    values["test_every_epoch"] |= values["selection"] == "test"
    return values


@examples(60)
@given(valid_values())
def test_valid_configs_are_what_they_were_made_of(values):
    config = with_fields(TrainConfig(), values)
    assert set(values) == field_names(config)
    assert {name: field_value(config, name) for name in values} == values
    assert with_fields(config, {}) == config
    read = from_dict(TrainConfig, json.loads(json.dumps(to_dict(config))))
    assert differing_fields(to_dict(read), to_dict(config)) == []
    assert read == config and hash(read) == hash(config)


@examples(60)
@given(valid_values())
def test_rates_and_momenta_are_finite_at_every_step(values):
    config, steps = with_fields(TrainConfig(), values), 7
    counts = np.array([*range(config.num_epochs * steps + 1), 2**31 - 1])
    rates = make_schedule(config.optim, steps, config.num_epochs)(counts)
    assert np.isfinite(rates).all() and (rates >= 0).all() and rates.max() <= config.optim.learning_rate * (1 + 1e-6)
    momenta = make_momentum_schedule(config.optim, steps, config.num_epochs)(counts)
    assert np.isfinite(momenta).all() and (momenta >= 0).all() and (momenta < 1).all()


@pytest.mark.usefixtures("quick_compilation")
@examples(6)
@given(valid_values())
def test_valid_configs_take_a_step(values):
    config = with_fields(TrainConfig(), values)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (config.batch_size, 32, 32, 3), np.uint8)
    labels = rng.integers(0, config.model.num_classes, config.batch_size, np.int32)
    programs = make_engine(config, config.batch_size, jax.devices()[:1])
    hypers = epoch_hypers(config.optim, 1, config.num_epochs, 0)
    before = state = engine.init_state(programs, config.seed)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == count_params(config.model)
    statistics = jax.tree.map(np.array, before.batch_stats)
    totals, plan = engine.init_totals(programs), engine.plan_epoch(programs, state, 0)
    data = replicate((hypers, images, labels), programs.devices)
    for dispatch in engine.dispatches(programs, 0):
        state, totals = engine.train(programs, state, totals, *data, plan, dispatch)
    assert int(state.step) == 1 and int(totals.bad_step) == -1
    assert np.isfinite(float(totals.sums.loss)) and float(totals.sums.count) == config.batch_size
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), statistics, state.batch_stats)
    assert any(jax.tree.leaves(moved))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NUMBERS, *CHOICES, "model", "optim", ""]), inner)
    ),
    max_leaves=8,
)


@examples(150)
@given(JSON)
def test_json_of_any_kind_is_a_config_or_refused(values):
    try:
        config = from_dict(TrainConfig, values)
    except ConfigError as error:
        assert str(error).startswith("config")
    else:
        assert from_dict(TrainConfig, to_dict(config)) == config
