"""Probabilities from a checkpoint: those of the chosen epoch and the scored weights, and refusals."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support.tiny import RUN, assert_same_bits, numpy_scores, stop_after

from jaxresnet.errors import ConfigError, DataError, Interrupted, ResultsError
from jaxresnet.training import engine
from jaxresnet.training.fit import fit
from jaxresnet.training.predict import load_variables, predict

pytestmark = pytest.mark.usefixtures("a_step_a_dispatch")
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


def test_probabilities_are_of_the_best_epoch_and_the_scored_weights(run, tiny_data):
    folder, result = run
    assert (result.summary["best_epoch"], result.summary["last_epoch"]) == (0, 2)
    probabilities = predict(folder, tiny_data.test.images, batch_size=64)  # 64 and a batch of 36
    assert probabilities.shape == (100, 10) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    loss = -np.log(probabilities[np.arange(100), tiny_data.test.labels]).mean()
    accuracy = 100 * (probabilities.argmax(1) == tiny_data.test.labels).mean()
    slow, fast = (numpy_scores(RUN, result.weights, tiny_data.test, kind) for kind in ("slow", "fast"))
    for found in ((loss, accuracy), (result.summary["test_loss"], result.summary["test_accuracy"])):
        assert found == pytest.approx(slow, rel=1e-5)
    assert abs(fast[0] - slow[0]) > 1e-3
    assert predict(folder, np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 10)


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
    assert result.summary["weights"] == "fast" and result.weights.slow == result.state.slow_batch_stats == {}
    reported = result.summary["test_loss"], result.summary["test_accuracy"]
    assert reported == pytest.approx(numpy_scores(config, result.weights, tiny_data.test, "fast"), rel=1e-5)
    assert_same_bits(load_variables(tmp_path).variables, result.weights.fast)
    with pytest.raises(ConfigError, match="holds one set of weights"):
        load_variables(tmp_path, "slow")


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8),
    ],
    ids=lambda images: f"{images.dtype} {images.shape}",
)
def test_other_images_are_refused(run, images):
    with pytest.raises(DataError, match=r"images: expected uint8 of shape \(N, 32, 32, 3\), found"):
        predict(run[0], images)


def test_a_folder_without_a_finished_epoch_is_refused(tiny_data, tmp_path):
    images = tiny_data.test.images[:1]
    with pytest.raises(ResultsError, match="no such folder"):
        predict(tmp_path / "nowhere", images)
    with pytest.raises(ResultsError, match="holds no checkpoint"):
        predict(tmp_path, images)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Interrupted):
        fit(RUN, tiny_data, tmp_path, devices=ONE, should_stop=stop_after(2))
    with pytest.raises(ResultsError, match="has not finished an epoch yet"):
        predict(tmp_path, images)
