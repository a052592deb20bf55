"""A ResNet-18 under five million parameters in JAX, trained on CIFAR-10 and compared honestly.

    import jaxresnet as jr

    result = jr.fit(jr.TrainConfig(num_epochs=10), jr.load_cifar10())

Importing this loads nothing, not even JAX: each name below is imported when it is first used. The rest of the library
is reached through its subpackages, for example `jr.interop.from_torch`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxresnet.cli.experiment import Experiment
    from jaxresnet.cli.main import run_experiment
    from jaxresnet.comparison.compare import Comparison, compare
    from jaxresnet.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
    from jaxresnet.data.cifar10 import load_cifar10
    from jaxresnet.data.dataset import Dataset, Split
    from jaxresnet.data.synthetic import make_synthetic
    from jaxresnet.errors import UserError
    from jaxresnet.nn.resnet import ResNet, build_model, count_params
    from jaxresnet.optim.lookahead import lookahead
    from jaxresnet.optim.optimizers import make_optimizer
    from jaxresnet.optim.schedules import make_schedule
    from jaxresnet.recipes import intended, published
    from jaxresnet.training.fit import Result, fit
    from jaxresnet.training.predict import load_variables, predict

__version__ = "0.1.0"

_HOME = {
    "cli.experiment": ["Experiment"],
    "cli.main": ["run_experiment"],
    "comparison.compare": ["Comparison", "compare"],
    "config": ["AugmentConfig", "ModelConfig", "OptimConfig", "TrainConfig"],
    "data.cifar10": ["load_cifar10"],
    "data.dataset": ["Dataset", "Split"],
    "data.synthetic": ["make_synthetic"],
    "errors": ["UserError"],
    "nn.resnet": ["ResNet", "build_model", "count_params"],
    "optim.lookahead": ["lookahead"],
    "optim.optimizers": ["make_optimizer"],
    "optim.schedules": ["make_schedule"],
    "recipes": ["intended", "published"],
    "training.fit": ["Result", "fit"],
    "training.predict": ["load_variables", "predict"],
}
_MODULE_OF = {name: f"jaxresnet.{module}" for module, names in _HOME.items() for name in names}
_SUBPACKAGES = ("cli", "comparison", "data", "interop", "nn", "optim", "reporting", "results", "training")

__all__ = [
    "AugmentConfig",
    "Comparison",
    "Dataset",
    "Experiment",
    "ModelConfig",
    "OptimConfig",
    "ResNet",
    "Result",
    "Split",
    "TrainConfig",
    "UserError",
    "build_model",
    "compare",
    "count_params",
    "fit",
    "intended",
    "load_cifar10",
    "load_variables",
    "lookahead",
    "make_optimizer",
    "make_schedule",
    "make_synthetic",
    "predict",
    "published",
    "run_experiment",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    elif name in _SUBPACKAGES:
        value = import_module(f"jaxresnet.{name}")
    else:
        raise AttributeError(f"module 'jaxresnet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES, "__version__"])
