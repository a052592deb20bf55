"""The plan's distributions, and crop, flip, cutout and normalise against plain NumPy, one image at a time."""

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


def test_shapes_and_dtypes():
    plan = jax.eval_shape(jitted_plan, KEY, 0)
    assert all(column.shape == (NUM,) for column in plan)
    assert plan.flip.dtype == bool
    assert {column.dtype for name, column in plan._asdict().items() if name != "flip"} == {jnp.dtype("int32")}


@pytest.mark.parametrize("epoch", [0, 1, 50])
def test_every_example_once_an_epoch(epoch):
    np.testing.assert_array_equal(np.sort(plan_of(epoch).order), np.arange(NUM))


@pytest.mark.parametrize("epoch", [0, 3])
def test_draws_are_uniform(epoch):
    plan = plan_of(epoch)
    assert_uniform(9 * plan.crop_y + plan.crop_x, 81)
    assert_uniform(plan.flip.astype(int), 2)
    assert_uniform(32 * plan.cutout_y + plan.cutout_x, 32 * 32)
    assert_uniform(plan.order[: NUM // 4] // 1000, 20)  # the first quarter comes from everywhere


def test_draws_are_independent_of_each_other_and_of_the_image():
    plan = plan_of(0)
    assert_uniform(18 * plan.crop_y + 2 * plan.crop_x + plan.flip, 162)
    assert_uniform(32 * plan.crop_y + plan.cutout_y, 9 * 32)
    assert_uniform(32 * plan.crop_x + plan.cutout_x, 9 * 32)
    columns = np.stack([column.astype(float) for column in plan])
    off_diagonal = np.corrcoef(columns)[~np.eye(6, dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(NUM)


def test_epochs_and_keys_differ():
    plans = [plan_of(0), plan_of(1), plan_of(0, jax.random.key(8))]
    for i, a in enumerate(plans):
        for b in plans[i + 1 :]:
            for x, y, same_by_chance in zip(a, b, [1 / NUM, 1 / 9, 1 / 9, 1 / 2, 1 / 32, 1 / 32], strict=True):
                assert (x == y).mean() == pytest.approx(same_by_chance, abs=0.02)


def test_the_same_for_the_same_key_and_epoch():
    """Whatever else is in the compiled program, and whether the epoch is a number or traced."""
    alone = jax.jit(lambda: epoch_plan(jax.random.key(7), 3, NUM, AugmentConfig()))()
    for x, y in zip(alone, plan_of(3), strict=True):
        np.testing.assert_array_equal(x, y)


def rows(crop=(0, 0), flip=False, centre=(0, 0), count: int = 1) -> EpochPlan:
    """A plan of `count` rows; each argument is one value for all of them or an array with one a row."""

    def column(x, dtype):
        return jnp.asarray(np.broadcast_to(x, count), dtype)

    return EpochPlan(
        column(0, jnp.int32),
        column(crop[0], jnp.int32),
        column(crop[1], jnp.int32),
        column(flip, bool),
        column(centre[0], jnp.int32),
        column(centre[1], jnp.int32),
    )


RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (81, 32, 32, 3)).astype(np.uint8)  # no black pixel: what is black was padded
# All 81 corners of a crop with padding 4, half of them mirrored.
EVERY_CROP = rows(
    crop=np.divmod(np.arange(81), 9),
    flip=np.arange(81) % 2 == 0,
    centre=(RNG.integers(0, 32, 81), RNG.integers(0, 32, 81)),
    count=81,
)


def crop_and_flip_on_the_host(images: np.ndarray, plan: EpochPlan, padding: int, mode: str) -> np.ndarray:
    result = []
    for image, y, x, flip in zip(images, plan.crop_y, plan.crop_x, plan.flip, strict=True):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
        cropped = padded[int(y) : int(y) + 32, int(x) : int(x) + 32]
        result.append(cropped[:, ::-1] if flip else cropped)
    return np.stack(result)


@pytest.mark.parametrize(("pad_mode", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop_and_flip_equal_numpy_bit_for_bit(pad_mode, mode):
    augment = AugmentConfig(pad_mode=pad_mode)
    result = jitted_crop_and_flip(IMAGES, EVERY_CROP, augment)
    assert result.dtype == jnp.uint8
    np.testing.assert_array_equal(result, crop_and_flip_on_the_host(IMAGES, EVERY_CROP, 4, mode))


def test_other_padding():
    plan = rows(crop=(np.array([0, 3, 6]), np.array([6, 3, 0])), count=3)
    result = jitted_crop_and_flip(IMAGES[:3], plan, AugmentConfig(crop_padding=3))
    np.testing.assert_array_equal(result, crop_and_flip_on_the_host(IMAGES[:3], plan, 3, "constant"))
    np.testing.assert_array_equal(result[1], IMAGES[1])  # the middle corner crops nothing


def test_crop_border_is_black():
    corner = np.asarray(jitted_crop_and_flip(IMAGES[:1], rows(crop=(0, 8)), AugmentConfig()))[0]
    assert not corner[:4].any() and not corner[:, -4:].any()
    np.testing.assert_array_equal(corner[4:, :-4], IMAGES[0, :-4, 4:])
    # ... and black before normalisation, so below zero after it.
    network_input = jitted_augment_batch(IMAGES[:1], rows(crop=(0, 8)), AugmentConfig(cutout_size=0))
    black = -np.array(MEAN) / np.array(STD)
    np.testing.assert_allclose(network_input[0, :4], np.broadcast_to(black, (4, 32, 3)), rtol=1e-5)


def test_no_augmentation_draws_nothing_and_leaves_the_images():
    nothing = AugmentConfig(crop_padding=0, flip=False, cutout_size=0)
    plan = jax.jit(lambda: epoch_plan(KEY, 0, 81, nothing))()
    assert not plan.crop_y.any() and not plan.crop_x.any() and not plan.flip.any()
    np.testing.assert_array_equal(jitted_crop_and_flip(IMAGES, plan, nothing), IMAGES)
    np.testing.assert_array_equal(jitted_augment_batch(IMAGES, plan, nothing), jax.jit(normalise)(IMAGES))


CENTRES = np.divmod(np.arange(32 * 32), 32)  # every pixel once


def holes(size: int) -> np.ndarray:
    """What cutout removes of an image of ones, for every centre: (32, 32, 32, 32) bool, [y, x, row, column]."""
    ones = jnp.ones((32 * 32, 32, 32, 1))
    kept = jitted_cutout(ones, rows(centre=CENTRES, count=32 * 32), AugmentConfig(cutout_size=size))
    return (np.asarray(kept) == 0).reshape(32, 32, 32, 32)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 64])
def test_cutout_equals_slicing(size):
    expected = np.zeros((32, 32, 32, 32), bool)
    for y in range(32):
        for x in range(32):
            top, left = y - size // 2, x - size // 2
            expected[y, x, max(top, 0) : top + size, max(left, 0) : left + size] = True
    np.testing.assert_array_equal(holes(size), expected)


def test_normalise_every_value():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    result = jax.jit(normalise)(images)
    assert result.dtype == jnp.float32
    expected = (images / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_augment_batch_crops_then_normalises_then_cuts():
    augment = AugmentConfig()
    result = np.asarray(jitted_augment_batch(IMAGES, EVERY_CROP, augment))
    assert result.shape == IMAGES.shape and result.dtype == np.float32
    cropped = crop_and_flip_on_the_host(IMAGES, EVERY_CROP, 4, "constant")
    expected = (cropped / 255 - np.array(MEAN)) / np.array(STD)
    for image, y, x in zip(expected, np.asarray(EVERY_CROP.cutout_y), np.asarray(EVERY_CROP.cutout_x), strict=True):
        image[max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4] = 0
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(result == 0, expected == 0)  # a hole is exactly the mean colour, nothing else is
