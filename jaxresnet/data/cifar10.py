"""CIFAR-10 in the official order: found on disk or downloaded, checked, and cached."""

import functools
import hashlib
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxresnet.data import readers, tfds
from jaxresnet.data.dataset import CLASS_NAMES, Dataset, Split
from jaxresnet.data.readers import PIXELS, num_images
from jaxresnet.errors import DataError, StorageError
from jaxresnet.files import cache_folder, local_path, write_bytes

DATA_VARIABLE = "JAXRESNET_DATA"
ARCHIVE_NAMES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
# Mean red, green and blue of the training images, 0..255; the test images' are within 1. Channels in another order and
# pixels scaled or shaped wrongly lie further off than the tolerance.
CHANNEL_MEANS = (125.3, 123.0, 113.9)
CHANNEL_TOLERANCE = 2.0
CACHE_FORMAT = 2  # raise it when the cache's form or the checks before writing it change


class Source(NamedTuple):
    """A recognised copy of CIFAR-10: what reads it, the folder or file, and all files to read."""

    read: Callable[[Path], Dataset]
    path: Path
    files: tuple[Path, ...]


def load_cifar10(data_dir: str | os.PathLike | None = None, cache_dir: str | os.PathLike | None = None) -> Dataset:
    """CIFAR-10: .train with 50,000 and .test with 10,000 examples, in the official order.

    Each split has images (N, 32, 32, 3) uint8, 0..255, RGB, and labels (N,) int32, 0..9. The arrays are read-only.

    data_dir: a folder that holds CIFAR-10, or the path of it: the official archive, binary or python, packed or
        extracted; what TensorFlow Datasets prepares (array_record); or an .npz with train_images, train_labels,
        test_images, test_labels. Without it: $JAXRESNET_DATA; then the folder of TensorFlow Datasets
        (~/tensorflow_datasets); then the data set is downloaded and prepared there.
    cache_dir: where the checked copy is kept that later calls map into memory, in well under a second. By default
        the user's cache folder, on Linux ~/.cache/jaxresnet.

    Raises DataError, naming the file and the remedy, when what was given is not there, damaged, or not CIFAR-10: it is
    never replaced by another copy or a download. Warns when the cache cannot be written, or when an .npz is not in the
    official order.
    """
    source = _locate(data_dir)
    cache, version = _cache_file(source, cache_dir), _version(source)
    data = _read_cache(cache, version)
    if data is None:
        data = _read(source)
        try:
            _write_cache(cache, version, data)
        except StorageError as error:
            warnings.warn(f"no cache (cache_dir), so {source.path} is read again each time: {error}", stacklevel=2)
    if not readers.in_official_order(data):
        if source.path.suffix != ".npz":  # which is the user's own making
            raise DataError(f"{source.path}: its labels are not CIFAR-10's in the official order. Prepare it again")
        warnings.warn(
            f"{source.path}: the images are not in the official order, so a seed selects other validation images "
            "and batches than it does for everybody else",
            stacklevel=2,
        )
    for array in (*data.train, *data.test):
        array.flags.writeable = False
    return data._replace(name="cifar10", class_names=CLASS_NAMES)


# ---------------------------------------------------------------------------------------------- where it is looked for


def _locate(data_dir: str | os.PathLike | None) -> Source:
    """CIFAR-10 in the first of the places that is given; downloaded when none is."""
    if data_dir is not None:
        return _require(local_path(data_dir), "data_dir")
    if variable := os.environ.get(DATA_VARIABLE):
        return _require(local_path(variable), f"${DATA_VARIABLE}")
    root = tfds.default_tfds_dir()
    if (root / tfds.DIRECTORY).exists() and not tfds.find_prepared(root):  # for programs that have TensorFlow
        root = cache_folder() / "tensorflow_datasets"
    return _require(tfds.find_prepared(root) or tfds.download_and_prepare(root), "TensorFlow Datasets")


def _require(where: Path, origin: str) -> Source:
    """The copy at `where`. DataError, which tells what was found there instead, when there is none."""
    try:
        source = _find(where)
        found = sorted(entry.name for entry in where.iterdir()) if where.is_dir() else [where.name]
    except OSError as error:
        raise DataError(f"{where} ({origin}): cannot be read ({error}). Mend that, or give another path") from error
    if source is None:
        problem = f"{', '.join(found[:10]) or 'nothing'} is there" if where.exists() else "there is no such path"
        raise DataError(
            f"{where} ({origin}): holds no CIFAR-10: {problem}. Put {' or '.join(ARCHIVE_NAMES)}, either of them "
            f"extracted, cifar10/3.0.2/ (of TensorFlow Datasets, as {tfds.FILE_FORMAT}) or an .npz there, or give "
            f"neither data_dir nor ${DATA_VARIABLE}"
        )
    return source


def _find(where: Path) -> Source | None:
    """The copy of CIFAR-10 in the folder, or the file, `where`, by names alone; the quickest to read of several."""
    if where.name.endswith((".npz", ".tar.gz", ".tgz")) and where.is_file():
        return Source(readers.read_npz if where.suffix == ".npz" else readers.read_archive, where, (where,))
    for layout, folder_name in readers.BATCH_FOLDERS.items():
        for folder in (where, where / folder_name):
            files = tuple(folder / name for name in readers.batch_files(layout))
            if any(file.exists() for file in files):
                return Source(functools.partial(readers.read_batches, layout=layout), folder, files)
    if archive := next((where / name for name in ARCHIVE_NAMES if (where / name).is_file()), None):
        return Source(readers.read_archive, archive, (archive,))
    if prepared := tfds.find_prepared(where):
        return Source(tfds.read_prepared, prepared, tuple(sorted(prepared.iterdir())))
    found = sorted(where.glob("*.npz"))
    if len(found) > 1:
        raise DataError(f"{where}: holds several .npz files ({', '.join(f.name for f in found)}). Give the path of one")
    return Source(readers.read_npz, found[0], (found[0],)) if found else None


# ----------------------------------------------------------------------------------------------------- read and checked


def _read(source: Source) -> Dataset:
    """Read the source and check all that is known about CIFAR-10. DataError where it is something else."""
    path = source.path
    try:
        data = source.read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}). Mend that, or give another path") from error
    _check(data.train, "train", path)
    _check(data.test, "test", path)
    return data


def _check(split: Split, name: str, path: Path) -> None:
    """Raise DataError unless `split` ("train" or "test") has CIFAR-10's shapes, classes and colours."""
    images, labels = split
    count = num_images(name)
    if images.dtype != np.uint8 or images.shape != (count, 32, 32, 3) or len(labels) != count:
        raise DataError(
            f"{path}: expected {count} {name} images as uint8 {(count, 32, 32, 3)} and as many labels, found "
            f"{images.dtype} {images.shape} and {len(labels)} labels. Save them in 0..255 and in that form"
        )
    classes = np.bincount(labels, minlength=10)
    if (classes != count // 10).any():
        raise DataError(
            f"{path}: expected {count // 10} {name} images of each class, found {classes.tolist()}. Save all of them"
        )
    means = images.sum(axis=0, dtype=np.uint32).sum(axis=(0, 1)) / (count * 32 * 32)
    if np.abs(means - CHANNEL_MEANS).max() > CHANNEL_TOLERANCE:
        raise DataError(
            f"{path}: the mean red, green and blue of the {name} images are {np.round(means, 1).tolist()}, not about "
            f"{list(CHANNEL_MEANS)}. The channels are in another order, or the pixels scaled, reshaped or damaged"
        )


# ----------------------------------------------------------------------------------------------------------- the cache
# One file a source: the pixels of all images, train before test; a byte a label; the version of the source that they
# were read from; the CRC-32 of all that, 4 bytes.


def _cache_file(source: Source, cache_dir: str | os.PathLike | None) -> Path:
    root = cache_folder() if cache_dir is None else local_path(cache_dir)
    return root / f"cifar10-{hashlib.blake2b(os.fsencode(source.path.resolve()), digest_size=10).hexdigest()}.cache"


def _version(source: Source) -> bytes:
    """16 bytes that change with the names, sizes and times of the source's files, which are not read."""
    stats = [(file.name, file.stat()) for file in source.files if file.exists()]
    # The change time as well: unlike the modification time it cannot be set, by `cp -p` or `rsync -t`.
    files = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]
    return hashlib.blake2b(repr((CACHE_FORMAT, files)).encode(), digest_size=16).digest()


def _read_cache(file: Path, version: bytes) -> Dataset | None:
    """Map the cache into memory; None where there is none of this version that is whole."""
    try:
        raw = np.memmap(file, np.uint8, mode="r")
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    total = num_images("train") + num_images("test")
    images, labels, rest = np.split(np.asarray(raw), [total * PIXELS, total * (PIXELS + 1)])
    if rest.tobytes() != version + zlib.crc32(raw[:-4].data).to_bytes(4, "big"):
        return None
    return readers.split_in_two(images.reshape(total, 32, 32, 3), labels.astype(np.int32))


def _write_cache(file: Path, version: bytes, data: Dataset) -> None:
    labels = np.concatenate([data.train.labels, data.test.labels]).astype(np.uint8)
    parts: list[Any] = [data.train.images, data.test.images, labels, version]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    write_bytes(file, b"".join([*parts, crc.to_bytes(4, "big")]))
