"""The network that a benchmark trains: the published one, or another as small as a test wants it."""

from collections.abc import Sequence
from typing import Any

import jaxresnet as jr


def network(stage_sizes: Sequence[int], width: int, precision: Any) -> jr.ModelConfig:
    """However many stages, each on images half as large as those before it: what is left in the end is pooled whole.

    precision: "auto", "float32" or "bfloat16"."""
    pool_size = 32 // 2 ** (len(stage_sizes) - 1)
    return jr.ModelConfig(tuple(stage_sizes), width, pool_size=pool_size, precision=precision)
