"""A ResNet-18 under five million parameters in JAX, trained on CIFAR-10 and compared honestly.

    import jaxresnet as jr

    result = jr.fit(jr.TrainConfig(num_epochs=10), jr.load_cifar10())

Importing this touches no device and sets nothing. What only some need (TensorFlow Datasets, Matplotlib, Orbax, tyro)
is imported where it is used.
"""

from jaxresnet.cli.experiment import Experiment
from jaxresnet.cli.main import run_experiment
from jaxresnet.comparison.compare import Comparison, Hooks, RunsFailed, compare
from jaxresnet.comparison.evaluate_runs import evaluate_runs
from jaxresnet.comparison.model_costs import measure_models, problem_here, published_models, widest_under_budget
from jaxresnet.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig, from_dict, to_dict
from jaxresnet.data.augment import EpochPlan, augment_batch, epoch_plan
from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.data.dataset import Dataset, Split
from jaxresnet.data.synthetic import make_synthetic
from jaxresnet.errors import ConfigError, DataError, NonFiniteError, ResultsError, UserError, WeightsError
from jaxresnet.interop.torch import from_torch, to_torch
from jaxresnet.interop.weight_files import convert
from jaxresnet.nn.resnet import Model, ResNet, build_model, count_params
from jaxresnet.nn.summary import count_macs, summarise
from jaxresnet.optim.lookahead import lookahead
from jaxresnet.optim.optimizers import make_optimizer
from jaxresnet.optim.schedules import make_momentum_schedule, make_schedule
from jaxresnet.recipes import SOURCE, Published, intended, published
from jaxresnet.reporting.report import Report, TreeReport, render, render_tree
from jaxresnet.training.compilation import use_compilation_cache
from jaxresnet.training.fit import Interrupted, Result, fit
from jaxresnet.training.predict import load_variables, predict
from jaxresnet.training.processes import distributed
from jaxresnet.training.state import TrainState, create_train_state, eval_variables

__version__ = "0.1.0"

__all__ = [
    "SOURCE",
    "AugmentConfig",
    "Comparison",
    "ConfigError",
    "DataError",
    "Dataset",
    "EpochPlan",
    "Experiment",
    "Hooks",
    "Interrupted",
    "Model",
    "ModelConfig",
    "NonFiniteError",
    "OptimConfig",
    "Published",
    "Report",
    "ResNet",
    "Result",
    "ResultsError",
    "RunsFailed",
    "Split",
    "TrainConfig",
    "TrainState",
    "TreeReport",
    "UserError",
    "WeightsError",
    "augment_batch",
    "build_model",
    "compare",
    "convert",
    "count_macs",
    "count_params",
    "create_train_state",
    "distributed",
    "epoch_plan",
    "eval_variables",
    "evaluate_runs",
    "fit",
    "from_dict",
    "from_torch",
    "intended",
    "load_cifar10",
    "load_variables",
    "lookahead",
    "make_momentum_schedule",
    "make_optimizer",
    "make_schedule",
    "make_synthetic",
    "measure_models",
    "predict",
    "problem_here",
    "published",
    "published_models",
    "render",
    "render_tree",
    "run_experiment",
    "summarise",
    "to_dict",
    "to_torch",
    "use_compilation_cache",
    "widest_under_budget",
]
