"""PyTorch's state dicts to our variables and back: names, layouts, bits, and refusals that name every tensor."""

import sys
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from support.fake_weights import SMALL, assert_same_arrays, numbers, state_dict, torch_shapes
from support.tiny import assert_same_bits

from jaxresnet.config import ModelConfig, TrainConfig
from jaxresnet.errors import ConfigError, UserError, WeightsError
from jaxresnet.interop.torch import counted_batches, from_torch, model_config_of, to_torch, torch_arrays
from jaxresnet.nn.resnet import build_model

CONFIGS = [
    SMALL,
    ModelConfig(),
    ModelConfig(stage_sizes=(2, 1, 11), width=3, shortcut_kernel=2, pool_size=8, num_classes=7),
    ModelConfig(stage_sizes=(1,) * 6, width=1, shortcut_kernel=3, pool_size=1, num_classes=2),
    ModelConfig(stage_sizes=(3,), width=5, pool_size=32),
]


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")


def refusal(tensors, config=None) -> list[str]:
    """The lines of the error, stripped."""
    with pytest.raises(WeightsError) as error:
        from_torch(tensors, config)
    return [line.strip() for line in str(error.value).splitlines()]


# ------------------------------------------------------------------------------------------------ where tensors go


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_variables_are_those_that_the_network_starts_with(config):
    variables = from_torch(numbers(config))
    model = build_model(config)
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    assert all(
        ours.shape == theirs.shape and ours.dtype == np.float32 and isinstance(ours, jax.Array)
        for ours, theirs in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True)
    )


def test_each_tensor_goes_to_its_place():
    tensors = numbers()
    variables = from_torch(tensors)
    params, batch_stats = variables["params"], variables["batch_stats"]
    block = params["stages"]["1"]["0"]

    def check(array, name, *axes):
        np.testing.assert_array_equal(array, tensors[name].transpose(axes) if axes else tensors[name], name)

    check(params["conv1"]["kernel"], "conv1.weight", 2, 3, 1, 0)
    check(params["bn1"]["scale"], "bn1.weight")
    check(params["bn1"]["bias"], "bn1.bias")
    check(batch_stats["bn1"]["mean"], "bn1.running_mean")
    check(batch_stats["bn1"]["var"], "bn1.running_var")
    check(params["stages"]["0"]["0"]["conv2"]["kernel"], "layer1.0.conv2.weight", 2, 3, 1, 0)
    check(block["conv1"]["kernel"], "layer2.0.conv1.weight", 2, 3, 1, 0)
    check(block["bn2"]["scale"], "layer2.0.bn2.weight")
    check(block["shortcut_conv"]["kernel"], "layer2.0.shortcut.0.weight", 2, 3, 1, 0)
    check(block["shortcut_bn"]["bias"], "layer2.0.shortcut.1.bias")
    check(batch_stats["stages"]["1"]["0"]["shortcut_bn"]["var"], "layer2.0.shortcut.1.running_var")
    check(params["linear"]["kernel"], "linear.weight", 1, 0)
    check(params["linear"]["bias"], "linear.bias")


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_network_is_read_off_the_tensors(config):
    assert model_config_of(numbers(config)) == config


# ------------------------------------------------------------------------------------------------------------ bits


@pytest.mark.parametrize("config", [SMALL, CONFIGS[2]], ids=str)
def test_round_trip_keeps_every_bit(config):
    tensors = state_dict(config, steps=5)
    variables = from_torch(tensors)
    assert_same_arrays(torch_arrays(variables, 5), tensors)
    assert_same_bits(from_torch(torch_arrays(variables)), variables)


def test_all_forms_of_a_state_dict_give_the_same():
    tensors = state_dict()
    expected = from_torch(tensors)
    prefixed = {f"module.{name}": array for name, array in state_dict(steps=9).items()}
    for form in (prefixed, {"net": prefixed, "acc": 91.26, "epoch": 50}, {"net": tensors}):
        assert_same_bits(from_torch(form), expected)
        assert_same_bits(from_torch(form, SMALL), expected)


def test_counts_of_training_steps():
    assert counted_batches(state_dict(steps=2**40)) == 2**40
    assert counted_batches({"net": {"module.bn1.num_batches_tracked": np.array(3)}}) == 3
    assert counted_batches(state_dict()) == 0
    counts = {n: a for n, a in torch_arrays(from_torch(numbers()), 2**40).items() if n.endswith("num_batches_tracked")}
    assert counts == {f"{bn}.num_batches_tracked": 2**40 for bn in ("bn1", *BLOCK_NORMS)}
    assert all(a.dtype == np.int64 and a.shape == () for a in counts.values())


BLOCK_NORMS = ("layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1", "layer2.0.bn2", "layer2.0.shortcut.1")


def test_other_precisions_become_float32():
    tensors = numbers()
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64, ">f4"):
        cast = {name: array.astype(dtype) for name, array in tensors.items()}
        expected = {name: array.astype(np.float32) for name, array in cast.items()}
        assert_same_arrays(torch_arrays(from_torch(cast)), torch_arrays(from_torch(expected)))
    third = from_torch({**tensors, "linear.bias": np.full(10, 1 / 3)})["params"]["linear"]["bias"]
    assert (np.asarray(third) == np.float32(1 / 3)).all()


def test_infinities_stay_and_numbers_beyond_float32_are_refused():
    bias = np.zeros(10)
    bias[3] = np.inf
    assert from_torch({**numbers(), "linear.bias": bias})["params"]["linear"]["bias"][3] == np.inf
    bias[4] = 1e39
    assert "linear.bias: float64 numbers beyond the largest float32" in refusal({**numbers(), "linear.bias": bias})


def test_nothing_is_an_alias():
    tensors = numbers()
    variables = from_torch(tensors)
    arrays = torch_arrays(variables)
    before = {name: array.copy() for name, array in tensors.items()}
    for array in tensors.values():
        array.fill(-1)
    assert_same_arrays({n: a for n, a in torch_arrays(variables).items() if "num_batches" not in n}, before)
    assert all(a.flags.c_contiguous and a.flags.writeable for a in arrays.values())
    for array in arrays.values():
        array.fill(-1)
    assert_same_arrays({n: a for n, a in torch_arrays(variables).items() if "num_batches" not in n}, before)


# -------------------------------------------------------------------------------------------------------- refusals


def test_every_tensor_that_does_not_fit_is_named_with_both_shapes():
    tensors = numbers()
    del tensors["linear.bias"], tensors["layer1.0.bn2.running_var"]
    tensors["bn1.bias"] = np.zeros(5, np.float32)
    tensors["layer2.0.conv1.weight"] = np.zeros((8, 4, 5, 5), np.float32)
    tensors["head.weight"] = np.zeros((2, 3), np.float32)
    tensors["bn1.weight"] = np.zeros(4, np.int64)
    tensors["layer1.0.conv1.weight"] = np.zeros((4, 4, 3, 3), np.complex64)
    tensors["module.layer1.0.bn1.bias"] = tensors["layer1.0.bn1.bias"]
    tensors["layer1.0.bn1.weight"] = [1.0, 2.0, 3.0, 4.0]
    tensors[0] = None
    heading, *lines = refusal(tensors)
    assert heading.startswith("not the weights of a network of 1, 1 blocks, width 4, 1x1 shortcuts, 10 classes")
    assert lines == [
        "0: cannot be read: found NoneType, not a tensor",
        "bn1.bias: found (5,), expected (4,)",
        "bn1.weight: found int64, expected floating-point numbers",
        "head.weight: extra, found (2, 3)",
        "layer1.0.bn1.bias: there twice, with and without 'module.'",
        "layer1.0.bn1.weight: cannot be read: found list, not a tensor",
        "layer1.0.bn2.running_var: missing, expected (4,)",
        "layer1.0.conv1.weight: found complex64, expected floating-point numbers",
        "layer2.0.conv1.weight: found (8, 4, 5, 5), expected (8, 4, 3, 3)",
        "linear.bias: missing, expected (10,)",
    ]


def test_a_given_network_is_what_tensors_must_fit():
    lines = refusal(numbers(), replace(SMALL, stage_sizes=(1,), num_classes=3))
    assert "linear.weight: found (10, 8), expected (3, 4)" in lines
    assert "layer2.0.shortcut.0.weight: extra, found (8, 4, 1, 1)" in lines
    assert len(lines) == 1 + 2 + 15  # the heading, the linear layer, all of layer2


def test_an_empty_state_dict_lacks_the_default_network():
    assert refusal({})[1:] == sorted(f"{n}: missing, expected {s}" for n, s in torch_shapes(ModelConfig()).items())


def of_torchvision(tensors):
    renamed = {n.replace("linear", "fc").replace("shortcut", "downsample"): array for n, array in tensors.items()}
    return renamed | {"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)}


def with_bottlenecks(tensors):
    return tensors | {"layer1.0.conv3.weight": np.zeros((16, 4, 1, 1), np.float32)}


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): array for name, array in tensors.items()}


def with_shortcut_kernel_5(tensors):
    return tensors | {"layer2.0.shortcut.0.weight": np.zeros((8, 4, 5, 5), np.float32)}


def of_one_class(tensors):
    return tensors | {"linear.weight": np.zeros((1, 8), np.float32), "linear.bias": np.zeros(1, np.float32)}


def without_width(tensors):
    return tensors | {"conv1.weight": np.zeros((0, 3, 3, 3), np.float32)}


@pytest.mark.parametrize(
    "change, parts",
    [
        (of_torchvision, ["torchvision's names", "fc.weight: extra", "linear.weight: missing", "(4, 3, 7, 7)"]),
        (with_bottlenecks, ["three convolutions", "layer1.0.conv3.weight: extra, found (16, 4, 1, 1)"]),
        (renamed("layer2.0", "layer2.1"), ["without gaps; found layer1.0, layer2.1", "layer2.0.conv1.weight: missing"]),
        (renamed("layer2", "layer3"), ["without gaps; found layer1.0, layer3.0", "layer3.0.conv1.weight: extra"]),
        (renamed("layer2.0", "layer2.999999"), ["without gaps; found layer1.0, layer2.999999"]),
        (renamed("layer2.0", "layer2." + "9" * 5000), ["9" * 5000 + ".conv1.weight: extra"]),
        (with_shortcut_kernel_5, ["shortcut_kernel=5: must be one of 1, 2, 3", "found (8, 4, 5, 5)"]),
        (of_one_class, ["num_classes=1", "linear.bias: found (1,), expected (10,)"]),
        (without_width, ["width=0", "conv1.weight: found (0, 3, 3, 3)"]),
        (lambda tensors: dict.fromkeys(tensors, np.float32(0)), ["conv1.weight: found (), expected (64, 3, 3, 3)"]),
    ],
)
def test_networks_that_this_library_has_not_are_refused_with_the_reason(change, parts):
    text = "\n".join(refusal(change(numbers())))
    assert [part for part in parts if part not in text] == []


def test_seven_stages_are_refused():
    small = {name: array for name, array in numbers().items() if name.startswith(("layer2", "conv1"))}
    stages = {name.replace("layer2", f"layer{i}"): array for i in range(1, 8) for name, array in small.items()}
    assert any("stage_sizes=(1, 1, 1, 1, 1, 1, 1): must be 1 to 6" in line for line in refusal(stages))


def test_widths_that_do_not_double_are_refused():
    tensors = numbers(replace(SMALL, width=5)) | {n: a for n, a in numbers().items() if not n.startswith("layer2")}
    assert "layer2.0.conv1.weight: found (10, 5, 3, 3), expected (8, 4, 3, 3)" in refusal(tensors)


@pytest.mark.parametrize("other", [None, 3, [("conv1.weight", 1)], np.zeros(3)], ids=type)
def test_what_is_no_state_dict_is_refused(other):
    assert "expected a state dict" in refusal(other)[0]


@pytest.mark.parametrize(
    "variables",
    [
        *(None, {}, {"params": {}}, {"params": {}, "batch_stats": {"conv1": np.zeros(3)}}, np.zeros(3)),
        {"params": [np.zeros(3)], "batch_stats": {}},
        {"params": {"stages": {"x": {"kernel": np.zeros(3)}}}, "batch_stats": {}},
    ],
)
def test_what_is_no_variables_is_refused(variables):
    with pytest.raises(WeightsError, match=r'expected \{"params": ..., "batch_stats": ...\}'):
        torch_arrays(variables)


def test_variables_of_no_network_are_refused_by_name():
    variables = from_torch(numbers())
    variables["batch_stats"] = {}
    variables["params"]["linear"]["bias"] = np.zeros((2, 3, 10), np.float32)
    with pytest.raises(WeightsError) as error:
        torch_arrays(variables)
    assert "linear.bias: found (2, 3, 10), expected (10,)" in str(error.value)
    assert "bn1.running_var: missing, expected (4,)" in str(error.value)


def test_without_pytorch_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"needs PyTorch.*pip install"):
        to_torch(from_torch(numbers()))


# --------------------------------------------------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_pytorchs_network_takes_them_and_gives_them_back(torch, config):
    from support.golden import oracle

    net = oracle.build(config)
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    variables = from_torch(net.state_dict())
    assert model_config_of(net.state_dict()) == config
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(7)
    net.load_state_dict(to_torch(variables, 3), strict=True)
    counts = {name: torch.tensor(3) for name in expected if name.endswith("num_batches_tracked")}
    assert_same_arrays(net.state_dict(), expected | counts)


def test_round_trip_through_tensors_keeps_every_bit(torch):
    tensors = {name: torch.from_numpy(array) for name, array in state_dict(steps=12).items()}
    back = to_torch(from_torch(tensors), 12)
    assert_same_arrays(back, tensors)
    assert all(t.is_contiguous() and not t.requires_grad and t.device.type == "cpu" for t in back.values())
    assert {t.dtype for t in back.values()} == {torch.float32, torch.int64}


def test_tensors_of_any_kind_are_read(torch):
    arrays = numbers()
    expected = from_torch(arrays)
    transposed = {n: torch.from_numpy(a.T.copy()).permute(*reversed(range(a.ndim))) for n, a in arrays.items()}
    assert any(not t.is_contiguous() for t in transposed.values())
    assert_same_bits(from_torch(transposed), expected)
    assert_same_bits(from_torch({n: torch.nn.Parameter(torch.from_numpy(a)) for n, a in arrays.items()}), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        cast = {name: torch.from_numpy(array).to(dtype) for name, array in arrays.items()}
        assert_same_bits(from_torch(cast), from_torch({name: t.to(torch.float32) for name, t in cast.items()}))


def test_tensors_are_copied(torch):
    tensors = {name: torch.from_numpy(array) for name, array in numbers().items()}
    variables = from_torch(tensors)
    before = jax.tree.map(np.array, variables)
    back = to_torch(variables)
    for tensor in (*tensors.values(), *back.values()):
        tensor.fill_(-1)
    assert_same_bits(variables, before)


def test_tensors_that_hold_no_numbers_are_named(torch):
    tensors = {name: torch.from_numpy(array) for name, array in numbers().items()}
    tensors["bn1.weight"] = torch.ones(4, dtype=torch.int32)
    tensors["bn1.bias"] = torch.ones(4, dtype=torch.complex64)
    tensors["conv1.weight"] = torch.ones(4, 3, 3, 3, device="meta")
    tensors["linear.bias"] = torch.ones(10).to_sparse()
    lines = refusal(tensors, SMALL)
    assert "bn1.weight: found int32, expected floating-point numbers" in lines
    assert "bn1.bias: found complex64, expected floating-point numbers" in lines
    assert [line.split(": ")[:2] for line in lines[-2:]] == [
        [n, "cannot be read"] for n in ("conv1.weight", "linear.bias")
    ]


def test_a_network_in_place_of_its_state_dict_is_refused(torch):
    assert refusal(torch.nn.Linear(2, 2))[0] == (
        "expected a state dict, name -> tensor, found Linear; give net.state_dict()"
    )


@pytest.mark.parametrize("count", ["abc", None, 3.7, float("nan"), np.array([1, 2]), np.float32(2)])
def test_a_count_that_is_no_whole_number_is_refused(count):
    with pytest.raises(WeightsError, match="num_batches_tracked: expected a whole number"):
        counted_batches({"bn1.num_batches_tracked": count})


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "module.module."])
def test_what_wrappers_put_before_names_is_left_out(prefix):
    tensors = numbers(steps=3)
    wrapped = {"state_dict": {prefix + name: array for name, array in tensors.items()}, "epoch": 3}
    assert_same_bits(from_torch(wrapped), from_torch(tensors))
    assert counted_batches(wrapped) == 3


def test_nothing_known_is_said_so_in_a_line():
    with pytest.raises(WeightsError) as error:
        from_torch({"backbone": {}, "head.weight": np.ones((2, 3))})
    assert str(error.value).endswith("found 'backbone', 'head.weight'. Give the state dict itself")
    assert "\n" not in str(error.value)


def test_a_small_file_cannot_have_a_vast_network_be_built():
    tensors = numbers() | {f"layer1.{i}.x": np.ones(1, np.float32) for i in range(5000)}
    with pytest.raises(WeightsError, match=r"no network here has stage_sizes=\(5000, 1\)"):
        from_torch(tensors)


def test_a_config_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="config: expected a ModelConfig or None, found TrainConfig"):
        from_torch(numbers(), TrainConfig())
