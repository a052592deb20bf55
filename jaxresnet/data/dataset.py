"""What a data set is: uint8 images and integer labels in NumPy arrays. And the part of it that a run trains on."""

import zlib
from typing import Any, NamedTuple

import numpy as np

from jaxresnet.config import TrainConfig
from jaxresnet.errors import ConfigError, DataError, short
from jaxresnet.files import is_name

IMAGE_SIZE = 32  # side, pixels
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Split(NamedTuple):
    """Images and labels in matching order.

    images: (N, 32, 32, 3) uint8, 0..255, RGB.
    labels: (N,) integers from 0; int32 once `as_dataset` has seen them.
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def num_examples(self) -> int:
        return len(self.labels)


class Dataset(NamedTuple):
    """A training and a test split, and what they are.

    name: printed beside every result ("cifar10", "synthetic").
    synthetic: True when the images were drawn by a program, so that no figure is mistaken for CIFAR-10's.
    class_names: of label 0, 1, ...; where none are given, the labels themselves.
    """

    train: Split
    test: Split
    name: str = "data"
    synthetic: bool = False
    class_names: tuple[str, ...] = ()


def as_dataset(data: Dataset) -> Dataset:
    """`data` in the one form that all else takes: labels int32 (N,), and a name for every class. No image is copied.

    A split may be any pair of images and labels, labels any integers, (N,) or (N, 1).
    Raises DataError for everything else.
    """
    if not isinstance(data, Dataset):
        raise DataError(f"data: found {type(data).__name__}; give a Dataset(train, test), as `load_cifar10` does")
    train, test = _as_split(data.train, "train"), _as_split(data.test, "test")
    highest = max(int(split.labels.max()) for split in (train, test))
    given = data.class_names
    names = tuple(given) if isinstance(given, tuple | list) else ()
    if len(names) != len(given or ()) or not all(map(is_name, (data.name, *names))):
        said = f"name={short(data.name)}, class_names={short(given)}"
        raise DataError(f"{said}: give texts of at most 500 characters that can be printed")
    names = names or tuple(map(str, range(highest + 1)))
    if highest >= len(names):
        raise DataError(f"class_names: has {len(names)} names, and the labels go up to {highest}; name every class")
    return data._replace(train=train, test=test, class_names=names)


def _as_split(split: Any, name: str) -> Split:
    try:
        images, labels = map(np.asarray, split)
    except (TypeError, ValueError) as e:
        raise DataError(f"{name} split: is no pair of images and labels; give Split(images, labels)") from e
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras has them
        labels = labels[:, 0]
    fits = images.dtype == np.uint8 and images.shape[1:] == (IMAGE_SIZE, IMAGE_SIZE, 3) and len(images) > 0
    if not fits or labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name} split: expected images uint8 (N, 32, 32, 3) and integer labels (N,), found "
            f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 2**16:
        raise DataError(f"{name} split: the labels go from {low} to {high}; count classes from 0")
    return Split(images, labels.astype(np.int32, copy=False))


def check_data(config: TrainConfig, data: Dataset) -> int:
    """The number of images that a run of `config` trains on, validation images aside. data: as `as_dataset` gives it.

    Raises ConfigError for a config that does not fit the data set.
    """
    classes, named = config.model.num_classes, len(data.class_names)
    if named > classes:
        raise ConfigError(f"num_classes={classes}: data set {data.name!r} has {named} classes (labels count from 0)")
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
