"""The programs of a run: what they are compiled for, what they are given, and in what dispatches they are used."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxresnet.config import ModelConfig, OptimConfig, TrainConfig
from jaxresnet.data.augment import EpochPlan, epoch_plan
from jaxresnet.data.dataset import IMAGE_SIZE, Split
from jaxresnet.errors import ConfigError
from jaxresnet.nn.resnet import build_model, dtype_of
from jaxresnet.nn.summary import count_macs
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import Hypers, epoch_hypers, hypers_of, make_schedule
from jaxresnet.training.devices import Devices, map_and_compile, replicate
from jaxresnet.training.metrics import Sums, TrainTotals, zero_totals
from jaxresnet.training.packing import Layout, vectors
from jaxresnet.training.state import TrainState, Weights, as_key, create_train_state, weights_of
from jaxresnet.training.steps import AXIS, Recipe, eval_step, make_recipe, train_steps

Batch = tuple[Array, Array]  # images and labels, on every device

# On a CPU, by precision. Enough images that allocating a dispatch's memory costs little, few enough that progress and
# Ctrl-C need not wait long (docs/performance.md). Larger networks take fewer.
IMAGES_PER_DISPATCH = {"bfloat16": 2048, "float32": 1024}

_COMPILING = threading.Lock()  # compiling has threads of its own

# Below these a weight in float32 stays where it is.
SMALLEST_RATE, SMALLEST_STEP = 1e-10, 1e-7


class Engine(NamedTuple):
    """What compiled programs depend on. Runs with equal engines share their programs.

    config: the run's, with all that is an argument of the programs at its default. platform: "cpu", "gpu" or "tpu".
    steps_per_dispatch: full batches that one dispatch trains on.
    """

    config: TrainConfig
    num_train: int
    devices: Devices
    platform: str
    steps_per_dispatch: int

    @property
    def layout(self) -> Layout:
        return _layout(self.config.model, self.config.optim, self.platform)

    @property
    def steps_per_epoch(self) -> int:
        """The last, smaller batch included."""
        return -(-self.num_train // self.config.batch_size)


def check_devices(config: TrainConfig, num_train: int, num_devices: int) -> None:
    """Raise ConfigError unless so many devices can share the run's batches."""
    if config.batch_size % num_devices:
        raise ConfigError(
            f"batch_size={config.batch_size}: must be a multiple of the {num_devices} devices that share it. Or give "
            'each device a run of its own: --devices runs (compare: spread="runs")'
        )
    if config.batch_size > num_train:
        raise ConfigError(f"batch_size={config.batch_size}: must be at most the {num_train} training images")


def check_moves(config: TrainConfig, num_train: int) -> None:
    """Raise ConfigError where the weights that are scored would be the initial ones to the end: that would be compared
    as if it were a result."""
    optim, per_epoch = config.optim, -(-num_train // config.batch_size)
    steps = counted = per_epoch * config.num_epochs
    remedy = "or Lookahead's slow weights never move. Train longer, or leave Lookahead out (lookahead=False)"
    if optim.lookahead:
        if optim.slow_step_size < SMALLEST_STEP:
            raise ConfigError(f"slow_step_size={optim.slow_step_size:g}: must be {SMALLEST_STEP:g} or more, {remedy}")
        if config.eval_weights == "slow":
            counted = steps // optim.sync_period * optim.sync_period  # up to the last synchronisation
        if not counted:
            raise ConfigError(f"sync_period={optim.sync_period}: must be at most the run's {steps} steps, {remedy}")
    if make_schedule(optim, per_epoch, config.num_epochs)(np.arange(counted)).max() < SMALLEST_RATE:
        raise ConfigError(
            f"learning_rate={optim.learning_rate:g}: is below {SMALLEST_RATE:g} in each of the {counted} steps that "
            f"count (schedule={optim.schedule!r}), so the weights never move in float32; give a larger rate"
        )


def make_engine(config: TrainConfig, num_train: int, devices: Sequence[jax.Device]) -> Engine:
    """The engine of a run, whose precision is known. Raises ConfigError as `check_devices`.

    On accelerators one dispatch trains a whole epoch, on a CPU several steps.
    """
    devices = tuple(devices)
    check_devices(config, num_train, len(devices))
    platform = devices[0].platform
    if platform != "cpu":
        several = num_train // config.batch_size
    else:
        larger = max(1.0, count_macs(config.model) / count_macs(ModelConfig()))
        several = max(1, int(IMAGES_PER_DISPATCH[dtype_of(config.model).name] / larger) // config.batch_size)
    return Engine(_without_numbers(config), num_train, devices, platform, several)


def _without_numbers(config: TrainConfig) -> TrainConfig:
    """`config` with everything that is an argument of the compiled programs, or unused in them, set to a default."""
    defaults = OptimConfig()
    schedule = ("schedule", "schedule_unit", "schedule_length", "warmup_fraction", "cycle_momentum")
    numbers = {name: getattr(defaults, name) for name in (*Hypers._fields, *schedule)}
    return TrainConfig(
        model=config.model,
        augment=config.augment,
        optim=replace(config.optim, **numbers),
        batch_size=config.batch_size,
        skip_nonfinite=min(config.skip_nonfinite, 1),  # how many, the host counts
    )


# ------------------------------------------------------------------------------------------- arrays on the devices


def place_batches(split: Split, batch_size: int, devices: Devices) -> list[Batch]:
    """A split in batches on every device, for `evaluate`. Their size is rounded up to a multiple of the devices."""
    size = -(-batch_size // len(devices)) * len(devices)
    starts = range(0, split.num_examples, size)
    return [replicate((split.images[i : i + size], split.labels[i : i + size]), devices) for i in starts]


def init_state(engine: Engine, seed: int) -> TrainState:
    """The state before the first step, packed."""
    state = _init(engine.config.model, engine.config.optim, engine.platform)(jnp.uint32(seed))
    return packed(engine, state)


def packed(engine: Engine, tree: Any) -> Any:
    """A tree of states, weights and totals as the programs take and return them, on the devices. See `packing`."""
    return replicate(engine.layout.pack(jax.tree.map(np.array, tree)), engine.devices)


def unpacked(engine: Engine, tree: Any) -> Any:
    """The inverse: the network's arrays one by one, on the host as NumPy's, for checkpoints and `fit`'s caller."""
    return engine.layout.unpack(jax.tree.map(np.array, tree))


@cache
def _init(model: ModelConfig, optim: OptimConfig, platform: str) -> Callable[[Array], TrainState]:
    tx = make_step_optimizer(optim, hypers_of(optim))
    return jax.jit(partial(create_train_state, build_model(model, AXIS, platform), tx))


def _state_shapes(model: ModelConfig, optim: OptimConfig, platform: str) -> TrainState:
    return jax.eval_shape(_init(model, optim, platform), jnp.uint32(0))  # traced once, with what will be called


@cache
def _layout(model: ModelConfig, optim: OptimConfig, platform: str) -> Layout:
    return vectors(_state_shapes(model, optim, platform), outputs_first=platform == "gpu")


def init_totals(engine: Engine) -> TrainTotals:
    return replicate(zero_totals(), engine.devices)


def plan_epoch(engine: Engine, state: TrainState, epoch: int) -> EpochPlan:
    """The draws of an epoch, on every device."""
    key = state.key.addressable_data(0)
    return replicate(_planner(engine.num_train, engine.config.augment)(key, epoch), engine.devices)


@cache
def _planner(num_train: int, augment: Any) -> Callable[[Array, int], EpochPlan]:
    return jax.jit(lambda key, epoch: epoch_plan(as_key(key), epoch, num_train, augment))


# ------------------------------------------------------------------------------------------------ compiled programs


def compile_programs(engine: Engine, eval_sizes: Iterable[int]) -> None:
    """Compile what a run from its beginning needs, if it is not there: so that no clock counts it as training.

    eval_sizes: of the batches that will be evaluated. Of runs in several threads one compiles, and the others find what
    they share."""
    with _COMPILING:
        for _, count, batch_size in dispatches(engine, 0):
            compile_dispatch(engine, count, batch_size)
        for size in eval_sizes:
            _eval_program(engine.config.model, size, engine.platform, engine.devices)


def compile_dispatch(engine: Engine, count: int, batch_size: int) -> Callable[..., tuple[TrainState, TrainTotals]]:
    """The program for `count` steps on batches of `batch_size`, compiled if it is not there."""
    return _train_program(engine, batch_size, _static(engine, count, batch_size))


def _static(engine: Engine, count: int, batch_size: int) -> int | None:
    """The number of steps that a program is compiled for; None where it serves any number of full batches.

    On accelerators XLA must know it: it otherwise asks the device after each step whether to go on."""
    several = engine.platform == "cpu" and engine.steps_per_dispatch > 1 and batch_size == engine.config.batch_size
    return None if several else count


@cache
def _train_program(engine: Engine, batch_size: int, count: int | None) -> Callable[..., tuple[TrainState, TrainTotals]]:
    """`steps.train_steps`, compiled: (state, totals, hypers, images, labels, plan, start, count) -> (state, totals).

    `state` and `totals` are donated. The last argument counts only where this one is None."""
    layout, num_train = engine.layout, engine.num_train
    state = jax.eval_shape(layout.pack, _state_shapes(engine.config.model, engine.config.optim, engine.platform))
    recipe = make_recipe(engine.config, num_train, len(engine.devices), engine.platform)

    def steps(state: Any, totals: Any, hypers: Any, images: Any, labels: Any, plan: Any, start: Any, n: Any, rank: Any):
        data = (hypers, images, labels, plan, start, rank)
        return train_steps(recipe, layout, batch_size, count or n, state, totals, *data)

    data = _abstract_data(num_train)
    hypers = epoch_hypers(engine.config.optim, engine.steps_per_epoch, 1, 0)
    plan = jax.eval_shape(lambda: epoch_plan(jax.random.key(0), 0, num_train, engine.config.augment))
    arguments = (state, zero_totals(), hypers, *data, plan, np.int32(0), np.int32(0))
    return map_and_compile(steps, arguments, engine.devices, donate=(0, 1))


@cache
def _eval_program(model: ModelConfig, batch_size: int, platform: str, devices: Devices) -> Callable[..., Sums]:
    """`steps.eval_step`, compiled: (variables, images, labels) -> sums over a batch of `batch_size`."""
    config = TrainConfig(model=model)
    recipe: Recipe = make_recipe(config, config.batch_size, len(devices), platform)
    layout = _layout(model, OptimConfig(), platform)
    variables = jax.eval_shape(layout.pack, weights_of(_state_shapes(model, OptimConfig(), platform)).fast)
    return map_and_compile(partial(eval_step, recipe, layout), (variables, *_abstract_data(batch_size)), devices)


def _abstract_data(size: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    images = jax.ShapeDtypeStruct((size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return images, jax.ShapeDtypeStruct((size,), np.int32)


# ------------------------------------------------------------------------------------------------------- their use


def dispatches(engine: Engine, first_step: int) -> Iterator[tuple[int, int, int]]:
    """(first step, number of steps, batch size) of every dispatch of an epoch, from `first_step` of it on."""
    size = engine.config.batch_size
    full, last = divmod(engine.num_train, size)
    for step in range(first_step, full, engine.steps_per_dispatch):
        yield step, min(engine.steps_per_dispatch, full - step), size
    if last:
        yield full, 1, last


def train(
    engine: Engine,
    state: TrainState,
    totals: TrainTotals,
    hypers: Hypers,
    images: Array,
    labels: Array,
    plan: EpochPlan,
    dispatch: tuple[int, int, int],
) -> tuple[TrainState, TrainTotals]:
    """Train on the batches of one of `dispatches`. `state`, packed, and `totals` are donated.

    images: (N, 32, 32, 3) uint8, labels: (N,) int32, all training images, on the devices, as are hypers and plan."""
    step, count, batch_size = dispatch
    program = compile_dispatch(engine, count, batch_size)
    start = np.int32(step * engine.config.batch_size)
    return program(state, totals, hypers, images, labels, plan, start, np.int32(count))


def evaluate(engine: Engine, variables: dict[str, Any], batches: Sequence[Batch]) -> Sums:
    """Sums over all batches of `place_batches`, on the host. variables: packed."""
    model, platform, devices = engine.config.model, engine.platform, engine.devices
    sums = [_eval_program(model, len(b[1]), platform, devices)(variables, *b) for b in batches]
    return jax.tree.map(lambda *parts: sum(np.asarray(part).astype(np.float64) for part in parts), *sums)


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def copy_weights(state: TrainState) -> Weights:
    """Its weights, which outlive the state: that is donated to the next step."""
    return _copied(weights_of(state))
