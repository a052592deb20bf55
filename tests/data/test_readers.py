"""Damage to extracted archives and .npz files: an error that names the file, never wrong data."""

import numpy as np
import pytest
from support.fake_cifar10 import BATCH, Runs, check, isolated_fakes, write_bin, write_npz, write_py

from jaxresnet.data import readers as cifar10_files
from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.data.dataset import Split
from jaxresnet.errors import DataError


@pytest.fixture(autouse=True)
def splits(monkeypatch, tmp_path):
    with isolated_fakes(monkeypatch, tmp_path) as splits:
        yield splits


def set_label(content, position, label):
    return content[: position * 3073] + bytes([label]) + content[position * 3073 + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], r"expected 307,300 bytes, found 307,299"),
        (lambda raw: raw + b"\0", r"expected at most 307,300 bytes, found more"),
        (lambda raw: b"", r"expected 307,300 bytes, found 0"),
        (lambda raw: set_label(raw, 3, 10), r"label 10 of image 3 is not in 0..9"),
        (lambda raw: set_label(raw, 3, (raw[3 * 3073] + 1) % 10), r"labels are not those of CIFAR-10's data_batch_2"),
        (lambda raw: bytes(len(raw)), r"labels are not those"),  # a download that only reserved its space
    ],
)
def test_damaged_bin_file(damage, message, tmp_path, splits):
    file = write_bin(tmp_path / "data", splits) / "data_batch_2.bin"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=rf"data_batch_2\.bin: .*{message}.*archive again"):
        load_cifar10(tmp_path / "data")


@pytest.mark.parametrize("write", [write_bin, write_py])
def test_swapped_and_duplicated_batches(write, tmp_path, splits):
    folder = write(tmp_path / "data", splits)
    suffix = cifar10_files.BATCH_SUFFIX["bin" if write is write_bin else "py"]
    first, second, test = (folder / f"{name}{suffix}" for name in ("data_batch_1", "data_batch_2", "test_batch"))
    original = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(original)
    with pytest.raises(DataError, match=r"data_batch_1.*holds the labels of data_batch_2"):
        load_cifar10(folder)
    first.write_bytes(original)
    with pytest.raises(DataError, match=r"data_batch_2.*holds the labels of data_batch_1"):
        load_cifar10(folder)
    write(tmp_path / "data", splits)
    test.write_bytes(original)
    with pytest.raises(DataError, match=r"test_batch.*holds the labels of data_batch_1"):
        load_cifar10(folder)


def test_missing_batch_file(tmp_path, splits):
    folder = write_bin(tmp_path / "data", splits)
    (folder / "data_batch_4.bin").unlink()
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"missing data_batch_4.bin, test_batch.bin\. Extract"):
        load_cifar10(tmp_path / "data")


# --- npz ---


def changed(splits, split="train", images=None, labels=None):
    old = splits[split]
    new = Split(images(old.images) if images else old.images, labels(old.labels) if labels else old.labels)
    return splits | {split: new}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": lambda x: x.astype(np.float32)}, "expected train images as uint8 .* found float32"),
        ({"images": lambda x: x.transpose(0, 3, 1, 2)}, r"found uint8 of shape \(500, 3, 32, 32\)"),
        ({"images": lambda x: x[..., ::-1]}, "mean red, green and blue"),  # BGR
        ({"images": lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape)}, "mean red, green and blue"),
        ({"images": lambda x: x // 255}, "mean red, green and blue"),
        ({"images": lambda x: x[:-1], "labels": lambda y: y[:-1]}, r"found uint8 of shape \(499, 32, 32, 3\)"),
        ({"labels": lambda y: y[:-1]}, r"expected train labels as int32 of shape \(500,\)"),
        ({"labels": lambda y: np.eye(10, dtype=int)[y]}, r"found int32 of shape \(500, 10\)"),
        ({"labels": lambda y: y.astype(float)}, "expected integer labels, found float64"),
        ({"labels": lambda y: y + 1}, r"labels lie in 1..10, expected 0..9"),
        ({"labels": lambda y: y.astype(np.int64) + 2**32}, "expected 0..9"),  # would wrap round in int32
        ({"labels": lambda y: y // 2}, "expected 50 train images of each class, found"),
        ({"split": "test", "labels": lambda y: y * 0}, "expected 10 test images of each class"),
        ({"images": lambda x: np.array([None, {}], object)}, "not a readable .npz file of plain arrays .*allow_pickle"),
        ({"labels": lambda y: np.array([Runs(print)], object)}, "allow_pickle"),
    ],
)
def test_wrong_npz(change, message, tmp_path, splits):
    path = write_npz(tmp_path / "any.npz", changed(splits, **change))
    with pytest.raises(DataError, match=rf"any\.npz: .*{message}"):
        load_cifar10(path)


def test_npz_with_swapped_splits_or_missing_arrays(tmp_path, splits):
    path = write_npz(tmp_path / "any.npz", {"train": splits["test"], "test": splits["train"]})
    with pytest.raises(DataError, match="expected train images"):
        load_cifar10(path)
    np.savez(path, images=splits["train"].images, labels=splits["train"].labels)
    with pytest.raises(DataError, match=r"expected the arrays train_images, .*found .*images.*labels"):
        load_cifar10(path)


def test_damaged_npz(tmp_path, splits):
    path = write_npz(tmp_path / "any.npz", splits)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (b"", whole[:1000], whole[:-30], bytes(flipped), b"\x93NUMPY not a zip file"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"any\.npz: not a readable .npz file"):
            load_cifar10(path)


def test_npz_bomb(tmp_path):
    limit = 5 * BATCH * 3072 * 8 + 65536
    np.savez_compressed(tmp_path / "any.npz", train_images=np.zeros(limit, np.uint8))
    with pytest.raises(DataError, match=r"train_images.npy. has .* too many for CIFAR-10"):
        load_cifar10(tmp_path / "any.npz")


def test_npz_in_another_order_warns_each_time(tmp_path, splits):
    order = np.random.default_rng(1).permutation(5 * BATCH)
    other = changed(splits, images=lambda x: x[order], labels=lambda y: y[order])
    path = write_npz(tmp_path / "any.npz", other)
    for _ in range(2):  # read, then from the cache
        with pytest.warns(UserWarning, match="not in the official order"):
            check(load_cifar10(path), other)
