"""What `summarise` counts, against the network itself: parameters, and multiply-adds read off its program."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from jaxresnet import ModelConfig, build_model, count_params
from jaxresnet.nn.summary import count_macs, layers, summarise

CONFIGS = [
    ModelConfig(),
    ModelConfig(stage_sizes=(2, 2, 2, 2)),
    ModelConfig(shortcut_kernel=2),
    ModelConfig(stage_sizes=(2, 1, 3), width=10, pool_size=8, num_classes=7, shortcut_kernel=3),
    ModelConfig(stage_sizes=(1,) * 6, width=3, pool_size=1),
]


def macs_of_the_program(config: ModelConfig) -> int:
    """Multiply-adds of every convolution and matrix product that one image goes through."""
    built = build_model(config)

    def count(jaxpr) -> int:
        total = 0
        for equation in jaxpr.eqns:
            total += sum(count(inner) for inner in jaxprs_in_params(equation.params))
            if equation.primitive.name in ("conv_general_dilated", "dot_general"):
                kernel, output = equation.invars[1].aval, equation.outvars[0].aval
                total += math.prod(kernel.shape) * math.prod(output.shape[:-1])  # the whole kernel at every position
        return total

    variables = jax.eval_shape(lambda: built.init(jax.random.key(0)))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return count(jax.make_jaxpr(lambda v, x: built.apply(v, x, False)[0])(variables, images).jaxpr)


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_counts_are_those_of_the_network(config):
    assert sum(layer.params for layer in layers(config)) == count_params(config)
    assert count_macs(config) == macs_of_the_program(config)


def test_layers_in_order():
    found = layers(ModelConfig())
    assert [(y.name, y.kind, y.shape, y.params) for y in found[:4]] == [
        ("conv1", "conv 3x3", (32, 32, 64), 1728),
        ("bn1", "batch norm", (32, 32, 64), 128),
        ("stage1.0.conv1", "conv 3x3", (32, 32, 64), 36_864),
        ("stage1.0.bn1", "batch norm", (32, 32, 64), 128),
    ]
    assert [(y.name, y.kind, y.shape, y.params) for y in found[-4:]] == [
        ("stage4.0.shortcut_conv", "conv 1x1", (4, 4, 512), 131_072),
        ("stage4.0.shortcut_bn", "batch norm", (4, 4, 512), 1024),
        ("pool", "average 4x4", (512,), 0),
        ("linear", "linear", (10,), 5130),
    ]
    assert len({y.name for y in found}) == len(found)


def test_the_printed_table():
    lines = summarise(ModelConfig()).splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    assert lines[1].split() == ["conv1", "conv", "3x3", "32", "x", "32", "x", "64", "1,728", "1,769,472"]
    assert len({len(line) for line in lines[: len(layers(ModelConfig())) + 1]}) == 1  # columns are aligned
    assert "4,903,242 parameters, 96,758 under the budget of 5,000,000" in lines
    assert not any("cannot run" in line for line in lines)


def test_what_is_wrong_with_a_network_is_said():
    text = summarise(ModelConfig(stage_sizes=(2, 2, 2, 2), pool_size=2))
    assert "11,173,962 parameters, 6,173,962 over the budget of 5,000,000" in text
    assert text.splitlines()[-1].startswith("cannot run: pool_size=2: must be 4")
