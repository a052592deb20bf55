"""A run is its config and its data: what JAX is set to, by the environment or the program, changes nothing."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support.tiny import RUN, assert_same_bits, stop_after, without_times

import jaxresnet as jr
from jaxresnet.errors import Interrupted
from jaxresnet.training.predict import predict

pytestmark = pytest.mark.usefixtures("a_step_a_dispatch")
SETTINGS = {
    "jax_threefry_partitionable": False,
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_random_seed_offset": 7,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "bfloat16",
    "jax_disable_jit": True,
}


@pytest.fixture(scope="module")
def plain(tiny_data):
    return jr.fit(RUN, tiny_data, devices=jax.devices()[:1])


@pytest.fixture
def configure():
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield jax.config.update
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_is_the_same_run_under_every_setting_of_jax(setting, configure, plain, tiny_data):
    configure(setting, SETTINGS[setting])
    result = jr.fit(RUN, tiny_data, devices=jax.devices()[:1])
    assert list(map(without_times, result.history)) == list(map(without_times, plain.history))
    assert_same_bits(result.weights, plain.weights)
    assert_same_bits(result.state, plain.state)


def test_a_run_that_is_stopped_goes_on_under_other_settings_to_the_same_bits(configure, plain, tiny_data, tmp_path):
    with pytest.raises(Interrupted):
        jr.fit(RUN, tiny_data, tmp_path, devices=jax.devices()[:1], should_stop=stop_after(6))
    for name, value in SETTINGS.items():
        configure(name, value)
    result = jr.fit(RUN, tiny_data, tmp_path, devices=jax.devices()[:1])
    assert_same_bits(result.state, plain.state)
    probabilities = predict(tmp_path, tiny_data.test.images)
    assert probabilities.dtype == np.float32


# ------------------------------------------------------------------------------------------- weights that cannot move


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        ({"sync_period": 13}, "sync_period=13: must be at most the run's 12 steps"),
        ({"slow_step_size": 0.0}, "slow_step_size=0: must be 1e-07 or more"),
        ({"slow_step_size": 1e-9}, "slow_step_size=1e-09: must be"),
        ({"learning_rate": 0.0}, "learning_rate=0: is below 1e-10 in each of the 10 steps that count"),
        ({"learning_rate": 1e-12, "lookahead": False}, "learning_rate=1e-12: is below 1e-10 in each of the 12 steps"),
        ({"schedule": "warmup", "schedule_length": 10**9, "learning_rate": 1e-40}, "learning_rate=1e-40"),
    ],
    ids=["period", "step size", "tiny step size", "rate", "rate without Lookahead", "rate that vanishes"],
)
def test_a_run_whose_scored_weights_cannot_move_is_refused(optim, said, tiny_data, tmp_path):
    config = replace(RUN, optim=replace(RUN.optim, **optim))
    with pytest.raises(jr.UserError, match=said):
        jr.fit(config, tiny_data, devices=jax.devices()[:1])
    with pytest.raises(jr.UserError, match=said):
        jr.compare({"a": config}, [0], tiny_data, tmp_path, devices=jax.devices()[:1])
    assert list(tmp_path.iterdir()) == []


def test_the_longest_period_that_synchronises_is_allowed(tiny_data):
    config = replace(RUN, optim=replace(RUN.optim, sync_period=12))
    history = jr.fit(config, tiny_data, devices=jax.devices()[:1]).history
    assert history[0]["val_loss"] == history[1]["val_loss"] != history[2]["val_loss"]


# --------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, None, True])
def test_predict_refuses_a_batch_size_that_is_none(batch_size, tiny_data, tmp_path):
    with pytest.raises(jr.UserError, match=f"batch_size={batch_size}: must be a whole number, 1 or more"):
        predict(tmp_path, tiny_data.test.images, batch_size)


@pytest.mark.parametrize("make", [jr.make_schedule, jr.make_optimizer])
@pytest.mark.parametrize("lengths", [(0, 1), (1, 0), (-1, 3), (2.5, 1)])
def test_a_schedule_has_a_length(make, lengths):
    with pytest.raises(jr.UserError, match="must be a whole number, 1 or more"):
        make(jr.OptimConfig(), *lengths)


@pytest.mark.parametrize(
    ("period", "step_size"), [(0, 0.5), (2.5, 0.5), ("5", 0.5), (5, 1.5), (5, np.float32(7)), (5, -0.1)]
)
def test_lookahead_refuses_numbers_out_of_range(period, step_size):
    with pytest.raises(ValueError, match="must be"):
        jr.lookahead(jr.make_optimizer(jr.OptimConfig(), 1, 1), period, step_size)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"devices": []}, "devices: at least one is needed"),
        ({"seeds": None}, "seeds=None: give several whole numbers"),
        ({"seeds": 2}, "seeds=2: give several whole numbers"),
        ({"arms": [RUN]}, "arms: is empty or no dictionary; give {name: config}"),
        ({"name": "a" * 300}, "names the folder of the comparison"),
        ({"name": " "}, "names the folder of the comparison"),
    ],
    ids=["devices", "no seeds", "one seed", "list", "long name", "blank name"],
)
def test_compare_refuses_what_it_cannot_mean(wrong, said, tiny_data, tmp_path):
    asked = {"arms": {"a": RUN}, "seeds": [0], "data": tiny_data, "out": tmp_path, "devices": jax.devices()[:1]}
    with pytest.raises(jr.UserError, match=said):
        jr.compare(**{**asked, **wrong})
    assert list(tmp_path.iterdir()) == []
