"""measurement.json and evaluation.json read back: what they hold, and every damage named."""

import json

import pytest
from support.fake_results import fake_evaluation, fake_measurement

from jaxresnet.errors import ResultsError
from jaxresnet.results.schemas import evaluation_path, measurement_path, read_evaluation, read_measurement

FAKES = {read_measurement: fake_measurement, read_evaluation: fake_evaluation}
PATHS = {read_measurement: measurement_path, read_evaluation: evaluation_path}


@pytest.mark.parametrize("read", FAKES)
def test_what_was_written_is_read_and_a_cut_file_is_named(tmp_path, read):
    path = PATHS[read](FAKES[read](tmp_path))
    assert read(tmp_path) == json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    with pytest.raises(ResultsError, match=rf"{path.name}, line \d+: cut off or damaged .*delete it"):
        read(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsError, match="not a text file"):
        read(tmp_path)
    path.write_text("[]")
    with pytest.raises(ResultsError, match="is missing or malformed, so this is not"):
        read(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        *({"name": "steps"}, {"demo": "yes"}, {"timing": {"batch_size": 16}}, {"environment": None}),
        *({"models": {}}, {"models": {"configuration 5": {"step_seconds": None}}}),
    ],
    ids=str,
)
def test_what_is_no_measurement_of_networks_is_refused(tmp_path, other):
    fake_measurement(tmp_path, **other)
    (part,) = other
    message = f"'{part}' is missing or malformed, so this is not a measurement of networks; restore it from a copy"
    with pytest.raises(ResultsError, match=message):
        read_measurement(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        *({"step_seconds": [0.1, -0.1]}, {"step_seconds": ["0.1"]}, {"median_step_seconds": None}),
        *({"params": "4,903,242"}, {"model": {}}, {"problem_here": 3}),
    ],
    ids=str,
)
def test_a_malformed_model_is_named(tmp_path, other):
    models = read_measurement(fake_measurement(tmp_path))["models"]
    models["configuration 5"] |= other
    fake_measurement(tmp_path, models=models)
    with pytest.raises(ResultsError, match="model 'configuration 5' is malformed"):
        read_measurement(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        *({"class_names": ["cat"]}, {"num_test": 0}, {"seeds": []}, {"seeds": [-1]}, {"runs": {}}),
        *({"confusion_summed_over_seeds": [[1, 2]]}, {"confusion_summed_over_seeds": [[1, 2], [3, 0.5]]}),
        *({"mean_over_seeds": {"test_accuracy": 101}}, {"mistakes": {"seed": 0, "worst_first": [{"image": 3}]}}),
    ],
    ids=str,
)
def test_what_is_no_evaluation_is_refused(tmp_path, other):
    fake_evaluation(tmp_path, **other)
    (part,) = other
    message = f"'{part}' is missing or malformed, so this is not the evaluation of a comparison; delete it and run"
    with pytest.raises(ResultsError, match=message):
        read_evaluation(tmp_path)


def test_a_class_without_images_has_no_accuracy(tmp_path):
    none = {"n": 0, "correct": 0.0, "accuracy": None, "low": None, "high": None}
    mean = read_evaluation(fake_evaluation(tmp_path))["mean_over_seeds"]
    fake_evaluation(tmp_path, mean_over_seeds={**mean, "classes": [mean["classes"][0], none]})
    assert read_evaluation(tmp_path)["mean_over_seeds"]["classes"][1]["accuracy"] is None
    fake_evaluation(tmp_path, mean_over_seeds={**mean, "classes": [mean["classes"][0], {**none, "n": 1}]})
    with pytest.raises(ResultsError, match="'mean_over_seeds' is missing or malformed"):
        read_evaluation(tmp_path)
