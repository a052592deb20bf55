"""Weights in files: PyTorch's .pth (also .pt, .ckpt), .safetensors and folders of this library, each to any other.

A .pth is a pickle, which can run any code. PyTorch reads it with `weights_only=True`, which builds tensors and plain
values and refuses the rest.
"""

import io
import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.numpy

from jaxresnet.config import ModelConfig, OptimConfig, TrainConfig, to_dict
from jaxresnet.errors import StorageError, WeightsError, printable
from jaxresnet.files import local_path, write_bytes
from jaxresnet.interop.torch import (
    counted_batches,
    model_config_of,
    network_in,
    networks_in,
    require_torch,
    to_torch,
    torch_arrays,
    variables_of,
)
from jaxresnet.training.checkpoint import Record, save_weights
from jaxresnet.training.predict import load_variables
from jaxresnet.training.state import Weights

_PICKLES = (".pth", ".pt", ".ckpt")  # the last is Lightning's
_FILES = (*_PICKLES, ".safetensors")  # all else is a folder
_KNOWN = f"known are {', '.join(_FILES)} and folders, whose names have no ending"
_FACTS = ("step", "kind", "accuracy", "epoch")  # what a folder notes of converted weights


class ReadWeights(NamedTuple):
    """Weights as read from anywhere.

    variables: {"params", "batch_stats"}. step: training steps that the batch statistics were gathered in. kind: "fast"
    or "slow" of a run with Lookahead, else None. accuracy, in percent, and epoch, from 0: of the chosen epoch, None
    where the source does not tell. keys: of the networks in a checkpoint, that which was read first. left_out: names of
    tensors that are of no network.
    """

    config: ModelConfig
    variables: dict[str, Any]
    step: int
    kind: Literal["fast", "slow"] | None = None
    accuracy: float | None = None
    epoch: int | None = None
    keys: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def convert(
    source: str | Path,
    target: str | Path,
    weights: Literal["fast", "slow"] | None = None,
    wrap: bool = False,
    key: str | None = None,
) -> ReadWeights:
    """Write the weights in `source` to `target`, in the form that each name says, and return them. Float32 keeps every
    bit.

    source: a .pth, .pt or .ckpt with a state dict or a checkpoint around it, as a published file's {"net", "acc",
    "epoch"} or Lightning's; a .safetensors; or the folder of a run (out/runs/<id>, or its checkpoints), of which the
    chosen epoch is taken. target: a new file of these kinds, or else a new folder, for `predict` and `load_variables`.
    weights: Lookahead's fast or slow ones, from a run's folder; None takes those that the run was scored on.
    key: which network of a file that holds several (`networks_in`); None takes a usual one, `ReadWeights.keys` says
    which.
    wrap: write {"net", "acc", "epoch"} to a .pth. acc is the chosen epoch's accuracy in percent: on the test set, or on
    the validation set where the test set was not scored every epoch.
    Raises WeightsError for a damaged file, another network, a target that exists, and options that do not fit;
    ResultsError for a folder without weights, StorageError where the target cannot be written, UserError where PyTorch
    is needed (.pth, .pt, .ckpt) and missing.
    """
    source, target = local_path(source), local_path(target)
    suffix = target.suffix.lower()
    if suffix not in _FILES and suffix[1:2].isalpha():
        raise WeightsError(f"{target}: cannot write {target.suffix} files; {_KNOWN}")
    if wrap and suffix not in _PICKLES:
        raise WeightsError(f'{target}: cannot hold {{"net", "acc", "epoch"}}; choose a .pth, or leave --wrap out')
    if os.path.lexists(target):
        raise WeightsError(f"{target}: is there already, and nothing is overwritten; choose another name")

    read = read_weights(source, weights, key)
    if suffix not in _FILES:
        _write_folder(target, read, source)
    elif suffix == ".safetensors":
        write_bytes(target, safetensors.numpy.save(torch_arrays(read.variables, read.step), {"format": "pt"}))
    else:
        write_bytes(target, _pth(source, read, wrap))
    return read


def read_weights(
    source: str | Path, weights: Literal["fast", "slow"] | None = None, key: str | None = None
) -> ReadWeights:
    """The weights in a file or a folder. Takes and raises what `convert` does."""
    source = local_path(source)
    if source.suffix.lower() not in _FILES:
        if source.is_file():
            raise WeightsError(f"{source}: unknown kind of file; {_KNOWN}")
        if key is not None:
            raise WeightsError(f"{source}: a folder holds no state dicts to choose from; leave --key {key} out")
        return _read_folder(source, weights)
    if weights is not None:
        raise WeightsError(f"{source}: a file holds one set of weights; leave --weights {weights} out")
    content = _read_file(source)
    try:
        network = network_in(content, key)
        keys = sorted(filter(None, networks_in(content)), key=lambda one: one != key)  # the one that is asked for first
        config = model_config_of(network)
        variables = variables_of(network, config)
        read = ReadWeights(config, variables, counted_batches(network), keys=tuple(keys), left_out=network.left_out)
    except WeightsError as error:
        raise WeightsError(f"{source}: {printable(str(error))}") from error
    if keys[:1] != ["net"]:
        return read
    epoch = _number(content.get("epoch"))
    return read._replace(accuracy=_number(content.get("acc")), epoch=None if epoch is None else int(epoch))


def _number(value: Any) -> float | None:
    """A finite number, of Python or in a tensor; None for anything else."""
    try:
        return float(value) if math.isfinite(value) else None
    except (TypeError, ValueError, RuntimeError):
        return None


def _read_file(path: Path) -> Mapping[str, Any]:
    torch = None if path.suffix.lower() == ".safetensors" else require_torch()
    try:
        if torch is None:
            return safetensors.numpy.load_file(path)
        content = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}); give another file") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))  # PyTorch's message, of what it refused to build
        reason = f"holds {foreign[1]}, no tensor or plain value" if foreign else f"damaged ({type(error).__name__})"
        raise WeightsError(
            f"{path}: {reason}; nothing in it was executed. Save it anew: torch.save(net.state_dict(), 'weights.pth')"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds {type(content).__name__}, not a state dict; save net.state_dict()")
    return content


def _pth(source: Path, read: ReadWeights, wrap: bool) -> bytes:
    content: dict[str, Any] = to_torch(read.variables, read.step)
    if wrap:
        missing = [name for name in ("accuracy", "epoch") if getattr(read, name) is None]
        if missing:
            raise WeightsError(
                f"{source}: does not say the {' and the '.join(missing)} of these weights; leave out --wrap"
            )
        content = {"net": content, "acc": read.accuracy, "epoch": read.epoch}
    file = io.BytesIO()
    require_torch().save(content, file)
    return file.getvalue()


def _write_folder(target: Path, read: ReadWeights, source: Path) -> None:
    """Under another name at first, so that nothing half-written has the target's."""
    # A run without Lookahead, so that there is one set of weights; of no data set, so that `fit` does not continue it.
    run = TrainConfig(model=read.config, optim=OptimConfig(lookahead=False))
    facts = {name: getattr(read, name) for name in _FACTS}
    record = Record(to_dict(run), {}, converted={"source": source.name, **facts})
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as unfinished:
            folder = Path(unfinished) / target.name
            save_weights(folder, Weights(read.variables, {}), record)
            os.replace(folder, target)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written ({error.strerror or error}); choose another place") from error


def _read_folder(folder: Path, weights: Literal["fast", "slow"] | None) -> ReadWeights:
    config, variables, chosen, row, converted = load_variables(folder, weights)
    if converted:
        return ReadWeights(config.model, variables, **{name: converted[name] for name in _FACTS})
    kind = chosen if config.optim.lookahead else None
    accuracy = row["val_accuracy"] if row["test_accuracy"] is None else row["test_accuracy"]
    was_scored = kind in (None, config.eval_weights)
    return ReadWeights(config.model, variables, row["step"], kind, accuracy if was_scored else None, row["epoch"])
