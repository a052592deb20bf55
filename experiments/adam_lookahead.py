"""Adam with and without Lookahead on CIFAR-10, batch 512.

$ python experiments/adam_lookahead.py --demo                        minutes on a CPU, synthetic data
$ python experiments/adam_lookahead.py                               the real thing, as it was meant
$ python experiments/adam_lookahead.py --protocol published          exactly what was published
$ python experiments/adam_lookahead.py --only adam_lookahead-weights Lookahead's slow against its fast weights
$ python experiments/adam_lookahead.py --only adam_lookahead-sync    sync periods 1, 5, 10 x slow step sizes 0.5, 0.8
"""

from dataclasses import replace

import jaxresnet as jr

LOOKAHEAD = jr.published["adam_512"].config
MAIN = {"Adam + Lookahead": LOOKAHEAD, "Adam": jr.published["adam_512_without_lookahead"].config}
SYNC = {
    f"k={k}, alpha={alpha}": replace(LOOKAHEAD, optim=replace(LOOKAHEAD.optim, sync_period=k, slow_step_size=alpha))
    for k in (1, 5, 10)
    for alpha in (0.5, 0.8)
}
WEIGHTS = {"slow weights": replace(LOOKAHEAD, eval_weights="slow"), "fast weights": LOOKAHEAD}


def as_intended(arm: str, config: jr.TrainConfig) -> jr.TrainConfig:
    meant = jr.intended(config)  # scores the slow weights
    return replace(meant, eval_weights="fast") if arm == "fast weights" else meant


COMPARISONS = {"adam_lookahead": MAIN, "adam_lookahead-weights": WEIGHTS, "adam_lookahead-sync": SYNC}
OPTIONAL = ("adam_lookahead-weights", "adam_lookahead-sync")
EXPERIMENT = jr.Experiment(__doc__, COMPARISONS, OPTIONAL, as_intended, demo_images=1536)

if __name__ == "__main__":
    jr.run_experiment(EXPERIMENT)
