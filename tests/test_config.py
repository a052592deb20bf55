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
    from_dict,
    to_dict,
    with_fields,
    with_new_fields,
)
from jaxresnet.errors import ConfigError

PARTS = {"model": ModelConfig, "augment": AugmentConfig, "optim": OptimConfig, "": TrainConfig}
FIELDS = {f.name: (part, f) for part, cls in PARTS.items() for f in dataclasses.fields(cls) if f.name not in PARTS}
NUMBERS = [name for name, (_, f) in FIELDS.items() if typing.get_origin(f.type) is typing.Annotated]
CHOICES = [name for name in FIELDS if name not in (*NUMBERS, "stage_sizes")]
OF_NO_TYPE = ([], "1", True, math.nan, np.float32(0.5), np.int64(1))


def assert_refused(name, value, allowed=""):
    """By the class itself, from JSON and when it is replaced."""
    part, _ = FIELDS[name]
    for make, where in (
        (lambda: PARTS[part](**{name: value}), ""),
        (lambda: from_dict(TrainConfig, {part: {name: value}} if part else {name: value}), "config"),
        (lambda: with_fields(TrainConfig(), {name: value}), ""),
    ):
        shown = where + f".{part}" * bool(where and part) + ": " * bool(where) + f"{name}={value!r}: must be "
        with pytest.raises(ConfigError, match=f"^{re.escape(shown)}.*{re.escape(allowed)}"):
            make()


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_of_its_type_and_in_its_range(name):
    part, f = FIELDS[name]
    number, low, high = typing.get_args(f.type)
    for value in (low, high):
        config = PARTS[part](**{name: value}, **({"selection": "last"} if name == "val_size" else {}))
        assert type(getattr(config, name)) is (float if number is float else int)
    allowed = f"a whole number, {low} or more and at most {high:,} (an int of Python)"
    beyond = [low - 1, high + 1, float(low + 1), *([] if f.default is None else [None])]
    if number is float:
        allowed = f"a number of at least {low:g} and at most {high:g} (a float of Python)"
        beyond = [float(np.nextafter(low, -1)), float(np.nextafter(high, math.inf)), math.inf, 10**40, None]
    for value in (*beyond, *OF_NO_TYPE):
        assert_refused(name, value, allowed)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (0, "width pool_size schedule_length sync_period num_epochs batch_size eval_batch_size train_size eps"),
        (-1, "crop_padding cutout_size seed val_size skip_nonfinite learning_rate weight_decay warmup_fraction"),
        (1, "num_classes b1 b2 momentum"),
        (1.01, "warmup_fraction slow_step_size"),
        (32, "crop_padding"),  # reflected at the border of an image of 32
        (65, "cutout_size"),
        (2**31, "schedule_length sync_period batch_size train_size val_size skip_nonfinite"),  # not of int32
        (2**32, "seed"),
        (1e39, "learning_rate weight_decay eps"),  # infinite in float32
    ],
)
def test_what_no_run_could_compute_with_is_out_of_range(value, names):
    for name in names.split():
        assert_refused(name, value)


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_one_of_its_kind(name):
    choices = typing.get_args(FIELDS[name][1].type) or (False, True)
    for value in (0, 4, None, *(value for value in OF_NO_TYPE if value is not True or True not in choices)):
        assert_refused(name, value, f"one of {', '.join(map(repr, choices))}")


def test_stage_sizes_are_one_to_six_whole_numbers():
    for value in ((), (1,) * 7, (1, 0), (1, 1.0), (True, 1), (np.int64(1),), "1111", 4, None, (100, 201)):
        assert_refused("stage_sizes", value, "1 to 6 whole numbers, each 1 or more, together at most 300")


def test_a_part_is_of_its_class():
    for value in (None, {"width": 8}, TrainConfig()):
        with pytest.raises(ConfigError, match=r"^model=.*: must be of class ModelConfig$"):
            TrainConfig(model=value)


CYCLE = {"cycle_momentum": True, "schedule": "onecycle"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "Adam"}, "optimizer='Adam': must be one of 'adam', 'adamw', 'sgd' (did you mean 'adam'?)"),
        ({"schedule": "cosin"}, "(did you mean 'cosine'?)"),
        ({"widht": 3}, "unknown field 'widht' (did you mean 'width'?)"),
        ({"model": None}, "unknown field 'model'"),
        ({"cycle_momentum": True}, "must be False where schedule='cosine' (only 'onecycle' cycles the momentum)"),
        ({**CYCLE, "b1": 0.8}, "b1=0.8: must be left at 0.9 where cycle_momentum=True"),
        ({**CYCLE, "optimizer": "sgd", "momentum": 0.0}, "momentum=0.0: must be left at 0.9 where cycle_momentum"),
        ({"selection": "val", "val_size": 0}, "val_size=0: must be above 0 where selection='val' (or pick 'last')"),
        ({"selection": "test"}, "test_every_epoch=False: must be True where selection='test'"),
        ({"stage_sizes": (1, 1), "pool_size": 4}, "pool_size=4: must be 16"),
    ],
)
def test_messages_say_what_to_write_instead(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        with_fields(TrainConfig(), values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(num_epoch=3), "TrainConfig: unknown field 'num_epoch' (did you mean 'num_epochs'?)"),
        (
            lambda: dataclasses.replace(OptimConfig(), lr=1),
            "OptimConfig: unknown field 'lr' (did you mean 'learning_rate'?)",
        ),
        (lambda: TrainConfig(width=8), "TrainConfig: unknown field 'width' (give model=ModelConfig(width=...))"),
    ],
)
def test_a_constructor_says_which_field_is_meant(make, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"schedule": "onecycle", "schedule_length": 1}, "schedule_length=1"),
        ({"schedule": "onecycle", "schedule_unit": "epoch"}, "num_epochs=1"),
        ({"schedule": "warmup_cosine", "schedule_unit": "epoch", "schedule_length": 9}, "num_epochs=1"),
    ],
)
def test_a_run_too_short_for_its_rate_to_rise_is_refused(values, name):
    with pytest.raises(ConfigError, match=f"^{name}: must be 2 or more where schedule='{values['schedule']}'"):
        TrainConfig(optim=OptimConfig(**values), num_epochs=1)
    TrainConfig(optim=OptimConfig(**{**values, "schedule_length": 2}), num_epochs=2)


@pytest.mark.parametrize(
    ("stages", "image_size", "side"),
    [(1, 32, 32), (4, 32, 4), (6, 32, 1), (4, 33, 5)],  # 33, 17, 9, 5
)
def test_pool_must_cover_the_last_map(stages, image_size, side):
    ModelConfig(stage_sizes=(1,) * stages, pool_size=side).check_pool(image_size)
    model = ModelConfig(stage_sizes=(2,) * stages, pool_size=2)  # can be counted, cannot be run
    with pytest.raises(ConfigError, match=f"^pool_size=2: must be {side}, the side of the last feature map"):
        model.check_pool(image_size)


def test_configs_are_values():
    assert ModelConfig(stage_sizes=[1, 1, 1, 1]) == ModelConfig() and hash(TrainConfig()) == hash(TrainConfig())
    assert OptimConfig(learning_rate=1, eps=np.float64(0.25)) == OptimConfig(learning_rate=1.0, eps=0.25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1


def test_field_names_are_unique():
    """On the command line every field is a flag of its own name."""
    names = [f.name for cls in PARTS.values() for f in dataclasses.fields(cls) if f.name not in PARTS]
    assert sorted(names) == sorted(field_names(TrainConfig()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_epoch": 3}, "run.json: unknown field 'num_epoch' (did you mean 'num_epochs'?)"),
        ({"optim": {"epss": 1}}, "run.json.optim: unknown field 'epss' (did you mean 'eps'?)"),
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
    del old["seed"]
    assert "seed" not in with_new_fields(old) and from_dict(TrainConfig, old) == TrainConfig(num_epochs=7)
    assert with_new_fields(None) is None and with_new_fields({"model": 3, "else": {"a": 1}})["model"] == 3


def test_differing_fields():
    a = TrainConfig(seed=1, model=ModelConfig(stage_sizes=(2, 2, 2, 2)))
    b = TrainConfig(seed=2, optim=OptimConfig(b1=0.95))
    assert differing_fields(to_dict(a), to_dict(b)) == [
        "model.stage_sizes: [2, 2, 2, 2] -> [1, 1, 1, 1]",
        "optim.b1: 0.9 -> 0.95",
        "seed: 1 -> 2",
    ]
    assert differing_fields(to_dict(a), to_dict(a)) == [] and differing_fields({"x": 1}, {}) == ["x: 1 -> None"]
