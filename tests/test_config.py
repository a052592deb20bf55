"""Every refusal names the field, the value and what is allowed; JSON out and in loses nothing."""

import dataclasses
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxresnet import AugmentConfig, ConfigError, ModelConfig, OptimConfig, TrainConfig
from jaxresnet.config import (
    differing_fields,
    field_names,
    field_value,
    from_dict,
    to_dict,
    with_fields,
    with_new_fields,
)

INVALID = [
    (ModelConfig, {"stage_sizes": ()}, "1 to 6 whole numbers"),
    (ModelConfig, {"stage_sizes": (1,) * 7}, "1 to 6 whole numbers"),
    (ModelConfig, {"stage_sizes": (1, 0)}, "each 1 or more"),
    (ModelConfig, {"stage_sizes": (1, 1.0)}, "whole numbers"),
    (ModelConfig, {"stage_sizes": (True, 1)}, "whole numbers"),
    (ModelConfig, {"stage_sizes": "1111"}, "whole numbers"),
    (ModelConfig, {"stage_sizes": 4}, "whole numbers"),
    (ModelConfig, {"width": 0}, "a whole number, 1 or more"),
    (ModelConfig, {"width": 64.0}, "a whole number, 1 or more"),
    (ModelConfig, {"width": "64"}, "a whole number, 1 or more"),
    (ModelConfig, {"width": True}, "a whole number, 1 or more"),
    (ModelConfig, {"shortcut_kernel": 4}, "one of 1, 2, 3"),
    (ModelConfig, {"shortcut_kernel": 1.0}, "one of 1, 2, 3"),
    (ModelConfig, {"shortcut_kernel": [1]}, "one of 1, 2, 3"),
    (ModelConfig, {"pool_size": 0}, "a whole number, 1 or more"),
    (ModelConfig, {"num_classes": 1}, "a whole number, 2 or more"),
    (ModelConfig, {"precision": "float16"}, "one of 'float32', 'bfloat16'"),
    (ModelConfig, {"initializer": "lecunn"}, "one of 'pytorch', 'he', 'lecun' (did you mean 'lecun'?)"),
    (AugmentConfig, {"crop_padding": -1}, "a whole number, 0 or more"),
    (AugmentConfig, {"crop_padding": 32}, "below 32, the image's size"),
    (AugmentConfig, {"pad_mode": "reflection"}, "one of 'zero', 'reflect' (did you mean 'reflect'?)"),
    (AugmentConfig, {"flip": "no"}, "one of False, True"),
    (AugmentConfig, {"flip": 1}, "one of False, True"),
    (AugmentConfig, {"cutout_size": 65}, "at most 64, twice the image's size"),
    (AugmentConfig, {"cutout_size": 8.0}, "a whole number, 0 or more"),
    (OptimConfig, {"optimizer": "Adam"}, "one of 'adam', 'adamw', 'sgd' (did you mean 'adam'?)"),
    (OptimConfig, {"optimizer": None}, "one of 'adam', 'adamw', 'sgd'"),
    (OptimConfig, {"learning_rate": -1e-3}, "a number of at least 0"),
    (OptimConfig, {"learning_rate": math.nan}, "a number of at least 0"),
    (OptimConfig, {"learning_rate": math.inf}, "a number of at least 0"),
    (OptimConfig, {"learning_rate": "1e-2"}, "a number of at least 0"),
    (OptimConfig, {"learning_rate": True}, "a number of at least 0"),
    (OptimConfig, {"b1": 1.0}, "a number of at least 0 and below 1"),
    (OptimConfig, {"b2": -0.1}, "a number of at least 0 and below 1"),
    (OptimConfig, {"eps": -1e-8}, "a number of at least 0"),
    (OptimConfig, {"momentum": 1}, "a number of at least 0 and below 1"),
    (OptimConfig, {"nesterov": None}, "one of False, True"),
    (OptimConfig, {"weight_decay": -5e-4}, "a number of at least 0"),
    (OptimConfig, {"schedule": "cosin"}, "(did you mean 'cosine'?)"),
    (OptimConfig, {"schedule_unit": "epochs"}, "one of 'step', 'epoch' (did you mean 'epoch'?)"),
    (OptimConfig, {"schedule_length": 0}, "a whole number, 1 or more"),
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
    (TrainConfig, {"seed": 2**32}, "below 2**32"),
    (TrainConfig, {"num_epochs": 0}, "a whole number, 1 or more"),
    (TrainConfig, {"batch_size": 0}, "a whole number, 1 or more"),
    (TrainConfig, {"eval_batch_size": 0}, "a whole number, 1 or more"),
    (TrainConfig, {"train_size": 0}, "a whole number, 1 or more"),
    (TrainConfig, {"val_size": -1}, "a whole number, 0 or more"),
    (TrainConfig, {"val_size": 100, "train_size": 100}, "below train_size=100"),
    (TrainConfig, {"val_size": 0}, "above 0 where selection='val' (or pick 'last')"),
    (TrainConfig, {"selection": "best"}, "one of 'val', 'last', 'test'"),
    (TrainConfig, {"test_every_epoch": False, "selection": "test"}, "True where selection='test'"),
    (TrainConfig, {"eval_weights": "slow "}, "(did you mean 'slow'?)"),
]


@pytest.mark.parametrize(("cls", "values", "allowed"), INVALID, ids=lambda x: x if isinstance(x, str) else None)
def test_invalid_values_are_refused(cls, values, allowed):
    name, value = next(iter(values.items()))  # the field at fault comes first
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{name}={value!r}: must be ')}.*{re.escape(allowed)}"):
        cls(**values)


def test_every_field_has_a_refusal_above():
    refused = {(cls, name) for cls, values, _ in INVALID for name in values}
    nested = {"model", "augment", "optim"}
    for cls in (ModelConfig, AugmentConfig, OptimConfig, TrainConfig):
        assert {f.name for f in dataclasses.fields(cls)} - nested == {name for c, name in refused if c is cls}


def test_edges_of_the_ranges_are_allowed():
    ModelConfig(stage_sizes=(1,) * 6, width=1, shortcut_kernel=3, pool_size=1, num_classes=2)
    AugmentConfig(crop_padding=31, cutout_size=64, flip=False)
    OptimConfig(schedule="onecycle", cycle_momentum=True)
    OptimConfig(learning_rate=0, b1=0, b2=0.9999999, momentum=0, warmup_fraction=1, sync_period=1, slow_step_size=1)
    TrainConfig(seed=2**32 - 1, num_epochs=1, train_size=5001)
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


below_one = st.floats(0, 1, exclude_max=True)
positive = st.floats(0, 1e6)


def choices(cls: type, name: str) -> st.SearchStrategy:
    return st.sampled_from(next(f.type.__args__ for f in dataclasses.fields(cls) if f.name == name))


models = st.integers(1, 6).flatmap(
    lambda stages: st.builds(
        ModelConfig,
        stage_sizes=st.lists(st.integers(1, 9), min_size=stages, max_size=stages),
        width=st.integers(1, 512),
        shortcut_kernel=choices(ModelConfig, "shortcut_kernel"),
        pool_size=st.just(64 // 2**stages),
        num_classes=st.integers(2, 1000),
        precision=choices(ModelConfig, "precision"),
        initializer=choices(ModelConfig, "initializer"),
    )
)
augments = st.builds(
    AugmentConfig,
    crop_padding=st.integers(0, 31),
    pad_mode=choices(AugmentConfig, "pad_mode"),
    flip=st.booleans(),
    cutout_size=st.integers(0, 64),
)
optims = st.booleans().flatmap(
    lambda cycle: st.builds(
        OptimConfig,
        optimizer=choices(OptimConfig, "optimizer"),
        learning_rate=positive,
        b1=st.just(0.9) if cycle else below_one,
        b2=below_one,
        eps=positive,
        momentum=st.just(0.9) if cycle else below_one,
        nesterov=st.booleans(),
        weight_decay=positive,
        schedule=st.just("onecycle") if cycle else choices(OptimConfig, "schedule"),
        schedule_unit=choices(OptimConfig, "schedule_unit"),
        schedule_length=st.none() | st.integers(1, 10**7),
        warmup_fraction=st.floats(0, 1),
        cycle_momentum=st.just(cycle),
        lookahead=st.booleans(),
        sync_period=st.integers(1, 1000),
        slow_step_size=st.floats(0, 1),
        lookahead_momentum=choices(OptimConfig, "lookahead_momentum"),
    )
)
runs = st.builds(
    TrainConfig,
    model=models,
    augment=augments,
    optim=optims,
    seed=st.integers(0, 2**32 - 1),
    num_epochs=st.integers(1, 1000),
    batch_size=st.integers(1, 4096),
    eval_batch_size=st.integers(1, 4096),
    train_size=st.none() | st.integers(10_000, 50_000),
    val_size=st.integers(1, 5000),
    selection=choices(TrainConfig, "selection"),
    eval_weights=choices(TrainConfig, "eval_weights"),
    test_every_epoch=st.just(True),
)


@given(runs)
def test_json_round_trip(config):
    values = json.loads(json.dumps(to_dict(config)))
    assert from_dict(TrainConfig, values) == config
    assert differing_fields(values, to_dict(config)) == []


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
        ({"num_epochs": "3"}, "config.num_epochs: expected int, found '3'"),
        ({"num_epochs": 3.0}, "config.num_epochs: expected int, found 3.0"),
        ({"num_epochs": True}, "config.num_epochs: expected int, found True"),
        ({"train_size": "all"}, "config.train_size: expected int or NoneType, found 'all'"),
        ({"test_every_epoch": 1}, "config.test_every_epoch: expected bool, found 1"),
        ({"model": [1]}, "config.model: expected a JSON object, found list"),
        ({"model": {"stage_sizes": 1}}, "config.model.stage_sizes: expected a list, found 1"),
        ({"model": {"stage_sizes": ["1"]}}, "stage_sizes=('1',): must be 1 to 6 whole numbers"),
        ({"optim": {"b1": "0.9"}}, "config.optim.b1: expected float, found '0.9'"),
        ({"optim": {"optimizer": 3}}, "optimizer=3: must be one of 'adam'"),
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


@given(runs, runs)
def test_fields_are_replaced_wherever_they_are(config, other):
    """Taking every field of another run makes it that run; none leaves it as it is."""
    values = {name: field_value(other, name) for name in field_names(other)}
    assert with_fields(config, values) == other
    assert with_fields(config, {}) == config


def test_fields_that_depend_on_each_other_are_replaced_together():
    config = with_fields(TrainConfig(), {"stage_sizes": (1,), "pool_size": 32, "val_size": 0, "selection": "last"})
    assert config == TrainConfig(model=ModelConfig(stage_sizes=(1,), pool_size=32), val_size=0, selection="last")
    with pytest.raises(ConfigError, match="pool_size=4: must be 32"):
        with_fields(config, {"pool_size": 4})


@pytest.mark.parametrize("name", ["widht", "model", "optim"])
def test_a_field_that_is_not_there(name):
    with pytest.raises(KeyError):
        field_value(TrainConfig(), name)
