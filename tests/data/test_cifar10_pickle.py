"""Pickled batches: hostile ones run nothing, damaged ones are refused."""

import os
import pickle

import numpy as np
import pytest
from support.fake_cifar10 import BATCH, Runs, batches, check, isolated_fakes, python2_pickle, write_py

from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.errors import DataError


@pytest.fixture(autouse=True)
def splits(monkeypatch, tmp_path):
    with isolated_fakes(monkeypatch, tmp_path) as splits:
        yield splits


def with_pickle(tmp_path, splits, content):
    folder = write_py(tmp_path / "data", splits)
    (folder / "data_batch_3").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
    return folder


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_does_not_run(protocol, tmp_path, splits):
    proof = tmp_path / "executed"
    attack = pickle.dumps({b"data": Runs(os.system, f"touch {proof}"), b"labels": []}, protocol=protocol)
    with pytest.raises(DataError, match=r"data_batch_3: .*asks for (posix|nt|os)\.system"):
        load_cifar10(with_pickle(tmp_path, splits, attack))
    assert not proof.exists()
    pickle.loads(attack)  # the attack is a real one
    assert proof.exists()


@pytest.mark.parametrize("call", [Runs(eval, "1"), Runs(getattr, 1, "real"), Runs(np.load, "x"), Runs(np.zeros, 1)])
def test_any_other_global_is_refused_by_name(call, tmp_path, splits):
    with pytest.raises(DataError, match=rf"data_batch_3: .*asks for .*\.{call.call[0].__name__}"):
        load_cifar10(with_pickle(tmp_path, splits, {b"data": call}))


def pixels(splits):
    return next(batches(splits))[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda p: pickle.dumps({b"data": p, b"labels": [0] * BATCH}, protocol=2)[:-100], "not a batch of CIFAR-10"),
        (lambda p: b"", "not a batch"),
        (lambda p: b"\x80\x02" + b"\xff" * 50, "not a batch"),
        (lambda p: b"x" * 2_000_000, "expected at most .* found more"),
        (lambda p: [1, 2], "expected a dictionary, found list"),
        (lambda p: {b"fine_labels": [0] * BATCH, b"data": p}, "expected 'labels' as a list of 100 integers"),
        (lambda p: {b"labels": [0] * BATCH}, "expected 'data'"),
        (lambda p: {b"labels": [0] * BATCH, b"data": p.tolist()}, "expected 'data'"),
        (lambda p: {b"labels": [0] * BATCH, b"data": p.astype(np.int16)}, "found more|expected 'data'"),
        (lambda p: {b"labels": [0] * BATCH, b"data": p[:, :-1]}, "expected 'data'"),
        (lambda p: {b"labels": [0] * BATCH, b"data": p.astype(float)[:9]}, "dtype 'f8', expected integers"),
        (lambda p: {b"labels": [0] * BATCH, b"data": np.array([p, {}], object)}, "dtype 'O8', expected integers"),
        (lambda p: {b"labels": [0] * BATCH, b"data": Runs(np.ndarray, (10**12,))}, "not a batch"),
        (lambda p: {b"labels": [0] * (BATCH - 1), b"data": p}, "expected 'labels'"),
        (lambda p: {b"labels": [0] * (BATCH - 1) + [10], b"data": p}, "label 10 of image 99"),
        (lambda p: {b"labels": [-1] * BATCH, b"data": p}, "label -1 of image 0"),
        (lambda p: {b"labels": ["cat"] * BATCH, b"data": p}, "label a str of image 0"),
        (lambda p: {b"labels": [10**5000] * BATCH, b"data": p}, "label a int of image 0"),
        (lambda p: {b"labels": [0] * BATCH, b"data": p}, "labels are not those of CIFAR-10's data_batch_3"),
    ],
)
def test_damaged_pickle(content, message, tmp_path, splits):
    with pytest.raises(DataError, match=rf"data_batch_3: .*({message})"):
        load_cifar10(with_pickle(tmp_path, splits, content(pixels(splits))))


def test_pickle_with_labels_in_an_array_and_text_keys(tmp_path, splits):
    folder = write_py(tmp_path / "data", splits)
    for name, planes, labels in batches(splits):
        content = {"data": np.asfortranarray(planes), "labels": labels.astype(">i8")}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    check(load_cifar10(folder), splits)


def test_fake_official_pickle_is_what_other_programs_read(splits):
    _, planes, labels = next(batches(splits))
    batch = pickle.loads(python2_pickle(planes, labels), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], planes)
    assert batch[b"labels"] == labels.tolist()


def test_memo_bomb_takes_no_memory(tmp_path, splits):
    # LONG_BINPUT with a huge index: the unpickler in C would allocate tens of gigabytes for it.
    with pytest.raises(DataError, match="expected a dictionary"):
        load_cifar10(with_pickle(tmp_path, splits, b"\x80\x02Nr\xff\xff\xff\x7f."))
