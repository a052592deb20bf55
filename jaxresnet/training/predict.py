"""The weights of a checkpoint, and class probabilities from them."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxresnet.config import TrainConfig, from_dict
from jaxresnet.data.augment import normalise
from jaxresnet.errors import ConfigError, DataError, ResultsError, short
from jaxresnet.files import local_path
from jaxresnet.hardware import all_devices
from jaxresnet.nn.resnet import build_model
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.training import checkpoint
from jaxresnet.training.compilation import compile_lowered, own_numerics
from jaxresnet.training.metrics import best_epoch
from jaxresnet.training.state import TrainState, create_train_state, weights_of


class Loaded(NamedTuple):
    """What `load_variables` gives.

    config: the run; of converted weights only `config.model` is known, the rest are defaults. variables: {"params",
    "batch_stats"} of the chosen epoch, for `Model.apply`. weights: which of Lookahead's they are, "fast" without it.
    row: the chosen epoch's row of the history, {} where the weights were converted. converted: what
    `convert` noted of them, {} for those of a run.
    """

    config: TrainConfig
    variables: dict[str, Any]
    weights: Literal["fast", "slow"]
    row: dict[str, Any]
    converted: dict[str, Any]


@own_numerics()
def load_variables(folder: str | Path, weights: Literal["fast", "slow"] | None = None) -> Loaded:
    """The weights and batch statistics of a run's chosen epoch.

    folder: a run (out/runs/<id>), its checkpoints, `fit`'s workdir, or a folder that `convert` made.
    weights: Lookahead's fast or slow ones; None takes those that the run was scored on.
    Raises ResultsError where there is no checkpoint, or no finished epoch in it, ConfigError for other `weights`, and
    for any where the folder holds one set.
    """
    if weights not in (None, "fast", "slow"):
        raise ConfigError(f"weights={weights!r}: must be one of 'fast', 'slow'")
    folder = local_path(folder)
    if not folder.is_dir():
        what = "a file, no folder; `convert` makes one of it" if folder.is_file() else "no such folder"
        raise ResultsError(f"{folder}: {what}; give a run's folder, as out/runs/<id>")
    inside = folder / "checkpoints"
    folder = inside if inside.is_dir() else folder
    step = next(iter(checkpoint.saved_steps(folder)), None)
    if step is None:
        raise ResultsError(f"{folder}: holds no checkpoint; give a run's folder, as out/runs/<id>")
    record = checkpoint.read_record(folder, step)
    if not record.history and not record.converted:
        raise ResultsError(f"{folder}: the run has not finished an epoch yet; continue it first")
    config: TrainConfig = from_dict(TrainConfig, record.config, f"{folder}: config")
    if weights is not None and not config.optim.lookahead:
        raise ConfigError(f"weights={weights!r}: {folder} holds one set of weights, as it has no Lookahead")
    like = weights_of(blank_state(config))
    kind = weights or (config.eval_weights if config.optim.lookahead else "fast")
    try:
        best = checkpoint.restore_best(folder, step, like)
    except checkpoint.DamagedError as e:
        raise checkpoint.DamagedError(f"{e}; restore a copy") from e
    row = record.history[best_epoch(config.selection, record.history)] if record.history else {}
    all_devices()  # raises a user's error where there is none
    return Loaded(config, jax.device_put(best.variables(kind)), kind, row, record.converted)


def blank_state(config: TrainConfig) -> TrainState:
    """The shapes and dtypes of a run's state. Nothing is computed."""
    tx = make_step_optimizer(config.optim, hypers_of(config.optim))
    return jax.eval_shape(lambda: create_train_state(build_model(config.model), tx, 0))


@own_numerics()
def predict(folder: str | Path, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
    """Probabilities of every class for raw images, from the chosen epoch of a run.

    folder: as `load_variables`. images: (N, 32, 32, 3) uint8, RGB, not normalised.
    Returns (N, num_classes) float32, rows that sum to 1. Uses the weights (fast or slow) that the run was scored on.
    batch_size: images a forward pass, 1 or more.
    Raises ResultsError where there is no checkpoint, DataError for other images, ConfigError for another batch size.
    """
    if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
        raise ConfigError(f"batch_size={short(batch_size)}: must be a whole number, 1 or more")
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        raise DataError(f"images: expected uint8 of shape (N, 32, 32, 3), found {images.dtype} of {images.shape}")
    config, variables, *_ = load_variables(folder)
    platform = jax.default_backend()
    model = build_model(config.model, platform=platform)

    @jax.jit
    def probabilities(variables: dict[str, Any], batch: jax.Array) -> jax.Array:
        return jax.nn.softmax(model.apply(variables, normalise(batch), False)[0])

    starts = range(0, len(images), batch_size)
    batches = [images[i : i + batch_size] for i in starts]
    programs = {
        len(b): compile_lowered(probabilities.lower(variables, b), platform) for b in batches[:1] + batches[-1:]
    }
    parts = [np.asarray(programs[len(batch)](variables, batch)) for batch in batches]
    return np.concatenate([*parts, np.zeros((0, config.model.num_classes), np.float32)])
