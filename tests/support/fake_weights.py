"""State dicts as PyTorch would give them."""

import numpy as np

from jaxresnet.config import ModelConfig
from support.golden.cases import tensor_shapes

SMALL = ModelConfig(stage_sizes=(1, 1), width=4, pool_size=16)


def torch_shapes(config):
    """{name: shape} without the counts of training steps."""
    return dict(tensor_shapes(config))


def state_dict(config=SMALL, steps=None, seed=0):
    """Any bits that 32 can be, NaNs of every payload and both zeros among them. steps: adds the counts."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in torch_shapes(config).items():
        bits = rng.integers(0, 2**32, shape, np.uint32)
        bits.flat[:4] = [0x7FA00001, 0xFFC12345, 0x80000000, 0x00000001]  # signalling, quiet, -0.0, the least above 0
        arrays[name] = bits.view(np.float32)
        if steps is not None and name.endswith("running_var"):
            arrays[name.replace("running_var", "num_batches_tracked")] = np.array(steps, np.int64)
    return arrays


def numbers(config=SMALL, steps=None, seed=0):
    """The same with ordinary numbers, to compute with."""
    rng = np.random.default_rng(seed)

    def ordinary(name, array):
        if array.dtype == np.int64:
            return array
        numbers = rng.uniform(0.5, 1.5, array.shape) if name.endswith("var") else 0.3 * rng.normal(size=array.shape)
        return numbers.astype(np.float32)

    return {name: ordinary(name, array) for name, array in state_dict(config, steps).items()}


def assert_same_arrays(a, b):
    """Same names, dtypes, shapes and bits, in whatever order."""
    assert sorted(a) == sorted(b) and a
    for name in a:
        x, y = np.asarray(a[name]), np.asarray(b[name])
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), name
