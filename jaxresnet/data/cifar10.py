"""CIFAR-10 as uint8 images and int32 labels, in the official order: found, or downloaded; verified; cached.

Where the images come from (Krizhevsky, 2009): https://www.cs.toronto.edu/~kriz/cifar.html
"""

import os
import warnings
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from jaxresnet.data.cifar10_cache import cache_folder, fingerprint, read_cache, write_cache
from jaxresnet.data.cifar10_source import LOOKED_FOR, find_source, read_source
from jaxresnet.data.dataset import Dataset, Split
from jaxresnet.data.readers import Source, Splits, in_official_order, num_images
from jaxresnet.errors import DataError

DATA_VARIABLE = "JAXRESNET_DATA"
# Mean red, green and blue of the training images, 0..255 (the test images are within 1). Images in another channel
# order, of another scale or shaped wrongly lie further off than the tolerance.
CHANNEL_MEANS = (125.3, 123.0, 113.9)
CHANNEL_TOLERANCE = 2.0


def load_cifar10(data_dir: str | os.PathLike | None = None, cache_dir: str | os.PathLike | None = None) -> Dataset:
    """CIFAR-10: .train with 50,000 and .test with 10,000 examples, in the official order.

    Each split has images (N, 32, 32, 3) uint8, 0..255, RGB, and labels (N,) int32, 0..9. The arrays are read-only.

    data_dir: a folder that holds CIFAR-10 in any of these forms, or the path of one of them: the official archive
        (cifar-10-binary.tar.gz or cifar-10-python.tar.gz), either extracted, the directory that TensorFlow Datasets
        prepares (format array_record), or an .npz with train_images, train_labels, test_images, test_labels.
        Without it: $JAXRESNET_DATA; then the directory of TensorFlow Datasets (~/tensorflow_datasets); then the
        data set is downloaded there.
    cache_dir: where the verified copy is kept that later calls map into memory, in well under a second. By default
        jaxresnet/ in $XDG_CACHE_HOME or ~/.cache. It is rebuilt when it is damaged or the source has changed.

    Raises DataError, naming the file and the remedy, when what was given is not there, damaged, or not CIFAR-10: it is
    never replaced by another copy or a download. Warns when the cache cannot be written, an archive is not the official
    one, or an .npz is not in the official order.
    """
    source = locate(data_dir)
    version = fingerprint(*source)
    folder = cache_folder(source.path, cache_dir)
    splits = read_cache(folder, version)
    if splits is None:
        splits = read_verified(source)
        if fingerprint(*source) != version:
            raise DataError(f"{source.path}: changed while it was read. Wait until it is complete, then try again")
        try:
            write_cache(folder, version, splits)
        except OSError as error:
            warnings.warn(
                f"{folder}: the cache cannot be written ({error}), so each run will read {source.path} again. "
                "Make it writable, or set cache_dir or $XDG_CACHE_HOME",
                stacklevel=2,
            )
    if source.layout == "npz" and not in_official_order(splits):
        warnings.warn(
            f"{source.path}: the images are not in the official order, so a seed selects other validation images "
            "and batches than it does for everybody else",
            stacklevel=2,
        )
    return Dataset(splits["train"], splits["test"])


def locate(data_dir: str | os.PathLike | None) -> Source:
    """Find CIFAR-10 in the first of the places that is given; download it when none is."""
    from jaxresnet.data.tfds import default_tfds_dir, download_and_prepare, find_prepared, needs_tensorflow

    if data_dir is not None:
        return require_source(Path(os.path.expanduser(data_dir)), "data_dir")
    if variable := os.environ.get(DATA_VARIABLE):
        return require_source(Path(os.path.expanduser(variable)), f"${DATA_VARIABLE}")
    root = default_tfds_dir()
    prepared = find_prepared(root)
    if prepared is not None and needs_tensorflow(prepared):  # another program's; a copy that we can read goes elsewhere
        root = user_cache_path("jaxresnet") / "tensorflow_datasets"
        prepared = find_prepared(root)
    return require_source(prepared or download_and_prepare(root), "TensorFlow Datasets")


def require_source(where: Path, origin: str) -> Source:
    """The source at `where`; DataError, which tells what was found there instead, when there is none."""
    try:
        if not where.exists():
            raise DataError(f"{where} ({origin}): there is no such file or folder")
        source = find_source(where)
        if source is not None:
            return source
        entries = [where.name] if where.is_file() else sorted(entry.name for entry in where.iterdir())
    except OSError as error:
        raise DataError(f"{where} ({origin}): cannot be read ({error})") from error
    found = ", ".join(entries[:10]) + (f" and {len(entries) - 10} more" if len(entries) > 10 else "")
    raise DataError(
        f"{where} ({origin}): holds no CIFAR-10. Looked for {LOOKED_FOR}; found {found or 'an empty folder'}. "
        f"Put one of them there, or give neither data_dir nor ${DATA_VARIABLE} to download it"
    )


def read_verified(source: Source) -> Splits:
    """Read the source and check everything that is known about CIFAR-10. The arrays are made read-only."""
    try:
        splits = read_source(source)
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read ({error})") from error
    for name, split in splits.items():
        check_split(split, name, source.path)
        for array in split:
            array.flags.writeable = False
    # An .npz is the user's own making and may have another order (which is warned of); the official forms may not.
    if source.layout != "npz" and not in_official_order(splits):
        raise DataError(f"{source.path}: its labels are not CIFAR-10's in the official order. Prepare it again")
    return splits


def check_split(split: Split, name: str, path: Path) -> None:
    """Raise DataError unless `split` ("train" or "test") has CIFAR-10's shapes, types, classes and colours."""
    images, labels = split
    expected = (num_images(name), 32, 32, 3)
    if images.dtype != np.uint8 or images.shape != expected:
        raise DataError(
            f"{path}: expected {name} images as uint8 of shape {expected}, "
            f"found {images.dtype} of shape {images.shape}. "
            "Save them in 0..255 and with the axes (example, height, width, channel)"
        )
    if labels.dtype != np.int32 or labels.shape != expected[:1]:
        raise DataError(
            f"{path}: expected {name} labels as int32 of shape {expected[:1]}, "
            f"found {labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{path}: {name} labels lie in {labels.min()}..{labels.max()}, expected 0..9")
    counts = np.bincount(labels, minlength=10)
    if (counts != num_images(name) // 10).any():
        raise DataError(
            f"{path}: expected {num_images(name) // 10} {name} images of each class, found {counts.tolist()}"
        )
    means = images.sum(axis=0, dtype=np.uint32).sum(axis=(0, 1)) / (len(images) * 32 * 32)
    if np.abs(means - CHANNEL_MEANS).max() > CHANNEL_TOLERANCE:
        raise DataError(
            f"{path}: the mean red, green and blue of the {name} images are {np.round(means, 1).tolist()}, not about "
            f"{list(CHANNEL_MEANS)}: the channels are in another order, the pixels scaled or shaped wrongly, or damaged"
        )
