"""One contender of `compare_pytorch.py`, which starts it, as the process that `turns.serve` makes of it."""

import json
import sys
from typing import Any

import numpy as np
from turns import Unit, resident_peak, serve

import jaxresnet as jr

OURS = "jaxresnet"


def set_up(who: str, case: dict[str, Any]) -> Unit:
    """who: OURS, or a kind of `pytorch_step`.
    case: device, batch_size, precision, width, images (of an epoch) and steps (of a turn)."""
    model = jr.ModelConfig(width=case["width"], precision=case["precision"])
    optim = jr.OptimConfig(lookahead=False)  # else the published main run's: Adam at 1e-2
    config = jr.TrainConfig(model=model, optim=optim, batch_size=case["batch_size"], val_size=0, selection="last")
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
    from train_step import our_step

    from jaxresnet.hardware import environment

    try:
        jax.devices()
    except Exception as e:  # which one depends on what is missing
        raise RuntimeError(f"JAX finds no device of the platform {device}: {e}") from e
    run, _, engine = our_step(config, data, steps)

    def peak_memory() -> int:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or resident_peak()

    def about() -> dict[str, Any]:
        return {
            "how": f"a dispatch is {engine.dispatch}",
            "parameters": jr.count_params(config.model),
            "compile_seconds": engine.compile_seconds,
            "environment": environment(),
        }

    return Unit(run, peak_memory, about)


if __name__ == "__main__":
    serve(lambda: set_up(sys.argv[1], json.loads(sys.argv[2])))
