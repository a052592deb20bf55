"""One contender of `compare_pytorch.py`, which starts it, as the process that `turns.serve` makes of it."""

import json
import sys
from typing import Any

import numpy as np
from turns import Unit, serve

import jaxresnet as jr

OURS = "jaxresnet"


def set_up(who: str, case: dict[str, Any]) -> Unit:
    """who: OURS, or a kind of `pytorch_step`.
    case: device, batch_size, precision, width, images (of an epoch) and steps (of a turn)."""
    from library_step import make_config

    config = make_config(jr.ModelConfig(width=case["width"], precision=case["precision"]), case["batch_size"])
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (case["images"], 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, case["images"]).astype(np.int32)
    if who == OURS:
        return set_up_ours(config, case["device"], jr.Split(images, labels), case["steps"])
    from pytorch_step import set_up as set_up_rival

    used = case["steps"] * case["batch_size"]
    return set_up_rival(who, config, case["device"], images[:used], labels[:used])


def set_up_ours(config: jr.TrainConfig, device: str, data: jr.Split, steps: int) -> Unit:
    import jax
    from library_step import LibraryStep, peak_memory

    from jaxresnet.hardware import environment, use_cores

    if config.model.precision == "bfloat16":
        use_cores()  # as the scripts do for a run alone in bfloat16 on a CPU
    try:
        jax.devices()
    except Exception as e:  # which one depends on what is missing
        raise RuntimeError(f"JAX finds no device of the platform {device}: {e}") from e
    ours = LibraryStep(config, data, steps)

    def about() -> dict[str, Any]:
        return {
            "how": f"a dispatch is {ours.dispatch}",
            "parameters": jr.count_params(config.model),
            "compile_seconds": ours.compile_seconds,
            "environment": environment(),
        }

    return Unit(ours.run, peak_memory, about)


if __name__ == "__main__":
    serve(lambda: set_up(sys.argv[1], json.loads(sys.argv[2])))
