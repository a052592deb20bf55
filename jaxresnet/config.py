"""What a run is: frozen dataclasses, checked when they are made, written to JSON and read back.

`TrainConfig` nests `ModelConfig`, `AugmentConfig` and `OptimConfig`. On the command line every field is a flag of its
own name (`--sync-period 10`), so names are unique across the four, and a field's comment is the flag's help.
"""

import difflib
import functools
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar

from jaxresnet.errors import ConfigError, short

T = TypeVar("T")

# A number's annotation says its type, the lowest and the highest that it may be.
MAX_INT = 2**31 - 1  # of the int32 in which steps and images are counted on the devices
Positive = Annotated[int, 1, MAX_INT]
PositiveOrNone = Annotated[int | None, 1, MAX_INT]
Count = Annotated[int, 0, MAX_INT]
MAX_FLOAT = float(2**128 - 2**104)  # float32's largest number, 3.4e38
Number = Annotated[float, 0, MAX_FLOAT]
Fraction = Annotated[float, 0, 1]
Decay = Annotated[float, 0, 0.999999]  # larger ones are 1 in float32 or nearly, and Adam divides by 1 - decay ** step


# What other libraries call a field.
ALSO_CALLED = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "epochs": "num_epochs",
    "beta1": "b1",
    "beta2": "b2",
    "k": "sync_period",
    "alpha": "slow_step_size",
    "dtype": "precision",
}


def _near(name: Any, known: Iterable[Any]) -> str:
    """The hint after a misspelt name, empty where none is near."""
    words = [k for k in known if isinstance(k, str)]
    near = difflib.get_close_matches(name, words, n=1) if isinstance(name, str) else []
    near = [ALSO_CALLED[name]] if isinstance(name, str) and ALSO_CALLED.get(name) in words else near
    return f" (did you mean {near[0]!r}?)" if near else ""


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={short(value)}: must be {allowed}")


def _check_fields(config: Any) -> None:
    """Check every field by its annotation, which a type checker sees and a script does not. Floats become Python's."""
    for f in fields(config):
        value, kind, args = getattr(config, f.name), typing.get_origin(f.type), typing.get_args(f.type)
        if kind is Annotated:
            number, low, high, *_ = args
            types, allowed = number, f"a whole number, {low} or more and at most {high:,} (an int of Python)"
            if number is float:
                types, allowed = int | float, f"a number of at least {low:g} and at most {high:g} (a float of Python)"
            ok = isinstance(value, types) and not isinstance(value, bool) and (value is None or low <= value <= high)
            _require(ok, f.name, value, allowed)
            if number is float:
                object.__setattr__(config, f.name, float(value))
        elif kind is Literal or f.type is bool:
            choices = args or (False, True)
            ok = any(type(value) is type(c) and value == c for c in choices)  # 1 == True, but is not one of its kind
            _require(ok, f.name, value, f"one of {', '.join(map(repr, choices))}{_near(value, choices)}")
        elif isinstance(f.type, type) and is_dataclass(f.type):
            _require(isinstance(value, f.type), f.name, value, f"of class {f.type.__name__}")


def _says_what_is_meant(cls: type[T]) -> type[T]:
    """A config whose constructor raises ConfigError for an unknown name, with a hint, where Python has TypeError."""
    init = cls.__init__  # type: ignore[misc]
    kinds: dict[str, Any] = {f.name: f.type for f in fields(cls)}  # type: ignore[arg-type]

    @functools.wraps(init)
    def __init__(self: T, *args: Any, **values: Any) -> None:
        for name in values.keys() - kinds.keys():
            for inner, kind in kinds.items():
                if name in getattr(kind, "__dataclass_fields__", ()):
                    hint = f"give {inner}={kind.__name__}({name}=...)"
                    raise ConfigError(f"{cls.__name__}: unknown field {name!r} ({hint})")
        _check_names(values, kinds, f"{cls.__name__}: ")
        init(self, *args, **values)

    cls.__init__ = __init__  # type: ignore[misc, assignment]
    return cls


@_says_what_is_meant
@dataclass(frozen=True)
class ModelConfig:
    """The network. The defaults have 4,903,242 parameters."""

    stage_sizes: tuple[int, ...] = (1, 1, 1, 1)  # basic blocks a stage, 1 to 6 stages; (2, 2, 2, 2) is a full ResNet-18
    width: Annotated[int, 1, 8192] = 64  # channels of the first stage; each later stage doubles them
    shortcut_kernel: Literal[1, 2, 3] = 1  # size of the projection shortcuts' kernel, pixels
    pool_size: Annotated[int, 1, 1024] = 4  # side of the average pool, pixels: that of the last feature map
    num_classes: Annotated[int, 2, 2**16] = 10
    # Of activations and products; parameters stay float32. auto: bfloat16 where the hardware multiplies it faster (GPUs
    # since Ampere, TPUs, CPUs with AVX512-BF16 or AMX), else float32. A run records which it was.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # Weights at the start. pytorch: its default, uniform within sqrt(1 / fan_in), the linear layer's bias too.
    # he: N(0, 2 / fan_in) (He et al. 2015); lecun: N(0, 1 / fan_in) (LeCun et al. 1998); in both the bias is 0.
    initializer: Literal["pytorch", "he", "lecun"] = "pytorch"

    def __post_init__(self) -> None:
        sizes = tuple(self.stage_sizes) if isinstance(self.stage_sizes, list) else self.stage_sizes
        object.__setattr__(self, "stage_sizes", sizes)
        ok = isinstance(sizes, tuple) and 1 <= len(sizes) <= 6 and all(type(n) is int and n >= 1 for n in sizes)
        allowed = "1 to 6 whole numbers, each 1 or more, together at most 300"
        _require(ok and sum(sizes) <= 300, "stage_sizes", sizes, allowed)
        _check_fields(self)

    def check_pool(self, image_size: int = 32) -> None:
        """Raise ConfigError unless the pool turns the last feature map into one pixel, as the linear layer needs."""
        stages = len(self.stage_sizes)
        side = -(-image_size // 2 ** (stages - 1))  # every stage but the first halves the map, rounding up
        which = f"{side}, the side of the last feature map of {stages} stages on {image_size} x {image_size} images"
        _require(self.pool_size == side, "pool_size", self.pool_size, f"{which}: the linear layer takes one pixel")


@_says_what_is_meant
@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of the training images. Everything at 0 / False leaves them as they are."""

    crop_padding: Annotated[int, 0, 31] = 4  # pixels added on every side before a random crop back; 0 = no crop
    pad_mode: Literal["zero", "reflect"] = "zero"  # zero = black, as the padding happens on raw pixels
    flip: bool = True  # mirror left to right with probability 0.5
    cutout_size: Annotated[int, 0, 64] = 8  # side of the one square hole, pixels, clipped at the border; 0 = none

    def __post_init__(self) -> None:
        _check_fields(self)


@_says_what_is_meant
@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and Lookahead. Names follow Optax. The defaults are those of the published main run,
    but for the schedule, which moves every step over the run's own length."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Number = 1e-2  # the schedule's peak
    b1: Decay = 0.9  # Adam: decay of the first moment, 0 to 0.999999
    b2: Decay = 0.999  # Adam: decay of the second moment, 0 to 0.999999
    eps: Annotated[float, 1e-20, MAX_FLOAT] = 1e-8  # Adam: added to the root of the second moment, 1e-20 or more
    momentum: Decay = 0.9  # SGD: decay of the trace, 0 to 0.999999
    nesterov: bool = False  # SGD: look one step ahead along the trace
    weight_decay: Number = 0.0  # adam, sgd: added to the gradient (as PyTorch); adamw: decoupled, times learning rate
    schedule: Literal["constant", "cosine", "onecycle", "warmup", "warmup_cosine", "triangular"] = "cosine"
    schedule_unit: Literal["step", "epoch"] = "step"  # what the schedule counts: optimiser steps, or finished epochs
    schedule_length: PositiveOrNone = None  # in units of schedule_unit; None = the run's own length
    warmup_fraction: Fraction = 0.3  # part of the length that rises (warmup, warmup_cosine, triangular, onecycle)
    cycle_momentum: bool = False  # onecycle: 0.95 -> 0.85 -> 0.95 against the rate, in place of b1 or momentum
    lookahead: bool = True  # wrap the optimiser in Lookahead (Zhang et al. 2019)
    sync_period: Positive = 5  # Lookahead's k: fast steps between synchronisations
    slow_step_size: Fraction = 0.5  # Lookahead's alpha, 0 to 1
    lookahead_momentum: Literal["none", "reset", "pullback"] = "none"  # what a synchronisation does to the momentum

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.cycle_momentum:
            allowed = f"False where schedule={self.schedule!r} (only 'onecycle' cycles the momentum)"
            _require(self.schedule == "onecycle", "cycle_momentum", True, allowed)
            name = "momentum" if self.optimizer == "sgd" else "b1"
            default, value = getattr(OptimConfig, name), getattr(self, name)
            _require(value == default, name, value, f"left at {default} where cycle_momentum=True, which moves it")


@_says_what_is_meant
@dataclass(frozen=True)
class TrainConfig:
    """One run: with a data set and nothing else it determines the result."""

    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: Annotated[int, 0, 2**32 - 1] = 0  # of initial weights, validation split and augmentation
    num_epochs: Annotated[int, 1, 10_000] = 51
    batch_size: Positive = 512  # images, over all devices together
    eval_batch_size: Annotated[int, 1, 2**20] = 500  # images a forward pass of evaluation; no effect on the result
    train_size: PositiveOrNone = None  # use only the first so many training images; None = all
    val_size: Count = 5000  # training images held out by seed to choose the epoch on; 0 = none
    selection: Literal["val", "last", "test"] = "val"  # the epoch reported: best on validation, last, best on test
    eval_weights: Literal["fast", "slow"] = "slow"  # Lookahead's weights that are evaluated (without it: the same)
    test_every_epoch: bool = False  # score the test set every epoch, not once; needed by selection="test"
    skip_nonfinite: Count = 0  # steps of the run that may be left out as their loss or gradient was not finite

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.selection == "val":
            _require(self.val_size > 0, "val_size", self.val_size, "above 0 where selection='val' (or pick 'last')")
        if self.selection == "test":
            _require(self.test_every_epoch, "test_every_epoch", False, "True where selection='test'")
        self.model.check_pool()
        # A schedule that is too short to rise would leave the whole run at a rate of 0 or near it.
        optim, name = self.optim, self.optim.schedule
        allowed = f"2 or more where schedule={name!r}"
        if name in ("warmup_cosine", "triangular", "onecycle"):  # up and down within the length
            _require(optim.schedule_length != 1, "schedule_length", 1, allowed)
        rises = name in ("warmup", "warmup_cosine", "triangular") and optim.warmup_fraction > 0
        if optim.schedule_unit == "epoch" and (rises or (name == "onecycle" and optim.schedule_length is None)):
            _require(self.num_epochs > 1, "num_epochs", 1, f"{allowed} counts epochs: the rate of the first is near 0")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types (tuples become lists)."""
    values = vars(config).items()
    return {k: to_dict(v) if is_dataclass(v) else list(v) if isinstance(v, tuple) else v for k, v in values}


def from_dict(cls: type, values: dict[str, Any], where: str = "config") -> Any:
    """The inverse of `to_dict`. A field that is not in `values` has its default.

    Raises ConfigError, which begins with `where`, on an unknown name, a wrong type or a value out of range.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a JSON object, found {type(values).__name__}")
    kinds: dict[str, Any] = {f.name: f.type for f in fields(cls)}
    _check_names(values, kinds, f"{where}: ")
    made = {k: from_dict(kinds[k], v, f"{where}.{k}") if is_dataclass(kinds[k]) else v for k, v in values.items()}
    try:
        return cls(**made)
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from e


def _check_names(names: Iterable[str], known: Iterable[str], where: str = "") -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{where}unknown field {short(name)}{_near(name, known)}")


def with_fields(config: Any, values: Mapping[str, Any]) -> Any:
    """`config` with the named fields replaced, wherever in the nested configs they are: names are unique.

    Raises ConfigError for a name that no field has, and for values that a config cannot have.
    """
    _check_names(values, _flat(config))
    return _replaced(config, values)


def _replaced(config: Any, values: Mapping[str, Any]) -> Any:
    old = vars(config).items()
    return type(config)(**{k: _replaced(v, values) if is_dataclass(v) else values.get(k, v) for k, v in old})


def _flat(config: Any) -> dict[str, Any]:
    """{name: value} of all fields, those of nested configs included."""
    flat: dict[str, Any] = {}
    for name, value in vars(config).items():
        flat |= _flat(value) if is_dataclass(value) else {name: value}
    return flat


def field_names(config: Any) -> set[str]:
    """Names of all fields, those of nested configs included."""
    return set(_flat(config))


def field_value(config: Any, name: str) -> Any:
    """The value of a field, wherever in the nested configs it is."""
    return _flat(config)[name]


def arm_dict(config: TrainConfig) -> dict[str, Any]:
    """`to_dict` of an arm: without the seed."""
    return {name: value for name, value in to_dict(config).items() if name != "seed"}


def with_new_fields(saved: Any, defaults: Any = None) -> Any:
    """A `TrainConfig` as it was saved, with the fields that were added later at their defaults, which change
    nothing. What is not a config stays as it is, and so does a missing seed: arms have none."""
    if defaults is None:
        defaults = arm_dict(TrainConfig())
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
