"""One training step, a loop of them, and one evaluation step: pure functions.

`engine` maps `train_steps` and `eval_step` over the devices and compiles them. Their argument `rank`, an int32 scalar,
is the device's number and says which part of a batch is its own. Where a batch does not divide over the devices (only
the last, smaller one of an epoch may be so), every device computes all of it: the averages over devices are then
averages of equals, and no example needs padding or a mask.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxresnet.config import AugmentConfig, OptimConfig, TrainConfig
from jaxresnet.data.augment import EpochPlan, augment_batch, normalise
from jaxresnet.nn.resnet import Model, build_model
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import Hypers, at_step
from jaxresnet.training.metrics import Sums, TrainTotals, add, batch_sums, cross_entropy
from jaxresnet.training.packing import Layout, norm
from jaxresnet.training.state import TrainState, sync_batch_stats

AXIS = "devices"  # name of the mapped axis


class Recipe(NamedTuple):
    """What the programs of a run are compiled for. All else (seed, rates, data) is an argument of theirs.

    axis: the mapped axis, None with a single device. model: its batch statistics are those of all devices. lone_model:
    the same network, for a batch that every device computes whole. skip_nonfinite: whether a step whose numbers are not
    finite is left out.
    """

    axis: str | None
    model: Model
    lone_model: Model
    augment: AugmentConfig
    optim: OptimConfig
    steps_per_epoch: int
    num_devices: int
    skip_nonfinite: bool

    def sum(self, tree: Any) -> Any:
        """Over all devices. (Of one device, XLA would copy it.)"""
        return tree if self.axis is None else lax.psum(tree, self.axis)


def make_recipe(config: TrainConfig, num_train: int, num_devices: int, platform: str) -> Recipe:
    """platform: "cpu", "gpu" or "tpu", where the programs will run."""
    axis = AXIS if num_devices > 1 else None
    return Recipe(
        axis=axis,
        model=build_model(config.model, axis, platform),
        lone_model=build_model(config.model, None, platform),
        augment=config.augment,
        optim=config.optim,
        steps_per_epoch=-(-num_train // config.batch_size),
        num_devices=num_devices,
        skip_nonfinite=config.skip_nonfinite > 0,
    )


def train_step(
    recipe: Recipe,
    layout: Layout,
    state: TrainState,
    totals: TrainTotals,
    hypers: Hypers,
    images: Array,
    labels: Array,
    plan: EpochPlan,
    shared: bool,
) -> tuple[TrainState, TrainTotals]:
    """One optimiser step on one device's part of a batch.

    images: (B, 32, 32, 3) uint8. labels: (B,) int32. plan: the B draws of their augmentation. hypers: see
    `epoch_hypers`, the numbers of every step of the epoch. shared: whether the devices share the batch, each with a
    part of its own; else each has all of it. layout: how the weights and statistics of `state` are packed.
    """
    batch = augment_batch(images, plan, recipe.augment)  # (B, 32, 32, 3) float32
    batch_stats = layout.unpack(state.batch_stats)
    model = recipe.model if shared else recipe.lone_model

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Array]]:
        logits, variables = model.apply({"params": params, "batch_stats": batch_stats}, batch, True)
        # A part of the mean over devices, so that gradients need no more than to be summed.
        loss = cross_entropy(logits, labels).mean() / recipe.num_devices
        return loss, (variables["batch_stats"], logits)

    grads, (new_stats, logits) = jax.grad(loss_fn, has_aux=True)(layout.unpack(state.params))
    # The gradient of the whole batch. Its statistics are so already: the network averages them before it uses them.
    grads, new_stats = recipe.sum(layout.pack(grads)), layout.pack(new_stats)

    numbers = at_step(hypers, lax.rem(state.step, jnp.int32(recipe.steps_per_epoch)))
    tx = make_step_optimizer(recipe.optim, numbers)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    slow_stats = sync_batch_stats(
        state.slow_batch_stats, new_stats, opt_state, recipe.optim.sync_period, numbers.slow_step_size
    )
    new_state = TrainState(state.step + 1, params, new_stats, slow_stats, opt_state, state.key)

    sums = batch_sums(logits, labels)
    sums = recipe.sum(sums) if shared else sums
    norms = jnp.stack([norm(vector) for vector in (grads, params, updates)])  # params: after the step
    # Activations can be too large for their variance and the loss still be finite: batch statistics count as well.
    statistics = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(new_stats)])
    finite = jnp.isfinite(sums.loss) & jnp.isfinite(norms).all() & jnp.isfinite(statistics).all()
    bad_step = jnp.where((totals.bad_step < 0) & ~finite, state.step, totals.bad_step)
    new_totals = TrainTotals(add(totals.sums, sums), totals.norms + norms, totals.steps + 1, bad_step)

    if recipe.skip_nonfinite:  # a bad step changes nothing but the count of steps, and that there was one
        same = state._replace(step=state.step + 1), totals._replace(bad_step=bad_step)
        new_state, new_totals = jax.tree.map(partial(jnp.where, finite), (new_state, new_totals), same)
    return new_state, new_totals


def train_steps(
    recipe: Recipe,
    layout: Layout,
    batch_size: int,
    count: Array | int,
    state: TrainState,
    totals: TrainTotals,
    hypers: Hypers,
    images: Array,
    labels: Array,
    plan: EpochPlan,
    start: Array,
    rank: Array,
) -> tuple[TrainState, TrainTotals]:
    """`count` steps on batches of `batch_size`, one after the other, from row `start` of the epoch's plan on.

    images, labels, plan: of the whole training set, where `train_step` has those of a batch. With a count of 1 there is
    no loop.
    """
    shared, size = _part(recipe, batch_size)

    def step(i: Array | int, carry: tuple[TrainState, TrainTotals]) -> tuple[TrainState, TrainTotals]:
        first = start + i * batch_size + (rank * size if shared else 0)
        rows = jax.tree.map(lambda column: lax.dynamic_slice_in_dim(column, first, size), plan)
        return train_step(recipe, layout, *carry, hypers, images[rows.order], labels[rows.order], rows, shared)

    if isinstance(count, int) and count == 1:
        return step(0, (state, totals))
    return lax.fori_loop(0, count, step, (state, totals))


def eval_step(
    recipe: Recipe, layout: Layout, variables: dict[str, Any], images: Array, labels: Array, rank: Array
) -> Sums:
    """The sums over one batch, which all devices have whole: images (B, 32, 32, 3) uint8, labels (B,) int32.

    layout: how `variables` are packed."""
    shared, size = _part(recipe, len(labels))
    if shared:
        images, labels = (lax.dynamic_slice_in_dim(array, rank * size, size) for array in (images, labels))
    # With running statistics an example's logits do not depend on the others, so that one model serves both cases.
    logits, _ = recipe.model.apply(layout.unpack(variables), normalise(images), False)
    sums = batch_sums(logits, labels)
    return recipe.sum(sums) if shared else sums


def _part(recipe: Recipe, batch_size: int) -> tuple[bool, int]:
    """(whether the devices share a batch, how many examples of it each computes)."""
    shared = batch_size % recipe.num_devices == 0
    return shared, batch_size // recipe.num_devices if shared else batch_size
