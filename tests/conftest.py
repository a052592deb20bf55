"""Eight virtual CPU devices for every test, and a data set small enough to train on in a test.

Set JAX_PLATFORMS (say, to cuda) to run the tests on something else.
"""

import os

if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":  # read by JAX when it is first imported, below
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import numpy as np
import pytest

from jaxresnet.dataset import Dataset, Split


@pytest.fixture(scope="session")
def tiny_data() -> Dataset:
    """300 training and 100 test images of noise: enough to run on, nothing to learn."""
    rng = np.random.default_rng(0)

    def split(num_examples: int) -> Split:
        images = rng.integers(0, 256, (num_examples, 32, 32, 3), np.uint8)
        return Split(images, rng.integers(0, 10, num_examples, np.int32))

    return Dataset(split(300), split(100), name="fake", synthetic=True)


@pytest.fixture
def small_demo(monkeypatch, tmp_path):
    """An empty folder, one device, and demos of 300 images: with the flags `tiny.DEMO` runs are like `tiny.RUN`."""
    import jax

    import jaxresnet.cli
    import jaxresnet.experiment
    import jaxresnet.synthetic

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jaxresnet.experiment, "DEMO_VAL", 44)
    for name, value in {"DEMO_VAL": 44, "DEMO_TEST": 100}.items():
        monkeypatch.setattr(jaxresnet.cli, name, value)
    make = jaxresnet.synthetic.make_synthetic
    monkeypatch.setattr(jaxresnet.synthetic, "make_synthetic", lambda train, test: make(min(train, 300), test))
    devices = jax.devices()[:1]  # the engines of the other tests
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(jax, "local_device_count", lambda: len(devices))
