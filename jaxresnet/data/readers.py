"""CIFAR-10 from files: the official archives, packed or extracted, and one NumPy .npz.

Every reader returns a Dataset in the order of the files, or raises a DataError that names the file and what to do. What
the files hold: Krizhevsky (2009), https://www.cs.toronto.edu/~kriz/cifar.html
"""

import gzip
import pickletools
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxresnet.data.dataset import Dataset, Split
from jaxresnet.errors import DataError, short

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
BATCH_FOLDERS = {"bin": "cifar-10-batches-bin", "py": "cifar-10-batches-py"}
IMAGES_PER_BATCH = 10_000
PIXELS = 3 * 32 * 32
# CRC-32 of the labels of each batch, as bytes, in the official order: files that were swapped, copied over each other,
# or belong to another data set do not pass for CIFAR-10.
LABEL_CRC32 = (0x8EE293B3, 0x1BE266ED, 0x6CAE721A, 0x12C0B39C, 0xA424037D, 0xBADA58C9)
NPZ_KEYS = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),  # as Keras calls them
)
AGAIN = "Extract or download the archive again"


def num_images(split: str) -> int:
    return IMAGES_PER_BATCH * (5 if split == "train" else 1)


def in_official_order(data: Dataset) -> bool:
    labels = np.concatenate([data.train.labels, data.test.labels]).reshape(len(BATCHES), IMAGES_PER_BATCH)
    return tuple(map(label_crc32, labels)) == LABEL_CRC32


def label_crc32(labels: np.ndarray) -> int:
    return zlib.crc32(labels.astype(np.uint8).tobytes())


# ------------------------------------------------------------------------------------------- the official archives


def batch_files(layout: str) -> list[str]:
    """Names of the six files of an extracted archive; layout: "bin" or "py"."""
    return [f"{batch}.bin" if layout == "bin" else batch for batch in BATCHES]


def read_batches(folder: Path, layout: str) -> Dataset:
    """Read an extracted archive: six files of records ("bin"), or six pickles ("py")."""
    files = [folder / name for name in batch_files(layout)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder}: missing {', '.join(missing)}. {AGAIN}")
    return _join(layout, ((str(file), file.read_bytes()) for file in files))


def read_archive(path: Path) -> Dataset:
    """Read cifar-10-binary.tar.gz or cifar-10-python.tar.gz, whatever it is called now. Nothing is unpacked to disk."""
    members = {layout: [f"{BATCH_FOLDERS[layout]}/{n}" for n in batch_files(layout)] for layout in BATCH_FOLDERS}
    contents: dict[str, bytes] = {}
    try:
        with gzip.open(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if (name in members["bin"] or name in members["py"]) and (file := archive.extractfile(member)):
                    contents[name] = file.read()
            while unpacked.read(1 << 20):  # gzip compares the CRC-32 at its end
                pass
    # A damaged archive raises almost anything: TarError, BadGzipFile, EOFError, zlib.error, ...
    except Exception as error:
        raise DataError(f"{path}: truncated or damaged ({short(error)}). Download the archive again") from error
    layout = "py" if members["py"][0] in contents else "bin"
    if missing := [name for name in members[layout] if name not in contents]:
        raise DataError(f"{path}: missing {', '.join(missing)}. Download the archive again")
    return _join(layout, ((f"{path}: {name}", contents.pop(name)) for name in members[layout]))


def _join(layout: str, contents: Iterable[tuple[str, bytes]]) -> Dataset:
    """Join the six batches, given in the order of BATCHES as (name for messages, content)."""
    parse = _parse_bin if layout == "bin" else _parse_pickle
    images = np.empty((len(BATCHES) * IMAGES_PER_BATCH, 32, 32, 3), np.uint8)
    labels = np.empty(len(BATCHES) * IMAGES_PER_BATCH, np.int32)
    for index, (name, raw) in enumerate(contents):
        planes, batch_labels = parse(raw, name)
        rows = slice(index * IMAGES_PER_BATCH, (index + 1) * IMAGES_PER_BATCH)
        images[rows] = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels[rows] = _checked_labels(batch_labels, name, AGAIN)
        crc = label_crc32(labels[rows])
        if crc != LABEL_CRC32[index]:
            of = f"{BATCHES[LABEL_CRC32.index(crc)]}, not" if crc in LABEL_CRC32 else "something else, not"
            raise DataError(f"{name}: holds the labels of {of} of {BATCHES[index]}. {AGAIN}")
    return split_in_two(images, labels)


def split_in_two(images: np.ndarray, labels: np.ndarray) -> Dataset:
    """All images and labels, train before test."""
    train = num_images("train")
    return Dataset(Split(images[:train], labels[:train]), Split(images[train:], labels[train:]))


def _parse_bin(raw: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label byte and 3,072 pixel bytes, the red, the green and the blue plane, as (pixels, labels)."""
    expected = IMAGES_PER_BATCH * (1 + PIXELS)
    if len(raw) != expected:
        raise DataError(f"{name}: expected {expected:,} bytes, found {len(raw):,}. {AGAIN}")
    records = np.frombuffer(raw, np.uint8).reshape(IMAGES_PER_BATCH, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def _parse_pickle(raw: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dictionary of `data`, the pixels as in the records, and `labels`, as (pixels, labels).

    Both are read off the pickle's opcodes. None is executed, as a pickle may call whatever it names.
    """
    pixels: str | bytes = b""
    labels: list[int] = []
    before: str | bytes = b""  # the string before a number
    try:
        for opcode, argument, _ in pickletools.genops(raw):
            if isinstance(argument, str | bytes) and len(argument) == IMAGES_PER_BATCH * PIXELS:
                pixels = argument
            elif isinstance(argument, str | bytes):
                before = before if argument == "latin1" else argument  # Python 3 puts it behind a byte string
            elif "INT" in opcode.name and isinstance(argument, int) and before in ("labels", b"labels"):
                labels.append(argument)
        if not pixels or len(labels) != IMAGES_PER_BATCH:
            raise ValueError(f"found {len(pixels):,} bytes of pixels and {len(labels):,} labels")
        planes = np.frombuffer(pixels.encode("latin-1") if isinstance(pixels, str) else pixels, np.uint8)
    except ValueError as error:  # a damaged pickle, too
        raise DataError(f"{name}: not a batch of CIFAR-10 ({short(error)}). {AGAIN}") from error
    return planes.reshape(IMAGES_PER_BATCH, PIXELS), np.array(labels)


# ------------------------------------------------------------------------------------------------------- one .npz


def read_npz(path: Path) -> Dataset:
    """Read a NumPy .npz file; the labels are any integers, (N,) or (N, 1). The images are not checked."""
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            keys = next((keys for keys in NPZ_KEYS if set(keys) <= set(file.files)), None)
            arrays = [np.ascontiguousarray(file[key]) for key in keys or ()]
            found = file.files
    # A damaged zip file raises almost anything: BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, ...
    except Exception as error:
        raise DataError(f"{path}: not a readable .npz file of plain arrays ({short(error)}). Write it again") from error
    if not arrays:
        raise DataError(f"{path}: holds {short(found)}. Save the arrays {', '.join(NPZ_KEYS[0])} in it")
    train_images, train_labels, test_images, test_labels = arrays
    remedy = "Save the classes 0..9 as integers"
    train = Split(train_images, _checked_labels(train_labels, f"{path}: train_labels", remedy))
    return Dataset(train, Split(test_images, _checked_labels(test_labels, f"{path}: test_labels", remedy)))


def _checked_labels(labels: np.ndarray, where: str, remedy: str) -> np.ndarray:
    """(N,) or (N, 1) integers in 0..9 as (N,) int32. DataError where they are not."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: expected integer labels (N,), found {labels.dtype} {labels.shape}. {remedy}")
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if len(wrong):
        raise DataError(f"{where}: label {labels[wrong[0]]} of image {wrong[0]} is not in 0..9. {remedy}")
    return labels.astype(np.int32)
