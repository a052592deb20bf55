from jaxresnet.optim.optimizers import LookaheadState, lookahead, slow_params_of  # noqa: F401
