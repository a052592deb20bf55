"""Weights between .pth, .safetensors and folders: the same bits everywhere, and what is refused."""

import errno
import os
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from support.fake_weights import SMALL, assert_same_arrays, numbers, state_dict
from support.tiny import MODEL, assert_same_bits, contents

import jaxresnet as jr
from jaxresnet.cli import commands
from jaxresnet.config import OptimConfig, TrainConfig, to_dict
from jaxresnet.errors import ConfigError, ResultsError, UserError
from jaxresnet.interop.torch import from_torch, torch_arrays
from jaxresnet.interop.weight_files import convert, read_weights
from jaxresnet.training.checkpoint import Record, Saved, save
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.predict import blank_state, load_variables, predict
from jaxresnet.training.state import Weights

RUN = TrainConfig(model=MODEL)  # with Lookahead, scored on its slow weights
BARE = replace(RUN, optim=OptimConfig(lookahead=False))


class Runs:
    """Pickles as a call of `function`: the way in which a hostile pickle runs code."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def save_tensors(path, tensors, **wrapped):
    """Into a file of the kind that its name says. wrapped: "acc" and "epoch" of a published .pth."""
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
        return path
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in tensors.items()}
    torch.save({"net": tensors, **wrapped} if wrapped else tensors, path)
    return path


def load_tensors(path):
    if path.suffix != ".safetensors":
        return pytest.importorskip("torch").load(path, weights_only=True)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    return safetensors.numpy.load_file(path)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def row(epoch, val_accuracy, test_accuracy):
    return {"epoch": epoch, "step": 10 * (epoch + 1), "val_accuracy": val_accuracy, "test_accuracy": test_accuracy}


SCORED_ONCE = (row(0, 30.5, None), row(1, 20.25, None))  # on the test set, after the last epoch


def write_run(folder, config=RUN, history=SCORED_ONCE):
    """A run's folder as it is after its last epoch. Returns the weights of the chosen one, the first."""
    fast, slow = (from_torch(numbers(config.model, seed=seed)) for seed in (1, 2))
    best = Weights(fast, slow if config.optim.lookahead else {})
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), blank_state(config))
    state = zeros._replace(step=np.array(20, np.int32))
    save(folder / "checkpoints", Saved(state, zero_totals(), best, Record(to_dict(config), {}, list(history))))
    return best


def refused(*args, **kwargs):
    with pytest.raises(UserError) as error:
        convert(*args, **kwargs)
    return f"{type(error.value).__name__}: {error.value}"


@pytest.mark.parametrize("chain", ["a.safetensors run b.safetensors", "a.pth b.pt run-0.01 run c.safetensors d.PTH"])
def test_every_kind_to_every_kind_keeps_every_bit(tmp_path, chain):
    tensors, paths = state_dict(steps=1234), [tmp_path / name for name in chain.split()]
    save_tensors(paths[0], tensors)
    for source, target in pairwise(paths):
        read = convert(source, target)
        assert (read.config, *read[2:6]) == (SMALL, 1234, None, None, None)
        if target.is_file():
            assert_same_arrays(load_tensors(target), tensors)
    assert names(tmp_path) == sorted(chain.split())


def test_a_converted_folder_predicts_and_is_not_continued_as_a_run(tmp_path, tiny_data):
    tensors, folder = numbers(MODEL, steps=7), tmp_path / "new" / "run"
    convert(save_tensors(tmp_path / "a.safetensors", tensors), folder)
    loaded = load_variables(folder)
    assert loaded.config.model == replace(MODEL, precision="auto") and loaded.converted["source"] == "a.safetensors"
    assert_same_bits(loaded.variables, from_torch(tensors))
    assert predict(folder, tiny_data.test.images[:2]).shape == (2, 10)
    with pytest.raises(ResultsError, match="holds a run with other settings"):
        jr.fit(replace(BARE, val_size=44, batch_size=64), tiny_data, folder, devices=jax.devices()[:1])


def test_a_run_gives_the_weights_asked_for_and_what_is_converted_from_them_no_others(tmp_path):
    best = write_run(tmp_path / "run")
    for source, weights in (("run", None), ("run/checkpoints", "slow"), ("run", "fast")):
        target = tmp_path / f"{weights}.safetensors"
        read = convert(tmp_path / source, target, weights)
        scored = None if weights == "fast" else 30.5
        assert (read.config, *read[2:6]) == (MODEL, 10, weights or "slow", scored, 0)
        assert_same_arrays(load_tensors(target), torch_arrays(best.variables(read.kind), 10))
    convert(tmp_path / "run", tmp_path / "folder", "fast")
    assert read_weights(tmp_path / "folder").kind == "fast"
    with pytest.raises(ConfigError, match=r"weights='slow': .*folder.* holds one set of weights"):
        read_weights(tmp_path / "folder", "slow")


def test_a_run_tells_its_chosen_epoch_and_accuracy(tmp_path):
    last = replace(RUN, selection="last")
    for name, config, history, expected in (
        ("scored", RUN, (row(0, 30.5, 28.75), row(1, 20.25, 40.0)), (10, "slow", 28.75, 0)),
        ("last", last, (row(0, None, 28.75), row(1, None, 40.0)), (20, "slow", 40.0, 1)),
        ("bare", BARE, SCORED_ONCE, (10, None, 30.5, 0)),
    ):
        write_run(tmp_path / name, config, history)
        assert read_weights(tmp_path / name)[2:6] == expected


def test_a_published_file_there_and_back_and_an_accuracy_that_is_not_known_is_not_made_up(tmp_path):
    tensors = numbers(steps=98)
    prefixed = {f"module.{name}": array for name, array in tensors.items()}
    source = save_tensors(tmp_path / "a.pth", prefixed, acc=91.25, epoch=50)
    convert(source, tmp_path / "run")
    for start in (source, tmp_path / "run"):
        target = tmp_path / f"{start.name}.pt"
        convert(start, target, wrap=True)
        wrapped = load_tensors(target)
        assert_same_arrays(wrapped.pop("net"), tensors)
        assert wrapped == {"acc": 91.25, "epoch": 50} and type(wrapped["epoch"]) is int
    convert(source, tmp_path / "bare.pth")
    assert_same_arrays(load_tensors(tmp_path / "bare.pth"), tensors)
    unknown = save_tensors(tmp_path / "unknown.pth", tensors, acc=float("nan"), epoch="last")
    assert "does not say the accuracy and the epoch of these weights" in refused(unknown, tmp_path / "c.pth", wrap=True)


def test_what_does_not_fit_is_refused_and_nothing_is_written_or_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    save_tensors(tmp_path / "a.safetensors", numbers())
    save_tensors(tmp_path / "b.safetensors", {n: array for n, array in numbers().items() if n != "linear.bias"})
    write_run(tmp_path / "stopped", history=())
    before = contents(tmp_path)
    for source, target, options, reason in (
        *(("a.safetensors", name, {}, "nothing is overwritten") for name in ("b.safetensors", "empty", "link")),
        ("a.safetensors", "x.ONNX", {}, "WeightsError: x.ONNX: cannot write .ONNX files; known are .pth, .pt, .ckpt"),
        ("a.safetensors", "run", {"weights": "fast"}, "leave --weights fast out"),
        ("a.safetensors", "c.safetensors", {"wrap": True}, "choose a .pth, or leave --wrap out"),
        ("b.safetensors", "run", {}, "WeightsError: b.safetensors: not the weights of a network of 1, 1 blocks"),
        ("file.bin", "run", {}, "file.bin: unknown kind of file; known are .pth, .pt"),
        ("gone.safetensors", "run", {}, "gone.safetensors: cannot be read ("),
        ("empty", "c.safetensors", {}, "ResultsError: empty: holds no checkpoint"),
        ("gone", "c.safetensors", {}, "ResultsError: gone: no such folder"),
        ("stopped", "c.safetensors", {}, "has not finished an epoch"),
    ):
        assert reason in refused(source, target, **options)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = save_tensors(tmp_path / name, numbers())
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(damaged)
        text = refused(path, tmp_path / "run")
        assert text.startswith(f"WeightsError: {path}: damaged (") and "\n" not in text and len(text) < 400
    assert names(tmp_path) == [name]


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def full(old, new):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = save_tensors(tmp_path / "a.safetensors", numbers())
    monkeypatch.setattr(os, "replace", full)
    for target in ("b.safetensors", "run"):
        text = refused(source, tmp_path / target)
        assert text.startswith("StorageError: ") and "cannot be written (No space left on device)" in text
        assert "cannot be written" in refused(source, source / target), "below a file"
    assert names(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_pth_is_executed(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path, marker = tmp_path / "a.pth", tmp_path / "executed"
    torch.save({"net": {"conv1.weight": Runs(os.mkdir, str(marker))}}, path, _use_new_zipfile_serialization=zipped)
    text = refused(path, tmp_path / "run")
    assert text.startswith(f"WeightsError: {path}: holds ") and "mkdir, no tensor or plain value" in text
    assert "nothing in it was executed. Save it anew: torch.save(net.state_dict(), 'weights.pth')" in text
    assert names(tmp_path) == ["a.pth"]
    torch.load(path, weights_only=False)
    assert marker.is_dir(), "the file does what it is made to, where it is let"


def test_without_a_safe_pytorch_a_pth_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.pth").write_bytes(b"x")
    save_tensors(tmp_path / "b.safetensors", numbers())
    old = SimpleNamespace(__version__="2.5.1+cpu")
    for module, reason in (None, "PyTorch is not installed; pip install"), (old, "2.5.1+cpu may execute code"):
        monkeypatch.setitem(sys.modules, "torch", module)
        assert reason in refused(tmp_path / "a.pth", tmp_path / "run")
        assert reason in refused(tmp_path / "b.safetensors", tmp_path / "b.pth")
    assert names(tmp_path) == ["a.pth", "b.safetensors"]


def test_the_command_says_what_it_converted(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run")
    run, target = str(tmp_path / "run"), str(tmp_path / "a.safetensors")
    monkeypatch.setattr(sys, "argv", ["jaxresnet", "convert", run, target, "--weights", "fast"])
    commands.main()
    printed = capsys.readouterr().out
    assert f"{run} -> {target} (fast weights)" in printed and f"{jr.count_params(MODEL):,} parameters" in printed
