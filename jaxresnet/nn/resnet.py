"""ResNet for 32x32 images (He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2 with basic blocks).

`ResNet` is an ordinary `nnx.Module` to call eagerly and to edit. Training uses `build_model`, which turns it into two
pure functions over dictionaries of arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxresnet.config import ModelConfig
from jaxresnet.nn.batch_norm import BatchNorm, at_least_float32
from jaxresnet.nn.cpu import network as cpu
from jaxresnet.nn.initializers import INITIALIZERS, Initializer


class Context(NamedTuple):
    """What every layer needs to know.

    dtype: of activations and products. axis_name: the mapped axis over which batch statistics are taken, None for one
    device."""

    rngs: nnx.Rngs
    initializer: Initializer
    dtype: Any
    axis_name: str | None


def conv(in_features: int, features: int, kernel: int, stride: int, context: Context) -> nnx.Conv:
    """A convolution without bias, padded so that stride 1 keeps the size and stride 2 halves it, rounding up.

    The padding is explicit: "SAME" at stride 2 pads (0, 1), which would shift a 3x3 path one pixel off the 1x1
    shortcut beside it.
    """
    # A 2x2 kernel has no centre: there "SAME" pads nothing at stride 2 and an even size, else one pixel at the end.
    padding = "SAME" if kernel == 2 else ((kernel // 2,) * 2,) * 2
    return nnx.Conv(
        in_features,
        features,
        (kernel, kernel),
        strides=stride,
        padding=padding,
        use_bias=False,
        dtype=context.dtype,
        kernel_init=context.initializer.kernel,
        rngs=context.rngs,
    )


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with batch norm, added to the input, or to its projection where the shape changes."""

    def __init__(self, in_features: int, features: int, stride: int, shortcut_kernel: int, context: Context):
        self.conv1 = conv(in_features, features, 3, stride, context)
        self.bn1 = BatchNorm(features, context.axis_name)
        self.conv2 = conv(features, features, 3, 1, context)
        self.bn2 = BatchNorm(features, context.axis_name)
        self.project = stride != 1 or in_features != features
        if self.project:
            self.shortcut_conv = conv(in_features, features, shortcut_kernel, stride, context)
            self.shortcut_bn = BatchNorm(features, context.axis_name)

    def __call__(self, x: Array, train: bool) -> Array:
        """x: (B, H, W, C) -> (B, H / stride, W / stride, features)."""
        y = nnx.relu(self.bn1(self.conv1(x), train))
        y = self.bn2(self.conv2(y), train)
        shortcut = self.shortcut_bn(self.shortcut_conv(x), train) if self.project else x
        return nnx.relu(y + shortcut)


class ResNet(nnx.Module):
    """A 3x3 stem, stages of basic blocks (every stage but the first halves the map and doubles the channels), an
    average pool over what is left, and one linear layer.

    axis_name: see `Context`.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, axis_name: str | None = None):
        self.config = config
        self.dtype = dtype_of(config)
        initializer = INITIALIZERS[config.initializer]
        context = Context(rngs, initializer, self.dtype, axis_name)

        self.conv1 = conv(3, config.width, 3, 1, context)
        self.bn1 = BatchNorm(config.width, axis_name)
        self.stages: nnx.List = nnx.List()
        in_features = config.width
        for i, num_blocks in enumerate(config.stage_sizes):
            features = config.width * 2**i
            blocks: nnx.List = nnx.List()
            for j in range(num_blocks):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(BasicBlock(in_features, features, stride, config.shortcut_kernel, context))
                in_features = features
            self.stages.append(blocks)
        self.linear = nnx.Linear(
            in_features,
            config.num_classes,
            kernel_init=initializer.kernel,
            bias_init=initializer.bias(in_features),
            rngs=rngs,
        )

    def __call__(self, images: Array, train: bool) -> Array:
        """images: (B, 32, 32, 3) float, normalised -> logits (B, num_classes) float32.

        Raises ConfigError when config.pool_size does not fit the last feature map.
        """
        self.config.check_pool(images.shape[1])
        x = images.astype(self.dtype)
        x = nnx.relu(self.bn1(self.conv1(x), train))
        for blocks in self.stages:
            for block in blocks:
                x = block(x, train)
        x = at_least_float32(x).mean((1, 2))  # the pool covers the whole map, see check_pool
        return self.linear(x)


def dtype_of(config: ModelConfig) -> Any:
    """Of the activations. Precision "auto" is float32 here: only a run knows its devices."""
    return jnp.dtype("float32" if config.precision == "auto" else config.precision)


class Model(NamedTuple):
    """The network as two pure functions over {"params": ..., "batch_stats": ...}, nested dictionaries of float32.

    init(key) -> variables. key: a typed PRNG key.
    apply(variables, images, train) -> (logits (B, num_classes) float32, variables): with train=True the batch's own
    statistics normalise it and the returned batch_stats have moved; with train=False both stay.
    """

    init: Callable[[Array], dict]
    apply: Callable[[dict, Array, bool], tuple[Array, dict]]


def build_model(config: ModelConfig, axis_name: str | None = None, platform: str | None = None) -> Model:
    """See `Model`. axis_name: the mapped axis over which batch statistics are taken, None for one device.
    platform: "cpu" where it will run there: the same function of the same variables, to rounding, from `nn.cpu`. In
    bfloat16 that has first derivatives alone, and in training alone; NotImplementedError is raised for others."""

    def build(rngs: nnx.Rngs) -> ResNet:
        return ResNet(config, rngs=rngs, axis_name=axis_name)

    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graphdef, *_ = nnx.split(abstract, nnx.Param, nnx.BatchStat)

    def variables_of(module: ResNet) -> dict:
        params, batch_stats = nnx.state(module, nnx.Param, nnx.BatchStat)
        return {"params": plain(params), "batch_stats": plain(batch_stats)}

    def plain(state: nnx.State) -> dict:
        return _renamed(nnx.to_pure_dict(nnx.as_pure(state)), str)

    def state_of(variables: dict) -> nnx.State:
        return nnx.State(_renamed(variables, lambda key: int(key) if key.isdigit() else key))

    def init(key: Array) -> dict:
        return variables_of(build(nnx.Rngs(key)))

    def apply(variables: dict, images: Array, train: bool) -> tuple[Array, dict]:
        module = nnx.merge(graphdef, state_of(variables["params"]), state_of(variables["batch_stats"]))
        logits = module(images, train)
        return logits, variables_of(module)

    def apply_on_cpu(variables: dict, images: Array, train: bool) -> tuple[Array, dict]:
        if not len(images) or images.shape[1] != images.shape[2]:
            return apply(variables, images, train)
        return cpu.apply(config, dtype_of(config), axis_name, variables, images, train)

    return Model(init, apply_on_cpu if platform == "cpu" else apply)


def _renamed(tree: Any, rename: Callable[[Any], Any]) -> Any:
    """Nested dictionaries with other keys: NNX counts the items of a list by numbers, variables by "0", "1", ..."""
    return {rename(k): _renamed(v, rename) for k, v in tree.items()} if isinstance(tree, dict) else tree


def count_params(config: ModelConfig) -> int:
    """Trainable parameters: 4,903,242 for the default. Nothing is computed or allocated."""
    model = build_model(config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
