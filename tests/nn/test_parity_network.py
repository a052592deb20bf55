"""The network against PyTorch's, in float32 with exact products: logits, gradients, batch statistics."""

import json
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats
from support.golden import cases, ours

from jaxresnet import ModelConfig, build_model
from jaxresnet.interop.torch import from_torch

EXACT = jax.default_matmul_precision("highest")  # else GPUs and TPUs round what a convolution multiplies


@cache
def model_of(config: ModelConfig):
    return build_model(config, platform=jax.default_backend())


@cache
def logits(name: str, batch: int) -> dict[str, np.ndarray]:
    config = cases.NETWORKS[name]
    variables = from_torch(cases.state_dict(config))

    @jax.jit
    def both(variables, images):
        return {mode: model_of(config).apply(variables, images, mode == "training")[0] for mode in modes}

    modes = ("inference", "training")
    with EXACT:
        return jax.tree.map(np.asarray, both(variables, cases.images(name, batch)))


@pytest.mark.parametrize(("name", "batch"), cases.LOGITS)
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_logits(name, batch, mode, pytorch):
    found = {mode: logits(name, batch)[mode]}
    pytorch.check(f"logits, {mode}", found, "logits", name, batch, tolerance=1e-5)


@cache
def gradients(name: str, batch: int) -> dict[str, np.ndarray]:
    tensors, images, labels, dtype = cases.gradient_case(name, batch)
    return ours.loss_and_gradients(cases.NETWORKS[name], tensors, images, labels, dtype)


@pytest.mark.parametrize(("name", "batch"), cases.GRADIENTS)
def test_gradients(name, batch, pytorch):
    assert gradients(name, batch).keys() == pytorch.names("gradients", name, batch)
    exact = cases.gradient_case(name, batch)[-1] == "float64"
    title = f"gradients, batch {batch}" + ", float64" * exact
    # Of float64 what remains is that `torch_arrays` gives float32.
    pytorch.check(title, gradients(name, batch), "gradients", name, batch, tolerance=1e-6 if exact else 1e-4)


@pytest.mark.parametrize(("name", "batch"), cases.GRADIENTS)
def test_gradients_in_float32_are_compared_where_rounding_cannot_make_them_jump(name, batch):
    oracle = pytest.importorskip("support.golden.oracle", reason="needs PyTorch")
    tensors, images, _, dtype = cases.gradient_case(name, batch)
    nearest = oracle.nearest_kink(oracle.network(cases.NETWORKS[name], tensors), images)
    assert nearest > cases.NEAREST_KINK or dtype == "float64"


@cache
def batch_norms() -> dict[str, np.ndarray]:
    config = ModelConfig()
    variables = from_torch(cases.initial_state_dict(config))

    @jax.jit
    def step(variables, images):
        return model_of(config).apply(variables, images, True)[1]

    found = {}
    for number in range(1, max(cases.BATCH_NORM_STEPS) + 1):
        with EXACT:
            variables = step(variables, cases.images(f"step {number}", cases.BATCH_NORM_BATCH))
        if number in cases.BATCH_NORM_STEPS:
            found |= {
                f"{name}, step {number}": a for name, a in ours.float_arrays(variables).items() if "running" in name
            }
    return found


@pytest.mark.parametrize("step", cases.BATCH_NORM_STEPS)
def test_running_statistics(step, pytorch):
    suffix = f", step {step}"
    found = {name: a for name, a in batch_norms().items() if name.endswith(suffix)}
    assert found.keys() == {name for name in pytorch.names("batch_norms") if name.endswith(suffix)}
    pytorch.check("running mean and variance", found, "batch_norms", tolerance=1e-5)


def test_initial_weights_are_drawn_as_pytorch_draws_them():
    """Two samples of every tensor, PyTorch's and ours, by the Kolmogorov-Smirnov test."""
    oracle = pytest.importorskip("support.golden.oracle", reason="needs PyTorch")
    from torch import manual_seed

    manual_seed(0)
    config = ModelConfig(width=16)
    theirs = {name: p.detach().numpy() for name, p in oracle.build(config).named_parameters()}
    initial = ours.float_arrays(jax.jit(build_model(config).init)(jax.random.key(0)))
    for name, values in theirs.items():
        if values.ndim == 1 and name != "linear.bias":  # batch norms
            np.testing.assert_array_equal(initial[name], values)
            continue
        assert stats.ks_2samp(initial[name].ravel(), values.ravel()).pvalue > 1e-4, name
        if values.size > 1000:
            assert abs(np.abs(initial[name]).max() / np.abs(values).max() - 1) < 0.01, name


def test_gradients_of_the_cpu_convolution_at_batch_128_in_float32(pytorch):
    """Against float64. ReLUs near zero make float32 gradients jump there, PyTorch's own as much (docs/parity.md), so
    this is for mistakes and not for rounding: all of the batch is there, and every kernel's gradient in its place."""
    name, batch = "configuration 5", 128
    found = ours.loss_and_gradients(cases.NETWORKS[name], *cases.gradient_case(name, batch)[:3])
    pytorch.check("gradients, batch 128, float32 against float64", found, "gradients", name, batch, tolerance=0.1)


def test_the_goldens_are_small_and_say_what_made_them():
    folder = Path(cases.__file__).parent
    assert {path.stem for path in folder.glob("*.npz")} == set(cases.QUANTITIES)
    assert sum(path.stat().st_size for path in folder.glob("*.npz")) < 2**20
    assert set(json.loads((folder / "versions.json").read_text())) == {"torch", "numpy", "python"}
