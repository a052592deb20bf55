"""The weights of a checkpoint, and class probabilities from them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxresnet.config import TrainConfig, from_dict
from jaxresnet.data.augment import normalise
from jaxresnet.errors import ConfigError, DataError, ResultsError
from jaxresnet.files import is_number, is_whole
from jaxresnet.nn.resnet import build_model
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.training.checkpoint import Checkpoints
from jaxresnet.training.compilation import compile_lowered
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.state import create_train_state, eval_variables


class Loaded(NamedTuple):
    """What `load_variables` gives.

    config: the run; of a folder that `convert` made only `config.model` is known, the rest are defaults. variables:
    {"params", "batch_stats"} of the chosen epoch, for `Model.apply`. step: optimiser steps taken by then. weights:
    which of Lookahead's they are, "fast" without it. record: the JSON part of the
    newest checkpoint; its "history" has a row for each finished epoch, as `fit` returns.
    """

    config: TrainConfig
    variables: dict
    step: int
    weights: Literal["fast", "slow"]
    record: dict[str, Any]


def load_variables(checkpoint_dir: str | Path, weights: Literal["fast", "slow"] | None = None) -> Loaded:
    """The weights and batch statistics of a run's chosen epoch.

    checkpoint_dir: a run's checkpoint folder (out/<name>/checkpoints/<arm>-seed<k>, or `fit`'s workdir).
    weights: Lookahead's fast or slow ones; None takes those that the run was scored on.
    Raises ResultsError where there is no checkpoint, ConfigError for other `weights`, and for any where the folder
    holds one set.
    """
    if weights not in (None, "fast", "slow"):
        raise ConfigError(f"weights={weights!r}: must be one of 'fast', 'slow'")
    if not Path(checkpoint_dir).is_dir():
        what = "a file, no folder; `convert` makes one of it" if Path(checkpoint_dir).is_file() else "no such folder"
        raise ResultsError(f"{checkpoint_dir}: {what}; give a run's checkpoint folder")
    with Checkpoints(checkpoint_dir, read_only=True) as checkpoints:
        last = checkpoints.last_step()
        if last is None:
            raise ResultsError(f"{checkpoint_dir}: holds no checkpoint; give a run's checkpoint folder")
        record = checkpoints.record(last)
        config: TrainConfig = from_dict(TrainConfig, record["config"], f"{checkpoint_dir}: config")
        if weights is not None and not config.optim.lookahead:
            raise ConfigError(f"weights={weights!r}: {checkpoint_dir} holds one set of weights, as it has no Lookahead")
        _check_record(checkpoint_dir, record)
        step = record["best_step"] or last
        tx = make_step_optimizer(config.optim, hypers_of(config.optim))
        state = create_train_state(build_model(config.model), tx, 0)
        state = checkpoints.restore(step, state, zero_totals()).state
    weights = weights or (config.eval_weights if config.optim.lookahead else "fast")
    return Loaded(config, eval_variables(state, weights), step, weights, record)


def _check_record(folder: str | Path, record: dict[str, Any]) -> None:
    """Raise ResultsError unless the record says what is asked of it here and in `weight_files`, in the right types."""
    rows, converted = record.get("history"), record.get("converted", {})
    parts = {
        "best_step": _is_whole_or_none(record.get("best_step", "missing")),
        "history": isinstance(rows, list) and all(map(_is_row, rows)),
        "converted": isinstance(converted, dict)
        and _is_percent_or_none(converted.get("accuracy"))
        and _is_whole_or_none(converted.get("epoch"))
        and converted.get("weights") in (None, "fast", "slow")
        and isinstance(converted.get("config"), dict | None),
    }
    for part, is_valid in parts.items():
        if not is_valid:
            raise ResultsError(f"{folder}: {part!r} of the checkpoint's record is missing or malformed; restore a copy")


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(is_whole(row.get(name), 2**53) for name in ("step", "epoch"))
        and all(_is_percent_or_none(row.get(name, "missing")) for name in ("val_accuracy", "test_accuracy"))
    )


def _is_whole_or_none(value: Any) -> bool:
    return value is None or is_whole(value, 2**31 - 1)


def _is_percent_or_none(value: Any) -> bool:
    return value is None or is_number(value, 100)


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
    config, variables, *_ = load_variables(checkpoint_dir)
    platform = jax.default_backend()
    model = build_model(config.model, platform=platform)

    @jax.jit
    def probabilities(variables: dict, batch: jax.Array) -> jax.Array:
        return jax.nn.softmax(model.apply(variables, normalise(batch), False)[0])

    @cache
    def program(size: int) -> Callable[..., jax.Array]:
        batch = jax.ShapeDtypeStruct((size, 32, 32, 3), np.uint8)
        return compile_lowered(probabilities.lower(variables, batch), platform)

    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    parts = [np.asarray(program(len(batch))(variables, batch)) for batch in batches]
    return np.concatenate([*parts, np.zeros((0, config.model.num_classes), np.float32)])
