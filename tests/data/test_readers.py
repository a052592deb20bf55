"""Damage to archives, extracted or not, and to .npz files: an error with the file and the remedy, never wrong data."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from support import fake_cifar10 as fake

from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.data.dataset import Split
from jaxresnet.data.readers import batch_files
from jaxresnet.errors import DataError

# --- extracted archives ---


def test_damaged_bin_file(tmp_path, data):
    file = fake.write_bin(tmp_path / "data", data) / "data_batch_2.bin"
    raw = file.read_bytes()
    for damaged, message in (
        (raw[:-1], r"expected 307,300 bytes, found 307,299"),
        (bytes([10]) + raw[1:], r"label 10 of image 0 is not in 0..9"),
        (fake.flip(raw, 3 * 3073), r"labels of something else, not of data_batch_2"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"data_batch_2\.bin: .*{message}.*archive again"):
            load_cifar10(tmp_path / "data")


@pytest.mark.parametrize(("write", "layout"), [(fake.write_bin, "bin"), (fake.write_py, "py")], ids=["bin", "py"])
def test_duplicated_and_missing_batches(write, layout, tmp_path, data):
    folder = write(tmp_path / "data", data)
    first, second, *_, test = (folder / name for name in batch_files(layout))
    test.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=rf"{test.name}: holds the labels of data_batch_1, not of test_batch"):
        load_cifar10(folder)
    second.unlink()
    test.unlink()
    with pytest.raises(DataError, match=rf"missing {second.name}, {test.name}\. Extract"):
        load_cifar10(folder)


class Attack:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def test_malicious_pickle_does_not_run(tmp_path, data):
    attack = pickle.dumps({b"data": Attack(tmp_path / "executed"), b"labels": []}, protocol=2)
    with pytest.raises(DataError, match=r"data_batch_3: not a batch"):
        load_cifar10(fake.write_files(fake.write_py(tmp_path, data), {"data_batch_3": attack}))
    assert not (tmp_path / "executed").exists()


def test_damaged_pickle(tmp_path, data):
    folder = fake.write_py(tmp_path, data)
    _, pixels, _ = next(fake.batches(data))
    for name, labels, length, message in (
        (b"labels", [0] * 100, -100, "not a batch of CIFAR-10"),
        (b"labels", [0] * 100, 0, "not a batch"),
        (b"fine_labels", [0] * 100, None, "307,200 bytes of pixels and 0 labels"),  # CIFAR-100
        (b"labels", [0] * 99, None, "307,200 bytes of pixels and 99 labels"),
        (b"labels", [0] * 99 + [10], None, "label 10 of image 99"),
        (b"labels", [0] * 100, None, "labels of something else, not of data_batch_3"),
    ):
        content = pickle.dumps({name: labels, b"data": pixels}, protocol=2)[:length]
        fake.write_files(folder, {"data_batch_3": content})
        with pytest.raises(DataError, match=rf"data_batch_3: .*{message}.*archive again"):
            load_cifar10(folder)


def test_fake_official_pickle_is_what_other_programs_read(data):
    _, planes, labels = next(fake.batches(data))
    batch = pickle.loads(fake.python2_pickle(planes, labels), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], planes)
    assert batch[b"labels"] == labels.tolist()


# --- archives ---


def test_damaged_archive(tmp_path, data):
    path = fake.write_tar(tmp_path / "any.tgz", fake.members(data, "bin"))
    raw = path.read_bytes()
    for damaged in (b"", raw[: len(raw) // 2], fake.flip(raw, -6), b"<html>not found</html>"):  # -6: the CRC-32
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"any.tgz: truncated or damaged .*Download the archive again"):
            load_cifar10(path)


def test_archive_of_something_else(tmp_path, data):
    members = fake.members(data, "py")
    del members["cifar-10-batches-py/test_batch"]
    with pytest.raises(DataError, match=r"a.tar.gz: missing cifar-10-batches-py/test_batch\..*archive again"):
        load_cifar10(fake.write_tar(tmp_path / "a.tar.gz", members))
    members = {**fake.members(data, "bin"), "cifar-10-batches-bin/data_batch_2.bin": b"short"}
    with pytest.raises(DataError, match=r"b.tar.gz: cifar-10-batches-bin/data_batch_2.bin: expected .*, found 5"):
        load_cifar10(fake.write_tar(tmp_path / "b.tar.gz", members))


# --- npz ---


def same(array):
    return array


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (lambda x: x.astype(np.float32), same, r"expected 500 train images as uint8 .* found float32"),
        (lambda x: x.transpose(0, 3, 1, 2), same, r"found uint8 \(500, 3, 32, 32\)"),
        (lambda x: x[..., ::-1], same, "mean red, green and blue"),  # BGR
        (lambda x: x // 255, same, "mean red, green and blue"),
        (lambda x: x[:-1], lambda y: y[:-1], r"found uint8 \(499, 32, 32, 3\)"),
        (same, lambda y: np.eye(10, dtype=int)[y], r"expected integer labels \(N,\), found int64 \(500, 10\)"),
        (same, lambda y: y + 1, r"label 10 of image \d+ is not in 0..9"),
        (same, lambda y: y // 2, "expected 50 train images of each class, found"),
    ],
    ids=["float", "channels first", "BGR", "0 and 1", "one is missing", "one-hot", "1 to 10", "five classes"],
)
def test_wrong_npz(images, labels, message, tmp_path, data):
    train = Split(images(data.train.images), labels(data.train.labels))
    path = fake.write_npz(tmp_path / "any.npz", data._replace(train=train))
    with pytest.raises(DataError, match=rf"any\.npz: .*{message}"):
        load_cifar10(path)


def test_npz_without_the_arrays_and_damaged(tmp_path, data):
    path = tmp_path / "any.npz"
    np.savez(path, images=data.train.images, labels=data.train.labels)
    with pytest.raises(DataError, match=r"any\.npz: holds .*images.*labels.*Save the arrays train_images, "):
        load_cifar10(path)
    whole = fake.write_npz(path, data).read_bytes()
    for content in (b"", whole[:-30], fake.flip(whole, len(whole) // 2), b"not a zip file"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"any\.npz: not a readable .npz file.*Write it again"):
            load_cifar10(path)
