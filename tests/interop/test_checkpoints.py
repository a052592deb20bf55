"""Checkpoints as other programs write them: how they name tensors, and where in the file they keep them."""

import numpy as np
import pytest
from support.fake_weights import SMALL, numbers
from support.tiny import assert_same_bits

from jaxresnet.cli import commands
from jaxresnet.errors import WeightsError
from jaxresnet.interop.torch import from_torch, model_config_of, network_in, networks_in
from jaxresnet.interop.weight_files import convert

TENSORS, AVERAGED = numbers(), numbers(seed=1)


def prefixed(prefix, tensors=TENSORS):
    return {prefix + name: array for name, array in tensors.items()}


@pytest.mark.parametrize(
    "state_dict",
    [
        prefixed("model."),
        prefixed("net."),
        prefixed("model.net._orig_mod."),
        {"n_averaged": np.array(7), **prefixed("module.")},
        {"state_dict": prefixed("model."), "epoch": 3, "optimizer_states": [{}], "hyper_parameters": {"lr": 0.1}},
        {"model_state_dict": TENSORS, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        {"weights_of_mine": TENSORS, "step": 7},
    ],
    ids=["Lightning model", "Lightning net", "all at once", "AveragedModel", "Lightning file", "tutorial", "one's own"],
)
def test_the_weights_are_found_wherever_a_program_keeps_them(state_dict):
    assert model_config_of(network_in(state_dict)) == SMALL
    assert_same_bits(from_torch(state_dict), from_torch(TENSORS))


def test_of_several_state_dicts_one_is_read_and_said_and_any_can_be_chosen():
    both = {"state_dict_ema": AVERAGED, "state_dict": TENSORS, "optimizer": {"state": {}}}
    assert list(networks_in(both)) == ["state_dict", "state_dict_ema"]
    assert_same_bits(from_torch(both), from_torch(TENSORS))
    assert_same_bits(from_torch(both, key="state_dict_ema"), from_torch(AVERAGED))
    with pytest.raises(
        WeightsError, match=r"key 'ema': holds no state dict; choose of \['state_dict', 'state_dict_ema'"
    ):
        from_torch(both, key="ema")
    with pytest.raises(WeightsError, match="key 'net': holds no state dict; leave it out"):
        from_torch(TENSORS, key="net")


def test_of_two_networks_in_one_state_dict_one_is_chosen():
    both = {**prefixed("net."), **prefixed("ema_net.", AVERAGED), "loss_fn.weight": np.ones(10)}
    said = r"holds several networks; choose one by its key \(--key\): ema_net, net"
    with pytest.raises(WeightsError, match=said):
        from_torch(both)
    assert_same_bits(from_torch(both, key="ema_net"), from_torch(AVERAGED))
    lightning = {"state_dict": both, "epoch": 3}
    assert_same_bits(from_torch(lightning, key="state_dict.net"), from_torch(TENSORS))
    assert_same_bits(from_torch({**TENSORS, **prefixed("ema.", AVERAGED)}, key="ema"), from_torch(AVERAGED))


def test_tensors_beside_the_network_are_left_out_and_named_but_none_inside_it():
    beside = {"loss_fn.weight": np.ones(10), "train_acc.total": np.array(3.0), "n_averaged": np.array(7)}
    network = network_in({"state_dict": prefixed("backbone.net.") | beside})
    assert network.left_out == ("loss_fn.weight", "train_acc.total")
    assert network.tensors.keys() == TENSORS.keys()
    for inside in ("backbone.net.attention.weight", "backbone.net.layer3.0.conv1.weight"):
        with pytest.raises(WeightsError, match=f"{inside.removeprefix('backbone.net.')}: extra|missing"):
            from_torch(prefixed("backbone.net.") | {inside: np.ones(3)})
    headless = {name: array for name, array in prefixed("backbone.").items() if "linear" not in name}
    with pytest.raises(WeightsError, match=r"linear\.weight: missing"):
        from_torch(headless | {"linear.weight": TENSORS["linear.weight"]})


def test_the_command_says_what_it_read(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    tensors = {key: {name: torch.from_numpy(a) for name, a in numbers(seed=i).items()} for i, key in enumerate("ab")}
    torch.save({"state_dict": tensors["a"], "state_dict_ema": tensors["b"]}, tmp_path / "both.pth")
    commands.convert(tmp_path / "both.pth", tmp_path / "a.safetensors")
    assert "read the state dict 'state_dict'; it also holds state_dict_ema (--key)" in capsys.readouterr().out
    read = convert(tmp_path / "both.pth", tmp_path / "b.safetensors", key="state_dict_ema")
    assert read.keys == ("state_dict_ema", "state_dict")
    assert_same_bits(read.variables, from_torch(AVERAGED))


def test_a_lightning_file_is_read_and_what_is_left_out_is_said(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(a) for name, a in prefixed("net.").items()} | {"loss_fn.weight": torch.ones(10)}
    torch.save({"state_dict": tensors, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, tmp_path / "last.ckpt")
    commands.convert(tmp_path / "last.ckpt", tmp_path / "a.safetensors")
    assert "left out, as not of the network: loss_fn.weight" in capsys.readouterr().out


def test_a_key_is_for_files(tmp_path):
    with pytest.raises(WeightsError, match="a folder holds no state dicts to choose from; leave --key net out"):
        convert(tmp_path, tmp_path / "x.safetensors", key="net")
