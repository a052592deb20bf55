"""What a data set is here: uint8 images and int32 labels in NumPy arrays, split into train, validation and test."""

import zlib
from typing import Any, NamedTuple

import numpy as np

from jaxresnet.errors import ConfigError

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


def split_validation(train: Split, val_size: int, seed: int) -> tuple[Split, Split]:
    """Hold `val_size` examples out of `train`, chosen by `seed` alone.

    Returns (rest, validation), each in the original order; validation is empty when val_size is 0.
    Raises ConfigError when nothing would be left to train on.
    """
    if not 0 <= val_size < train.num_examples:
        raise ConfigError(f"val_size={val_size}: must be at least 0 and below the {train.num_examples} training images")
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
