"""The train state: arrays only. A run is `state -> state`."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxresnet.nn.resnet import Model
from jaxresnet.optim.lookahead import LookaheadState


class TrainState(NamedTuple):
    """Everything that a run is, besides its config and its data.

    step: int32 scalar, optimiser steps taken. params: nested dict, float32; Lookahead's fast weights.
    batch_stats: nested dict, float32, gathered on the fast weights.
    slow_batch_stats: the same for the slow weights; an empty dict without Lookahead.
    opt_state: Optax's, with Lookahead's slow weights inside. key: uint32 key data of the run's PRNG key.
    """

    step: Array
    params: Any
    batch_stats: Any
    slow_batch_stats: Any
    opt_state: Any
    key: Array


class Weights(NamedTuple):
    """What a network is evaluated with. Each is {"params", "batch_stats"}; `slow` is {} without Lookahead."""

    fast: dict[str, Any]
    slow: dict[str, Any]

    def variables(self, kind: Literal["fast", "slow"]) -> dict[str, Any]:
        """Those of one kind; without Lookahead there is one, whatever `kind`."""
        return self.slow if kind == "slow" and self.slow else self.fast


def as_key(data: Array) -> Array:
    """A typed key of uint32 key data (2,), of the generator whose numbers are the same on every platform, whatever
    JAX's settings make the default."""
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def create_train_state(model: Model, tx: optax.GradientTransformation, seed: Array | int) -> TrainState:
    """The state before the first step, from the seed alone. Works under jit with a traced seed."""
    # As `jax.random.key(seed)`, but without the offset and the generator that JAX's settings may add.
    init_key, run_key = jax.random.split(as_key(jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)])))
    variables = model.init(init_key)
    opt_state = tx.init(variables["params"])
    batch_stats = variables["batch_stats"]
    # A copy, as an alias of the fast statistics could not be donated.
    slow = jax.tree.map(jnp.copy, batch_stats) if isinstance(opt_state, LookaheadState) else {}
    return TrainState(
        jnp.zeros((), jnp.int32), variables["params"], batch_stats, slow, opt_state, jax.random.key_data(run_key)
    )


def sync_batch_stats(slow: Any, fast: Any, opt_state: Any, sync_period: int, slow_step_size: Any) -> Any:
    """Batch statistics that belong to the slow weights: averaged with them, at each synchronisation.

    The fast statistics were gathered on the fast weights and do not fit the slow ones. `opt_state` is the one after
    the update.
    """
    if not isinstance(opt_state, LookaheadState):
        return slow
    sync = lax.rem(opt_state.count, jnp.int32(sync_period)) == 0
    return jax.tree.map(lambda s, f: jnp.where(sync, s + slow_step_size * (f - s), s), slow, fast)


def weights_of(state: TrainState) -> Weights:
    """The weights and batch statistics inside a state, not copied."""
    fast = {"params": state.params, "batch_stats": state.batch_stats}
    if not isinstance(state.opt_state, LookaheadState):
        return Weights(fast, {})
    return Weights(fast, {"params": state.opt_state.slow_params, "batch_stats": state.slow_batch_stats})
