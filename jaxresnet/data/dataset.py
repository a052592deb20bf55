"""What a data set is: uint8 images and integer labels in NumPy arrays. And the part of it that a run trains on."""

import zlib
from typing import Any, NamedTuple

import numpy as np

from jaxresnet.config import TrainConfig
from jaxresnet.errors import ConfigError, DataError

IMAGE_SIZE = 32  # side, pixels
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Split(NamedTuple):
    """Images and labels in matching order.

    images: (N, 32, 32, 3) uint8, 0..255, RGB.
    labels: (N,) int32, 0..9.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def num_examples(self) -> int:
        return len(self.labels)


class Dataset(NamedTuple):
    """A training and a test split, and where they come from.

    name: printed beside every result ("cifar10", "synthetic").
    synthetic: True when the images were drawn by a program, so that no figure is mistaken for CIFAR-10's.
    """

    train: Split
    test: Split
    name: str = "cifar10"
    synthetic: bool = False
    class_names: tuple[str, ...] = CLASS_NAMES


def check_data(config: TrainConfig, data: Dataset) -> int:
    """The number of images that a run of `config` trains on, validation images aside. No image is copied.

    Raises DataError for images or labels of another form, ConfigError for a config that does not fit the data set.
    """
    for name, (images, labels) in (("train", data.train), ("test", data.test)):
        fits = images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3) and len(images) > 0
        if not fits or labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{name} split: expected images uint8 (N, 32, 32, 3) and labels int32 (N,), found "
                f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
            )
        low, high, classes = int(labels.min()), int(labels.max()), config.model.num_classes
        if low < 0 or high >= classes:
            raise ConfigError(f"num_classes={classes}: the data set's {name} labels go from {low} to {high}")
    available = data.train.num_examples
    used = available if config.train_size is None else config.train_size
    if used > available:
        raise ConfigError(f"train_size={used}: the data set has {available} training images")
    if config.val_size >= used:
        raise ConfigError(f"val_size={config.val_size}: must be at least 0 and below the {used} training images")
    return used - config.val_size


def run_splits(config: TrainConfig, data: Dataset) -> tuple[Split, Split]:
    """(train, validation) of a run: the first `train_size` images, less `val_size` that the seed holds out.

    Raises what `check_data` raises.
    """
    check_data(config, data)
    train = Split(data.train.images[: config.train_size], data.train.labels[: config.train_size])
    return split_validation(train, config.val_size, config.seed)


def split_validation(train: Split, val_size: int, seed: int) -> tuple[Split, Split]:
    """Hold `val_size` examples, fewer than there are, out of `train`, chosen by `seed` alone.

    Returns (rest, validation), each in the original order; validation is empty when val_size is 0.
    """
    if val_size == 0:  # without a copy of 150 MB
        return train, Split(train.images[:0], train.labels[:0])
    held_out = np.zeros(train.num_examples, bool)
    held_out[np.random.default_rng(seed).permutation(train.num_examples)[:val_size]] = True
    rest, validation = (Split(train.images[rows], train.labels[rows]) for rows in (~held_out, held_out))
    return rest, validation


def fingerprint(data: Dataset) -> dict[str, Any]:
    """Names a data set well enough to notice another one: sizes and a CRC-32 of every byte."""
    crc = 0
    for split in (data.train, data.test):
        for array in split:
            crc = zlib.crc32(np.ascontiguousarray(array).data.cast("B"), crc)
    sizes = {"num_train": data.train.num_examples, "num_test": data.test.num_examples}
    return {"name": data.name, "synthetic": data.synthetic, **sizes, "crc32": crc}
