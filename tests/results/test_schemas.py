"""measurement.json and evaluation.json read back: what they hold, and every damage named."""

import json

import pytest
from support.fake_results import fake_evaluation, fake_measurement

from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json
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


def malformed_model(other):
    """The models of a measurement, one of which is damaged in one part."""

    def change(measurement):
        measurement["models"]["configuration 5"] |= other

    return change


@pytest.mark.parametrize(
    ("read", "change", "part"),
    [
        (read_measurement, {"name": "steps"}, "name"),
        (read_measurement, {"timing": {"batch_size": 16}}, "timing"),
        (read_measurement, {"environment": None}, "environment"),
        (read_measurement, {"models": {}}, "models"),
        (read_measurement, {"models": {"configuration 5": {"step_seconds": None}}}, "models"),
        (read_measurement, malformed_model({"step_seconds": [0.1, -0.1]}), "configuration 5"),
        (read_measurement, malformed_model({"step_seconds": ["0.1"]}), "configuration 5"),
        (read_measurement, malformed_model({"params": "4,903,242"}), "configuration 5"),
        (read_measurement, malformed_model({"model": {}}), "configuration 5"),
        (read_measurement, malformed_model({"problem_here": 3}), "configuration 5"),
        (read_evaluation, {"class_names": "cat"}, "class_names"),
        (read_evaluation, {"num_test": 0}, "num_test"),
        (read_evaluation, {"seeds": [-1]}, "seeds"),
        (read_evaluation, {"runs": {}}, "runs"),
        (read_evaluation, {"confusion_summed_over_seeds": [[1, 2], [3, 0.5]]}, "confusion_summed_over_seeds"),
        (read_evaluation, {"mean_over_seeds": {"test_accuracy": 101}}, "mean_over_seeds"),
        (read_evaluation, {"mistakes": {"seed": 0, "worst_first": [{"image": 3}]}}, "mistakes"),
    ],
)
def test_a_malformed_part_is_named(tmp_path, read, change, part):
    found = read(FAKES[read](tmp_path))
    found.update(change) if isinstance(change, dict) else change(found)
    write_json(PATHS[read](tmp_path), found)
    what = r"(a measurement of networks; restore it from a copy|the evaluation of a comparison; delete it and run)"
    with pytest.raises(ResultsError, match=rf"'{part}' is missing or malformed, so this is not {what}"):
        read(tmp_path)
