"""All experiments, as published and as intended, into one folder with one page, report.html.

$ python experiments/run_all.py --demo                       minutes on a CPU, synthetic data
$ python experiments/run_all.py                              all; weeks on a CPU
$ python experiments/run_all.py --all                        also what a script leaves out without --all
$ python experiments/run_all.py --only schedulers batch_size some of it
$ python experiments/run_all.py --out results                into results/ instead of out/

Each comparison has the folder that its own script would give it, so what those have finished is not run again.
"""

import adam_lookahead
import batch_size
import final_model
import learning_rate
import model_parameters
import num_epochs
import schedulers
import sgd_vs_adam

import jaxresnet as jr

SCRIPTS = (
    adam_lookahead,
    batch_size,
    learning_rate,
    sgd_vs_adam,
    schedulers,
    num_epochs,
    model_parameters,
    final_model,
)

if __name__ == "__main__":
    jr.run_experiment(*(script.EXPERIMENT for script in SCRIPTS), description=__doc__, protocol="both")
