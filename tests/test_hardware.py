"""Where a result came from: plain JSON, and a commit that says when it is not the whole truth."""

import json
import subprocess
import sys
from importlib.metadata import version
from types import SimpleNamespace

import jax
import pytest

from jaxresnet import hardware as module
from jaxresnet.hardware import commit, device_name, environment


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


@pytest.mark.parametrize("count", [1, 3])
def test_environment_of_the_devices_in_use(count):
    """A run on one of eight devices was made on one."""
    whole, part = environment(), environment(jax.devices()[:count])
    assert part["num_devices"] == count
    assert {**part, "num_devices": whole["num_devices"]} == whole


def test_a_package_that_is_not_installed_has_no_version():
    assert module._version("no-such-package-anywhere") is None


def test_device_name():
    assert device_name(SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")) == "NVIDIA H100"
    assert device_name(SimpleNamespace(platform="cpu", device_kind="cpu")).endswith(" cores")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A Git repository that the package seems to run from; call it to run git there."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where the tests run in a Git hook
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    file = tmp_path / "environment.py"
    file.write_text("# committed\n")
    monkeypatch.setattr(module, "__file__", str(file))

    def git(*args: str) -> str:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return git


def test_commit(checkout, tmp_path):
    assert commit() is None  # not a repository
    checkout("init")
    assert commit() is None  # a repository of something else, say one that holds a virtual environment
    checkout("add", "environment.py")
    checkout("commit", "--message", "first")
    assert commit() == checkout("rev-parse", "HEAD")[:12]
    (tmp_path / "notes.txt").write_text("not tracked, changes no result\n")
    assert not commit().endswith("-dirty")
    (tmp_path / "environment.py").write_text("# changed\n")
    assert commit() == checkout("rev-parse", "HEAD")[:12] + "-dirty"


def test_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit() is None
