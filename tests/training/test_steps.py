"""One step against the same computed plainly, sums that count every image, and the scan against single steps."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.tiny import STEADY_PARTIAL, assert_same_to_rounding, numpy_scores

import jaxresnet.training.engine
import jaxresnet.training.steps
from jaxresnet.config import ModelConfig
from jaxresnet.data.augment import augment_batch, epoch_plan
from jaxresnet.nn.resnet import build_model
from jaxresnet.optim.optimizers import make_optimizer
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.training.engine import Engine, make_engine, replicate
from jaxresnet.training.metrics import averages
from jaxresnet.training.state import TrainState, create_train_state, eval_variables, sync_batch_stats
from jaxresnet.training.steps import num_batches, steps_per_epoch

NUM_TRAIN = 260  # of `STEADY_PARTIAL`: four batches of 64 and one of 4


@pytest.mark.parametrize(
    "num_examples, batch_size, full, last",
    [(256, 64, 4, 0), (260, 64, 4, 4), (64, 64, 1, 0), (1, 1, 1, 0), (50_000, 512, 97, 336)],
)
def test_every_example_is_in_one_batch(num_examples, batch_size, full, last):
    assert num_batches(num_examples, batch_size) == (full, last)
    assert steps_per_epoch(num_examples, batch_size) == full + (last > 0)


@pytest.fixture(scope="module")
def one_device():
    return jax.devices()[:1]


@pytest.fixture(scope="module")
def train(tiny_data):
    return tuple(a[:NUM_TRAIN] for a in tiny_data.train)


def run_epochs(engine, config, train, num_epochs=1, after_step=None):
    """(state, totals of the last epoch), from the config's seed."""
    state = engine.init(config.seed)
    steps = steps_per_epoch(len(train[0]), config.batch_size)
    for epoch in range(num_epochs):
        hypers = epoch_hypers(config.optim, steps, config.num_epochs, epoch)
        state, totals = engine.train_epoch(state, engine.zero_totals(), hypers, *train, epoch, after_step=after_step)
    return state, totals


@pytest.mark.parametrize(
    ("schedule", "rtol"),
    [
        pytest.param({}, 1e-4, id="cosine"),
        # Its low first rates leave biases so near zero that rounding is more of them; a constant b1 is off by a third.
        pytest.param({"schedule": "onecycle", "cycle_momentum": True}, 1e-3, id="onecycle with its momentum"),
    ],
)
def test_an_epoch_equals_plain_jax(schedule, rtol, one_device, train):
    """The engine's epoch, with its partial batch and a Lookahead synchronisation, against a loop anyone would write."""
    config = replace(STEADY_PARTIAL, optim=replace(STEADY_PARTIAL.optim, **schedule))
    state, totals = run_epochs(make_engine(config, NUM_TRAIN, one_device), config, train)

    model = build_model(config.model)
    tx = make_optimizer(config.optim, steps_per_epoch(NUM_TRAIN, config.batch_size), config.num_epochs)

    @jax.jit
    def step(state, images, labels):
        def loss_fn(params):
            logits, variables = model.apply({"params": params, "batch_stats": state.batch_stats}, images, True)
            log_probabilities = jax.nn.log_softmax(logits)
            return -log_probabilities[jnp.arange(len(labels)), labels].mean(), (variables["batch_stats"], logits)

        (loss, (batch_stats, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        slow = sync_batch_stats(state.slow_batch_stats, batch_stats, opt_state, config.optim.sync_period, 0.5)
        params = optax.apply_updates(state.params, updates)
        norms = jnp.stack([optax.tree.norm(tree) for tree in (grads, params, updates)])
        state = TrainState(state.step + 1, params, batch_stats, slow, opt_state, state.key)
        return state, loss, (logits.argmax(1) == labels).sum(), norms

    expected = jax.jit(lambda: create_train_state(model, tx, config.seed))()
    plan = epoch_plan(jax.random.wrap_key_data(expected.key), 0, NUM_TRAIN, config.augment)
    images, labels = train
    loss_sum, correct_sum, norms_sum = 0.0, 0, np.zeros(3)
    for start in range(0, NUM_TRAIN, config.batch_size):
        rows = jax.tree.map(lambda column, start=start: column[start : start + config.batch_size], plan)
        batch = augment_batch(images[np.asarray(rows.order)], rows, config.augment)
        expected, loss, correct, norms = step(expected, batch, labels[rows.order])
        loss_sum += float(loss) * len(batch)
        correct_sum += int(correct)
        norms_sum += norms

    assert_same_to_rounding(state, expected, rtol)
    assert int(totals.sums.count) == NUM_TRAIN
    assert int(totals.sums.correct) == correct_sum
    np.testing.assert_allclose(totals.sums.loss, loss_sum, rtol=1e-5)
    np.testing.assert_allclose(totals.norms, norms_sum, rtol=1e-4)
    assert int(totals.steps) == 5 and int(totals.bad_step) == -1


@pytest.fixture(scope="module", params=["tpu", "gpu"])
def scanning(request, one_device):
    """The engine as it is on an accelerator: an epoch a dispatch; on a GPU with the state in a few vectors."""
    with pytest.MonkeyPatch.context() as patch:
        make = jaxresnet.training.steps.make_steps
        patch.setattr(jaxresnet.training.engine, "make_steps", lambda *args: make(*args[:3], request.param))
        patch.setattr(jaxresnet.training.engine, "_compiled_once", lambda *program: None)
        engine = Engine(STEADY_PARTIAL, NUM_TRAIN, tuple(one_device))
    engine.whole_epochs = True
    return engine


def test_a_scanned_epoch_equals_single_steps(one_device, scanning, train):
    told = {"by step": [], "scanned": []}
    engines = {"by step": make_engine(STEADY_PARTIAL, NUM_TRAIN, one_device), "scanned": scanning}
    results = {
        name: run_epochs(
            engine,
            STEADY_PARTIAL,
            train,
            num_epochs=2,
            after_step=lambda images_done, state, totals, name=name: told[name].append(images_done),
        )
        for name, engine in engines.items()
    }
    assert told == {"by step": [64, 128, 192, 256, 260] * 2, "scanned": [260, 260]}
    assert int(results["scanned"][0].step) == 10
    assert_same_to_rounding(results["scanned"], results["by step"])


@pytest.fixture(scope="module", params=[1, 2], ids="{} devices".format)
def several(request):
    """An engine that takes up to three steps a dispatch, as on a CPU that convolves by products of matrices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxresnet.training.engine, "_compiled_once", lambda *program: None)
        engine = Engine(STEADY_PARTIAL, NUM_TRAIN, tuple(jax.devices()[: request.param]))
    engine.whole_epochs, engine.steps_per_dispatch = False, 3
    return engine


def test_several_steps_a_dispatch_equal_single_steps(several, train):
    single = make_engine(STEADY_PARTIAL, NUM_TRAIN, several.devices)
    told = []
    train = replicate(train, several.devices)
    results = run_epochs(
        several, STEADY_PARTIAL, train, num_epochs=2, after_step=lambda images_done, *_: told.append(images_done)
    )
    assert told == [192, 256, 260] * 2
    assert int(results[0].step) == 10 and int(results[1].sums.count) == NUM_TRAIN
    assert_same_to_rounding(results, run_epochs(single, STEADY_PARTIAL, train, num_epochs=2))


@pytest.mark.parametrize("stop_at", [192, 256])
def test_an_epoch_that_stopped_between_two_dispatches_goes_on_to_the_same_bits(several, train, stop_at):
    train = replicate(train, several.devices)
    hypers = epoch_hypers(STEADY_PARTIAL.optim, 5, 1, 0)

    def go_on(state, totals, first_step, stop=None):
        return several.train_epoch(
            state, totals, hypers, *train, 0, first_step, after_step=lambda images_done, *_: images_done == stop
        )

    whole = go_on(several.init(0), several.zero_totals(), 0)
    part = go_on(several.init(0), several.zero_totals(), 0, stop_at)
    assert int(part[0].step) == stop_at // 64
    for one, other in zip(jax.tree.leaves(go_on(*part, stop_at // 64)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("platform", "precision", "multiplies", "steps", "dispatch"),
    [
        ("cpu", "float32", True, 1, "a step"),
        ("cpu", "bfloat16", False, 1, "a step"),
        ("cpu", "bfloat16", True, 32, "up to 32 steps"),
        ("gpu", "float32", False, 32, "an epoch"),
    ],
)
def test_only_what_convolves_in_loops_takes_several_steps(
    platform, precision, multiplies, steps, dispatch, one_device, monkeypatch
):
    class Device(NamedTuple):
        platform: str
        device_kind: str = "any"

    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", str(int(multiplies)))
    monkeypatch.setattr(jaxresnet.training.engine, "Program", lambda *_: None)
    config = replace(STEADY_PARTIAL, model=replace(STEADY_PARTIAL.model, precision=precision))
    engine = Engine(config, NUM_TRAIN, (Device(platform),))
    assert (engine.steps_per_dispatch, engine.dispatch) == (steps, dispatch)
    large = Engine(replace(config, batch_size=4096), 5000, (Device(platform),))
    assert large.steps_per_dispatch == 1, "of more images than a dispatch is to hold"
    deep = replace(config, model=ModelConfig(stage_sizes=(2, 2, 2, 2), shortcut_kernel=3, precision=precision))
    fewer = Engine(deep, NUM_TRAIN, (Device(platform),)).steps_per_dispatch
    assert fewer == (13 if steps > 1 else 1), "of 2.4 times the default network's multiply-adds"


def test_bfloat16_trains_several_steps_in_one_program_without_convolutions(train, one_device, monkeypatch):
    """What `fit` does on a CPU that multiplies bfloat16: the same numbers as a step at a time, to their rounding."""
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "1")
    config = replace(STEADY_PARTIAL, model=replace(STEADY_PARTIAL.model, precision="bfloat16"))
    together = Engine(config, NUM_TRAIN, tuple(one_device))
    together.whole_epochs = False
    single = Engine(config, NUM_TRAIN, tuple(one_device))
    single.whole_epochs, single.steps_per_dispatch = False, 1
    (one, one_totals), (other, other_totals) = (run_epochs(e, config, train) for e in (together, single))
    assert together.training_program is together._train_several and together._train_several.compile_seconds > 0
    assert single.training_program is single._train[64] and single._train_several.compile_seconds == 0
    assert " convolution(" not in together.training_program._compiled.as_text()
    np.testing.assert_allclose(one_totals.sums.loss, other_totals.sums.loss, rtol=1e-3)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # a twentieth of what Adam moves a weight in one step


def test_evaluation_counts_every_image_scanned_or_not(one_device, scanning, train, tiny_data):
    """250 images in batches of 100, 100 and 50, on fast and on slow weights."""
    config = replace(STEADY_PARTIAL, optim=replace(STEADY_PARTIAL.optim, learning_rate=0.1))  # far apart
    by_batch = make_engine(config, NUM_TRAIN, one_device)
    state, _ = run_epochs(by_batch, config, train, num_epochs=2)
    images, labels = train[0][:250], train[1][:250]
    scores = {}
    for weights in ("fast", "slow"):
        loss, accuracy = numpy_scores(config, state, type(tiny_data.train)(images, labels), weights)
        for engine in (by_batch, scanning):
            sums = engine.evaluate(eval_variables(state, weights), images, labels)
            assert int(sums.count) == 250
            np.testing.assert_allclose(averages(sums), (loss, accuracy), rtol=1e-5)
        scores[weights] = loss
    assert abs(scores["fast"] - scores["slow"]) > 1e-3, "the two kinds of weights are different networks"


def test_bad_step_is_the_first_that_is_not_finite(one_device, train):
    """A label out of range makes the loss NaN in the step that visits it, and from there on."""
    config = STEADY_PARTIAL
    engine = make_engine(config, NUM_TRAIN, one_device)
    images, labels = train
    plan = epoch_plan(jax.random.wrap_key_data(engine.init(0).key), 0, NUM_TRAIN, config.augment)
    labels = labels.copy()
    labels[int(plan.order[150])] = 10  # the 151st image visited: in the third batch of 64
    _, totals = run_epochs(engine, config, (images, labels))
    assert int(totals.bad_step) == 2
    assert not np.isfinite(float(totals.sums.loss))
