"""Probabilities from a checkpoint: those of the chosen epoch and the scored weights, and refusals."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support.tiny import RUN, assert_same_bits, stop_after

from jaxresnet.errors import ConfigError, DataError, ResultsError
from jaxresnet.nn.resnet import build_model
from jaxresnet.training import engine
from jaxresnet.training.fit import Interrupted, fit
from jaxresnet.training.predict import load_variables, predict

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """(run's folder, result) of a run whose best epoch is not its last."""
    folder, epochs = tmp_path_factory.mktemp("run"), iter(range(3))
    evaluate = engine.evaluate

    def better_at_first(programs, variables, batches):
        sums = evaluate(programs, variables, batches)
        return sums if sums.count == 100 else sums._replace(correct=40 - next(epochs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "evaluate", better_at_first)
        return folder, fit(RUN, tiny_data, folder / "checkpoints", devices=ONE)


@pytest.fixture(scope="module")
def probabilities(run, tiny_data):
    return predict(run[0], tiny_data.test.images, batch_size=64)  # 64 and a batch of 36


def test_rows_are_probabilities(probabilities):
    assert probabilities.shape == (100, 10) and probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert probabilities.std(0).min() > 0, "they depend on the image"


def test_they_agree_with_the_accuracy_that_the_run_reports(probabilities, run, tiny_data):
    summary = run[1].summary
    correct = probabilities.argmax(1) == tiny_data.test.labels
    assert 100 * correct.mean() == pytest.approx(summary["test_accuracy"])
    loss = -np.log(probabilities[np.arange(100), tiny_data.test.labels]).mean()
    assert loss == pytest.approx(summary["test_loss"], rel=1e-5)


def test_they_are_of_the_best_epoch_and_the_scored_weights(probabilities, run, tiny_data):
    result = run[1]
    assert result.summary["best_epoch"] == 0 and result.summary["last_epoch"] == 2
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    images = ((tiny_data.test.images / 255 - mean) / std).astype(np.float32)
    apply = build_model(RUN.model).apply
    expected = {
        kind: np.asarray(jax.nn.softmax(apply(result.weights.variables(kind), images, False)[0]))
        for kind in ("slow", "fast")
    }
    np.testing.assert_allclose(probabilities, expected["slow"], atol=1e-5)
    assert np.abs(expected["fast"] - expected["slow"]).max() > 1e-3


def test_either_kind_of_weights_can_be_loaded(run):
    folder, result = run
    for kind in ("fast", "slow"):
        loaded = load_variables(folder, kind)
        assert_same_bits(loaded.variables, result.weights.variables(kind))
        assert loaded.weights == kind and loaded.row == result.history[0] and loaded.config == RUN
    assert load_variables(folder / "checkpoints").weights == "slow", "the one that was scored"
    with pytest.raises(ConfigError, match="weights='middle': must be one of"):
        load_variables(folder, "middle")


def test_without_lookahead_there_is_one_kind(tiny_data, tmp_path):
    config = replace(RUN, num_epochs=1, optim=replace(RUN.optim, lookahead=False))
    result = fit(config, tiny_data, tmp_path, devices=ONE)
    assert_same_bits(load_variables(tmp_path).variables, result.weights.fast)
    with pytest.raises(ConfigError, match="holds one set of weights"):
        load_variables(tmp_path, "slow")


def test_no_images_give_no_rows(run):
    assert predict(run[0], np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 10)


def test_a_run_that_was_stopped_in_its_first_epoch_has_nothing_to_predict_with(tiny_data, tmp_path):
    with pytest.raises(Interrupted):
        fit(RUN, tiny_data, tmp_path, devices=ONE, should_stop=stop_after(2))
    with pytest.raises(ResultsError, match="has not finished an epoch yet"):
        predict(tmp_path, tiny_data.test.images[:3])


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((2, 28, 28, 3), np.uint8),
        np.zeros((2, 32, 32, 1), np.uint8),
    ],
    ids=lambda images: f"{images.dtype} {images.shape}",
)
def test_other_images_are_refused(run, images):
    with pytest.raises(DataError, match=r"images: expected uint8 of shape \(N, 32, 32, 3\), found"):
        predict(run[0], images)


def test_a_folder_without_a_checkpoint_is_refused(tiny_data, tmp_path):
    images = tiny_data.test.images[:1]
    with pytest.raises(ResultsError, match="no such folder"):
        predict(tmp_path / "nowhere", images)
    with pytest.raises(ResultsError, match="holds no checkpoint"):
        predict(tmp_path, images)
    assert list(tmp_path.iterdir()) == []
