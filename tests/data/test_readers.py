"""Damage to archives, extracted or not, and to .npz files: an error with the file and the remedy, never wrong data."""

import gzip
import os
import pickle

import numpy as np
import pytest
from support.fake_cifar10 import (
    BATCH,
    Runs,
    batches,
    bin_members,
    check,
    isolated_fakes,
    py_members,
    python2_pickle,
    write_bin,
    write_files,
    write_npz,
    write_py,
    write_tar,
)

from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.data.dataset import Split
from jaxresnet.data.readers import batch_files
from jaxresnet.errors import DataError


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    with isolated_fakes(monkeypatch, tmp_path) as data:
        yield data


# --- extracted archives ---


def set_label(content, position, label):
    return content[: position * 3073] + bytes([label]) + content[position * 3073 + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], r"expected 307,300 bytes, found 307,299"),
        (lambda raw: set_label(raw, 3, 10), r"label 10 of image 3 is not in 0..9"),
        (lambda raw: set_label(raw, 3, (raw[3 * 3073] + 1) % 10), r"labels of something else, not of data_batch_2"),
        (lambda raw: bytes(len(raw)), r"labels of something else"),  # a download that only reserved its space
    ],
)
def test_damaged_bin_file(damage, message, tmp_path, data):
    file = write_bin(tmp_path / "data", data) / "data_batch_2.bin"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=rf"data_batch_2\.bin: .*{message}.*archive again"):
        load_cifar10(tmp_path / "data")


@pytest.mark.parametrize(("write", "layout"), [(write_bin, "bin"), (write_py, "py")])
def test_duplicated_and_missing_batches(write, layout, tmp_path, data):
    folder = write(tmp_path / "data", data)
    names = batch_files(layout)
    first, second, test = (folder / names[index] for index in (0, 1, 5))
    test.write_bytes(first.read_bytes())
    with pytest.raises(DataError, match=rf"{test.name}: holds the labels of data_batch_1, not of test_batch"):
        load_cifar10(folder)
    second.unlink()
    test.unlink()
    with pytest.raises(DataError, match=rf"missing {second.name}, {test.name}\. Extract"):
        load_cifar10(folder)


def test_malicious_pickle_does_not_run(tmp_path, data):
    proof = tmp_path / "executed"
    attack = pickle.dumps({b"data": Runs(os.system, f"touch {proof}"), b"labels": []}, protocol=2)
    with pytest.raises(DataError, match=r"data_batch_3: not a batch"):
        load_cifar10(write_files(write_py(tmp_path, data), {"data_batch_3": attack}))
    assert not proof.exists()
    pickle.loads(attack)  # the attack is a real one
    assert proof.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda p: pickle.dumps({b"labels": [0] * BATCH, b"data": p}, protocol=2)[:-100], "not a batch of CIFAR-10"),
        (lambda p: b"", "not a batch"),
        (lambda p: [1, 2], "found 0 bytes of pixels and 0 labels"),
        (lambda p: {b"fine_labels": [0] * BATCH, b"data": p}, "307,200 bytes of pixels and 0 labels"),
        (lambda p: {b"labels": [0] * BATCH, b"data": p.astype(np.int16)}, "0 bytes of pixels and 100 labels"),
        (lambda p: {b"labels": [0] * (BATCH - 1), b"data": p}, "99 labels"),
        (lambda p: {b"labels": [0] * (BATCH - 1) + [10], b"data": p}, "label 10 of image 99"),
        (lambda p: {b"labels": ["cat"] * BATCH, b"data": p}, "0 labels"),
        (lambda p: {b"labels": [0] * BATCH, b"data": p}, "labels of something else, not of data_batch_3"),
    ],
)
def test_damaged_pickle(content, message, tmp_path, data):
    content = content(next(batches(data))[1])
    content = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    with pytest.raises(DataError, match=rf"data_batch_3: .*{message}.*archive again"):
        load_cifar10(write_files(write_py(tmp_path, data), {"data_batch_3": content}))


def test_fake_official_pickle_is_what_other_programs_read(data):
    _, planes, labels = next(batches(data))
    batch = pickle.loads(python2_pickle(planes, labels), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], planes)
    assert batch[b"labels"] == labels.tolist()


# --- archives ---


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:100_000] + bytes(20) + raw[100_020:],
        lambda raw: raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:],  # in the CRC-32 at the end
        lambda raw: gzip.compress(b"<html>not found</html>" * 100),
    ],
)
def test_damaged_archive(damage, tmp_path, data):
    path = write_tar(tmp_path / "any.tar.gz", bin_members(data))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"any.tar.gz: truncated or damaged .*Download the archive again"):
        load_cifar10(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: {"cifar-100-binary/train.bin": b"x"}, r"missing cifar-10-batches-bin/data_batch_1.bin, "),
        (lambda data: dict(list(py_members(data).items())[:-1]), r"missing cifar-10-batches-py/test_batch\."),
        (
            lambda data: bin_members(data) | {"cifar-10-batches-bin/data_batch_2.bin": b"short"},
            r"cifar-10-batches-bin/data_batch_2.bin: expected 307,300 bytes, found 5",
        ),
        (
            lambda data: py_members(data) | {"cifar-10-batches-py/test_batch": b""},
            "cifar-10-batches-py/test_batch: not",
        ),
    ],
)
def test_archive_of_something_else(change, message, tmp_path, data):
    with pytest.raises(DataError, match=rf"any.tar.gz: {message}.*archive again"):
        load_cifar10(write_tar(tmp_path / "any.tar.gz", change(data)))


def test_other_members_are_passed_over_and_nothing_is_unpacked(tmp_path, data):
    others = {"../outside.bin": b"traversal", "other/data_batch_1.bin": b"", "cifar-10-batches-bin/readme.html": b""}
    check(load_cifar10(write_tar(tmp_path / "data" / "any.tar.gz", others | bin_members(data))), data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


# --- npz ---


def changed(data, split="train", images=None, labels=None):
    old = getattr(data, split)
    new = Split(images(old.images) if images else old.images, labels(old.labels) if labels else old.labels)
    return data._replace(**{split: new})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": lambda x: x.astype(np.float32)}, "expected 500 train images as uint8 .* found float32"),
        ({"images": lambda x: x.transpose(0, 3, 1, 2)}, r"found uint8 \(500, 3, 32, 32\)"),
        ({"images": lambda x: x[..., ::-1]}, "mean red, green and blue"),  # BGR
        ({"images": lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape)}, "mean red, green and blue"),
        ({"images": lambda x: x // 255}, "mean red, green and blue"),
        ({"images": lambda x: x[:-1], "labels": lambda y: y[:-1]}, r"found uint8 \(499, 32, 32, 3\)"),
        ({"labels": lambda y: np.eye(10, dtype=int)[y]}, r"expected integer labels \(N,\), found int64 \(500, 10\)"),
        ({"labels": lambda y: y + 1}, r"label 10 of image \d+ is not in 0..9"),
        ({"labels": lambda y: y.astype(np.int64) + 2**32}, "is not in 0..9"),  # would wrap round in int32
        ({"labels": lambda y: y // 2}, "expected 50 train images of each class, found"),
        ({"split": "test", "labels": lambda y: y * 0}, "expected 10 test images of each class"),
        ({"images": lambda x: np.array([None, {}], object)}, "not a readable .npz file of plain arrays .*allow_pickle"),
    ],
)
def test_wrong_npz(change, message, tmp_path, data):
    path = write_npz(tmp_path / "any.npz", changed(data, **change))
    with pytest.raises(DataError, match=rf"any\.npz: .*{message}"):
        load_cifar10(path)


def test_npz_without_the_arrays(tmp_path, data):
    np.savez(tmp_path / "any.npz", images=data.train.images, labels=data.train.labels)
    with pytest.raises(DataError, match=r"any\.npz: holds .*images.*labels.*Save the arrays train_images, "):
        load_cifar10(tmp_path / "any.npz")


def test_damaged_npz(tmp_path, data):
    path = write_npz(tmp_path / "any.npz", data)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (b"", whole[:1000], whole[:-30], bytes(flipped), b"\x93NUMPY not a zip file"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"any\.npz: not a readable .npz file.*Write it again"):
            load_cifar10(path)


def test_npz_in_another_order_warns_each_time(tmp_path, data):
    order = np.random.default_rng(1).permutation(5 * BATCH)
    other = changed(data, images=lambda x: x[order], labels=lambda y: y[order])
    path = write_npz(tmp_path / "any.npz", other)
    for _ in range(2):  # read, then from the cache
        with pytest.warns(UserWarning, match="not in the official order") as caught:
            check(load_cifar10(path), other)
        assert caught[0].filename == __file__  # it points at the caller of load_cifar10
