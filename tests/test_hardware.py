"""Where a result came from: plain JSON, and a commit that says when it is not the whole truth."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from types import SimpleNamespace

import jax
import pytest

from jaxresnet import hardware as module
from jaxresnet.config import ModelConfig, TrainConfig
from jaxresnet.errors import ConfigError
from jaxresnet.hardware import commit, cpu_info, device_name, environment, num_cores, resolved


def test_environment_is_json_and_names_what_matters(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", "a folder"])
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {
        *("jaxresnet", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "python"),
        *("platform", "device", "num_devices", "num_processes", "commit", "command"),
    }
    assert found["jax"] == version("jax") and found["python"].startswith("3.")
    assert found["command"] == "python run.py --out 'a folder'"
    assert found["platform"] == jax.local_devices()[0].platform
    assert found["num_devices"] == len(jax.local_devices())
    assert environment(jax.devices()[:1]) == {**found, "num_devices": 1}  # in use, of those that there are


def test_device_name():
    assert device_name(SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")) == "NVIDIA H100"
    assert device_name(SimpleNamespace(platform="cpu", device_kind="cpu")).endswith(" cores")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or num_cores() < 2, reason="needs two cores, and to know them")
@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "True 2"),
        ("os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=3'", "False 3"),
        ("jax.config.update('jax_num_cpu_devices', 1)", "False 1"),
        ("jax.devices()", "False 1"),
    ],
    ids=["nothing said", "XLA_FLAGS", "jax_num_cpu_devices", "after JAX has found its devices"],
)
def test_a_core_is_a_device_unless_the_user_has_said_how_many_there_are(before, expected):
    code = f"import os, jax; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:2]); {before or 'pass'}; "
    code += "from jaxresnet.hardware import use_cores; print(use_cores(), len(jax.devices()))"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_PLATFORMS"] = "cpu"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected


def test_the_commit_says_where_the_checkout_had_changes(tmp_path, monkeypatch):
    def git(*args: str) -> str:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where the tests run in a Git hook
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    file = tmp_path / "hardware.py"  # that the package seems to run from
    file.write_text("# committed\n")
    monkeypatch.setattr(module, "__file__", str(file))
    assert commit() is None  # not a repository
    git("init")
    assert commit() is None  # a repository of something else, say one that holds a virtual environment
    git("add", "hardware.py")
    git("commit", "--message", "first")
    assert commit() == git("rev-parse", "HEAD")[:12]
    (tmp_path / "notes.txt").write_text("not tracked, changes no result\n")
    assert not commit().endswith("-dirty")
    file.write_text("# changed\n")
    assert commit() == git("rev-parse", "HEAD")[:12] + "-dirty"
    monkeypatch.setenv("PATH", "")  # without git
    assert commit() is None


# ---------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("platform", "capability", "cpu_does", "precision"),
    [
        ("cpu", "", "0", "float32"),
        ("cpu", "", "1", "bfloat16"),
        ("gpu", "8.0", "0", "bfloat16"),
        ("gpu", "7.5", "0", "float32"),
        ("gpu", "gfx90a", "0", "bfloat16"),
        ("tpu", "", "0", "bfloat16"),
    ],
)
def test_where_bfloat16_is_faster(platform, capability, cpu_does, precision, monkeypatch):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", cpu_does)
    one = SimpleNamespace(platform=platform, **({"compute_capability": capability} if capability else {}))
    assert resolved(TrainConfig(), one).model == ModelConfig(precision=precision)
    for chosen in ("float32", "bfloat16"):
        config = TrainConfig(model=ModelConfig(precision=chosen))
        assert resolved(config, one) is config


@pytest.mark.parametrize(("flags", "does"), [("fpu avx512_bf16", True), ("fpu amx_bf16 sse", True), ("avx512f", False)])
def test_the_processors_flags_decide(flags, does, monkeypatch):
    monkeypatch.delenv("JAXRESNET_CPU_BFLOAT16")
    monkeypatch.setattr(module, "cpu_info", lambda: {"flags": flags})
    assert module.multiplies_bfloat16() is does
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "yes")
    with pytest.raises(ConfigError, match="must be 0"):
        module.multiplies_bfloat16()


def test_the_processor_is_read_once_for_all(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: A: B\nflags\t\t: fpu sse\n\nprocessor\t: 1\n")
    assert cpu_info(path) == {"processor": "0", "model name": "A: B", "flags": "fpu sse"}
    assert cpu_info(tmp_path / "none") == {}
