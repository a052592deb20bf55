"""What `import jaxresnet` does and does not do, each in a fresh interpreter, and the names it offers."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import jaxresnet as jr

REPORT = """
import json, os, sys, warnings
import jax, numpy as np
from jax._src import xla_bridge
config, environ, filters = dict(jax.config.values), dict(os.environ), list(warnings.filters)
random_state = np.random.get_state()[1].tolist()
import jaxresnet
print(json.dumps({
    "modules": sorted(sys.modules),
    "backends": sorted(xla_bridge._backends),
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
        *("safetensors", "torch"),
    ],
)
def test_import_loads_nothing_that_only_some_need(after_import, module):
    assert module not in after_import["modules"]


def test_import_touches_no_device(after_import):
    assert after_import["backends"] == []


def test_import_sets_nothing(after_import):
    assert after_import["config"] == []
    assert after_import["filters"] == []
    assert after_import["environ"] and after_import["random"]


def test_the_device_check_can_fail():
    code = "import jax; from jax._src import xla_bridge; jax.devices(); print(sorted(xla_bridge._backends))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() != "[]"


def test_all_names_exist_once_and_are_all_there_is():
    assert len(set(jr.__all__)) == len(jr.__all__)
    assert all(hasattr(jr, name) for name in jr.__all__)
    modules = {name.removeprefix("jaxresnet.") for name in sys.modules if name.startswith("jaxresnet.")}
    public = {name for name in vars(jr) if not name.startswith("_")}
    assert public - modules <= set(jr.__all__)


@pytest.mark.parametrize(
    "name",
    [
        *("ModelConfig", "AugmentConfig", "OptimConfig", "TrainConfig", "published", "intended"),
        *("build_model", "Model", "ResNet", "count_params", "load_cifar10", "Dataset", "Split"),
        *("epoch_plan", "EpochPlan", "make_schedule", "make_optimizer", "lookahead"),
        *("fit", "Result", "compare", "Comparison", "predict", "load_variables"),
        *("from_torch", "to_torch", "convert", "WeightsError", "distributed"),
    ],
)
def test_the_public_surface(name):
    assert name in jr.__all__


def test_public_functions_and_classes_are_documented():
    undocumented = [n for n in jr.__all__ if callable(getattr(jr, n)) and not (getattr(jr, n).__doc__ or "").strip()]
    assert undocumented == []


def test_version():
    assert jr.__version__ == version("jaxresnet")
