"""The scripts in experiments/: what their arms are under each protocol, and that each runs from its flags to its page.

What their demos measure is checked by test_demo_results.py.
"""

import importlib
import json
import math
import re
import runpy
import shlex
import struct
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from support.tiny import DEMO, RUN

import jaxresnet as jr
import jaxresnet.cli.experiment
from jaxresnet.cli.experiment import as_demo
from jaxresnet.cli.main import plan, published_figures
from jaxresnet.cli.options import parse
from jaxresnet.comparison.compare import check_comparison
from jaxresnet.config import field_names, field_value
from jaxresnet.recipes import intended_run
from jaxresnet.reporting.comparison import describe_comparison
from jaxresnet.results.findings import findings
from jaxresnet.results.store import read_results

FOLDER = Path(__file__).parents[1] / "experiments"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
ALONE = [name for name in SCRIPTS if name != "run_all"]

# In what the arms of each comparison differ as intended, and in what else as published.
SCHEDULES = ({"schedule", "cycle_momentum"}, {"schedule_length"})  # lengths are the notebooks'
DIFFER: dict[str, tuple[set[str], set[str]]] = {
    "adam_lookahead": ({"lookahead"}, set()),
    "adam_lookahead-weights": ({"eval_weights"}, set()),
    "adam_lookahead-sync": ({"sync_period", "slow_step_size"}, set()),
    "batch_size": ({"batch_size"}, {"schedule_length"}),  # 50,000 // batch_size
    "learning_rate": ({"learning_rate"}, set()),
    "sgd_vs_adam": ({"optimizer", "weight_decay", "lookahead"}, {"num_epochs"}),
    "schedulers-128": SCHEDULES,
    "schedulers-512": SCHEDULES,
    "num_epochs": ({"num_epochs"}, set()),
    "final_model": (set(), set()),
    "model_parameters-trained": ({"stage_sizes", "width", "shortcut_kernel"}, set()),
}
# {comparison: {arm: the published run that it repeats}}
REPEATED = {
    "adam_lookahead": {"Adam + Lookahead": "adam_512", "Adam": "adam_512_without_lookahead"},
    "adam_lookahead-weights": {"fast weights": "adam_512"},
    "adam_lookahead-sync": {"k=5, alpha=0.5": "adam_512"},
    "batch_size": {"batch 128": "adam_128", "batch 256": "adam_256", "batch 512": "adam_512"},
    "learning_rate": {
        "lr 1e-1": "adam_256_lr_1",
        "lr 1e-2": "adam_256",
        "lr 1e-3": "adam_256_lr_3",
        "lr 1e-6": "adam_256_lr_6",
    },
    "sgd_vs_adam": {"SGD + Lookahead": "sgd_128", "Adam + Lookahead": "adam"},
    "schedulers-128": {"OneCycle": "adam_one_cycle_128"},
    "schedulers-512": {"OneCycle": "adam_one_cycle"},
    "num_epochs": {"51 epochs": "adam_512"},
    "final_model": {"final model": "adam_512"},
    "model_parameters-trained": {"configuration 5": "adam_512"},
}


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # as where `python experiments/run_all.py` runs


def experiment(script):
    return importlib.import_module(script).EXPERIMENT


def comparisons(protocol, demo=False):
    """{comparison: (its experiment, its arms)} of all scripts."""
    made = {script: experiment(script) for script in ALONE}
    return {name: (e, e.arms(name, protocol, demo)) for e in made.values() for name in e.comparisons}


def differing(arms):
    """Names of the fields in which the arms differ."""
    first, *others = arms.values()
    names = field_names(first)
    return {name for name in names for other in others if field_value(other, name) != field_value(first, name)}


# ----------------------------------------------------------------------------------------------------- the scripts


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_and_says_what_it_is_for(script):
    text = (FOLDER / f"{script}.py").read_text()
    assert 15 <= len(text.splitlines()) <= 40
    doc = importlib.import_module(script).__doc__
    assert len(doc.splitlines()[0]) <= 120 and f"python experiments/{script}.py --demo" in doc


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_that_a_script_names_are_right(script):
    module = importlib.import_module(script)
    experiments = [s.EXPERIMENT for s in module.SCRIPTS] if script == "run_all" else [module.EXPERIMENT]
    start = f"$ python experiments/{script}.py "
    commands = [line for line in module.__doc__.splitlines() if line.startswith("$ ")]
    assert len(commands) >= 3 and all(command.startswith(start) for command in commands)
    comments = re.search(r"--demo +", commands[0]).end()  # they begin in the same column
    for command in commands:
        options, fields = parse(experiments, shlex.split(command[len(start) : comments]))
        planned = plan(experiments, options, fields)
        assert fields == {} and (planned or script == "model_parameters")
        if options.only and script != "run_all":
            assert [one.name for one in planned] == list(options.only)


@pytest.mark.parametrize("script", ALONE)
def test_the_description_is_the_scripts_own(script):
    module = importlib.import_module(script)
    assert module.EXPERIMENT.description == module.__doc__


def test_run_all_runs_every_script_and_every_folder_is_one_comparisons(tmp_path):
    run_all = importlib.import_module("run_all")
    assert sorted(script.__name__ for script in run_all.SCRIPTS) == ALONE
    experiments = [script.EXPERIMENT for script in run_all.SCRIPTS]
    options, fields = parse(experiments, ["--all", "--out", str(tmp_path)], protocol="both")
    planned = plan(experiments, options, fields)
    assert {one.name for one in planned} == set(DIFFER) and len(planned) == 2 * len(DIFFER)
    assert len({one.out for one in planned}) == len(planned)
    options, fields = parse(experiments, ["--only", "schedulers", "batch_size"], protocol="both")
    names = [one.name for one in plan(experiments, options, fields)]
    assert sorted(set(names)) == ["batch_size", "schedulers-128", "schedulers-512"] and len(names) == 6


# --------------------------------------------------------------------------------------------------------- the arms


def test_the_tables_above_name_every_comparison():
    assert set(DIFFER) == set(REPEATED) == set(comparisons("intended"))


@pytest.mark.parametrize("name", DIFFER)
def test_arms_differ_in_what_they_compare_and_in_nothing_else(name):
    meant, notebooks = DIFFER[name]
    assert differing(comparisons("intended")[name][1]) == meant
    assert differing(comparisons("published")[name][1]) == meant | notebooks


@pytest.mark.parametrize("name", DIFFER)
def test_as_published(name):
    _, arms = comparisons("published")[name]
    for arm, config in arms.items():
        assert (config.val_size, config.selection, config.test_every_epoch) == (0, "test", True)
        assert config.optim.schedule_unit == "epoch" or config.optim.schedule == "constant"
        assert config.eval_weights == ("slow" if arm == "slow weights" else "fast")
    figures = published_figures(arms)
    assert {arm: figure["run"] for arm, figure in figures.items()} == REPEATED[name]
    for figure in figures.values():
        assert figure["best"] == jr.published[figure["run"]].best


def test_every_published_run_is_repeated_somewhere():
    assert {run for runs in REPEATED.values() for run in runs.values()} == set(jr.published)


@pytest.mark.parametrize("name", DIFFER)
def test_as_intended(name):
    _, arms = comparisons("intended")[name]
    for arm, config in arms.items():
        assert (config.optim.schedule_unit, config.optim.schedule_length) == ("step", None)
        assert (config.val_size, config.selection, config.test_every_epoch) == (5000, "val", True)
        assert config.eval_weights == ("fast" if arm == "fast weights" else "slow")
        assert config.optim.b1 == 0.9 and config.train_size is None
    lengths = {config.num_epochs for config in arms.values()}
    assert lengths == {10, 30, 51} if name == "num_epochs" else len(lengths) == 1


def test_a_published_run_is_repeated_as_it_was_meant_too():
    """But for the arm that changes one thing more: fast weights."""
    different = {("adam_lookahead-weights", "fast weights")}
    for name, (_, arms) in comparisons("intended").items():
        for arm, run in REPEATED[name].items():
            found = intended_run(arms[arm])
            assert (found and found[0]) == (None if (name, arm) in different else run), (name, arm)


@pytest.mark.parametrize("protocol", ["published", "intended"])
@pytest.mark.parametrize("name", DIFFER)
def test_the_demo_is_the_same_comparison_made_small(name, protocol):
    e, full = comparisons(protocol)[name]
    small = comparisons(protocol, demo=True)[name][1]
    assert list(small) == list(full)
    assert differing(small) == differing(full) - ({"num_epochs"} if name == "sgd_vs_adam" else set())  # 31 // 15 is 2
    for arm, config in small.items():
        assert config == as_demo(full[arm])
        assert config.model.width <= full[arm].model.width / 4
        assert config.batch_size == full[arm].batch_size / 8
        assert 1 <= config.num_epochs <= max(1, full[arm].num_epochs / 15)
        assert config.optim == full[arm].optim and config.augment == full[arm].augment
    images = jr.make_synthetic(e.demo_images + jaxresnet.cli.experiment.DEMO_VAL, jaxresnet.cli.experiment.DEMO_TEST)
    check_comparison(small, (0, 1, 2), images, jax.devices()[:1])
    for config in small.values():
        num_train = images.train.num_examples - config.val_size
        assert num_train % config.batch_size == 0, "a smaller last batch would be one more shape to compile"
        assert num_train / config.batch_size >= 8, "an epoch needs a few synchronisations to compare anything"


# -------------------------------------------------------------------------------------------- each script, in small


@pytest.fixture
def run_demo(small_demo, monkeypatch, capsys):
    """run(script, *flags) -> stdout of its demo on 300 images with the smallest network, in an empty folder."""

    def run(script, *flags):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *DEMO, "--seeds", "0", *flags])
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


def png_size(path):
    """(width, height) in pixels, from the file's header."""
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", header[16:24])


def check_results(folder, name, num_epochs, printed):
    """A finished comparison of one seed, as its script printed it."""
    arms = comparisons("intended")[name][1]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["complete"] and summary["name"] == name and summary["seeds"] == [0]
    assert list(summary["arms"]) == list(arms)
    for arm, score in summary["arms"].items():
        assert score["n"] == 1 and score["selection"] == ["best epoch on the validation set"]
        assert math.isfinite(score["mean"]) and 0 <= score["mean"] <= 100
        assert re.search(rf"^{re.escape(arm)} +1 +{score['mean']:.2f}", printed, re.MULTILINE), arm
        length = num_epochs[arm] if isinstance(num_epochs, dict) else num_epochs
        run = rf"^(?:{folder.name}: )?{re.escape(arm)}, seed 0"  # named by its folder where there are several
        epochs = re.findall(rf"{run}: epoch (\d+)/{length} .* left$", printed, re.MULTILINE)
        assert [int(n) for n in epochs] == list(range(1, length + 1)), arm
    assert len(summary["comparison"]["pairs"]) == math.comb(len(arms), 2)
    assert "synthetic data, not CIFAR-10" in printed.splitlines()[0]
    results = read_results(folder)
    assert "\n".join(describe_comparison(results, findings(results)).brief) in printed
    config = json.loads((folder / "config.json").read_text())
    assert config["dataset"]["synthetic"] and config["published"] == {}
    assert all(config["arms"][arm]["model"]["width"] == 4 for arm in arms)
    width, height = png_size(folder / "figure.png")
    assert width >= 1200 and height >= 600 and (folder / "figure.png").stat().st_size < 300_000
    assert f"figure   {folder}/figure.png\nresults  {folder}\n" in printed


@pytest.mark.parametrize("script", ["adam_lookahead", "batch_size", "learning_rate", "sgd_vs_adam"])
def test_the_demo_of(script, run_demo):
    printed = run_demo(script, "--num-epochs", "1")
    check_results(Path(f"out/{script}-demo"), script, 1, printed)
    assert [p.name for p in Path("out").iterdir()] == [f"{script}-demo"], "optional ones only where asked for"


def test_the_demo_of_schedulers(run_demo):
    printed = run_demo("schedulers", "--num-epochs", "1")
    first, second = printed.index("results  out/schedulers-512-demo"), printed.index("results  out/schedulers-128-demo")
    assert first < second
    for name in ("schedulers-512", "schedulers-128"):
        title = next(line for line in printed.splitlines() if line.startswith(f"{name} | "))
        part = printed[first:] if name == "schedulers-128" else printed[: first + 100]
        check_results(Path(f"out/{name}-demo"), name, 1, f"{title}\n{part}")


def test_the_demo_of_num_epochs(run_demo):
    """Its arms set the number of epochs themselves: 10, 30 and 51 // 15, but at least one."""
    printed = run_demo("num_epochs")
    check_results(Path("out/num_epochs-demo"), "num_epochs", {"10 epochs": 1, "30 epochs": 2, "51 epochs": 3}, printed)


def test_the_demo_of_final_model(run_demo):
    printed = run_demo("final_model", "--num-epochs", "1")
    folder = Path("out/final_model-demo")
    check_results(folder, "final_model", 1, printed)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    mean = json.loads((folder / "summary.json").read_text())["arms"]["final model"]["mean"]
    assert evaluation["runs"]["0"]["test_accuracy"] == pytest.approx(mean)
    for figure in ("confusion.png", "mistakes.png"):
        assert min(png_size(folder / figure)) > 300 and f"{folder}/{figure}" in printed
    for name in evaluation["class_names"]:
        assert re.search(rf"^{re.escape(name)} +\d+ ", printed, re.MULTILINE), "a row a class"


@pytest.mark.parametrize("name", ["adam_lookahead-weights", "adam_lookahead-sync"])
def test_the_optional_comparisons_of_adam_lookahead(name):
    options, fields = parse([experiment("adam_lookahead")], ["--only", name])
    (one,) = plan([experiment("adam_lookahead")], options, fields)
    assert one.name == name and len(one.arms) == {"adam_lookahead-weights": 2, "adam_lookahead-sync": 6}[name]


def test_the_runs_here_are_those_of_the_other_tests(monkeypatch):
    """Else these tests would compile their own."""
    monkeypatch.setattr(jaxresnet.cli.experiment, "DEMO_VAL", 44)
    arms = experiment("adam_lookahead").arms("adam_lookahead", "intended", True, {"eval_batch_size": 100})
    assert replace(arms["Adam + Lookahead"], model=RUN.model) == replace(RUN, test_every_epoch=True)
