"""State dicts as PyTorch would give them, of NumPy arrays."""

import numpy as np

from jaxresnet.config import ModelConfig
from support.golden.cases import tensor_shapes

SMALL = ModelConfig(stage_sizes=(1, 1), width=4, pool_size=16)


def state_dict(config=SMALL, steps=None, seed=0):
    """Any bits that 32 can be, NaNs of every payload and both zeros among them. steps: adds the counts."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in tensor_shapes(config):
        bits = rng.integers(0, 2**32, shape, np.uint32)
        bits.flat[:4] = [0x7FA00001, 0xFFC12345, 0x80000000, 0x00000001]  # signalling, quiet, -0.0, the least above 0
        arrays[name] = bits.view(np.float32)
    return arrays | _counts(arrays, steps)


def numbers(config=SMALL, steps=None, seed=0):
    """The same with ordinary numbers, to compute with."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in tensor_shapes(config):
        values = rng.uniform(0.5, 1.5, shape) if name.endswith("var") else 0.3 * rng.normal(size=shape)
        arrays[name] = values.astype(np.float32)
    return arrays | _counts(arrays, steps)


def _counts(arrays, steps):
    names = [name.replace("running_var", "num_batches_tracked") for name in arrays if name.endswith("running_var")]
    return {} if steps is None else {name: np.array(steps, np.int64) for name in names}


def assert_same_arrays(a, b):
    """Same names, dtypes, shapes and bits, in whatever order."""
    assert sorted(a) == sorted(b) and a
    for name in a:
        x, y = np.asarray(a[name]), np.asarray(b[name])
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), name
