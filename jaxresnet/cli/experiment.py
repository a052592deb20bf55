"""What an experiment script says: comparisons as arms of published configurations, and how they are to be changed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxresnet.config import TrainConfig, field_value, with_fields
from jaxresnet.data.dataset import Dataset
from jaxresnet.errors import ConfigError
from jaxresnet.recipes import intended

Arms = Mapping[str, TrainConfig]

# Names of the protocols, and what they add to the name of a comparison's folder.
PROTOCOLS = {"intended": "", "published": "-published"}

# The demo: a quarter of the width, an eighth of the batch, a fifteenth of the epochs. No smaller last batch, and as
# many validation as test images: one shape less to compile each.
DEMO_VAL = DEMO_TEST = 512


class Experiment(NamedTuple):
    """Comparisons that one script runs.

    description: the script's docstring, printed by --help.
    comparisons: {name: {arm: config as published}}; the name is that of the folder of results.
    optional: names of comparisons that run only when `--only` names them or with `--all`.
    as_intended(arm, config): turns an arm as published into the arm as it was meant.
    demo_images: training images of the demo, on synthetic data.
    after(folder, data): called when a comparison is finished; may write more files into its folder, returns the text to
        print.
    measurements: {name: fn(folder, demo)}: what is measured without comparing runs, before the comparisons. fn writes
        into the folder, measurement.json last, and returns the text to print. One that is there is not repeated.
    """

    description: str
    comparisons: Mapping[str, Arms]
    optional: tuple[str, ...] = ()
    as_intended: Callable[[str, TrainConfig], TrainConfig] = lambda arm, config: intended(config)
    demo_images: int = 512
    after: Callable[[Path, Dataset], str] | None = None
    measurements: Mapping[str, Callable[[Path, bool], str]] = {}

    def select(self, only: Sequence[str], optional: bool) -> list[str]:
        """Names of the measurements and comparisons that a command asks for, in the script's order.

        only: names, or the part of names before a "-"; empty for all but the optional ones, and those with `optional`.
        """
        names = [*self.measurements, *self.comparisons]
        usual = [name for name in names if optional or name not in self.optional]
        if not only:
            return usual
        return [name for name in names if name in only or (name in usual and name.partition("-")[0] in only)]

    def arms(
        self, comparison: str, protocol: str, demo: bool = False, fields: Mapping[str, Any] | None = None
    ) -> dict[str, TrainConfig]:
        """The arms of one comparison under a protocol, with `fields` ({name: value}) set in every arm.

        Raises ConfigError for a field in which the arms differ, as it is what they compare.
        """
        arms = dict(self.comparisons[comparison])
        if protocol == "intended":
            # In the arithmetic that suits the device, where the published runs are float32.
            arms = {n: with_fields(self.as_intended(n, config), {"precision": "auto"}) for n, config in arms.items()}
        if demo:
            arms = {name: as_demo(config) for name, config in arms.items()}
        for name in fields or {}:
            values = [repr(field_value(config, name)) for config in arms.values()]
            if len(set(values)) > 1:
                flag, listed = name.replace("_", "-"), ", ".join(dict.fromkeys(values))
                raise ConfigError(
                    f"--{flag}: the arms of {comparison} set it themselves, to {listed}; leave the flag out, or choose "
                    "other comparisons with --only"
                )
        return {name: with_fields(config, fields or {}) for name, config in arms.items()}


def as_demo(config: TrainConfig) -> TrainConfig:
    """The same run, small enough for a demo on two CPU cores."""
    return replace(
        config,
        model=replace(config.model, width=config.model.width // 4),
        batch_size=config.batch_size // 8,
        num_epochs=max(1, config.num_epochs // 15),
        eval_batch_size=512,
        val_size=DEMO_VAL if config.val_size else 0,
    )
