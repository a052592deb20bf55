"""The network on a CPU: the same function of the same variables as `resnet.ResNet`, to rounding.

`layout` says how activations lie in memory, `conv` multiplies their windows with kernels, `units` are a stem, a block
and an average with gradients of their own, and `network` puts them together as a config says."""
