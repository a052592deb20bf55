"""Steps over several devices: `jax.pmap` with a state that keeps its logical shapes.

The state goes in whole (in_axes=None) and comes out whole (out_axes=None), not stacked along a leading axis of
devices, so a checkpoint does not know how many devices wrote it. That is right only because gradients, metrics and
batch statistics are all averaged over the axis: `out_axes=None` would silently return device 0's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxresnet.config import ModelConfig, OptimConfig, TrainConfig
from jaxresnet.errors import ConfigError
from jaxresnet.hardware import resolved
from jaxresnet.nn.cpu.conv import convolves_in_loops
from jaxresnet.nn.summary import count_macs
from jaxresnet.optim.schedules import Hypers, per_step
from jaxresnet.training.compilation import CompiledOnce, compile_lowered
from jaxresnet.training.metrics import Sums, TrainTotals, zero_sums, zero_totals
from jaxresnet.training.state import TrainState
from jaxresnet.training.steps import AXIS, make_steps, num_batches, steps_per_epoch

Devices = tuple[jax.Device, ...]

# Where steps share a dispatch that is no whole epoch: on a CPU, and for the rest of an epoch that was broken off.
# Enough that the memory which a dispatch asks the system for anew hardly counts, few enough that progress and Ctrl-C do
# not wait long: 15 s on two cores (docs/performance.md). Of a network that computes more, less.
IMAGES_PER_DISPATCH = 2048


def replicate(tree: Any, devices: Devices) -> Any:
    """Copies of a tree of arrays on every device, in the layout in which `Program` takes and returns them.

    With devices of several processes each puts its own copy on its own devices; the copies must be the same.
    """
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    local = sorted(sharding.addressable_devices, key=devices.index)
    if len(local) == len(devices):
        return jax.device_put(tree, sharding)
    # `device_put` would compare what all processes have, with a collective each time.
    copies = [jax.device_put(tree, device) for device in local]
    return jax.tree.map(
        lambda *shards: jax.make_array_from_single_device_arrays(shards[0].shape, sharding, shards), *copies
    )


def first_copy(tree: Any) -> Any:
    """A tree of replicated arrays as arrays of one device of this process, without copying."""
    return jax.tree.map(lambda a: a.addressable_data(0), tree)


def _one_each(devices: Devices) -> Array:
    """0, 1, 2 ... as an int32 array of which each device holds its own element."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
    ranks = np.arange(len(devices), dtype=np.int32)
    return jax.make_array_from_callback(ranks.shape, sharding, lambda index: ranks[index])


class Program:
    """`fn(*args, rank)` mapped over devices: the arguments and results are whole on every device.

    Compiled at the first call, for the shapes of its arguments; later calls must have the same.
    donate: positions of arguments whose memory the results may take.
    once: shared with the same program for other devices, which then is not compiled again.
    compile_seconds: what tracing and compiling took; 0 before the first call.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        num_args: int,
        devices: Devices,
        donate: tuple[int, ...] = (),
        once: CompiledOnce | None = None,
    ):
        in_axes = (None,) * num_args + (0,)
        self._mapped = jax.pmap(
            fn, axis_name=AXIS, in_axes=in_axes, out_axes=None, devices=devices, donate_argnums=donate
        )
        self._devices = devices
        self._ranks = _one_each(devices)
        self._once = once or CompiledOnce()
        self._compiled: Callable[..., Any] | None = None
        self.compile_seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        # Numbers, as all else: from several processes JAX takes global arrays only.
        args = tuple(replicate(arg, self._devices) if isinstance(arg, np.generic) else arg for arg in args)
        if self._compiled is None:
            start = time.perf_counter()
            self._compiled = self._once.get(self._devices, lambda: self._compile(*args, self._ranks))
            self.compile_seconds = time.perf_counter() - start
        return self._compiled(*args, self._ranks)

    def _compile(self, *args: Any) -> Callable[..., Any]:
        return compile_lowered(self._mapped.lower(*args), self._devices[0].platform)


class Engine:
    """The compiled programs of all runs that differ only in seed, schedule and the optimiser's numbers.

    On accelerators one dispatch runs a whole epoch. On CPU it runs `steps_per_dispatch` steps: one in float32, as
    inside a loop body XLA:CPU convolves naively, measured up to 50 times slower; several in bfloat16, where
    convolutions are matrix products.
    """

    def __init__(self, config: TrainConfig, num_train: int, devices: Devices):
        if config.batch_size % len(devices):
            raise ConfigError(
                f"batch_size={config.batch_size}: must be a multiple of the {len(devices)} devices that share a batch"
            )
        if config.batch_size > num_train:
            raise ConfigError(f"batch_size={config.batch_size}: must be at most the {num_train} training images")
        self.devices = devices
        platform = devices[0].platform
        self.whole_epochs = platform != "cpu"
        several = convolves_in_loops(platform, config.model.precision)
        larger = max(1.0, count_macs(config.model) / count_macs(ModelConfig()))
        self.steps_per_dispatch = max(1, int(IMAGES_PER_DISPATCH / larger) // config.batch_size) if several else 1
        self._eval_batch_size = config.eval_batch_size
        self._steps = steps = make_steps(config, num_train, len(devices), platform)
        # Engines for other devices, as many and of the same kind, have the same programs, and engines of the same
        # network evaluate alike.
        kind = (len(devices), platform, devices[0].device_kind)

        def training(name: str, fn: Callable[..., Any], num_args: int, size: int = 0) -> Program:
            return Program(fn, num_args, devices, (0, 1), _compiled_once(kind, config, num_train, name, size))

        def evaluation(fn: Callable[..., Any], num_args: int, size: int, count: int) -> Program:
            return Program(
                fn, num_args, devices, (), _compiled_once(kind, config.model, size, count, self.whole_epochs)
            )

        self._evaluation = evaluation
        self._init = _initial_state(config.model, config.optim, platform)
        self._plan = jax.jit(steps.plan)
        self._prepare_seconds = 0.0  # what compiling `_plan` took
        self._train_epoch = training("train_epoch", steps.train_epoch, 6)
        self._train_several = training("train_several", steps.train_several, 8)
        self._train = {
            size: training("train", partial(steps.train, batch_size=size), 7, size)
            for size in {config.batch_size, num_train % config.batch_size} - {0}
        }
        self._evaluate: dict[tuple[int, int], Program] = {}  # by size of the batch and of the data
        self._evaluate_all: dict[int, Program] = {}  # by size of the data
        self._num_train, self._batch_size = num_train, config.batch_size

    @property
    def compile_seconds(self) -> float:
        training = (self._train_epoch, self._train_several, *self._train.values())
        programs = (*training, *self._evaluate.values(), *self._evaluate_all.values())
        return self._prepare_seconds + sum(p.compile_seconds for p in programs)

    @property
    def training_program(self) -> Program:
        """The one that trains on full batches."""
        if self.whole_epochs:
            return self._train_epoch
        return self._train_several if self.steps_per_dispatch > 1 else self._train[self._batch_size]

    @property
    def dispatch(self) -> str:
        """How much training one dispatch is, in words."""
        several = f"up to {self.steps_per_dispatch} steps" if self.steps_per_dispatch > 1 else "a step"
        return "an epoch" if self.whole_epochs else several

    def init(self, seed: int) -> TrainState:
        return replicate(self._init(jnp.uint32(seed)), self.devices)

    def zero_totals(self) -> TrainTotals:
        return replicate(zero_totals(), self.devices)

    def train_epoch(
        self,
        state: TrainState,
        totals: TrainTotals,
        hypers: Hypers,
        images: Array,
        labels: Array,
        epoch: int,
        first_step: int = 0,
        after_step: Callable[[int, TrainState, TrainTotals], bool] | None = None,
    ) -> tuple[TrainState, TrainTotals]:
        """Run the steps of one epoch from `first_step` on. `state` and `totals` are consumed.

        hypers: see `optim.epoch_hypers`; one learning rate, b1 or momentum for all steps does, too.
        after_step(images done in this epoch, state, totals): called after every dispatch, which is a step or
        a few on CPU; True stops there.
        """
        start_preparing = time.perf_counter()
        if np.ndim(hypers.learning_rate) == 0:
            hypers = per_step(hypers, steps_per_epoch(self._num_train, self._batch_size))
        hypers = jax.tree.map(lambda a: a if isinstance(a, Array) else np.float32(a), hypers)
        hypers = replicate(hypers, self.devices)
        whole = self.whole_epochs and first_step == 0
        plan = None if whole else replicate(self._plan(first_copy(state.key), epoch), self.devices)
        if not self._prepare_seconds:
            self._prepare_seconds = time.perf_counter() - start_preparing
        if whole:
            state, totals = self._train_epoch(state, totals, hypers, images, labels, np.int32(epoch))
            if after_step is not None:
                after_step(self._num_train, state, totals)
            return state, totals
        full, last = num_batches(self._num_train, self._batch_size)
        step = first_step
        while step < full + bool(last):
            args = (state, totals, hypers, images, labels, plan, np.int32(step * self._batch_size))
            if step < full and self.steps_per_dispatch > 1:
                count = min(self.steps_per_dispatch, full - step)
                state, totals = self._train_several(*args, np.int32(count))
            else:
                count = 1
                state, totals = self._train[self._batch_size if step < full else last](*args)
            step += count
            if after_step is not None:
                # Without this wait the host would queue a whole epoch, and progress and Ctrl-C would mean nothing. It
                # costs a percent where a dispatch is a step.
                totals.steps.block_until_ready()
                if after_step(min(step * self._batch_size, self._num_train), state, totals):
                    break
        return state, totals

    def evaluate(self, variables: dict, images: Array, labels: Array) -> Sums:
        """Sums over all `images`, (N, 32, 32, 3) uint8 on the devices."""
        sums = replicate(zero_sums(), self.devices)
        count = images.shape[0]
        if self.whole_epochs:
            if count not in self._evaluate_all:
                self._evaluate_all[count] = self._evaluation(self._steps.evaluate_all, 4, self._eval_batch_size, count)
            return self._evaluate_all[count](variables, sums, images, labels)
        for start in range(0, count, self._eval_batch_size):
            size = min(self._eval_batch_size, count - start)
            if (size, count) not in self._evaluate:
                fn = partial(self._steps.evaluate, batch_size=size)
                self._evaluate[size, count] = self._evaluation(fn, 5, size, count)
            sums = self._evaluate[size, count](variables, sums, images, labels, np.int32(start))
        return sums


def make_engine(config: TrainConfig, num_train: int, devices: Sequence[jax.Device] | None = None) -> Engine:
    """The engine for a run. Runs that differ only in seed, length, schedule and the optimiser's numbers share one, and
    so share its compiled programs."""
    devices = tuple(jax.devices() if devices is None else devices)
    config = resolved(config, devices[0])
    # Evaluation batches that divide over the devices: their size has no effect on the result.
    rounded = -(-config.eval_batch_size // len(devices)) * len(devices)
    return _cached_engine(replace(_without_numbers(config), eval_batch_size=rounded), num_train, devices)


_cached_engine = cache(Engine)


@cache
def _initial_state(model: ModelConfig, optim: OptimConfig, platform: str) -> Callable[[Array], TrainState]:
    """Seed to state. One program for all batch sizes."""
    config = TrainConfig(model=model, optim=optim)
    return jax.jit(make_steps(config, config.batch_size, 1, platform).init)


@cache
def _compiled_once(*what: Any) -> CompiledOnce:
    """The same for the same program, whatever the devices."""
    return CompiledOnce()


def _without_numbers(config: TrainConfig) -> TrainConfig:
    """`config` with everything that is an argument of the compiled programs, or unused in them, set to a default."""
    defaults, run = OptimConfig(), TrainConfig()
    schedule = ("schedule", "schedule_unit", "schedule_length", "warmup_fraction", "cycle_momentum")
    numbers = (*Hypers._fields, *schedule)
    optim = replace(config.optim, **{name: getattr(defaults, name) for name in numbers})
    return replace(
        config,
        optim=optim,
        seed=0,
        num_epochs=1,
        train_size=None,
        val_size=0,
        selection="last",
        test_every_epoch=False,
        eval_weights=run.eval_weights,
        skip_nonfinite=min(config.skip_nonfinite, 1),  # how many, the host counts
    )
