"""What a run is: frozen dataclasses, checked when they are made, written to JSON and read back.

`TrainConfig` nests `ModelConfig`, `AugmentConfig` and `OptimConfig`. On the command line every field is a flag
of its own name (`--sync-period 10`), so field names are unique across the four.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxresnet.errors import ConfigError

_BELOW_ONE = math.nextafter(1, 0)


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={value!r}: must be {allowed}")


def _check_choices(config: Any) -> None:
    """Check every Literal and bool field of a dataclass: a type checker sees them, a script at run time does not."""
    for f in dataclasses.fields(config):
        literal = typing.get_args(f.type) if typing.get_origin(f.type) is Literal else ()
        choices = (False, True) if f.type is bool else literal
        if choices:
            value = getattr(config, f.name)
            near = difflib.get_close_matches(str(value), [c for c in choices if isinstance(c, str)], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            ok = any(type(value) is type(c) and value == c for c in choices)  # 1 == True, but is not one of its kind
            _require(ok, f.name, value, f"one of {', '.join(map(repr, choices))}{hint}")


def _check_ints(config: Any, **lowest: int) -> None:
    for name, low in lowest.items():
        value = getattr(config, name)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        _require(is_int and value >= low, name, value, f"a whole number, {low} or more")


def _check_floats(config: Any, **ranges: tuple[float, float]) -> None:
    """Each value must be finite and within [low, high]."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        top = "" if high == math.inf else " and below 1" if high == _BELOW_ONE else f" and at most {high:g}"
        _require(is_number and low <= value <= high, name, value, f"a number of at least {low:g}{top}")


@dataclass(frozen=True)
class ModelConfig:
    """The network. The defaults have 4,903,242 parameters."""

    stage_sizes: tuple[int, ...] = (1, 1, 1, 1)  # basic blocks a stage, 1 to 6 stages; (2, 2, 2, 2) is a full ResNet-18
    width: int = 64  # channels of the first stage; each later stage doubles them
    shortcut_kernel: Literal[1, 2, 3] = 1  # size of the projection shortcuts' kernel, pixels
    pool_size: int = 4  # side of the average pool over the last feature map, pixels; must cover that map
    num_classes: int = 10
    precision: Literal["float32", "bfloat16"] = "float32"  # of activations and products; parameters stay float32
    # Weights at the start. pytorch: its default, uniform within sqrt(1 / fan_in), the linear layer's bias too.
    # he: N(0, 2 / fan_in) (He et al. 2015, arXiv 1502.01852); lecun: N(0, 1 / fan_in) (LeCun et al. 1998, "Efficient
    # BackProp"); in both the bias is 0.
    initializer: Literal["pytorch", "he", "lecun"] = "pytorch"

    def __post_init__(self) -> None:
        if isinstance(self.stage_sizes, list):
            object.__setattr__(self, "stage_sizes", tuple(self.stage_sizes))
        sizes = self.stage_sizes
        ok = isinstance(sizes, tuple) and 1 <= len(sizes) <= 6 and all(type(n) is int and n >= 1 for n in sizes)
        _require(ok, "stage_sizes", sizes, "1 to 6 whole numbers, each 1 or more")
        _check_choices(self)
        _check_ints(self, width=1, pool_size=1, num_classes=2)

    def check_pool(self, image_size: int = 32) -> None:
        """Raise ConfigError unless the pool turns the last feature map into one pixel, as the linear layer needs."""
        side = image_size
        for _ in self.stage_sizes[1:]:
            side = (side + 1) // 2  # every stage but the first halves the map, rounding up
        reason = (
            f"{side}, the side of the last feature map of {len(self.stage_sizes)} stages on "
            f"{image_size} x {image_size} images: the linear layer takes one pixel"
        )
        _require(self.pool_size == side, "pool_size", self.pool_size, reason)


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of the training images. Everything at 0 / False leaves them as they are."""

    crop_padding: int = 4  # pixels added on every side before a random crop back to the image's size; 0 = no crop
    pad_mode: Literal["zero", "reflect"] = "zero"  # zero = black, as the padding happens on raw pixels
    flip: bool = True  # mirror left to right with probability 0.5
    cutout_size: int = 8  # side of the one square hole, pixels, clipped at the border; 0 = no hole

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_ints(self, crop_padding=0, cutout_size=0)
        _require(self.crop_padding < 32, "crop_padding", self.crop_padding, "below 32, the image's size in pixels")
        _require(
            self.cutout_size <= 64, "cutout_size", self.cutout_size, "at most 64, twice the image's size in pixels"
        )


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and Lookahead. Names follow Optax; the defaults are those of the published main run."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-2  # the schedule's peak
    b1: float = 0.9  # Adam: decay of the first moment, 0 to below 1
    b2: float = 0.999  # Adam: decay of the second moment, 0 to below 1
    eps: float = 1e-8  # Adam: added to the root of the second moment
    momentum: float = 0.9  # SGD: decay of the trace, 0 to below 1
    nesterov: bool = False  # SGD: look one step ahead along the trace
    weight_decay: float = 0.0  # adam, sgd: added to the gradient (as PyTorch); adamw: decoupled, times learning rate
    schedule: Literal["constant", "cosine", "onecycle", "warmup", "warmup_cosine", "triangular"] = "cosine"
    schedule_unit: Literal["step", "epoch"] = "step"  # what the schedule counts: optimiser steps, or finished epochs
    schedule_length: int | None = None  # in units of schedule_unit; None = the run's own length
    warmup_fraction: float = 0.3  # part of the length that rises (warmup, warmup_cosine, triangular, onecycle)
    cycle_momentum: bool = False  # onecycle: 0.95 -> 0.85 -> 0.95 against the rate, in place of b1 or momentum
    lookahead: bool = True  # wrap the optimiser in Lookahead (Zhang et al. 2019)
    sync_period: int = 5  # Lookahead's k: fast steps between synchronisations
    slow_step_size: float = 0.5  # Lookahead's alpha, 0 to 1
    lookahead_momentum: Literal["none", "reset", "pullback"] = "none"  # what a synchronisation does to the momentum

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_ints(self, sync_period=1)
        inf = math.inf
        _check_floats(self, learning_rate=(0, inf), eps=(0, inf), weight_decay=(0, inf), warmup_fraction=(0, 1))
        _check_floats(self, b1=(0, _BELOW_ONE), b2=(0, _BELOW_ONE), momentum=(0, _BELOW_ONE), slow_step_size=(0, 1))
        if self.schedule_length is not None:
            _check_ints(self, schedule_length=1)
        if self.schedule != "onecycle":
            reason = f"False where schedule={self.schedule!r} (only 'onecycle' cycles the momentum)"
            _require(not self.cycle_momentum, "cycle_momentum", self.cycle_momentum, reason)
        if self.cycle_momentum:
            name = "momentum" if self.optimizer == "sgd" else "b1"
            default, value = getattr(OptimConfig, name), getattr(self, name)
            _require(value == default, name, value, f"left at {default} where cycle_momentum=True, which moves it")


@dataclass(frozen=True)
class TrainConfig:
    """One run: with a data set and nothing else it determines the result."""

    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0  # of initial weights, validation split and augmentation
    num_epochs: int = 51
    batch_size: int = 512  # images, over all devices together
    eval_batch_size: int = 500  # images a forward pass of evaluation; no effect on the result
    train_size: int | None = None  # use only the first so many training images; None = all
    val_size: int = 5000  # training images held out by seed to choose the epoch on; 0 = none
    selection: Literal["val", "last", "test"] = "val"  # the epoch reported: best on validation, last, best on test
    eval_weights: Literal["fast", "slow"] = "slow"  # Lookahead's weights that are evaluated (without it: the same)
    test_every_epoch: bool = False  # score the test set every epoch, not once; needed by selection="test"

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_ints(self, seed=0, num_epochs=1, batch_size=1, eval_batch_size=1, val_size=0)
        _require(self.seed < 2**32, "seed", self.seed, "below 2**32")
        if self.train_size is not None:
            _check_ints(self, train_size=1)
            _require(
                self.val_size < self.train_size,
                "val_size",
                self.val_size,
                f"below train_size={self.train_size} (a tenth of it is usual)",
            )
        if self.selection == "val":
            _require(self.val_size > 0, "val_size", self.val_size, "above 0 where selection='val' (or pick 'last')")
        if self.selection == "test":
            _require(self.test_every_epoch, "test_every_epoch", False, "True where selection='test'")
        self.model.check_pool()


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types (tuples become lists)."""
    return {
        k: to_dict(v) if dataclasses.is_dataclass(v) else list(v) if isinstance(v, tuple) else v
        for k, v in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    }


def from_dict(cls: type, values: dict[str, Any], where: str = "config") -> Any:
    """The inverse of `to_dict`. Raises ConfigError on an unknown name, a wrong type or a value out of range."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {type(values).__name__}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    made = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"{where}: unknown field {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        made[name] = _typed(known[name].type, value, f"{where}.{name}")
    return cls(**made)


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value` as a field of type `kind` holds it, or ConfigError."""
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, where)
    if typing.get_origin(kind) is Literal:
        return value  # checked by the dataclass itself, with the choices in the message
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, found {value!r}")
        return tuple(value)
    allowed = typing.get_args(kind) or (kind,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if (isinstance(value, bool) and bool not in allowed) or not isinstance(value, allowed):
        names = " or ".join(getattr(a, "__name__", str(a)) for a in allowed)
        raise ConfigError(f"{where}: expected {names}, found {value!r}")
    return value


def with_fields(config: Any, values: Mapping[str, Any]) -> Any:
    """`config` with the named fields replaced, wherever in the nested configs they are: names are unique."""
    changed: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            changed[f.name] = with_fields(value, values)
        elif f.name in values:
            changed[f.name] = values[f.name]
    return dataclasses.replace(config, **changed)


def _flat(config: Any) -> dict[str, Any]:
    """{name: value} of all fields, those of nested configs included: names are unique."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        flat |= _flat(value) if dataclasses.is_dataclass(value) else {f.name: value}
    return flat


def field_names(config: Any) -> set[str]:
    """Names of all fields, those of nested configs included."""
    return set(_flat(config))


def field_value(config: Any, name: str) -> Any:
    """The value of a field, wherever in the nested configs it is."""
    return _flat(config)[name]


def with_new_fields(saved: Any, defaults: Any = None) -> Any:
    """A `TrainConfig` as it was saved, with the fields that were added later at their defaults, which change
    nothing. What is not a config stays as it is, and so does a missing seed: arms have none."""
    if defaults is None:
        defaults = {name: value for name, value in to_dict(TrainConfig()).items() if name != "seed"}
    if not isinstance(saved, dict) or not isinstance(defaults, dict):
        return saved
    return {name: with_new_fields(value, defaults.get(name, ())) for name, value in {**defaults, **saved}.items()}


def differing_fields(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Names and values of the fields in which two configs-as-dicts differ: ["optim.b1: 0.9 -> 0.95", ...]."""
    lines = []
    for name in sorted(a.keys() | b.keys()):
        left, right = a.get(name), b.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            lines += differing_fields(left, right, f"{prefix}{name}.")
        elif left != right:
            lines.append(f"{prefix}{name}: {left!r} -> {right!r}")
    return lines
