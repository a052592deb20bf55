from jaxresnet.optim.optimizers import Hypers, at_step, epoch_hypers, hypers_of  # noqa: F401
