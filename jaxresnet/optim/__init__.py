"""The optimiser: `schedules` computes its numbers for every step on the host, `optimizers` makes SGD, Adam or AdamW of
them, and `lookahead` wraps any of these. All are Optax transformations."""
