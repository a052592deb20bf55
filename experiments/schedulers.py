"""Constant, cosine and OneCycle learning rates on CIFAR-10: Adam without Lookahead, 31 epochs, batch 512 and 128.

$ python experiments/schedulers.py --demo                  minutes on a CPU, synthetic data
$ python experiments/schedulers.py                         as it was meant: schedules move every step, over the run
$ python experiments/schedulers.py --protocol both         and as it was published, one after the other

As published, schedules move once an epoch and over the wrong length: OneCycle then is a constant 4e-4, and cosine
hardly decays. Its published cosine runs have Lookahead or 51 epochs, so only OneCycle's figures belong here.

OneCycle is PyTorch's, which cycles Adam's b1 too, from 0.95 to 0.85 and back (as published it stays at 0.95); under the
other two b1 is 0.9.
"""

from dataclasses import replace

import jaxresnet as jr


def arms(one_cycle: jr.TrainConfig) -> dict[str, jr.TrainConfig]:
    length = 50_000 // one_cycle.batch_size
    cosine = replace(one_cycle.optim, schedule="cosine", schedule_length=length, cycle_momentum=False)
    constant = replace(cosine, schedule="constant", schedule_length=None)
    return {
        "constant": replace(one_cycle, optim=constant),
        "cosine": replace(one_cycle, optim=cosine),
        "OneCycle": one_cycle,
    }


COMPARISONS = {
    "schedulers-512": arms(jr.published["adam_one_cycle"].config),
    "schedulers-128": arms(jr.published["adam_one_cycle_128"].config),
}
EXPERIMENT = jr.Experiment(__doc__, COMPARISONS)

if __name__ == "__main__":
    jr.run_experiment(EXPERIMENT)
