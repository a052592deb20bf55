"""Weights between .pth, .safetensors and folders: the same bits everywhere, and what is refused."""

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
from support.tiny import MODEL, assert_same_bits

import jaxresnet as jr
from jaxresnet.cli import commands
from jaxresnet.config import OptimConfig, TrainConfig, to_dict
from jaxresnet.errors import ConfigError, ResultsError, StorageError, UserError, WeightsError
from jaxresnet.interop.torch import from_torch, torch_arrays
from jaxresnet.interop.weight_files import convert, read_weights
from jaxresnet.training.checkpoint import Record, Saved, save
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.predict import blank_state, load_variables, predict
from jaxresnet.training.state import Weights

RUN = TrainConfig(model=MODEL)  # with Lookahead, scored on its slow weights
BARE = replace(RUN, optim=OptimConfig(lookahead=False))


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")


def save_tensors(path, tensors, **wrapped):
    """Into a file of the kind that its name says. wrapped: "acc" and "epoch" of a published .pth."""
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
        return path
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in tensors.items()}
    torch.save({"net": tensors, **wrapped} if wrapped else tensors, path)
    return path


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def row(epoch, val_accuracy, test_accuracy):
    return {"epoch": epoch, "step": 10 * (epoch + 1), "val_accuracy": val_accuracy, "test_accuracy": test_accuracy}


SCORED_ONCE = (row(0, 30.5, None), row(1, 20.25, None))  # on the test set, after the last epoch


def write_run(folder, config=RUN, history=SCORED_ONCE):
    """A run's folder as it is after its last epoch. Returns the weights of the chosen one, the first."""
    fast, slow = (from_torch(numbers(config.model, seed=seed)) for seed in (1, 2))
    best = Weights(fast, slow if config.optim.lookahead else {})
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), blank_state(config))._replace(
        step=np.array(20, np.int32)
    )
    save(folder / "checkpoints", Saved(state, zero_totals(), best, Record(to_dict(config), {}, list(history))))
    return best


# ------------------------------------------------------------------------------------------------ there and back


def test_safetensors_to_a_folder_and_back_is_the_same_file(tmp_path):
    tensors = state_dict(steps=1234)
    source = save_tensors(tmp_path / "a.safetensors", tensors)
    for start, target in ((source, tmp_path / "run-0.01"), (tmp_path / "run-0.01", tmp_path / "b.safetensors")):
        read = convert(start, target)
        assert (read.config, *read[2:]) == (SMALL, 1234, None, None, None)
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "b.safetensors"), tensors)
    with safetensors.safe_open(tmp_path / "b.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert names(tmp_path) == ["a.safetensors", "b.safetensors", "run-0.01"]


def test_a_converted_folder_predicts_and_is_not_continued_as_a_run(tmp_path, tiny_data):
    tensors, folder = numbers(MODEL, steps=7), tmp_path / "new" / "run"
    convert(save_tensors(tmp_path / "a.safetensors", tensors), folder)
    loaded = load_variables(folder)
    assert loaded.config.model == replace(MODEL, precision="auto") and loaded.converted["source"] == "a.safetensors"
    assert_same_bits(loaded.variables, from_torch(tensors))
    images = ((tiny_data.test.images / 255 - [0.4914, 0.4822, 0.4465]) / [0.2023, 0.1994, 0.2010]).astype(np.float32)
    logits, _ = jr.build_model(MODEL).apply(loaded.variables, images, False)
    np.testing.assert_allclose(predict(folder, tiny_data.test.images), jax.nn.softmax(logits), atol=1e-5)
    with pytest.raises(ResultsError, match="holds a run with other settings"):
        jr.fit(replace(BARE, val_size=44, batch_size=64), tiny_data, folder, devices=jax.devices()[:1])


@pytest.mark.parametrize("weights", [None, "fast", "slow"])
@pytest.mark.parametrize("source", ["run", "run/checkpoints"])
def test_a_run_becomes_a_file_of_the_weights_asked_for(tmp_path, source, weights):
    best = write_run(tmp_path / "run")
    read = convert(tmp_path / source, tmp_path / "out.safetensors", weights)
    assert read.config == MODEL and read.kind == (weights or "slow")
    expected = torch_arrays(best.variables(read.kind), 10)
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "out.safetensors"), expected)


def test_a_folder_of_one_set_of_weights_gives_no_other(tmp_path):
    """Neither a run without Lookahead nor what was converted from one with it."""
    write_run(tmp_path / "bare", BARE)
    write_run(tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "fast", "fast")
    for folder, kind in (("bare", None), ("fast", "fast")):
        with pytest.raises(ConfigError, match=f"weights='slow': .*{folder}.* holds one set of weights"):
            convert(tmp_path / folder, tmp_path / "slow.safetensors", "slow")
        assert convert(tmp_path / folder, tmp_path / f"{folder}.safetensors").kind == kind


def test_bfloat16_in_safetensors_is_widened(tmp_path):
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in numbers().items()}
    read = read_weights(save_tensors(tmp_path / "a.safetensors", half))
    assert_same_bits(read.variables, from_torch({name: array.astype(np.float32) for name, array in half.items()}))


def test_every_kind_to_every_kind_keeps_every_bit(torch, tmp_path):
    tensors = state_dict(steps=5)
    path = save_tensors(tmp_path / "0.pth", tensors)
    for name in ["1.safetensors", "2.pt", "run3", "4.PTH", "5.pth", "6.safetensors", "run7", "run8"]:
        convert(path, tmp_path / name)
        path = tmp_path / name
    assert_same_arrays(torch.load(tmp_path / "4.PTH", weights_only=True), tensors)
    assert_same_bits(load_variables(tmp_path / "run8").variables, from_torch(tensors))


# -------------------------------------------------------------------------------------------------------- refusals


def refused(*args, **kwargs):
    with pytest.raises(WeightsError) as error:
        convert(*args, **kwargs)
    return str(error.value)


def test_nothing_is_overwritten(tmp_path):
    source = save_tensors(tmp_path / "a.safetensors", numbers())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    before = names(tmp_path)
    for target in ("a.safetensors", "file", "folder", "link"):
        assert "nothing is overwritten" in refused(source, tmp_path / target)
    assert names(tmp_path) == before and (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path / "folder") == []


def test_what_does_not_fit_is_refused(tmp_path):
    source = save_tensors(tmp_path / "a.safetensors", numbers())
    for name in ("x.onnx", "x.CKPT", "x.pth.tar", "x.h5"):
        assert "cannot write" in refused(source, tmp_path / name)
    (tmp_path / "x.bin").write_bytes(b"x")
    assert "x.bin: unknown kind of file; known are .pth, .pt" in refused(tmp_path / "x.bin", tmp_path / "run")
    assert "y.safetensors: cannot be read (" in refused(tmp_path / "y.safetensors", tmp_path / "run")
    assert "leave --weights fast out" in refused(source, tmp_path / "run", "fast")
    assert "choose a .pth, or leave --wrap out" in refused(source, tmp_path / "b.safetensors", wrap=True)
    tensors = numbers()
    del tensors["linear.bias"]
    text = refused(save_tensors(tmp_path / "b.safetensors", tensors), tmp_path / "run")
    assert text.startswith(f"{tmp_path / 'b.safetensors'}: not the weights of a network")
    assert "linear.bias: missing, expected (10,)" in text
    write_run(tmp_path / "stopped", history=())
    (tmp_path / "empty").mkdir()
    reasons = {"empty": "holds no checkpoint", "nowhere": "no such folder", "stopped": "has not finished an epoch"}
    for name, reason in reasons.items():
        with pytest.raises(ResultsError, match=reason):
            convert(tmp_path / name, tmp_path / "out.safetensors")
    assert names(tmp_path) == ["a.safetensors", "b.safetensors", "empty", "stopped", "x.bin"]


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = save_tensors(tmp_path / name, numbers())
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(damaged)
        text = refused(path, tmp_path / "run")
        assert text.startswith(f"{path}: damaged (") and "\n" not in text and len(text) < 400
    assert names(tmp_path) == [name]


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    source = save_tensors(tmp_path / "a.safetensors", numbers())

    def full(old, new):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for target in ("b.safetensors", "run"):
        with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\)"):
            convert(source, tmp_path / target)
    assert names(tmp_path) == ["a.safetensors"]
    for target in ("b.safetensors", "run"):
        with pytest.raises(StorageError, match="cannot be written"):
            convert(source, source / target)  # below a file


# -------------------------------------------------------------------------------- the published {"net", "acc", "epoch"}


def test_a_published_file_there_and_back(torch, tmp_path):
    tensors = numbers(steps=98)
    prefixed = {f"module.{name}": array for name, array in tensors.items()}
    source = save_tensors(tmp_path / "a.pth", prefixed, acc=torch.tensor(91.25), epoch=50)
    convert(source, tmp_path / "run")
    for i, start in enumerate((source, tmp_path / "run")):
        convert(start, tmp_path / f"{i}.pth", wrap=True)
        wrapped = torch.load(tmp_path / f"{i}.pth", weights_only=True)
        assert_same_arrays(wrapped["net"], tensors)
        assert (wrapped["acc"], wrapped["epoch"]) == (91.25, 50) and type(wrapped["epoch"]) is int
        convert(start, tmp_path / f"{i}-bare.pth")
        assert_same_arrays(torch.load(tmp_path / f"{i}-bare.pth", weights_only=True), tensors)


@pytest.mark.parametrize(
    "config, history, acc",
    [
        (RUN, SCORED_ONCE, 30.5),
        (RUN, (row(0, 30.5, 28.75), row(1, 20.25, 40.0)), 28.75),
        (replace(RUN, selection="last"), (row(0, None, 28.75), row(1, None, 40.0)), 40.0),
        (BARE, SCORED_ONCE, 30.5),
    ],
)
def test_a_wrapped_run_states_the_chosen_epoch_and_its_accuracy(torch, tmp_path, config, history, acc):
    best = write_run(tmp_path / "run", config, history)
    convert(tmp_path / "run", tmp_path / "a.pth", wrap=True)
    wrapped = torch.load(tmp_path / "a.pth", weights_only=True)
    epoch = 1 if config.selection == "last" else 0
    assert (wrapped["acc"], wrapped["epoch"], sorted(wrapped)) == (acc, epoch, ["acc", "epoch", "net"])
    assert_same_arrays(wrapped["net"], torch_arrays(best.variables("slow"), history[epoch]["step"]))


def test_an_accuracy_that_is_not_known_is_not_made_up(torch, tmp_path):
    write_run(tmp_path / "run")
    assert "tells no accuracy of these" in refused(tmp_path / "run", tmp_path / "a.pth", "fast", wrap=True)
    plain = save_tensors(tmp_path / "plain.pth", numbers())
    odd = save_tensors(tmp_path / "odd.pth", numbers(), acc=float("nan"), epoch="last")
    for source in (plain, odd):
        assert "tells no accuracy and no epoch of these weights" in refused(source, tmp_path / "a.pth", wrap=True)
    assert not (tmp_path / "a.pth").exists()


# --------------------------------------------------------------------------------------------- a .pth is not executed


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


def test_what_is_no_pth_of_weights_is_refused(torch, tmp_path):
    torch.save(torch.ones(3), tmp_path / "c.pth")
    assert "c.pth: holds Tensor, not a state dict" in refused(tmp_path / "c.pth", tmp_path / "run")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "d.pth")
    assert "holds torch.nn.modules.linear.Linear, no tensor" in refused(tmp_path / "d.pth", tmp_path / "run")


def test_pytorch_that_could_be_made_to_execute_code_does_not_read(torch, tmp_path, monkeypatch):
    path = save_tensors(tmp_path / "a.pth", numbers())
    monkeypatch.setattr(torch, "__version__", "3.0.0a1")
    assert read_weights(path).config == SMALL
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(UserError, match=r"CVE-2025-32434.*pip install"):
        read_weights(path)


def test_without_pytorch_a_pth_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"x")
    source = save_tensors(tmp_path / "a.safetensors", numbers())
    for args in ((tmp_path / "a.pth", tmp_path / "run"), (source, tmp_path / "b.pth")):
        with pytest.raises(UserError, match=r"PyTorch is not installed.*pip install"):
            convert(*args)
    assert names(tmp_path) == ["a.pth", "a.safetensors"]


def test_the_command(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run")
    run, a, b = (str(tmp_path / name) for name in ("run", "a.safetensors", "b.safetensors"))
    monkeypatch.setattr(sys, "argv", ["jaxresnet", "convert", run, a, "--weights", "fast"])
    commands.main()
    printed = capsys.readouterr().out
    assert f"{run} -> {a} (fast weights)" in printed and f"{jr.count_params(MODEL):,} parameters" in printed
    monkeypatch.setattr(sys, "argv", ["jaxresnet", "convert", a, b, "--wrap"])
    with pytest.raises(SystemExit, match="2"):
        commands.main()
    assert "leave --wrap out" in capsys.readouterr().err
