"""Timing by turns, and the comparison with PyTorch that is made of it: with fakes, with ours, with PyTorch itself."""

import json
import re
import sys
from pathlib import Path

import compare_pytorch
import numpy as np
import pytest
from compare_pytorch_worker import OURS
from conftest import WITH_PYTORCH
from library_step import LibraryStep, make_config
from turns import Contender, speed_against, take_turns

import jaxresnet as jr

BENCHMARKS = Path(compare_pytorch.__file__).parent

# A worker that does nothing but write down its turns, and fails as it is told to.
FAKE = f"""
import os, signal, sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
from turns import Unit, serve

name, behaviour, log = sys.argv[1:]
units = 0

def run():
    global units
    units += 1
    turn = units - 2  # two are warm-up
    time.sleep(0.001)
    if turn > 0:
        with open(log, "a") as file:
            file.write(name)
    if turn == 2 and behaviour == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if turn == 2 and behaviour == "hangs":
        time.sleep(600)

def set_up():
    print("a library says something, which is no message")
    if behaviour == "raises":
        raise ValueError("no compiler\\n  found")
    if behaviour == "exits":
        sys.exit("not on this machine")
    about = {{"how": "fake", "parameters": 8 if behaviour == "is larger" else 7, "environment": {{"says": name}}}}
    return Unit(run, lambda: 1000 * units, lambda: about)

serve(set_up)
"""


@pytest.fixture
def fake(tmp_path):
    """(name, behaviour) -> the command of a fake worker; and the file in which they write down their turns."""
    program, log = tmp_path / "fake.py", tmp_path / "log"
    program.write_text(FAKE)
    log.touch()
    return lambda name, behaviour="": [sys.executable, str(program), name, behaviour, str(log)], log


def run_fakes(fake, behaviours, rounds):
    """The contenders after their turns, and the turns in their order, a letter each."""
    command, log = fake
    contenders = [
        Contender(name, command(name, behaviour), {}, timeout=3 if behaviour == "hangs" else 60)
        for name, behaviour in behaviours.items()
    ]
    try:
        for contender in contenders:
            contender.wait_until_ready()
        take_turns(contenders, rounds)
    finally:
        for contender in contenders:
            contender.__exit__()
    return contenders, log.read_text()


def test_the_order_is_reversed_every_round(fake):
    contenders, turns = run_fakes(fake, {"a": "", "b": "", "c": ""}, rounds=3)
    assert turns == "abc" + "cba" + "abc"
    for contender in contenders:
        assert contender.failure is None and len(contender.units) == 3
        assert all(0.001 <= seconds < 5 for seconds in contender.units)
        assert contender.peak_memory == 5000  # after two units of warm-up and three turns
        assert contender.ready["parameters"] == 7 and contender.ready["memory_at_start_bytes"] > 2**20


@pytest.mark.parametrize(
    ("behaviour", "turns", "reason"),
    [
        ("raises", "ac" + "ca" + "ac", "ValueError: no compiler found"),
        ("exits", "ac" + "ca" + "ac", "ended with exit status 1: not on this machine"),
        ("is killed", "abc" + "cba" + "ac", r"ended with SIGKILL \(out of memory\?\)"),
        ("hangs", "abc" + "cba" + "ac", "gave no answer in 3 s"),
    ],
)
def test_one_that_fails_is_named_with_its_reason_and_the_others_go_on(fake, behaviour, turns, reason):
    (a, b, c), taken = run_fakes(fake, {"a": "", "b": behaviour, "c": ""}, rounds=3)
    assert taken == turns
    assert b.failure is not None and re.match(reason, b.failure)
    assert a.failure is None and c.failure is None and len(a.units) == len(c.units) == 3


def test_speed_is_the_median_of_the_ratios_of_each_round():
    # Of the sums it would be 16 / 14, of the medians 5 / 3: a round that is slow for both counts as one round.
    assert speed_against([1.0, 10.0, 3.0], [2.0, 5.0, 9.0]) == {"speed": 2.0, "range": [0.5, 3.0]}


@pytest.fixture
def compare(fake, monkeypatch, tmp_path, capsys):
    """Run the program with fake workers: (flags, behaviours by (who, precision)) -> (status, file or None, text)."""
    command, _ = fake
    monkeypatch.setattr(compare_pytorch, "find_spec", lambda name: name == "torch")
    monkeypatch.setitem(compare_pytorch.PAUSE, "cpu", 0.0)

    def run(flags, behaviours=None):
        def worker(entry, case):
            return command(entry.who, (behaviours or {}).get((entry.who, entry.precision), ""))

        monkeypatch.setattr(compare_pytorch, "worker_command", worker)
        out = tmp_path / "out.json"
        out.unlink(missing_ok=True)
        status = compare_pytorch.main([*flags.split(), str(out)])  # the file after a list, as one would write it
        return status, json.loads(out.read_text()) if out.exists() else None, capsys.readouterr().out

    return run


def test_what_is_written_and_printed(compare):
    status, found, text = compare("--pairs 3 --batch-sizes 128 512 --precisions float32 bfloat16 --checkout /x/before")
    assert status == 0 and found["environment"]["says"] == OURS and found["pytorch"]["says"] == "compile"
    settings = [(case["precision"], case["batch_size"], case["steps"]) for case in found["cases"]]
    assert settings == [("float32", 128, 2), ("float32", 512, 2), ("bfloat16", 128, 16), ("bfloat16", 512, 4)]
    for case in found["cases"]:
        precisions = ["float32"] if case["precision"] == "float32" else ["float32", "bfloat16"]
        rivals = {f"{kind} {precision}" for precision in precisions for kind in ("eager", "compile")}
        assert case["against"].keys() == {"jaxresnet in before", *rivals}
        assert case["contenders"].keys() == {OURS, *case["against"]}
        assert set(case["best_rival"]) == set(precisions) and set(case["best_rival"].values()) <= rivals
        for name, row in case["contenders"].items():
            median = sorted(row["turn_seconds"])[1]
            assert row["images_per_second"] == pytest.approx(case["steps"] * case["batch_size"] / median)
            assert row["peak_memory_bytes"] == 5000 and row["parameters"] == 7
            assert name == OURS or case["against"][name] == speed_against(
                case["contenders"][OURS]["turn_seconds"], row["turn_seconds"]
            )
    assert text.count("images/s") == 4 + 4 + 6 + 6 and "batch 512, bfloat16" in text


def test_a_contender_that_fails_is_named_and_without_ours_or_any_rival_it_does_not_pass(compare, tmp_path):
    flags = "--pairs 2 --batch-sizes 128 --precisions float32"
    status, found, text = compare(flags, {("compile", "float32"): "raises"})
    (case,) = found["cases"]
    assert status == 0 and case["against"].keys() == {"eager float32"}
    assert case["contenders"]["compile float32"]["failed"] == "ValueError: no compiler found"
    assert re.search("compile float32 +failed: ValueError: no compiler found", text)
    for who in (OURS, "eager"):
        status, found, text = compare(f"{flags} --rivals eager", {(who, "float32"): "is killed"})
        assert status == 1 and "SIGKILL" in text and found["cases"][0]["against"] == {}
    with pytest.raises(SystemExit, match=r"not the same network.*'jaxresnet': 7, 'eager float32': 8"):
        compare(flags, {("eager", "float32"): "is larger"})


def test_without_pytorch_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare_pytorch, "find_spec", lambda name: None)
    assert compare_pytorch.main([str(tmp_path / "out.json")]) == 2
    assert "pip install -e '.[parity]'" in capsys.readouterr().err and not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ real workers


def test_our_worker(monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "")  # conftest's eight devices would share a batch
    entry = compare_pytorch.Entry(OURS, "float32")
    case = {"device": "cpu", "batch_size": 16, "precision": "float32", "width": 4, "images": 32, "steps": 2}
    environment = compare_pytorch.worker_environment("cpu", str(tmp_path), entry.checkout)
    with Contender(OURS, compare_pytorch.worker_command(entry, case), environment, 300) as ours:
        ours.wait_until_ready()
        take_turns([ours], 1)
    assert ours.failure is None and len(ours.units) == 1
    assert ours.ready["parameters"] == jr.count_params(jr.ModelConfig(width=4))
    assert ours.ready["environment"]["num_devices"] == 1 and ours.ready["how"] == "a dispatch is a step"
    assert 0 < ours.ready["compile_seconds"] < ours.ready["build_seconds"]
    assert 0 < ours.ready["memory_at_start_bytes"] < ours.peak_memory


def test_a_turn_that_would_break_off_within_a_dispatch_is_refused(monkeypatch):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "1")
    config = make_config(jr.ModelConfig((1,), 8, pool_size=32, precision="bfloat16"), 16)
    data = jr.Split(np.zeros((33, 32, 32, 3), np.uint8), np.zeros(33, np.int32))
    with pytest.raises(ValueError, match="1 steps are no whole dispatches: 2 would be"):
        LibraryStep(config, data, steps=1).run()


@pytest.mark.parametrize("with_pytorch", [pytest.param(True, marks=WITH_PYTORCH)])
def test_the_rival_trains_on_what_ours_makes_of_the_images(with_pytorch, monkeypatch):
    import pytorch_step
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for one another where the machine is busy
    nets, build = [], pytorch_step.oracle.build
    monkeypatch.setattr(pytorch_step.oracle, "build", lambda config: nets.append(build(config)) or nets[-1])
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (33, 32, 32, 3), np.uint8), rng.integers(0, 10, 33, np.int32)
    # Not narrower: with channels that are no multiple of 8, PyTorch 2.13 writes beyond its memory on processors without
    # AVX-512 (oneDNN's weight gradient of a 1x1 convolution).
    config = make_config(jr.ModelConfig(width=8, precision="float32"), 16)
    unit = pytorch_step.set_up("eager", config, "cpu", images, labels)
    for _ in range(10):  # of two steps each; the loss is 2.4 at first
        unit.run()
    (batch, targets), *others = pytorch_step.on_device(images, labels, 32, "cpu", torch.float32)
    assert others == [] and targets.tolist() == labels[:32].tolist(), "whole batches only"
    assert batch.stride() == (3072, 1, 96, 3), "in memory as the images are"
    np.testing.assert_array_equal(batch.permute(0, 2, 3, 1).numpy(), images[:32].astype(np.float32) / 128 - 1)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(nets[0](batch), targets)
    torch.set_num_threads(threads)
    assert loss < 1
