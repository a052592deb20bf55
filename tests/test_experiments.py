"""The scripts in experiments/: what their arms are under each protocol, and that the commands they name are right.

Their demos run in .ci/run, and test_demo_results.py checks what those measure.
"""

import importlib
import re
import shlex
from pathlib import Path

import jax
import pytest

import jaxresnet as jr
from jaxresnet.cli.experiment import as_demo
from jaxresnet.cli.main import comparisons, published_figures
from jaxresnet.cli.options import parse
from jaxresnet.comparison.plan import prepare
from jaxresnet.config import field_names, field_value
from jaxresnet.data.dataset import fingerprint
from jaxresnet.recipes import SOURCE, intended_run
from jaxresnet.results.store import run_id

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


def all_arms(protocol, demo=False):
    """{comparison: its arms} of all scripts."""
    made = [experiment(script) for script in ALONE]
    return {name: e.arms(name, protocol, demo) for e in made for name in e.comparisons}


def differing(arms):
    """Names of the fields in which the arms differ."""
    first, *others = arms.values()
    names = field_names(first)
    return {name for name in names for other in others if field_value(other, name) != field_value(first, name)}


# ----------------------------------------------------------------------------------------------------- the scripts


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_and_the_commands_that_it_names_are_right(script):
    module = importlib.import_module(script)
    assert 15 <= len((FOLDER / f"{script}.py").read_text().splitlines()) <= 40
    if script != "run_all":
        assert module.EXPERIMENT.description == module.__doc__
    experiments = [s.EXPERIMENT for s in module.SCRIPTS] if script == "run_all" else [module.EXPERIMENT]
    start = f"$ python experiments/{script}.py "
    commands = [line for line in module.__doc__.splitlines() if line.startswith("$ ")]
    assert len(commands) >= 3 and all(command.startswith(start) for command in commands)
    assert commands[0].startswith(f"{start}--demo ")
    comments = re.search(r"--demo +", commands[0]).end()  # they begin in the same column
    for command in commands:
        options, fields = parse(experiments, shlex.split(command[len(start) : comments]))
        asked = comparisons(experiments, options, fields)
        assert fields == {} and (asked or script == "model_parameters")
        if options.only and script != "run_all":
            assert [one.name for one in asked] == list(options.only)


def test_run_all_runs_every_script_and_every_folder_is_one_comparisons():
    run_all = importlib.import_module("run_all")
    assert sorted(script.__name__ for script in run_all.SCRIPTS) == ALONE
    experiments = [script.EXPERIMENT for script in run_all.SCRIPTS]
    asked = comparisons(experiments, *parse(experiments, ["--all"], protocol="both"))
    assert {one.name for one in asked} == {name + suffix for name in DIFFER for suffix in ("", "-published")}
    assert len(asked) == 2 * len(DIFFER)
    asked = comparisons(experiments, *parse(experiments, ["--only", "schedulers", "batch_size"]))
    assert [one.name for one in asked] == ["batch_size", "schedulers-512", "schedulers-128"]


# --------------------------------------------------------------------------------------------------------- the arms


def test_the_tables_above_name_every_comparison_and_every_published_run():
    assert set(DIFFER) == set(REPEATED) == set(all_arms("intended"))
    assert {run for runs in REPEATED.values() for run in runs.values()} == set(jr.published)


@pytest.mark.parametrize("name", DIFFER)
def test_arms_differ_in_what_they_compare_and_in_nothing_else(name):
    meant, notebooks = DIFFER[name]
    assert differing(all_arms("intended")[name]) == meant
    assert differing(all_arms("published")[name]) == meant | notebooks


@pytest.mark.parametrize("name", DIFFER)
def test_published_figures_stand_beside_the_arms_that_repeat_a_published_run(name):
    """And as it was meant the same arm repeats it, but for the one that changes one thing more: fast weights."""
    figures = published_figures(all_arms("published")[name])
    assert {arm: figure["run"] for arm, figure in figures.items()} == REPEATED[name]
    for figure in figures.values():
        run = jr.published[figure["run"]]
        assert (figure["best"], figure["last"], figure["source"]) == (run.best, run.last, SOURCE)
    assert published_figures(all_arms("intended")[name]) == {}
    meant = {arm: intended_run(config) for arm, config in all_arms("intended")[name].items()}
    expected = {arm: run for arm, run in REPEATED[name].items() if arm != "fast weights"}
    assert {arm: found[0] for arm, found in meant.items() if found and arm in expected} == expected
    lengths = {config.num_epochs for config in all_arms("intended")[name].values()}
    assert lengths == {10, 30, 51} if name == "num_epochs" else len(lengths) == 1


def test_a_run_that_several_scripts_compare_is_one_run_of_the_store(tiny_data):
    arms, dataset = all_arms("published"), fingerprint(tiny_data)
    repeats = [arms[name][arm] for name, runs in REPEATED.items() for arm, run in runs.items() if run == "adam_512"]
    assert len(repeats) == 7 and len({run_id(config, dataset) for config in repeats}) == 1


@pytest.mark.parametrize("protocol", ["published", "intended"])
@pytest.mark.parametrize("script", ALONE)
def test_the_demo_is_the_same_comparison_made_small(script, protocol, tmp_path):
    e = experiment(script)
    data = e.demo_data()
    for name in e.comparisons:
        full, small = e.arms(name, protocol), e.arms(name, protocol, demo=True)
        shorter = {"num_epochs"} if name == "sgd_vs_adam" else set()  # 31 // 15 is 30 // 15
        assert list(small) == list(full) and differing(small) == differing(full) - shorter
        for arm, config in small.items():
            assert config == as_demo(full[arm])
            num_train = data.train.num_examples - config.val_size
            assert num_train % config.batch_size == 0, "a smaller last batch would be one more shape to compile"
            assert num_train / config.batch_size >= 8, "an epoch needs a few synchronisations to compare anything"
        prepare(small, (0, 1, 2), data, tmp_path, name=name, devices=jax.devices()[:1])
