"""The images of a run: checked, nothing lost, nothing twice, chosen by the seed alone."""

from dataclasses import replace

import numpy as np
import pytest

from jaxresnet.config import TrainConfig
from jaxresnet.data.dataset import Dataset, Split, as_dataset, check_data, fingerprint, run_splits, split_validation
from jaxresnet.errors import ConfigError

CONFIG = TrainConfig(val_size=60, batch_size=10, seed=3)


def numbered(num_examples: int) -> Split:
    """Images that carry their own index, in the first two channels of every pixel."""
    index = np.arange(num_examples)
    images = np.zeros((num_examples, 32, 32, 3), np.uint8)
    images[..., 0], images[..., 1] = (index % 256)[:, None, None], (index // 256)[:, None, None]
    return Split(images, (index % 10).astype(np.int32))


def index_of(split: Split) -> np.ndarray:
    low, high = split.images[:, 0, 0, :2].astype(int).T
    return low + 256 * high


DATA = Dataset(numbered(500), numbered(100))


def test_every_image_is_in_exactly_one_part_and_in_order():
    train, validation = run_splits(CONFIG, DATA)
    assert (train.num_examples, validation.num_examples) == (440, 60) and check_data(CONFIG, DATA) == 440
    assert sorted([*index_of(train), *index_of(validation)]) == list(range(500))
    for part in (train, validation):
        assert (np.diff(index_of(part)) > 0).all()
        assert (part.labels == index_of(part) % 10).all()
        assert part.images.dtype == np.uint8 and part.labels.dtype == np.int32


def test_chosen_by_the_seed_alone():
    chosen = [index_of(split_validation(DATA.train, 60, seed)[1]).tolist() for seed in (3, 3, 4)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0][:5] == [12, 16, 20, 28, 42] and chosen[0][-1] == 497  # as stored results have it


def test_no_validation_and_the_first_of_the_training_images():
    config = replace(CONFIG, val_size=0, train_size=20, selection="last")
    train, validation = run_splits(config, DATA)
    assert index_of(train).tolist() == list(range(20)) and check_data(config, DATA) == 20
    assert validation.num_examples == 0 and validation.images.shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_size": 501}, "train_size=501: the data set has 500 training images"),
        ({"val_size": 500}, "val_size=500: must be at least 0 and below the 500 training images"),
        ({"model": replace(CONFIG.model, num_classes=9)}, "num_classes=9: data set 'data' has 10 classes"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        run_splits(replace(CONFIG, **change), as_dataset(DATA))


def test_the_fingerprint_sees_every_array_and_the_name():
    prints = [fingerprint(DATA), fingerprint(DATA._replace(name="other"))]
    for which in ("train", "test"):
        for field in ("images", "labels"):
            array = getattr(getattr(DATA, which), field).copy()
            array.flat[0] ^= 1
            prints.append(fingerprint(DATA._replace(**{which: getattr(DATA, which)._replace(**{field: array})})))
    assert len({tuple(p.items()) for p in prints}) == 6
    expected = {"name": "data", "synthetic": False, "num_train": 500, "num_test": 100, "crc32": 1979381408}
    assert prints[0] == expected  # stored results hold it
