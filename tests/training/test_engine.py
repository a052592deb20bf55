"""One device and eight give the same run, programs compile once a shape, and what cannot be shared is refused."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import (
    PARTIAL,
    RUN,
    STEADY,
    STEADY_PARTIAL,
    assert_same_to_rounding,
    leaves,
    stop_after,
    without_times,
)

import jaxresnet.training.steps
from jaxresnet.config import ModelConfig
from jaxresnet.errors import ConfigError
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.recipes import published
from jaxresnet.training import engine
from jaxresnet.training.devices import replicate
from jaxresnet.training.engine import make_engine
from jaxresnet.training.fit import Interrupted, fit

pytestmark = pytest.mark.devices(8)
RESET, PULLBACK = (
    replace(STEADY, optim=replace(STEADY.optim, lookahead_momentum=name)) for name in ("reset", "pullback")
)
# Like no other test's, so that nothing of it is compiled yet.
UNSEEN = replace(RUN, model=ModelConfig(stage_sizes=(1,), width=2, pool_size=32), val_size=0, selection="last")


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8


# ------------------------------------------------------------------------------------------- the same run on several


@pytest.fixture(scope="module")
def on_one_device(tiny_data):
    return cache(lambda config: fit(config, tiny_data, devices=jax.devices()[:1]))


def assert_same_rows(several, one):
    for a, b in zip(several, one, strict=True):
        a, b = without_times(a), without_times(b)
        assert {k for k in a if a[k] is None} == {k for k in b if b[k] is None}
        for name in a:
            if a[name] is not None:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "config, num_devices",
    [
        pytest.param(STEADY, 8, id="8 devices, no partial batch"),
        pytest.param(STEADY_PARTIAL, 8, id="8 devices, a partial batch that does not divide over them"),
        pytest.param(STEADY_PARTIAL, 2, id="2 devices, a partial batch that divides over them"),
        pytest.param(RESET, 4, id="4 devices, Lookahead that resets the momentum"),
        pytest.param(PULLBACK, 4, id="4 devices, Lookahead that pulls the momentum back"),
    ],
)
def test_one_device_equals_several(config, num_devices, on_one_device, tiny_data):
    """Weights, slow weights, both batch statistics, moments, and every figure of every epoch.

    Evaluation too is in batches that do not divide: 44 or 40 validation images, 100 test images over 8 devices.
    """
    one = on_one_device(config)
    several = fit(config, tiny_data, devices=jax.devices()[:num_devices])
    paths = [path for path, _ in leaves(one.state)]
    for part in ("params", "batch_stats", "slow_batch_stats", "slow_params", "mu", "nu"):
        assert any(part in path for path in paths)
    assert_same_to_rounding(several.weights, one.weights)
    assert_same_to_rounding(several.state, one.state, rtol=5e-4)  # later, and Adam's moments see more of the rounding
    start = engine.init_state(make_engine(config, several.summary["num_train"], jax.devices()[:1]), config.seed)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (start.params, one.state.params)), strict=True)]
    assert min(moved) > 1e-4, "far more than rounding"
    assert_same_rows(several.history, one.history)
    assert several.summary["num_test"] == 100
    np.testing.assert_allclose(several.summary["test_loss"], one.summary["test_loss"], rtol=1e-5)
    assert several.summary["test_accuracy"] == one.summary["test_accuracy"]


def test_a_run_moves_from_eight_devices_to_one_and_back(on_one_device, tiny_data, tmp_path):
    """In the middle of epochs, before and after a synchronisation."""
    one = on_one_device(STEADY_PARTIAL)
    for devices, stop in ((jax.devices(), 4), (jax.devices()[:1], 5)):
        with pytest.raises(Interrupted):
            fit(STEADY_PARTIAL, tiny_data, tmp_path, devices=devices, should_stop=stop_after(stop))
    moved = fit(STEADY_PARTIAL, tiny_data, tmp_path, devices=jax.devices())
    assert_same_to_rounding(moved.state, one.state, rtol=5e-4)
    assert_same_rows(moved.history, one.history)


def test_the_state_is_whole_on_every_device():
    programs = make_engine(RUN, 256, jax.devices())
    for path, leaf in jax.tree_util.tree_leaves_with_path(engine.init_state(programs, 0)):
        assert leaf.is_fully_replicated and leaf.sharding.device_set == set(jax.devices()), path


def test_replicate_copies_to_all_devices():
    tree = replicate({"a": np.arange(3, dtype=np.uint8)}, tuple(jax.devices()[:3]))
    assert [s.data.tolist() for s in tree["a"].addressable_shards] == [[0, 1, 2]] * 3
    assert tree["a"].dtype == jnp.uint8


def one_epoch(programs, images, labels, first_step=0):
    """(state, totals) after an epoch from the seed 0, and the state before it."""
    config = programs.config
    images, labels = replicate((images, labels), programs.devices)
    hypers = replicate(epoch_hypers(config.optim, -(-len(labels) // config.batch_size), 1, 0), programs.devices)
    before = state = engine.init_state(programs, 0)
    totals, plan = engine.init_totals(programs), engine.plan_epoch(programs, state, 0)
    for dispatch in engine.dispatches(programs, first_step):
        state, totals = engine.train(programs, state, totals, hypers, images, labels, plan, dispatch)
    return state, totals, before


def test_batch_statistics_count_a_batch_once_that_every_device_computes(tiny_data):
    """A last batch of one image, on 32x32 maps: the unbiased variance divides by 1023, not by 8 * 1024 - 1."""
    config = replace(RUN, batch_size=8)
    data = tiny_data.train.images[:9], tiny_data.train.labels[:9]
    states = [one_epoch(make_engine(config, 9, d), *data, first_step=1)[0] for d in (jax.devices()[:1], jax.devices())]
    for (path, one), (_, several) in zip(*(leaves(s.batch_stats) for s in states), strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_step_consumes_the_state_it_is_given(tiny_data):
    """Donated: an epoch needs the memory of one state, not of two."""
    after, _, before = one_epoch(make_engine(STEADY, 256, jax.devices()[:1]), *(a[:256] for a in tiny_data.train))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


# -------------------------------------------------------------------------------------------------- compiling once


def test_the_train_step_is_traced_once_a_shape(tiny_data, monkeypatch):
    """Over epochs, seeds, optimiser numbers and schedules, of the momentum too: once for the full batch and once for
    the smaller last one."""
    traced = []
    original = jaxresnet.training.steps.augment_batch

    def counting(images, plan, augment):
        traced.append(images.shape[0])
        return original(images, plan, augment)

    monkeypatch.setattr(jaxresnet.training.steps, "augment_batch", counting)
    config = replace(UNSEEN, train_size=136)  # two batches of 64 and one of 8
    other = replace(config, seed=7, optim=replace(config.optim, learning_rate=0.1, b1=0.5, b2=0.9, weight_decay=0.1))
    other = replace(other, optim=replace(other.optim, slow_step_size=0.8, eps=1e-3))
    schedules = [{"schedule": "constant"}, {"schedule": "onecycle"}, {"schedule": "onecycle", "cycle_momentum": True}]
    scheduled = [replace(config, optim=replace(config.optim, **schedule)) for schedule in schedules]
    results = [fit(c, tiny_data, devices=jax.devices()[:2]) for c in (config, other, *scheduled)]
    assert sorted(traced) == [4, 32], "the images of one of two devices"
    assert {result.history[-1]["step"] for result in results} == {9}
    assert len({result.history[-1]["train_loss"] for result in results}) == len(results), "each run is its own"


def test_other_seeds_and_numbers_compile_nothing(tiny_data, tmp_path):
    one = jax.devices()[:1]
    fit(PARTIAL, tiny_data, tmp_path / "first", devices=one)
    optim = replace(PARTIAL.optim, learning_rate=0.1, b1=0.5, weight_decay=0.1, slow_step_size=0.8)
    compiled = []

    def listener(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        jax.jit(lambda x: x + 1.2345)(0.0)
        assert len(compiled) == 1, "the listener hears of compilations"
        compiled.clear()
        fit(replace(PARTIAL, seed=7, optim=optim), tiny_data, tmp_path / "second", devices=one)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert compiled == []


def test_runs_share_an_engine_unless_a_shape_or_the_program_differs():
    one = jax.devices()[:1]
    shared = make_engine(RUN, 256, one)
    numbers = {"learning_rate": 0.5, "b1": 0.1, "b2": 0.1, "eps": 0.1, "weight_decay": 0.1, "slow_step_size": 0.1}
    for same in (
        replace(RUN, seed=3, selection="test", test_every_epoch=True, eval_weights="fast"),
        replace(RUN, optim=replace(RUN.optim, **numbers)),
        replace(RUN, num_epochs=4, optim=replace(RUN.optim, schedule="onecycle", schedule_unit="epoch")),
        replace(RUN, optim=replace(RUN.optim, schedule="onecycle", cycle_momentum=True)),
    ):
        assert make_engine(same, 256, one) == shared
    for different in (
        replace(RUN, optim=replace(RUN.optim, lookahead=False)),
        replace(RUN, optim=replace(RUN.optim, sync_period=6)),
        replace(RUN, batch_size=32),
        replace(RUN, augment=replace(RUN.augment, flip=False)),
        replace(RUN, model=replace(RUN.model, initializer="he")),
        replace(RUN, skip_nonfinite=1),
    ):
        assert make_engine(different, 256, one) != shared
    assert make_engine(replace(RUN, skip_nonfinite=1), 256, one) == make_engine(
        replace(RUN, skip_nonfinite=9), 256, one
    )
    assert make_engine(RUN, 255, one) != shared
    assert make_engine(RUN, 256, jax.devices()[:2]) != shared


def test_the_eleven_published_runs_need_six_engines():
    """They differ in numbers, schedules and lengths, and in three batch sizes, two optimisers, with and without
    Lookahead."""
    engines = {make_engine(run.config, 50_000, jax.devices()[:1]) for run in published.values()}
    assert len(published) == 11 and len(engines) == 6


# ------------------------------------------------------------------------------------------------------ dispatches


class Device(NamedTuple):
    platform: str


@pytest.mark.parametrize(
    ("platform", "precision", "multiplies", "steps"),
    [
        ("cpu", "float32", True, 1),
        ("cpu", "bfloat16", False, 1),
        ("cpu", "bfloat16", True, 32),
        ("gpu", "float32", False, 97),
    ],
)
def test_only_what_convolves_in_loops_takes_several_steps(platform, precision, multiplies, steps, monkeypatch):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", str(int(multiplies)))
    config = replace(RUN, model=replace(RUN.model, precision=precision))

    def steps_of(config, num_train=97 * config.batch_size + 1):
        return make_engine(config, num_train, [Device(platform)]).steps_per_dispatch

    assert steps_of(config) == steps
    assert steps_of(replace(config, batch_size=4096), 5000) == 1
    deep = replace(config, model=ModelConfig(stage_sizes=(2, 2, 2, 2), shortcut_kernel=3, precision=precision))
    fewer = 13 if steps == 32 else steps
    assert steps_of(deep) == fewer, "of 2.4 times the default network's multiply-adds"


@pytest.mark.parametrize(
    "num_train, several, first, expected",
    [
        (256, 1, 0, [(0, 1, 64), (1, 1, 64), (2, 1, 64), (3, 1, 64)]),
        (260, 3, 0, [(0, 3, 64), (3, 1, 64), (4, 1, 4)]),
        (260, 3, 2, [(2, 2, 64), (4, 1, 4)]),
        (260, 4, 4, [(4, 1, 4)]),
        (64, 4, 0, [(0, 1, 64)]),
    ],
)
def test_every_example_is_in_one_batch(num_train, several, first, expected):
    programs = make_engine(RUN, num_train, jax.devices()[:1])._replace(steps_per_dispatch=several)
    assert list(engine.dispatches(programs, first)) == expected


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(tiny_data):
    with pytest.raises(ConfigError, match="batch_size=60: must be a multiple of the 8 devices"):
        fit(replace(RUN, batch_size=60), tiny_data)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match="batch_size=264: must be at most the 256 training images"):
        make_engine(replace(RUN, batch_size=264), 256, jax.devices())
