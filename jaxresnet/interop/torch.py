"""Weights of the same network in PyTorch: its state dict to our variables and back, to the bit.

A state dict names its tensors as the published project does: conv1, bn1, layer1.0.conv1, ..., layer2.0.shortcut.0 (a
convolution) and .1 (its batch norm), ..., linear. Only `to_torch` needs PyTorch.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxresnet.config import ModelConfig
from jaxresnet.errors import ConfigError, UserError, WeightsError
from jaxresnet.hardware import all_devices
from jaxresnet.nn.resnet import build_model

_LAYER_NAMES = {"shortcut_conv": "shortcut.0", "shortcut_bn": "shortcut.1"}
_ARRAY_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

# Permutations by the number of axes: kernels (height, width, in, out) to (out, in, height, width), the linear layer
# (in, out) to (out, in), and back.
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}

# Where a checkpoint keeps the state dict: the published project's key first, then other usual ones.
_KEYS = ("net", "state_dict", "model", "model_state_dict")
# What wrappers put before each name: DataParallel and AveragedModel, torch.compile, Lightning's modules.
_PREFIXES = re.compile(r"^((module|_orig_mod|model|net)\.)*")

# Each batch norm of PyTorch counts its training steps, and AveragedModel its averages. Neither count has an effect.
_COUNTER = "num_batches_tracked"
_COUNTERS = (_COUNTER, "n_averaged")


def from_torch(state_dict: Mapping[str, Any], config: ModelConfig | None = None, key: str | None = None) -> dict:
    """PyTorch's weights as {"params", "batch_stats"}: nested dictionaries of float32 arrays, as `Model.init` gives.

    state_dict: name -> tensor or NumPy array, or a checkpoint that holds one, as a published file's {"net": state_dict,
    "acc": ..., "epoch": ...}. The prefixes of DataParallel, AveragedModel, torch.compile and Lightning are ignored, and
    so are their counters.
    config: the network; None reads it off the tensors. key: which state dict of a checkpoint, see `state_dict_keys`.
    float32 keeps every bit, half precision is widened, float64 is rounded. The arrays are copies.
    Raises WeightsError that names every tensor that is missing, extra, of another shape or not of floating point.
    """
    all_devices()  # raises a user's error where there is none
    arrays = _arrays(state_dict_of(state_dict, key))
    config = config or _network_of(arrays)
    _check(arrays, config)

    def one(path: Any, _: Any) -> jax.Array:
        array = arrays[_torch_name(path)]
        return jnp.array(array.transpose(_FROM_TORCH[array.ndim]), jnp.float32)  # copies, unlike jnp.asarray

    return jax.tree_util.tree_map_with_path(one, _abstract_variables(config))


def to_torch(variables: Mapping[str, Any], num_batches_tracked: int = 0) -> dict[str, Any]:
    """The inverse of `from_torch`: a state dict for `load_state_dict(..., strict=True)` of the same network.

    variables: {"params", "batch_stats"}. num_batches_tracked: training steps, for the counter of every batch norm.
    The tensors are contiguous copies on the CPU. Raises UserError where PyTorch is missing or older than 2.6,
    WeightsError for variables of another network.
    """
    torch = require_torch()
    return {name: torch.from_numpy(array) for name, array in torch_arrays(variables, num_batches_tracked).items()}


def torch_arrays(variables: Mapping[str, Any], num_batches_tracked: int = 0) -> dict[str, np.ndarray]:
    """What `to_torch` gives, as NumPy arrays: float32, the counters int64 scalars. Needs no PyTorch."""
    if not isinstance(variables, Mapping) or variables.keys() != {"params", "batch_stats"}:
        raise WeightsError(
            'variables: not {"params": ..., "batch_stats": ...}; give what Model.init or load_variables do'
        )
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf, np.float32)
        arrays[_torch_name(path)] = np.array(array.transpose(_TO_TORCH[array.ndim]), order="C")
    _check(arrays, _network_of(arrays))
    batch_norms = [name.removesuffix("running_mean") for name in arrays if name.endswith("running_mean")]
    counters = {f"{name}{_COUNTER}": np.array(num_batches_tracked, np.int64) for name in batch_norms}
    return dict(sorted((arrays | counters).items()))


def state_dict_keys(checkpoint: Mapping[str, Any]) -> list[str]:
    """The keys of the state dicts inside a checkpoint, first the one that is read where none is asked for. Empty for a
    state dict itself."""
    found = [str(name) for name, value in checkpoint.items() if _holds_tensors(value)]
    usual = [key for key in _KEYS if key in found]
    return [] if _holds_tensors(checkpoint) else usual + [key for key in found if key not in usual]


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(str(name).endswith((".weight", ".bias")) for name in value)


def state_dict_of(checkpoint: Mapping[str, Any], key: str | None = None) -> Mapping[str, Any]:
    """The state dict inside a checkpoint, that of `key` or a usual one; a state dict itself as it is.

    Raises WeightsError where there is none of that key."""
    if not isinstance(checkpoint, Mapping):
        raise WeightsError(f"{type(checkpoint).__name__} is not a state dict, name -> tensor; give net.state_dict()")
    keys = state_dict_keys(checkpoint)
    if key is not None and key not in keys:
        raise WeightsError(f"key {key!r}: holds no state dict; {f'choose of {keys}' if keys else 'leave it out'}")
    return checkpoint[key or keys[0]] if keys else checkpoint


def model_config_of(state_dict: Mapping[str, Any]) -> ModelConfig:
    """The network that a state dict is of: blocks from the names; width, shortcut kernel and classes from the shapes;
    the pool that 32x32 images need. Raises WeightsError where this library has no such network."""
    return _network_of(_arrays(state_dict_of(state_dict)))


def counted_batches(state_dict: Mapping[str, Any]) -> int:
    """The training steps that the first batch norm has counted, 0 where there is no count."""
    return int(_tensors(state_dict_of(state_dict)).get(f"bn1.{_COUNTER}", 0))


def require_torch() -> Any:
    """The module torch. Raises UserError where it is missing, or so old that reading a .pth may execute code in it."""
    try:
        import torch
    except ImportError as error:
        raise UserError("PyTorch is not installed; pip install 'torch>=2.6' (a CPU build suffices)") from error
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 6):
        raise UserError(
            f"PyTorch {torch.__version__} may execute code in a .pth that it reads (CVE-2025-32434); "
            "pip install 'torch>=2.6'"
        )
    return torch


def _torch_name(path: Any) -> str:
    """PyTorch's name for a path in our variables: "layer2.0.shortcut.1.weight" for params, stages, 1, 0, shortcut_bn,
    scale."""
    _, *layers, array = (entry.key for entry in path)
    if layers[0] == "stages":
        layers[:2] = [f"layer{int(layers[1]) + 1}"]
    return ".".join([*(_LAYER_NAMES.get(layer, layer) for layer in layers), _ARRAY_NAMES[array]])


def _abstract_variables(config: ModelConfig) -> dict:
    """Shapes and dtypes of a network's variables. Nothing is computed."""
    model = build_model(config)
    return jax.eval_shape(lambda: model.init(jax.random.key(0)))


def _tensors(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """{name without prefixes: tensor} of a state dict."""
    tensors = {_PREFIXES.sub("", str(name)): tensor for name, tensor in state_dict.items()}
    if len(tensors) < len(state_dict):
        raise WeightsError("holds the tensors of several networks, with other prefixes; give those of one")
    return tensors


def _arrays(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All tensors but the counters, by name, in PyTorch's layout."""
    tensors = _tensors(state_dict)
    return {name: _numpy(tensor) for name, tensor in tensors.items() if not name.endswith(_COUNTERS)}


def _numpy(tensor: Any) -> np.ndarray:
    if hasattr(tensor, "detach"):  # of PyTorch; told by the method, so that arrays need no PyTorch
        tensor = tensor.detach().cpu()
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16
    return np.asarray(tensor)


def _network_of(arrays: Mapping[str, np.ndarray]) -> ModelConfig:
    """What the tensors do not show is that of the default network; `_check` then names what does not fit."""
    default = ModelConfig()
    blocks = {block for name in arrays for block in re.findall(r"^layer(\d+)\.(\d+)\.", name)}
    counts = Counter(int(stage) for stage, _ in blocks)
    sizes = tuple(counts[stage] for stage in range(1, max(counts, default=0) + 1)) or default.stage_sizes
    shortcut = next((name for name in arrays if name.endswith(".shortcut.0.weight")), "")

    def side(name: str, axis: int, otherwise: int) -> int:
        shape = arrays[name].shape if name in arrays else ()
        return shape[axis] if shape else otherwise

    try:
        return ModelConfig(
            stage_sizes=sizes,
            width=side("conv1.weight", 0, default.width),
            shortcut_kernel=side(shortcut, -1, default.shortcut_kernel),  # type: ignore[arg-type]
            num_classes=side("linear.weight", 0, default.num_classes),
            pool_size=max(32 >> (len(sizes) - 1), 1),  # the side of the last map: every stage but the first halves it
        )
    except ConfigError as error:
        raise WeightsError(f"no network of this library has these tensors ({error}); give others") from error


def _check(arrays: Mapping[str, np.ndarray], config: ModelConfig) -> None:
    """Raise WeightsError unless these are the tensors of the network, with all misfits by name."""
    expected = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(_abstract_variables(config)):
        expected[_torch_name(path)] = tuple(leaf.shape[axis] for axis in _TO_TORCH[leaf.ndim])
    if arrays and not arrays.keys() & expected.keys():
        some = ", ".join(sorted(arrays)[:3])
        raise WeightsError(
            f"no tensor has a name of this network, as conv1.weight: {some}, ...; give the state dict itself"
        )
    problems = {name: f"missing, expected {shape}" for name, shape in expected.items() if name not in arrays}
    for name, array in arrays.items():
        if name not in expected:
            problems[name] = f"extra, found {array.shape}"
        elif array.shape != expected[name]:
            problems[name] = f"found {array.shape}, expected {expected[name]}"
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            problems[name] = f"found {array.dtype}, expected floating-point numbers"
    if problems:
        kernel, sizes = config.shortcut_kernel, ", ".join(map(str, config.stage_sizes))
        network = f"{sizes} blocks, width {config.width}, {kernel}x{kernel} shortcuts, {config.num_classes} classes"
        lines = [f"{name}: {problems[name]}" for name in sorted(problems)]
        raise WeightsError("\n  ".join([f"not the weights of a network of {network}; give those that fit:", *lines]))
