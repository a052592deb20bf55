"""What weights start as: distributions of every kernel and of the linear layer, tested statistically on fixed seeds."""

import math
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxresnet import ModelConfig, build_model

WIDTH = 16
SHAPES = {  # of the default network, but narrower
    "conv1": (3, 3, 3, 16),
    "stages.0.0.conv1": (3, 3, 16, 16),
    "stages.0.0.conv2": (3, 3, 16, 16),
    "stages.1.0.conv1": (3, 3, 16, 32),
    "stages.1.0.conv2": (3, 3, 32, 32),
    "stages.1.0.shortcut_conv": (1, 1, 16, 32),
    "stages.2.0.conv1": (3, 3, 32, 64),
    "stages.2.0.conv2": (3, 3, 64, 64),
    "stages.2.0.shortcut_conv": (1, 1, 32, 64),
    "stages.3.0.conv1": (3, 3, 64, 128),
    "stages.3.0.conv2": (3, 3, 128, 128),
    "stages.3.0.shortcut_conv": (1, 1, 64, 128),
    "linear": (128, 10),
}
FAN_IN = {name: math.prod(shape[:-1]) for name, shape in SHAPES.items()}
INITIALIZERS = ("pytorch", "he", "lecun")
GAIN = {"he": 2.0, "lecun": 1.0}
CASES = [(initializer, name) for initializer in INITIALIZERS for name in SHAPES]


def expected_distribution(initializer: str, fan_in: int):
    if initializer == "pytorch":
        bound = math.sqrt(1 / fan_in)
        return stats.uniform(-bound, 2 * bound)
    return stats.norm(0, math.sqrt(GAIN[initializer] / fan_in))


@pytest.fixture(scope="module")
def variables() -> dict:
    """{initializer: [variables of seed 0, of seed 1]}, each `init` compiled once."""
    inits = {name: jax.jit(build_model(ModelConfig(width=WIDTH, initializer=name)).init) for name in INITIALIZERS}
    return {name: [init(jax.random.key(seed)) for seed in (0, 1)] for name, init in inits.items()}


def named(tree) -> dict[str, np.ndarray]:
    return {".".join(p.key for p in path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def kernels(variables: dict) -> dict[str, np.ndarray]:
    params = named(variables["params"])
    return {name.removesuffix(".kernel"): values for name, values in params.items() if name.endswith(".kernel")}


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_shapes_and_dtypes(initializer, variables):
    first = variables[initializer][0]
    assert {name: values.shape for name, values in kernels(first).items()} == SHAPES
    assert {leaf.dtype for leaf in jax.tree.leaves(first)} == {jnp.dtype("float32")}
    assert first["params"]["linear"]["bias"].shape == (10,)


@pytest.mark.parametrize(("initializer", "name"), CASES)
def test_distribution(initializer, name, variables):
    """Mean and variance within five standard errors of the definition's. Kolmogorov-Smirnov: one in a thousand right
    ones would fail, and the seed is fixed."""
    values = kernels(variables[initializer][0])[name].ravel().astype(np.float64)
    distribution = expected_distribution(initializer, FAN_IN[name])
    deviation, n = distribution.std(), values.size
    assert abs(values.mean()) < 5 * deviation / math.sqrt(n)
    kurtosis = distribution.stats("k") + 3  # the fourth moment, in deviations: 1.8 if uniform, 3 if normal
    assert abs(values.var() - deviation**2) < 5 * deviation**2 * math.sqrt((kurtosis - 1) / n)
    assert stats.kstest(values, distribution.cdf).pvalue > 1e-3  # which is 0 with a number beyond a uniform's bounds


def test_the_linear_bias(variables):
    """PyTorch draws it by the fan_in of the kernel beside it; the papers start it at 0."""
    for initializer in GAIN:
        assert not np.any(variables[initializer][0]["params"]["linear"]["bias"])
    biases = np.concatenate([v["params"]["linear"]["bias"] for v in variables["pytorch"]])  # 20 numbers of two seeds
    bound = math.sqrt(1 / 128)
    assert 0.7 * bound < np.abs(biases).max() <= bound and biases.min() < 0 < biases.max()
    assert stats.kstest(biases, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_layers_and_seeds_are_independent(initializer, variables):
    """The first numbers of any two kernels, of one seed or of two, are uncorrelated: no key is used twice."""
    every = [values.ravel() for v in variables[initializer] for values in kernels(v).values()]
    assert len(every) == 2 * len(SHAPES)
    for a, b in combinations(every, 2):
        n = min(a.size, b.size)
        assert abs(np.corrcoef(a[:n], b[:n])[0, 1]) < 5 / math.sqrt(n)


def test_batch_norms_start_at_one_and_zero(variables):
    first = variables["he"][0]
    values = {name: v for tree in first.values() for name, v in named(tree).items() if ".kernel" not in name}
    del values["linear.bias"]
    assert len(values) == 4 * 12
    for name, value in values.items():
        expected = {"scale": 1, "bias": 0, "mean": 0, "var": 1}[name.split(".")[-1]]
        np.testing.assert_array_equal(value, expected, err_msg=name)
