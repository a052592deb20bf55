"""What a run is: frozen dataclasses, checked when they are made, written to JSON and read back.

`TrainConfig` nests `ModelConfig`, `AugmentConfig` and `OptimConfig`. On the command line every field is a flag
of its own name (`--sync-period 10`), so field names are unique across the four.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxresnet.errors import ConfigError, short

MAX_INT = 2**31 - 1  # of the int32 in which steps and images are counted on the devices
MAX_FLOAT = float(2**128 - 2**104)  # float32's largest number, 3.4e38
MIN_FLOAT = 2.0**-126  # float32's smallest positive normal number, 1.2e-38: processors may take smaller ones for 0
MAX_DECAY = 0.999999  # float32 hardly tells a higher decay from 1, and Adam divides by 1 - decay ** step
MAX_CHANNELS = 8192  # of the last stage: the 3x3 kernels of twice as many overflow int32 indices
MAX_EVAL_BATCH = 2**20  # more images than any device holds at once
MAX_BLOCKS = 300  # of all stages together: 602 layers


def _near(name: Any, known: Iterable[Any]) -> str:
    """The hint after a misspelt name, empty where none is near."""
    near = difflib.get_close_matches(name, [k for k in known if isinstance(k, str)], n=1) if type(name) is str else []
    return f" (did you mean {near[0]!r}?)" if near else ""


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={short(value)}: must be {allowed}")


def _check_choices(config: Any) -> None:
    """Check every Literal and bool field of a dataclass: a type checker sees them, a script at run time does not."""
    for f in dataclasses.fields(config):
        literal = typing.get_args(f.type) if typing.get_origin(f.type) is Literal else ()
        choices = (False, True) if f.type is bool else literal
        if choices:
            value = getattr(config, f.name)
            ok = any(type(value) is type(c) and value == c for c in choices)  # 1 == True, but is not one of its kind
            _require(ok, f.name, value, f"one of {', '.join(map(repr, choices))}{_near(value, choices)}")


def _check_ints(config: Any, **ranges: tuple[int, int]) -> None:
    """Each value must be an int within (lowest, highest)."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        allowed = f"a whole number, {low} or more and at most {high:,}"
        _require(type(value) is int, name, value, f"{allowed} (an int of Python, not {type(value).__name__})")
        _require(low <= value <= high, name, value, allowed)


def _check_floats(config: Any, **ranges: tuple[float, float]) -> None:
    """Each value must be within (lowest, highest), and is made a Python float."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        allowed = f"a number of at least {low:g} and at most {high:g}"
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(is_number, name, value, f"{allowed} (a float of Python, not {type(value).__name__})")
        _require(low <= value <= high, name, value, allowed)  # False for NaN
        _require(not 0 < value < MIN_FLOAT, name, value, f"0, or at least {MIN_FLOAT:.2g}, or float32 takes it for 0")
        object.__setattr__(config, name, float(value))


@dataclass(frozen=True)
class ModelConfig:
    """The network. The defaults have 4,903,242 parameters."""

    stage_sizes: tuple[int, ...] = (1, 1, 1, 1)  # basic blocks a stage, 1 to 6 stages; (2, 2, 2, 2) is a full ResNet-18
    width: int = 64  # channels of the first stage; each later stage doubles them
    shortcut_kernel: Literal[1, 2, 3] = 1  # size of the projection shortcuts' kernel, pixels
    pool_size: int = 4  # side of the average pool over the last feature map, pixels; must cover that map
    num_classes: int = 10
    # Of activations and products; parameters stay float32. auto: bfloat16 where the hardware multiplies it faster (GPUs
    # since Ampere, TPUs, CPUs with AVX512-BF16 or AMX), else float32. A run records which it was.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # Weights at the start. pytorch: its default, uniform within sqrt(1 / fan_in), the linear layer's bias too.
    # he: N(0, 2 / fan_in) (He et al. 2015, arXiv 1502.01852); lecun: N(0, 1 / fan_in) (LeCun et al. 1998, "Efficient
    # BackProp"); in both the bias is 0.
    initializer: Literal["pytorch", "he", "lecun"] = "pytorch"

    def __post_init__(self) -> None:
        if isinstance(self.stage_sizes, list):
            object.__setattr__(self, "stage_sizes", tuple(self.stage_sizes))
        sizes = self.stage_sizes
        ok = isinstance(sizes, tuple) and 1 <= len(sizes) <= 6 and all(type(n) is int and n >= 1 for n in sizes)
        allowed = f"1 to 6 whole numbers, each 1 or more, together at most {MAX_BLOCKS}"
        _require(ok and sum(sizes) <= MAX_BLOCKS, "stage_sizes", sizes, allowed)
        _check_choices(self)
        _check_ints(self, width=(1, MAX_CHANNELS), pool_size=(1, 1024), num_classes=(2, 2**16))
        widest = MAX_CHANNELS // 2 ** (len(sizes) - 1)
        reason = f"at most {widest} with {len(sizes)} stages, the last of which has {MAX_CHANNELS:,} channels then"
        _require(self.width <= widest, "width", self.width, reason)

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
        # Below the image's size, as nothing more can be reflected; and up to twice that size.
        _check_ints(self, crop_padding=(0, 31), cutout_size=(0, 64))


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and Lookahead. Names follow Optax; the defaults are those of the published main run."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-2  # the schedule's peak
    b1: float = 0.9  # Adam: decay of the first moment, 0 to 0.999999
    b2: float = 0.999  # Adam: decay of the second moment, 0 to 0.999999
    eps: float = 1e-8  # Adam: added to the root of the second moment, 1e-20 or more
    momentum: float = 0.9  # SGD: decay of the trace, 0 to 0.999999
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
        _check_ints(self, sync_period=(1, MAX_INT))
        _check_floats(self, learning_rate=(0, MAX_FLOAT), weight_decay=(0, MAX_FLOAT), warmup_fraction=(0, 1))
        # Adam divides by the root of a squared gradient, which is 0 for a gradient of 0 and for one below some 1e-19.
        _check_floats(self, eps=(1e-20, MAX_FLOAT), slow_step_size=(0, 1))
        _check_floats(self, b1=(0, MAX_DECAY), b2=(0, MAX_DECAY), momentum=(0, MAX_DECAY))
        if self.schedule_length is not None:
            _check_ints(self, schedule_length=(1, MAX_INT))
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
    skip_nonfinite: int = 0  # steps of the run that may be left out as their loss or gradient was not finite

    def __post_init__(self) -> None:
        _check_choices(self)
        for name, cls in (("model", ModelConfig), ("augment", AugmentConfig), ("optim", OptimConfig)):
            value = getattr(self, name)
            _require(isinstance(value, cls), name, value, f"of class {cls.__name__}, not {type(value).__name__}")
        _check_ints(self, seed=(0, 2**32 - 1), num_epochs=(1, 10_000), val_size=(0, MAX_INT))
        _check_ints(self, batch_size=(1, MAX_INT), eval_batch_size=(1, MAX_EVAL_BATCH), skip_nonfinite=(0, MAX_INT))
        if self.train_size is not None:
            _check_ints(self, train_size=(1, MAX_INT))
            allowed = f"below train_size={self.train_size} (a tenth of it is usual)"
            _require(self.val_size < self.train_size, "val_size", self.val_size, allowed)
            left = self.train_size - self.val_size
            allowed = f"at most {left}, what val_size={self.val_size} leaves of train_size={self.train_size}"
            _require(self.batch_size <= left, "batch_size", self.batch_size, allowed)
            longest = MAX_INT // -(-left // self.batch_size)
            allowed = f"at most {longest}, as int32 counts the steps of the run"
            _require(self.num_epochs <= longest, "num_epochs", self.num_epochs, allowed)
        if self.selection == "val":
            _require(self.val_size > 0, "val_size", self.val_size, "above 0 where selection='val' (or pick 'last')")
        if self.selection == "test":
            _require(self.test_every_epoch, "test_every_epoch", False, "True where selection='test'")
        self._check_schedule()
        self.model.check_pool()

    def _check_schedule(self) -> None:
        """Refuse a schedule that is too short to rise, so that the whole run would be at a rate of 0 or near it."""
        optim = self.optim
        per_epoch = optim.schedule_unit == "epoch"
        where = f"2 or more where schedule={optim.schedule!r}"
        if optim.schedule in ("warmup_cosine", "triangular", "onecycle"):  # up and down within the length
            if optim.schedule_length is not None:
                _require(optim.schedule_length > 1, "schedule_length", optim.schedule_length, where)
            elif per_epoch:
                _require(self.num_epochs > 1, "num_epochs", self.num_epochs, f"{where} counts epochs")
        if per_epoch and optim.schedule in ("warmup", "warmup_cosine", "triangular") and optim.warmup_fraction > 0:
            reason = f"{where} counts epochs: the learning rate of the first is 0"
            _require(self.num_epochs > 1, "num_epochs", self.num_epochs, reason)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types (tuples become lists)."""
    return {
        k: to_dict(v) if dataclasses.is_dataclass(v) else list(v) if isinstance(v, tuple) else v
        for k, v in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    }


def from_dict(cls: type, values: dict[str, Any], where: str = "config") -> Any:
    """The inverse of `to_dict`. A field that is not in `values` has its default.

    Raises ConfigError, which begins with `where`, on an unknown name, a wrong type or a value out of range.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {type(values).__name__}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    made = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown field {short(name)}{_near(name, known)}")
        made[name] = _typed(known[name].type, value, f"{where}.{name}")
    try:
        return cls(**made)
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from e


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value` as a field of type `kind` holds it, or ConfigError."""
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, where)
    if typing.get_origin(kind) is Literal:
        return value  # checked by the dataclass itself, with the choices in the message
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, found {short(value)}")
        return tuple(value)
    allowed = typing.get_args(kind) or (kind,)
    whole = float in allowed and type(value) is int  # becomes a float where its range is checked
    if not whole and ((isinstance(value, bool) and bool not in allowed) or not isinstance(value, allowed)):
        names = " or ".join(getattr(a, "__name__", str(a)) for a in allowed)
        raise ConfigError(f"{where}: expected {names}, found {short(value)}")
    return value


def with_fields(config: Any, values: Mapping[str, Any]) -> Any:
    """`config` with the named fields replaced, wherever in the nested configs they are: names are unique.

    Raises ConfigError for a name that no field has, and for values that a config cannot have.
    """
    known = field_names(config)
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown field {short(name)}{_near(name, known)}")
    return _with_known_fields(config, values)


def _with_known_fields(config: Any, values: Mapping[str, Any]) -> Any:
    changed: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            changed[f.name] = _with_known_fields(value, values)
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
