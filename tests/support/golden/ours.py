"""Our side of the parity tests, where it is more than a call."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from support.golden import cases

from jaxresnet.config import ModelConfig, TrainConfig
from jaxresnet.data.augment import EpochPlan
from jaxresnet.interop.torch import from_torch, torch_arrays
from jaxresnet.nn.resnet import build_model
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import epoch_hypers, hypers_of, per_step
from jaxresnet.training.devices import map_and_compile, replicate
from jaxresnet.training.metrics import cross_entropy, zero_totals
from jaxresnet.training.packing import vectors
from jaxresnet.training.state import TrainState
from jaxresnet.training.steps import make_recipe, train_steps


def in_dtype(config: ModelConfig, dtype: str) -> ModelConfig:
    """A network that computes in `dtype`. A user's has no float64: it would need weights and all else in float64, too,
    as the functions here give it."""
    config = replace(config)
    object.__setattr__(config, "precision", dtype)
    return config


def float_arrays(variables: dict) -> dict[str, np.ndarray]:
    """Variables in PyTorch's names and layout, without its counts of batches. float32."""
    return {name: a for name, a in torch_arrays(variables).items() if not name.endswith("num_batches_tracked")}


def loss_and_gradients(
    config: ModelConfig, tensors: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy in training mode, in PyTorch's names and layout, as `oracle.loss_and_gradients`."""
    exact = dtype == "float64"
    with jax.enable_x64(exact), jax.default_matmul_precision("highest"):
        variables = jax.tree.map(lambda a: np.asarray(a, dtype), from_torch(tensors))
        # The convolution for CPUs computes in float32.
        model = build_model(in_dtype(config, dtype), platform=None if exact else jax.default_backend())

        @jax.jit
        @jax.value_and_grad
        def both(params, batch_stats, images):
            logits, _ = model.apply({"params": params, "batch_stats": batch_stats}, images, True)
            return cross_entropy(logits, labels).mean()

        loss, grads = both(variables["params"], variables["batch_stats"], np.asarray(images, dtype))
        named = float_arrays({"params": grads, "batch_stats": variables["batch_stats"]})
    return {name: g for name, g in named.items() if "running" not in name} | {"loss": np.asarray(loss)}


def training_steps(
    config: TrainConfig,
    tensors: dict[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    draws: cases.Draws,
    dtype: str = "float32",
) -> Iterator[tuple[float, TrainState]]:
    """(loss before the step, state after it) for every whole batch of the first epoch, as `oracle.training_steps`.

    dtype "float64": of weights, statistics and products, to tell rounding from mistakes."""
    exact = dtype == "float64"
    with jax.enable_x64(exact), jax.default_matmul_precision("highest"):
        variables = jax.tree.map(lambda a: np.asarray(a, dtype), from_torch(tensors))
        devices = tuple(jax.local_devices()[:1])
        # The convolution for CPUs computes in float32; XLA's own, as on a GPU, in anything.
        platform = "gpu" if exact else devices[0].platform
        recipe = make_recipe(replace(config, model=in_dtype(config.model, dtype)), len(images), 1, platform)
        state = jax.jit(partial(_start, config))(variables)
        layout = vectors(state, outputs_first=False)
        step_program = partial(train_steps, recipe, layout, config.batch_size, 1)
        num_steps = len(draws.order) // config.batch_size
        hypers = epoch_hypers(config.optim, num_steps, config.num_epochs, 0)
        if config.optim.schedule_unit == "epoch":  # then all steps are at the peak, which float64 knows better
            assert (hypers.learning_rate == np.float32(config.optim.learning_rate)).all()
            hypers = per_step(jax.tree.map(np.dtype(dtype).type, hypers_of(config.optim)), num_steps)
        given = replicate((hypers, images, labels, EpochPlan(*draws)), devices)
        state, totals = replicate((jax.jit(layout.pack)(state), zero_totals()), devices)
        arguments = (state, totals, *given, np.int32(0))
        program = map_and_compile(step_program, arguments, devices, donate=(0, 1))
        for step in range(num_steps):
            totals = replicate(zero_totals(), devices)
            state, totals = program(state, totals, *given, np.int32(step * config.batch_size))
            yield float(totals.sums.loss) / config.batch_size, layout.unpack(jax.tree.map(np.array, state))


def _start(config: TrainConfig, variables: dict) -> TrainState:
    params, batch_stats = variables["params"], variables["batch_stats"]
    opt_state = make_step_optimizer(config.optim, hypers_of(config.optim)).init(params)
    key = jax.random.key_data(jax.random.key(0))  # of an epoch's draws, which are given
    slow = jax.tree.map(jnp.copy, batch_stats) if config.optim.lookahead else {}
    return TrainState(jnp.int32(0), params, batch_stats, slow, opt_state, key)
