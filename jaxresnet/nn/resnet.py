"""ResNet for 32x32 images (He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.2 with basic blocks).

The only file that knows Flax. `ResNet` is an ordinary `nnx.Module` to call eagerly and to edit; training uses
`build_model`, which turns it into two pure functions over dictionaries of arrays.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import Array

from jaxresnet.config import ModelConfig
from jaxresnet.nn.batch_norm import at_least_float32, batch_norm, relu
from jaxresnet.nn.cpu.conv import conv_for

BATCH_NORM_EPS = 1e-5
BATCH_NORM_DECAY = 0.9  # PyTorch's momentum of 0.1 is the weight of the new value, 1 - decay


def pytorch_uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, fan_in: int | None = None) -> Array:
    """PyTorch's default for convolutions and linear layers: U(-b, b) with b = sqrt(1 / fan_in).

    fan_in: inputs to one output; None takes it from a kernel's shape, (..., in, out).
    Drawn flat, then reshaped: XLA:CPU took 4 s to compile a four-dimensional draw and 0.3 s for this.
    """
    bound = (math.prod(shape[:-1]) if fan_in is None else fan_in) ** -0.5
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


def scaled_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, *, gain: float) -> Array:
    """N(0, gain / fan_in), not truncated. fan_in: inputs to one output, of a kernel of `shape`, (..., in, out)."""
    deviation = math.sqrt(gain / math.prod(shape[:-1]))
    return deviation * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)  # flat, as above


class Initializer(NamedTuple):
    """How weights start. kernel: draws the kernel of a convolution or of the linear layer. bias: the linear layer's,
    given its fan_in. Both are called as (key, shape, dtype)."""

    kernel: Callable[..., Array]
    bias: Callable[[int], Callable[..., Array]]


INITIALIZERS = {
    "pytorch": Initializer(pytorch_uniform, lambda fan_in: partial(pytorch_uniform, fan_in=fan_in)),
    # He et al. 2015, https://arxiv.org/abs/1502.01852, eq. 10, in every layer. Its factor of 2 makes up for the ReLU in
    # front of a layer: the linear one has that too, and the first has none but takes it all the same, as in the paper.
    # PyTorch's kaiming_normal_ is the same; Flax's he_normal has the same variance, but is truncated.
    "he": Initializer(partial(scaled_normal, gain=2.0), lambda fan_in: jax.nn.initializers.zeros),
    # LeCun et al. 1998, "Efficient BackProp", section 4.6.
    "lecun": Initializer(partial(scaled_normal, gain=1.0), lambda fan_in: jax.nn.initializers.zeros),
}


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) as PyTorch computes it.

    Differs from `nnx.BatchNorm` in two ways: the running variance is the unbiased one, and train or inference is an
    argument. Statistics are taken in float32 where the input has less, over the batch of all devices when
    `axis_name` names the mapped axis.
    """

    def __init__(self, num_features: int, axis_name: str | None = None, bits: bool = False):
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
        self.axis_name, self.bits = axis_name, bits

    def __call__(self, x: Array, train: bool) -> Array:
        """x: (B, H, W, C) -> the same shape and dtype. With train=True the running statistics move."""
        if not train:
            scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + BATCH_NORM_EPS)
            return (x * scale + (self.bias[...] - self.mean[...] * scale)).astype(x.dtype)
        y, mean, var = batch_norm(x, self.scale[...], self.bias[...], BATCH_NORM_EPS, self.axis_name, self.bits)
        count = x.size // x.shape[-1] * (1 if self.axis_name is None else jax.lax.axis_size(self.axis_name))
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] = BATCH_NORM_DECAY * self.mean[...] + (1 - BATCH_NORM_DECAY) * mean
        self.var[...] = BATCH_NORM_DECAY * self.var[...] + (1 - BATCH_NORM_DECAY) * unbiased
        return y


class Context(NamedTuple):
    """What every layer of a network needs to know. axis_name: the mapped axis to synchronise batch statistics over,
    None for one device. platform: where it will run; on "cpu" convolutions are those of `conv`.
    initializer: a key of `INITIALIZERS`."""

    rngs: nnx.Rngs
    dtype: Any
    axis_name: str | None
    platform: str | None
    initializer: str = "pytorch"

    @property
    def bits(self) -> bool:
        """Whether activations are best kept as bits: in bfloat16 on a CPU (`chunks`)."""
        return self.platform == "cpu" and self.dtype == jnp.bfloat16


def _promote_images(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """What `nnx.Conv` does to (images, kernel, bias), but that it leaves the kernel as it is."""
    images, kernel, bias = arrays
    return images.astype(dtype), kernel, bias


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
        kernel_init=INITIALIZERS[context.initializer].kernel,
        conv_general_dilated=conv_for(context.platform, context.dtype),
        # The convolutions for CPU round the kernel themselves, where they do, and keep its gradient in float32.
        promote_dtype=_promote_images if context.platform == "cpu" else promote_dtype,
        rngs=context.rngs,
    )


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with batch norm, added to the input (or to its projection where the shape changes)."""

    def __init__(self, in_features: int, features: int, stride: int, shortcut_kernel: int, context: Context):
        self.conv1 = conv(in_features, features, 3, stride, context)
        self.bn1 = BatchNorm(features, context.axis_name, context.bits)
        self.conv2 = conv(features, features, 3, 1, context)
        self.bn2 = BatchNorm(features, context.axis_name, context.bits)
        self.bits = context.bits
        self.project = stride != 1 or in_features != features
        if self.project:
            self.shortcut_conv = conv(in_features, features, shortcut_kernel, stride, context)
            self.shortcut_bn = BatchNorm(features, context.axis_name, context.bits)

    def __call__(self, x: Array, train: bool) -> Array:
        """x: (B, H, W, C) -> (B, H / stride, W / stride, features)."""
        y = relu(self.bn1(self.conv1(x), train), bits=self.bits)
        y = self.bn2(self.conv2(y), train)
        shortcut = self.shortcut_bn(self.shortcut_conv(x), train) if self.project else x
        return relu(y, shortcut, bits=self.bits)


class ResNet(nnx.Module):
    """A 3x3 stem, stages of basic blocks (every stage but the first halves the map and doubles the channels),
    an average pool over what is left, and one linear layer.

    axis_name, platform: see `Context`. precision "auto" is float32 here: only a run knows its devices.
    """

    def __init__(
        self, config: ModelConfig, *, rngs: nnx.Rngs, axis_name: str | None = None, platform: str | None = None
    ):
        self.dtype = jnp.dtype("float32" if config.precision == "auto" else config.precision)
        context = Context(rngs, self.dtype, axis_name, platform, config.initializer)
        self.config, self.bits = config, context.bits
        self.conv1 = conv(3, config.width, 3, 1, context)
        self.bn1 = BatchNorm(config.width, axis_name, context.bits)
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
        kernel_init, bias_init = INITIALIZERS[config.initializer]
        self.linear = nnx.Linear(
            in_features, config.num_classes, kernel_init=kernel_init, bias_init=bias_init(in_features), rngs=rngs
        )

    def __call__(self, images: Array, train: bool) -> Array:
        """images: (B, 32, 32, 3) float, normalised -> logits (B, num_classes) float32.

        Raises ConfigError when config.pool_size does not fit the last feature map.
        """
        self.config.check_pool(images.shape[1])
        x = images.astype(self.dtype)
        x = relu(self.bn1(self.conv1(x), train), bits=self.bits)
        for blocks in self.stages:
            for block in blocks:
                x = block(x, train)
        x = at_least_float32(x).mean((1, 2))  # the pool covers the whole map, see check_pool
        return self.linear(x)


class Apply(Protocol):
    def __call__(self, variables: dict, images: Array, train: bool) -> tuple[Array, dict]: ...


class Init(Protocol):
    def __call__(self, key: Array) -> dict: ...


class Model(NamedTuple):
    """The network as two pure functions over {"params": ..., "batch_stats": ...}, nested dictionaries of float32.

    init(key) -> variables. key: a typed PRNG key.
    apply(variables, images, train) -> (logits (B, num_classes) float32, variables): with train=True the batch's own
    statistics normalise it and the returned batch_stats have moved; with train=False both stay.
    """

    init: Init
    apply: Apply


def build_model(config: ModelConfig, axis_name: str | None = None, platform: str | None = None) -> Model:
    """See `Model`. axis_name: the mapped axis that batch statistics are averaged over, None for one device.
    platform: "cpu" where it will run there, for faster convolutions; the numbers are the same to rounding, in
    bfloat16 to its rounding."""

    def build(rngs: nnx.Rngs) -> ResNet:
        return ResNet(config, rngs=rngs, axis_name=axis_name, platform=platform)

    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graphdef, *_ = nnx.split(abstract, nnx.Param, nnx.BatchStat)

    def variables_of(module: ResNet) -> dict:
        params, batch_stats = nnx.state(module, nnx.Param, nnx.BatchStat)
        return {"params": _plain(params), "batch_stats": _plain(batch_stats)}

    def init(key: Array) -> dict:
        return variables_of(build(nnx.Rngs(key)))

    def apply(variables: dict, images: Array, train: bool) -> tuple[Array, dict]:
        module = nnx.merge(graphdef, _nnx_state(variables["params"]), _nnx_state(variables["batch_stats"]))
        logits = module(images, train)
        return logits, variables_of(module)

    return Model(init, apply)


def _plain(state: Any) -> dict:
    """An NNX state as nested dictionaries with string keys (list positions become "0", "1", ...) and bare arrays."""

    def strings(tree: Any) -> Any:
        return {str(k): strings(v) for k, v in tree.items()} if isinstance(tree, dict) else tree

    return strings(nnx.to_pure_dict(nnx.as_pure(state)))


def _nnx_state(variables: dict) -> nnx.State:
    """The inverse of `_plain`: NNX numbers the entries of a list with integers."""

    def numbers(tree: Any) -> Any:
        return {int(k) if k.isdigit() else k: numbers(v) for k, v in tree.items()} if isinstance(tree, dict) else tree

    return nnx.State(numbers(variables))


def count_params(config: ModelConfig) -> int:
    """Trainable parameters: 4,903,242 for the default. Nothing is computed or allocated."""
    model = build_model(config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
