"""Augmentation by plan: every random draw of an epoch is made before it runs, from the run's key and the epoch alone.

A step then only gathers, crops, flips and cuts. So what an image looks like in epoch 7 does not depend on the
number of devices, on resuming, or on how many steps one dispatch holds, and the plan is tested without training.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxresnet.config import AugmentConfig
from jaxresnet.data.dataset import IMAGE_SIZE

# Of the published project, per channel in RGB order, for pixels scaled to 0..1.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)


class EpochPlan(NamedTuple):
    """The draws of one epoch, row i for the i-th example that is visited. All arrays are (N,).

    order: int32, a permutation of 0..N-1: which example is visited.
    crop_y, crop_x: int32 in 0..2*crop_padding, the crop's corner in the padded image.
    flip: bool, mirror left to right.
    cutout_y, cutout_x: int32 in 0..31, the hole's centre.
    """

    order: Array
    crop_y: Array
    crop_x: Array
    flip: Array
    cutout_y: Array
    cutout_x: Array


def epoch_plan(key: Array, epoch: int | Array, num_examples: int, augment: AugmentConfig) -> EpochPlan:
    """Draw the plan of one epoch.

    key: the run's PRNG key (typed, shape ()). epoch: 0-based. Equal arguments give equal plans on every device.
    """
    order, crop_y, crop_x, flip, cutout_y, cutout_x = jax.random.split(jax.random.fold_in(key, epoch), 6)

    def draw(key: Array, stop: int) -> Array:
        return jax.random.randint(key, (num_examples,), 0, stop, dtype=jnp.int32)

    return EpochPlan(
        order=jax.random.permutation(order, num_examples).astype(jnp.int32),
        crop_y=draw(crop_y, 2 * augment.crop_padding + 1),
        crop_x=draw(crop_x, 2 * augment.crop_padding + 1),
        flip=jax.random.bernoulli(flip, 0.5, (num_examples,)) if augment.flip else jnp.zeros(num_examples, bool),
        cutout_y=draw(cutout_y, IMAGE_SIZE),
        cutout_x=draw(cutout_x, IMAGE_SIZE),
    )


def normalise(images: Array) -> Array:
    """uint8 (B, H, W, 3) in 0..255 -> float32 of the same shape, about mean 0 and deviation 1 per channel.

    (float64 under JAX_ENABLE_X64, which `fit` and `predict` leave aside.)"""
    mean, std = jnp.asarray(MEAN), jnp.asarray(STD)
    return images * (1 / (255 * std)) - mean / std


def crop_and_flip(images: Array, plan: EpochPlan, augment: AugmentConfig) -> Array:
    """Pad, crop back to the image's size at the planned corner, then mirror where planned. uint8 in, uint8 out."""
    pad = augment.crop_padding
    height, width, channels = images.shape[1:]
    if pad:
        mode = "constant" if augment.pad_mode == "zero" else "reflect"
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=mode)
        images = jax.vmap(
            lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, jnp.int32(0)), (height, width, channels))
        )(padded, plan.crop_y, plan.crop_x)
    return jnp.where(plan.flip[:, None, None, None], images[:, :, ::-1], images)


def cutout(images: Array, plan: EpochPlan, augment: AugmentConfig) -> Array:
    """Set a square around the planned centre to 0, clipped at the border (DeVries and Taylor 2017, section 3.2).

    The hole covers rows centre - size // 2 up to, not including, centre - size // 2 + size, and columns likewise.
    """
    if not augment.cutout_size:
        return images

    def inside(centre: Array, length: int) -> Array:  # (B, length) bool
        offset = jnp.arange(length) - (centre[:, None] - augment.cutout_size // 2)
        return (offset >= 0) & (offset < augment.cutout_size)

    rows, columns = inside(plan.cutout_y, images.shape[1]), inside(plan.cutout_x, images.shape[2])
    hole = rows[:, :, None, None] & columns[:, None, :, None]  # (B, H, W, 1)
    return jnp.where(hole, jnp.zeros((), images.dtype), images)


def augment_batch(images: Array, plan: EpochPlan, augment: AugmentConfig) -> Array:
    """Raw images to network input: crop and flip on raw pixels, normalise, then cut the hole.

    images: (B, 32, 32, 3) uint8, already in the plan's order. plan: the B rows that belong to them.
    Returns (B, 32, 32, 3) float32. The hole is 0 after normalisation, i.e. the mean colour, as published;
    the crop's border is black, since the padding happens before it.
    """
    return cutout(normalise(crop_and_flip(images, plan, augment)), plan, augment)
