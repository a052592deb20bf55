"""What `import jaxresnet` does and does not do, each in a fresh interpreter, and the names it offers."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import jaxresnet as jr

REPORT = """
import json, os, sys, warnings
import jax, numpy as np
config, environ, filters = dict(jax.config.values), dict(os.environ), list(warnings.filters)
random_state = np.random.get_state()[1].tolist()
import jaxresnet
print(json.dumps({
    "modules": sorted(sys.modules),
    "config": [str(k) for k, v in jax.config.values.items() if k not in config or config[k] != v],
    "environ": dict(os.environ) == environ,
    "filters": [str(f) for f in warnings.filters if f not in filters],
    "random": np.random.get_state()[1].tolist() == random_state,
}))
"""


@pytest.fixture(scope="module")
def after_import() -> dict:
    """With every warning an error."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", REPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "module",
    [
        *("tensorflow_datasets", "tensorflow", "array_record", "matplotlib", "orbax", "tyro", "PIL", "scipy.stats"),
        *("safetensors", "torch", "flax", "optax", "pooch", "requests", "jinja2", "rich"),
    ],
)
def test_import_loads_nothing_that_only_some_need(after_import, module):
    assert module not in after_import["modules"]


@pytest.mark.parametrize("then, works", [("pass", True), ("import jax; jax.devices()", False)])
def test_import_touches_no_device(then, works):
    """Where there is none that JAX knows, it works all the same."""
    code = f"import jaxresnet, jaxresnet.cli.main, jaxresnet.training.predict; {then}"
    environ = {**os.environ, "JAX_PLATFORMS": "none"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environ)
    assert (done.returncode == 0) == works, done.stderr


def test_import_sets_nothing(after_import):
    assert after_import["config"] == []
    assert after_import["filters"] == []
    assert after_import["environ"] and after_import["random"]


def test_the_public_surface_is_small_and_all_of_it_can_be_had():
    assert len(set(jr.__all__)) == len(jr.__all__) == 25
    assert all(hasattr(jr, name) for name in jr.__all__)
    assert jr.interop.from_torch and set(jr.__all__) <= set(dir(jr))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jr.nothing  # noqa: B018


def test_type_checkers_see_the_same_names():
    source = Path(jr.__file__).read_text("utf-8")
    checked = source[source.index("if TYPE_CHECKING:") : source.index("__version__")]
    named = {name.strip() for line in re.findall(r"import (.+)", checked) for name in line.split(",")}
    assert named == set(jr.__all__)


@pytest.mark.parametrize("name", jr.__all__)
def test_no_exported_name_hides_a_module(name):
    assert importlib.util.find_spec(f"jaxresnet.{name}") is None


def test_public_functions_and_classes_are_documented():
    undocumented = [n for n in jr.__all__ if callable(getattr(jr, n)) and not (getattr(jr, n).__doc__ or "").strip()]
    assert undocumented == []


def test_importing_it_does_not_even_load_jax():
    code = "import sys, jaxresnet; print('jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_version():
    assert jr.__version__ == version("jaxresnet")
