"""Every reader of files that may come from elsewhere, each with valid files that are small, and how these are damaged.

CIFAR-10 has ten images a batch here: `small_cifar10` makes the library expect that.
"""

import contextlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random
from unittest import mock

import fuzz_mutations as edits
import numpy as np
from fake_cifar10 import bin_members, fake_splits, write_bin, write_npz, write_py, write_tar
from fake_results import fake_comparison, fake_measurement
from fake_weights import numbers
from fuzzing import Target

import jaxresnet as jr
from jaxresnet import cifar10_cache, cifar10_files, cifar10_tfds, model_table, page
from jaxresnet.cifar10 import read_verified, require_source
from jaxresnet.config import TrainConfig, from_dict, to_dict
from jaxresnet.errors import UserError
from jaxresnet.evaluate_runs import _markdown, render_evaluation
from jaxresnet.evaluation import confusion_matrix, per_class, worst_mistakes
from jaxresnet.evaluation_file import read_evaluation
from jaxresnet.findings import findings
from jaxresnet.measurement import read_measurement
from jaxresnet.report import render, render_measurement
from jaxresnet.results import read_results, write_json
from jaxresnet.tables import as_html, as_markdown

BATCH = 10
Change = Callable[[Random, dict[str, bytes]], dict[str, bytes | None]]


@contextlib.contextmanager
def small_cifar10() -> Iterator[dict]:
    """Fake splits of 50 and 10 images, which the readers take for CIFAR-10 meanwhile."""
    with mock.patch("fake_cifar10.BATCH", BATCH), mock.patch.object(cifar10_files, "IMAGES_PER_BATCH", BATCH):
        splits = fake_splits()
        labels = np.concatenate([splits["train"].labels, splits["test"].labels]).reshape(6, BATCH)
        crcs = tuple(map(cifar10_files.label_crc32, labels))
        with mock.patch.object(cifar10_files, "LABEL_CRC32", crcs):
            yield splits


def one_of(by_ending: dict[str, edits.Edit]) -> Change:
    """Damage one of the files whose name ends so; one time in fifty remove it, or put another file in its place."""

    def change(rng: Random, files: dict[str, bytes]) -> dict[str, bytes | None]:
        ending = rng.choice([ending for ending in by_ending if any(name.endswith(ending) for name in files)])
        name = rng.choice([name for name in files if name.endswith(ending)])
        if rng.random() < 0.02:
            return {name: rng.choice((None, b"", files[rng.choice(list(files))]))}
        return {name: by_ending[ending](rng, files[name])}

    return change


def targets(base: Path) -> list[Target]:
    """All of them, their files below `base`. Call it, and read, within `small_cifar10`."""
    made = [make(base / make.__name__) for make in (*DATA, *RESULTS, *WEIGHTS)]
    return [target for target in made if target]


# ------------------------------------------------------------------------------------------------------- data sets


def read_data(path: Path) -> None:
    check_splits(read_verified(require_source(path, "data_dir")))


def check_splits(splits: dict) -> None:
    for name, count in (("train", 5 * BATCH), ("test", BATCH)):
        images, labels = splits[name]
        assert images.dtype == np.uint8 and images.shape == (count, 32, 32, 3)
        assert labels.dtype == np.int32 and labels.shape == (count,) and labels.min() >= 0 and labels.max() <= 9


def binary(folder: Path) -> Target:
    write_bin(folder, fake_splits())
    return Target("CIFAR-10, binary", folder, read_data, one_of({".bin": edits.edit_bytes}))


def pickles(folder: Path) -> Target:
    write_py(folder, fake_splits())
    new = write_py(folder / "new", fake_splits(), protocol=4)  # as Python 3 writes them: some opcodes are its own
    for name in ("data_batch_2", "data_batch_3"):
        shutil.copy(new / name, folder / "cifar-10-batches-py" / name)
    shutil.rmtree(folder / "new")
    return Target("CIFAR-10, pickles", folder, read_data, one_of({"": edits.edit_pickle}))


def archive(folder: Path) -> Target:
    write_tar(folder / "any.tar.gz", bin_members(fake_splits()))
    read = lambda where: read_data(where / "any.tar.gz")  # noqa: E731
    return Target("CIFAR-10, .tar.gz", folder, read, one_of({".tar.gz": edits.edit_tar_gz}), 0.5)


def npz(folder: Path) -> Target:
    write_npz(folder / "any.npz", fake_splits())
    return Target("CIFAR-10, .npz", folder, read_data, one_of({".npz": edits.edit_npz}))


def cache(folder: Path) -> Target:
    """The folder in which a verified copy is kept. Half of the damaged files get a checksum that fits."""
    splits = fake_splits()
    cifar10_cache.write_cache(folder, {"version": 1}, splits)

    def read(where: Path) -> None:
        found = cifar10_cache.read_cache(where, {"version": 1})
        if found is None:
            raise UserError("written anew")
        check_splits(found)

    def change(rng: Random, files: dict[str, bytes]) -> dict[str, bytes | None]:
        changed = one_of({".npy": rng.choice((edits.edit_bytes, edits.edit_npy)), ".json": edits.edit_json})(rng, files)
        name, content = next(iter(changed.items()))
        if content and name.endswith(".npy") and rng.random() < 0.5:
            meta = json.loads(files["cache.json"])
            meta["crc32"][name.removesuffix(".npy")] = cifar10_cache.zlib.crc32(content)
            changed["cache.json"] = json.dumps(meta).encode()
        return changed

    return Target("CIFAR-10, the cache", folder, read, change)


def tfds(folder: Path) -> Target:
    """TensorFlow Datasets' folder: its JSON, its shards, and single examples in shards that are whole."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    with contextlib.redirect_stdout(io.StringIO()):
        cifar10_tfds._prepare(fake_splits(), folder / "made")
    prepared = folder / "cifar10" / "3.0.2"
    prepared.parent.mkdir(parents=True)
    shutil.move(folder / "made" / "cifar10" / "3.0.2", prepared)
    shutil.rmtree(folder / "made")
    (shard,) = prepared.glob("*test.array_record*")
    reader = ArrayRecordReader(str(shard))
    records = list(reader.read_all())
    reader.close()

    def edit_shard(rng: Random, content: bytes) -> bytes:
        if rng.random() < 0.4:
            return edits.edit_bytes(rng, content)
        path = folder.parent / "shard"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        chosen = rng.randrange(len(records))
        for i, record in enumerate(records):
            writer.write(edits.edit_record(rng, record) if i == chosen else record)
        writer.close()
        return path.read_bytes()

    def read(where: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read_data(where)

    by_ending = {shard.name: edit_shard, "info.json": edits.edit_json, "features.json": edits.edit_json}
    return Target("CIFAR-10, TFDS", folder, read, one_of({**by_ending, ".txt": edits.edit_bytes}), 0.05)


DATA = (pickles, binary, archive, npz, cache, tfds)


# --------------------------------------------------------------------------------------------------------- results

RESULTS_EDITS = {
    "config.json": edits.edit_json,
    ".jsonl": edits.edit_json_lines,
    "seed0.json": edits.edit_json,
    ".failed.json": edits.edit_json,
}


def small_comparison(folder: Path) -> None:
    run = TrainConfig(test_every_epoch=True, num_epochs=3)
    arms = ("A", "B + C")
    whole = {arm: {k: v for k, v in to_dict(run).items() if k != "seed"} for arm in arms}
    best = {"best": 90.0, "last": 89.0, "best_epoch": 2, "run": "adam_512", "source": "a notebook"}
    fake_comparison(folder, arms, (0, 1), num_epochs=3, unfinished=[("B + C", 1)], published={"A": best})
    written = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**written, "arms": whole})
    write_json(folder / "runs" / "b-c-seed1.failed.json", {"error": "the loss is not finite"})
    for path in sorted((folder / "runs").glob("*seed[0-9].json")):
        scores = json.loads(path.read_text())
        write_json(path, {**scores, "config": {**to_dict(run), "seed": scores["seed"]}, "environment": {"device": "x"}})


def is_safe_html(text: str) -> None:
    """No tag of a script, no handler, and no address, though texts may look like them."""
    assert "<script" not in text and "<img src=x" not in text and "\x00" not in text
    text.encode()


def comparison(folder: Path) -> Target:
    """config.json and all files of runs, with everything that is said of them but the drawing."""
    small_comparison(folder)

    def read(where: Path) -> None:
        results = read_results(where)
        found = findings(results)
        for arm in results.runs:
            assert all(
                isinstance(v, int | float) and math.isfinite(v) for v in results.scores(arm, "test_accuracy").values()
            )
        as_markdown(found.table).encode()
        json.dumps(found.summary, allow_nan=False, indent=2).encode()
        is_safe_html(page.document(found.title, [page.comparison(results, found, b"")]))

    return Target("a comparison", folder, read, one_of(RESULTS_EDITS))


def drawn_comparison(folder: Path) -> Target:
    small_comparison(folder)
    read = lambda where: is_safe_html(render(where).html.read_text())  # noqa: E731
    return Target("a comparison, drawn", folder, read, one_of(RESULTS_EDITS), 0.02)


def measurement(folder: Path) -> Target:
    fake_measurement(folder)

    def read(where: Path) -> None:
        found = read_measurement(where)
        as_html(model_table._table(found))
        "\n".join(model_table._notes(found)).encode()

    return Target("a measurement", folder, read, one_of({".json": edits.edit_json}))


def drawn_measurement(folder: Path) -> Target:
    fake_measurement(folder)
    read = lambda where: is_safe_html(render_measurement(where)[1].read_text())  # noqa: E731
    return Target("a measurement, drawn", folder, read, one_of({".json": edits.edit_json}), 0.02)


def small_evaluation(folder: Path) -> None:
    """evaluation.json as `evaluate_runs` writes it, of two runs and three classes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels, names = np.arange(30) % 3, ["cat", "dog", "ship"]
    probabilities = rng.dirichlet(np.ones(3), 30)
    matrix = confusion_matrix(labels, probabilities.argmax(1), 3)
    accuracy = 100 * float(np.trace(matrix)) / 30
    classes = [score._asdict() for score in per_class(matrix)]
    run = {"test_accuracy": accuracy, "recorded_test_accuracy": accuracy, "epoch": 1}
    mistakes = [one._asdict() for one in worst_mistakes(probabilities, labels, 5)]
    evaluation = {
        "title": "a title",
        "arm": "A",
        "dataset": {"name": "cifar10", "synthetic": False},
        "selection": "last epoch",
        "class_names": names,
        "num_test": 30,
        "seeds": [0, 1],
        "seeds_without_checkpoint": [2],
        "runs": {seed: {**run, "confusion": matrix.tolist(), "classes": classes} for seed in ("0", "1")},
        "mean_over_seeds": {"test_accuracy": accuracy, "interval_95": [20.0, 60.0], "classes": classes},
        "confusion_summed_over_seeds": (2 * matrix).tolist(),
        "mistakes": {"seed": 0, "worst_first": mistakes},
        "environment": {"jax": "0.10.2", "device": "a CPU"},
        "notes": [],
    }
    write_json(folder / "evaluation.json", evaluation)


def evaluation(folder: Path) -> Target:
    small_evaluation(folder)
    read = lambda where: _markdown(read_evaluation(where)).encode()  # noqa: E731
    return Target("an evaluation", folder, read, one_of({".json": edits.edit_json}))


def drawn_evaluation(folder: Path) -> Target:
    small_evaluation(folder)
    return Target("an evaluation, drawn", folder, render_evaluation, one_of({".json": edits.edit_json}), 0.02)


def config(folder: Path) -> Target:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", to_dict(TrainConfig()))

    def read(where: Path) -> None:
        try:
            values = json.loads((where / "config.json").read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError("no JSON: what reads files says so") from error
        made = from_dict(TrainConfig, values)
        again = json.loads(json.dumps(to_dict(made), allow_nan=False))
        assert from_dict(TrainConfig, again) == made and type(made.optim.b1) is float

    return Target("a config", folder, read, one_of({".json": edits.edit_json}))


RESULTS = (comparison, drawn_comparison, measurement, drawn_measurement, evaluation, drawn_evaluation, config)


# --------------------------------------------------------------------------------------------------------- weights


def check_variables(variables: dict) -> None:
    import jax

    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"float32"}


def safetensors(folder: Path) -> Target:
    import safetensors.numpy as st

    from jaxresnet.weight_files import read_weights

    folder.mkdir(parents=True)
    st.save_file(numbers(steps=7), folder / "weights.safetensors")
    read = lambda where: check_variables(read_weights(where / "weights.safetensors").variables)  # noqa: E731
    return Target("weights, .safetensors", folder, read, one_of({"": edits.edit_safetensors}), 0.2)


def pth(folder: Path) -> Target | None:
    if find_spec("torch") is None:
        return None
    import torch

    from jaxresnet.weight_files import read_weights

    folder.mkdir(parents=True)
    net = {name: torch.from_numpy(array) for name, array in numbers(steps=7).items()}
    torch.save({"net": net, "acc": 90.0, "epoch": 3}, folder / "weights.pth")
    read = lambda where: check_variables(read_weights(where / "weights.pth").variables)  # noqa: E731
    return Target("weights, .pth", folder, read, one_of({"": edits.edit_bytes}), 0.1)


def small_checkpoint(folder: Path) -> None:
    from jaxresnet.checkpoint import Checkpoints
    from jaxresnet.metrics import zero_totals
    from jaxresnet.model import build_model
    from jaxresnet.optim import make_optimizer
    from jaxresnet.state import create_train_state

    run = TrainConfig(model=jr.ModelConfig(stage_sizes=(1,), width=1, pool_size=32), num_epochs=1)
    state = create_train_state(build_model(run.model), make_optimizer(run.optim, 1, 1), 0)
    row = {"epoch": 0, "step": 0, "val_accuracy": 50.0, "test_accuracy": None}
    record = {"config": to_dict(run), "data": None, "history": [row], "seconds": 0.0, "best_step": 0}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, zero_totals(), record, 0)


def read_checkpoint(where: Path) -> None:
    from jaxresnet.weight_files import read_weights

    read = read_weights(where)
    check_variables(read.variables)


def checkpoint_record(folder: Path) -> Target:
    """The JSON part of a checkpoint: the run's config and its history."""
    small_checkpoint(folder)

    def change(rng: Random, files: dict[str, bytes]) -> dict[str, bytes | None]:
        name = next(name for name in files if name.endswith("_CHECKPOINT_METADATA"))
        content = json.loads(files[name])
        if rng.random() < 0.8:  # without its checksum, which older versions did not write, to get past it
            content["custom_metadata"].pop("crc32", None)
        return {name: edits.edit_json(rng, json.dumps(content).encode())}

    return Target("a checkpoint's record", folder, read_checkpoint, change, 0.03)


def checkpoint(folder: Path) -> Target:
    """The other files of a checkpoint, which Orbax and TensorStore read."""
    small_checkpoint(folder)
    by_ending = {"state/_METADATA": edits.edit_json, "_sharding": edits.edit_json, "": edits.edit_bytes}
    return Target("a checkpoint's files", folder, read_checkpoint, one_of(by_ending), 0.03)


WEIGHTS = (safetensors, pth, checkpoint_record, checkpoint)
assert os.name == "posix", "time limits need signals"
