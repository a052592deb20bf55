"""What is compiled once is used again: by other devices, by the next process; and how it is turned off."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from support.tiny import RUN, contents

import jaxresnet.training.compilation
from jaxresnet.comparison.compare import compare
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.recipes import published
from jaxresnet.training.compilation import CompiledOnce, compiler_options, use_compilation_cache
from jaxresnet.training.engine import Program, make_engine, replicate
from jaxresnet.training.fit import fit

DEVICES = jax.devices()
# Like no other test's, so that nothing of it is compiled yet.
UNSEEN = replace(RUN, model=replace(RUN.model, width=7))


@pytest.fixture
def compiled(monkeypatch):
    """The devices of every program that is compiled from now on."""
    devices = []
    compile_it = Program._compile

    def noted(program, *args):
        devices.append(program._devices)
        return compile_it(program, *args)

    monkeypatch.setattr(Program, "_compile", noted)
    return devices


@pytest.mark.devices(3)
def test_a_run_on_each_of_three_devices_compiles_once(tiny_data, tmp_path, compiled):
    """And gives the same bits as one after another on the first."""
    seeds = (0, 1, 2)
    spread = compare({"arm": UNSEEN}, seeds, tiny_data, tmp_path, devices=DEVICES[:3], spread="runs")
    assert len(compiled) == 3  # a step, and evaluation in batches of 44 validation and 100 test images
    for seed in seeds:
        run = json.loads((spread.folder / f"runs/arm-seed{seed}.json").read_text())
        alone = fit(replace(UNSEEN, seed=seed), tiny_data, devices=[DEVICES[0]])
        assert run["test_loss"] == alone.summary["test_loss"]


@pytest.mark.devices(2)
def test_a_copy_runs_on_its_own_device(tiny_data, compiled):
    images, labels = tiny_data.train.images[:256], tiny_data.train.labels[:256]
    losses = []
    for device in DEVICES[:2]:
        engine = make_engine(UNSEEN, 256, [device])
        state, totals = engine.train_epoch(
            engine.init(0), engine.zero_totals(), hypers_of(UNSEEN.optim), *replicate((images, labels), (device,)), 0
        )
        assert {d for leaf in jax.tree.leaves((state, totals)) for d in leaf.devices()} == {device}
        losses.append(float(totals.sums.loss))
    assert losses[0] == losses[1]
    assert DEVICES[1:2] not in [list(devices) for devices in compiled]


def test_what_cannot_be_copied_is_compiled_again(monkeypatch):
    """The copy uses private parts of JAX."""

    def changed(*_):
        raise AttributeError("JAX has changed")

    monkeypatch.setattr(jaxresnet.training.compilation, "_copy", changed)
    once, devices = CompiledOnce(), ("one", "another")
    assert once.get(devices[:1], lambda: "for one") == "for one"
    with pytest.warns(UserWarning, match="every device compiles for itself: AttributeError: JAX has changed"):
        assert once.get(devices[1:], lambda: "for another") == "for another"


def test_the_same_devices_take_what_is_there():
    once = CompiledOnce()
    assert once.get(("one",), lambda: "first") == once.get(("one",), lambda: "second") == "first"


def test_the_eleven_published_runs_need_six_engines():
    """They differ in numbers, schedules and lengths, and in three batch sizes, two optimisers, with and without
    Lookahead."""
    engines = {id(make_engine(run.config, 50_000, DEVICES[:1])) for run in published.values()}
    assert len(published) == 11 and len(engines) == 6


def test_the_same_network_is_evaluated_by_the_same_program(tiny_data, compiled):
    """Whatever it is trained with, and only that."""
    model = replace(UNSEEN.model, width=6)
    configs = [replace(UNSEEN, model=model, batch_size=size) for size in (64, 32)]
    scores = [fit(replace(c, num_epochs=1), tiny_data, devices=DEVICES[:1]).history[0]["val_loss"] for c in configs]
    assert len(compiled) == 4, "two steps, and evaluation in batches of 44 and 100"
    assert scores[0] != scores[1]


def test_a_comparison_of_seeds_and_rates_compiles_a_step_once(tiny_data, tmp_path, compiled):
    config = replace(UNSEEN, model=replace(UNSEEN.model, width=5))
    arms = {f"{rate}": replace(config, optim=replace(config.optim, learning_rate=rate)) for rate in (1e-2, 1e-3, 1e-4)}
    compare(arms, (0, 1), tiny_data, tmp_path, devices=DEVICES[:1])
    assert len(compiled) == 3
    assert len([name for name in contents(tmp_path) if str(name).endswith(".jsonl")]) == 6


# ------------------------------------------------------------------------------------------------------ options


def test_options_belong_to_their_backend(monkeypatch):
    monkeypatch.delenv("JAXRESNET_COMPILER_OPTIONS", raising=False)
    assert all(name.startswith("xla_cpu") for name in compiler_options("cpu")) and compiler_options("cpu")
    assert compiler_options("gpu") == compiler_options("tpu") == {}
    monkeypatch.setenv("JAXRESNET_COMPILER_OPTIONS", "0")
    assert compiler_options("cpu") == {}


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    """And only that one."""
    options = {DEVICES[0].platform: {"xla_of_another_version": "1", "xla_embed_ir_in_executable": True}}
    monkeypatch.setattr(jaxresnet.training.compilation, "COMPILER_OPTIONS", options)
    asked, compile_it = [], jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda self, options: asked.append(dict(options)) or compile_it(self, options)
    )
    program = Program(lambda x, rank: x + rank, 1, tuple(DEVICES[:1]))
    assert float(program(np.float32(1))) == 1
    assert [len(options) for options in asked] == [2, 1] and "xla_embed_ir_in_executable" in asked[-1]


# ------------------------------------------------------------------------------------------------- the cache on disk


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """JAX without a cache, and a home of its own; what is set is put back."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.delenv("JAXRESNET_COMPILATION_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def test_the_folder_is_the_users_own(no_cache):
    folder = use_compilation_cache()
    assert folder.is_dir() and folder.parent == no_cache / "jaxresnet" / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert use_compilation_cache() == folder, "again changes nothing"


def test_another_processor_has_another_folder(no_cache, monkeypatch):
    """A program for one may be illegal on the other, and a home may be shared by both."""
    here = use_compilation_cache()
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(jaxresnet.training.compilation, "_processor", lambda: "flags : fpu amx_bf16")
    assert use_compilation_cache() != here


def test_jaxs_own_setting_goes_before(no_cache):
    jax.config.update("jax_compilation_cache_dir", str(no_cache / "mine"))
    assert use_compilation_cache() == no_cache / "mine"
    assert not (no_cache / "jaxresnet").exists()


def test_it_can_be_turned_off(no_cache, monkeypatch):
    monkeypatch.setenv("JAXRESNET_COMPILATION_CACHE", "0")
    assert use_compilation_cache() is None and jax.config.jax_compilation_cache_dir is None


def test_without_a_writable_home_nothing_is_kept(no_cache, monkeypatch):
    (no_cache / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(no_cache / "file"))
    assert use_compilation_cache() is None and jax.config.jax_compilation_cache_dir is None


COUNT = """
import sys
import jax
from jax import monitoring
import jaxresnet as jr
from jaxresnet.training.compilation import use_compilation_cache
hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name) if "cache_hits" in name else None)
use_compilation_cache()
config = jr.TrainConfig(model=jr.ModelConfig(stage_sizes=(1,), width=4, pool_size=32), num_epochs=1, batch_size=32,
                        val_size=16)
result = jr.fit(config, jr.make_synthetic(80, 16))
print(len(hits), result.history[0]["train_loss"])
"""


def test_the_next_process_compiles_nothing_large(tmp_path):
    """Its numbers are the same bits."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAXRESNET", "XLA_FLAGS"))}
    environ["XDG_CACHE_HOME"] = str(tmp_path)
    lines = [
        subprocess.run([sys.executable, "-c", COUNT], env=environ, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    (hits, loss), (hits_again, loss_again) = (line.stdout.split() for line in lines)
    assert loss == loss_again
    assert int(hits) == 0 and int(hits_again) >= 3, "at least a step, an evaluation and the initial weights"
    assert not lines[1].stderr


ON_TWO_DEVICES = """
import jax
import jaxresnet as jr
from jaxresnet.training.compilation import use_compilation_cache
use_compilation_cache()
config = jr.TrainConfig(model=jr.ModelConfig(stage_sizes=(1,), width=4, pool_size=32, precision="float32"),
                        num_epochs=1, batch_size=32, val_size=16)
data = jr.make_synthetic(80, 16)
print(*(jr.fit(config, data, devices=[device]).history[0]["train_loss"] for device in jax.devices()[:2]))
"""


@pytest.mark.skipif(DEVICES[0].platform != "cpu", reason="needs two devices in a new process")
def test_what_was_found_on_disk_runs_on_other_devices(tmp_path):
    """It cannot be copied to them: XLA:CPU writes it out incompletely a second time."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAXRESNET"))}
    environ |= {"XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", ON_TWO_DEVICES]
    first, second = (
        subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    )
    assert len(first) == 2 and len({*first, *second}) == 1
