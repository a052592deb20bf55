"""One run: what it reports, that it learns, which epoch it chooses, how it continues, and what it refuses."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support.tiny import (
    PARTIAL,
    assert_same_bits,
    assert_same_run,
    leaves,
    numpy_scores,
    script_scores,
    stop_after,
    without_times,
)

from jaxresnet.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from jaxresnet.data.dataset import Split, split_validation
from jaxresnet.errors import ConfigError, DataError, Interrupted, NonFiniteError, ResultsError
from jaxresnet.optim.schedules import make_schedule
from jaxresnet.training import engine
from jaxresnet.training.checkpoint import saved_steps
from jaxresnet.training.fit import fit
from jaxresnet.training.metrics import Sums

pytestmark = pytest.mark.usefixtures("a_step_a_dispatch")
ONE = jax.devices()[:1]
BEST = replace(PARTIAL, eval_batch_size=60)  # 40 validation images, and 100 test images in batches of 60 and 40
LAST = replace(BEST, selection="last")  # so that the result's state is the last one


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """(result, its folder, what it told while it ran)."""
    folder, told = tmp_path_factory.mktemp("run"), []
    tell = {
        "on_epoch": lambda rows: told.append([row["epoch"] for row in rows]),
        "on_progress": lambda epoch, images: told.append((epoch, images)),
    }
    return fit(LAST, tiny_data, folder, devices=ONE, **tell), folder, told


@pytest.fixture
def result(run):
    return run[0]


# -------------------------------------------------------------------------------------------------- what it reports


def test_a_row_an_epoch_in_json_types(result):
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
    for row in [*result.history, {k: v for k, v in result.summary.items() if k != "earlier_backends"}]:
        assert all(type(value) in (int, float, str, type(None)) for value in without_times(row).values()), row


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
        "earlier_backends": [],
    }
    assert {name: result.summary[name] for name in expected} == expected
    assert result.summary["seconds"] == pytest.approx(sum(row["seconds"] for row in result.history), abs=1e-3)


def test_progress_is_told_of_every_step_and_epoch(run):
    steps = [64, 128, 192, 256, 260]
    expected = [*((0, n) for n in steps), [0], *((1, n) for n in steps), [0, 1], *((2, n) for n in steps), [0, 1, 2]]
    assert run[2] == expected


def test_scores_are_those_of_all_images_on_the_weights_asked_for(result, tiny_data):
    """Against NumPy: none dropped, none counted twice. The training is the same whichever weights are scored."""
    fast = fit(replace(LAST, eval_weights="fast"), tiny_data, devices=ONE)
    assert_same_bits(fast.state, result.state)
    _, val = split_validation(tiny_data.train, LAST.val_size, LAST.seed)
    for kind, found in (("slow", result), ("fast", fast)):
        assert found.summary["weights"] == kind
        row, summary = found.history[-1], found.summary
        expected = numpy_scores(LAST, result.weights, val, kind)
        np.testing.assert_allclose((row["val_loss"], row["val_accuracy"]), expected, rtol=1e-5)
        expected = numpy_scores(LAST, result.weights, tiny_data.test, kind)
        np.testing.assert_allclose((summary["test_loss"], summary["test_accuracy"]), expected, rtol=1e-5)
    assert abs(fast.history[-1]["val_loss"] - result.history[-1]["val_loss"]) > 1e-4


def test_another_seed_gives_another_run(result, tiny_data):
    """With a train_size, too, which counts validation images."""
    other = fit(replace(LAST, seed=1, train_size=264, val_size=4), tiny_data, devices=ONE)
    assert (other.summary["num_train"], other.summary["num_val"]) == (260, 4)
    assert other.history[0]["train_loss"] != result.history[0]["train_loss"]
    for (path, a), (_, b) in zip(leaves(other.state.params), leaves(result.state.params), strict=True):
        assert not np.array_equal(a, b), path


def test_a_handful_of_images_is_learnt_by_heart(tiny_data):
    """32 images of noise, 80 steps: from the loss of guessing, 2.3, to naming every one of them."""
    few = tiny_data._replace(train=Split(*(a[:32] for a in tiny_data.train)))
    config = TrainConfig(
        model=ModelConfig(stage_sizes=(1, 1), width=8, pool_size=16),
        augment=AugmentConfig(crop_padding=0, flip=False, cutout_size=0),
        optim=OptimConfig(learning_rate=3e-2),
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
    loss, accuracy = numpy_scores(config, result.weights, few.train, "slow")
    assert loss < 0.4 and accuracy == 100


# ----------------------------------------------------------------------------------------------- stop and continue


def test_resumed_equals_uninterrupted(result, tiny_data, tmp_path):
    """Stopped in the middle of the first epoch, at its end, and in the second."""
    told = []
    for calls, step in ((2, 2), (3, 5), (3, 8)):
        with pytest.raises(Interrupted, match=f"checkpoint in {tmp_path}"):
            stop = stop_after(calls)
            fit(LAST, tiny_data, tmp_path, devices=ONE, should_stop=stop, on_progress=lambda *at: told.append(at))
        assert saved_steps(tmp_path)[0] == step
    resumed = fit(LAST, tiny_data, tmp_path, devices=ONE, on_progress=lambda *at: told.append(at))
    assert len(told) == len(set(told)) == 15, "only what was missing is trained"
    assert_same_run(resumed, result)


def test_a_finished_run_is_not_trained_again(run, tiny_data, monkeypatch):
    monkeypatch.setattr(engine, "train", None)
    monkeypatch.setattr(engine, "compile_programs", None)
    assert_same_run(fit(LAST, tiny_data, run[1], devices=ONE), run[0])


def test_without_a_folder_nothing_can_continue(tiny_data):
    with pytest.raises(Interrupted, match="nothing was kept"):
        fit(LAST, tiny_data, devices=ONE, should_stop=stop_after(2))


# ------------------------------------------------------------------------------------------------- the chosen epoch


@pytest.mark.parametrize(
    "selection, val, test, best, splits",
    [
        pytest.param("val", (10, 30, 30), (55.5,), 1, "val val val test", id="val: the first best, and one test"),
        pytest.param("test", (9, 9, 9), (11, 44, 22), 1, "val test val test val test", id="test: as published"),
        pytest.param("last", (30, 20, 10), (55.5,), 2, "val val val test", id="last"),
    ],
)
def test_the_chosen_epoch_is_what_is_reported(tiny_data, monkeypatch, selection, val, test, best, splits):
    scored = script_scores(monkeypatch, val=val, test=test)
    config = replace(BEST, selection=selection, test_every_epoch=selection == "test")
    result = fit(config, tiny_data, devices=ONE)
    assert [split for split, _ in scored] == splits.split()
    assert (result.summary["best_epoch"], result.summary["val_accuracy"]) == (best, val[best])
    assert result.summary["test_accuracy"] == max(test)
    assert [row["test_accuracy"] for row in result.history] == (list(test) if selection == "test" else [None] * 3)
    of_best = [weights for split, weights in scored if split == "val"][best]
    of_test = [weights for split, weights in scored if split == "test"][best if selection == "test" else 0]
    assert_same_bits(dict(leaves(result.weights.slow)), dict(of_best))
    assert_same_bits(dict(of_test), dict(of_best))
    assert int(result.state.step) == 15


def test_the_best_epoch_survives_a_stop(tiny_data, tmp_path, monkeypatch):
    """Best in epoch 0, stopped in epoch 2: its weights are in the checkpoints since."""
    scored = script_scores(monkeypatch, val=(30, 20, 10), test=(55.5,))
    with pytest.raises(Interrupted):
        fit(BEST, tiny_data, tmp_path, devices=ONE, should_stop=stop_after(12))
    assert saved_steps(tmp_path) == [12, 10]
    result = fit(BEST, tiny_data, tmp_path, devices=ONE)
    assert result.summary["best_epoch"] == 0
    assert_same_bits(dict(leaves(result.weights.slow)), dict(scored[0][1]))


# --------------------------------------------------------------------------------------------------- not finite


def test_a_loss_that_is_not_finite_names_epoch_and_step_and_keeps_the_checkpoint(tiny_data, tmp_path):
    """Epoch 0 has a learning rate of zero, epoch 1 one that no float32 survives."""
    optim = OptimConfig(learning_rate=1e30, schedule="warmup", schedule_unit="epoch", warmup_fraction=1.0)
    steps = []
    for _ in range(2):  # the same command again: from the checkpoint into the same wall
        with pytest.raises(NonFiniteError, match=r"seed 0: .* epoch 2, step 1 of 5\. Try a lower learning rate"):
            config = replace(LAST, optim=optim)
            fit(config, tiny_data, tmp_path, devices=ONE, on_progress=lambda *at: steps.append(at))
        assert saved_steps(tmp_path) == [5]
    assert steps == [*((0, n) for n in (64, 128, 192, 256, 260)), (1, 64), (1, 64)], "it stops at once"


def test_a_validation_loss_that_is_not_finite_names_its_epoch(tiny_data, tmp_path, monkeypatch):
    """Running statistics lag behind the weights, so training may be well."""
    scored = iter([1.0, np.inf])
    monkeypatch.setattr(engine, "evaluate", lambda *_: Sums(next(scored), 1, 1))
    with pytest.raises(NonFiniteError, match=r"seed 0: the val loss is inf after epoch 2\."):
        fit(BEST, tiny_data, tmp_path, devices=ONE)
    assert saved_steps(tmp_path) == [5]


# ------------------------------------------------------------------------------------------------------- refusals


def test_the_folder_of_another_run_is_refused_by_what_differs_and_left_as_it_is(tiny_data, run):
    before = sorted(run[1].rglob("*"))
    changed = replace(LAST, seed=3, optim=replace(LAST.optim, learning_rate=0.5))
    images = tiny_data.test.images.copy()
    images[-1, -1, -1, -1] ^= 1
    other = tiny_data._replace(test=Split(images, tiny_data.test.labels))
    settings = r"config\.optim\.learning_rate: 0\.01 -> 0\.5; config\.seed: 0 -> 3"
    for config, data, what in ((changed, tiny_data, settings), (LAST, other, r"data\.crc32: \d+ -> \d+")):
        with pytest.raises(ResultsError, match=rf"{run[1]} holds a run with other settings \({what}\)"):
            fit(config, data, run[1], devices=ONE)
    assert sorted(run[1].rglob("*")) == before


def test_what_does_not_fit_is_refused_before_anything_is_written(tiny_data, tmp_path):
    """Everything that is refused: test_dataset.py and test_engine.py. `fit` asks."""
    scaled = tiny_data._replace(train=Split((tiny_data.train.images / 255).astype(np.float32), tiny_data.train.labels))
    with pytest.raises(DataError, match="train split: expected images uint8"):
        fit(LAST, scaled, tmp_path / "run", devices=ONE)
    for change, message in (({"val_size": 300}, "val_size=300: "), ({"batch_size": 261}, "batch_size=261: ")):
        with pytest.raises(ConfigError, match=message):
            fit(replace(LAST, **change), tiny_data, tmp_path / "run", devices=ONE)
    assert not (tmp_path / "run").exists()
