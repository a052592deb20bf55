"""Weights of the same network in PyTorch: its state dict to our variables and back, to the bit.

A state dict names its tensors as the published project does: conv1, bn1, layer1.0.conv1, ..., layer2.0.shortcut.0 (a
convolution) and .1 (its batch norm), ..., linear. Only `to_torch` needs PyTorch.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

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
# A tensor of the network, after the prefix of what it is wrapped in.
_TENSOR = re.compile(r"(.*?\.)??((?:conv1|bn1|linear|layer\d+\.\d+\.(?:conv[12]|bn[12]|shortcut\.[01]))\.\w+)")

# Each batch norm of PyTorch counts its training steps, and AveragedModel its averages. Neither count has an effect.
_COUNTER = "num_batches_tracked"
_COUNTERS = (_COUNTER, "n_averaged")


class Network(NamedTuple):
    """tensors: of one network in a state dict, by name without the prefix. left_out: names of those that are of none,
    as a loss's weights."""

    tensors: dict[str, Any]
    left_out: tuple[str, ...] = ()


def from_torch(state_dict: Mapping[str, Any], config: ModelConfig | None = None, key: str | None = None) -> dict:
    """PyTorch's weights as {"params", "batch_stats"}: nested dictionaries of float32 arrays, as `Model.init` gives.

    state_dict: name -> tensor or NumPy array, or a checkpoint that holds one, as a published file's {"net": state_dict,
    "acc": ..., "epoch": ...}. The network may have a prefix, as those of DataParallel, AveragedModel, torch.compile and
    Lightning's modules; tensors without it are left out (`Network.left_out`), and so are counters.
    config: the network; None reads it off the tensors. key: which network of a checkpoint, see `networks_in`.
    float32 keeps every bit, half precision is widened, float64 is rounded. The arrays are copies.
    Raises WeightsError that names every tensor that is missing, extra, of another shape or not of floating point.
    """
    return variables_of(network_in(state_dict, key), config)


def variables_of(network: Network, config: ModelConfig | None = None) -> dict:
    """What `from_torch` gives, of one network of a checkpoint."""
    all_devices()  # raises a user's error where there is none
    arrays = _arrays(network)
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


def networks_in(checkpoint: Mapping[str, Any]) -> dict[str, Network]:
    """The networks of a state dict, or of a checkpoint that holds state dicts, by key; usual keys first.

    A key is that of the state dict, and where this holds several networks also the prefix of their tensors: "net",
    "ema", "state_dict.ema_net". A state dict of one network has the key "". Raises WeightsError for what is no mapping.
    """
    found = {}
    for key, state_dict in _state_dicts(checkpoint).items():
        networks = _networks(state_dict)
        for prefix, network in networks.items():
            found[".".join(filter(None, (key, prefix.rstrip(".") if len(networks) > 1 else "")))] = network
    return found


def network_in(checkpoint: Mapping[str, Any], key: str | None = None) -> Network:
    """The network of that key; None takes that of the first state dict. Raises WeightsError where there is none, and
    where a state dict holds several and `key` chooses none."""
    networks = networks_in(checkpoint)
    keys = [one for one in networks if one]
    if key is None and len(_networks(next(iter(_state_dicts(checkpoint).values())))) > 1:
        raise WeightsError(f"holds several networks; choose one by its key (--key): {', '.join(keys)}")
    if key is not None and key not in networks:
        raise WeightsError(f"key {key!r}: holds no state dict; {f'choose of {keys}' if keys else 'leave it out'}")
    return next(iter(networks.values())) if key is None else networks[key]


def _state_dicts(checkpoint: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{key: state dict}, usual keys first; {"": itself} where it holds none."""
    if not isinstance(checkpoint, Mapping):
        raise WeightsError(f"{type(checkpoint).__name__} is not a state dict, name -> tensor; give net.state_dict()")
    inner = {str(key): value for key, value in checkpoint.items() if _holds_tensors(value)}
    if _holds_tensors(checkpoint) or not inner:
        return {"": checkpoint}
    return dict(sorted(inner.items(), key=lambda item: _KEYS.index(item[0]) if item[0] in _KEYS else len(_KEYS)))


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(str(name).endswith((".weight", ".bias")) for name in value)


def _networks(state_dict: Mapping[str, Any]) -> dict[str, Network]:
    """{prefix: network} of one state dict. There is one at least: what it lacks `_check` says."""
    tensors = {str(name): tensor for name, tensor in state_dict.items()}
    found: dict[str, set[str]] = {}
    for name in tensors:
        if match := _TENSOR.fullmatch(name):
            found.setdefault(match[1] or "", set()).add(match[2])
    prefixes = sorted({p for p, names in found.items() if "conv1.weight" in names} or found or {""})

    def prefix_of(name: str) -> str | None:
        return max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)

    left_out = tuple(name for name in tensors if prefix_of(name) is None and not name.endswith(_COUNTERS))
    return {
        prefix: Network({n.removeprefix(prefix): t for n, t in tensors.items() if prefix_of(n) == prefix}, left_out)
        for prefix in prefixes
    }


def model_config_of(network: Network) -> ModelConfig:
    """The network that the tensors are of: blocks from the names; width, shortcut kernel and classes from the shapes;
    the pool that 32x32 images need. Raises WeightsError where this library has no such network."""
    return _network_of(_arrays(network))


def counted_batches(network: Network) -> int:
    """The training steps that the first batch norm has counted, 0 where there is no count."""
    return int(network.tensors.get(f"bn1.{_COUNTER}", 0))


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


def _arrays(network: Network) -> dict[str, np.ndarray]:
    """All tensors but the counters, by name, in PyTorch's layout."""
    return {name: _numpy(tensor) for name, tensor in network.tensors.items() if not name.endswith(_COUNTERS)}


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
