"""XLA's options, and whose the cache on disk is. (That a second start compiles nothing large: test_startup.py.)"""

import jax
import numpy as np
import pytest

import jaxresnet.training.compilation
from jaxresnet.training.compilation import compile_lowered, use_compilation_cache

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def asked(monkeypatch):
    """The options of every compilation from now on."""
    told, compile_it = [], jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda self, options: told.append(dict(options)) or compile_it(self, options)
    )
    return told


def compiled(backend):
    return compile_lowered(jax.jit(lambda x: x + 1).lower(np.float32(1)), backend)


def test_options_belong_to_their_backend(asked, monkeypatch):
    assert float(compiled("cpu")(np.float32(1))) == 2
    compiled("gpu")
    monkeypatch.setenv("JAXRESNET_COMPILER_OPTIONS", "0")
    compiled("cpu")
    assert asked[0] and all(name.startswith("xla_cpu") for name in asked[0])
    assert asked[1:] == [{}, {}]


def test_an_option_that_xla_does_not_know_is_left_out_and_only_that(asked, monkeypatch):
    options = {"xla_of_another_version": "1", "xla_embed_ir_in_executable": True}
    monkeypatch.setattr(jaxresnet.training.compilation, "CPU_COMPILER_OPTIONS", options)
    assert float(compiled("cpu")(np.float32(1))) == 2
    assert [list(options) for options in asked] == [list(options), ["xla_embed_ir_in_executable"]]


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """JAX without a cache, and a home of its own; what is set is put back."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    monkeypatch.delenv("JAXRESNET_COMPILATION_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_the_users_own_and_the_processors(no_cache, monkeypatch):
    """A program for one processor may be illegal on another, and a home may be shared by both."""
    folder = use_compilation_cache()
    assert folder.is_dir() and folder.parent == no_cache / "jaxresnet" / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_persistent_cache_min_compile_time_secs <= 0.1, "small programs are many"
    assert use_compilation_cache() == folder, "again changes nothing"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(jaxresnet.training.compilation, "instructions", lambda: "fpu amx_bf16")
    assert use_compilation_cache() != folder


def test_jaxs_own_setting_goes_before_and_without_a_folder_nothing_is_kept(no_cache, monkeypatch):
    (no_cache / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(no_cache / "file"))  # a home that nothing can be written to
    assert use_compilation_cache() is None and jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_compilation_cache_dir", str(no_cache / "mine"))
    assert use_compilation_cache() == no_cache / "mine"
    monkeypatch.setenv("JAXRESNET_COMPILATION_CACHE", "0")
    assert use_compilation_cache() is None
