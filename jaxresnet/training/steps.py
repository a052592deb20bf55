"""One training step, one evaluation step, and the scan over steps: pure functions, to be mapped by `parallel`.

Each runs on one device of `num_devices`, numbered by `rank`, and takes its share of a batch. Where a batch does not
divide over the devices (only the last, smaller one may be so), every device computes all of it: the averages over
devices are then averages of equals, and the result is the same without padding or masks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxresnet.config import TrainConfig
from jaxresnet.data.augment import EpochPlan, augment_batch, epoch_plan, normalise
from jaxresnet.nn.resnet import build_model
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import Hypers, at_step, hypers_of
from jaxresnet.training.metrics import Sums, TrainTotals, add, batch_sums, cross_entropy
from jaxresnet.training.packing import AS_IT_IS, Layout, vectors
from jaxresnet.training.state import TrainState, create_train_state, sync_batch_stats

AXIS = "devices"  # name of the mapped axis


class Steps(NamedTuple):
    """The functions of one run, still to be mapped and compiled. `rank` is this device's number, int32 scalar.

    init(seed) -> TrainState
    plan(key_data, epoch) -> EpochPlan
    train(state, totals, hypers, images, labels, plan, start, rank, batch_size=) -> (state, totals);
        hypers: see `optim.epoch_hypers`, the numbers of every step, so that one program serves all schedules
    train_several(state, totals, hypers, images, labels, plan, start, count, rank) -> (state, totals), of `count` full
        batches, int32 scalar, one after the other
    train_epoch(state, totals, hypers, images, labels, epoch, rank) -> (state, totals), the plan and all steps of an
        epoch
    evaluate(variables, sums, images, labels, start, rank, batch_size=) -> sums
    evaluate_all(variables, sums, images, labels, rank) -> sums, over all examples
    """

    init: Callable[..., TrainState]
    plan: Callable[..., EpochPlan]
    train: Callable[..., tuple[TrainState, TrainTotals]]
    train_several: Callable[..., tuple[TrainState, TrainTotals]]
    train_epoch: Callable[..., tuple[TrainState, TrainTotals]]
    evaluate: Callable[..., Sums]
    evaluate_all: Callable[..., Sums]


def num_batches(num_examples: int, batch_size: int) -> tuple[int, int]:
    """(number of full batches, size of the smaller one that follows, 0 for none)."""
    return num_examples // batch_size, num_examples % batch_size


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    return -(-num_examples // batch_size)


def make_steps(config: TrainConfig, num_train: int, num_devices: int, platform: str) -> Steps:
    """The functions of a run. Seed, schedule and numbers of the optimiser are arguments of theirs, not read from
    `config`.

    platform: "cpu", "gpu" or "tpu", where the functions will run.
    """
    model = build_model(config.model, AXIS, platform)
    whole_batch_model = build_model(config.model, None, platform)  # for batches that every device computes alike
    optim = config.optim
    num_steps = steps_per_epoch(num_train, config.batch_size)

    def share(start: Array, rank: Array, batch_size: int) -> tuple[Array, int, Callable[[Any], Any]]:
        """(first row, number of rows, how to total over devices) of this device's part of a batch."""
        if batch_size % num_devices:
            return start, batch_size, lambda sums: sums
        size = batch_size // num_devices
        return start + rank * size, size, lambda sums: lax.psum(sums, AXIS)

    def init(seed: Array) -> TrainState:
        return create_train_state(model, make_step_optimizer(optim, hypers_of(optim)), seed)

    def plan(key: Array, epoch: Array) -> EpochPlan:
        return epoch_plan(jax.random.wrap_key_data(key), epoch, num_train, config.augment)

    def train(
        state: TrainState,
        totals: TrainTotals,
        hypers: Hypers,
        images: Array,
        labels: Array,
        plan: EpochPlan,
        start: Array,
        rank: Array,
        *,
        batch_size: int,
        layout: Layout = AS_IT_IS,
    ) -> tuple[TrainState, TrainTotals]:
        first, size, total = share(start, rank, batch_size)
        rows = jax.tree.map(lambda column: lax.dynamic_slice_in_dim(column, first, size), plan)
        batch = augment_batch(images[rows.order], rows, config.augment)  # (B, 32, 32, 3) float32
        targets = labels[rows.order]
        stats = layout.unpack_stats(state.batch_stats)

        def loss_fn(params: Any) -> tuple[Array, tuple[Any, Array]]:
            apply = whole_batch_model.apply if batch_size % num_devices else model.apply
            logits, variables = apply({"params": params, "batch_stats": stats}, batch, True)
            return cross_entropy(logits, targets).mean(), (variables["batch_stats"], logits)

        grads, (batch_stats, logits) = jax.grad(loss_fn, has_aux=True)(layout.unpack(state.params))
        grads, batch_stats = lax.pmean(layout.pack(grads), AXIS), layout.pack_stats(batch_stats)
        tx = make_step_optimizer(optim, at_step(hypers, state.step % num_steps))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        slow_batch_stats = sync_batch_stats(
            state.slow_batch_stats, batch_stats, opt_state, optim.sync_period, hypers.slow_step_size
        )

        sums = total(batch_sums(logits, targets))
        norms = jnp.stack([optax.tree.norm(tree) for tree in (grads, params, updates)])
        # Activations can be too large for their variance and the loss still be finite: batch statistics count as well.
        statistics = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(batch_stats)])
        finite = jnp.isfinite(sums.loss) & jnp.isfinite(norms).all() & jnp.isfinite(statistics).all()
        bad_step = jnp.where((totals.bad_step < 0) & ~finite, state.step, totals.bad_step)
        new_totals = TrainTotals(add(totals.sums, sums), totals.norms + norms, totals.steps + 1, bad_step)
        new_state = TrainState(state.step + 1, params, batch_stats, slow_batch_stats, opt_state, state.key)
        if config.skip_nonfinite:  # a bad step changes nothing but the count of steps, and that there was one
            same_state, same_totals = state._replace(step=state.step + 1), totals._replace(bad_step=bad_step)
            keep = partial(jnp.where, finite)
            new_state = jax.tree.map(keep, new_state, same_state)
            new_totals = jax.tree.map(keep, new_totals, same_totals)
        return new_state, new_totals

    def train_several(
        state: TrainState,
        totals: TrainTotals,
        hypers: Hypers,
        images: Array,
        labels: Array,
        plan: EpochPlan,
        start: Array,
        count: Array,
        rank: Array,
    ) -> tuple[TrainState, TrainTotals]:
        size = config.batch_size

        def step(i: Array, carry: tuple[TrainState, TrainTotals]) -> tuple[TrainState, TrainTotals]:
            return train(*carry, hypers, images, labels, plan, start + i * size, rank, batch_size=size)

        return lax.fori_loop(0, count, step, (state, totals))

    def train_epoch(
        state: TrainState,
        totals: TrainTotals,
        hypers: Hypers,
        images: Array,
        labels: Array,
        epoch: Array,
        rank: Array,
    ) -> tuple[TrainState, TrainTotals]:
        full, last = num_batches(num_train, config.batch_size)
        rows = plan(state.key, epoch)
        layout = vectors(state) if platform == "gpu" else AS_IT_IS

        def step(carry: tuple[TrainState, TrainTotals], start: Array, size: int) -> tuple[TrainState, TrainTotals]:
            return train(*carry, hypers, images, labels, rows, start, rank, batch_size=size, layout=layout)

        def body(carry: tuple[TrainState, TrainTotals], i: Array) -> tuple[tuple[TrainState, TrainTotals], None]:
            return step(carry, i * config.batch_size, config.batch_size), None

        carry = (layout.pack_state(state), totals)
        if full:
            carry, _ = lax.scan(body, carry, jnp.arange(full))
        if last:
            carry = step(carry, jnp.int32(full * config.batch_size), last)
        return layout.unpack_state(carry[0]), carry[1]

    def evaluate(
        variables: dict, sums: Sums, images: Array, labels: Array, start: Array, rank: Array, *, batch_size: int
    ) -> Sums:
        first, size, total = share(start, rank, batch_size)
        batch = normalise(lax.dynamic_slice_in_dim(images, first, size))
        logits, _ = model.apply(variables, batch, False)
        return add(sums, total(batch_sums(logits, lax.dynamic_slice_in_dim(labels, first, size))))

    def evaluate_all(variables: dict, sums: Sums, images: Array, labels: Array, rank: Array) -> Sums:
        full, last = num_batches(images.shape[0], config.eval_batch_size)

        def body(sums: Sums, i: Array) -> tuple[Sums, None]:
            start = i * config.eval_batch_size
            return evaluate(variables, sums, images, labels, start, rank, batch_size=config.eval_batch_size), None

        if full:
            sums, _ = lax.scan(body, sums, jnp.arange(full))
        if last:
            start = jnp.int32(full * config.eval_batch_size)
            sums = evaluate(variables, sums, images, labels, start, rank, batch_size=last)
        return sums

    return Steps(init, plan, train, train_several, train_epoch, evaluate, evaluate_all)
