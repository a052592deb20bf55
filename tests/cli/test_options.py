"""The flags that all scripts share: their defaults, what they change, and how wrong ones are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_experiments import BASE, EXPERIMENT, MAIN, MEASURED, OTHER, RATES, arms_of, asked_of, exit_code

import jaxresnet.cli.experiment
from jaxresnet.cli.experiment import Experiment
from jaxresnet.cli.options import parse
from jaxresnet.config import ModelConfig, TrainConfig, with_fields
from jaxresnet.errors import ConfigError
from jaxresnet.recipes import intended


def meant(config):
    """As a script runs it as intended: in the precision that suits the device."""
    return with_fields(intended(config), {"precision": "auto"})


def test_without_flags_the_run_is_the_intended_one():
    options, fields = parse([EXPERIMENT], [])
    assert options.config == meant(BASE) and fields == {}
    assert (options.seeds, options.protocol, options.demo) == ((0, 1, 2), "intended", False)
    assert (options.only, options.all, options.devices) == ((), False, None)
    assert (options.out, options.name) == (Path("out"), None)
    assert options.config.val_size == 5000 and options.config.selection == "val"
    assert arms_of() == {arm: meant(config) for arm, config in MAIN.items()}


def test_the_protocol_sets_the_arms_and_the_defaults_of_the_other_flags():
    assert parse([EXPERIMENT], ["--protocol", "published"])[0].config == BASE
    both = parse([EXPERIMENT], [], protocol="both")[0]
    assert both.protocols == ("published", "intended") and both.config == meant(BASE)
    assert arms_of("--protocol", "published") == MAIN
    as_published, as_meant = asked_of("--protocol", "both", "--num-epochs", "7")
    assert (as_published.protocol, as_meant.protocol) == ("published", "intended")
    assert as_published.arms == {arm: replace(config, num_epochs=7) for arm, config in MAIN.items()}
    assert as_meant.arms == {arm: replace(meant(config), num_epochs=7) for arm, config in MAIN.items()}


def test_every_field_is_a_flag_of_its_own_name():
    argv = (
        "--seeds 4 5 --sync-period 7 --no_flip --width 32 --stage-sizes 2 2 2 2 --precision bfloat16 --train-size 9000"
    )
    argv = [*argv.split(), "--out", "here", "--learning-rate=0.5", "--schedule-length", "None"]
    options, fields = parse([EXPERIMENT], argv)
    assert options.seeds == (4, 5) and options.out == Path("here")
    model = {"width": 32, "stage_sizes": (2, 2, 2, 2), "precision": "bfloat16"}
    optim = {"sync_period": 7, "learning_rate": 0.5, "schedule_length": None}
    assert fields == {"train_size": 9000, "flip": False, **model, **optim}
    changed = with_fields(meant(BASE), fields)
    assert options.config == changed
    assert arms_of(*argv) == {"Adam + Lookahead": changed, "Adam": with_fields(changed, {"lookahead": False})}


def test_demo_flags_can_be_changed_too():
    for config in arms_of("--demo", "--num-epochs", "2", "--precision", "bfloat16").values():
        assert config.num_epochs == 2 and config.batch_size == 64
        assert config.model == ModelConfig(width=8, precision="bfloat16")
        assert config.val_size == jaxresnet.cli.experiment.DEMO_VAL
    assert parse([EXPERIMENT], ["--protocol", "published", "--demo"])[0].config.val_size == 0


@pytest.mark.parametrize(
    "experiment, only, optional, selected",
    [
        (MEASURED, [], False, ["sizes"]),
        (MEASURED, ["sizes"], True, ["sizes", "sizes-trained"]),
        (MEASURED, ["sizes-trained"], False, ["sizes-trained"]),
        (OTHER, ["rates"], False, ["rates-256"]),  # optional ones are asked for by their whole name
        (OTHER, ["rates-one", "rates-256"], False, ["rates-256", "rates-one"]),  # in the script's order
    ],
)
def test_only_names_what_runs_and_optional_ones_run_where_they_are_asked_for(experiment, only, optional, selected):
    assert experiment.select(only, optional) == selected


@pytest.mark.parametrize(
    "experiments, argv, names",
    [
        ((EXPERIMENT, OTHER), ["--demo"], ["main-demo", "rates-256-demo"]),
        ((EXPERIMENT, OTHER), ["--all"], ["main", "rates-256", "rates-one"]),
        ((EXPERIMENT,), ["--protocol", "both", "--demo"], ["main-published-demo", "main-demo"]),
        ((EXPERIMENT, OTHER), ["--only", "rates", "--name", "k10"], ["k10"]),
        ((MEASURED,), ["--name", "k10", "--train"], ["k10"]),  # --train is --all; the measurement keeps its own name
    ],
)
def test_the_folders_of_a_command(experiments, argv, names):
    assert [one.name for one in asked_of(*argv, experiments=experiments)] == names


def test_the_defaults_are_those_of_the_first_arm_that_runs():
    assert parse([EXPERIMENT, OTHER], [])[0].config == meant(BASE)
    assert parse([EXPERIMENT, OTHER], ["--only=rates-one"])[0].config == meant(RATES["lr 1e-2"])
    nothing_to_train = Experiment("Only measures.", {}, measurements=MEASURED.measurements)
    assert parse([nothing_to_train], [])[0].config == TrainConfig()


def test_a_value_that_is_called_like_a_flag_is_none():
    """`--only learning_rate batch_size` names comparisons, and a folder may be called width."""
    rates = Experiment("Rates.", {"learning_rate": RATES, "batch_size": {"A": BASE}})
    options, fields = parse([rates], ["--only", "batch_size", "learning_rate", "--out", "width"])
    assert options.only == ("batch_size", "learning_rate") and options.out == Path("width") and fields == {}


@pytest.mark.parametrize(
    "argv, told",
    [
        (["--only", "main", "--only=main"], "--only: give it once, with one or more names"),
        (["--only", "main", "rates"], "--only rates: must be one of main, sizes, sizes-trained$"),
        (["--lr", "0.1"], r"--lr: no such flag \(did you mean --learning-rate\?\)"),
        (["--demo", "--data-dir", "."], "leave --data-dir out, or leave --demo out"),
        # For all arms, so also with the value that the first arm has.
        (["--lookahead"], "--lookahead: the arms of main compare its values True, False. Leave the flag out"),
        (["--name", "k10", "--protocol", "both"], "--name k10: is for one comparison, and this command runs 2"),
        (["--only", "sizes", "--width", "4"], "--width: no effect, as no network is trained. Add --train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused(argv, told):
    with pytest.raises(ConfigError, match=told):
        asked_of(*argv, experiments=(EXPERIMENT, MEASURED))


def test_a_flag_that_other_comparisons_compare_is_taken_for_one_that_does_not():
    arms = arms_of("--learning-rate", "0.5", "--only", "rates-one", experiment=OTHER)
    assert [config.optim.learning_rate for config in arms.values()] == [0.5]


@pytest.mark.parametrize(
    "argv, parts",
    [
        (["--lerning-rate", "1"], ["Unrecognized options: --lerning-rate", "Perhaps you meant", "--learning-rate"]),
        (["--learning-rate", "abc"], ["--learning-rate", "'abc'"]),
        (["--num-epochs", "0"], ["num_epochs=0: must be a whole number, 1 or more"]),
        (["--optimizer", "adamm"], ["'adamm'", "('adam', 'adamw', 'sgd')"]),
        (["epochs", "3"], ["Unrecognized options: epochs"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith(("-", "epochs")) else "",
)
def test_a_wrong_flag_is_refused_with_status_2(argv, parts, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert exit_code(parse, [EXPERIMENT], argv) == 2
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert all(part in message for part in parts), message
    assert "Traceback" not in message


def test_help_names_every_flag(capsys):
    assert exit_code(parse, [EXPERIMENT], ["--help"], "What this script is for.") == 0
    text = capsys.readouterr().out
    flags = "demo seeds num-epochs batch-size data-dir out name precision protocol sync-period only all train devices"
    assert "What this script is for." in text and all(f"--{flag}" in text for flag in flags.split())
