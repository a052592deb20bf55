from jaxresnet.optim.optimizers import Hypers, at_step, epoch_hypers, hypers_of, make_schedule  # noqa: F401
