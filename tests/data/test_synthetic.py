"""The drawn images: the same bytes everywhere, balanced, and told apart by form alone."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxresnet.data.synthetic import BLOCK_SIZE, SYNTHETIC_CLASSES, make_synthetic
from jaxresnet.errors import ConfigError

# Of the bytes drawn for make_synthetic(130, 20, seed=7). A change here means that results on the synthetic set no
# longer compare with those published before it.
FINGERPRINT = "914d211b9ce252cba6815cacb7fdc3b7f0498094f14e1349e98b9d10b1c09cc7"


@pytest.fixture(scope="module")
def data():
    return make_synthetic(num_train=3000, num_test=1000)


def fingerprint(dataset):
    return hashlib.sha256(b"".join(array.tobytes() for split in dataset[:2] for array in split)).hexdigest()


def linear_accuracy(features, data):
    """Test accuracy of a ridge regression from features(images) to one-hot labels. Chance is 0.1."""
    train, test = (
        np.c_[features(split.images / 255.0 - 0.5), np.ones(split.num_examples)] for split in (data.train, data.test)
    )
    weights = np.linalg.solve(train.T @ train + 0.1 * np.eye(train.shape[1]), train.T @ np.eye(10)[data.train.labels])
    return np.mean((test @ weights).argmax(axis=1) == data.test.labels)


def test_shapes_types_and_names_and_no_image_comes_twice(data):
    for split, count in ((data.train, 3000), (data.test, 1000)):
        assert split.images.shape == (count, 32, 32, 3) and split.images.dtype == np.uint8
        assert split.labels.shape == (count,) and split.labels.dtype == np.int32
    assert data.synthetic and data.name == "synthetic"
    assert data.class_names == SYNTHETIC_CLASSES and len(set(data.class_names)) == 10
    assert len({image.tobytes() for split in data[:2] for image in split.images}) == 4000


def test_labels_are_balanced_and_shuffled(data):
    for split in (data.train, data.test):
        assert set(np.bincount(split.labels, minlength=10)) == {split.num_examples // 10}
    tens = data.train.labels.reshape(-1, 10)
    assert (np.sort(tens, axis=1) == np.arange(10)).all()
    # Each class is found at each place of the ten about equally often: 30 expected, standard deviation about 5.
    places = np.array([np.bincount(tens[:, place], minlength=10) for place in range(10)])
    assert places.min() > 5 and places.max() < 60


def test_same_seed_same_bytes_other_seed_other_bytes():
    assert fingerprint(make_synthetic(130, 20, seed=7)) == FINGERPRINT
    assert fingerprint(make_synthetic(130, 20, seed=8)) != FINGERPRINT


def test_same_bytes_on_a_processor_without_vector_extensions():
    code = "from test_synthetic import *; print(fingerprint(make_synthetic(130, 20, seed=7)))"
    features = " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))
    environment = {"NPY_DISABLE_CPU_FEATURES": features, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert run.stdout.strip() == FINGERPRINT, run.stderr


def test_a_smaller_set_is_the_beginning_of_a_larger_one(data):
    for count in (10, BLOCK_SIZE + 13):
        small = make_synthetic(num_train=count, num_test=count)
        for part, whole in zip(small[:2], data[:2], strict=True):
            np.testing.assert_array_equal(part.images, whole.images[:count])
            np.testing.assert_array_equal(part.labels, whole.labels[:count])


def test_colour_does_not_tell_the_class(data):
    # 0.1 is chance; its standard deviation on 1,000 test images is 0.01.
    assert linear_accuracy(lambda images: images.mean(axis=(1, 2)), data) < 0.14


def test_form_tells_the_class(data):
    """Edges along rows and columns alone tell the two kinds of stripes apart: the labels belong to the pictures."""
    grey = data.test.images.astype(np.float32).mean(axis=-1)
    down, across = (np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
    horizontal, vertical = (
        data.test.labels == SYNTHETIC_CLASSES.index(f"{way} stripes") for way in ("horizontal", "vertical")
    )
    assert np.mean(down[horizontal] > across[horizontal]) > 0.9
    assert np.mean(down[vertical] < across[vertical]) > 0.9


@pytest.mark.parametrize("arguments", [{"num_train": 9}, {"num_test": 10.0}, {"num_train": "64"}, {"seed": -1}])
def test_bad_arguments_are_named(arguments):
    (name,) = arguments
    with pytest.raises(ConfigError, match=f"{name}=.*must be"):
        make_synthetic(**{"num_train": 10, "num_test": 10} | arguments)
