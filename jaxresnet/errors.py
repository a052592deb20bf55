"""The errors a user can cause. Scripts print their message and exit with status 2, without a traceback."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do."""


class DataError(UserError):
    """A data set that is missing, damaged, or not what it claims to be."""


class ConfigError(UserError, ValueError):
    """A configuration value out of its range, or a combination that cannot work."""


class ResultsError(UserError):
    """A results folder that belongs to something else, or is damaged."""


class NonFiniteError(UserError):
    """The loss became infinite or NaN: the message names the epoch and the step."""


class WeightsError(UserError):
    """Weights that do not fit the network, or a file of them that cannot be read."""
