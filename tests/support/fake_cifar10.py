"""Small data sets with CIFAR-10's structure, in each form that the loader reads.

    with isolated_fakes(monkeypatch, tmp_path) as splits:  # the loader now expects these counts and labels
        check(load_cifar10(write_bin(tmp_path, splits)), splits)

A batch has 100 images instead of 10,000: 500 to train, 100 to test.
"""

import contextlib
import io
import pickle
import struct
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxresnet.data import readers as cifar10_files
from jaxresnet.data import tfds as cifar10_tfds
from jaxresnet.data.dataset import Dataset, Split
from jaxresnet.data.readers import BATCHES, label_crc32
from support.tiny import collect_garbage

BATCH = 100


def fake_splits(seed: int = 0) -> dict[str, Split]:
    """Noise with CIFAR-10's mean colours, every class equally often."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> Split:
        images = rng.integers(0, (251, 247, 229), (count, 32, 32, 3)).astype(np.uint8)
        return Split(images, rng.permutation(np.arange(count) % 10).astype(np.int32))

    return {"train": split(5 * BATCH), "test": split(BATCH)}


def accept_fakes(monkeypatch, splits: dict[str, Split]) -> None:
    """Make the loader expect these counts and labels instead of CIFAR-10's."""
    monkeypatch.setattr(cifar10_files, "IMAGES_PER_BATCH", BATCH)
    monkeypatch.setattr(cifar10_files, "LABEL_CRC32", tuple(label_crc32(labels) for _, _, labels in batches(splits)))


@contextlib.contextmanager
def isolated_fakes(monkeypatch, tmp_path: Path) -> Iterator[dict[str, Split]]:
    """Fake splits that the loader accepts, cut off from this machine's data sets, caches and network.

    Warnings are errors meanwhile, so that one that a test does not expect fails it.
    """

    def no_download(root):
        raise AssertionError("tried to download")

    splits = fake_splits()
    accept_fakes(monkeypatch, splits)
    monkeypatch.delenv("JAXRESNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar10_tfds, "default_tfds_dir", lambda: tmp_path / "tensorflow_datasets")
    monkeypatch.setattr(cifar10_tfds, "download_and_prepare", no_download)
    collect_garbage()  # of tests before, whose warnings are not this one's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield splits


def check(dataset: Dataset, splits: dict[str, Split]) -> None:
    """Assert that the loader returned exactly these splits, read-only."""
    for got, expected in ((dataset.train, splits["train"]), (dataset.test, splits["test"])):
        assert got.images.dtype == np.uint8 and got.labels.dtype == np.int32
        assert not got.images.flags.writeable and not got.labels.flags.writeable
        np.testing.assert_array_equal(got.images, expected.images)
        np.testing.assert_array_equal(got.labels, expected.labels)


class Runs:
    """Pickles as a call of `function`: the way in which a hostile pickle runs code."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def batches(splits: dict[str, Split]):
    """Yields (name, pixels (BATCH, 3072), labels (BATCH,)), all uint8, as the official files hold them."""
    images = np.concatenate([splits["train"].images, splits["test"].images])
    labels = np.concatenate([splits["train"].labels, splits["test"].labels]).astype(np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
    for index, name in enumerate(BATCHES):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        yield name, np.ascontiguousarray(planes[rows]), labels[rows]


def bin_files(splits: dict[str, Split]) -> dict[str, bytes]:
    return {f"{name}.bin": np.c_[labels, planes].tobytes() for name, planes, labels in batches(splits)}


def py_files(splits: dict[str, Split], protocol: int | None = None) -> dict[str, bytes]:
    """Pickles as Python 2 wrote the official ones, or as this Python writes them with the given protocol."""
    if protocol is None:
        return {name: python2_pickle(planes, labels) for name, planes, labels in batches(splits)}
    return {
        name: pickle.dumps({b"labels": labels.tolist(), b"data": planes}, protocol=protocol)
        for name, planes, labels in batches(splits)
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


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_bin(where: Path, splits: dict[str, Split]) -> Path:
    return write_files(where / "cifar-10-batches-bin", bin_files(splits))


def write_py(where: Path, splits: dict[str, Split], protocol: int | None = None) -> Path:
    return write_files(where / "cifar-10-batches-py", py_files(splits, protocol))


def write_npz(path: Path, splits: dict[str, Split], keras_names: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    train, test = splits["train"], splits["test"]
    if keras_names:  # Keras gives labels of shape (N, 1)
        np.savez(
            path, x_train=train.images, y_train=train.labels[:, None], x_test=test.images, y_test=test.labels[:, None]
        )
    else:
        np.savez(
            path,
            train_images=train.images,
            train_labels=train.labels,
            test_images=test.images,
            test_labels=test.labels,
        )
    return path


def write_tar(path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    """A .tar.gz of (name, content) pairs and of ready-made entries, such as links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            entry = tarfile.TarInfo(member[0])
            entry.size = len(member[1])
            archive.addfile(entry, io.BytesIO(member[1]))
    return path


def bin_members(splits: dict[str, Split]) -> list[tuple[str, bytes] | tarfile.TarInfo]:
    return [(f"cifar-10-batches-bin/{name}", content) for name, content in bin_files(splits).items()]


def py_members(splits: dict[str, Split]) -> list[tuple[str, bytes] | tarfile.TarInfo]:
    return [(f"cifar-10-batches-py/{name}", content) for name, content in py_files(splits).items()]
