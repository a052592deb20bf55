"""The eight published configurations, and the full ResNet-18 narrowed to under five million parameters, side by side.

$ python experiments/model_parameters.py --demo       step times of narrow networks: a minute on a CPU
$ python experiments/model_parameters.py              parameters, multiply-adds, which ones run, and step times
$ python experiments/model_parameters.py --train      then trains all that run, otherwise alike, for their accuracy
"""

from dataclasses import replace
from functools import partial

import jaxresnet as jr
from jaxresnet.comparison.model_costs import measure_models
from jaxresnet.recipes import narrowed_resnet18, problem_here, published_networks

MODELS = {**published_networks, "narrowed ResNet-18": narrowed_resnet18}
CHOSEN = jr.published["adam_512"].config
ARMS = {
    name: replace(CHOSEN, model=replace(model, precision=CHOSEN.model.precision))
    for name, model in MODELS.items()
    if not problem_here(model)
}
EXPERIMENT = jr.Experiment(
    __doc__,
    {"model_parameters-trained": ARMS},
    optional=("model_parameters-trained",),
    measurements={"model_parameters": partial(measure_models, MODELS)},
)

if __name__ == "__main__":
    jr.run_experiment(EXPERIMENT)
