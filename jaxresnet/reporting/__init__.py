"""What is drawn from results, without training and without JAX. `report` is the entrance, `page` its HTML.

`comparison`, `reproduction`, `evaluation` and `models` hold the tables, notes and figures of one thing each. `tables`
and `figures` hold what they share, and the learning curves.
"""
