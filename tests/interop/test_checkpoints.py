"""Checkpoints as other programs write them: how they name tensors, and where in the file they keep them."""

import numpy as np
import pytest
from support.fake_weights import SMALL, numbers
from support.tiny import assert_same_bits

from jaxresnet.cli import commands
from jaxresnet.errors import WeightsError
from jaxresnet.interop.torch import from_torch, model_config_of, state_dict_keys
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
    assert model_config_of(state_dict) == SMALL
    assert_same_bits(from_torch(state_dict), from_torch(TENSORS))


def test_of_several_state_dicts_one_is_read_and_said_and_any_can_be_chosen():
    both = {"state_dict_ema": AVERAGED, "state_dict": TENSORS, "optimizer": {"state": {}}}
    assert state_dict_keys(both) == ["state_dict", "state_dict_ema"]
    assert_same_bits(from_torch(both), from_torch(TENSORS))
    assert_same_bits(from_torch(both, key="state_dict_ema"), from_torch(AVERAGED))
    with pytest.raises(
        WeightsError, match=r"key 'ema': holds no state dict; choose of \['state_dict', 'state_dict_ema'"
    ):
        from_torch(both, key="ema")
    with pytest.raises(WeightsError, match="key 'net': holds no state dict; leave it out"):
        from_torch(TENSORS, key="net")


def test_two_networks_in_one_state_dict_are_not_mixed():
    with pytest.raises(WeightsError, match="holds the tensors of several networks"):
        from_torch({**prefixed("model."), **prefixed("net.", AVERAGED)})


def test_the_command_says_what_it_read(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    tensors = {key: {name: torch.from_numpy(a) for name, a in numbers(seed=i).items()} for i, key in enumerate("ab")}
    torch.save({"state_dict": tensors["a"], "state_dict_ema": tensors["b"]}, tmp_path / "both.pth")
    commands.convert(tmp_path / "both.pth", tmp_path / "a.safetensors")
    assert "read the state dict 'state_dict'; it also holds state_dict_ema (--key)" in capsys.readouterr().out
    read = convert(tmp_path / "both.pth", tmp_path / "b.safetensors", key="state_dict_ema")
    assert read.keys == ("state_dict_ema", "state_dict")
    assert_same_bits(read.variables, from_torch(AVERAGED))


def test_a_key_is_for_files(tmp_path):
    with pytest.raises(WeightsError, match="a folder holds no state dicts to choose from; leave --key net out"):
        convert(tmp_path, tmp_path / "x.safetensors", key="net")
