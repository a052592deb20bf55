"""Small data sets with CIFAR-10's structure, in each form that the loader reads.

A batch has 100 images instead of 10,000: 500 to train, 100 to test. tests/data/conftest.py has the loader accept it.
"""

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

from jaxresnet.data.dataset import Dataset, Split
from jaxresnet.data.readers import BATCHES, NPZ_KEYS

BATCH = 100


def fake_data(seed: int = 0) -> Dataset:
    """Noise with CIFAR-10's mean colours, every class equally often."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> Split:
        images = rng.integers(0, (251, 247, 229), (count, 32, 32, 3)).astype(np.uint8)
        return Split(images, rng.permutation(np.arange(count) % 10).astype(np.int32))

    return Dataset(split(5 * BATCH), split(BATCH))


def check(got: Dataset, expected: Dataset) -> None:
    """Assert that the loader returned exactly this."""
    for split in ("train", "test"):
        images, labels = getattr(got, split)
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        np.testing.assert_array_equal(images, getattr(expected, split).images)
        np.testing.assert_array_equal(labels, getattr(expected, split).labels)


def batches(data: Dataset):
    """Yields (name, pixels (BATCH, 3072), labels (BATCH,)), all uint8, as the official files hold them."""
    images = np.concatenate([data.train.images, data.test.images])
    labels = np.concatenate([data.train.labels, data.test.labels]).astype(np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
    for index, name in enumerate(BATCHES):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        yield name, np.ascontiguousarray(planes[rows]), labels[rows]


def files(data: Dataset, layout: str, protocol: int | None = None) -> dict[str, bytes]:
    """Of the official archive; layout: "bin" or "py". protocol: of pickles by this Python, in place of Python 2's."""
    if layout == "bin":
        return {f"{name}.bin": np.c_[labels, planes].tobytes() for name, planes, labels in batches(data)}
    if protocol is None:
        return {name: python2_pickle(planes, labels) for name, planes, labels in batches(data)}
    return {
        name: pickle.dumps({b"labels": labels.tolist(), b"data": planes}, protocol)
        for name, planes, labels in batches(data)
    }


def python2_pickle(planes: np.ndarray, labels: np.ndarray) -> bytes:
    """The opcodes of the official files: byte strings as BINSTRING, NumPy under its old module names."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b") + b"\x87R"
    shape = integer(planes.shape[0]) + integer(planes.shape[1]) + b"\x86"
    array += b"(" + integer(1) + shape + dtype + b"\x89" + text(planes.tobytes()) + b"tb"
    items = text(b"data") + array + text(b"labels") + b"](" + b"".join(integer(int(n)) for n in labels) + b"e"
    return b"\x80\x02}(" + items + b"u."


def flip(raw: bytes, position: int) -> bytes:
    """The last bit of one byte is another."""
    flipped = bytearray(raw)
    flipped[position] ^= 1
    return bytes(flipped)


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_bin(where: Path, data: Dataset) -> Path:
    return write_files(where / "cifar-10-batches-bin", files(data, "bin"))


def write_py(where: Path, data: Dataset, protocol: int | None = None) -> Path:
    return write_files(where / "cifar-10-batches-py", files(data, "py", protocol))


def write_npz(path: Path, data: Dataset, keras: bool = False) -> Path:
    """keras: its names for the arrays, and its labels of shape (N, 1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = dict(zip(NPZ_KEYS[keras], (*data.train, *data.test), strict=True))
    np.savez(path, **{key: array[:, None] if keras and array.ndim == 1 else array for key, array in arrays.items()})
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A .tar.gz of {name: content}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def members(data: Dataset, layout: str) -> dict[str, bytes]:
    """Of the packed archive, which holds other files as well."""
    contents = files(data, layout) | {"readme.html": b"", "batches.meta": b"names"}
    return {f"cifar-10-batches-{layout}/{name}": content for name, content in contents.items()}
