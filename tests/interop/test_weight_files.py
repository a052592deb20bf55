"""Weights between .pth, .safetensors and checkpoint folders: the same bits everywhere, and what is refused."""

import errno
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from support.fake_weights import SMALL, assert_same_arrays, numbers, state_dict
from support.tiny import MODEL, assert_same_bits, leaves

import jaxresnet as jr
import jaxresnet.__main__
from jaxresnet.config import OptimConfig, TrainConfig, to_dict
from jaxresnet.errors import ConfigError, ResultsError, UserError, WeightsError
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


# ----------------------------------------------------------------------------------------- the weights of a folder


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
    done = convert(source, tmp_path / "run")
    assert done == (SMALL, jr.count_params(SMALL), len(tensors), None)
    assert convert(tmp_path / "run", tmp_path / "b.safetensors") == done
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "b.safetensors"), tensors)
    with safetensors.safe_open(tmp_path / "b.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert names(tmp_path) == ["a.safetensors", "b.safetensors", "run"]


def test_a_converted_folder_is_a_run_that_predicts(tmp_path):
    tensors = numbers(steps=7)
    convert(save(tmp_path / "a.safetensors", tensors), tmp_path / "new" / "run")
    loaded = load_variables(tmp_path / "new" / "run")
    assert loaded.config == TrainConfig(model=SMALL, optim=OptimConfig(lookahead=False))
    assert loaded.step == 7 and loaded.record["history"] == []
    converted = {"source": "a.safetensors", "weights": None, "accuracy": None, "epoch": None, "config": None}
    assert loaded.record["converted"] == converted
    assert_same_bits(loaded.variables, from_torch(tensors))
    images = ((IMAGES / 255 - [0.4914, 0.4822, 0.4465]) / [0.2023, 0.1994, 0.2010]).astype(np.float32)
    logits, _ = jr.build_model(SMALL).apply(from_torch(tensors), images, False)
    probabilities = predict(tmp_path / "new" / "run", IMAGES)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)
    assert np.ptp(probabilities, axis=0).max() > 1e-3


def test_a_converted_folder_is_not_continued_as_another_run(tmp_path, tiny_data):
    config = replace(RUN, optim=OptimConfig(lookahead=False), val_size=44, batch_size=64)
    convert(save(tmp_path / "a.safetensors", numbers(MODEL)), tmp_path / "run")
    with pytest.raises(ResultsError, match="holds a run with other settings"):
        jr.fit(config, tiny_data, tmp_path / "run", devices=jax.devices()[:1])


def test_a_folder_of_one_set_of_weights_gives_no_other(tmp_path):
    """Neither a run without Lookahead nor what was converted from one with it."""
    write_run(tmp_path / "bare", replace(RUN, optim=OptimConfig(lookahead=False)))
    write_run(tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "fast", "fast")
    assert load_variables(tmp_path / "fast").record["converted"]["config"] == to_dict(RUN)
    for folder in ("bare", "fast"):
        assert load_variables(tmp_path / folder).weights == "fast"
        with pytest.raises(jr.ConfigError, match=f"weights='slow': .*{folder} holds one set of weights"):
            convert(tmp_path / folder, tmp_path / "slow.safetensors", "slow")
    assert convert(tmp_path / "fast", tmp_path / "a.safetensors").kind == "fast"
    assert convert(tmp_path / "fast", tmp_path / "again").kind == "fast"
    assert load_variables(tmp_path / "again").record["converted"]["config"] == to_dict(RUN)


def test_counts_that_a_folder_cannot_hold_are_clipped(tmp_path):
    convert(save(tmp_path / "a.safetensors", numbers(steps=2**40)), tmp_path / "run")
    assert load_variables(tmp_path / "run").step == 2**31 - 1
    convert(save(tmp_path / "b.safetensors", numbers(steps=-1)), tmp_path / "other")
    assert load_variables(tmp_path / "other").step == 0


@pytest.mark.parametrize("weights", [None, "fast", "slow"])
def test_a_run_becomes_a_file_of_the_weights_asked_for(tmp_path, weights):
    best = write_run(tmp_path / "run")
    done = convert(tmp_path / "run", tmp_path / "out.safetensors", weights)
    assert done.config == MODEL and done.kind == (weights or "slow")
    expected = torch_arrays(eval_variables(best, weights or "slow"), 10)
    assert_same_arrays(safetensors.numpy.load_file(tmp_path / "out.safetensors"), expected)


def test_bfloat16_in_safetensors_is_widened(tmp_path):
    import ml_dtypes

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


@pytest.mark.parametrize("name", ["x.onnx", "x.npz", "x.bin", "x.CKPT", "x.pth.tar"])
def test_other_endings_are_refused_with_those_that_are_known(tmp_path, name):
    source = save(tmp_path / "a.safetensors", numbers())
    assert ".safetensors, or a checkpoint folder" in refused(source, tmp_path / name)
    (tmp_path / name).write_bytes(b"x")
    assert f"{name}: unknown kind of file; known are .pth or .pt" in refused(tmp_path / name, tmp_path / "run")
    assert names(tmp_path) == sorted(["a.safetensors", name])


def test_a_folder_may_have_a_number_after_a_dot_in_its_name(tmp_path):
    convert(save(tmp_path / "a.safetensors", numbers()), tmp_path / "lr-0.01")
    assert predict(tmp_path / "lr-0.01", IMAGES).shape == (3, 10)


def test_options_that_do_not_fit_are_refused(tmp_path):
    source = save(tmp_path / "a.safetensors", numbers())
    assert "only a checkpoint folder has fast and slow ones" in refused(source, tmp_path / "run", "fast")
    assert "only a .pth or .pt can be wrapped" in refused(source, tmp_path / "run", wrap=True)
    assert "only a .pth or .pt can be wrapped" in refused(source, tmp_path / "b.safetensors", wrap=True)
    assert names(tmp_path) == ["a.safetensors"]


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, reason in (("empty", "holds no checkpoint"), ("nowhere", "no such folder")):
        with pytest.raises(ResultsError, match=reason):
            convert(tmp_path / name, tmp_path / "out.safetensors")


DAMAGES = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-3],
    "text": lambda content: b"version https://git-lfs.github.com/spec/v1\n",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_safetensors_is_named(tmp_path, damage):
    path = save(tmp_path / "a.safetensors", numbers())
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert f"{path}: " + ("the file is empty" if damage == "empty" else "not a .safetensors file") in refused(
        path, tmp_path / "run"
    )
    assert names(tmp_path) == ["a.safetensors"]


def test_what_is_no_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "a.safetensors", tmp_path / "run")
    (tmp_path / "b.safetensors").mkdir()
    assert "b.safetensors: not a file" in refused(tmp_path / "b.safetensors", tmp_path / "run")
    os.mkfifo(tmp_path / "c.safetensors")  # reading it would wait for ever
    assert "c.safetensors: not a file" in refused(tmp_path / "c.safetensors", tmp_path / "run")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.safetensors", numbers())

    def forbidden(self, *args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    assert f"{path}: cannot be read (Permission denied)" == refused(path, tmp_path / "run")


def test_weights_of_another_network_are_refused_with_the_file(tmp_path):
    tensors = numbers()
    del tensors["linear.bias"]
    text = refused(save(tmp_path / "a.safetensors", tensors), tmp_path / "run")
    assert text.startswith(f"{tmp_path / 'a.safetensors'}: not the weights of a network")
    assert "linear.bias: missing, expected (10,)" in text


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    source = save(tmp_path / "a.safetensors", numbers())
    seen = []

    def full(old, new):
        seen.append((Path(old).exists(), Path(new).exists(), Path(old).parent.parent == Path(new).parent))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jaxresnet.interop.weight_files.os.replace", full)
    for target in ("b.safetensors", "run"):
        assert f"{target}: cannot be written (No space left on device)" in refused(source, tmp_path / target)
    assert seen == [(True, False, True)] * 2
    assert names(tmp_path) == ["a.safetensors"]
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(source, tmp_path / "file" / "run")


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    source, target = save(tmp_path / "a.safetensors", numbers()), tmp_path / "b.safetensors"
    write_bytes = Path.write_bytes

    def slow(self, content):
        write_bytes(target, b"another's")
        write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", slow)
    assert "nothing is overwritten" in refused(source, target)
    assert target.read_bytes() == b"another's" and names(tmp_path) == ["a.safetensors", "b.safetensors"]


def test_without_pytorch_a_pth_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"x")
    source = save(tmp_path / "a.safetensors", numbers())
    for args in ((tmp_path / "a.pth", tmp_path / "run"), (source, tmp_path / "b.pth")):
        with pytest.raises(UserError, match=r"needs PyTorch.*pip install"):
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
    for i, name in enumerate(["1.safetensors", "2.pt", "run3", "4.PTH", "5.pth", "6.safetensors", "run7", "run8"]):
        done = convert(path, tmp_path / name)
        assert done.num_tensors == len(tensors), i
        path = tmp_path / name
    assert_same_arrays(load_pth(torch, tmp_path / "4.PTH"), tensors)
    assert_same_arrays(load_pth(torch, tmp_path / "5.pth"), tensors)
    assert_same_bits(load_variables(tmp_path / "run8").variables, from_torch(tensors))


def test_pytorchs_old_format_is_read(torch, tmp_path):
    tensors = state_dict()
    tensors_of_torch = {name: torch.from_numpy(array) for name, array in tensors.items()}
    torch.save(tensors_of_torch, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert_same_bits(read_weights(tmp_path / "a.pth").variables, from_torch(tensors))


def test_a_published_file_there_and_back(torch, tmp_path):
    tensors = numbers(steps=98)
    prefixed = {f"module.{name}": array for name, array in tensors.items()}
    source = save_pth(torch, tmp_path / "a.pth", prefixed, acc=91.26, epoch=50)
    convert(source, tmp_path / "run")
    record = load_variables(tmp_path / "run").record
    converted = {"source": "a.pth", "weights": None, "accuracy": 91.26, "epoch": 50, "config": None}
    assert record["converted"] == converted
    for i, start in enumerate((source, tmp_path / "run")):
        convert(start, tmp_path / f"{i}.pth", wrap=True)
        wrapped = load_pth(torch, tmp_path / f"{i}.pth")
        assert_same_arrays(wrapped["net"], tensors)
        assert (wrapped["acc"], wrapped["epoch"]) == (91.26, 50) and type(wrapped["epoch"]) is int
        convert(start, tmp_path / f"{i}-bare.pth")
        assert_same_arrays(load_pth(torch, tmp_path / f"{i}-bare.pth"), tensors)


def test_acc_and_epoch_that_are_no_numbers_are_left_out(torch, tmp_path):
    for i, acc in enumerate((float("nan"), "91", None, torch.ones(2))):
        source = save_pth(torch, tmp_path / f"{i}.pth", numbers(), acc=acc if acc != "91" else "high", epoch=3)
        read = read_weights(source)
        assert read.accuracy is None and read.epoch == 3
        assert "holds no test or validation accuracy" in refused(source, tmp_path / "out.pth", wrap=True)
    source = save_pth(torch, tmp_path / "tensor.pth", numbers(), acc=torch.tensor(91.5), epoch=torch.tensor(4))
    read = read_weights(source)
    assert (read.accuracy, read.epoch) == (91.5, 4)
    assert read_weights(save_pth(torch, tmp_path / "vast.pth", numbers(), acc=10**400, epoch=3)).accuracy is None


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
    assert "accuracy of these weights" in refused(tmp_path / "run", tmp_path / "a.pth", "fast", wrap=True)
    write_run(tmp_path / "bare", replace(RUN, optim=OptimConfig(lookahead=False)))
    convert(tmp_path / "bare", tmp_path / "b.pth", wrap=True)
    assert load_pth(torch, tmp_path / "b.pth")["acc"] == 30.5
    write_run(tmp_path / "stopped", history=[], best_step=None)
    assert "accuracy and no epoch of these weights" in refused(tmp_path / "stopped", tmp_path / "a.pth", wrap=True)
    source = save_pth(torch, tmp_path / "plain.pth", numbers())
    assert "accuracy and no epoch of these weights" in refused(source, tmp_path / "a.pth", wrap=True)
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
    assert text.startswith(f"{path}: ") and "was executed" in text and "False" not in text
    assert names(tmp_path) == ["a.pth"]
    if form in ("zip", "old"):
        assert "mkdir" in text and "torch.save(net.state_dict(), 'weights.pth')" in text
        torch.load(path, weights_only=False)
        assert marker.is_dir(), "the file does what it is made to, where it is let"


def test_a_whole_network_in_a_pth_is_refused(torch, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    text = refused(tmp_path / "a.pth", tmp_path / "run")
    assert "holds torch.nn.modules.linear.Linear, which is neither a tensor nor a plain value" in text


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_damaged_pth_is_named(torch, tmp_path, damage, zipped):
    path = tmp_path / "a.pth"
    tensors = {name: torch.from_numpy(array) for name, array in numbers().items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    text = refused(path, tmp_path / "run")
    assert text.startswith(f"{path}: " + ("the file is empty" if damage == "empty" else "not a .pth file of weights"))
    assert "\n" not in text and "False" not in text and len(text) < 400


def test_what_is_no_pth_of_weights_is_refused(torch, tmp_path):
    assert "no such file" in refused(tmp_path / "a.pth", tmp_path / "run")
    (tmp_path / "b.pth").mkdir()
    assert "b.pth: not a file" in refused(tmp_path / "b.pth", tmp_path / "run")
    torch.save(torch.ones(3), tmp_path / "c.pth")
    assert "c.pth: holds Tensor, expected a state dict" in refused(tmp_path / "c.pth", tmp_path / "run")
    torch.save({"epoch": 3, "weights": {}}, tmp_path / "d.pth")
    assert "found 'epoch', 'weights'. Give the state dict itself" in refused(tmp_path / "d.pth", tmp_path / "run")


@pytest.mark.parametrize("version, safe", [("2.5.1+cpu", False), ("1.13.0", False), ("2.6.0", True), ("3.0.0a1", True)])
def test_pytorch_that_could_be_made_to_execute_code_does_not_read(torch, tmp_path, monkeypatch, version, safe):
    path = save_pth(torch, tmp_path / "a.pth", numbers())
    monkeypatch.setattr(torch, "__version__", version)
    if safe:
        assert read_weights(path).config == SMALL
    else:
        with pytest.raises(UserError, match=r"a\.pth: not read with PyTorch .*CVE-2025-32434.*pip install"):
            read_weights(path)


# ------------------------------------------------------------------------------------------------ the command line


def run_main(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["jaxresnet", *map(str, args)])
    try:
        jaxresnet.__main__.main()
    except SystemExit as error:
        return error.code
    return 0


def test_the_command(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run")
    target = tmp_path / "a.safetensors"
    assert run_main(monkeypatch, "convert", tmp_path / "run", target, "--weights", "fast") in (0, None)
    lines = capsys.readouterr().out.splitlines()
    params = f"{jr.count_params(MODEL):,}"
    assert lines == [
        f"{tmp_path / 'run'} -> {target} (fast weights)",
        f"blocks 1, width 4, shortcuts 1x1, 10 classes: {params} parameters, 20 tensors",
    ]
    assert run_main(monkeypatch, "convert", target, tmp_path / "b.safetensors", "--wrap") == 2
    assert "only a .pth or .pt can be wrapped" in capsys.readouterr().err
    assert run_main(monkeypatch, "convert", tmp_path / "nowhere", tmp_path / "b.safetensors") == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
