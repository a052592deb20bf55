"""Timing by turns, and the comparison with PyTorch that is made of it: with fakes, with ours, with PyTorch itself."""

import json
import re
import runpy
import subprocess
import sys
import typing
from importlib.util import find_spec
from pathlib import Path

import compare_pytorch
import numpy as np
import pytest
import train_step
from compare_pytorch_worker import OURS
from conftest import WITH_PYTORCH
from machine import machine
from turns import Contender, speed_against, take_turns

import jaxresnet as jr

BENCHMARKS = Path(compare_pytorch.__file__).parent

# A worker that does nothing but write down its turns, and fails as it is told to.
FAKE = f"""
import json, os, signal, sys, time
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
    if behaviour == "asserts":
        assert 1 + 1 == 3
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
        assert contender.ready["build_seconds"] >= 0


@pytest.mark.parametrize(
    ("behaviour", "turns", "reason"),
    [
        ("raises", "ac" + "ca" + "ac", "ValueError: no compiler found"),
        ("asserts", "ac" + "ca" + "ac", r"AssertionError: .*fake.py, line \d+: assert 1 \+ 1 == 3"),
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


def test_without_the_first_there_is_nothing_to_compare_with(fake):
    (a, b), turns = run_fakes(fake, {"a": "is killed", "b": ""}, rounds=5)
    assert turns == "ab" + "ba" and a.failure and b.failure is None


def test_speed_is_the_median_of_the_ratios_of_each_round():
    # Of the sums it would be 16 / 14, of the medians 5 / 3: a round that is slow for both counts as one round.
    assert speed_against([1.0, 10.0, 3.0], [2.0, 5.0, 9.0]) == {"speed": 2.0, "range": [0.5, 3.0]}
    with pytest.raises(ValueError, match="shorter"):
        speed_against([1.0, 1.0], [1.0])


def test_memory_is_the_process_s_own():
    program = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from turns import resident_peak; a = resident_peak(); "
        "held = b'1' * 100_000_000; b = resident_peak(); print(a, b)"
    )
    kept = bytearray(200_000_000)  # of ours, which a process that we start must not begin with
    kept[:: 2**12] = b"1" * len(kept[:: 2**12])
    before, after = map(int, subprocess.run([sys.executable, "-c", program], capture_output=True).stdout.split())
    assert before < 100_000_000 < after - before + 5_000_000 < 110_000_000


def test_what_the_machine_is(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("PASSWORD", "secret")
    found = json.loads(json.dumps(machine()))
    assert found["variables"]["OMP_NUM_THREADS"] == "2" and "PASSWORD" not in found["variables"]
    assert found["processor"]["name"] and found["processor"]["cores"] >= 1


# -------------------------------------------------------------------------------------------------- the whole program


@pytest.fixture
def compare(fake, monkeypatch, tmp_path, capsys):
    """Run the program with fake workers: (flags, behaviours by (who, precision)) -> (status, file or None, text)."""
    command, _ = fake
    monkeypatch.setattr(compare_pytorch, "find_spec", lambda name: name == "torch")
    monkeypatch.setitem(compare_pytorch.PAUSE, "cpu", 0.0)

    def run(flags, behaviours=None):
        behaviours = behaviours or {}
        monkeypatch.setattr(
            compare_pytorch,
            "worker_command",
            lambda who, case: command(who, behaviours.get((who, case["precision"]), "")),
        )
        out = tmp_path / "out.json"
        out.unlink(missing_ok=True)
        argv = [*flags.split(), str(out)]  # the file after a list, as one would write it
        monkeypatch.setattr(sys, "argv", ["benchmarks/compare_pytorch.py", *argv])
        status = compare_pytorch.main(argv)
        return status, json.loads(out.read_text()) if out.exists() else None, capsys.readouterr().out

    return run


def test_what_is_written_and_printed(compare):
    status, found, text = compare("--pairs 3 --batch-sizes 128 512 --precisions float32 bfloat16")
    assert status == 0
    assert found["environment"]["says"] == OURS and found["pytorch"]["says"] == "compile"
    assert found["environment"]["command"].startswith(
        "python benchmarks/compare_pytorch.py --pairs 3 --batch-sizes 128"
    )
    settings = [(case["precision"], case["batch_size"], case["steps"]) for case in found["cases"]]
    assert settings == [("float32", 128, 16), ("float32", 512, 4), ("bfloat16", 128, 16), ("bfloat16", 512, 4)]
    for case in found["cases"]:
        # Where ours has less than float32 the rivals on a CPU have both.
        precisions = ["float32"] if case["precision"] == "float32" else ["float32", "bfloat16"]
        rivals = {f"{kind} {precision}" for precision in precisions for kind in ("eager", "compile")}
        assert case["contenders"].keys() == {OURS, *rivals} and case["against"].keys() == rivals
        assert case["flops_per_image"] == 6 * jr.count_macs(jr.ModelConfig())
        for name, row in case["contenders"].items():
            median = sorted(row["turn_seconds"])[1]
            assert row["images_per_second"] == pytest.approx(case["steps"] * case["batch_size"] / median)
            assert row["model_flops_per_second"] == pytest.approx(case["flops_per_image"] * row["images_per_second"])
            assert row["peak_memory_bytes"] == 5000 and row["parameters"] == 7
            assert name == OURS or case["against"][name] == speed_against(
                case["contenders"][OURS]["turn_seconds"], row["turn_seconds"]
            )
        for precision, best in case["best_rival"].items():
            speeds = {name: a["speed"] for name, a in case["against"].items() if name.endswith(precision)}
            assert speeds[best] == min(speeds.values())
        assert set(case["best_rival"]) == set(precisions)
    assert text.count("images/s") == 3 + 3 + 5 + 5 and "batch 512, bfloat16" in text


def test_a_rival_that_fails_is_named_and_the_comparison_stands(compare):
    status, found, text = compare(
        "--pairs 2 --batch-sizes 128 --precisions float32", {("compile", "float32"): "raises"}
    )
    (case,) = found["cases"]
    assert status == 0 and case["against"].keys() == {"eager float32"}
    assert case["contenders"]["compile float32"] == {
        "precision": "float32",
        "failed": "ValueError: no compiler found",
    }
    assert "compile float32        failed: ValueError: no compiler found" in text


@pytest.mark.parametrize("who", [OURS, "eager"])
def test_without_ours_or_any_rival_it_does_not_pass(compare, who):
    flags = "--pairs 2 --batch-sizes 128 --precisions float32 bfloat16 --rivals eager"
    status, found, text = compare(flags, {(who, "float32"): "is killed", (who, "bfloat16"): "is killed"})
    assert status == 1 and "SIGKILL" in text
    assert [case["against"] for case in found["cases"]] == [{}, {}]
    # One case of two is enough.
    status, found, _ = compare(flags, {(who, "float32"): "raises"})
    assert status == 1 and found["cases"][0]["against"] == {} and found["cases"][1]["against"]


def test_different_networks_are_not_compared(compare, tmp_path):
    with pytest.raises(SystemExit, match=r"not the same network.*'jaxresnet': 7, 'eager float32': 8"):
        compare("--batch-sizes 128 --precisions float32", {("eager", "float32"): "is larger"})
    assert not (tmp_path / "out.json").exists()


def test_without_pytorch_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compare_pytorch, "find_spec", lambda name: None)
    assert compare_pytorch.main([str(tmp_path / "out.json")]) == 2
    assert "pip install -e '.[parity]'" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--rivals graphs", "--rivals graphs: needs --device cuda"),
        ("--device cuda --steps 3", "a turn on cuda is an epoch"),
        ("--batch-sizes 512 --images 500", "--images 500: too few for a turn at batch size 512"),
        ("--steps 2 --images 1000", "--images 1000: too few for a turn at batch size 512"),
        ("--steps 0", "must be 1 or more"),
        ("--width 0", "width=0: must be"),
        ("--precisions float16", "invalid choice: 'float16'"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare_pytorch.arguments(flags.split())
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_a_gpu_s_cases_are_whole_epochs_and_all_the_library_s_precisions_can_be_asked_for(monkeypatch):
    known = [p for p in typing.get_args(typing.get_type_hints(jr.ModelConfig)["precision"]) if p != "auto"]
    args = compare_pytorch.arguments(["--device", "cuda", "--precisions", *known, "--batch-sizes", "512", "1024"])
    assert args.precisions == list(known) and args.rivals == ["eager", "compile", "graphs"]
    case = compare_pytorch.make_case(args, "bfloat16", 512)
    assert (case["steps"], case["images"]) == (97, 97 * 512)
    assert list(compare_pytorch.contenders_of(case, ["eager"])) == [OURS, "eager bfloat16"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = compare_pytorch.worker_environment("cuda", "cache")
    assert environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false" and environment["CUDA_VISIBLE_DEVICES"] == "0"


# ------------------------------------------------------------------------------------------------------ real workers

# Not narrower: with channels that are no multiple of 8, PyTorch 2.13 writes beyond its memory on processors without
# AVX-512 (oneDNN's weight gradient of a 1x1 convolution).
TINY = "--width 8 --images 33 --batch-sizes 16 --steps 2 --pairs 2 --precisions bfloat16"


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # conftest's eight would share a batch


@pytest.mark.skipif(find_spec("torch") is not None, reason="the next test runs it")
def test_our_worker(one_device, tmp_path):
    case = compare_pytorch.make_case(compare_pytorch.arguments(TINY.split()), "float32", 16)
    environment = compare_pytorch.worker_environment("cpu", str(tmp_path))
    with Contender(OURS, compare_pytorch.worker_command(OURS, case), environment, 300) as ours:
        ours.wait_until_ready()
        take_turns([ours], 1)
    assert ours.failure is None and len(ours.units) == 1
    assert ours.ready["parameters"] == jr.count_params(jr.ModelConfig(width=8))
    assert ours.ready["environment"]["num_devices"] == 1 and ours.ready["how"] == "a dispatch is a step"
    assert 0 < ours.ready["compile_seconds"] < ours.ready["build_seconds"]
    assert 0 < ours.ready["memory_at_start_bytes"] < ours.peak_memory


def test_a_turn_that_would_break_off_within_a_dispatch_is_refused(monkeypatch):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "1")
    config = jr.TrainConfig(
        jr.ModelConfig((1,), 8, pool_size=32, precision="bfloat16"), batch_size=16, val_size=0, selection="last"
    )
    data = jr.Split(np.zeros((33, 32, 32, 3), np.uint8), np.zeros(33, np.int32))
    run, _, engine = train_step.our_step(config, data, steps=1)
    with pytest.raises(ValueError, match=f"a turn of 1 steps came to 2: a dispatch is {engine.dispatch}"):
        run()


@pytest.mark.parametrize("with_pytorch", [pytest.param(True, marks=WITH_PYTORCH)])
def test_ours_against_pytorch(with_pytorch, one_device, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert compare_pytorch.main([*TINY.split(), "--precisions", "float32", "--rivals", "eager", str(out)]) == 0
    found = json.loads(out.read_text())
    (case,) = found["cases"]
    assert found["environment"]["num_devices"] == 1 and found["pytorch"]["torch"] and found["pytorch"]["threads"] >= 1
    ours, theirs = case["contenders"][OURS], case["contenders"]["eager float32"]
    assert ours["parameters"] == theirs["parameters"] == jr.count_params(jr.ModelConfig(width=8))
    assert 0 < ours["compile_seconds"] < ours["build_seconds"]
    assert all(row["peak_memory_bytes"] > row["memory_at_start_bytes"] for row in (ours, theirs))
    assert case["against"]["eager float32"]["speed"] > 0 and case["best_rival"] == {"float32": "eager float32"}
    assert "ours is" in capsys.readouterr().out


@pytest.mark.parametrize("with_pytorch", [pytest.param(True, marks=WITH_PYTORCH)])
def test_the_rival_trains(with_pytorch, monkeypatch):
    import pytorch_step
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for one another where the machine is busy
    nets, build = [], pytorch_step.oracle.build
    monkeypatch.setattr(pytorch_step.oracle, "build", lambda config: nets.append(build(config)) or nets[-1])
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (32, 32, 32, 3), np.uint8), rng.integers(0, 10, 32, np.int32)
    optim = jr.OptimConfig(lookahead=False)
    model = jr.ModelConfig(width=8, precision="float32")
    config = jr.TrainConfig(model, optim=optim, batch_size=16, val_size=0, selection="last")
    unit = pytorch_step.set_up("eager", config, "cpu", images, labels)
    for _ in range(10):  # of two steps each; the loss is 2.4 at first
        unit.run()
    batches = pytorch_step.on_device(images, labels, 32, "cpu", torch.float32)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(nets[0](batches[0][0]), batches[0][1])
    torch.set_num_threads(threads)
    assert loss < 1


@pytest.mark.parametrize("with_pytorch", [pytest.param(True, marks=WITH_PYTORCH)])
def test_the_rival_is_given_what_ours_makes_of_the_images(with_pytorch):
    program = runpy.run_path(str(BENCHMARKS / "pytorch_step.py"))
    torch = program["torch"]
    images = np.arange(5 * 32 * 32 * 3, dtype=np.uint8).reshape(5, 32, 32, 3)
    batches = program["on_device"](images, np.arange(5, dtype=np.int32), 2, "cpu", torch.bfloat16)
    assert [targets.tolist() for _, targets in batches] == [[0, 1], [2, 3]]  # whole batches only
    for i, (batch, _) in enumerate(batches):
        assert batch.dtype is torch.bfloat16 and batch.shape == (2, 3, 32, 32)
        assert batch.stride() == (3072, 1, 96, 3)  # in memory as the images are
        expected = torch.from_numpy(images[2 * i : 2 * i + 2].astype(np.float32) / 128 - 1).to(torch.bfloat16)
        assert torch.equal(batch.permute(0, 2, 3, 1), expected)
