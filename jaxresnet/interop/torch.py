"""Weights of the same network in PyTorch: its state dict to our variables and back, without changing a bit.

PyTorch's names are those of the published project: conv1, bn1, layer1.0.conv1, ..., layer2.0.shortcut.0 (a
convolution) and .1 (its batch norm), ..., linear. Names and shapes come from the network itself: `torch_name` says
what each of its arrays is called there, and both directions ask it.
"""

import operator
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxresnet.config import ModelConfig
from jaxresnet.errors import ConfigError, UserError, WeightsError
from jaxresnet.nn.resnet import build_model

_LAYER_NAMES = {"shortcut_conv": "shortcut.0", "shortcut_bn": "shortcut.1"}
_ARRAY_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

# Ours to PyTorch's axes by the number of them: kernels HWIO to OIHW, the linear layer (in, out) to (out, in).
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}

# Under what a state dict is found in a checkpoint: the published project's name for it, and other usual ones.
_WRAPPERS = ("net", "state_dict", "model")

# Of channels, classes and blocks a stage, where a network is read off tensors.
_LARGEST = {"stage_sizes": 100, "width": 10_000, "shortcut_kernel": 100, "num_classes": 1_000_000}

# PyTorch counts the training steps of each batch norm, and uses the count only where there is no momentum.
_COUNTER = "num_batches_tracked"


def from_torch(state_dict: Mapping[str, Any], config: ModelConfig | None = None) -> dict:
    """PyTorch's weights as {"params", "batch_stats"}, nested dictionaries of float32 as `Model.init` gives.

    state_dict: name -> tensor (of any device) or NumPy array, names with or without a leading "module." (DataParallel)
    or "_orig_mod." (torch.compile); or the content of a published file, {"net": state_dict, "acc": ..., "epoch": ...}.
    Float32 keeps every bit, half and bfloat16 are widened, float64 is rounded. `num_batches_tracked` is ignored: at a
    fixed momentum it has no effect. config: the network; None reads it off the tensors, see `model_config_of`. The
    arrays are copies.
    Raises WeightsError that names every tensor that is missing, extra, misshapen, or not of floating-point numbers.
    """
    if config is not None and not isinstance(config, ModelConfig):
        raise ConfigError(f"config: expected a ModelConfig or None, found {type(config).__name__}")
    config, arrays = _fitted(state_dict, config)

    def one(path: Any, _: Any) -> jax.Array:
        array = arrays[torch_name(_keys(path))]
        return jnp.array(np.transpose(array, _FROM_TORCH[array.ndim]))  # jnp.array copies, jnp.asarray may not

    return jax.tree_util.tree_map_with_path(one, _abstract_variables(config))


def to_torch(variables: Mapping[str, Any], num_batches_tracked: int = 0) -> dict[str, Any]:
    """The inverse of `from_torch`: a state dict that `load_state_dict(..., strict=True)` of the same network takes.

    variables: {"params", "batch_stats"}. num_batches_tracked: training steps, what every batch norm's counter (int64)
    is set to. Tensors are on the CPU, contiguous, in memory of their own. Raises UserError where PyTorch is not
    installed, WeightsError for variables that are not those of a network of this library.
    """
    torch = require_torch()
    arrays = torch_arrays(variables, num_batches_tracked)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def torch_arrays(variables: Mapping[str, Any], num_batches_tracked: int = 0) -> dict[str, np.ndarray]:
    """What `to_torch` gives, as NumPy arrays: float32, the counters int64 scalars. Needs no PyTorch."""
    try:
        _, _ = variables["params"], variables["batch_stats"]
        leaves = jax.tree_util.tree_leaves_with_path(variables)
        ours = {torch_name(_keys(path)): np.asarray(leaf) for path, leaf in leaves}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            'variables: expected {"params": ..., "batch_stats": ...} as Model.init and eval_variables give'
        ) from error
    # np.array copies, so that nothing here is a view of an array of JAX, and order="C" makes it contiguous.
    axes = {name: _TO_TORCH.get(a.ndim, tuple(range(a.ndim))) for name, a in ours.items()}
    arrays = {name: np.array(a.transpose(axes[name]), order="C") for name, a in ours.items()}
    _, arrays = _fitted(arrays, None)
    batch_norms = [name.removesuffix("running_mean") for name in arrays if name.endswith("running_mean")]
    counters = {f"{name}{_COUNTER}": np.array(num_batches_tracked, np.int64) for name in batch_norms}
    return dict(sorted((arrays | counters).items()))


def model_config_of(state_dict: Mapping[str, Any]) -> ModelConfig:
    """The network that a state dict is of: blocks from the names, width, shortcut kernel and classes from the shapes,
    and the pool that 32x32 images need. Takes and raises what `from_torch` does."""
    return _fitted(state_dict, None)[0]


def counted_batches(state_dict: Mapping[str, Any]) -> int:
    """The training steps that the first batch norm counted, 0 where the state dict holds no count. Raises WeightsError
    where that is not a whole number."""
    for full_name, value in _net(state_dict).items():
        if _plain_name(full_name) == f"bn1.{_COUNTER}":
            try:
                return operator.index(value.item() if hasattr(value, "item") else value)
            except (RuntimeError, TypeError, ValueError) as error:
                raise WeightsError(f"bn1.{_COUNTER}: expected a whole number, found {value!r}") from error
    return 0


def require_torch() -> Any:
    """The module torch, or UserError that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "this needs PyTorch, which is not installed: pip install 'torch>=2.6' (a CPU build suffices), "
            "or the extra: pip install -e '.[parity]'"
        ) from error
    return torch


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name of the array at `path` of our variables: "layer2.0.shortcut.1.weight" for
    ("params", "stages", "1", "0", "shortcut_bn", "scale")."""
    _, *layers, array = path
    if layers[0] == "stages":
        stage, *layers = layers[1:]
        layers.insert(0, f"layer{int(stage) + 1}")
    return ".".join([*(_LAYER_NAMES.get(layer, layer) for layer in layers), _ARRAY_NAMES[array]])


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


def _abstract_variables(config: ModelConfig) -> dict:
    """Shapes and dtypes of a network's variables. Nothing is computed or allocated."""
    model = build_model(config)
    return jax.eval_shape(lambda: model.init(jax.random.key(0)))


def _expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{PyTorch's name: shape} of everything but the counters."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(_abstract_variables(config)):
        shapes[torch_name(_keys(path))] = tuple(leaf.shape[axis] for axis in _TO_TORCH[leaf.ndim])
    return shapes


def _net(state_dict: Any) -> Mapping[Any, Any]:
    """The state dict itself, or the one inside a published file's content."""
    found = [state_dict.get(key) for key in _WRAPPERS] if isinstance(state_dict, Mapping) else []
    net = next((inner for inner in found if isinstance(inner, Mapping)), state_dict)
    if not isinstance(net, Mapping):
        raise WeightsError(f"expected a state dict, name -> tensor, found {type(net).__name__}; give net.state_dict()")
    return net


def _plain_name(full_name: Any) -> str:
    """Without what DataParallel ("module.") and torch.compile ("_orig_mod.") put before a name."""
    return re.sub(r"^((module|_orig_mod)\.)*", "", str(full_name))


def _read(state_dict: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays as found, what is wrong with those that could not be read), by their plain names."""
    arrays: dict[str, np.ndarray] = {}
    problems = {}
    for full_name, value in _net(state_dict).items():
        name = _plain_name(full_name)
        if name.rpartition(".")[2] == _COUNTER:
            continue
        if name in arrays:
            problems[name] = "there twice, with and without 'module.'"
        try:
            arrays[name] = _as_array(value)
        except (RuntimeError, TypeError, ValueError) as error:
            problems[name] = f"cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}"
    return arrays, problems


def _as_array(value: Any) -> np.ndarray:
    """A tensor of PyTorch (known by its methods: NumPy users need no PyTorch) or an array, in its own dtype."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # NumPy has no bfloat16 to hold. Integers and complex numbers stay what they are, to be refused.
        value = (value.float() if value.is_floating_point() and value.element_size() < 4 else value).numpy()
    if not hasattr(value, "shape"):
        raise TypeError(f"found {type(value).__name__}, not a tensor")
    return np.asarray(value)


def _fitted(state_dict: Any, config: ModelConfig | None) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The network, and its arrays in float32 by PyTorch's names, in PyTorch's layout; or WeightsError."""
    found, problems = _read(state_dict)
    notes: list[str] = []
    if config is None:
        config, notes = _guess(found)
    expected = _expected_shapes(config)
    names = found.keys() | problems.keys()
    if names and not names & expected.keys():
        some = ", ".join(repr(name) for name in sorted(names)[:3])
        raise WeightsError(
            f"no tensor has a name of the network here, as 'conv1.weight'; found {some}. Give the state dict itself"
        )
    problems |= {
        name: f"missing, expected {expected[name]}" for name in expected.keys() - found.keys() - problems.keys()
    }
    problems |= {name: f"extra, found {found[name].shape}" for name in found.keys() - expected.keys()}
    arrays = {}
    for name in expected.keys() & found.keys() - problems.keys():
        array = found[name]
        if array.shape != expected[name]:
            problems[name] = f"found {array.shape}, expected {expected[name]}"
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            problems[name] = f"found {array.dtype}, expected floating-point numbers"
        else:
            arrays[name] = _float32(array)
            if array.dtype.itemsize > 4 and (np.isinf(arrays[name]) & np.isfinite(array)).any():
                problems[name] = f"{array.dtype} numbers beyond the largest float32"
    if problems or notes:
        raise WeightsError("\n  ".join([_heading(config), *notes, *(f"{n}: {problems[n]}" for n in sorted(problems))]))
    return config, arrays


def _heading(config: ModelConfig) -> str:
    kernel, sizes = config.shortcut_kernel, ", ".join(map(str, config.stage_sizes))
    return (
        f"not the weights of a network of {sizes} blocks, width {config.width}, {kernel}x{kernel} shortcuts, "
        f"{config.num_classes} classes:"
    )


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # found and reported by name
        return array.astype(np.float32, copy=False)


def _guess(found: Mapping[str, np.ndarray]) -> tuple[ModelConfig, list[str]]:
    """The network of this library that is nearest to what was found, and why none of them is it as far as known.

    What the tensors do not show is that of the default network. What does not fit the guess is for the caller to name.
    """
    default, notes = ModelConfig(), []
    blocks: dict[int, set[int]] = {}
    for name in found:
        if match := re.match(r"layer([0-9]{1,6})\.([0-9]{1,6})\.", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    numbered = all(sorted(found_here) == list(range(len(found_here))) for found_here in blocks.values())
    if sorted(blocks) != list(range(1, len(blocks) + 1)) or not numbered:
        listed = ", ".join(f"layer{stage}.{block}" for stage in sorted(blocks) for block in sorted(blocks[stage]))
        notes.append(f"blocks are counted layer1.0, layer1.1, ..., layer2.0, ... without gaps; found {listed}")
    if any(".conv3." in name for name in found):
        notes.append("blocks of three convolutions (bottlenecks) are not in this library")
    if any(name.startswith("fc.") or ".downsample." in name for name in found):
        notes.append(
            "fc and downsample are torchvision's names. The network here is another one: it calls them linear and "
            "shortcut, and begins with a 3x3 convolution and no pool"
        )
    kernels = [a.shape[-1] for name, a in found.items() if name.endswith(".shortcut.0.weight") and a.ndim == 4]
    fields = {
        "stage_sizes": tuple(len(blocks[stage]) for stage in sorted(blocks)) or default.stage_sizes,
        "width": _first_axis(found, "conv1.weight", default.width),
        "shortcut_kernel": kernels[0] if kernels else default.shortcut_kernel,
        "num_classes": _first_axis(found, "linear.weight", default.num_classes),
    }
    config = default
    for name, value in fields.items():  # one by one, so that one that cannot be leaves the others
        if np.max(value) > _LARGEST[name]:  # else a damaged file could have a network of millions of blocks be built
            notes.append(f"no network here has {name}={value!r}")
            continue
        try:
            config = _with_pool(**{**_shape_fields(config), name: value})
        except ConfigError as error:
            notes.append(f"no network here has {error}")
    return config, notes


def _first_axis(found: Mapping[str, np.ndarray], name: str, default: int) -> int:
    return found[name].shape[0] if name in found and found[name].ndim else default


def _shape_fields(config: ModelConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("stage_sizes", "width", "shortcut_kernel", "num_classes")}


def _with_pool(**fields: Any) -> ModelConfig:
    """A network whose pool covers the last map of 32x32 images, which every stage but the first halves."""
    return ModelConfig(**fields, pool_size=max(32 >> (len(fields["stage_sizes"]) - 1), 1))
