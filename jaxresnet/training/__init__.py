"""One run. Read `fit` first, from top to bottom, then `steps`: one training step, one evaluation step.

`engine` maps the steps over devices and compiles them, with the options of `compilation`; on GPUs `packing` keeps the
state as vectors. `state` and `metrics` say what is carried from step to step. `checkpoint` keeps a run on disk, `resume`
takes it up again, and `predict` uses its weights.
"""
