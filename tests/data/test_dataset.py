"""The validation split: nothing lost, nothing twice, chosen by the seed alone."""

import numpy as np
import pytest

from jaxresnet.data.dataset import CLASS_NAMES, Dataset, Split, split_validation
from jaxresnet.errors import ConfigError


def numbered(num_examples: int) -> Split:
    """Images that carry their own index, in the first two channels of every pixel."""
    index = np.arange(num_examples)
    images = np.zeros((num_examples, 32, 32, 3), np.uint8)
    images[..., 0], images[..., 1] = (index % 256)[:, None, None], (index // 256)[:, None, None]
    return Split(images, (index % 10).astype(np.int32))


def index_of(split: Split) -> np.ndarray:
    low, high = split.images[:, 0, 0, :2].astype(int).T
    return low + 256 * high


def test_defaults_name_cifar10():
    data = Dataset(numbered(3), numbered(2))
    assert (data.name, data.synthetic, data.class_names) == ("cifar10", False, CLASS_NAMES)
    assert len(CLASS_NAMES) == 10 and CLASS_NAMES[0] == "airplane" and CLASS_NAMES[9] == "truck"
    assert (data.train.num_examples, data.test.num_examples) == (3, 2)


def test_every_image_is_in_exactly_one_part_and_in_order():
    train = numbered(500)
    rest, validation = split_validation(train, 60, seed=3)
    assert (rest.num_examples, validation.num_examples) == (440, 60)
    assert sorted([*index_of(rest), *index_of(validation)]) == list(range(500))
    for part in (rest, validation):
        assert (np.diff(index_of(part)) > 0).all()
        assert (part.labels == index_of(part) % 10).all()
        assert part.images.dtype == np.uint8 and part.images.shape[1:] == (32, 32, 3)
        assert part.labels.dtype == np.int32


def test_chosen_by_the_seed_alone():
    train = numbered(500)
    again = [index_of(split_validation(train, 60, seed)[1]).tolist() for seed in (3, 3, 4)]
    assert again[0] == again[1] != again[2]
    assert max(again[0]) > 400 and min(again[0]) < 100  # from all over, not the first or the last 60


def test_no_validation():
    rest, validation = split_validation(numbered(20), 0, seed=0)
    assert index_of(rest).tolist() == list(range(20))
    assert validation.num_examples == 0 and validation.images.shape == (0, 32, 32, 3)


@pytest.mark.parametrize("val_size", [-1, 20, 21])
def test_something_must_be_left_to_train_on(val_size):
    with pytest.raises(ConfigError, match=f"val_size={val_size}: must be at least 0 and below the 20 training images"):
        split_validation(numbered(20), val_size, seed=0)
