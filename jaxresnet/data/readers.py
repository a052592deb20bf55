"""CIFAR-10 from files: the six batches of the official archives (`bin` and `py`), and one NumPy `.npz`.

A reader returns {"train": Split, "test": Split}, images (N, 32, 32, 3) uint8 and labels (N,) int32, or raises
DataError.
"""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxresnet.data.cifar10_pickle import parse_pickle
from jaxresnet.data.dataset import Split
from jaxresnet.errors import DataError, short

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
IMAGES_PER_BATCH = 10_000
PIXELS = 3 * 32 * 32
# CRC-32 of the labels of each batch, as bytes, in the official order: files that were swapped, copied over each other,
# or belong to another data set do not pass for CIFAR-10.
LABEL_CRC32 = (0x8EE293B3, 0x1BE266ED, 0x6CAE721A, 0x12C0B39C, 0xA424037D, 0xBADA58C9)

BATCH_FOLDERS = {"bin": "cifar-10-batches-bin", "py": "cifar-10-batches-py"}
BATCH_SUFFIX = {"bin": ".bin", "py": ""}
NPZ_KEYS = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),  # as Keras calls them
)

Splits = dict[str, Split]


class Source(NamedTuple):
    """A recognised copy of CIFAR-10: its layout (see `cifar10_source`), the folder or file, and all files to read."""

    layout: str
    path: Path
    files: tuple[Path, ...]


def num_images(split: str) -> int:
    return IMAGES_PER_BATCH * (5 if split == "train" else 1)


def read_batch_files(source: Source) -> Splits:
    """Read the six files of an extracted official archive."""
    missing = [file.name for file in source.files if not file.is_file()]
    if missing:
        raise DataError(f"{source.path}: missing {', '.join(missing)}. Extract the archive again")
    limit = batch_size_limit(source.layout)

    def contents() -> Iterable[tuple[str, bytes]]:
        for file in source.files:
            with open(file, "rb") as stream:
                yield str(file), stream.read(limit + 1)  # one byte more than is right, so that a longer file is noticed

    return parse_batches(source.layout, contents())


def batch_size_limit(layout: str) -> int:
    """The largest size of a batch file in bytes; a `bin` file has exactly this size."""
    if layout == "bin":
        return IMAGES_PER_BATCH * (1 + PIXELS)
    # Pixels in a pickle written by Python 3 are UTF-8 text, up to twice as long; file names and labels come on top.
    return IMAGES_PER_BATCH * (2 * PIXELS + 512) + 65536


def parse_batches(layout: str, contents: Iterable[tuple[str, bytes]]) -> Splits:
    """Turn the six batch files, given as (name for messages, content) in the order of BATCHES, into splits."""
    parse = parse_bin if layout == "bin" else parse_pickle
    images = np.empty((len(BATCHES) * IMAGES_PER_BATCH, 32, 32, 3), np.uint8)
    labels = np.empty(len(BATCHES) * IMAGES_PER_BATCH, np.int32)
    for index, (name, raw) in enumerate(contents):
        if len(raw) > batch_size_limit(layout):
            raise DataError(
                f"{name}: expected at most {batch_size_limit(layout):,} bytes, found more. Extract the archive again"
            )
        batch_planes, batch_labels = parse(raw, name, IMAGES_PER_BATCH)
        check_batch_labels(batch_labels, index, name)
        rows = slice(index * IMAGES_PER_BATCH, (index + 1) * IMAGES_PER_BATCH)
        images[rows] = batch_planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        labels[rows] = batch_labels
    num_train = num_images("train")
    return {
        "train": Split(images[:num_train], labels[:num_train]),
        "test": Split(images[num_train:], labels[num_train:]),
    }


def parse_bin(raw: bytes, name: str, num_records: int) -> tuple[np.ndarray, np.ndarray]:
    """Split one .bin file into pixels (N, 3072) uint8, red then green then blue plane, and labels (N,) uint8."""
    expected = num_records * (1 + PIXELS)
    if len(raw) != expected:
        raise DataError(
            f"{name}: expected {expected:,} bytes, found {len(raw):,}. Extract or download the archive again"
        )
    records = np.frombuffer(raw, np.uint8).reshape(num_records, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def label_crc32(labels: np.ndarray) -> int:
    return zlib.crc32(labels.astype(np.uint8).tobytes())


def check_batch_labels(labels: np.ndarray, index: int, name: str) -> None:
    """Raise DataError unless `labels` (N,) are those of the official batch number `index`."""
    bad = np.flatnonzero(labels > 9)
    if len(bad):
        raise DataError(f"{name}: label {labels[bad[0]]} of image {bad[0]} is not in 0..9. Download the archive again")
    crc = label_crc32(labels)
    if crc == LABEL_CRC32[index]:
        return
    if crc in LABEL_CRC32:
        raise DataError(
            f"{name}: holds the labels of {BATCHES[LABEL_CRC32.index(crc)]}, not of {BATCHES[index]}: "
            "files were swapped or copied over each other. Extract the archive again"
        )
    raise DataError(f"{name}: its labels are not those of CIFAR-10's {BATCHES[index]}. Download the archive again")


def in_official_order(splits: Splits) -> bool:
    labels = np.concatenate([splits["train"].labels, splits["test"].labels]).reshape(len(BATCHES), IMAGES_PER_BATCH)
    return tuple(label_crc32(batch) for batch in labels) == LABEL_CRC32


def read_npz(path: Path) -> Splits:
    """Read a NumPy .npz file; the images must be uint8 (N, 32, 32, 3), the labels any integers (N,) or (N, 1)."""
    try:
        # A member is at most its array in 64-bit integers and a short header: refuse what unpacks to more.
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.file_size > num_images("train") * PIXELS * 8 + 65536:
                    raise DataError(
                        f"{path}: {short(member.filename)} has {member.file_size:,} bytes, too many for CIFAR-10"
                    )
        with np.load(path, allow_pickle=False) as arrays:
            keys = next((keys for keys in NPZ_KEYS if set(keys) <= set(arrays.files)), None)
            if keys is None:
                raise DataError(f"{path}: expected the arrays {', '.join(NPZ_KEYS[0])}, found {short(arrays.files)}")
            train_images, train_labels, test_images, test_labels = (np.ascontiguousarray(arrays[k]) for k in keys)
    except DataError:
        raise
    # A damaged zip file raises almost anything: BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, ...
    except Exception as error:
        raise DataError(f"{path}: not a readable .npz file of plain arrays ({short(error)}). Write it again") from error
    return {
        "train": Split(train_images, _npz_labels(train_labels, path)),
        "test": Split(test_images, _npz_labels(test_labels, path)),
    }


def _npz_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.dtype.kind not in "iu":
        raise DataError(f"{path}: expected integer labels, found {labels.dtype}. Save them with labels.astype('int32')")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.size and (labels.min() < 0 or labels.max() > 9):  # before the cast, which could wrap round
        raise DataError(f"{path}: labels lie in {labels.min()}..{labels.max()}, expected 0..9")
    return labels.astype(np.int32)
