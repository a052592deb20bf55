"""The flags that all scripts share: their defaults, what they change, and how wrong ones are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_experiments import BASE, EXPERIMENT, MAIN, MEASURED, OTHER, RATES, arms_of, exit_code, parse_main

import jaxresnet.cli.experiment
from jaxresnet.cli.experiment import Experiment
from jaxresnet.cli.main import plan
from jaxresnet.cli.options import parse
from jaxresnet.config import ModelConfig, TrainConfig, with_fields
from jaxresnet.errors import ConfigError
from jaxresnet.recipes import intended

# -------------------------------------------------------------------------------------------- protocol, demo and fields


def meant(config):
    """As a script runs it as intended: in the arithmetic that suits the device."""
    return with_fields(intended(config), {"precision": "auto"})


def test_without_flags_the_run_is_the_intended_one():
    options, fields = parse_main()
    assert options.config == meant(BASE) and fields == {}
    assert (options.seeds, options.protocol, options.demo) == ((0, 1, 2), "intended", False)
    assert (options.only, options.all, options.devices, options.out) == ((), False, "data", None)
    assert options.config.val_size == 5000 and options.config.selection == "val"
    assert arms_of() == {arm: meant(config) for arm, config in MAIN.items()}


def test_protocol_published_is_the_run_as_published():
    config = parse_main("--protocol", "published")[0].config
    assert config == BASE
    assert (config.val_size, config.selection, config.eval_weights) == (0, "test", "fast")
    assert (config.optim.schedule_unit, config.optim.schedule_length) == ("epoch", 97)
    assert parse_main("--protocol=published")[0].config == BASE
    assert parse_main("--protocol", "published", "--demo")[0].config.val_size == 0
    assert arms_of("--protocol", "published") == MAIN


def test_protocol_both_runs_one_after_the_other():
    options, fields = parse_main("--protocol", "both", "--num-epochs", "7")
    assert options.protocols == ("published", "intended")
    published_one, intended_one = plan([EXPERIMENT], options, fields)
    assert published_one.protocol == "published" and intended_one.protocol == "intended"
    assert published_one.arms == {arm: replace(config, num_epochs=7) for arm, config in MAIN.items()}
    assert intended_one.arms == {arm: replace(meant(config), num_epochs=7) for arm, config in MAIN.items()}


def test_a_script_may_have_another_protocol_by_default():
    options, _ = parse_main(protocol="both")
    assert options.protocol == "both" and options.config == meant(BASE)
    options, _ = parse_main("--protocol", "published", protocol="both")
    assert options.protocol == "published" and options.config == BASE


@pytest.mark.parametrize("argv", [["published", "intended"], ["both", "published"], ["intended", "both"]], ids="-".join)
def test_of_a_flag_given_twice_the_last_one_counts(argv):
    """For what it is called and for what it sets alike."""
    options, _ = parse_main("--protocol", argv[0], "--protocol", argv[1])
    assert options.protocol == argv[1]
    assert options.config == (BASE if argv[1] == "published" else meant(BASE))


def test_demo_and_no_demo_together_are_refused():
    with pytest.raises(ConfigError, match="give each once"):
        parse_main("--demo", "--no-demo")


def test_every_field_is_a_flag_of_its_own_name():
    argv = (
        "--seeds 4 5 --sync-period 7 --no-flip --width 32 --stage-sizes 2 2 2 2 --precision bfloat16 --train-size 9000"
    )
    argv = [*argv.split(), "--out", "here", "--learning-rate=0.5", "--schedule-length", "None"]
    options, fields = parse_main(*argv)
    assert options.seeds == (4, 5) and options.out == Path("here")
    model = {"width": 32, "stage_sizes": (2, 2, 2, 2), "precision": "bfloat16"}
    optim = {"sync_period": 7, "learning_rate": 0.5, "schedule_length": None}
    assert fields == {"train_size": 9000, "flip": False, **model, **optim}
    start = meant(BASE)
    changed = replace(
        start,
        train_size=9000,
        model=replace(start.model, width=32, stage_sizes=(2, 2, 2, 2), precision="bfloat16"),
        augment=replace(start.augment, flip=False),
        optim=replace(start.optim, sync_period=7, learning_rate=0.5),
    )
    assert options.config == changed
    assert arms_of(*argv) == {
        "Adam + Lookahead": changed,
        "Adam": replace(changed, optim=replace(changed.optim, lookahead=False)),
    }


@pytest.mark.parametrize("flag", ["--no-flip", "--no_flip"])
def test_a_field_that_is_switched_off_is_given_in_either_spelling(flag):
    _, fields = parse_main(flag)
    assert fields == {"flip": False}
    assert not any(config.augment.flip for config in arms_of(flag).values())
    for refused in ("--no-lookahead", "--no_lookahead"):
        with pytest.raises(ConfigError, match="set it themselves"):
            arms_of(refused)


@pytest.mark.parametrize("argv", [["--only"], ["--only", "main", "--only"], ["--only", "main", "--only=main"]], ids=len)
def test_only_is_given_once_and_with_names(argv):
    with pytest.raises(ConfigError, match="--only: give it once, with one or more names"):
        parse_main(*argv)


def test_demo_flags_can_be_changed_too():
    arms = arms_of("--demo", "--num-epochs", "2", "--precision", "bfloat16")
    for config in arms.values():
        assert config.num_epochs == 2 and config.batch_size == 64
        assert config.model == ModelConfig(width=16, precision="bfloat16")
        assert config.val_size == jaxresnet.cli.experiment.DEMO_VAL


# ---------------------------------------------------------------------------------------------------- which comparisons


@pytest.mark.parametrize(
    "only, optional, selected",
    [
        ([], False, ["sizes"]),
        ([], True, ["sizes", "sizes-trained"]),
        (["sizes"], False, ["sizes"]),
        (["sizes"], True, ["sizes", "sizes-trained"]),
        (["sizes-trained"], False, ["sizes-trained"]),
        (["trained"], True, []),
    ],
)
def test_select(only, optional, selected):
    assert MEASURED.select(only, optional) == selected


def test_select_by_the_part_before_the_dash():
    assert OTHER.select(["rates"], False) == ["rates-256"], "optional ones are asked for by their whole name"
    assert OTHER.select(["rates-one"], False) == ["rates-one"]
    assert OTHER.select(["rates-one", "rates-256"], False) == ["rates-256", "rates-one"], "in the script's order"
    assert OTHER.select([], True) == ["rates-256", "rates-one"]


def test_the_defaults_are_those_of_the_first_arm_that_runs():
    both = (EXPERIMENT, OTHER)
    assert parse_main(experiments=both)[0].config == meant(BASE)
    for only in (["--only", "rates"], ["--only=rates-one"], ["--only", "rates-256", "main"]):
        assert parse_main(*only, experiments=both)[0].config == meant(RATES["lr 1e-2"])
    nothing_to_train = Experiment("Only measures.", {}, measurements=MEASURED.measurements)
    assert parse_main(experiments=(nothing_to_train,))[0].config == TrainConfig()


@pytest.mark.parametrize("only", ["rates", "256", "mian"])
def test_a_comparison_that_is_not_there_is_refused_with_those_that_are(only):
    experiments = (EXPERIMENT, MEASURED)
    with pytest.raises(ConfigError, match=f"--only {only}: must be one of main, sizes, sizes-trained") as caught:
        parse_main("--only", "main", only, experiments=experiments)
    assert ("(did you mean main?)" in str(caught.value)) == (only == "mian")


def test_train_is_another_word_for_all():
    assert parse_main("--train", experiments=(MEASURED,)) == parse_main("--all", experiments=(MEASURED,))
    assert parse_main("--train", experiments=(MEASURED,))[0].all


# ---------------------------------------------------------------------------------------------------------- wrong flags


def test_a_flag_is_refused_for_any_comparison_that_would_run_only():
    with pytest.raises(ConfigError, match="--learning-rate: the arms of rates-256 set it themselves"):
        arms_of("--learning-rate", "0.5", experiment=OTHER)
    arms = arms_of("--learning-rate", "0.5", "--only", "rates-one", experiment=OTHER)
    assert [config.optim.learning_rate for config in arms.values()] == [0.5]


def test_a_value_that_is_called_like_a_flag_is_none():
    """`--only learning_rate batch_size` names comparisons, and a folder may be called width."""
    rates = Experiment("Rates.", {"learning_rate": RATES, "batch_size": {"A": BASE}})
    options, fields = parse([rates], ["--only", "batch_size", "learning_rate", "--out", "width"])
    assert options.only == ("batch_size", "learning_rate") and options.out == Path("width") and fields == {}


@pytest.mark.parametrize("flag", [["--seed", "3"], ["--seed", "0"], ["--seed=0"]], ids=" ".join)
def test_a_single_seed_is_refused_whatever_its_value(flag):
    with pytest.raises(ConfigError, match="name them all: --seeds 0 1 2"):
        parse_main(*flag)


@pytest.mark.parametrize(
    "argv, parts",
    [
        (["--lerning-rate", "1"], ["Unrecognized options: --lerning-rate", "Perhaps you meant", "--learning-rate"]),
        (["--sync-periods", "1"], ["--sync-periods", "--sync-period INT"]),
        (["--learning-rate", "abc"], ["--learning-rate", "'abc'"]),
        (["--num-epochs", "1.5"], ["--num-epochs", "'1.5'"]),
        (["--num-epochs", "0"], ["num_epochs=0: must be a whole number, 1 or more"]),
        (["--learning-rate", "nan"], ["learning_rate=nan: must be a number of at least 0"]),
        (["--optimizer", "adamm"], ["'adamm'", "('adam', 'adamw', 'sgd')"]),
        (["--protocol", "publishd"], ["'publishd'", "('published', 'intended', 'both')"]),
        (["--devices", "run"], ["'run'", "('data', 'runs')"]),
        (["--pool-size", "8"], ["pool_size=8: must be 4"]),
        (["--width"], ["--width"]),
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
    assert "What this script is for." in text
    for flag in (
        "demo",
        "seeds",
        "num-epochs",
        "batch-size",
        "data-dir",
        "out",
        "precision",
        "protocol",
        "sync-period",
        "only",
        "all",
        "devices",
    ):
        assert f"--{flag}" in text
