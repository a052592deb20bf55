"""Schedules, and the numbers of an optimiser, step by step. They are computed on the host with NumPy.

The train step takes these numbers as arguments (`epoch_hypers`, `at_step`), so that one compiled program serves all
learning rates and all schedules.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxresnet.config import OptimConfig
from jaxresnet.errors import ConfigError

# Defaults of PyTorch's OneCycleLR. The rate starts at peak / 25 and ends at peak / 25 / 10,000. The momentum cycles
# against it: MAX at the start and the end, BASE at the rate's peak.
ONECYCLE_DIV, ONECYCLE_FINAL_DIV = 25.0, 1e4
ONECYCLE_MAX_MOMENTUM, ONECYCLE_BASE_MOMENTUM = 0.95, 0.85

Schedule = Callable[[ArrayLike], np.ndarray]


# ------------------------------------------------------------------------------------- the numbers of an optimiser


class Hypers(NamedTuple):
    """The numbers of an optimiser that change no shape: scalars for one step. For the steps of an epoch those of
    `PER_STEP` are arrays (steps_per_epoch,)."""

    learning_rate: ArrayLike
    b1: ArrayLike
    b2: ArrayLike
    eps: ArrayLike
    momentum: ArrayLike
    weight_decay: ArrayLike
    slow_step_size: ArrayLike


PER_STEP = ("learning_rate", "b1", "momentum")  # the numbers that a schedule may move from step to step


def hypers_of(config: OptimConfig) -> Hypers:
    """The config's own numbers, Python floats: the learning rate is the schedule's peak."""
    return Hypers(*(getattr(config, name) for name in Hypers._fields))


def epoch_hypers(config: OptimConfig, steps_per_epoch: int, num_epochs: int, epoch: int) -> Hypers:
    """The numbers for the steps of one epoch: NumPy float32, (steps_per_epoch,) for those of `PER_STEP`, else scalars.

    epoch: 0 for the first.
    """
    finished = epoch * steps_per_epoch + np.arange(steps_per_epoch)
    rates = make_schedule(config, steps_per_epoch, num_epochs)(finished)
    momenta = make_momentum_schedule(config, steps_per_epoch, num_epochs)(finished)
    hypers = hypers_of(config)._replace(**{"learning_rate": rates, momentum_name(config): momenta})
    return Hypers(*(np.asarray(number, np.float32) for number in per_step(hypers, steps_per_epoch)))


def per_step(hypers: Hypers, num_steps: int) -> Hypers:
    """The numbers of `PER_STEP` as (num_steps,): a scalar is every step's."""
    return hypers._replace(**{name: np.broadcast_to(getattr(hypers, name), num_steps) for name in PER_STEP})


def at_step(hypers: Hypers, index: ArrayLike) -> Hypers:
    """The numbers of one step of an epoch, all scalars. Works under jit, with a traced index."""
    return hypers._replace(**{name: jnp.asarray(getattr(hypers, name))[index] for name in PER_STEP})


# -------------------------------------------------------------------------------------------------- the schedules


def make_schedule(config: OptimConfig, steps_per_epoch: int, num_epochs: int) -> Schedule:
    """The learning rate as a function of the number of finished optimiser steps (0 for the first step).

    With schedule_unit="step" the curve moves every step; with "epoch" it moves once an epoch, as in the published
    project. Its length is schedule_length units, or the run's own. Past its end the last value stays. The function
    takes numbers and arrays of NumPy, and returns float32 of their shape. It is for the host: under jit use
    `make_optimizer`, or a table of its values. Raises ConfigError for lengths below 1.
    """
    for name, value in (("steps_per_epoch", steps_per_epoch), ("num_epochs", num_epochs)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ConfigError(f"{name}={value!r}: must be a whole number, 1 or more")

    def rate(finished: ArrayLike) -> np.ndarray:
        t, length = _position(config, steps_per_epoch, num_epochs, finished)
        return config.learning_rate * _curve(config.schedule, t, length, config.warmup_fraction)

    return rate


def make_momentum_schedule(config: OptimConfig, steps_per_epoch: int, num_epochs: int) -> Schedule:
    """Adam's b1, or SGD's momentum, as a function of the number of finished optimiser steps, as `make_schedule`.

    It is the config's own number, unless `cycle_momentum` is set: then it falls from 0.95 to 0.85 while the learning
    rate rises, and rises again while that falls, as PyTorch's OneCycleLR does with its defaults.
    """
    high, low = ONECYCLE_MAX_MOMENTUM, ONECYCLE_BASE_MOMENTUM

    def momentum(finished: ArrayLike) -> np.ndarray:
        if not config.cycle_momentum:
            return np.full(np.shape(finished), getattr(config, momentum_name(config)), np.float32)
        t, length = _position(config, steps_per_epoch, num_epochs, finished)
        return _one_cycle(high, low, high, t, length, config.warmup_fraction)

    return momentum


def momentum_name(config: OptimConfig) -> Literal["b1", "momentum"]:
    """Which of `Hypers` is the momentum of the config's optimiser."""
    return "momentum" if config.optimizer == "sgd" else "b1"


def _position(
    config: OptimConfig, steps_per_epoch: int, num_epochs: int, finished: ArrayLike
) -> tuple[np.ndarray, int]:
    """(the position after so many steps, at most the length; the schedule's length), both in the schedule's unit."""
    per_epoch = config.schedule_unit == "epoch"
    length = config.schedule_length or (num_epochs if per_epoch else num_epochs * steps_per_epoch)
    units = np.asarray(finished) // steps_per_epoch if per_epoch else finished
    return np.minimum(np.asarray(units, np.float32), np.float32(length)), length


def _curve(name: str, t: np.ndarray, length: int, warmup_fraction: float) -> np.ndarray:
    """The schedule of that name at the positions `t`, each in 0..length. Its peak is 1."""
    warmup = warmup_fraction * length
    rest = max(length - warmup, 1e-9)
    rising = np.clip(t / warmup, 0, 1) if warmup else np.ones_like(t)
    match name:
        case "constant":
            return np.ones_like(t)
        case "cosine":  # Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983, without restarts
            return _cosine(1, 0, t / length)
        case "warmup":
            return rising
        case "warmup_cosine":
            return np.where(t < warmup, rising, _cosine(1, 0, (t - warmup) / rest))
        case "triangular":
            return np.where(t < warmup, rising, np.clip((length - t) / rest, 0, 1))
        case _:
            start = 1 / ONECYCLE_DIV
            return _one_cycle(start, 1, start / ONECYCLE_FINAL_DIV, t, length, warmup_fraction)


def _one_cycle(start: float, peak: float, end: float, t: np.ndarray, length: int, warmup_fraction: float) -> np.ndarray:
    """OneCycle (Smith and Topin 2017, https://arxiv.org/abs/1708.07120) with PyTorch's cosine phases: the first reaches
    `peak` at warmup_fraction * length - 1, the second reaches `end` at length - 1."""
    top, last = warmup_fraction * length - 1, length - 1
    return np.where(
        t <= top,
        _cosine(start, peak, t / max(top, 1e-9)),
        _cosine(peak, end, (t - top) / max(last - top, 1e-9)),
    )


def _cosine(start: float, end: float, fraction: np.ndarray) -> np.ndarray:
    """Half a wave from `start` to `end`."""
    return end + (start - end) / 2 * (1 + np.cos(np.pi * np.clip(fraction, 0, 1)))
