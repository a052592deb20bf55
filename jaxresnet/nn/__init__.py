"""The network, in Flax NNX: `resnet` puts it together from `initializers` and `batch_norm`, `summary` counts its
parameters and multiply-adds, and `cpu` holds what makes it fast on CPUs. No other room knows Flax."""
