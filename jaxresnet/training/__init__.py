"""One run. Read `fit` first, from top to bottom, then `steps`: one training step, one evaluation step.

`engine` holds the programs that a run needs, `devices` maps them over several, `compilation` says how XLA compiles,
`packing` keeps the state as vectors while it trains. `state` and `metrics` are what is carried from step to step.
`checkpoint` keeps a run on disk, `resume` takes it up again, and `predict` uses its weights.
"""
