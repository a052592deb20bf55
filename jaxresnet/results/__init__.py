"""Runs on disk, and what they say; no JAX here.

`store`: runs and comparisons. `tree`: a folder around several. `schemas`: what comparison.json, evaluation.json and
measurement.json hold. `statistics`, `findings` and `reproduction`: the numbers, and what they mean in words.
"""
