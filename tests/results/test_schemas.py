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
    path.write_text("[]")
    with pytest.raises(ResultsError, match="is missing or malformed, so this is not"):
        read(tmp_path)


MODEL = "configuration 5"  # of which one part is damaged, in a measurement that has it


@pytest.mark.parametrize(
    ("read", "part", "value"),
    [
        (read_measurement, "name", "steps"),
        (read_measurement, "timing", {"batch_size": 16}),
        (read_measurement, "models", {}),
        (read_measurement, "models", {MODEL: {"step_seconds": None}}),
        (read_measurement, MODEL, {"step_seconds": [0.1, -0.1]}),
        (read_measurement, MODEL, {"params": "4,903,242"}),
        (read_measurement, MODEL, {"model": {}}),
        (read_evaluation, "class_names", "cat"),
        (read_evaluation, "runs", {}),
    ],
)
def test_a_malformed_part_is_named(tmp_path, read, part, value):
    found = read(FAKES[read](tmp_path))
    if part == MODEL:
        found["models"][MODEL].update(value)
    else:
        found[part] = value
    write_json(PATHS[read](tmp_path), found)
    what = r"(a measurement of networks; restore it from a copy|the evaluation of a comparison; delete it and run)"
    with pytest.raises(ResultsError, match=rf"'{part}' is missing or malformed, so this is not {what}"):
        read(tmp_path)
