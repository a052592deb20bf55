"""PyTorch's state dicts to our variables and back: names, layouts, bits, and refusals that name every tensor."""

from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from support.fake_weights import SMALL, assert_same_arrays, numbers, state_dict
from support.tiny import assert_same_bits

from jaxresnet.config import ModelConfig
from jaxresnet.errors import WeightsError
from jaxresnet.interop.torch import counted_batches, from_torch, model_config_of, network_in, to_torch, torch_arrays
from jaxresnet.nn.resnet import build_model

CONFIGS = [
    SMALL,
    ModelConfig(),
    ModelConfig(stage_sizes=(2, 1, 11), width=3, shortcut_kernel=2, pool_size=8, num_classes=7),
    ModelConfig(stage_sizes=(1,) * 6, width=1, shortcut_kernel=3, pool_size=1, num_classes=2),
    ModelConfig(stage_sizes=(3,), width=5, pool_size=32),
]


def refusal(tensors, config=None) -> str:
    with pytest.raises(WeightsError) as error:
        from_torch(tensors, config)
    return str(error.value)


@pytest.mark.parametrize("config", CONFIGS)
def test_variables_are_those_that_the_network_starts_with(config):
    tensors = numbers(config)
    assert model_config_of(network_in(tensors)) == config, "the network is read off the tensors"
    variables, model = from_torch(tensors), build_model(config)
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    assert all(
        ours.shape == theirs.shape and ours.dtype == np.float32 and isinstance(ours, jax.Array)
        for ours, theirs in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True)
    )


@pytest.mark.parametrize("config", [SMALL, CONFIGS[2]])
def test_round_trip_keeps_every_bit_and_nothing_is_an_alias(config):
    tensors = state_dict(config, steps=5)
    variables = from_torch(tensors)
    arrays = torch_arrays(variables, 5)
    assert_same_arrays(arrays, tensors)
    assert_same_bits(from_torch(arrays), variables)
    for array in (*tensors.values(), *arrays.values()):
        assert array.flags.c_contiguous
        array.fill(-1)
    assert_same_arrays(torch_arrays(variables, 5), state_dict(config, steps=5))


@pytest.mark.parametrize(
    "wrap, prefix", [(None, "module."), ("net", "_orig_mod."), ("state_dict", "module._orig_mod.")]
)
def test_all_forms_of_a_state_dict_give_the_same(wrap, prefix):
    form = {prefix + name: array for name, array in state_dict(steps=9).items()}
    form = {wrap: form, "acc": 91.26, "epoch": 50} if wrap else form
    assert_same_bits(from_torch(form, SMALL), from_torch(state_dict()))
    network = network_in(form)
    assert model_config_of(network) == SMALL and counted_batches(network) == 9
    assert counted_batches(network_in(state_dict())) == 0


def test_other_precisions_become_float32():
    tensors = numbers()
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        cast = {name: array.astype(dtype) for name, array in tensors.items()}
        expected = {name: array.astype(np.float32) for name, array in cast.items()}
        assert_same_arrays(torch_arrays(from_torch(cast)), torch_arrays(from_torch(expected)))
    third = from_torch({**tensors, "linear.bias": np.full(10, 1 / 3)})["params"]["linear"]["bias"]
    assert (np.asarray(third) == np.float32(1 / 3)).all()


def test_every_tensor_that_does_not_fit_is_named_with_both_shapes():
    tensors = numbers()
    del tensors["linear.bias"], tensors["layer1.0.bn2.running_var"]
    tensors["bn1.bias"] = np.zeros(5, np.float32)
    tensors["layer2.0.conv1.weight"] = np.zeros((8, 4, 5, 5), np.float32)
    tensors["head.weight"] = np.zeros((2, 3), np.float32)
    tensors["bn1.weight"] = np.zeros(4, np.int64)
    heading, *lines = refusal(tensors).split("\n  ")
    assert heading.startswith("not the weights of a network of 1, 1 blocks, width 4, 1x1 shortcuts, 10 classes")
    assert lines == [
        "bn1.bias: found (5,), expected (4,)",
        "bn1.weight: found int64, expected floating-point numbers",
        "head.weight: extra, found (2, 3)",
        "layer1.0.bn2.running_var: missing, expected (4,)",
        "layer2.0.conv1.weight: found (8, 4, 5, 5), expected (8, 4, 3, 3)",
        "linear.bias: missing, expected (10,)",
    ]


def test_a_given_network_is_what_tensors_must_fit():
    _, *lines = refusal(numbers(), replace(SMALL, stage_sizes=(1,), num_classes=3)).split("\n  ")
    assert "linear.weight: found (10, 8), expected (3, 4)" in lines
    assert "layer2.0.shortcut.0.weight: extra, found (8, 4, 1, 1)" in lines
    assert len(lines) == 2 + 15, "the linear layer, and all of layer2"


def renamed(old, new):
    return {name.replace(old, new): array for name, array in numbers().items()}


@pytest.mark.parametrize(
    "tensors, parts",
    [
        (renamed("linear", "fc"), ["fc.weight: extra", "linear.weight: missing"]),
        (renamed("layer2", "layer3"), ["stage_sizes=(1, 0, 1)"]),
        (numbers() | {"layer2.0.shortcut.0.weight": np.zeros((8, 4, 5, 5))}, ["shortcut_kernel=5: must be one of"]),
        ({"backbone": {}, "head.weight": np.ones((2, 3))}, ["backbone, head.weight", "give the state dict itself"]),
        ({}, ["1, 1, 1, 1 blocks, width 64", "linear.bias: missing, expected (10,)"]),
        (None, ["NoneType is not a state dict"]),
    ],
)
def test_networks_that_this_library_has_not_are_refused_with_the_reason(tensors, parts):
    text = refusal(tensors)
    assert [part for part in parts if part not in text] == []


def test_variables_of_no_network_are_refused():
    for variables in (None, {"params": {}}, {"conv1.weight": np.zeros(3)}):
        with pytest.raises(WeightsError, match=r'not \{"params": ..., "batch_stats": ...\}'):
            torch_arrays(variables)
    with pytest.raises(WeightsError, match=r"bn1\.running_var: missing, expected \(4,\)"):
        torch_arrays({**from_torch(numbers()), "batch_stats": {}})


@pytest.mark.parametrize("config", CONFIGS[:3])
def test_pytorchs_network_takes_them_and_gives_them_back(config):
    torch = pytest.importorskip("torch")
    from support.golden import oracle

    net = oracle.build(config)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert model_config_of(network_in(before)) == config
    variables = from_torch(net.state_dict())
    with torch.no_grad():
        for tensor in (*net.state_dict().values(), *to_torch(variables).values()):
            tensor.fill_(7)  # nothing of the variables is an alias
    back = to_torch(variables, 3)
    assert all(t.is_contiguous() and not t.requires_grad and t.device.type == "cpu" for t in back.values())
    net.load_state_dict(back, strict=True)
    counts = {name: torch.tensor(3) for name in before if name.endswith("num_batches_tracked")}
    assert_same_arrays(net.state_dict(), before | counts)


def test_tensors_of_any_kind_are_read():
    torch = pytest.importorskip("torch")
    arrays = numbers()
    expected = from_torch(arrays)
    transposed = {n: torch.from_numpy(a.T.copy()).permute(*reversed(range(a.ndim))) for n, a in arrays.items()}
    assert any(not t.is_contiguous() for t in transposed.values())
    assert_same_bits(from_torch(transposed), expected)
    assert_same_bits(from_torch({n: torch.nn.Parameter(torch.from_numpy(a)) for n, a in arrays.items()}), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        cast = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
        assert_same_bits(from_torch(cast), from_torch({name: t.to(torch.float32) for name, t in cast.items()}))
    whole = {**arrays, "linear.bias": torch.ones(10, dtype=torch.int64)}
    assert "linear.bias: found int64" in refusal(whole)
