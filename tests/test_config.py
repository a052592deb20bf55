"""Every refusal names the field, the value and what is allowed; JSON out and in loses nothing."""

import dataclasses
import json
import math
import re

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

INVALID = [
    (ModelConfig, {"stage_sizes": ()}, "1 to 6 whole numbers"),
    (ModelConfig, {"stage_sizes": (1,) * 7}, "1 to 6 whole numbers"),
    (ModelConfig, {"stage_sizes": (1, 0)}, "each 1 or more"),
    (ModelConfig, {"stage_sizes": (1, 1.0)}, "whole numbers"),
    (ModelConfig, {"stage_sizes": (True, 1)}, "whole numbers"),
    (ModelConfig, {"stage_sizes": "1111"}, "whole numbers"),
    (ModelConfig, {"stage_sizes": 4}, "whole numbers"),
    (ModelConfig, {"stage_sizes": (100, 201)}, "together at most 300"),
    (ModelConfig, {"width": 0}, "a whole number, 1 or more"),
    (ModelConfig, {"width": 64.0}, "a whole number, 1 or more"),
    (ModelConfig, {"width": "64"}, "a whole number, 1 or more"),
    (ModelConfig, {"width": True}, "a whole number, 1 or more"),
    (ModelConfig, {"width": np.int64(64)}, "(an int of Python, not int64)"),
    (ModelConfig, {"width": 8193}, "at most 8,192"),
    (ModelConfig, {"width": 1025}, "at most 1024 with 4 stages, the last of which has 8,192 channels then"),
    (ModelConfig, {"shortcut_kernel": 4}, "one of 1, 2, 3"),
    (ModelConfig, {"shortcut_kernel": 1.0}, "one of 1, 2, 3"),
    (ModelConfig, {"shortcut_kernel": [1]}, "one of 1, 2, 3"),
    (ModelConfig, {"pool_size": 0}, "a whole number, 1 or more"),
    (ModelConfig, {"pool_size": 1025}, "at most 1,024"),
    (ModelConfig, {"num_classes": 1}, "a whole number, 2 or more"),
    (ModelConfig, {"num_classes": 2**16 + 1}, "at most 65,536"),
    (ModelConfig, {"precision": "float16"}, "one of 'auto', 'float32', 'bfloat16'"),
    (ModelConfig, {"initializer": "lecunn"}, "one of 'pytorch', 'he', 'lecun' (did you mean 'lecun'?)"),
    (AugmentConfig, {"crop_padding": -1}, "a whole number, 0 or more"),
    (AugmentConfig, {"crop_padding": 32}, "a whole number, 0 or more and at most 31"),
    (AugmentConfig, {"pad_mode": "reflection"}, "one of 'zero', 'reflect' (did you mean 'reflect'?)"),
    (AugmentConfig, {"flip": "no"}, "one of False, True"),
    (AugmentConfig, {"flip": 1}, "one of False, True"),
    (AugmentConfig, {"cutout_size": 65}, "a whole number, 0 or more and at most 64"),
    (AugmentConfig, {"cutout_size": 8.0}, "a whole number, 0 or more"),
    (OptimConfig, {"optimizer": "Adam"}, "one of 'adam', 'adamw', 'sgd' (did you mean 'adam'?)"),
    (OptimConfig, {"optimizer": None}, "one of 'adam', 'adamw', 'sgd'"),
    (OptimConfig, {"learning_rate": -1e-3}, "a number of at least 0"),
    (OptimConfig, {"learning_rate": math.nan}, "a number of at least 0"),
    (OptimConfig, {"learning_rate": math.inf}, "a number of at least 0"),
    (OptimConfig, {"learning_rate": 1e300}, "at most 3.40282e+38"),
    (OptimConfig, {"learning_rate": 1e-40}, "0, or at least 1.2e-38, or float32 takes it for 0"),
    (OptimConfig, {"learning_rate": "1e-2"}, "a number of at least 0"),
    (OptimConfig, {"learning_rate": True}, "a number of at least 0"),
    (OptimConfig, {"learning_rate": np.float32(0.5)}, "(a float of Python, not float32)"),
    (OptimConfig, {"learning_rate": 10**40}, "at most 3.40282e+38"),
    (OptimConfig, {"b1": 1.0}, "a number of at least 0 and at most 0.999999"),
    (OptimConfig, {"b2": -0.1}, "a number of at least 0 and at most 0.999999"),
    (OptimConfig, {"b2": 1 - 1e-8}, "at most 0.999999"),  # 1 in float32
    (OptimConfig, {"eps": -1e-8}, "a number of at least 1e-20"),
    (OptimConfig, {"eps": 0}, "a number of at least 1e-20"),  # divides a gradient of 0 by 0
    (OptimConfig, {"momentum": 1}, "a number of at least 0 and at most 0.999999"),
    (OptimConfig, {"nesterov": None}, "one of False, True"),
    (OptimConfig, {"weight_decay": -5e-4}, "a number of at least 0"),
    (OptimConfig, {"schedule": "cosin"}, "(did you mean 'cosine'?)"),
    (OptimConfig, {"schedule_unit": "epochs"}, "one of 'step', 'epoch' (did you mean 'epoch'?)"),
    (OptimConfig, {"schedule_length": 0}, "a whole number, 1 or more"),
    (OptimConfig, {"schedule_length": 2**31}, "at most 2,147,483,647"),
    (OptimConfig, {"warmup_fraction": 1.1}, "a number of at least 0 and at most 1"),
    (OptimConfig, {"cycle_momentum": 1, "schedule": "onecycle"}, "one of False, True"),
    (OptimConfig, {"cycle_momentum": True}, "False where schedule='cosine' (only 'onecycle' cycles the momentum)"),
    (OptimConfig, {"cycle_momentum": True, "schedule": "triangular"}, "False where schedule='triangular'"),
    (OptimConfig, {"b1": 0.8, "cycle_momentum": True, "schedule": "onecycle"}, "left at 0.9 where cycle_momentum=True"),
    (
        OptimConfig,
        {"momentum": 0.0, "cycle_momentum": True, "schedule": "onecycle", "optimizer": "sgd"},
        "left at 0.9 where cycle_momentum=True",
    ),
    (OptimConfig, {"lookahead": "True"}, "one of False, True"),
    (OptimConfig, {"sync_period": 0}, "a whole number, 1 or more"),
    (OptimConfig, {"slow_step_size": 1.5}, "a number of at least 0 and at most 1"),
    (OptimConfig, {"lookahead_momentum": "pull"}, "one of 'none', 'reset', 'pullback'"),
    (TrainConfig, {"seed": -1}, "a whole number, 0 or more"),
    (TrainConfig, {"seed": 2**32}, "a whole number, 0 or more and at most 4,294,967,295"),
    (TrainConfig, {"num_epochs": 0}, "a whole number, 1 or more"),
    (TrainConfig, {"num_epochs": 10_001}, "at most 10,000"),
    (
        TrainConfig,
        {"num_epochs": 2, "train_size": 2**31 - 1, "batch_size": 1},
        "at most 1, as int32 counts the steps of the run",
    ),
    (TrainConfig, {"batch_size": 0}, "a whole number, 1 or more"),
    (TrainConfig, {"eval_batch_size": 0}, "a whole number, 1 or more"),
    (TrainConfig, {"train_size": 0}, "a whole number, 1 or more"),
    (TrainConfig, {"val_size": -1}, "a whole number, 0 or more"),
    (TrainConfig, {"val_size": 100, "train_size": 100}, "below train_size=100"),
    (TrainConfig, {"batch_size": 401, "train_size": 500, "val_size": 100}, "at most 400, what val_size=100 leaves of"),
    (TrainConfig, {"skip_nonfinite": -1}, "a whole number, 0 or more"),
    (TrainConfig, {"val_size": 0}, "above 0 where selection='val' (or pick 'last')"),
    (TrainConfig, {"selection": "best"}, "one of 'val', 'last', 'test'"),
    (TrainConfig, {"test_every_epoch": False, "selection": "test"}, "True where selection='test'"),
    (TrainConfig, {"eval_weights": "slow "}, "(did you mean 'slow'?)"),
    (TrainConfig, {"model": None}, "of class ModelConfig, not NoneType"),
    (TrainConfig, {"augment": np.zeros(1)}, "of class AugmentConfig, not ndarray"),
    (TrainConfig, {"optim": {}}, "of class OptimConfig, not dict"),
]


@pytest.mark.parametrize(("cls", "values", "allowed"), INVALID, ids=lambda x: x if isinstance(x, str) else None)
def test_invalid_values_are_refused(cls, values, allowed):
    name, value = next(iter(values.items()))  # the field at fault comes first
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{name}={value!r}: must be ')}.*{re.escape(allowed)}"):
        cls(**values)


def test_every_field_has_a_refusal_above():
    refused = {(cls, name) for cls, values, _ in INVALID for name in values}
    for cls in (ModelConfig, AugmentConfig, OptimConfig, TrainConfig):
        assert {f.name for f in dataclasses.fields(cls)} == {name for c, name in refused if c is cls}


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


def test_a_value_that_is_long_or_cannot_be_shown_has_a_message_too():
    deep: list = []
    for _ in range(3000):
        deep = [deep]
    for value, shown in ((10**5000, "a int too large to show"), (deep, "a list too large to show")):
        with pytest.raises(ConfigError, match=f"^width={shown}: must be a whole number"):
            ModelConfig(width=value)
    with pytest.raises(ConfigError, match=r"^stage_sizes='x{199}\.\.\.: must be 1 to 6"):
        ModelConfig(stage_sizes="x" * 10**6)  # type: ignore[arg-type]


def test_numbers_are_kept_as_pythons_floats():
    config = OptimConfig(learning_rate=1, weight_decay=np.float64(0.25))
    assert [type(config.learning_rate), type(config.weight_decay)] == [float, float]
    assert config == OptimConfig(learning_rate=1.0, weight_decay=0.25)


def test_edges_of_the_ranges_are_allowed():
    ModelConfig(stage_sizes=(1,) * 6, width=1, shortcut_kernel=3, pool_size=1, num_classes=2)
    AugmentConfig(crop_padding=31, cutout_size=64, flip=False)
    OptimConfig(schedule="onecycle", cycle_momentum=True)
    OptimConfig(learning_rate=0, b1=0, b2=0.999999, momentum=0, warmup_fraction=1, sync_period=1, slow_step_size=1)
    ModelConfig(stage_sizes=(300,), width=8192, num_classes=2**16)
    ModelConfig(stage_sizes=(1,) * 6, width=256)
    TrainConfig(seed=2**32 - 1, num_epochs=1, train_size=5512)
    TrainConfig(num_epochs=10_000, batch_size=1)
    TrainConfig(val_size=0, selection="last")


def test_a_refusal_is_a_value_error_too():
    with pytest.raises(ValueError):
        OptimConfig(sync_period=0)


@pytest.mark.parametrize(
    ("stage_sizes", "side"),
    [((1,), 32), ((1, 1), 16), ((1, 1, 1), 8), ((1, 1, 1, 1), 4), ((2, 2, 2, 2), 4), ((1,) * 5, 2), ((1,) * 6, 1)],
)
def test_pool_must_cover_the_last_map(stage_sizes, side):
    ModelConfig(stage_sizes=stage_sizes, pool_size=side).check_pool()
    for wrong in {1, 2, 4, 8, 16, 32} - {side}:
        model = ModelConfig(stage_sizes=stage_sizes, pool_size=wrong)  # can be counted, cannot be run
        reason = (
            f"pool_size={wrong}: must be {side}, the side of the last feature map of {len(stage_sizes)} stages on "
            "32 x 32 images: the linear layer takes one pixel"
        )
        with pytest.raises(ConfigError, match=re.escape(reason)):
            model.check_pool()
        with pytest.raises(ConfigError, match=re.escape(reason)):
            TrainConfig(model=model)


def test_odd_maps_are_halved_rounding_up():
    ModelConfig(pool_size=5).check_pool(image_size=33)  # 33, 17, 9, 5


def test_configs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().seed = 1  # type: ignore[misc]


def test_configs_are_equal_by_value_and_hashable():
    assert ModelConfig(stage_sizes=[1, 1, 1, 1]) == ModelConfig() and hash(TrainConfig()) == hash(TrainConfig())


def test_field_names_are_unique():
    """On the command line every field is a flag of its own name."""
    names = [f.name for cls in (ModelConfig, AugmentConfig, OptimConfig, TrainConfig) for f in dataclasses.fields(cls)]
    assert len(names) == len(set(names))


def test_to_dict_is_plain_json():
    values = to_dict(TrainConfig())
    assert values["model"]["stage_sizes"] == [1, 1, 1, 1]
    assert values["optim"]["schedule_length"] is None
    assert values["seed"] == 0 and list(values)[:3] == ["model", "augment", "optim"]


def test_missing_fields_take_their_defaults():
    assert from_dict(TrainConfig, {}) == TrainConfig()
    assert from_dict(TrainConfig, {"optim": {"b1": 0.95}}) == TrainConfig(optim=OptimConfig(b1=0.95))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_epoch": 3}, "config: unknown field 'num_epoch' (did you mean 'num_epochs'?)"),
        ({"optim": {"learning_rte": 1}}, "config.optim: unknown field 'learning_rte' (did you mean 'learning_rate'?)"),
        ({"zzz": 3}, "config: unknown field 'zzz'"),
        ({1: 3}, "config: unknown field 1"),
        ({"optim": {"eps": math.nan}}, "config.optim: eps=nan: must be a number"),
        ({"batch_size": 0}, "config: batch_size=0: must be"),
        ({"num_epochs": "3"}, "config.num_epochs: expected int, found '3'"),
        ({"num_epochs": 3.0}, "config.num_epochs: expected int, found 3.0"),
        ({"num_epochs": True}, "config.num_epochs: expected int, found True"),
        ({"train_size": "all"}, "config.train_size: expected int or NoneType, found 'all'"),
        ({"test_every_epoch": 1}, "config.test_every_epoch: expected bool, found 1"),
        ({"model": [1]}, "config.model: expected a JSON object, found list"),
        ({"model": {"stage_sizes": 1}}, "config.model.stage_sizes: expected a list, found 1"),
        ({"model": {"stage_sizes": ["1"]}}, "config.model: stage_sizes=('1',): must be 1 to 6 whole numbers"),
        ({"optim": {"b1": "0.9"}}, "config.optim.b1: expected float, found '0.9'"),
        ({"optim": {"optimizer": 3}}, "config.optim: optimizer=3: must be one of 'adam'"),
    ],
)
def test_from_dict_refuses(values, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        from_dict(TrainConfig, values)


def test_from_dict_reads_whole_numbers_as_floats():
    config = from_dict(OptimConfig, {"learning_rate": 1})
    assert config.learning_rate == 1.0 and isinstance(config.learning_rate, float)


def test_from_dict_says_where():
    with pytest.raises(ConfigError, match=r"^out/config.json: unknown field 'x'"):
        from_dict(TrainConfig, {"x": 1}, where="out/config.json")


def test_fields_that_are_newer_than_what_was_saved_have_their_defaults():
    now = to_dict(TrainConfig(seed=3, num_epochs=7))
    old = json.loads(json.dumps(now))
    del old["model"]["initializer"], old["optim"]["cycle_momentum"]
    assert with_new_fields(old) == now == with_new_fields(now)
    assert differing_fields(with_new_fields({**old, "num_epochs": 8}), now) == ["num_epochs: 8 -> 7"]
    without_seed = {name: value for name, value in old.items() if name != "seed"}
    assert "seed" not in with_new_fields(without_seed)
    for other in (None, [], "config", 3):
        assert with_new_fields(other) == other
    assert with_new_fields({"model": 3, "else": {"a": 1}})["model"] == 3


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


def test_field_names_are_those_of_all_four():
    listed = {f.name for cls in (ModelConfig, AugmentConfig, OptimConfig, TrainConfig) for f in dataclasses.fields(cls)}
    assert field_names(TrainConfig()) == listed - {"model", "augment", "optim"}
    assert field_names(ModelConfig()) == {f.name for f in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 3}, "unknown field 'widht' (did you mean 'width'?)"),
        ({"model": None}, "unknown field 'model'"),
        ({3: 3}, "unknown field 3"),
    ],
)
def test_only_fields_can_be_replaced(values, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        with_fields(TrainConfig(), values)


def test_fields_that_depend_on_each_other_are_replaced_together():
    config = with_fields(TrainConfig(), {"stage_sizes": (1,), "pool_size": 32, "val_size": 0, "selection": "last"})
    assert config == TrainConfig(model=ModelConfig(stage_sizes=(1,), pool_size=32), val_size=0, selection="last")
    with pytest.raises(ConfigError, match="pool_size=4: must be 32"):
        with_fields(config, {"pool_size": 4})


@pytest.mark.parametrize("name", ["widht", "model", "optim"])
def test_a_field_that_is_not_there(name):
    with pytest.raises(KeyError):
        field_value(TrainConfig(), name)
