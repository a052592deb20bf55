"""SGD against Adam on CIFAR-10, batch 128: both in Lookahead, as published, and bare.

$ python experiments/sgd_vs_adam.py --demo                  minutes on a CPU, synthetic data
$ python experiments/sgd_vs_adam.py                         as it was meant, 30 epochs each
$ python experiments/sgd_vs_adam.py --protocol both         and as it was published, one after the other
"""

from dataclasses import replace

import jaxresnet as jr

SGD, ADAM = jr.published["sgd_128"].config, jr.published["adam"].config  # 30 and 31 epochs


def bare(config: jr.TrainConfig) -> jr.TrainConfig:
    return replace(config, optim=replace(config.optim, lookahead=False))


def as_intended(arm: str, config: jr.TrainConfig) -> jr.TrainConfig:
    return replace(jr.intended(config), num_epochs=30)


ARMS = {"SGD + Lookahead": SGD, "Adam + Lookahead": ADAM, "SGD": bare(SGD), "Adam": bare(ADAM)}
EXPERIMENT = jr.Experiment(__doc__, {"sgd_vs_adam": ARMS}, as_intended=as_intended)

if __name__ == "__main__":
    jr.run_experiment(EXPERIMENT)
