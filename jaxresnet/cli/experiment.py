"""What an experiment script says: its comparisons, as arms of published configurations, and how they change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxresnet.config import TrainConfig, field_value, with_fields
from jaxresnet.data.dataset import Dataset
from jaxresnet.data.synthetic import make_synthetic
from jaxresnet.errors import ConfigError
from jaxresnet.recipes import intended

Arms = Mapping[str, TrainConfig]

# Images of the demo to choose the epoch on and to test on: as many, so that one program evaluates both.
DEMO_VAL = DEMO_TEST = 512


class Experiment(NamedTuple):
    """What one script can run.

    description: the script's docstring, printed by --help.
    comparisons: {name: {arm: config as published}}. The name is also that of the folder of results.
    optional: comparisons that run only with `--all`, or when `--only` names them.
    as_intended(arm, config): the arm as it was meant, from the arm as published.
    demo_images: training images of the demo, besides the images to choose the epoch on.
    after(folder, data): called when a comparison is finished. It may add files to the folder, and returns text to
        print.
    measurements: {name: fn(folder, demo)}: measured once, without training. fn writes measurement.json into the folder
        and returns text to print.
    """

    description: str
    comparisons: Mapping[str, Arms]
    optional: tuple[str, ...] = ()
    as_intended: Callable[[str, TrainConfig], TrainConfig] = lambda arm, config: intended(config)
    demo_images: int = 512
    after: Callable[[Path, Dataset], str] | None = None
    measurements: Mapping[str, Callable[[Path, bool], str]] = {}

    def select(self, only: Sequence[str], optional: bool) -> list[str]:
        """Names of the measurements and comparisons to run, in the script's order.

        only: whole names, or the part before the "-", which stands for all of them but the optional ones. Empty:
        everything. optional: the optional ones count as usual ones.
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

        Raises ConfigError for a field in which the arms differ: it is what they compare.
        """
        arms = dict(self.comparisons[comparison])
        if protocol == "intended":  # in the precision that suits the device; the published runs are float32
            arms = {n: with_fields(self.as_intended(n, config), {"precision": "auto"}) for n, config in arms.items()}
        if demo:
            arms = {name: as_demo(config) for name, config in arms.items()}
        for name in fields or {}:
            values = dict.fromkeys(repr(field_value(config, name)) for config in arms.values())
            if len(values) > 1:
                raise ConfigError(
                    f"--{name.replace('_', '-')}: the arms of {comparison} compare its values {', '.join(values)}. "
                    "Leave the flag out, or choose other comparisons with --only"
                )
        return {name: with_fields(config, fields or {}) for name, config in arms.items()}

    def demo_data(self) -> Dataset:
        """Synthetic images, the same at every call."""
        return make_synthetic(self.demo_images + DEMO_VAL, DEMO_TEST)


def as_demo(config: TrainConfig) -> TrainConfig:
    """The same run for two CPU cores: an eighth of the width and of the batch, a fifteenth of the epochs."""
    return replace(
        config,
        model=replace(config.model, width=config.model.width // 8),
        batch_size=config.batch_size // 8,
        num_epochs=max(1, config.num_epochs // 15),
        eval_batch_size=512,
        val_size=DEMO_VAL if config.val_size else 0,
    )
