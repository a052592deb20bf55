"""Class probabilities from a checkpoint."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxresnet.augment import normalise
from jaxresnet.checkpoint import Checkpoints
from jaxresnet.config import TrainConfig, from_dict
from jaxresnet.errors import DataError, ResultsError
from jaxresnet.metrics import zero_totals
from jaxresnet.model import build_model
from jaxresnet.optim import make_optimizer
from jaxresnet.state import create_train_state, eval_variables


def predict(checkpoint_dir: str | Path, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
    """Probabilities of every class for raw images, from the chosen epoch of a run.

    checkpoint_dir: a run's checkpoint folder (out/<name>/checkpoints/<arm>-seed<k>, or `fit`'s workdir).
    images: (N, 32, 32, 3) uint8, RGB, not normalised. Returns (N, num_classes) float32, rows that sum to 1.
    Uses the weights (fast or slow) that the run was scored on. Raises ResultsError where there is no checkpoint,
    DataError for other images.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        raise DataError(f"images: expected uint8 of shape (N, 32, 32, 3), found {images.dtype} of {images.shape}")
    if not Path(checkpoint_dir).is_dir():
        raise ResultsError(f"{checkpoint_dir}: no such folder; give a run's checkpoint folder")
    with Checkpoints(checkpoint_dir, read_only=True) as checkpoints:
        last = checkpoints.last_step()
        if last is None:
            raise ResultsError(f"{checkpoint_dir}: holds no checkpoint; give a run's checkpoint folder")
        record = checkpoints.record(last)
        config: TrainConfig = from_dict(TrainConfig, record["config"], f"{checkpoint_dir}: config")
        step = record["best_step"] or last
        model = build_model(config.model)
        state = create_train_state(model, make_optimizer(config.optim, 1, 1), 0)
        state = checkpoints.restore(step, state, zero_totals()).state
    variables = eval_variables(state, config.eval_weights)

    @jax.jit
    def probabilities(batch: jax.Array) -> jax.Array:
        return jax.nn.softmax(model.apply(variables, normalise(batch), False)[0])

    parts = [probabilities(jnp.asarray(images[i : i + batch_size])) for i in range(0, len(images), batch_size)]
    return np.concatenate([*map(np.asarray, parts), np.zeros((0, config.model.num_classes), np.float32)])
