"""The published final model on CIFAR-10 (Adam in Lookahead, batch 512): trained, then its best epoch evaluated.

$ python experiments/final_model.py --demo                        minutes on a CPU, synthetic data
$ python experiments/final_model.py                               as it was meant
$ python experiments/final_model.py --protocol published          exactly what was published

Beside the usual table and figure: confusion matrix, accuracy of each class, and a sheet of the worst mistakes.
"""

import jaxresnet as jr
from jaxresnet.comparison.evaluation import evaluate_runs

ARMS = {"final model": jr.published["adam_512"].config}
EXPERIMENT = jr.Experiment(__doc__, {"final_model": ARMS}, demo_images=1024, after=evaluate_runs)

if __name__ == "__main__":
    jr.run_experiment(EXPERIMENT)
