"""Runs on disk, and what they say; no JAX here. store: runs and comparisons. tree: a folder around several. schemas:
evaluation.json and measurement.json. statistics, findings and reproduction: the numbers, and what they mean in words.
"""
