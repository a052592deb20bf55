"""Augmentation and the first steps of the published protocol against PyTorch and NumPy, from equal draws."""

from functools import cache

import jax
import numpy as np
import pytest
from support.golden import cases, ours
from support.parity import note

from jaxresnet import AugmentConfig, make_synthetic
from jaxresnet.data.augment import EpochPlan, augment_batch, crop_and_flip


@cache
def training(name: str) -> dict[str, np.ndarray]:
    """The losses (steps,) of the library's own step, and some tensors after the last one."""
    config, _, dtype = cases.TRAININGS[name]
    images, labels = cases.training_set(name)
    tensors, draws = cases.initial_state_dict(config.model), cases.draws(len(images), config.augment)
    losses = []
    for loss, state in ours.training_steps(config, tensors, images, labels, draws, dtype):
        losses.append(loss)
        last = state
    arrays = ours.float_arrays({"params": last.params, "batch_stats": last.batch_stats})
    return {"losses": np.array(losses), **{name: arrays[name] for name in cases.LOOKED_AT}}


@pytest.mark.parametrize("name", cases.TRAININGS)
def test_the_first_steps_of_a_published_protocol(name, pytorch):
    found = training(name)
    losses = found["losses"]
    assert losses.shape == (cases.TRAININGS[name].steps,)
    exact = cases.TRAININGS[name].dtype == "float64"
    # Schedules are float32, here as there: their rounding is what is left of OneCycle's.
    tolerance = 1e-3 if not exact else 1e-8 if "OneCycle" in name else 1e-9
    title = f"{len(losses)} steps of {name}"
    pytorch.check(f"losses of {title}", {"losses": losses}, "losses", name, tolerance=tolerance)
    if exact:  # what `torch_arrays` leaves of it: float32
        weights = {tensor: found[tensor] for tensor in cases.LOOKED_AT}
        pytorch.check(f"weights after {title}", weights, "losses", name, tolerance=1e-6)
    assert losses[-3:].mean() < losses[:3].mean()  # they are steps of a training that learns


IMAGES = make_synthetic(500, 10).train.images


@pytest.mark.parametrize(("padding", "hole"), [(4, 8), (2, 7)])
def test_pixels_from_equal_draws(padding, hole):
    augment = AugmentConfig(crop_padding=padding, cutout_size=hole)
    draws = cases.draws(len(IMAGES), augment)
    cropped = cases.cropped(IMAGES, draws, augment)
    inputs = cases.augmented(cropped, draws, augment, "float64")
    plan = EpochPlan(*draws)
    found = jax.jit(crop_and_flip, static_argnums=2)(IMAGES, plan, augment)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, cropped)  # bit for bit
    note("cropped and mirrored pixels", "NumPy", 0.0, 0.0, f"padding {padding}")
    normalised = jax.jit(augment_batch, static_argnums=2)(IMAGES, plan, augment)
    assert ((np.asarray(normalised) == 0) == (inputs == 0)).all()  # the hole is where it is, and exactly 0
    error = cases.error(normalised, inputs)
    note("normalised pixels", "NumPy", error, 1e-6, f"padding {padding}, hole {hole}")
    assert error <= 1e-6
