"""Learning rates 1e-1, 1e-2, 1e-3 and 1e-6 on CIFAR-10: Adam in Lookahead, batch 256. One program serves all four.

$ python experiments/learning_rate.py --demo                  minutes on a CPU, synthetic data
$ python experiments/learning_rate.py                         as it was meant
$ python experiments/learning_rate.py --protocol both         and as it was published, one after the other
"""

import jaxresnet as jr

RUNS = {"lr 1e-1": "adam_256_lr_1", "lr 1e-2": "adam_256", "lr 1e-3": "adam_256_lr_3", "lr 1e-6": "adam_256_lr_6"}
ARMS = {arm: jr.published[name].config for arm, name in RUNS.items()}
EXPERIMENT = jr.Experiment(__doc__, {"learning_rate": ARMS})

if __name__ == "__main__":
    jr.run_experiment(EXPERIMENT)
