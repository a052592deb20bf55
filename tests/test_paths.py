"""Paths that a user gives, whatever characters they have, and a machine without a home."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import jax
import pytest
from support.tiny import RUN, assert_same_bits, without_times

import jaxresnet as jr
from jaxresnet.cli.options import parse
from jaxresnet.comparison.compare import Comparison, RunsFailed
from jaxresnet.comparison.imports import import_comparison
from jaxresnet.errors import ConfigError, Interrupted
from jaxresnet.files import cache_folder, local_path, write_text
from jaxresnet.interop.weight_files import convert
from jaxresnet.reporting.report import Report, render, render_tree
from jaxresnet.results.store import read_results

SHORT = replace(RUN, num_epochs=2)
STRANGE = ["out [k=5] a*b?\\c", "~x {y} %41 #é|z\nline", "half-\udcff"]


@pytest.mark.parametrize("name", STRANGE, ids=lambda name: name.encode("ascii", "backslashreplace").decode())
def test_a_comparison_lives_in_a_folder_of_any_name_and_goes_on_there(name, tiny_data, tmp_path):
    out = tmp_path / name
    common = {"arms": {"a": SHORT}, "data": tiny_data, "out": out, "devices": jax.devices()[:1]}
    jr.compare(seeds=[0], **common)
    found = jr.compare(seeds=[0, 1], **common)
    assert found.report.complete and not list(out.rglob("damaged-*"))
    assert jr.predict(found.runs["a", 1], tiny_data.test.images[:2]).shape == (2, 10)
    convert(found.runs["a", 1], out / f"{name}.safetensors")
    convert(out / f"{name}.safetensors", out / f"{name}-folder")
    one, other = jr.load_variables(found.runs["a", 1]), jr.load_variables(out / f"{name}-folder")
    assert_same_bits(one.variables, other.variables)


def test_a_run_continues_in_a_working_directory_and_a_temporary_folder_of_any_name(tiny_data, tmp_path, monkeypatch):
    (tmp_path / "[x]").mkdir()
    monkeypatch.chdir(tmp_path / "[x]")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "[x]"))
    devices = jax.devices()[:1]
    with pytest.raises(Interrupted):
        jr.fit(RUN, tiny_data, "work", devices=devices, should_stop=lambda: True)
    assert Path("work").is_dir()
    continued, whole = jr.fit(RUN, tiny_data, "work", devices=devices), jr.fit(RUN, tiny_data, devices=devices)
    assert list(map(without_times, continued.history)) == list(map(without_times, whole.history))


ADDRESS = "gs://bucket/x"
ENTRANCES = {
    "compare": lambda path, data: jr.compare({"a": SHORT}, [0], data, path),
    "fit": lambda path, data: jr.fit(SHORT, data, path),
    "predict": lambda path, data: jr.predict(path, data.test.images),
    "load_cifar10": lambda path, data: jr.load_cifar10(path),
    "convert": lambda path, data: convert(path, "x.safetensors"),
    "convert to": lambda path, data: convert("x.safetensors", path),
    "report": lambda path, data: render(path),
    "report of many": lambda path, data: render_tree(path),
    "results": lambda path, data: read_results(path),
    "import": lambda path, data: import_comparison(path, "out"),
    "flag": lambda path, data: parse([], ["--out", str(path)]),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("path", [ADDRESS, Path(ADDRESS), "~nobody-of-this-name/x", "nul\0", None])
def test_what_names_no_place_here_is_refused_before_anything_is_written(
    entrance, path, tiny_data, tmp_path, monkeypatch
):
    if path is None and entrance in ("fit", "load_cifar10", "flag"):
        return  # None is a value there
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is no path on this machine"):
        ENTRANCES[entrance](path, tiny_data)
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/res") == tmp_path / "res" == parse([], ["--out=~/res"])[0].out


def test_without_a_home_there_is_a_temporary_one_and_everything_else_works(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where the user has no entry in passwd
    folder = cache_folder()
    assert folder.is_absolute() and "~" not in str(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to act as another user")
def test_a_user_without_home_and_name(tmp_path):
    """Such as a container gives its processes."""
    code = (
        "import jaxresnet as jr; from jaxresnet.training.compilation import use_compilation_cache as use; "
        "from jaxresnet.data.tfds import default_tfds_dir as tfds; print(use(), tfds())"
    )
    environ = {k: v for k, v in os.environ.items() if k not in ("HOME", "JAX_COMPILATION_CACHE_DIR", "TMPDIR")}
    sources = [str(Path(jr.__file__).parents[1]), *sys.path]
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, sources))
    preload = "import os, sys, jax, jaxresnet.training.compilation, jaxresnet.data.tfds; os.setuid(54321); "
    done = subprocess.run([sys.executable, "-c", preload + code], capture_output=True, text=True, env=environ, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "~" not in done.stdout and "jaxresnet-54321" in done.stdout


def test_files_are_for_whom_the_umask_says(tmp_path, monkeypatch):
    before = os.umask(0o002)
    try:
        write_text(tmp_path / "shared" / "file", "text")
    finally:
        os.umask(before)
    assert oct((tmp_path / "shared" / "file").stat().st_mode)[-3:] == "664"
    assert oct((tmp_path / "shared").stat().st_mode)[-3:] == "775"


def exceptions():
    for module in walk_packages(jr.__path__, "jaxresnet."):
        if not module.name.endswith("__main__"):
            found = vars(import_module(module.name)).values()
            yield from (
                e for e in found if isinstance(e, type) and issubclass(e, Exception) and "jaxres" in e.__module__
            )


def test_every_exception_survives_a_process_pool(tmp_path):
    report = Report(*[tmp_path] * 4, table="", verdict="", complete=False)
    made = {RunsFailed: RunsFailed(Comparison(tmp_path, report, {}), {("a", 0): "why"}, 2)}
    classes = set(exceptions())
    assert len(classes) >= 8
    for kind in classes:
        error = made.get(kind) or kind("what, and what to do")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error) and vars(again).keys() == vars(error).keys()
