"""The library's own training step, for the programs that time it. The only file here that knows the engine."""

import itertools
import tempfile
import time

import jax
from turns import resident_peak

import jaxresnet as jr
from jaxresnet.hardware import resolved
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.training import engine
from jaxresnet.training.checkpoint import Record, Saved, save
from jaxresnet.training.devices import replicate
from jaxresnet.training.engine import IMAGES_PER_DISPATCH, make_engine

IMAGES_PER_EPOCH = 50_000


def make_config(model: jr.ModelConfig, batch_size: int) -> jr.TrainConfig:
    """The published main run, Adam at 1e-2, without Lookahead: what the rivals compute, too."""
    optim = jr.OptimConfig(lookahead=False)
    return jr.TrainConfig(model=model, optim=optim, batch_size=batch_size, val_size=0, selection="last")


def steps_of_a_turn(platform: str, precision: str, batch_size: int, images: int = IMAGES_PER_EPOCH) -> int:
    """A whole dispatch: all full batches of an epoch on an accelerator, on a CPU as many as a dispatch holds."""
    if platform != "cpu":
        return images // batch_size
    return max(1, min(images, IMAGES_PER_DISPATCH[precision]) // batch_size)


class LibraryStep:
    """The first `steps` steps of an epoch over `data`, as `fit` runs them: augmentation, Adam, totals, norms and all.

    The steps must be whole dispatches, see `steps_of_a_turn`; ValueError is raised where they are not. compile_seconds:
    what compiling took."""

    def __init__(self, config: jr.TrainConfig, data: jr.Split, steps: int):
        devices = tuple(jax.devices())
        self._engine = make_engine(resolved(config, devices[0]), data.num_examples, devices)
        self._dispatches = list(itertools.takewhile(lambda d: d[0] < steps, engine.dispatches(self._engine, 0)))
        if (ran := sum(count for _, count, _ in self._dispatches)) != steps:
            raise ValueError(f"{steps} steps are no whole dispatches: {ran} would be")
        self._images, self._labels = replicate(tuple(data), devices)
        self._batches = engine.place_batches(jr.Split(*(a[:1000] for a in data)), 500, devices)
        start = time.perf_counter()
        for _, count, size in self._dispatches:
            engine.compile_dispatch(self._engine, count, size)
        self.compile_seconds = time.perf_counter() - start
        self._state = engine.init_state(self._engine, 0)
        epoch = epoch_hypers(config.optim, -(-data.num_examples // config.batch_size), 1, 0)
        self._hypers = replicate(epoch, devices)

    def run(self) -> None:
        """Train, and wait for the end."""
        totals, plan = engine.init_totals(self._engine), engine.plan_epoch(self._engine, self._state, 0)
        for dispatch in self._dispatches:
            state = self._state, totals, self._hypers
            self._state, totals = engine.train(self._engine, *state, self._images, self._labels, plan, dispatch)
            totals.steps.block_until_ready()  # as `fit` does, for progress and Ctrl-C

    def evaluate_and_save(self) -> None:
        """Score 1,000 images and write a checkpoint: with `run`, all that a run holds in memory."""
        best = engine.copy_weights(self._state)
        engine.evaluate(self._engine, best.fast, self._batches)
        with tempfile.TemporaryDirectory() as folder:
            state, best = engine.unpacked(self._engine, (self._state, best))
            save(folder, Saved(state, engine.init_totals(self._engine), best, Record({}, {})))

    @property
    def dispatch(self) -> str:
        """How much training one dispatch is, in words."""
        several = self._engine.steps_per_dispatch
        return "an epoch" if self._engine.platform != "cpu" else f"up to {several} steps" if several > 1 else "a step"


def peak_memory() -> int:
    """Bytes: the device's own count where it has one, else the process's largest resident size."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or resident_peak()
