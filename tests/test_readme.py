"""Every command and snippet of the README runs. Data and network are shrunk; the words are the README's own."""

import importlib
import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

import jaxresnet as jr
from jaxresnet.cli.main import comparisons
from jaxresnet.cli.options import parse
from jaxresnet.results.store import read_results

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = "--stage-sizes 1 --width 4 --pool-size 32 --batch-size 16 --num-epochs 1 --eval-batch-size 128 --val-size 64"


def commands(text: str) -> list[str]:
    """The lines of the bash blocks of a page, without comments."""
    lines = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).splitlines()
    return [" ".join(shlex.split(line, comments=True, posix=False)) for line in lines]


@pytest.fixture
def small_data(monkeypatch, tmp_path):
    """CIFAR-10 is 320 synthetic images here, results go to a temporary folder, and one device is enough."""
    device = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: device)
    data = jr.make_synthetic(320, 128)
    monkeypatch.setattr("jaxresnet.cli.main.load_cifar10", lambda *args: data)
    monkeypatch.setattr(jr, "load_cifar10", lambda: data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))  # as Python does for a script


def run(command: str, monkeypatch) -> None:
    """What `python` in a shell does with this command, in this process."""
    _, *args = shlex.split(command)
    try:
        if args[0] == "-m":
            monkeypatch.setattr(sys, "argv", args[1:])
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        else:
            monkeypatch.setattr(sys, "argv", args)
            runpy.run_path(str(ROOT / args[0]), run_name="__main__")
    except SystemExit as e:
        assert e.code in (0, None), f"{command}: exit status {e.code}"


def shrunk(command: str) -> str:
    """The command with a tiny network, one epoch and one seed; and with a run of the comparison before it."""
    if " -m " in command:
        if "RUN" in command:
            trained = read_results("out/adam_lookahead").runs["Adam + Lookahead"][0]
            command = command.replace("out/runs/RUN", str(trained.folder))
        return command if find_spec("torch") else command.replace(".pth", ".safetensors")
    if "--help" in command or "model_parameters" in command:
        return command
    return f"{command} {TINY}" + (" --seeds 0" if "--seeds" not in command else "")


def test_every_python_command(small_data, monkeypatch, tmp_path, capsys):
    # Full networks would take minutes.
    monkeypatch.setattr("jaxresnet.comparison.model_costs._turn", lambda *args: lambda: 0.01)
    ours = [command for command in commands(README) if command.startswith("python ")]
    assert len(ours) >= 8
    for command in ours:
        run(shrunk(command), monkeypatch)
    printed = capsys.readouterr().out
    assert f"{jr.count_params(jr.ModelConfig(stage_sizes=(2, 2, 2, 2), width=42)):,} parameters" in printed
    assert "Adam + Lookahead vs Adam" in printed and "best epoch on the test set (as published)" in printed
    drawn = ("adam_lookahead", "adam_lookahead-published", "k10", "learning_rate-published", "schedulers-128")
    page = (tmp_path / "out" / "report.html").read_text()
    for folder in drawn:
        assert (tmp_path / "out" / folder / "figure.png").stat().st_size > 10_000 and folder in page
    assert "model_parameters" in page
    assert list(tmp_path.glob("weights.*"))


def test_the_library_snippet(small_data, capsys):
    (snippet,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    small = "num_epochs=1, batch_size=16, val_size=64, model=jr.ModelConfig(stage_sizes=(1,), width=4, pool_size=32)"
    tiny = snippet.replace("num_epochs=10, batch_size=512", small).replace("[0, 1, 2]", "[0]")
    assert tiny.count(small) == 1 and "seeds=[0]" in tiny
    names: dict = {}
    exec(compile(tiny, "README.md", "exec"), names)
    assert "Lookahead, k=10" in capsys.readouterr().out
    assert names["run"].parent == Path("out/runs") and names["probabilities"].shape == (128, 10)


def test_every_other_command_is_run_by_the_continuous_integration():
    ci = (ROOT / ".ci" / "run").read_text()
    others = [c for c in commands(README) if not c.startswith("python ") and c != "source .venv/bin/activate"]
    assert len(others) >= 3 and all(command in ci for command in others), others


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / name).exists(), name
    for name in re.findall(r"\b(?:benchmarks|docs|experiments|jaxresnet|tests)/[\w/]*\w\.\w+", text):
        assert (ROOT / name).exists(), name
    for extra in re.findall(r"'\.\[(\w+)\]'", text):
        assert f"\n{extra} = " in (ROOT / "pyproject.toml").read_text(), extra


def test_the_readme_shows_every_script_and_every_room():
    scripts = {path.name for path in (ROOT / "experiments").glob("*.py")}
    assert scripts == set(re.findall(r"`(\w+\.py)`", README.partition("\n## Experiments\n")[2]))
    rooms = {path.parent.name for path in (ROOT / "jaxresnet").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^  (\w+)/ ", README, re.MULTILINE))
    assert f"{len(jr.__all__)} names" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_flags_of_every_command_are_right(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    for command in commands(page.read_text()):
        found = re.search(r"experiments/(\w+)\.py([^\"&]*)", command)
        if found and "--help" not in command:
            script = importlib.import_module(found[1])
            experiments = [s.EXPERIMENT for s in getattr(script, "SCRIPTS", [script])]
            assert comparisons(experiments, *parse(experiments, shlex.split(found[2]))) or "model_param" in command
