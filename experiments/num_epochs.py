"""10, 30 and 51 epochs on CIFAR-10: Adam in Lookahead, batch 512.

$ python experiments/num_epochs.py --demo                  minutes on a CPU, synthetic data
$ python experiments/num_epochs.py                         as it was meant: each schedule over its own length
$ python experiments/num_epochs.py --protocol both         and as it was published, one after the other

As published, the schedule does not know how long the run is: its arms are the published run, cut at 10, 30 and 51.
"""

from dataclasses import replace

import jaxresnet as jr

LONG = jr.published["adam_512"].config
ARMS = {f"{num_epochs} epochs": replace(LONG, num_epochs=num_epochs) for num_epochs in (10, 30, 51)}
EXPERIMENT = jr.Experiment(__doc__, {"num_epochs": ARMS})

if __name__ == "__main__":
    jr.run_experiment(EXPERIMENT)
