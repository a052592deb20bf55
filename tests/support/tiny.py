"""The smallest runs that still have everything, and how their results are compared.

Compiling is what these tests cost, and engines are shared by all runs of a process that differ only in seed and in the
optimiser's numbers: so most tests take `RUN` or `PARTIAL` on one or on eight devices, and change numbers only.
"""

import json
from dataclasses import replace

import jax
import numpy as np

from jaxresnet.config import ModelConfig, TrainConfig
from jaxresnet.data.dataset import Dataset, Split
from jaxresnet.nn.resnet import build_model
from jaxresnet.training.state import Weights

MODEL = ModelConfig(stage_sizes=(1,), width=4, pool_size=32, precision="float32")

# Of `tiny_data`'s 300 training images: 256 to train on, 4 steps an epoch. Synchronises at steps 5 and 10 of 12.
RUN = TrainConfig(model=MODEL, num_epochs=3, batch_size=64, eval_batch_size=100, val_size=44)
# 260 to train on, 5 steps an epoch, the last of 4 images: they divide over 2 devices and not over 8.
PARTIAL = replace(RUN, val_size=40)


def make_tiny_data() -> Dataset:
    """300 training and 100 test images of noise: enough to run on, nothing to learn."""
    rng = np.random.default_rng(0)

    def split(num_examples: int) -> Split:
        images = rng.integers(0, 256, (num_examples, 32, 32, 3), np.uint8)
        return Split(images, rng.integers(0, 10, num_examples, np.int32))

    return Dataset(split(300), split(100), name="fake", synthetic=True)


def steady(config):
    """`config` with an optimiser that does not blow rounding up, for runs that are to agree to rounding.

    Adam with a small eps moves a weight with a gradient of 1e-6 as far as any other, and the rounding of a gradient
    is near that. The same engine serves it: these are numbers.
    """
    return replace(config, optim=replace(config.optim, eps=1e-2, learning_rate=2e-3))


STEADY, STEADY_PARTIAL = steady(RUN), steady(PARTIAL)

# Flags that make the demo of the published main run a `RUN`, with the fixture small_demo.
DEMO = ["--demo", "--stage-sizes", "1", "--pool-size", "32", "--width", "4", "--eval-batch-size", "100"]

TIMES = ("seconds", "images_per_second", "compile_seconds")


def without_times(row):
    return {k: v for k, v in row.items() if k not in TIMES}


def leaves(tree):
    """[(path, NumPy copy), ...]: copies, as the arrays of a state are given away to the next step."""
    return [(jax.tree_util.keystr(path), np.array(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def assert_same_bits(a, b):
    a, b = leaves(a), leaves(b)
    assert [path for path, _ in a] == [path for path, _ in b] and a
    for (path, x), (_, y) in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape, path
        assert x.tobytes() == y.tobytes(), f"{path}: {np.sum(x != y)} of {x.size} numbers differ"


def assert_same_to_rounding(a, b, rtol=1e-4):
    """Each array differs by at most `rtol` of its largest number: moments are small, and atol would hide them."""
    a, b = leaves(a), leaves(b)
    assert [path for path, _ in a] == [path for path, _ in b] and a
    for (path, x), (_, y) in zip(a, b, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape, path
        x, y = x.astype(np.float64), y.astype(np.float64)
        assert np.abs(x - y).max() <= rtol * np.abs(y).max(), path


def assert_same_run(a, b):
    """Results of two `fit`s agree bit for bit, timing aside."""
    assert list(map(without_times, a.history)) == list(map(without_times, b.history))
    assert without_times(a.summary) == without_times(b.summary)
    assert_same_bits(a.state, b.state)
    assert_same_bits(a.weights, b.weights)


def stop_after(calls):
    """A should_stop that says True at its so-manieth call and after it."""
    remaining = iter(range(calls - 1))
    return lambda: next(remaining, None) is None


def numpy_scores(config, weights: Weights, split, kind):
    """(loss in nats, accuracy in percent) over all of `split`, from the logits of one forward pass, in NumPy."""
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    images = ((split.images / 255 - mean) / std).astype(np.float32)
    variables = jax.tree.map(np.asarray, weights.variables(kind))
    logits = np.asarray(build_model(config.model).apply(variables, images, False)[0], np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    loss = -log_probabilities[np.arange(len(split.labels)), split.labels].mean()
    return loss, 100 * (logits.argmax(1) == split.labels).mean()


def contents(folder, timed=True):
    """{path: bytes} of all files but checkpoints and locks; with timed=False without the timing fields of the runs."""
    files = {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    files = {
        path.as_posix(): data
        for path, data in files.items()
        if "checkpoints" not in path.parts and not path.name.startswith(".")
    }
    if timed:
        return files

    def strip(path, data):
        rows = data.decode().splitlines() if path.endswith(".jsonl") else [data]
        stripped = [{k: v for k, v in json.loads(row).items() if k not in TIMES} for row in rows]
        return "\n".join(json.dumps(row) for row in stripped)

    return {path: strip(path, data) if path.startswith("runs/") else data for path, data in files.items()}


def script_scores(monkeypatch, **accuracies):
    """Have every split score as written here, in percent, one number a time. Returns the list of (split, variables)
    that were scored."""
    from jaxresnet.training import engine
    from jaxresnet.training.metrics import Sums

    scored: list = []

    def scripted(programs, variables, batches):
        split = "test" if sum(len(labels) for _, labels in batches) == 100 else "val"
        done = sum(name == split for name, _ in scored)
        scored.append((split, leaves(engine.unpacked(programs, variables))))
        return Sums(10_000, int(100 * accuracies[split][done]), 10_000)

    monkeypatch.setattr(engine, "evaluate", scripted)
    return scored
