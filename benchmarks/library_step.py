"""The library's own training step, for the programs that time it. The only file here that knows the engine."""

import tempfile

import jax
from turns import resident_peak

import jaxresnet as jr
from jaxresnet.optim.optimizers import hypers_of
from jaxresnet.training.checkpoint import Checkpoints
from jaxresnet.training.engine import IMAGES_PER_DISPATCH, make_engine, replicate
from jaxresnet.training.state import eval_variables

IMAGES_PER_EPOCH = 50_000


def make_config(model: jr.ModelConfig, batch_size: int) -> jr.TrainConfig:
    """The published main run, Adam at 1e-2, without Lookahead: what the rivals compute, too."""
    optim = jr.OptimConfig(lookahead=False)
    return jr.TrainConfig(model=model, optim=optim, batch_size=batch_size, val_size=0, selection="last")


def steps_of_a_turn(platform: str, precision: str, batch_size: int, images: int = IMAGES_PER_EPOCH) -> int:
    """Whole dispatches: all full batches of an epoch on an accelerator; on a CPU as many as a dispatch holds in
    bfloat16, and two of a step each in float32."""
    if platform != "cpu":
        return images // batch_size
    return max(1, min(images, IMAGES_PER_DISPATCH) // batch_size) if precision == "bfloat16" else 2


class LibraryStep:
    """The first `steps` steps of an epoch over `data`, as `fit` runs them: augmentation, Adam, totals, norms and all.

    The steps must be whole dispatches, see `steps_of_a_turn`; `run` raises ValueError where they are not."""

    def __init__(self, config: jr.TrainConfig, data: jr.Split, steps: int):
        self._engine = make_engine(config, data.num_examples)
        self._images, self._labels = replicate(tuple(data), self._engine.devices)
        self._state, self._hypers = self._engine.init(0), hypers_of(config.optim)
        self._steps, self._last = steps, steps * config.batch_size

    def run(self) -> None:
        """Train, and wait for the end."""
        self._state, totals = self._engine.train_epoch(
            self._state,
            self._engine.zero_totals(),
            self._hypers,
            self._images,
            self._labels,
            0,
            after_step=lambda done, *_: done >= self._last,
        )
        if (ran := int(totals.steps)) != self._steps:  # this waits
            raise ValueError(f"a turn of {self._steps} steps came to {ran}: a dispatch is {self.dispatch}")

    def evaluate_and_save(self) -> None:
        """Score 1,000 images and write a checkpoint: with `run`, all that a run holds in memory."""
        variables = eval_variables(self._state)
        jax.block_until_ready(self._engine.evaluate(variables, self._images[:1000], self._labels[:1000]))
        with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
            checkpoints.save(self._state, self._engine.zero_totals(), {}, None)

    @property
    def dispatch(self) -> str:
        """How much training one dispatch is, in words."""
        return self._engine.dispatch

    @property
    def compile_seconds(self) -> float:
        return self._engine.compile_seconds


def peak_memory() -> int:
    """Bytes: the device's own count where it has one, else the process's largest resident size."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or resident_peak()
