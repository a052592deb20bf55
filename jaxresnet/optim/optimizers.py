"""Schedules, SGD, Adam, AdamW and Lookahead, as Optax transformations.

Numbers that change no shape (`Hypers`) may be traced, so that one compiled step serves all learning rates.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxresnet.config import OptimConfig

# Defaults of PyTorch's OneCycleLR: starts at peak / 25, ends at peak / 25 / 10,000.
ONECYCLE_DIV, ONECYCLE_FINAL_DIV = 25.0, 1e4
# And of the momentum that it cycles against the rate: at the start and the end, and at the rate's peak.
ONECYCLE_MAX_MOMENTUM, ONECYCLE_BASE_MOMENTUM = 0.95, 0.85


Number = float | np.ndarray | Array


class Hypers(NamedTuple):
    """The numbers of an optimiser that change no shape, as Python floats or float32 scalars.

    learning_rate: the peak. For the steps of `steps.make_steps` the numbers of `PER_STEP` are (steps_per_epoch,)
    float32, those of each step of an epoch.
    """

    learning_rate: Number
    b1: Number
    b2: Number
    eps: Number
    momentum: Number
    weight_decay: Number
    slow_step_size: Number


PER_STEP = ("learning_rate", "b1", "momentum")  # the numbers that a schedule may move from step to step


def hypers_of(config: OptimConfig) -> Hypers:
    return Hypers(*(getattr(config, name) for name in Hypers._fields))


def per_step(hypers: Hypers, num_steps: int) -> Hypers:
    """The numbers of `PER_STEP` as (num_steps,): a scalar is every step's, one a step stays."""

    def one_each(number: Number) -> Number:
        return _numpy_of(number).broadcast_to(number, (num_steps,))

    return hypers._replace(**{name: one_each(getattr(hypers, name)) for name in PER_STEP})


def at_step(hypers: Hypers, index: Array) -> Hypers:
    """The numbers, all scalars, of one step of an epoch, from those of `per_step`."""
    return hypers._replace(**{name: jnp.asarray(getattr(hypers, name))[index] for name in PER_STEP})


def epoch_hypers(config: OptimConfig, steps_per_epoch: int, num_epochs: int, epoch: int) -> Hypers:
    """The numbers for the steps of one epoch, of NumPy: those of `PER_STEP` are (steps_per_epoch,) float32, one a step,
    the others float32 scalars. Nothing runs on a device, and nothing is compiled for a schedule that was not seen."""
    counts = epoch * steps_per_epoch + np.arange(steps_per_epoch)
    rates = make_schedule(config, steps_per_epoch, num_epochs)(counts)
    momenta = make_momentum_schedule(config, steps_per_epoch, num_epochs)(counts)
    hypers = hypers_of(config)._replace(**{"learning_rate": rates, _momentum_name(config): momenta})
    return jax.tree.map(np.float32, per_step(hypers, steps_per_epoch))


def make_schedule(config: OptimConfig, steps_per_epoch: int, num_epochs: int) -> Callable[[Any], Any]:
    """The learning rate as a function of the number of finished optimiser steps (0 for the first step).

    With schedule_unit="step" the curve moves every step; with "epoch" it moves once an epoch, as in the published
    project. Its length is schedule_length units, or the run's own. Past its end the last value stays. Returns float32
    of count's shape: an array of JAX, which may be traced, gives one of JAX, all else one of NumPy.
    """
    relative = _relative_schedule(config, steps_per_epoch, num_epochs)
    return lambda count: config.learning_rate * relative(count)


def _relative_schedule(config: OptimConfig, steps_per_epoch: int, num_epochs: int) -> Callable[[Any], Any]:
    """`make_schedule` with a peak of 1, so that the learning rate can be traced."""
    length, position = _timeline(config, steps_per_epoch, num_epochs)
    curve = _curve(config.schedule, length, config.warmup_fraction)
    return lambda count: curve(position(count))


def make_momentum_schedule(config: OptimConfig, steps_per_epoch: int, num_epochs: int) -> Callable[[Any], Any]:
    """Adam's b1, or SGD's momentum, as a function of the number of finished optimiser steps (0 for the first step).

    The config's own number, always, unless `cycle_momentum` is set: then it falls from 0.95 to 0.85 while the learning
    rate rises and goes back while that falls, as PyTorch's OneCycleLR does with its defaults. Units, length and what is
    returned are as in `make_schedule`.
    """
    if not config.cycle_momentum:
        constant = getattr(config, _momentum_name(config))
        return lambda count: _numpy_of(count).full(np.shape(count), constant, np.float32)
    length, position = _timeline(config, steps_per_epoch, num_epochs)
    high, low = ONECYCLE_MAX_MOMENTUM, ONECYCLE_BASE_MOMENTUM
    curve = _one_cycle(high, low, high, length, config.warmup_fraction)
    return lambda count: curve(position(count))


def _momentum_name(config: OptimConfig) -> Literal["b1", "momentum"]:
    return "momentum" if config.optimizer == "sgd" else "b1"


def _numpy_of(x: Any) -> Any:
    """jax.numpy for JAX's arrays, which may be traced, else NumPy: the host knows the next rates without a device."""
    return jnp if isinstance(x, Array) else np


def _timeline(config: OptimConfig, steps_per_epoch: int, num_epochs: int) -> tuple[int, Callable[[Any], Any]]:
    """(the schedule's length in its own unit, a function from the number of finished steps to the position in it)."""
    per_epoch = config.schedule_unit == "epoch"
    length = config.schedule_length or (num_epochs if per_epoch else num_epochs * steps_per_epoch)

    def position(count: Any) -> Any:
        xp = _numpy_of(count)
        finished = count // steps_per_epoch if per_epoch else count
        return xp.minimum(xp.asarray(finished, np.float32), np.float32(length))

    return length, position


def _cosine(start: float, end: float, fraction: Any) -> Any:
    xp = _numpy_of(fraction)
    return end + (start - end) / 2 * (1 + xp.cos(np.pi * xp.clip(fraction, 0, 1)))


def _one_cycle(start: float, peak: float, end: float, length: int, warmup_fraction: float) -> Callable[[Any], Any]:
    """OneCycle (Smith and Topin 2017) over t in 0..length, with PyTorch's cosine phases: the first reaches `peak` at
    warmup_fraction * length - 1, the second reaches `end` at length - 1."""
    top, last = warmup_fraction * length - 1, length - 1
    return lambda t: _numpy_of(t).where(
        t <= top,
        _cosine(start, peak, t / max(top, 1e-9)),
        _cosine(peak, end, (t - top) / max(last - top, 1e-9)),
    )


def _curve(name: str, length: int, warmup_fraction: float) -> Callable[[Any], Any]:
    """Peak-1 curves over t in 0..length."""
    warmup = warmup_fraction * length
    rest = max(length - warmup, 1e-9)

    def constant(t: Any) -> Any:
        return _numpy_of(t).ones_like(t)

    def rise(t: Any) -> Any:
        return _numpy_of(t).clip(t / warmup, 0, 1) if warmup else constant(t)

    if name == "constant":
        return constant
    if name == "cosine":  # Loshchilov and Hutter 2016, without restarts
        return lambda t: _cosine(1.0, 0.0, t / length)
    if name == "warmup":
        return rise
    if name == "warmup_cosine":
        return lambda t: _numpy_of(t).where(t < warmup, rise(t), _cosine(1.0, 0.0, (t - warmup) / rest))
    if name == "triangular":
        return lambda t: _numpy_of(t).where(t < warmup, rise(t), _numpy_of(t).clip((length - t) / rest, 0, 1))
    return _one_cycle(1 / ONECYCLE_DIV, 1.0, 1 / ONECYCLE_DIV / ONECYCLE_FINAL_DIV, length, warmup_fraction)


def make_optimizer(
    config: OptimConfig, steps_per_epoch: int, num_epochs: int, hypers: Hypers | None = None
) -> optax.GradientTransformation:
    """The whole optimiser: weight decay, the direction, the schedule, and Lookahead around them.

    hypers: replaces the config's numbers, usually by traced scalars; where `config.cycle_momentum` is set, the cycle
    replaces its b1 or momentum. The state has the same structure with and without the cycle. `update` needs `params`.
    """
    h = hypers if hypers is not None else hypers_of(config)
    relative = _relative_schedule(config, steps_per_epoch, num_epochs)
    # Adding a decay that may be zero costs nothing next to the step, and one program serves all values.
    decay = optax.add_decayed_weights(h.weight_decay)
    rate = optax.scale_by_schedule(lambda count: -h.learning_rate * relative(count))

    def with_momentum(momentum: Number) -> optax.GradientTransformation:
        if config.optimizer == "sgd":
            return optax.chain(decay, optax.trace(momentum, nesterov=config.nesterov), rate)
        adam = optax.scale_by_adam(momentum, h.b2, h.eps)
        return optax.chain(decay, adam, rate) if config.optimizer == "adam" else optax.chain(adam, decay, rate)

    inner = with_momentum(getattr(h, _momentum_name(config)))
    if config.cycle_momentum:
        momentum_at = make_momentum_schedule(config, steps_per_epoch, num_epochs)

        def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            finished = state[-1].count  # the learning rate's own count of steps, the chain's last part
            return with_momentum(momentum_at(finished)).update(grads, state, params)

        inner = optax.GradientTransformation(inner.init, update)
    if not config.lookahead:
        return inner
    return lookahead(inner, config.sync_period, h.slow_step_size, config.lookahead_momentum)


class LookaheadState(NamedTuple):
    """count: int32 scalar, fast steps taken. slow_params: as params. slow_momentum: the momentum at the last
    synchronisation ("pullback" only, else empty). inner: the wrapped optimiser's state."""

    count: Array  # type: ignore[assignment]  # hides tuple.count, as every Optax state does
    slow_params: Any
    slow_momentum: Any
    inner: Any


def lookahead(
    inner: optax.GradientTransformation,
    sync_period: int = 5,
    slow_step_size: Number = 0.5,
    momentum: Literal["none", "reset", "pullback"] = "none",
) -> optax.GradientTransformation:
    """Lookahead (Zhang, Lucas, Hinton and Ba 2019, https://arxiv.org/abs/1907.08610, algorithm 1).

    The inner optimiser moves the fast weights, which are the `params` it is given. Every `sync_period` (k) steps the
    slow weights go `slow_step_size` (alpha) of the way to the fast ones, and the fast ones restart from there:

        slow <- slow + alpha (fast - slow);  fast <- slow

    The slow weights live in the state, so the train state has one `params` tree. k=1 with alpha=1 is the inner
    optimiser. `momentum` says what a synchronisation does to the inner momentum (SGD's trace, Adam's first moment):
    "none" keeps it, "reset" sets it to zero, "pullback" moves it as the weights, from its value at the last
    synchronisation (zero at first; appendix B of the paper). Nothing else of the inner state changes: a schedule's
    count goes on. Unlike `optax.lookahead`, gradients and updates are those of the fast weights alone.

    `update` must be given `params`. Raises ValueError for sync_period below 1 or an unknown `momentum`.
    """
    if sync_period < 1:
        raise ValueError(f"sync_period={sync_period}: must be at least 1")
    if momentum not in ("none", "reset", "pullback"):
        raise ValueError(f"momentum={momentum!r}: must be one of 'none', 'reset', 'pullback'")

    def init(params: Any) -> LookaheadState:
        inner_state = inner.init(params)
        slow = jax.tree.map(jnp.copy, params)  # a copy, as an alias of the fast weights could not be donated
        kept = jax.tree.map(jnp.zeros_like, _momentum_of(inner_state)) if momentum == "pullback" else ()
        return LookaheadState(jnp.zeros((), jnp.int32), slow, kept, inner_state)

    def update(grads: Any, state: LookaheadState, params: Any = None) -> tuple[Any, LookaheadState]:
        if params is None:
            raise ValueError("lookahead needs the fast weights: call update(grads, state, params)")
        updates, inner_state = inner.update(grads, state.inner, params)
        count = optax.safe_increment(state.count)
        sync = count % sync_period == 0

        def where_sync(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(sync, a, b), new, old)

        def towards(fast: Any, slow: Any) -> Any:
            return jax.tree.map(lambda f, s: s + slow_step_size * (f - s), fast, slow)

        slow = where_sync(towards(optax.apply_updates(params, updates), state.slow_params), state.slow_params)
        to_slow = jax.tree.map(jnp.subtract, slow, params)
        updates = where_sync(to_slow, updates)

        slow_momentum = state.slow_momentum
        if momentum != "none":
            fast_momentum = _momentum_of(inner_state)
            if momentum == "reset":
                new_momentum = jax.tree.map(jnp.zeros_like, fast_momentum)
            else:
                new_momentum = towards(fast_momentum, slow_momentum)
                slow_momentum = where_sync(new_momentum, slow_momentum)
            inner_state = _with_momentum(inner_state, where_sync(new_momentum, fast_momentum))
        return updates, LookaheadState(count, slow, slow_momentum, inner_state)

    return optax.GradientTransformation(init, update)


# The states that hold a momentum, and the field it is in.
_MOMENTUM_FIELD: dict[type, str] = {optax.TraceState: "trace", optax.ScaleByAdamState: "mu"}


def _is_momentum_state(x: Any) -> bool:
    return type(x) in _MOMENTUM_FIELD


def _momentum_of(inner_state: Any) -> list[Any]:
    """The momentum trees inside an Optax state, in a fixed order."""
    nodes = jax.tree.leaves(inner_state, is_leaf=_is_momentum_state)
    return [getattr(n, _MOMENTUM_FIELD[type(n)]) for n in nodes if _is_momentum_state(n)]


def _with_momentum(inner_state: Any, momenta: list[Any]) -> Any:
    """`inner_state` with its momentum trees replaced, in the order of `_momentum_of`."""
    rest = iter(momenta)

    def replace(node: Any) -> Any:
        return node._replace(**{_MOMENTUM_FIELD[type(node)]: next(rest)}) if _is_momentum_state(node) else node

    return jax.tree.map(replace, inner_state, is_leaf=_is_momentum_state)


def slow_params_of(opt_state: Any, params: Any) -> Any:
    """Lookahead's slow weights, or `params` where the optimiser has none."""
    return opt_state.slow_params if isinstance(opt_state, LookaheadState) else params


def make_step_optimizer(config: OptimConfig, hypers: Hypers) -> optax.GradientTransformation:
    from dataclasses import replace

    fixed = replace(config, schedule="constant", schedule_unit="step", schedule_length=None, cycle_momentum=False)
    return make_optimizer(fixed, 1, 1, hypers)
