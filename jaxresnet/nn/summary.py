"""What a network is made of, without running it: layers, shapes, parameters and multiply-adds."""

from typing import NamedTuple

from jaxresnet.config import ModelConfig
from jaxresnet.errors import ConfigError
from jaxresnet.nn.resnet import count_params
from jaxresnet.recipes import PARAMETER_BUDGET


class Layer(NamedTuple):
    """shape: of the output for one image, (height, width, channels) or (features,). params: trainable numbers.
    macs: multiply-adds of the forward pass for one image; those of batch norm and additions are not counted."""

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    macs: int


def layers(config: ModelConfig) -> list[Layer]:
    """The layers in order, for 32x32 images, also of a configuration whose pool does not fit."""
    result: list[Layer] = []

    def conv_bn(name: str, kernel: int, side: int, features_in: int, features: int) -> None:
        weights = kernel * kernel * features_in * features
        shape = (side, side, features)
        result.append(Layer(name, f"conv {kernel}x{kernel}", shape, weights, weights * side * side))
        result.append(Layer(name.replace("conv", "bn"), "batch norm", shape, 2 * features, 0))

    side, width = 32, config.width
    conv_bn("conv1", 3, side, 3, width)
    for i, num_blocks in enumerate(config.stage_sizes):
        for j in range(num_blocks):
            features = config.width * 2**i
            halves = i > 0 and j == 0
            side = (side + 1) // 2 if halves else side
            block = f"stage{i + 1}.{j}"
            conv_bn(f"{block}.conv1", 3, side, width, features)
            conv_bn(f"{block}.conv2", 3, side, features, features)
            if halves or width != features:
                conv_bn(f"{block}.shortcut_conv", config.shortcut_kernel, side, width, features)
            width = features
    pool = config.pool_size
    result.append(Layer("pool", f"average {pool}x{pool}", (width,), 0, 0))
    weights = width * config.num_classes
    result.append(Layer("linear", "linear", (config.num_classes,), weights + config.num_classes, weights))
    return result


def count_macs(config: ModelConfig) -> int:
    """Multiply-adds of the forward pass for one 32x32 image. A training step costs about three times that."""
    return sum(layer.macs for layer in layers(config))


def summarise(config: ModelConfig) -> str:
    """The table that `python -m jaxresnet summary` prints: all layers, the parameters against the budget, the
    multiply-adds, and whether the network can run."""
    header = ("layer", "kind", "output", "parameters", "multiply-adds")
    rows = [(y.name, y.kind, " x ".join(map(str, y.shape)), f"{y.params:,}", f"{y.macs:,}") for y in layers(config)]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    template = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<<>>", widths, strict=True))
    total = count_params(config)
    over = total - PARAMETER_BUDGET
    budget = f"{over:,} over" if over > 0 else f"{-over:,} under"
    lines = [
        *(template.format(*row) for row in (header, *rows)),
        "",
        f"{total:,} parameters, {budget} the budget of {PARAMETER_BUDGET:,}",
        f"{count_macs(config):,} multiply-adds an image, forward",
    ]
    try:
        config.check_pool()
    except ConfigError as e:
        lines.append(f"cannot run: {e}")
    return "\n".join(lines)
