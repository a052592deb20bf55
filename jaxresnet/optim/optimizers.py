"""SGD, Adam and AdamW with PyTorch's order of operations, as Optax transformations."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxresnet.config import OptimConfig
from jaxresnet.optim.lookahead import LookaheadState, lookahead
from jaxresnet.optim.schedules import Hypers, hypers_of, make_momentum_schedule, make_schedule, momentum_name


def make_step_optimizer(config: OptimConfig, hypers: Hypers) -> optax.GradientTransformation:
    """The whole optimiser for one step, its numbers given: weight decay, the direction, the rate, and Lookahead around
    them.

    hypers: scalars, which may be traced; they replace the config's numbers and its schedule. The structure of the state
    does not depend on them. `update` needs `params`.
    """
    decay = optax.add_decayed_weights(hypers.weight_decay)  # also by 0, so that one program serves all values
    rate = optax.scale_by_schedule(lambda count: jnp.negative(hypers.learning_rate))  # counts the steps
    if config.optimizer == "sgd":
        inner = optax.chain(decay, optax.trace(hypers.momentum, nesterov=config.nesterov), rate)
    else:
        adam = optax.scale_by_adam(hypers.b1, hypers.b2, hypers.eps)
        inner = optax.chain(decay, adam, rate) if config.optimizer == "adam" else optax.chain(adam, decay, rate)
    if not config.lookahead:
        return inner
    return lookahead(inner, config.sync_period, hypers.slow_step_size, config.lookahead_momentum)


def make_optimizer(config: OptimConfig, steps_per_epoch: int, num_epochs: int) -> optax.GradientTransformation:
    """The whole optimiser with its schedule inside, for a train step of one's own.

    The schedule is a table, so that the number of finished steps may be traced. Past the run's end its last value
    stays. The state is that of `make_step_optimizer`, and `update` needs `params`.
    """
    num_steps = steps_per_epoch * num_epochs
    counts = np.arange(num_steps + 1)
    tables = {"learning_rate": make_schedule(config, steps_per_epoch, num_epochs)(counts)}
    if config.cycle_momentum:
        tables[momentum_name(config)] = make_momentum_schedule(config, steps_per_epoch, num_epochs)(counts)

    def after(finished: Array | int) -> optax.GradientTransformation:
        row = jnp.minimum(finished, num_steps)
        numbers = {name: jnp.asarray(table)[row] for name, table in tables.items()}
        return make_step_optimizer(config, hypers_of(config)._replace(**numbers))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        chain = state.inner if isinstance(state, LookaheadState) else state
        return after(chain[-1].count).update(grads, state, params)

    return optax.GradientTransformation(after(0).init, update)
