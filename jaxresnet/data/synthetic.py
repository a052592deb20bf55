"""A built-in data set to try things on without a download: ten classes of small pictures, drawn by this program.

Six shapes and four textures lie on cluttered, noisy backgrounds, with a stroke across them here and there. Position,
size, rotation, colours and contrast are random and independent of the class, so that a classifier has to look at form:
the mean colour of an image says nothing. Every class is closed under a horizontal flip, because training flips
images. It is not CIFAR-10, and no figure obtained on it says anything about CIFAR-10.

The same seed gives the same bytes everywhere: random numbers come from the raw output of Philox, which NumPy
guarantees, and pixels from float32 operations that IEEE 754 rounds exactly (+ - * / sqrt; no sin, exp or sums over
axes, whose last bits depend on the machine).
"""

from collections.abc import Callable

import numpy as np

from jaxresnet.data.dataset import IMAGE_SIZE, Dataset, Split
from jaxresnet.errors import ConfigError

SYNTHETIC_CLASSES = (
    *("disc", "square", "triangle", "cross", "ring", "crescent"),
    *("horizontal stripes", "vertical stripes", "checkerboard", "dots"),
)
# Images are drawn this many at a time, each block from its own random stream, and the last block is cut to length. So
# image i depends on the seed and on i alone, and the temporary arrays fit the processor's cache. A multiple of ten.
BLOCK_SIZE = 100

Uniform = Callable[..., np.ndarray]  # uniform(low, high, *shape) -> float32, shape (*shape, BLOCK_SIZE, 1, 1)


def make_synthetic(num_train: int = 4096, num_test: int = 1024, seed: int = 0) -> Dataset:
    """Draw the synthetic data set: about a tenth of a millisecond an image, labels balanced and shuffled.

    num_train, num_test: numbers of images, each at least 10. The two splits are independent, and a smaller split
        is the beginning of a larger one with the same seed.
    seed: any non-negative integer.
    Raises ConfigError when an argument is not an integer or is out of its range.
    """
    for name, value, lowest in (("num_train", num_train, 10), ("num_test", num_test, 10), ("seed", seed, 0)):
        if not isinstance(value, int | np.integer) or value < lowest:
            raise ConfigError(f"{name}={value!r}: must be a whole number, {lowest} or more")
    train, test = _draw_split(num_train, seed, split=0), _draw_split(num_test, seed, split=1)
    return Dataset(train, test, name="synthetic", synthetic=True, class_names=SYNTHETIC_CLASSES)


def _draw_split(num_images: int, seed: int, split: int) -> Split:
    images = np.empty((num_images, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.empty(num_images, np.int32)
    for block, start in enumerate(range(0, num_images, BLOCK_SIZE)):
        stop = min(start + BLOCK_SIZE, num_images)
        bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(split, block)))
        # Every ten consecutive images hold each class once, in random order.
        block_labels = bits.random_raw(BLOCK_SIZE).reshape(-1, 10).argsort(axis=1, kind="stable").reshape(BLOCK_SIZE)
        images[start:stop] = _draw_images(block_labels, bits)[: stop - start]
        labels[start:stop] = block_labels[: stop - start]
    return Split(images, labels)


def _draw_images(labels: np.ndarray, bits: np.random.Philox) -> np.ndarray:
    """Paint one block, back to front. Returns (BLOCK_SIZE, 32, 32, 3) uint8.

    Inside, the image is (3, B, 32, 32) float32 with 0..255 as full range, and per-image values are (B, 1, 1).
    """

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        raw = bits.random_raw(np.prod(shape, dtype=int) * BLOCK_SIZE) >> np.uint64(40)  # 24 bits: exact in float32
        unit = (raw.astype(np.float32) * np.float32(2**-24)).reshape(*shape, BLOCK_SIZE, 1, 1)
        return low + (high - low) * unit

    # Pixel centres, in pixels from the middle of the image.
    x = np.arange(IMAGE_SIZE, dtype=np.float32)[None, None, :] - (IMAGE_SIZE - 1) / 2
    y = np.arange(IMAGE_SIZE, dtype=np.float32)[None, :, None] - (IMAGE_SIZE - 1) / 2

    background = uniform(80, 175, 3)
    image = background + uniform(-1.2, 1.2, 3) * x + uniform(-1.2, 1.2, 3) * y  # (3, B, H, W)
    for _ in range(2):
        _paint(image, _line(x, y, uniform), background + _contrast(uniform, 20, 70))
    _paint(image, _figure(labels, x, y, uniform), background + _contrast(uniform, 35, 120))
    _paint(image, _line(x, y, uniform), background + _contrast(uniform, 20, 70))

    # Triangular noise from two random bytes a value, -255..255, of an amplitude that differs from image to image.
    # (`<u8`: the same bytes in the same order on a big-endian machine.)
    noise = bits.random_raw(image.size // 4).astype("<u8").view(np.uint8).astype(np.float32).reshape(2, *image.shape)
    image += (noise[0] - noise[1]) * uniform(0.02, 0.1)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8).transpose(1, 2, 3, 0)


def _contrast(uniform: Uniform, low: float, high: float) -> np.ndarray:
    """A random difference of colours (3, B, 1, 1): lighter or darker by about `low`..`high`, and of another hue."""
    return _sign(uniform) * uniform(low, high) * uniform(0.5, 1.2, 3)


def _sign(uniform: Uniform) -> np.ndarray:
    """-1 or 1 for each image, equally likely."""
    return np.where(uniform(-1, 1) < 0, np.float32(-1), np.float32(1))


def _paint(image: np.ndarray, distance: np.ndarray, colour: np.ndarray) -> None:
    """Cover the pixels where the signed distance to an outline (pixels, negative inside) is below 0, in place.

    The edge is one pixel wide, which is what antialiasing would give.
    """
    image += (colour - image) * np.clip(0.5 - distance, 0, 1)


def _rotate(x: np.ndarray, y: np.ndarray, half_tan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotate by the angle whose half has this tangent: -1..1 is -90..90 degrees, without a cosine."""
    cos, sin = (1 - half_tan**2) / (1 + half_tan**2), 2 * half_tan / (1 + half_tan**2)
    return cos * x + sin * y, cos * y - sin * x


def _line(x: np.ndarray, y: np.ndarray, uniform: Uniform) -> np.ndarray:
    """A stroke with round ends, from a blob to a bar across half of the image: signed distance (B, 32, 32)."""
    along, across = _rotate(x - uniform(-16, 16), y - uniform(-16, 16), uniform(-1, 1))
    beyond_end = np.maximum(np.abs(along) - uniform(0, 9), 0)
    return np.sqrt(beyond_end**2 + across**2) - uniform(0.8, 2.2)


def _figure(labels: np.ndarray, x: np.ndarray, y: np.ndarray, uniform: Uniform) -> np.ndarray:
    """The figure that makes the class, at a random place, size, angle and aspect: signed distance (B, 32, 32)."""
    # Stripes tilt by up to 17 degrees either way, the rest by up to 33: nothing comes to look like another class.
    is_stripes = np.array([name.endswith("stripes") for name in SYNTHETIC_CLASSES])[labels]
    half_tan = uniform(-1, 1) * np.where(is_stripes, np.float32(0.15), np.float32(0.3))[:, None, None]
    x, y = _rotate(x - uniform(-3.5, 3.5), y - uniform(-3.5, 3.5), half_tan)
    stretch = uniform(0.85, 1.15)
    x, y = x * stretch * _sign(uniform), y / stretch  # a flip at random: crescents open to either side
    size, period = uniform(7, 12), uniform(4.5, 7)
    # A texture fills a disc or a square, so that the outline of its patch does not give it away.
    patch = np.where(uniform(0, 1) < 0.5, _disc(x, y, size), _square(x, y, size))

    distance = np.empty_like(patch)
    for label, name in enumerate(SYNTHETIC_CLASSES):
        of = labels == label
        distance[of] = _outline(name, x[of], y[of], size[of], period[of], patch[of])
    return distance


def _outline(
    name: str, x: np.ndarray, y: np.ndarray, size: np.ndarray, period: np.ndarray, patch: np.ndarray
) -> np.ndarray:
    """Signed distance in pixels (negative inside) to the outline of a class. Far from it the value may be off; only
    where it crosses zero matters.

    size: how far a shape reaches from its middle, in pixels. period: at what distance a texture repeats. patch: signed
    distance to the outline of the piece of the texture that is seen.
    """
    match name:
        case "disc":
            return _disc(x, y, size)
        case "square":
            return _square(x, y, size)
        case "triangle":
            return np.maximum(y, np.abs(x) * 0.866 - y * 0.5) - 0.6 * size
        case "cross":
            x, y = np.abs(x), np.abs(y)
            return np.maximum(np.maximum(x, y) - 1.1 * size, np.minimum(x, y) - 0.33 * size)
        case "ring":
            return np.abs(np.sqrt(x**2 + y**2) - 0.8 * size) - 0.25 * size
        case "crescent":
            return np.maximum(_disc(x, y, 1.1 * size), -_disc(x - 0.6 * size, y, 0.85 * size))
        case "horizontal stripes":
            texture = _stripes(y, period)
        case "vertical stripes":
            texture = _stripes(x, period)
        case "checkerboard":
            rows, columns = _stripes(y, 1.5 * period), _stripes(x, 1.5 * period)
            texture = np.maximum(np.minimum(rows, columns), -np.maximum(rows, columns))  # in one of them, not in both
        case _:
            texture = period * (np.sqrt(_phase(x, period) ** 2 + _phase(y, period) ** 2) - 0.32)
    return np.maximum(texture, patch)


def _disc(x: np.ndarray, y: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.sqrt(x**2 + y**2) - size


def _square(x: np.ndarray, y: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.9 * size


def _stripes(position: np.ndarray, period: np.ndarray) -> np.ndarray:
    return period * (np.abs(_phase(position, period)) - 0.25)


def _phase(position: np.ndarray, period: np.ndarray) -> np.ndarray:
    """How far into its period a position is: -0.5..0.5, 0 in the middle of the image of the pattern."""
    turns = position / period
    return turns - np.rint(turns)
