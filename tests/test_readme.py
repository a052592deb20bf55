"""Every command and snippet of the README runs. Data and network are shrunk; the words are the README's own."""

import json
import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

import jaxresnet as jr

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
HAS_TORCH = find_spec("torch") is not None
TINY = "--stage-sizes 1 --width 4 --pool-size 32 --batch-size 64 --num-epochs 1 --eval-batch-size 128"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [" ".join(shlex.split(line, comments=True, posix=False)) for line in lines]


@pytest.fixture
def small_data(monkeypatch, tmp_path):
    """CIFAR-10 is 320 synthetic images here, results go to a temporary folder, and one device is enough."""
    device = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: device)
    data = jr.make_synthetic(320, 128)
    monkeypatch.setattr("jaxresnet.data.cifar10.load_cifar10", lambda *args: data)
    monkeypatch.setattr(jr, "load_cifar10", lambda *args: data)
    monkeypatch.chdir(tmp_path)
    return data


def run(command: str, extra: str, monkeypatch) -> None:
    """What `python` in a shell does with this command, in this process."""
    _, *args = shlex.split(command) + shlex.split(extra)
    try:
        if args[0] == "-m":
            monkeypatch.setattr(sys, "argv", args[1:])
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        else:
            monkeypatch.setattr(sys, "argv", args)
            runpy.run_path(str(ROOT / args[0]), run_name="__main__")
    except SystemExit as e:
        assert e.code in (0, None), f"{command}: exit status {e.code}"


def test_every_python_command(small_data, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))  # as Python does for a script
    monkeypatch.setattr(
        "jaxresnet.comparison.model_costs._turn", lambda *args: lambda: 0.01
    )  # full networks would take minutes
    ran = 0
    if HAS_TORCH:
        import torch

        config = jr.ModelConfig(stage_sizes=(1,), width=4, pool_size=32)
        torch.save(jr.to_torch(jax.jit(jr.build_model(config).init)(jax.random.key(0))), "ckpt.pth")
    for command in (c for c in commands() if c.startswith("python ")):
        if ".pth" in command and not HAS_TORCH:
            continue
        script = command.split()[1]
        if script == "-m" or "--help" in command or "model_parameters" in command:
            extra = ""
        else:
            extra = f"{TINY} --val-size 64"
            if "--seeds" not in command:
                extra += " --seeds 0"
        run(command, extra, monkeypatch)
        ran += 1
    assert ran >= 8
    printed = capsys.readouterr().out
    assert f"{jr.count_params(jr.ModelConfig(stage_sizes=(2, 2, 2, 2), width=42)):,} parameters" in printed
    assert "best epoch on the test set (as published)" in printed
    folders = ("adam_lookahead", "adam_lookahead-published", "adam_lookahead-sync", "k10", "learning_rate-published")
    for folder in (*folders, "schedulers-512", "schedulers-128", "schedulers-512-published"):
        assert (tmp_path / "out" / folder / "figure.png").stat().st_size > 10_000
    assert "Lookahead minus Adam" in printed or "better than" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(folder in page for folder in folders) and "model_parameters" in page
    assert (tmp_path / "fast.safetensors").is_file()
    assert (tmp_path / "again.pth").is_file() == (tmp_path / "run").is_dir() == HAS_TORCH


def test_the_library_snippet(small_data, capsys):
    (snippet,) = blocks("python")
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 15
    small = "num_epochs=1, batch_size=64, val_size=64, model=jr.ModelConfig(stage_sizes=(1,), width=4, pool_size=32)"
    shrunk = snippet.replace("num_epochs=10, batch_size=512", small).replace("[0, 1, 2]", "[0]")
    assert shrunk.count(small) == 1 and "seeds=[0]" in shrunk
    exec(compile(shrunk, "README.md", "exec"), {})
    assert "Lookahead, k=10" in capsys.readouterr().out


def test_predict_as_the_readme_says(small_data, monkeypatch):
    (call,) = re.findall(r"`(jr\.predict\(.*?\))`", README)
    run("python experiments/adam_lookahead.py", f"{TINY} --val-size 64 --seeds 0", monkeypatch)
    probabilities = eval(call, {"jr": jr, "images": small_data.test.images})
    assert probabilities.shape == (128, 10)


def test_every_other_command_is_run_by_the_continuous_integration():
    ci = (ROOT / ".ci" / "run").read_text()
    extras = (ROOT / "pyproject.toml").read_text()
    others = [c for c in commands() if not c.startswith("python ")]
    assert len(others) >= 5
    for command in others:
        if command == "source .venv/bin/activate" or command == "python3 -m venv .venv":
            continue
        extra = re.fullmatch(r"\.venv/bin/pip install -e '?\.(\[\w+\])?'?", command)
        if extra:  # tried once by hand where the hardware is; here only that the extra is there
            assert not extra[1] or f"\n{extra[1].strip('[]')} = " in extras
            continue
        assert command in ci, f"not run by .ci/run: {command}"


def test_files_that_the_readme_names_are_there():
    for name in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(\w+\.py)`", README):
        assert (ROOT / "jaxresnet" / name).exists() or (ROOT / "experiments" / name).exists(), name


def test_every_number_of_the_tables_comes_from_results():
    tables = runpy.run_path(str(ROOT / "benchmarks" / "readme_tables.py"))
    assert tables["results_table"]() in README
    assert tables["benchmark_table"]() in README
    assert tables["models_table"]() in README
    assert len(tables["FIRST_PUBLISHED"]) == 3
    for comparison in tables["FIRST_PUBLISHED"]:
        assert tables["subset_table"](comparison) in README, comparison


def test_every_number_of_the_parity_page_comes_from_results():
    tables = runpy.run_path(str(ROOT / "benchmarks" / "readme_tables.py"))
    page = (ROOT / "docs" / "parity.md").read_text()
    for name in ("parity_table", "parity_training_table", "parity_gradient_table"):
        assert tables[name]() in page, name
    assert all(
        f"results/{file}" in page
        for file in ("parity.json", "parity-gradients.json", *tables["PARITY_TRAININGS"].values())
    )


def test_every_number_of_the_robustness_page_comes_from_results():
    tables = runpy.run_path(str(ROOT / "benchmarks" / "readme_tables.py"))
    page = (ROOT / "docs" / "robustness.md").read_text()
    for name in ("interrupt_table", "fuzz_table", "fuzz_found"):
        assert tables[name]() in page, name


def test_every_number_of_the_performance_page_comes_from_results():
    tables = runpy.run_path(str(ROOT / "benchmarks" / "readme_tables.py"))
    page = (ROOT / "docs" / "performance.md").read_text()
    cpu = ("options_table", "profile_table", "bfloat16_profile_table", "pytorch_table")
    others = (
        "compiling_table",
        "gpu_program_table",
        "sweep_table",
        "conv_passes_table",
        "steps_per_dispatch_table",
    )
    for name in (*others, *(f"cpu_{name}" for name in cpu)):
        assert tables[name]() in page, name
    for folder in tables["PRECISIONS"]:
        assert tables["precision_table"](folder) in page and tables["precision_spread_table"](folder) in page, folder


def test_the_soak_and_the_fuzzing_left_nothing_when_they_were_written_down():
    soak = json.loads((ROOT / "results" / "interrupt.json").read_text())
    assert soak["identical"] == soak["kills"] and sum(row["kills"] for row in soak["table"]) == soak["kills"]
    assert sum(row["kills"] for row in soak["table"] if row["signal"] == "SIGKILL") >= 50
    readers = json.loads((ROOT / "results" / "fuzz.json").read_text())["readers"]
    assert not any(reader["failures"] for reader in readers.values())


def test_the_parity_tests_passed_when_their_errors_were_written_down():
    rows = json.loads((ROOT / "results" / "parity.json").read_text())["quantities"]
    assert {row["against"] for row in rows} == {"golden", "live", "NumPy"}
    assert all(row["error"] <= row["tolerance"] for row in rows)
