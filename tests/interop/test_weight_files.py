"""Weights between .pth, .safetensors and checkpoint folders: the same bits everywhere, and what is refused."""

import errno
import os
import pickle
import sys
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from support.fake_weights import SMALL, assert_same_arrays, numbers, state_dict
from support.tiny import MODEL, assert_same_bits, leaves

import jaxresnet as jr
import jaxresnet.__main__
from jaxresnet.config import OptimConfig, TrainConfig, to_dict
from jaxresnet.errors import ConfigError, ResultsError, StorageError, UserError, WeightsError
from jaxresnet.interop.torch import from_torch, torch_arrays
from jaxresnet.interop.weight_files import convert, read_weights
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.training.checkpoint import Checkpoints
from jaxresnet.training.engine import replicate
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.predict import load_variables, predict
from jaxresnet.training.state import TrainState, eval_variables

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
RUN = TrainConfig(model=MODEL)  # with Lookahead, scored on its slow weights
BARE = replace(RUN, optim=OptimConfig(lookahead=False))


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")


def save(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def row(epoch, val_accuracy, test_accuracy):
    return {"epoch": epoch, "step": 10 * (epoch + 1), "val_accuracy": val_accuracy, "test_accuracy": test_accuracy}


SCORED_ONCE = (row(0, 30.5, None), row(1, 20.25, None))  # on the test set, after the last epoch


def write_run(folder, config=RUN, history=SCORED_ONCE, best_step=10):
    """A run's checkpoints as `fit` leaves them, the best and the last, with slow weights of their own. Returns the
    state of the best."""
    states = {}
    for seed, step in enumerate(sorted({best_step or 20, 20})):
        fast, slow = from_torch(numbers(config.model, seed=seed)), from_torch(numbers(config.model, seed=seed + 5))
        opt_state = make_step_optimizer(config.optim, hypers_of(config.optim)).init(slow["params"])
        slow_batch_stats = slow["batch_stats"] if config.optim.lookahead else {}
        key = jax.random.key_data(jax.random.key(0))
        state = TrainState(np.int32(step), fast["params"], fast["batch_stats"], slow_batch_stats, opt_state, key)
        states[step] = replicate(state, tuple(jax.devices()[:1]))
    record = {"config": to_dict(config), "data": {}, "history": list(history), "seconds": 0.0, "best_step": best_step}
    with Checkpoints(folder) as checkpoints:
        for state in states.values():
            checkpoints.save(state, zero_totals(), record, best_step)
    return states[best_step or 20]


def test_the_weights_of_a_run_are_those_of_its_chosen_epoch(tmp_path):
    best = write_run(tmp_path / "run")
    loaded = load_variables(tmp_path / "run")
    assert loaded.config == RUN and loaded.step == 10 and loaded.weights == "slow"
    assert [r["epoch"] for r in loaded.record["history"]] == [0, 1]
    assert_same_bits(loaded.variables, eval_variables(best, "slow"))
    assert_same_bits(load_variables(tmp_path / "run", "slow").variables, loaded.variables)
    fast = load_variables(tmp_path / "run", "fast")
    assert fast.weights == "fast"
    assert_same_bits(fast.variables, eval_variables(best, "fast"))
    assert not np.array_equal(leaves(fast.variables)[0][1], leaves(loaded.variables)[0][1])
    with pytest.raises(ConfigError, match=r"weights='medium': must be one of 'fast', 'slow'"):
        load_variables(tmp_path / "run", "medium")


# ------------------------------------------------------------------------------------------------ there and back


def test_safetensors_to_a_folder_and_back_is_the_same_file(tmp_path):
    tensors = state_dict(steps=1234)
    source = save(tmp_path / "a.safetensors", tensors)
    done = convert(source, tmp_path / "run-0.01")
    assert done == (SMALL, jr.count_params(SMALL), len(tensors), None)
    assert convert(tmp_path / "run-0.01", tmp_path / "b.safetensors") == done
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "b.safetensors"), tensors)
    with safetensors.safe_open(tmp_path / "b.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert names(tmp_path) == ["a.safetensors", "b.safetensors", "run-0.01"]


def test_a_converted_folder_is_a_run_that_predicts(tmp_path):
    tensors = numbers(steps=7)
    convert(save(tmp_path / "a.safetensors", tensors), tmp_path / "new" / "run")
    loaded = load_variables(tmp_path / "new" / "run")
    assert loaded.config == TrainConfig(model=SMALL, optim=OptimConfig(lookahead=False)) and loaded.step == 7
    assert loaded.record["converted"]["source"] == "a.safetensors"
    assert_same_bits(loaded.variables, from_torch(tensors))
    images = ((IMAGES / 255 - [0.4914, 0.4822, 0.4465]) / [0.2023, 0.1994, 0.2010]).astype(np.float32)
    logits, _ = jr.build_model(SMALL).apply(from_torch(tensors), images, False)
    probabilities = predict(tmp_path / "new" / "run", IMAGES)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)
    assert np.ptp(probabilities, axis=0).max() > 1e-3


def test_a_converted_folder_is_not_continued_as_another_run(tmp_path, tiny_data):
    convert(save(tmp_path / "a.safetensors", numbers(MODEL)), tmp_path / "run")
    with pytest.raises(ResultsError, match="holds a run with other settings"):
        jr.fit(replace(BARE, val_size=44, batch_size=64), tiny_data, tmp_path / "run", devices=jax.devices()[:1])


@pytest.mark.parametrize("weights", [None, "fast", "slow"])
def test_a_run_becomes_a_file_of_the_weights_asked_for(tmp_path, weights):
    best = write_run(tmp_path / "run")
    done = convert(tmp_path / "run", tmp_path / "out.safetensors", weights)
    assert done.config == MODEL and done.kind == (weights or "slow")
    expected = torch_arrays(eval_variables(best, weights or "slow"), 10)
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "out.safetensors"), expected)


def test_a_folder_of_one_set_of_weights_gives_no_other(tmp_path):
    """Neither a run without Lookahead nor what was converted from one with it."""
    write_run(tmp_path / "bare", BARE)
    write_run(tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "fast", "fast")
    for folder in ("bare", "fast"):
        assert load_variables(tmp_path / folder).weights == "fast"
        with pytest.raises(ConfigError, match=f"weights='slow': .*{folder} holds one set of weights"):
            convert(tmp_path / folder, tmp_path / "slow.safetensors", "slow")
    assert convert(tmp_path / "fast", tmp_path / "a.safetensors").kind == "fast"


def test_bfloat16_in_safetensors_is_widened(tmp_path):
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in numbers().items()}
    read = read_weights(save(tmp_path / "a.safetensors", half))
    assert_same_bits(read.variables, from_torch({name: array.astype(np.float32) for name, array in half.items()}))


# -------------------------------------------------------------------------------------------------------- refusals


def refused(*args, **kwargs):
    with pytest.raises(WeightsError) as error:
        convert(*args, **kwargs)
    return str(error.value)


def test_nothing_is_overwritten(tmp_path):
    source = save(tmp_path / "a.safetensors", numbers())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    before = names(tmp_path)
    for target in ("a.safetensors", "file", "folder", "link"):
        assert "nothing is overwritten" in refused(source, tmp_path / target)
    assert names(tmp_path) == before and (tmp_path / "file").read_text() == "mine"
    assert not any((tmp_path / "folder").iterdir())


def test_what_does_not_fit_is_refused(tmp_path):
    source = save(tmp_path / "a.safetensors", numbers())
    for name in ("x.onnx", "x.CKPT", "x.pth.tar", "x.h5"):
        assert "cannot write" in refused(source, tmp_path / name)
    (tmp_path / "x.bin").write_bytes(b"x")
    assert "x.bin: unknown kind of file; known are .pth, .pt" in refused(tmp_path / "x.bin", tmp_path / "run")
    assert "y.safetensors: cannot be read (" in refused(tmp_path / "y.safetensors", tmp_path / "run")
    assert "leave --weights fast out" in refused(source, tmp_path / "run", "fast")
    assert "choose a .pth, or leave --wrap out" in refused(source, tmp_path / "b.safetensors", wrap=True)
    tensors = numbers()
    del tensors["linear.bias"]
    text = refused(save(tmp_path / "b.safetensors", tensors), tmp_path / "run")
    assert text.startswith(f"{tmp_path / 'b.safetensors'}: not the weights of a network")
    assert "linear.bias: missing, expected (10,)" in text
    (tmp_path / "empty").mkdir()
    for name, reason in (("empty", "holds no checkpoint"), ("nowhere", "no such folder")):
        with pytest.raises(ResultsError, match=reason):
            convert(tmp_path / name, tmp_path / "out.safetensors")
    assert names(tmp_path) == ["a.safetensors", "b.safetensors", "empty", "x.bin"]


DAMAGES = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "text": lambda content: b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_safetensors_is_named(tmp_path, damage):
    path = save(tmp_path / "a.safetensors", numbers())
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert refused(path, tmp_path / "run").startswith(f"{path}: damaged (")
    assert names(tmp_path) == ["a.safetensors"]


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    source = save(tmp_path / "a.safetensors", numbers())

    def full(old, new):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for target in ("b.safetensors", "run"):
        with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
            convert(source, tmp_path / target)
    assert names(tmp_path) == ["a.safetensors"]
    (tmp_path / "file").touch()
    for target in ("b.safetensors", "run"):
        with pytest.raises(StorageError, match="cannot be written"):
            convert(source, tmp_path / "file" / target)


def test_without_pytorch_a_pth_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"x")
    source = save(tmp_path / "a.safetensors", numbers())
    for args in ((tmp_path / "a.pth", tmp_path / "run"), (source, tmp_path / "b.pth")):
        with pytest.raises(UserError, match=r"PyTorch is not installed.*pip install"):
            convert(*args)
    assert names(tmp_path) == ["a.pth", "a.safetensors"]


# ------------------------------------------------------------------------------------------------------------ .pth


def save_pth(torch, path, tensors, **wrapped):
    tensors = {name: torch.from_numpy(array) for name, array in tensors.items()}
    torch.save({"net": tensors, **wrapped} if wrapped else tensors, path)
    return path


def load_pth(torch, path):
    return torch.load(path, map_location="cpu", weights_only=True)


def test_every_kind_to_every_kind_keeps_every_bit(torch, tmp_path):
    tensors = state_dict(steps=5)
    path = save_pth(torch, tmp_path / "0.pth", tensors)
    for name in ["1.safetensors", "2.pt", "run3", "4.PTH", "5.pth", "6.safetensors", "run7", "run8"]:
        assert convert(path, tmp_path / name).num_tensors == len(tensors)
        path = tmp_path / name
    assert_same_arrays(load_pth(torch, tmp_path / "4.PTH"), tensors)
    assert_same_bits(load_variables(tmp_path / "run8").variables, from_torch(tensors))


def test_a_published_file_there_and_back(torch, tmp_path):
    tensors = numbers(steps=98)
    prefixed = {f"module.{name}": array for name, array in tensors.items()}
    source = save_pth(torch, tmp_path / "a.pth", prefixed, acc=torch.tensor(91.25), epoch=50)
    convert(source, tmp_path / "run")
    for i, start in enumerate((source, tmp_path / "run")):
        convert(start, tmp_path / f"{i}.pth", wrap=True)
        wrapped = load_pth(torch, tmp_path / f"{i}.pth")
        assert_same_arrays(wrapped["net"], tensors)
        assert (wrapped["acc"], wrapped["epoch"]) == (91.25, 50) and type(wrapped["epoch"]) is int
        convert(start, tmp_path / f"{i}-bare.pth")
        assert_same_arrays(load_pth(torch, tmp_path / f"{i}-bare.pth"), tensors)


@pytest.mark.parametrize(
    "history, acc",
    [
        (SCORED_ONCE, 30.5),
        ((row(0, 30.5, 28.75), row(1, 20.25, 40.0)), 28.75),
        ((row(0, None, 28.75), row(1, None, 40.0)), 28.75),
    ],
)
def test_a_wrapped_run_states_the_chosen_epoch_and_its_accuracy(torch, tmp_path, history, acc):
    best = write_run(tmp_path / "run", history=history)
    convert(tmp_path / "run", tmp_path / "a.pth", wrap=True)
    wrapped = load_pth(torch, tmp_path / "a.pth")
    assert sorted(wrapped) == ["acc", "epoch", "net"]
    assert (wrapped["acc"], wrapped["epoch"]) == (acc, 0)
    assert_same_arrays(wrapped["net"], torch_arrays(eval_variables(best, "slow"), 10))


def test_an_accuracy_that_is_not_known_is_not_made_up(torch, tmp_path):
    write_run(tmp_path / "run")
    assert "tells no accuracy of these" in refused(tmp_path / "run", tmp_path / "a.pth", "fast", wrap=True)
    write_run(tmp_path / "bare", BARE)
    convert(tmp_path / "bare", tmp_path / "b.pth", wrap=True)
    assert load_pth(torch, tmp_path / "b.pth")["acc"] == 30.5
    write_run(tmp_path / "stopped", history=[], best_step=None)
    plain = save_pth(torch, tmp_path / "plain.pth", numbers())
    odd = save_pth(torch, tmp_path / "odd.pth", numbers(), acc=float("nan"), epoch="last")
    for source in (tmp_path / "stopped", plain, odd):
        assert "tells no accuracy and no epoch of these weights" in refused(source, tmp_path / "a.pth", wrap=True)
    assert not (tmp_path / "a.pth").exists()


class Command:
    """What a malicious file holds: unpickling it runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "old", "pickle 2", "pickle 4"])
def test_nothing_in_a_pth_is_executed(torch, tmp_path, form):
    path, marker = tmp_path / "a.pth", tmp_path / "executed"
    content = {"net": {"conv1.weight": Command(marker)}}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    text = refused(path, tmp_path / "run")
    assert text.startswith(f"{path}: ") and "nothing in it was executed" in text
    assert names(tmp_path) == ["a.pth"]
    if form in ("zip", "old"):
        assert "mkdir, no tensor" in text and "torch.save(net.state_dict(), 'weights.pth')" in text
        torch.load(path, weights_only=False)
        assert marker.is_dir(), "the file does what it is made to, where it is let"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pth_is_named(torch, tmp_path, damage):
    path = save_pth(torch, tmp_path / "a.pth", numbers())
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    text = refused(path, tmp_path / "run")
    assert text.startswith(f"{path}: damaged (") and "\n" not in text and len(text) < 400


def test_what_is_no_pth_of_weights_is_refused(torch, tmp_path):
    torch.save(torch.ones(3), tmp_path / "c.pth")
    assert "c.pth: holds Tensor, not a state dict" in refused(tmp_path / "c.pth", tmp_path / "run")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "d.pth")
    assert "holds torch.nn.modules.linear.Linear, no tensor" in refused(tmp_path / "d.pth", tmp_path / "run")


def test_pytorch_that_could_be_made_to_execute_code_does_not_read(torch, tmp_path, monkeypatch):
    path = save_pth(torch, tmp_path / "a.pth", numbers())
    monkeypatch.setattr(torch, "__version__", "3.0.0a1")
    assert read_weights(path).config == SMALL
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(UserError, match=r"CVE-2025-32434.*pip install"):
        read_weights(path)


# ------------------------------------------------------------------------------------------------ the command line


def run_main(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["jaxresnet", *map(str, args)])
    try:
        jaxresnet.__main__.main()
    except SystemExit as error:
        return error.code or 0
    return 0


def test_the_command(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run")
    target = tmp_path / "a.safetensors"
    assert run_main(monkeypatch, "convert", tmp_path / "run", target, "--weights", "fast") == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'run'} -> {target} (fast weights)" in printed
    assert f"{jr.count_params(MODEL):,} parameters" in printed and "20 tensors" in printed
    assert run_main(monkeypatch, "convert", target, tmp_path / "b.safetensors", "--wrap") == 2
    assert "leave --wrap out" in capsys.readouterr().err
