"""Augmentation and the first steps of the published protocol against PyTorch and NumPy, from equal draws."""

from functools import cache

import jax
import numpy as np
import pytest
from golden import cases, ours
from parity import note

from jaxresnet import AugmentConfig, EpochPlan, augment_batch, make_synthetic
from jaxresnet.augment import crop_and_flip


@cache
def losses(name: str) -> np.ndarray:
    """(steps,), by the library's own step."""
    config, _, dtype = cases.TRAININGS[name]
    images, labels = cases.training_set(name)
    tensors, draws = cases.initial_state_dict(config.model), cases.draws(len(images), config.augment)
    return np.array([loss for loss, _ in ours.training_steps(config, tensors, images, labels, draws, dtype)])


@pytest.mark.parametrize("name", cases.TRAININGS)
def test_the_first_steps_of_a_published_protocol(name, pytorch):
    found = losses(name)
    assert found.shape == (cases.TRAININGS[name].steps,)
    exact = cases.TRAININGS[name].dtype == "float64"
    title = f"losses of {len(found)} steps of {name}"
    pytorch.check(title, {"losses": found}, "losses", name, tolerance=1e-9 if exact else 1e-3)
    assert found[-3:].mean() < found[:3].mean()  # they are steps of a training that learns


IMAGES = make_synthetic(500, 10).train.images


def on_the_host(images: np.ndarray, draws: cases.Draws, augment: AugmentConfig) -> tuple[np.ndarray, np.ndarray]:
    """(cropped and mirrored uint8, network input float64), an image at a time."""
    pad, hole = augment.crop_padding, augment.cutout_size
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    cropped, inputs = np.empty_like(images), np.empty(images.shape)
    for i, image in enumerate(images):
        padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        crop = padded[draws.crop_y[i] : draws.crop_y[i] + 32, draws.crop_x[i] : draws.crop_x[i] + 32]
        cropped[i] = crop[:, ::-1] if draws.flip[i] else crop
        inputs[i] = (cropped[i] / 255 - mean) / std
        top, left = draws.cutout_y[i] - hole // 2, draws.cutout_x[i] - hole // 2
        inputs[i, max(0, top) : max(0, top + hole), max(0, left) : max(0, left + hole)] = 0
    return cropped, inputs


@pytest.mark.parametrize(("padding", "hole"), [(4, 8), (4, 0), (0, 8), (2, 7), (4, 40)])
def test_pixels_from_equal_draws(padding, hole):
    augment = AugmentConfig(crop_padding=padding, cutout_size=hole)
    draws = cases.draws(len(IMAGES), augment)
    cropped, inputs = on_the_host(IMAGES, draws, augment)
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
