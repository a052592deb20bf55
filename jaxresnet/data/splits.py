"""The training and validation images of a run, checked against its config."""

import numpy as np

from jaxresnet.config import TrainConfig
from jaxresnet.data.dataset import Dataset, Split, split_validation
from jaxresnet.errors import ConfigError, DataError


def run_splits(config: TrainConfig, data: Dataset) -> tuple[Split, Split]:
    """(train, validation) of a run.

    Raises DataError for images or labels of another form, ConfigError for a config that does not fit them.
    """
    for name, (images, labels) in (("train", data.train), ("test", data.test)):
        fits = images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3) and len(images) > 0
        if not fits or labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{name} split: expected images uint8 (N, 32, 32, 3) and labels int32 (N,), found "
                f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
            )
        low, high, classes = int(labels.min()), int(labels.max()), config.model.num_classes
        if low < 0 or high >= classes:
            raise ConfigError(f"num_classes={classes}: the data set's {name} labels go from {low} to {high}")
    train = data.train
    if config.train_size is not None:
        if config.train_size > train.num_examples:
            raise ConfigError(f"train_size={config.train_size}: the data set has {train.num_examples} training images")
        train = Split(train.images[: config.train_size], train.labels[: config.train_size])
    return split_validation(train, config.val_size, config.seed)
