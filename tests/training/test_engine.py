"""One device and eight give the same run, runs share compiled programs, and what cannot be shared is refused."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from support.tiny import RUN, STEADY, STEADY_PARTIAL, assert_same_to_rounding, leaves, stop_after, without_times

from jaxresnet.config import ModelConfig, with_fields
from jaxresnet.errors import ConfigError
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.recipes import published
from jaxresnet.training import engine
from jaxresnet.training.devices import replicate
from jaxresnet.training.engine import make_engine
from jaxresnet.training.fit import Interrupted, fit

pytestmark = [pytest.mark.devices(8), pytest.mark.usefixtures("a_step_a_dispatch")]
ONE, EIGHT = jax.devices()[:1], jax.devices()[:8]


# ------------------------------------------------------------------------------------------- the same run on several


@pytest.fixture(scope="module")
def one(tiny_data):
    return fit(STEADY_PARTIAL, tiny_data, devices=ONE)


def assert_same_rows(several, one):
    for a, b in zip(several, one, strict=True):
        a, b = without_times(a), without_times(b)
        assert {k for k in a if a[k] is None} == {k for k in b if b[k] is None}
        for name in a:
            if a[name] is not None:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)


def test_one_device_equals_eight(one, tiny_data):
    """Weights, slow weights, both batch statistics, moments, and every figure of every epoch.

    The last batch of 4 does not divide over 8 devices, nor do 100 test images. (A last batch that does: test_steps.py.)
    """
    several = fit(STEADY_PARTIAL, tiny_data, devices=EIGHT)
    paths = [path for path, _ in leaves(one.state)]
    for part in ("params", "batch_stats", "slow_batch_stats", "slow_params", "mu", "nu"):
        assert any(part in path for path in paths)
    assert_same_to_rounding(several.weights, one.weights)
    assert_same_to_rounding(several.state, one.state, rtol=5e-4)  # later, and Adam's moments see more of the rounding
    programs = make_engine(STEADY_PARTIAL, several.summary["num_train"], ONE)
    start = engine.unpacked(programs, engine.init_state(programs, STEADY_PARTIAL.seed))
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (start.params, one.state.params)), strict=True)]
    assert min(moved) > 1e-4, "far more than rounding"
    assert_same_rows(several.history, one.history)
    assert several.summary["num_test"] == 100
    np.testing.assert_allclose(several.summary["test_loss"], one.summary["test_loss"], rtol=1e-5)
    assert several.summary["test_accuracy"] == one.summary["test_accuracy"]


def test_a_run_moves_from_eight_devices_to_one_and_back_and_says_so(one, tiny_data, tmp_path):
    """In the middle of epochs, before and after a synchronisation. What was done is taken over bit for bit."""
    rows = []
    for devices, stop in ((EIGHT, 4), (ONE, 5)):
        with pytest.raises(Interrupted):
            on_epoch = {"on_epoch": lambda history: rows.append(history[-1])}
            fit(STEADY_PARTIAL, tiny_data, tmp_path, devices=devices, should_stop=stop_after(stop), **on_epoch)
    moved = fit(STEADY_PARTIAL, tiny_data, tmp_path, devices=EIGHT)
    assert [(b["num_devices"], b["step"]) for b in moved.summary["earlier_backends"]] == [(8, 0), (1, 4)]
    assert moved.history[:1] == rows
    assert_same_to_rounding(moved.state, one.state, rtol=5e-4)
    assert_same_rows(moved.history, one.history)


def test_a_batch_that_every_device_computes_counts_once_and_a_step_consumes_its_state(tiny_data):
    """The last four images, on 32x32 maps: the unbiased variance divides by 4095, not by 8 * 4096 - 1."""
    found = []
    for devices in (ONE, EIGHT):
        programs = make_engine(STEADY_PARTIAL, 260, devices)
        state = engine.init_state(programs, 0)
        data = *(a[:260] for a in tiny_data.train), engine.plan_epoch(programs, state, 0)
        given = replicate((epoch_hypers(STEADY_PARTIAL.optim, 5, 3, 0), *data), programs.devices)
        after, _ = engine.train(programs, state, engine.init_totals(programs), *given, (4, 1, 4))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params)), "it needs the memory of one, not two"
        found.append(leaves(engine.unpacked(programs, after.batch_stats)))
    for (path, alone), (_, several) in zip(*found, strict=True):
        np.testing.assert_allclose(several, alone, rtol=4e-6, atol=1e-6, err_msg=path)


# ----------------------------------------------------------------------------------------- who shares what is compiled


def test_runs_share_an_engine_unless_a_shape_or_the_program_differs():
    """That equal engines compile nothing: test_compare.py."""
    shared = make_engine(RUN, 256, ONE)
    numbers = {"learning_rate": 0.5, "b1": 0.1, "b2": 0.1, "eps": 0.1, "weight_decay": 0.1, "slow_step_size": 0.1}
    for same in (
        replace(RUN, seed=3, selection="test", test_every_epoch=True, eval_weights="fast"),
        replace(RUN, optim=replace(RUN.optim, **numbers)),
        replace(RUN, num_epochs=4, optim=replace(RUN.optim, schedule="onecycle", schedule_unit="epoch")),
        replace(RUN, optim=replace(RUN.optim, schedule="onecycle", cycle_momentum=True)),
    ):
        assert make_engine(same, 256, ONE) == shared
    skips = replace(RUN, skip_nonfinite=1)
    for different in (
        replace(RUN, optim=replace(RUN.optim, lookahead=False)),
        replace(RUN, optim=replace(RUN.optim, sync_period=6)),
        replace(RUN, batch_size=32),
        replace(RUN, augment=replace(RUN.augment, flip=False)),
        replace(RUN, model=replace(RUN.model, initializer="he")),
        skips,
    ):
        assert make_engine(different, 256, ONE) != shared
    assert make_engine(replace(RUN, skip_nonfinite=9), 256, ONE) == make_engine(skips, 256, ONE)
    assert shared not in (make_engine(RUN, 255, ONE), make_engine(RUN, 256, jax.devices()[:2]))
    engines = {make_engine(run.config, 50_000, ONE) for run in published.values()}
    assert len(published) == 11 and len(engines) == 6, "batch sizes, optimisers, with and without Lookahead"


# ------------------------------------------------------------------------------------------------------ dispatches


class Device(NamedTuple):
    platform: str


@pytest.mark.parametrize(
    ("platform", "precision", "steps", "deep_steps"),
    [("cpu", "bfloat16", 32, 13), ("cpu", "float32", 16, 6), ("gpu", "bfloat16", 97, 97)],
)
def test_a_dispatch_is_an_epoch_or_on_a_cpu_some_thousand_images(platform, precision, steps, deep_steps, monkeypatch):
    monkeypatch.setattr(engine, "IMAGES_PER_DISPATCH", {"bfloat16": 2048, "float32": 1024})  # as it is

    def steps_of(config, num_train=97 * RUN.batch_size + 1):
        model = replace(config.model, precision=precision)
        return make_engine(replace(config, model=model), num_train, [Device(platform)]).steps_per_dispatch

    assert steps_of(RUN) == steps
    assert steps_of(replace(RUN, batch_size=4096), 5000) == 1
    deep = replace(RUN, model=ModelConfig(stage_sizes=(2, 2, 2, 2), shortcut_kernel=3))
    assert steps_of(deep) == deep_steps, "of 2.4 times the default network's multiply-adds"


@pytest.mark.parametrize(
    "num_train, several, first, expected",
    [
        (256, 1, 0, [(0, 1, 64), (1, 1, 64), (2, 1, 64), (3, 1, 64)]),
        (260, 3, 0, [(0, 3, 64), (3, 1, 64), (4, 1, 4)]),
        (260, 3, 2, [(2, 2, 64), (4, 1, 4)]),
        (260, 4, 4, [(4, 1, 4)]),
    ],
)
def test_every_example_is_in_one_batch(num_train, several, first, expected):
    programs = make_engine(RUN, num_train, ONE)._replace(steps_per_dispatch=several)
    assert list(engine.dispatches(programs, first)) == expected


def test_a_batch_that_devices_cannot_share_or_the_data_cannot_fill_is_refused():
    with pytest.raises(ConfigError, match="batch_size=60: must be a multiple of the 8 devices"):
        make_engine(replace(RUN, batch_size=60), 256, EIGHT)
    with pytest.raises(ConfigError, match="batch_size=264: must be at most the 256 training images"):
        make_engine(replace(RUN, batch_size=264), 256, EIGHT)


def test_rates_schedules_lengths_and_seeds_share_their_programs(tiny_data):
    """All but the first run compile nothing."""
    model = replace(RUN.model, width=3)  # of no other test
    base = replace(STEADY, model=model, num_epochs=2)
    changes = [
        {},
        {"learning_rate": 1e-4, "b1": 0.5, "weight_decay": 0.1, "slow_step_size": 0.8},
        {"schedule": "onecycle", "schedule_unit": "epoch", "schedule_length": 9},
        {"schedule": "warmup_cosine", "warmup_fraction": 0.1, "num_epochs": 3},
        {"eval_weights": "fast", "test_every_epoch": True, "seed": 1},
    ]
    compiled: list = []  # of each run, the names of the programs

    def listener(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled[-1].append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for fields in changes:
            compiled.append([])
            fit(with_fields(base, fields), tiny_data, devices=jax.devices()[:1])
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    first, *others = compiled
    assert len(first) >= 5, "initial state, plan, step, and evaluation of two data sets"
    assert others == [[]] * (len(changes) - 1)
