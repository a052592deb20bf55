"""Adam with and without Lookahead on CIFAR-10, batch 512, as in the published project.

python experiments/adam_lookahead.py --demo                  minutes on a CPU, synthetic data
python experiments/adam_lookahead.py                         the real thing, as it was meant
python experiments/adam_lookahead.py --protocol published    exactly what was published
"""

from dataclasses import replace

import jaxresnet as jr


def arms(config: jr.TrainConfig) -> dict[str, jr.TrainConfig]:
    return {
        "Adam + Lookahead": replace(config, optim=replace(config.optim, lookahead=True)),
        "Adam": replace(config, optim=replace(config.optim, lookahead=False)),
    }


if __name__ == "__main__":
    runs = {"Adam + Lookahead": jr.published["adam_512"], "Adam": jr.published["adam_512_without_lookahead"]}
    published = {arm: {"best": run.best, "source": jr.SOURCE} for arm, run in runs.items()}
    jr.run_experiment("adam_lookahead", __doc__, jr.published["adam_512"].config, arms, published)
