"""measurement.json read back: what it holds, and every damage named."""

import json

import pytest
from support.fake_results import fake_measurement

from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json
from jaxresnet.results.measurement import measurement_path, read_measurement


def test_what_was_written_is_read(tmp_path):
    found = read_measurement(fake_measurement(tmp_path))
    assert found == json.loads(measurement_path(tmp_path).read_text()) and found["demo"] is True
    write_json(measurement_path(tmp_path), {key: value for key, value in found.items() if key != "demo"})
    assert "demo" not in read_measurement(tmp_path)  # older ones do not say


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"name": "steps"}, "'name' is not 'model_parameters', so this is not a measurement of networks"),
        ({"demo": "yes"}, "'demo' is missing or malformed"),
        ({"timing": {"batch_size": 16}}, "'timing' is missing or malformed"),
        ({"environment": None}, "'environment' is missing or malformed"),
        ({"models": {}}, "'models' is missing or malformed"),
    ],
)
def test_what_is_no_measurement_of_networks_is_refused(tmp_path, other, message):
    fake_measurement(tmp_path, **other)
    with pytest.raises(ResultsError, match=f"{message}.*; restore it from a copy"):
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


def test_a_cut_file_is_named_with_its_line(tmp_path):
    path = measurement_path(fake_measurement(tmp_path))
    path.write_text(path.read_text()[:100])
    with pytest.raises(ResultsError, match=r"measurement\.json, line \d+: cut off or damaged"):
        read_measurement(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsError, match="not a text file"):
        read_measurement(tmp_path)
