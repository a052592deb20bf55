"""Batch sizes 128, 256 and 512 on CIFAR-10: Adam in Lookahead at learning rate 1e-2, whatever the batch size.

$ python experiments/batch_size.py --demo                  minutes on a CPU, synthetic data
$ python experiments/batch_size.py                         as it was meant
$ python experiments/batch_size.py --protocol both         and as it was published, one after the other

As published, an epoch is 391, 196 and 98 steps at the same learning rate: batch size and number of steps go together.
"""

import jaxresnet as jr

ARMS = {f"batch {size}": jr.published[f"adam_{size}"].config for size in (128, 256, 512)}
EXPERIMENT = jr.Experiment(__doc__, {"batch_size": ARMS})

if __name__ == "__main__":
    jr.run_experiment(EXPERIMENT)
