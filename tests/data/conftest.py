"""The fake data set in place of CIFAR-10, for the tests of what loads it."""

import gc
import warnings

import pytest
from support.fake_cifar10 import BATCH, batches, fake_data

from jaxresnet.data import readers, tfds


@pytest.fixture
def data(monkeypatch, tmp_path):
    """A fake data set that the loader accepts, cut off from this machine's data sets, caches and network.

    Warnings are errors meanwhile, so that one that a test does not expect fails it.
    """
    data = fake_data()
    monkeypatch.setattr(readers, "IMAGES_PER_BATCH", BATCH)
    monkeypatch.setattr(readers, "LABEL_CRC32", tuple(readers.label_crc32(labels) for _, _, labels in batches(data)))
    monkeypatch.delenv("JAXRESNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tensorflow_datasets"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(tfds, "ARCHIVE_FOLDER", "http://127.0.0.1:1/")  # nobody answers
    monkeypatch.setattr(tfds, "RETRIES", 0)
    gc.collect()  # of tests before, whose warnings are not this one's
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield data
