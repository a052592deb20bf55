"""Data of one's own: every form of it that makes sense, and one message for all else."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import RUN, without_times

import jaxresnet as jr
from jaxresnet.data.dataset import Split, as_dataset, fingerprint

TYPES = ["uint8", "int64", ">i4", "int16"]


def with_labels(data, change):
    train, test = (Split(split.images, change(split.labels)) for split in (data.train, data.test))
    return data._replace(train=train, test=test)


def test_the_type_of_the_labels_does_not_matter_and_one_program_serves_all(tiny_data):
    common = {"devices": jax.devices()[:1]}
    expected = jr.fit(RUN, tiny_data, **common)
    for kind in TYPES:
        data = with_labels(tiny_data, lambda labels, kind=kind: labels.astype(kind))
        assert fingerprint(as_dataset(data)) == fingerprint(as_dataset(tiny_data))
        assert list(map(without_times, jr.fit(RUN, data, **common).history)) == list(
            map(without_times, expected.history)
        )


@pytest.mark.parametrize("form", ["list", "column", "tuples", "jax"])
def test_a_split_is_any_pair_of_images_and_labels(form, tiny_data):
    changed = {
        "list": lambda: with_labels(tiny_data, lambda labels: labels.tolist()),
        "column": lambda: with_labels(tiny_data, lambda labels: labels[:, None]),
        "tuples": lambda: tiny_data._replace(train=tuple(tiny_data.train), test=list(tiny_data.test)),
        "jax": lambda: with_labels(tiny_data, jnp.asarray),
    }[form]()
    found = as_dataset(changed)
    for split in ("train", "test"):
        assert getattr(found, split).labels.dtype == np.int32 and getattr(found, split).labels.ndim == 1
        np.testing.assert_array_equal(getattr(found, split).labels, getattr(tiny_data, split).labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data._replace(train=None), "train split: is no pair of images and labels"),
        (lambda data: data._replace(test=data.test.images), "test split: is no pair of images and labels"),
        (lambda data: with_labels(data, lambda labels: None), r"train split: expected images uint8 .* found .* object"),
        (lambda data: with_labels(data, lambda labels: labels / 2), "found .* float64"),
        (lambda data: with_labels(data, lambda labels: labels[:-1]), "train split: expected"),
        (lambda data: with_labels(data, lambda labels: labels - 1), "the labels go from -1 to 8; count classes from 0"),
        (lambda data: with_labels(data, lambda labels: labels.astype("int64") << 40), "count classes from 0"),
        (lambda data: data._replace(train=Split(data.train.images / 255, data.train.labels)), "found float64"),
        (lambda data: with_labels(data, lambda labels: np.eye(10, dtype=int)[labels]), r"found .* int64 \(300, 10\)"),
        (lambda data: data._replace(test=Split(data.test.images[:0], data.test.labels[:0])), "test split: expected"),
        (lambda data: data._replace(test=Split(np.moveaxis(data.test.images, 3, 1), data.test.labels)), "3, 32, 32"),
        (lambda data: data._replace(class_names=("a", "b")), "has 2 names, and the labels go up to 9"),
        (lambda data: data._replace(class_names=None, name=None), "name=None, class_names=None: give texts"),
        (lambda data: data._replace(name="a\x1b[31m"), "give texts of at most 500 characters that can be printed"),
        (lambda data: data._replace(name="a" * 600), "give texts of at most 500 characters that can be printed"),
        (
            lambda data: data._replace(class_names="abcdefghij"),
            "give texts of at most 500 characters that can be printed",
        ),
        (lambda data: (data.train, data.test), "found tuple; give a Dataset"),
    ],
    ids=[
        "none",
        "images",
        "no labels",
        "float labels",
        "short",
        "negative",
        "huge",
        "float images",
        "one-hot",
        "empty",
        "channels first",
        "names",
        "no name",
        "escape",
        "long",
        "one text",
        "tuple",
    ],
)
def test_all_else_is_refused_in_the_users_terms(change, said, tiny_data, tmp_path):
    with pytest.raises(jr.UserError, match=said):
        jr.fit(RUN, change(tiny_data), devices=jax.devices()[:1])
    with pytest.raises(jr.UserError, match=said):
        jr.compare({"a": RUN}, [0], change(tiny_data), tmp_path, devices=jax.devices()[:1])
    assert list(tmp_path.iterdir()) == []


def test_own_data_does_not_pass_for_cifar10(tiny_data, tmp_path):
    rng = np.random.default_rng(0)
    splits = [
        Split(split.images, rng.integers(0, 12, len(split.labels))) for split in (tiny_data.train, tiny_data.test)
    ]
    data = jr.Dataset(*splits)
    found = as_dataset(data)
    assert found.name == "data" and found.class_names == tuple(map(str, range(12)))
    devices = jax.devices()[:1]
    with pytest.raises(jr.UserError, match="num_classes=10: data set 'data' has 12 classes"):
        jr.compare({"a": RUN}, [0], data, tmp_path, devices=devices)
    config = replace(RUN, num_epochs=2, model=replace(RUN.model, num_classes=13))
    comparison = jr.compare({"a": config}, [0], data, tmp_path, devices=devices)
    assert "cifar10" not in comparison.report.table and "Data: name data" in comparison.report.table
    from jaxresnet.comparison.evaluation import evaluate_runs

    assert "airplane" not in evaluate_runs(comparison.folder, data)
