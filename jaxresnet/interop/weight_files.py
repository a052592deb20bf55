"""Weights in files: PyTorch's .pth, .safetensors and checkpoint folders of this library, each to any other.

A .pth is a pickle, which could run any code. It is read with PyTorch's `weights_only=True`, which builds tensors and
plain values and refuses the rest; before PyTorch 2.6 a file could get around that (CVE-2025-32434).
"""

import io
import math
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxresnet.config import ModelConfig, OptimConfig, TrainConfig, to_dict
from jaxresnet.errors import UserError, WeightsError, printable
from jaxresnet.interop.torch import counted_batches, from_torch, model_config_of, require_torch, to_torch, torch_arrays
from jaxresnet.optim.optimizers import make_step_optimizer
from jaxresnet.optim.schedules import hypers_of
from jaxresnet.training.checkpoint import Checkpoints
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.predict import load_variables
from jaxresnet.training.state import TrainState

_KINDS = {".pth": "pth", ".pt": "pth", ".safetensors": "safetensors"}  # all else is a checkpoint folder
_FOREIGN = {
    *(".bin", ".ckpt", ".gz", ".h5", ".hdf5", ".json", ".keras", ".msgpack", ".npy", ".npz", ".onnx", ".pb", ".pickle"),
    *(".pkl", ".safetensor", ".tar", ".tflite", ".txt", ".zip"),
}
LONGEST_MESSAGE = 15_000  # characters: every tensor of a large network by name
_KNOWN = ".pth or .pt (PyTorch), .safetensors, or a checkpoint folder"


class Weights(NamedTuple):
    """Weights as read from anywhere.

    variables: {"params", "batch_stats"}. step: training steps that the batch statistics were gathered in. kind: "fast"
    or "slow" of a run with Lookahead, None without it and of a file, which does not tell. accuracy: in percent, and
    epoch: from 0, the one that was chosen; trained_by: the run's config, as JSON types. None where the source does not
    hold them.
    """

    config: ModelConfig
    variables: dict
    step: int
    kind: Literal["fast", "slow"] | None = None
    accuracy: float | None = None
    epoch: int | None = None
    trained_by: dict[str, Any] | None = None


class Converted(NamedTuple):
    """What `convert` did: the network, its trainable parameters, the tensors of PyTorch's state dict (the counts of
    training steps among them), and which weights, as in `Weights`."""

    config: ModelConfig
    num_params: int
    num_tensors: int
    kind: Literal["fast", "slow"] | None


def convert(
    source: str | Path, target: str | Path, weights: Literal["fast", "slow"] | None = None, wrap: bool = False
) -> Converted:
    """Write the weights in `source` to `target`, in the form that each name says.

    source: a .pth or .pt with a state dict or a published file's {"net", "acc", "epoch"}, a .safetensors, or a run's
    checkpoint folder, of which the chosen epoch is taken. target: a new file of these kinds, or else a new checkpoint
    folder, which `predict` and `load_variables` read: a run without Lookahead, in its first epoch.
    weights: Lookahead's fast or slow ones, from a checkpoint folder; None takes those that the run was scored on.
    wrap: write {"net", "acc", "epoch"} to a .pth. acc is the chosen epoch's accuracy in percent, on the test set if it
    was scored every epoch, else on the validation set; or what the source holds.
    Tensors keep every bit. A file's counts of training steps become one, the first batch norm's.
    Raises WeightsError for a file that is damaged, of another network, or holds more than weights (nothing in it is
    executed), for a target that exists, and for options that do not fit; nothing half-written stays.
    UserError where PyTorch is needed (.pth, .pt) and not installed, ResultsError for a folder without a checkpoint.
    """
    source, target = Path(source), Path(target)
    target_kind = _KINDS.get(target.suffix.lower(), "folder")
    if target.suffix.lower() in _FOREIGN:
        raise WeightsError(f"{target}: cannot write {target.suffix}; known are {_KNOWN}, whose name has no such ending")
    if wrap and target_kind != "pth":
        raise WeightsError(f'{target}: only a .pth or .pt can be wrapped in {{"net", "acc", "epoch"}}')
    _refuse_existing(target)

    read = read_weights(source, weights)
    arrays = torch_arrays(read.variables, read.step)
    if target_kind == "folder":
        _write(target, lambda path: _write_folder(path, read, source))
    else:
        content = _pth_bytes(source, read, wrap) if target_kind == "pth" else _safetensors_bytes(arrays)
        _write(target, lambda path: path.write_bytes(content))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(read.variables["params"]))
    return Converted(read.config, num_params, len(arrays), read.kind)


def read_weights(source: str | Path, weights: Literal["fast", "slow"] | None = None) -> Weights:
    """The weights in a file or in a checkpoint folder. Takes and raises what `convert` does."""
    source = Path(source)
    kind = _KINDS.get(source.suffix.lower(), "folder")
    if kind == "folder":
        if source.is_file():
            raise WeightsError(f"{source}: unknown kind of file; known are {_KNOWN}")
        return _read_folder(source, weights)
    if weights is not None:
        raise WeightsError(
            f"{source}: a file holds one set of weights; only a checkpoint folder has fast and slow ones"
        )
    content = (_read_pth if kind == "pth" else _read_safetensors)(source)
    try:
        config, variables, step = model_config_of(content), from_torch(content), counted_batches(content)
    except WeightsError as error:
        raise WeightsError(f"{source}: {printable(str(error)[:LONGEST_MESSAGE])}") from error
    wrapped = isinstance(content.get("net"), Mapping)
    accuracy, epoch = (_number(content.get(name)) if wrapped else None for name in ("acc", "epoch"))
    return Weights(config, variables, step, None, accuracy, None if epoch is None else int(epoch))


def _number(value: Any) -> float | None:
    """A finite number, of Python or a tensor's; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _read_folder(folder: Path, weights: Literal["fast", "slow"] | None) -> Weights:
    loaded = load_variables(folder, weights)
    config, record = loaded.config, loaded.record
    accuracy, epoch = (record.get("converted", {}).get(name) for name in ("accuracy", "epoch"))
    for row in record["history"]:
        if row["step"] == loaded.step:
            epoch = row["epoch"]
            if loaded.weights == config.eval_weights or not config.optim.lookahead:  # else others were scored
                accuracy = row["val_accuracy"] if row["test_accuracy"] is None else row["test_accuracy"]
    kind = loaded.weights if config.optim.lookahead else record.get("converted", {}).get("weights")
    # A folder that `convert` made says what it was made from.
    trained_by = record["converted"].get("config") if "converted" in record else to_dict(config)
    return Weights(config.model, loaded.variables, loaded.step, kind, accuracy, epoch, trained_by)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    if empty:
        raise WeightsError(f"{path}: the file is empty; get it anew")


def _read_pth(path: Path) -> Mapping[str, Any]:
    torch = require_torch()
    _check_file(path)
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < (2, 6):
        raise UserError(
            f"{path}: not read with PyTorch {torch.__version__}, in which a .pth could execute code in spite of "
            "weights_only=True (CVE-2025-32434): pip install 'torch>=2.6'"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old or foreign pickles: what matters of it is raised
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises nearly anything
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if foreign is None:
            raise _damaged(path, error) from error
        advice = "an accuracy as float(acc), " if foreign[1].startswith("numpy") else ""
        raise WeightsError(
            f"{path}: holds {foreign[1]}, which is neither a tensor nor a plain value. Nothing in the file was "
            f"executed. Save it anew where it comes from, {advice}or alone: torch.save(net.state_dict(), 'weights.pth')"
        ) from error
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path}: holds {type(loaded).__name__}, expected a state dict, name -> tensor")
    return loaded


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    import safetensors.numpy

    _check_file(path)
    try:
        return safetensors.numpy.load_file(path)  # bfloat16 too, which NumPy has from JAX's ml_dtypes
    except AttributeError as error:  # of the module NumPy, in which it looks the dtype up
        raise WeightsError(f"{path}: holds numbers that NumPy does not know ({error}); save them as float32") from error
    except Exception as error:  # SafetensorError
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> WeightsError:
    # The first sentence: PyTorch goes on to advise weights_only=False.
    reason = re.split(r"\.\s|\n", f"{type(error).__name__}: {printable(str(error).strip()[:300])}")[0].rstrip(": ")
    return WeightsError(
        f"{path}: not a {path.suffix} file of weights, or damaged ({reason}). Nothing in it was executed. Get it anew, "
        "or save it anew where it comes from"
    )


def _pth_bytes(source: Path, read: Weights, wrap: bool) -> bytes:
    torch = require_torch()
    content: dict[str, Any] = to_torch(read.variables, read.step)
    if wrap:
        missing = ["test or validation accuracy"] * (read.accuracy is None) + ["epoch"] * (read.epoch is None)
        if missing:
            raise WeightsError(
                f"{source}: holds no {' and no '.join(missing)} of these weights, which a published file states; "
                "convert without --wrap"
            )
        content = {"net": content, "acc": read.accuracy, "epoch": read.epoch}
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _safetensors_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    import safetensors.numpy

    return safetensors.numpy.save(arrays, metadata={"format": "pt"})


def _write_folder(folder: Path, read: Weights, source: Path) -> None:
    """A checkpoint of a run that has these weights, and no epoch of its own behind it."""
    config = TrainConfig(model=read.config, optim=OptimConfig(lookahead=False))
    params, batch_stats = read.variables["params"], read.variables["batch_stats"]
    opt_state = make_step_optimizer(config.optim, hypers_of(config.optim)).init(params)
    step = jnp.int32(min(max(read.step, 0), jnp.iinfo(jnp.int32).max))
    state = TrainState(step, params, batch_stats, {}, opt_state, jax.random.key_data(jax.random.key(config.seed)))
    record: dict[str, Any] = {
        "config": to_dict(config),
        "data": None,  # not known, so `fit` will not take it for a run of its own to continue
        "history": [],
        "seconds": 0.0,
        "best_step": int(step),
        "converted": {
            "source": source.name,
            "weights": read.kind,
            "accuracy": read.accuracy,
            "epoch": read.epoch,
            "config": read.trained_by,
        },
    }
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, zero_totals(), record, best_step=int(step))


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise WeightsError(f"{target}: is there already, and nothing is overwritten; choose another name or move it")


def _write(target: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a path beside `target`, which it fills with a file or a folder, and give that the name `target`
    when it is complete."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as unfinished:
            path = Path(unfinished) / target.name
            write(path)
            _refuse_existing(target)
            os.replace(path, target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror or error})") from error
