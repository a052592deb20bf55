"""One run: what it reports, that it learns, how it continues after a stop, and what it refuses."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support.tiny import (
    MODEL,
    PARTIAL,
    RUN,
    assert_same_bits,
    assert_same_run,
    leaves,
    numpy_scores,
    script_scores,
    splits,
    stop_after,
    without_times,
)

from jaxresnet.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from jaxresnet.data.dataset import Split
from jaxresnet.errors import ConfigError, DataError, NonFiniteError, ResultsError
from jaxresnet.optim.schedules import make_schedule
from jaxresnet.training import checkpoint, engine
from jaxresnet.training.engine import make_engine
from jaxresnet.training.fit import Interrupted, fit
from jaxresnet.training.metrics import Sums
from jaxresnet.training.state import weights_of

ONE = jax.devices()[:1]
LAST = replace(PARTIAL, selection="last")  # so that the result's state is the last one


@pytest.fixture(scope="module")
def result(tiny_data, tmp_path_factory):
    return fit(LAST, tiny_data, tmp_path_factory.mktemp("run"), devices=ONE)


# -------------------------------------------------------------------------------------------------- what it reports


def test_a_row_an_epoch(result):
    schedule = make_schedule(LAST.optim, 5, LAST.num_epochs)
    assert [row["epoch"] for row in result.history] == [0, 1, 2]
    assert [row["step"] for row in result.history] == [5, 10, 15]
    for row in result.history:
        assert row["learning_rate"] == pytest.approx(float(schedule(5 * row["epoch"])), rel=1e-6)
        assert row["test_loss"] is None and row["test_accuracy"] is None
        assert 0 < row["train_loss"] < 10 and 0 <= row["train_accuracy"] <= 100
        assert all(row[f"{name}_norm"] > 0 for name in ("grad", "param", "update"))
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(260 / row["seconds"], rel=0.2)  # seconds are rounded
    assert result.history[0]["learning_rate"] == pytest.approx(1e-2)


def test_the_summary_says_what_was_chosen_and_on_what(result):
    expected = {
        "seed": 0,
        "selection": "last",
        "weights": "slow",
        "best_epoch": 2,
        "last_epoch": 2,
        "val_accuracy": result.history[2]["val_accuracy"],
        "num_train": 260,
        "num_val": 40,
        "num_test": 100,
    }
    assert {name: result.summary[name] for name in expected} == expected
    assert result.summary["seconds"] == pytest.approx(sum(row["seconds"] for row in result.history), abs=1e-3)


def test_scores_are_those_of_all_images_on_the_slow_weights(result, tiny_data):
    """Against NumPy: 40 validation and 100 test images, none dropped, none counted twice."""
    _, val = splits(LAST, tiny_data)
    assert val.num_examples == 40
    row, summary = result.history[-1], result.summary
    slow = numpy_scores(LAST, result.weights, val, "slow")
    np.testing.assert_allclose((row["val_loss"], row["val_accuracy"]), slow, rtol=1e-5)
    test = numpy_scores(LAST, result.weights, tiny_data.test, "slow")
    np.testing.assert_allclose((summary["test_loss"], summary["test_accuracy"]), test, rtol=1e-5)


def test_fast_weights_are_scored_where_asked_for(result, tiny_data):
    """The training is the same; only the scores are those of another network."""
    fast = fit(replace(LAST, eval_weights="fast"), tiny_data, devices=ONE)
    assert fast.summary["weights"] == "fast"
    assert_same_bits(fast.state, result.state)
    _, val = splits(LAST, tiny_data)
    row = fast.history[-1]
    np.testing.assert_allclose(
        (row["val_loss"], row["val_accuracy"]), numpy_scores(LAST, fast.weights, val, "fast"), rtol=1e-5
    )
    assert abs(row["val_loss"] - result.history[-1]["val_loss"]) > 1e-4


def test_without_lookahead_the_weights_are_called_fast(tiny_data):
    config = replace(RUN, optim=replace(RUN.optim, lookahead=False), selection="last")
    result = fit(config, tiny_data, devices=ONE)
    assert result.summary["weights"] == "fast"
    assert result.state.slow_batch_stats == {} and result.weights.slow == {}
    loss, accuracy = numpy_scores(config, result.weights, tiny_data.test, "fast")
    np.testing.assert_allclose((result.summary["test_loss"], result.summary["test_accuracy"]), (loss, accuracy), 1e-5)


def test_the_same_call_gives_the_same_run_and_another_seed_another(result, tiny_data):
    assert_same_run(fit(LAST, tiny_data, devices=ONE), result)
    other = fit(replace(LAST, seed=1), tiny_data, devices=ONE)
    assert other.history[0]["train_loss"] != result.history[0]["train_loss"]
    for (path, a), (_, b) in zip(leaves(other.state.params), leaves(result.state.params), strict=True):
        assert not np.array_equal(a, b), path


def test_progress_is_told_of_every_step_and_epoch(tiny_data):
    told = []
    fit(
        LAST,
        tiny_data,
        devices=ONE,
        on_epoch=lambda rows: told.append([row["epoch"] for row in rows]),
        on_progress=lambda epoch, images: told.append((epoch, images)),
    )
    steps = [64, 128, 192, 256, 260]
    assert told == [
        *((0, n) for n in steps), [0], *((1, n) for n in steps), [0, 1], *((2, n) for n in steps), [0, 1, 2]
    ]  # fmt: skip


def test_train_size_takes_the_first_images(tiny_data):
    """The others are never seen: with other pixels there, the run is the same."""
    config = replace(RUN, train_size=260, val_size=4, selection="last")
    images = tiny_data.train.images.copy()
    images[260:] = 0
    blackened = tiny_data._replace(train=Split(images, tiny_data.train.labels))
    first, second = fit(config, tiny_data, devices=ONE), fit(config, blackened, devices=ONE)
    assert first.summary["num_train"] == 256
    assert_same_run(first, second)


# ------------------------------------------------------------------------------------------------------- it learns


@pytest.mark.parametrize("lookahead", [True, False], ids=["lookahead", "no lookahead"])
def test_a_handful_of_images_is_learnt_by_heart(tiny_data, lookahead):
    """32 images of noise, 80 steps: from the loss of guessing, 2.3, to naming every one of them."""
    few = tiny_data._replace(train=Split(*(a[:32] for a in tiny_data.train)))
    config = TrainConfig(
        model=ModelConfig(stage_sizes=(1, 1), width=8, pool_size=16),
        augment=AugmentConfig(crop_padding=0, flip=False, cutout_size=0),
        optim=OptimConfig(learning_rate=3e-2, lookahead=lookahead),
        num_epochs=40,
        batch_size=16,
        eval_batch_size=100,
        val_size=0,
        selection="last",
    )
    result = fit(config, few, devices=ONE)
    assert result.history[0]["train_loss"] > 2
    assert result.history[-1]["train_loss"] < 0.4
    assert result.history[-1]["train_accuracy"] == 100
    # The weights that are scored know them too, with the running statistics in place of the batch's.
    loss, accuracy = numpy_scores(config, result.weights, few.train, config.eval_weights)
    assert loss < 0.4 and accuracy == 100


# ----------------------------------------------------------------------------------------------- stop and continue


def last_checkpoint(workdir, config, num_train):
    programs = make_engine(config, num_train, ONE)
    state = engine.init_state(programs, 0)
    like = checkpoint.Saved(state, engine.init_totals(programs), weights_of(state), checkpoint.Record({}, {}))
    return checkpoint.restore(workdir, checkpoint.saved_steps(workdir)[0], like)


@pytest.mark.parametrize("calls, step", [(2, 2), (5, 5), (8, 8)], ids=str)
def test_resumed_equals_uninterrupted(result, tiny_data, tmp_path, calls, step):
    """Stopped in the middle of the first epoch, at its end, and in the second."""
    with pytest.raises(Interrupted, match=str(tmp_path)):
        fit(LAST, tiny_data, tmp_path, devices=ONE, should_stop=stop_after(calls))
    assert int(last_checkpoint(tmp_path, LAST, 260).state.step) == step
    steps = []
    resumed = fit(LAST, tiny_data, tmp_path, devices=ONE, on_progress=lambda epoch, images: steps.append(images))
    assert len(steps) == 15 - step, "only what was missing is trained"
    assert_same_run(resumed, result)


def test_stopped_at_every_step_equals_uninterrupted(result, tiny_data, tmp_path):
    for _ in range(100):
        try:
            resumed = fit(LAST, tiny_data, tmp_path, devices=ONE, should_stop=lambda: True)
            break
        except Interrupted:
            pass
    assert_same_run(resumed, result)


@pytest.mark.devices(2)
def test_a_run_moves_to_another_number_of_devices(result, tiny_data, tmp_path):
    """To rounding only for the rest of it; what was done is taken over bit for bit."""
    with pytest.raises(Interrupted):
        fit(LAST, tiny_data, tmp_path, devices=jax.devices()[:2], should_stop=stop_after(9))
    before = last_checkpoint(tmp_path, LAST, 260)
    moved = fit(LAST, tiny_data, tmp_path, devices=ONE)
    assert moved.history[:1] == before.record.history
    np.testing.assert_allclose(moved.history[1]["train_loss"], result.history[1]["train_loss"], rtol=1e-2)
    assert int(moved.state.step) == 15


def test_a_finished_run_is_not_trained_again(tiny_data, tmp_path, monkeypatch):
    first = fit(RUN, tiny_data, tmp_path, devices=ONE)
    monkeypatch.setattr(engine, "train", None)
    monkeypatch.setattr(engine, "compile_programs", None)
    assert_same_run(fit(RUN, tiny_data, tmp_path, devices=ONE), first)


def test_without_a_folder_nothing_can_continue(tiny_data):
    with pytest.raises(Interrupted, match="nothing was kept"):
        fit(LAST, tiny_data, devices=ONE, should_stop=stop_after(2))


# ------------------------------------------------------------------------------------------------- the chosen epoch


def assert_weights_are(weights, expected):
    """Bit for bit those that were scored, as `script_scores` tells. They are the slow ones."""
    for (path, a), (other, b) in zip(leaves(weights.slow), expected, strict=True):
        assert path == other and a.tobytes() == b.tobytes(), path


@pytest.mark.parametrize("on_disk", [True, False], ids=["with checkpoints", "in memory"])
@pytest.mark.parametrize("accuracies, best", [((10, 30, 30), 1), ((30, 20, 10), 0), ((10, 20, 30), 2)], ids=str)
def test_the_first_best_epoch_on_validation_is_chosen(tiny_data, tmp_path, monkeypatch, accuracies, best, on_disk):
    scored = script_scores(monkeypatch, val=accuracies, test=(55.5,))
    folder = tmp_path / "run" if on_disk else None
    result = fit(RUN, tiny_data, folder, devices=ONE)
    assert [name for name, _ in scored] == ["val", "val", "val", "test"], "the test set is scored once, at the end"
    assert result.summary["best_epoch"] == best
    assert result.summary["val_accuracy"] == accuracies[best]
    assert result.summary["test_accuracy"] == 55.5
    assert_weights_are(result.weights, scored[best][1])
    assert_weights_are(result.weights, scored[3][1])
    assert int(result.state.step) == 12
    if on_disk:
        assert checkpoint.saved_steps(folder) == [12, 8]


def test_selection_on_test_takes_the_best_epoch_there(tiny_data, tmp_path, monkeypatch):
    """As published; the scores are those of the epochs, and nothing is scored again."""
    scored = script_scores(monkeypatch, val=(9, 9, 9), test=(11, 44, 22))
    config = replace(RUN, selection="test", test_every_epoch=True)
    result = fit(config, tiny_data, tmp_path, devices=ONE)
    assert [name for name, _ in scored] == ["val", "test"] * 3
    assert (result.summary["best_epoch"], result.summary["test_accuracy"]) == (1, 44)
    assert [row["test_accuracy"] for row in result.history] == [11, 44, 22]
    assert_weights_are(result.weights, scored[3][1])


def test_selection_last_takes_the_last_epoch(tiny_data, tmp_path, monkeypatch):
    scored = script_scores(monkeypatch, val=(30, 20, 10), test=(55.5,))
    result = fit(replace(RUN, selection="last"), tiny_data, tmp_path, devices=ONE)
    assert (result.summary["best_epoch"], result.summary["test_accuracy"]) == (2, 55.5)
    assert_weights_are(result.weights, scored[2][1])


def test_the_best_epoch_survives_a_stop(tiny_data, tmp_path, monkeypatch):
    """Best in epoch 0, stopped in epoch 2: its weights are in the checkpoints since."""
    scored = script_scores(monkeypatch, val=(30, 20, 10), test=(55.5,))
    with pytest.raises(Interrupted):
        fit(RUN, tiny_data, tmp_path, devices=ONE, should_stop=stop_after(10))
    result = fit(RUN, tiny_data, tmp_path, devices=ONE)
    assert result.summary["best_epoch"] == 0
    assert_weights_are(result.weights, scored[0][1])


# --------------------------------------------------------------------------------------------------- not finite


@pytest.fixture(scope="module")
def blows_up():
    """Epoch 0 has a learning rate of zero, epoch 1 one that no float32 survives."""
    optim = OptimConfig(learning_rate=1e30, schedule="warmup", schedule_unit="epoch", warmup_fraction=1.0)
    return replace(RUN, optim=optim, selection="last")


def test_a_loss_that_is_not_finite_names_epoch_and_step_and_keeps_the_checkpoint(tiny_data, tmp_path, blows_up):
    steps = []
    for _ in range(2):  # the same command again: from the checkpoint into the same wall
        with pytest.raises(NonFiniteError, match=r"seed 0: .* epoch 1, step 4 .*Try a lower learning rate"):
            fit(blows_up, tiny_data, tmp_path, devices=ONE, on_progress=lambda *at: steps.append(at))
    assert steps == [(0, 64), (0, 128), (0, 192), (0, 256), (1, 64), (1, 64)], "it stops at once"
    saved = last_checkpoint(tmp_path, blows_up, 256)
    assert [row["epoch"] for row in saved.record.history] == [0]
    assert int(saved.state.step) == 4 and int(saved.totals.bad_step) == -1
    for path, leaf in leaves(saved.state):
        assert np.isfinite(leaf).all(), path
    start = engine.init_state(make_engine(blows_up, 256, ONE), 0)
    assert_same_bits(saved.state.params, start.params)  # a learning rate of zero


def test_a_validation_loss_that_is_not_finite_names_its_epoch(tiny_data, tmp_path, monkeypatch):
    """Running statistics lag behind the weights, so training may be well."""
    scored = iter([1.0, np.inf])
    monkeypatch.setattr(engine, "evaluate", lambda *_: Sums(next(scored), 1, 1))
    with pytest.raises(NonFiniteError, match=r"seed 0: the val loss is inf after epoch 1 \(counted from 0\)"):
        fit(RUN, tiny_data, tmp_path, devices=ONE)
    assert checkpoint.saved_steps(tmp_path) == [4]


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def begun(tiny_data, tmp_path_factory):
    """The folder of a run that was stopped in its first epoch."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(Interrupted):
        fit(RUN, tiny_data, folder, devices=ONE, should_stop=stop_after(2))
    return folder


@pytest.mark.parametrize(
    "changed, named",
    [
        (replace(RUN, optim=replace(RUN.optim, learning_rate=0.5)), "config.optim.learning_rate: 0.01 -> 0.5"),
        (replace(RUN, seed=3), "config.seed: 0 -> 3"),
        (replace(RUN, num_epochs=4), "config.num_epochs: 3 -> 4"),
        (replace(RUN, model=replace(MODEL, width=2)), "config.model.width: 4 -> 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_changed_config_is_refused_by_name(tiny_data, begun, changed, named):
    before = sorted(begun.rglob("*"))
    with pytest.raises(ResultsError, match="holds a run with other settings") as caught:
        fit(changed, tiny_data, begun, devices=ONE)
    assert named in str(caught.value)
    assert "width" in named or "width" not in str(caught.value), "fields that agree are not named"
    assert sorted(begun.rglob("*")) == before


def test_another_data_set_is_refused(tiny_data, begun):
    images = tiny_data.test.images.copy()
    images[-1, -1, -1, -1] ^= 1
    other = tiny_data._replace(test=Split(images, tiny_data.test.labels))
    with pytest.raises(ResultsError, match=r"data\.crc32"):
        fit(RUN, other, begun, devices=ONE)


@pytest.mark.parametrize(
    "config, message",
    [
        (replace(RUN, train_size=301), "train_size=301: the data set has 300 training images"),
        (replace(RUN, val_size=300), "val_size=300: must be at least 0 and below the 300"),
        (replace(RUN, batch_size=257), "batch_size=257: must be at most the 256 training images"),
        (replace(RUN, model=replace(MODEL, num_classes=9)), "num_classes=9: .* labels go from 0 to 9"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_that_does_not_fit_the_data_is_refused(tiny_data, tmp_path, config, message):
    with pytest.raises(ConfigError, match=message):
        fit(config, tiny_data, tmp_path / "run", devices=ONE)
    assert not (tmp_path / "run").exists()


def test_data_of_another_form_is_refused(tiny_data):
    """`check_data` has tests of its own; `fit` asks it."""
    images, labels = tiny_data.train
    scaled = tiny_data._replace(train=Split((images / 255).astype(np.float32), labels))
    with pytest.raises(DataError, match="train split: expected images uint8"):
        fit(RUN, scaled, devices=ONE)


def test_history_holds_json_types_only(result):
    assert result.summary["earlier_backends"] == []
    for row in [*result.history, {k: v for k, v in result.summary.items() if k != "earlier_backends"}]:
        assert all(type(value) in (int, float, str, type(None)) for value in without_times(row).values()), row
