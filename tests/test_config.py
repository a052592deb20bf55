"""Every refusal names the field, the value and what is allowed; JSON out and in loses nothing."""

import dataclasses
import json
import math
import re
import typing

import numpy as np
import pytest

from jaxresnet import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from jaxresnet.config import (
    differing_fields,
    field_names,
    field_value,
    from_dict,
    to_dict,
    with_fields,
    with_new_fields,
)
from jaxresnet.errors import ConfigError

CLASSES = (ModelConfig, AugmentConfig, OptimConfig, TrainConfig)
FIELDS = {f.name: (cls, f) for cls in CLASSES for f in dataclasses.fields(cls)}
NESTED = {"model": ModelConfig, "augment": AugmentConfig, "optim": OptimConfig}
MAX_INT, MAX_FLOAT = 2**31 - 1, float(np.finfo(np.float32).max)

WHOLE = {  # the lowest and the highest
    "width": (1, 8192),
    "pool_size": (1, 1024),
    "num_classes": (2, 2**16),
    "crop_padding": (0, 31),
    "cutout_size": (0, 64),
    "schedule_length": (1, MAX_INT),
    "sync_period": (1, MAX_INT),
    "seed": (0, 2**32 - 1),
    "num_epochs": (1, 10_000),
    "batch_size": (1, MAX_INT),
    "eval_batch_size": (1, 2**20),
    "train_size": (1, MAX_INT),
    "val_size": (0, MAX_INT),
    "skip_nonfinite": (0, MAX_INT),
}
FLOATS = {
    "learning_rate": (0, MAX_FLOAT),
    "b1": (0, 0.999999),
    "b2": (0, 0.999999),
    "eps": (1e-20, MAX_FLOAT),
    "momentum": (0, 0.999999),
    "weight_decay": (0, MAX_FLOAT),
    "warmup_fraction": (0, 1),
    "slow_step_size": (0, 1),
}
CHOICES = [name for name, (_, f) in FIELDS.items() if f.type is bool or typing.get_origin(f.type) is typing.Literal]
OF_NO_TYPE = [[], {}, (1.5,), b"adam", 1j, "1", " ", np.zeros(2), np.float32(0.5), np.int64(1), np.bool_(True)]


def assert_refused(name, value, allowed=""):
    """By the class itself, from JSON and when it is replaced."""
    cls, _ = FIELDS[name]
    part = next((part for part, nested in NESTED.items() if nested is cls), None)
    for make, where in (
        (lambda: cls(**{name: value}), ""),
        (lambda: from_dict(TrainConfig, {part: {name: value}} if part else {name: value}), "config"),
        (lambda: with_fields(TrainConfig(), {name: value}), ""),
    ):
        shown = where + f".{part}" * bool(where and part) + ": " * bool(where) + f"{name}={value!r}: must be "
        with pytest.raises(ConfigError, match=f"^{re.escape(shown)}.*{re.escape(allowed)}"):
            make()


def test_every_field_is_in_a_table():
    assert {*WHOLE, *FLOATS, *CHOICES, "stage_sizes"} == field_names(TrainConfig())


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_is_in_its_range(name):
    cls, f = FIELDS[name]
    low, high = WHOLE[name]
    for value in (low, high):
        cls(**{name: value}, **({"selection": "last"} if name == "val_size" else {}))
    none = [] if f.default is None else [None]
    for value in (low - 1, high + 1, 10**40, *none, True, float(low + 1), math.nan, *OF_NO_TYPE):
        assert_refused(name, value, f"a whole number, {low} or more and at most {high:,} (an int of Python)")


@pytest.mark.parametrize("name", FLOATS)
def test_a_float_is_in_its_range(name):
    cls, _ = FIELDS[name]
    low, high = FLOATS[name]
    for value in (low, high):
        assert type(getattr(cls(**{name: value}), name)) is float
    beyond = [float(np.nextafter(low, -1)), float(np.nextafter(high, math.inf)), 1e300, 10**40, -1]
    for value in (*beyond, math.nan, math.inf, -math.inf, None, True, *OF_NO_TYPE):
        assert_refused(name, value, f"a number of at least {low:g} and at most {high:g} (a float of Python)")


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_one_of_its_kind(name):
    choices = typing.get_args(FIELDS[name][1].type) or (False, True)
    for value in (0, 4, 1.0, None, "None", *OF_NO_TYPE):
        assert_refused(name, value, f"one of {', '.join(map(repr, choices))}")


@pytest.mark.parametrize(
    "value", [(), (1,) * 7, (1, 0), (1, 1.0), (True, 1), (np.int64(1),), "1111", 4, None, (100, 201)], ids=repr
)
def test_stage_sizes_are_one_to_six_whole_numbers(value):
    assert_refused("stage_sizes", value, "1 to 6 whole numbers, each 1 or more, together at most 300")


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("value", [None, 1, {}, TrainConfig(), ModelConfig], ids=lambda v: type(v).__name__)
def test_a_part_is_of_its_class(name, value):
    with pytest.raises(ConfigError, match=f"^{name}=.*: must be of class {NESTED[name].__name__}$"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "Adam"}, "optimizer='Adam': must be one of 'adam', 'adamw', 'sgd' (did you mean 'adam'?)"),
        ({"schedule": "cosin"}, "(did you mean 'cosine'?)"),
        ({"eval_weights": "slow "}, "(did you mean 'slow'?)"),
        ({"learning_rate": 1e300}, "learning_rate=1e+300: must be a number of at least 0 and at most 3.40282e+38"),
        ({"widht": 3}, "unknown field 'widht' (did you mean 'width'?)"),
        ({"model": None}, "unknown field 'model'"),
        ({"cycle_momentum": True}, "must be False where schedule='cosine' (only 'onecycle' cycles the momentum)"),
        (
            {"cycle_momentum": True, "schedule": "onecycle", "b1": 0.8},
            "b1=0.8: must be left at 0.9 where cycle_momentu",
        ),
        (
            {"cycle_momentum": True, "schedule": "onecycle", "optimizer": "sgd", "momentum": 0.0},
            "momentum=0.0: must be left at 0.9 where cycle_momentum=True",
        ),
        ({"selection": "val", "val_size": 0}, "val_size=0: must be above 0 where selection='val' (or pick 'last')"),
        ({"selection": "test"}, "test_every_epoch=False: must be True where selection='test'"),
        ({"stage_sizes": (1, 1), "pool_size": 4}, "pool_size=4: must be 16"),
        ({"stage_sizes": "x" * 10**6}, f"stage_sizes='{'x' * 199}...: must be"),
    ],
    ids=lambda x: x[:40] if isinstance(x, str) else "",
)
def test_messages(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        with_fields(TrainConfig(), values)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"schedule": "onecycle", "schedule_length": 1}, "schedule_length=1"),
        ({"schedule": "triangular", "schedule_length": 1}, "schedule_length=1"),
        ({"schedule": "onecycle", "schedule_unit": "epoch"}, "num_epochs=1"),
        ({"schedule": "warmup", "schedule_unit": "epoch"}, "num_epochs=1"),
        ({"schedule": "warmup_cosine", "schedule_unit": "epoch", "schedule_length": 9}, "num_epochs=1"),
    ],
)
def test_a_run_too_short_for_its_rate_to_rise_is_refused(values, name):
    with pytest.raises(ConfigError, match=f"^{name}: must be 2 or more where schedule='{values['schedule']}'"):
        TrainConfig(optim=OptimConfig(**values), num_epochs=1)
    TrainConfig(optim=OptimConfig(**{**values, "schedule_length": 2}), num_epochs=2)


@pytest.mark.parametrize(
    ("stages", "image_size", "side"),
    [(1, 32, 32), (2, 32, 16), (3, 32, 8), (4, 32, 4), (5, 32, 2), (6, 32, 1), (4, 33, 5)],  # 33, 17, 9, 5
)
def test_pool_must_cover_the_last_map(stages, image_size, side):
    ModelConfig(stage_sizes=(1,) * stages, pool_size=side).check_pool(image_size)
    for wrong in {1, 2, 4, 8, 16, 32} - {side}:
        model = ModelConfig(stage_sizes=(2,) * stages, pool_size=wrong)  # can be counted, cannot be run
        with pytest.raises(ConfigError, match=f"^pool_size={wrong}: must be {side}, the side of the last feature map"):
            model.check_pool(image_size)


def test_configs_are_values():
    assert ModelConfig(stage_sizes=[1, 1, 1, 1]) == ModelConfig() and hash(TrainConfig()) == hash(TrainConfig())
    assert OptimConfig(learning_rate=1, weight_decay=np.float64(0.25)) == OptimConfig(
        learning_rate=1.0, weight_decay=0.25
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1
    with pytest.raises(ValueError):  # a ConfigError is one
        OptimConfig(sync_period=0)


def test_field_names_are_unique_and_all_there():
    """On the command line every field is a flag of its own name."""
    names = [f.name for cls in CLASSES for f in dataclasses.fields(cls)]
    assert len(names) == len(set(names))
    assert field_names(TrainConfig()) == set(names) - set(NESTED)
    assert field_names(ModelConfig()) == {f.name for f in dataclasses.fields(ModelConfig)}
    for name in ("widht", "model"):
        with pytest.raises(KeyError):
            field_value(TrainConfig(), name)


def test_to_dict_is_plain_json():
    values = to_dict(TrainConfig())
    assert json.loads(json.dumps(values)) == values
    assert values["model"]["stage_sizes"] == [1, 1, 1, 1] and values["optim"]["schedule_length"] is None
    assert list(values)[:4] == ["model", "augment", "optim", "seed"]


def test_missing_fields_take_their_defaults():
    assert from_dict(TrainConfig, {}) == TrainConfig()
    assert from_dict(TrainConfig, {"optim": {"b1": 0.95}}) == TrainConfig(optim=OptimConfig(b1=0.95))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_epoch": 3}, "run.json: unknown field 'num_epoch' (did you mean 'num_epochs'?)"),
        (
            {"optim": {"learning_rte": 1}},
            "run.json.optim: unknown field 'learning_rte' (did you mean 'learning_rate'?)",
        ),
        ({"zzz": 3}, "run.json: unknown field 'zzz'"),
        ({"optim": {"eps": math.nan}}, "run.json.optim: eps=nan: must be a number"),
        ({"model": [1]}, "run.json.model: expected a JSON object, found list"),
        ({"model": {"stage_sizes": ["1"]}}, "run.json.model: stage_sizes=('1',): must be 1 to 6 whole numbers"),
    ],
)
def test_from_dict_says_where(values, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        from_dict(TrainConfig, values, "run.json")


def test_fields_that_are_newer_than_what_was_saved_have_their_defaults():
    now = to_dict(TrainConfig(seed=3, num_epochs=7))
    old = json.loads(json.dumps(now))
    del old["model"]["initializer"], old["optim"]["cycle_momentum"]
    assert with_new_fields(old) == now == with_new_fields(now)
    assert differing_fields(with_new_fields({**old, "num_epochs": 8}), now) == ["num_epochs: 8 -> 7"]
    without_seed = {name: value for name, value in old.items() if name != "seed"}
    assert "seed" not in with_new_fields(without_seed)
    assert with_new_fields(None) is None and with_new_fields({"model": 3, "else": {"a": 1}})["model"] == 3


def test_differing_fields():
    a = TrainConfig(seed=1, model=ModelConfig(stage_sizes=(2, 2, 2, 2)))
    b = TrainConfig(seed=2, optim=OptimConfig(b1=0.95))
    assert differing_fields(to_dict(a), to_dict(b)) == [
        "model.stage_sizes: [2, 2, 2, 2] -> [1, 1, 1, 1]",
        "optim.b1: 0.9 -> 0.95",
        "seed: 1 -> 2",
    ]
    assert differing_fields(to_dict(a), to_dict(a)) == []
    assert differing_fields({"x": 1}, {}) == ["x: 1 -> None"]


def test_fields_that_depend_on_each_other_are_replaced_together():
    config = with_fields(TrainConfig(), {"stage_sizes": (1,), "pool_size": 32, "val_size": 0, "selection": "last"})
    assert config == TrainConfig(model=ModelConfig(stage_sizes=(1,), pool_size=32), val_size=0, selection="last")
    with pytest.raises(ConfigError, match="pool_size=4: must be 32"):
        with_fields(config, {"pool_size": 4})
