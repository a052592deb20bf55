"""The plan's distributions, and crop, flip, cutout and normalise against plain NumPy, one image at a time."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxresnet import AugmentConfig
from jaxresnet.data.augment import MEAN, STD, EpochPlan, augment_batch, crop_and_flip, cutout, epoch_plan, normalise

NUM = 20_000  # examples in a plan, enough for some 20 in each of the 32 x 32 cells of the cutout centres
KEY = jax.random.key(7)
# Compiled whole: operation by operation takes longer to compile than all else here takes to run.
jitted_crop_and_flip, jitted_cutout, jitted_augment_batch = (
    jax.jit(f, static_argnums=2) for f in (crop_and_flip, cutout, augment_batch)
)
jitted_plan = jax.jit(partial(epoch_plan, num_examples=NUM, augment=AugmentConfig()))


def plan_of(epoch: int, key: jax.Array = KEY) -> EpochPlan:
    return jax.tree.map(np.asarray, jitted_plan(key, epoch))


def assert_uniform(values: np.ndarray, cells: int) -> None:
    """Chi-square over 0..cells-1, refusing counts that are too even as well as too uneven. The keys are fixed, so a
    test that passes always does; the bound says that another key would pass too."""
    counts = np.bincount(values, minlength=cells)
    assert len(counts) == cells
    p_value = stats.chisquare(counts).pvalue
    assert 1e-4 < p_value < 1 - 1e-4


def test_draws_are_uniform_and_independent_of_each_other_and_of_the_image():
    plan = plan_of(0)
    assert [column.dtype.name for column in plan] == ["int32", "int32", "int32", "bool", "int32", "int32"]
    np.testing.assert_array_equal(np.sort(plan.order), np.arange(NUM))  # every example once
    assert_uniform(plan.order[: NUM // 4] // 1000, 20)  # the first quarter comes from everywhere
    assert_uniform(18 * plan.crop_y + 2 * plan.crop_x + plan.flip, 162)
    assert_uniform(32 * plan.cutout_y + plan.cutout_x, 32 * 32)
    assert_uniform(32 * plan.crop_y + plan.cutout_y, 9 * 32)
    assert_uniform(32 * plan.crop_x + plan.cutout_x, 9 * 32)
    columns = np.stack([column.astype(float) for column in plan])
    off_diagonal = np.corrcoef(columns)[~np.eye(6, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(NUM)


def test_epochs_and_keys_differ():
    for a, b in itertools.combinations([plan_of(0), plan_of(1), plan_of(0, jax.random.key(8))], 2):
        for x, y, same_by_chance in zip(a, b, [1 / NUM, 1 / 9, 1 / 9, 1 / 2, 1 / 32, 1 / 32], strict=True):
            assert (x == y).mean() == pytest.approx(same_by_chance, abs=0.02)


def test_the_same_for_the_same_key_and_epoch():
    """Whatever else is in the compiled program, and whether the epoch is a number or traced."""
    alone = jax.jit(lambda: epoch_plan(jax.random.key(7), 3, NUM, AugmentConfig()))()
    for x, y in zip(alone, plan_of(3), strict=True):
        np.testing.assert_array_equal(x, y)


# What one seed draws is held against NumPy in test_parity_training.py; here is every draw that there is.


def rows(crop=(0, 0), flip=False, centre=(0, 0), count: int = 1) -> EpochPlan:
    """A plan of `count` rows; each argument is one value for all of them or an array with one a row."""
    order, y, x, *centre = (jnp.asarray(np.broadcast_to(column, count), jnp.int32) for column in (0, *crop, *centre))
    return EpochPlan(order, y, x, jnp.asarray(np.broadcast_to(flip, count)), *centre)


IMAGES = np.random.default_rng(0).integers(1, 256, (81, 32, 32, 3)).astype(np.uint8)  # what is black was padded


@pytest.mark.parametrize(("pad_mode", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop_and_flip_equal_numpy_bit_for_bit(pad_mode, mode):
    """All 81 corners of a crop with padding 4, half of them mirrored."""
    plan = rows(crop=np.divmod(np.arange(81), 9), flip=np.arange(81) % 2 == 0, count=81)
    result = jitted_crop_and_flip(IMAGES, plan, AugmentConfig(pad_mode=pad_mode))
    assert result.dtype == jnp.uint8
    for i, image in enumerate(IMAGES):
        cropped = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode=mode)[i // 9 :, i % 9 :][:32, :32]
        np.testing.assert_array_equal(result[i], cropped[:, ::-1] if i % 2 == 0 else cropped)


def test_no_augmentation_draws_nothing_and_leaves_the_images():
    nothing = AugmentConfig(crop_padding=0, flip=False, cutout_size=0)
    plan = jax.jit(lambda: epoch_plan(KEY, 0, 81, nothing))()
    assert not plan.crop_y.any() and not plan.crop_x.any() and not plan.flip.any()
    np.testing.assert_array_equal(jitted_crop_and_flip(IMAGES, plan, nothing), IMAGES)
    np.testing.assert_array_equal(jitted_augment_batch(IMAGES, plan, nothing), jax.jit(normalise)(IMAGES))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 64])
def test_cutout_equals_slicing(size):
    """With every pixel as its centre: an image of ones for each of them."""
    centres = np.divmod(np.arange(32 * 32), 32)
    ones = jnp.ones((32 * 32, 32, 32, 1))
    kept = jitted_cutout(ones, rows(centre=centres, count=32 * 32), AugmentConfig(cutout_size=size))
    expected = np.ones((32 * 32, 32, 32, 1))
    for image, y, x in zip(expected, *centres, strict=True):
        top, left = y - size // 2, x - size // 2
        image[max(top, 0) : top + size, max(left, 0) : left + size] = 0
    np.testing.assert_array_equal(kept, expected)


def test_normalise_every_value():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    result = jax.jit(normalise)(images)
    assert result.dtype == jnp.float32
    expected = (images / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
