"""Probabilities from a checkpoint: those of the chosen epoch and the scored weights, and refusals."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support.tiny import RUN, stop_after

import jaxresnet.training.compilation
import jaxresnet.training.fit
from jaxresnet.errors import DataError, ResultsError
from jaxresnet.nn.resnet import build_model
from jaxresnet.training.compilation import compiler_options
from jaxresnet.training.fit import Interrupted, fit
from jaxresnet.training.predict import predict
from jaxresnet.training.state import eval_variables

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """(checkpoint folder, result) of a run whose best epoch is not its last."""
    folder = tmp_path_factory.mktemp("run")
    score = jaxresnet.training.fit._Run._score

    def better_at_first(self, state, name):
        loss, accuracy = score(self, state, name)
        return (loss, accuracy) if name == "test" else (loss, 90.0 - self.epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxresnet.training.fit._Run, "_score", better_at_first)
        return folder, fit(RUN, tiny_data, folder, devices=ONE)


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
        weights: np.asarray(jax.nn.softmax(apply(eval_variables(result.state, weights), images, False)[0]))
        for weights in ("slow", "fast")
    }
    np.testing.assert_allclose(probabilities, expected["slow"], atol=1e-5)
    assert np.abs(expected["fast"] - expected["slow"]).max() > 1e-3


def test_an_option_that_this_xla_does_not_know_is_left_out(run, probabilities, tiny_data, monkeypatch):
    options = {jax.default_backend(): {**compiler_options(jax.default_backend()), "xla_of_another_version": "1"}}
    monkeypatch.setattr(jaxresnet.training.compilation, "COMPILER_OPTIONS", options)
    again = predict(run[0], tiny_data.test.images[:64], batch_size=64)
    assert again.tobytes() == probabilities[:64].tobytes()


def test_no_images_give_no_rows(run):
    assert predict(run[0], np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 10)


def test_a_run_that_was_stopped_in_its_first_epoch_predicts_from_there(tiny_data, tmp_path):
    config = replace(RUN, selection="last")
    with pytest.raises(Interrupted):
        fit(config, tiny_data, tmp_path, devices=ONE, should_stop=stop_after(2))
    assert predict(tmp_path, tiny_data.test.images[:3]).shape == (3, 10)


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
