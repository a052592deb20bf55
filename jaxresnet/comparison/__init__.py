"""Arms times seeds, trained and set side by side.

`plan`: what is to be done, checked. `compare`: doing it. `executors`: one run of a store, and many on the devices of
this process. `progress`: what is printed while runs train. `evaluation`, `model_costs`: what else is measured.
`imports`: results of the former layout.
"""
