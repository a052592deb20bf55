"""Lookahead (Zhang, Lucas, Hinton and Ba 2019, https://arxiv.org/abs/1907.08610, algorithm 1).

An inner optimiser moves the fast weights. Every k steps the slow weights go a part alpha of the way to the fast ones,
and the fast ones restart from there:

    slow <- slow + alpha (fast - slow)
    fast <- slow

An Optax transformation returns what is to be added to the fast weights. Between synchronisations that is u, the inner
optimiser's update. At a synchronisation the inner optimiser has gone to fast + u, so

    slow <- slow + alpha (fast + u - slow)
    update = slow - fast
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike


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
    slow_step_size: ArrayLike = 0.5,
    momentum: Literal["none", "reset", "pullback"] = "none",
) -> optax.GradientTransformation:
    """Wrap `inner` in Lookahead. `params` are the fast weights; the slow ones live in the state.

    sync_period: k, 1 or more. slow_step_size: alpha, 0 to 1. momentum: what a synchronisation does to the inner
    momentum (SGD's trace, Adam's first moment): "none" keeps it, "reset" sets it to zero, "pullback" moves it as the
    weights, from its value at the last synchronisation (zero at first; appendix B of the paper). The rest of the inner
    state stays: a schedule goes on.

    k=1 with alpha=1 is the inner optimiser. Unlike `optax.lookahead`, gradients and updates are of the fast weights
    alone. Raises ValueError for numbers out of range, for an unknown `momentum`, and by `update` without `params`.
    """
    if not isinstance(sync_period, int | np.integer) or sync_period < 1:
        raise ValueError(f"sync_period={sync_period!r}: must be a whole number, at least 1")
    if not isinstance(slow_step_size, jax.core.Tracer) and not 0 <= np.asarray(slow_step_size) <= 1:
        raise ValueError(f"slow_step_size={slow_step_size}: must be 0 to 1")
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
        sync = jax.lax.rem(count, jnp.int32(sync_period)) == 0  # `%` would cost more than the update of a weight

        def where_sync(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(sync, a, b), new, old)

        def towards(fast: Any, slow: Any) -> Any:
            return jax.tree.map(lambda f, s: (s + slow_step_size * (f - s)).astype(s.dtype), fast, slow)

        slow = where_sync(towards(optax.apply_updates(params, updates), state.slow_params), state.slow_params)
        updates = where_sync(jax.tree.map(jnp.subtract, slow, params), updates)

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


def _holds_momentum(state: Any) -> bool:
    return type(state) in _MOMENTUM_FIELD


def _momentum_of(inner_state: Any) -> list[Any]:
    """The momentum trees inside an Optax state, in a fixed order."""
    states = filter(_holds_momentum, jax.tree.leaves(inner_state, is_leaf=_holds_momentum))
    return [getattr(state, _MOMENTUM_FIELD[type(state)]) for state in states]


def _with_momentum(inner_state: Any, momenta: list[Any]) -> Any:
    """`inner_state` with its momentum trees replaced, in the order of `_momentum_of`."""
    rest = iter(momenta)

    def replace(state: Any) -> Any:
        return state._replace(**{_MOMENTUM_FIELD[type(state)]: next(rest)}) if _holds_momentum(state) else state

    return jax.tree.map(replace, inner_state, is_leaf=_holds_momentum)
