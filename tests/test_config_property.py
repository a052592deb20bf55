"""Configs drawn at random: valid ones train, broken ones are refused when they are made, naming the field at fault.

The draws are the same in every run (`derandomize`). To look further, raise the examples by a factor, which draws new
ones as well: CONFIG_EXAMPLES=20 python -m pytest -o addopts= tests/test_config_property.py
"""

import json
import math
import os
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxresnet import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from jaxresnet.config import (
    MAX_DECAY,
    MAX_FLOAT,
    MAX_INT,
    MIN_FLOAT,
    differing_fields,
    field_names,
    field_value,
    from_dict,
    to_dict,
    with_fields,
)
from jaxresnet.errors import ConfigError
from jaxresnet.nn.resnet import count_params
from jaxresnet.optim.schedules import epoch_hypers, make_momentum_schedule, make_schedule
from jaxresnet.training.engine import make_engine
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.steps import AXIS, make_steps, steps_per_epoch

FACTOR = int(os.environ.get("CONFIG_EXAMPLES", 1))


def examples(count: int) -> settings:
    """`count` examples, always the same ones unless there are to be more. They compile: no deadline."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count * FACTOR, derandomize=FACTOR == 1, deadline=None, database=None, suppress_health_check=slow
    )


# ------------------------------------------------------------------------------------------------- valid configs


def floats(high: float) -> st.SearchStrategy[float]:
    return st.just(0.0) | st.floats(MIN_FLOAT, high)


# Small enough to trace in a second. What a field's value may be beside other fields' is mended in `valid_values`.
FIELDS: dict[str, st.SearchStrategy] = {
    "stage_sizes": st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple),
    "width": st.integers(1, 8),
    "shortcut_kernel": st.sampled_from([1, 2, 3]),
    "pool_size": st.none(),
    "num_classes": st.integers(2, 12),
    "precision": st.sampled_from(["auto", "float32", "bfloat16"]),
    "initializer": st.sampled_from(["pytorch", "he", "lecun"]),
    "crop_padding": st.integers(0, 31),
    "pad_mode": st.sampled_from(["zero", "reflect"]),
    "flip": st.booleans(),
    "cutout_size": st.integers(0, 64),
    "optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
    "learning_rate": floats(10),
    "b1": floats(MAX_DECAY),
    "b2": floats(MAX_DECAY),
    "eps": st.floats(1e-20, 1e3),
    "momentum": floats(MAX_DECAY),
    "nesterov": st.booleans(),
    "weight_decay": floats(10),
    "schedule": st.sampled_from(["constant", "cosine", "onecycle", "warmup", "warmup_cosine", "triangular"]),
    "schedule_unit": st.sampled_from(["step", "epoch"]),
    "schedule_length": st.none() | st.integers(2, 40) | st.just(2**31 - 1),
    "warmup_fraction": floats(1) | st.just(1.0),
    "cycle_momentum": st.booleans(),
    "lookahead": st.booleans(),
    "sync_period": st.integers(1, 3) | st.just(2**31 - 1),
    "slow_step_size": floats(1) | st.just(1.0),
    "lookahead_momentum": st.sampled_from(["none", "reset", "pullback"]),
    "seed": st.integers(0, 2**32 - 1),
    "num_epochs": st.integers(2, 6),
    "batch_size": st.integers(1, 6),
    "eval_batch_size": st.integers(1, 2**20),
    "train_size": st.none() | st.integers(12, 20),
    "val_size": st.integers(1, 6),
    "selection": st.sampled_from(["val", "last", "test"]),
    "eval_weights": st.sampled_from(["fast", "slow"]),
    "test_every_epoch": st.booleans(),
    "skip_nonfinite": st.integers(0, 3),
}


@st.composite
def valid_values(draw: st.DrawFn, **others: st.SearchStrategy) -> dict[str, Any]:
    """{name: value} of all fields of a run, which go together. others: strategies in place of those of `FIELDS`."""
    values = {name: draw(strategy, label=name) for name, strategy in {**FIELDS, **others}.items()}
    values["pool_size"] = 64 // 2 ** len(values["stage_sizes"])
    values["cycle_momentum"] &= values["schedule"] == "onecycle"
    if values["cycle_momentum"]:
        values |= {"b1": 0.9, "momentum": 0.9}
    values["test_every_epoch"] |= values["selection"] == "test"
    return values


def make(values: dict[str, Any]) -> TrainConfig:
    """A run from its values by the constructors themselves."""

    def of(cls: type) -> dict[str, Any]:
        return {f.name: values[f.name] for f in fields(cls) if f.name in values}

    nested = {"model": ModelConfig, "augment": AugmentConfig, "optim": OptimConfig}
    return TrainConfig(**{name: cls(**of(cls)) for name, cls in nested.items()}, **of(TrainConfig))


def test_every_field_is_drawn():
    assert set(FIELDS) == field_names(TrainConfig())


@examples(60)
@given(valid_values())
def test_valid_configs_are_what_they_were_made_of(values):
    config = make(values)
    assert {name: field_value(config, name) for name in values} == values
    assert with_fields(TrainConfig(), values) == config == with_fields(config, {})
    read = from_dict(TrainConfig, json.loads(json.dumps(to_dict(config))))
    assert differing_fields(to_dict(read), to_dict(config)) == []
    assert read == config and hash(read) == hash(config) and to_dict(read) == to_dict(config)


@examples(60)
@given(valid_values())
def test_rates_and_momenta_are_finite_at_every_step(values):
    config, steps = make(values), 7
    # Always as many, so that nothing compiles anew: those of the longest run, one more, and the last that int32 counts.
    counts = jnp.array([*range(6 * steps + 1), 2**31 - 1])
    rates = np.asarray(make_schedule(config.optim, steps, config.num_epochs)(counts))
    assert np.isfinite(rates).all() and (rates >= 0).all() and rates.max() <= config.optim.learning_rate * (1 + 1e-6)
    momenta = np.asarray(make_momentum_schedule(config.optim, steps, config.num_epochs)(counts))
    assert np.isfinite(momenta).all() and (momenta >= 0).all() and (momenta < 1).all()


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@examples(12)
@given(valid_values(), st.integers(0, 5))
def test_valid_configs_build_and_trace_a_step(values, last):
    """On one device of one, by shapes alone; the last batch of an epoch may be smaller."""
    config = make(values)
    num_train = 2 * config.batch_size + last % config.batch_size
    steps = make_steps(config, num_train, num_devices=1, platform="cpu")
    state = jax.eval_shape(steps.init, np.uint32(config.seed))
    plan = jax.eval_shape(steps.plan, state.key, 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == count_params(config.model)
    hypers = jax.eval_shape(
        lambda: jax.tree.map(
            jnp.float32, epoch_hypers(config.optim, steps_per_epoch(num_train, config.batch_size), config.num_epochs, 0)
        )
    )
    images, labels = jax.ShapeDtypeStruct((num_train, 32, 32, 3), np.uint8), jax.ShapeDtypeStruct((num_train,), "int32")

    def train(size, *args):
        axes = (None,) * len(args) + (0,)
        step = jax.vmap(lambda *args: steps.train(*args, batch_size=size), axes, None, axis_name=AXIS, axis_size=1)
        return step(*args, jnp.zeros(1, jnp.int32))

    for size in {config.batch_size, last % config.batch_size} - {0}:
        args = (state, zero_totals(), hypers, images, labels, plan, np.int32(0))
        new_state, totals = jax.eval_shape(lambda *args, size=size: train(size, *args), *args)
        assert shapes(new_state) == shapes(state)
        assert totals.sums.loss.shape == () and totals.sums.loss.dtype == np.float32


@examples(8)
@given(valid_values(stage_sizes=st.sampled_from([(1,), (1, 1), (2,)])))  # compiling is what this costs
def test_valid_configs_take_a_step(values):
    jax.config.update("jax_disable_most_optimizations", True)  # of XLA: compiles in half the time
    try:
        take_a_step(values)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def take_a_step(values: dict[str, Any]) -> None:
    config = make(values)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (config.batch_size, 32, 32, 3), np.uint8)
    labels = rng.integers(0, config.model.num_classes, config.batch_size, np.int32)
    engine = make_engine(config, config.batch_size, jax.devices()[:1])
    state = engine.init(config.seed)
    before = jax.tree.map(np.array, state.batch_stats)
    state, totals = engine.train_epoch(
        state, engine.zero_totals(), epoch_hypers(config.optim, 1, config.num_epochs, 0), images, labels, epoch=0
    )
    assert int(state.step) == 1 and int(totals.bad_step) == -1
    assert np.isfinite(float(totals.sums.loss)) and float(totals.sums.count) == config.batch_size
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.batch_stats)
    assert any(jax.tree.leaves(moved))


# ------------------------------------------------------------------------------------------------ broken configs


def above(high: int) -> st.SearchStrategy[int]:
    return st.integers(high + 1, high + 9) | st.sampled_from([2**31, 2**32, 2**63, 10**400]).filter(lambda n: n > high)


def below(low: int) -> st.SearchStrategy[int]:
    return st.integers(low - 9, low - 1) | st.sampled_from([-(2**31) - 1, -(10**400)])


def outside(low: int, high: int) -> st.SearchStrategy[int]:
    return above(high) | below(low)


def outside_floats(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers that are too small, too large, or none; and those that float32 would take for 0."""
    special = st.sampled_from([math.nan, math.inf, -math.inf, -1, -(10**400), 10**400, 1e300, MIN_FLOAT / 2, 5e-324])
    return special | st.floats(high, exclude_min=True) | st.floats(max_value=low, exclude_max=True).filter(bool)


OUT_OF_RANGE: dict[str, st.SearchStrategy] = {
    "stage_sizes": st.sampled_from([(), (0,), (1, -1), (1,) * 7, (301,), (150, 151), (1, 10**400), (1, True), (1.0,)]),
    "width": outside(1, 8192),
    "shortcut_kernel": st.sampled_from([0, 4, -1, 10**400]),
    "pool_size": outside(1, 1024),
    "num_classes": outside(2, 2**16),
    "precision": st.sampled_from(["float16", "float64", "", "FLOAT32"]),
    "initializer": st.sampled_from(["lecunn", "He", ""]),
    "crop_padding": outside(0, 31),
    "pad_mode": st.sampled_from(["edge", "reflection"]),
    "flip": st.sampled_from([0, 1, -1]),
    "cutout_size": outside(0, 64),
    "optimizer": st.sampled_from(["Adam", "rmsprop", ""]),
    "learning_rate": outside_floats(0, MAX_FLOAT),
    "b1": outside_floats(0, MAX_DECAY),
    "b2": outside_floats(0, MAX_DECAY) | st.just(1 - 1e-8),
    "eps": outside_floats(1e-20, MAX_FLOAT) | st.just(0),
    "momentum": outside_floats(0, MAX_DECAY),
    "nesterov": st.sampled_from([0, 1]),
    "weight_decay": outside_floats(0, MAX_FLOAT),
    "schedule": st.sampled_from(["none", "cosine_decay", "one_cycle"]),
    "schedule_unit": st.sampled_from(["steps", "epochs"]),
    "schedule_length": outside(1, MAX_INT),
    "warmup_fraction": outside_floats(0, 1),
    "cycle_momentum": st.sampled_from([0, 1]),
    "lookahead": st.sampled_from([0, 1]),
    "sync_period": outside(1, MAX_INT),
    "slow_step_size": outside_floats(0, 1),
    "lookahead_momentum": st.sampled_from(["pull", "keep"]),
    "seed": outside(0, 2**32 - 1),
    "num_epochs": outside(1, 10_000),
    "batch_size": outside(1, MAX_INT),
    "eval_batch_size": outside(1, 2**20),
    "train_size": outside(1, MAX_INT),
    "val_size": outside(0, MAX_INT),
    "selection": st.sampled_from(["best", "validation"]),
    "eval_weights": st.sampled_from(["slower", "both"]),
    "test_every_epoch": st.sampled_from([0, 1]),
    "skip_nonfinite": outside(0, MAX_INT),
}


# Of a type that no field has. Beside them, text is wrong for a number, and so on: the next strategy.
NO_VALUES = [
    *([], [[]], {}, {"a": 1}, (1.5,), b"adam", 1j, object(), int, "x" * 10**5),
    *(np.zeros(2), np.array(1), np.int64(1), np.float32(0.5), np.bool_(True), np.str_("adam"), jnp.float32(0.5)),
]


def of_another_type(name: str) -> st.SearchStrategy:
    default = field_value(TrainConfig(), name)
    others: list[Any] = list(NO_VALUES)
    if name not in ("schedule_length", "train_size"):
        others.append(None)
    if not isinstance(default, bool):
        others += [True, False]
    if not isinstance(default, float):
        others += [0.5, 2.0, math.nan]
    others += ["1", "True", "None", " "]  # right for no field, as text neither
    return st.sampled_from(others)


def test_every_field_is_broken():
    assert set(OUT_OF_RANGE) == field_names(TrainConfig())


def refusals(values: dict[str, Any], wrong: dict[str, Any]) -> list[str]:
    """The messages with which `values`, some of them wrong, are refused: by the constructors, from a dict, as flags."""
    config = make(values)
    written = to_dict(config)
    for name, value in wrong.items():
        part = next(
            (part for part in (written["model"], written["augment"], written["optim"]) if name in part), written
        )
        part[name] = value
    messages = []
    for attempt in (
        lambda: make({**values, **wrong}),
        lambda: from_dict(TrainConfig, written),
        lambda: with_fields(config, wrong),
    ):
        with pytest.raises(ConfigError) as caught:
            attempt()
        messages.append(str(caught.value))
    return messages


def assert_names(messages: list[str], name: str) -> None:
    for message in messages:
        assert f"{name}=" in message or f".{name}: " in message, message
        assert len(message) < 500, message


@pytest.mark.parametrize("name", FIELDS)
@examples(15)
@given(data=st.data())
def test_a_broken_field_is_refused_when_the_config_is_made(name, data):
    wrong = data.draw(OUT_OF_RANGE[name] | of_another_type(name), label=name)
    assert_names(refusals(data.draw(valid_values()), {name: wrong}), name)


def deep_list() -> list:
    deep: list = []
    for _ in range(3000):  # deeper than Python shows
        deep = [deep]
    return deep


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_that_python_cannot_show_is_refused(name):
    """Not drawn: hypothesis shows what it draws. 10**5000 has more digits than Python turns into text."""
    values = {name: field_value(TrainConfig(), name) for name in FIELDS}
    for wrong in (10**5000, -(10**5000), deep_list()):
        assert_names(refusals(values, {name: wrong}), name)


ONE_CYCLE = {"schedule": "onecycle", "cycle_momentum": True, "optimizer": "sgd", "momentum": 0.9}
WARMUP = {"schedule": "warmup", "cycle_momentum": False, "warmup_fraction": 0.3}
SIZES = {"train_size": 100, "val_size": 10, "batch_size": 90}
# (the field at fault, values of which each is in its range, and which do not go together)
COMBINATIONS = [
    ("width", {"stage_sizes": (1,) * 6, "pool_size": 1, "width": 257}),
    ("pool_size", {"stage_sizes": (1, 1), "pool_size": 32}),
    ("pool_size", {"stage_sizes": (1,), "pool_size": 4}),
    ("cycle_momentum", {"schedule": "cosine", "cycle_momentum": True}),
    ("momentum", {**ONE_CYCLE, "momentum": 0.8}),
    ("b1", {**ONE_CYCLE, "optimizer": "adam", "b1": 0.8}),
    ("schedule_length", {**ONE_CYCLE, "schedule_length": 1}),
    ("schedule_length", {"schedule": "triangular", "cycle_momentum": False, "schedule_length": 1}),
    ("num_epochs", {**ONE_CYCLE, "schedule_unit": "epoch", "schedule_length": None, "num_epochs": 1}),
    ("num_epochs", {**WARMUP, "schedule_unit": "epoch", "num_epochs": 1}),
    ("val_size", {**SIZES, "val_size": 100, "batch_size": 1}),
    ("batch_size", {**SIZES, "batch_size": 91}),
    ("num_epochs", {**SIZES, "train_size": MAX_INT, "batch_size": 1, "num_epochs": 2}),
    ("val_size", {"selection": "val", "val_size": 0}),
    ("test_every_epoch", {"selection": "test", "test_every_epoch": False}),
]


@pytest.mark.parametrize(("name", "wrong"), COMBINATIONS)
@examples(5)
@given(values=valid_values())
def test_a_combination_that_cannot_work_is_refused(name, wrong, values):
    assert_names(refusals(values, wrong), name)


@pytest.mark.parametrize("name", ["model", "augment", "optim"])
@examples(10)
@given(data=st.data())
def test_a_part_that_is_none_is_refused(name, data):
    others = [
        None,
        1,
        "model",
        OptimConfig() if name == "model" else ModelConfig(),
        ModelConfig,
        to_dict(OptimConfig()),
    ]
    wrong = data.draw(st.sampled_from([*others, *NO_VALUES]))
    with pytest.raises(ConfigError, match=f"^{name}="):
        TrainConfig(**{name: wrong})
    if not isinstance(wrong, dict):
        with pytest.raises(ConfigError, match=f"^config.{name}: expected a JSON object"):
            from_dict(TrainConfig, {name: wrong})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*FIELDS, "model", "optim", ""]), inner)
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
