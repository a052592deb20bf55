"""What a person types and sees.

`main` runs an experiment script from top to bottom, `experiment` is what a script says, `options` reads the flags,
`exits` decides how a command ends, `commands` are those of `python -m jaxresnet`.
"""
