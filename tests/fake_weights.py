"""State dicts as PyTorch would give them, written down by hand from the published network's names and shapes."""

import numpy as np

from jaxresnet.config import ModelConfig

SMALL = ModelConfig(stage_sizes=(1, 1), width=4, pool_size=16)


def torch_shapes(config):
    """{name: shape} without the counts of training steps."""
    shapes = {}

    def conv_bn(conv, bn, features_in, features, kernel):
        shapes[f"{conv}.weight"] = (features, features_in, kernel, kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{bn}.{name}"] = (features,)

    width = config.width
    conv_bn("conv1", "bn1", 3, width, 3)
    for stage, num_blocks in enumerate(config.stage_sizes, start=1):
        features = config.width * 2 ** (stage - 1)
        for j in range(num_blocks):
            block = f"layer{stage}.{j}"
            conv_bn(f"{block}.conv1", f"{block}.bn1", width, features, 3)
            conv_bn(f"{block}.conv2", f"{block}.bn2", features, features, 3)
            if width != features:
                conv_bn(f"{block}.shortcut.0", f"{block}.shortcut.1", width, features, config.shortcut_kernel)
            width = features
    shapes["linear.weight"], shapes["linear.bias"] = (config.num_classes, width), (config.num_classes,)
    return shapes


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
