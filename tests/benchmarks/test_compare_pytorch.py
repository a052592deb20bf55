"""The comparison with PyTorch: turns and their ratios with fake workers, and what both sides train on."""

import json
import sys
from pathlib import Path

import compare_pytorch
import compare_pytorch_worker as worker
import numpy as np
import pytest
from turns import speed_against

import jaxresnet as jr

FAKE = f"""
import sys
sys.path.insert(0, {str(Path(compare_pytorch.__file__).parent)!r})
from turns import Unit, serve

name, parameters, log = sys.argv[1:]

def run():
    with open(log, "a") as file:
        print(name, file=file)

serve(lambda: Unit(run, lambda: 5000, lambda: {{"parameters": int(parameters)}}))
"""
CASE = {"device": "cpu", "batch_size": 16, "precision": "float32", "width": 8, "images": 40, "steps": 2}


def compare(monkeypatch, folder, **parameters):
    """Two rounds with fake workers of so many parameters -> exit status, the case in the file, all units in order."""

    def command(entry, case):
        return [sys.executable, "-c", FAKE, entry.who, str(parameters.get(entry.who, 7)), str(folder / "log")]

    monkeypatch.setattr(compare_pytorch, "find_spec", lambda name: name == "torch")
    monkeypatch.setattr(compare_pytorch, "worker_command", command)
    flags = "--pairs 2 --batch-sizes 128 --precisions float32 --rivals eager compile"
    status = compare_pytorch.main([*flags.split(), str(folder / "out.json")])
    return status, json.loads((folder / "out.json").read_text())["cases"][0], (folder / "log").read_text().split()


def test_contenders_take_turns_and_a_speed_is_the_median_of_the_ratios_of_each_round(monkeypatch, tmp_path):
    status, case, units = compare(monkeypatch, tmp_path)
    in_turn = ["jaxresnet", "eager", "compile"]
    assert status == 0 and units[6:] == [*in_turn, *reversed(in_turn)], "after two units of warm-up each"
    seconds = {name: found["turn_seconds"] for name, found in case["contenders"].items()}
    for rival in ("eager float32", "compile float32"):
        assert case["against"][rival] == speed_against(seconds["jaxresnet"], seconds[rival])
    # Of the sums it would be 16 / 14, of the medians 5 / 3: a round that is slow for both counts as one round.
    assert speed_against([1.0, 10.0, 3.0], [2.0, 5.0, 9.0]) == {"speed": 2.0, "range": [0.5, 3.0]}


def test_what_does_not_pass_says_why_and_for_another_network_no_file_is_written(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"not the same network.*'jaxresnet': 7, 'eager float32': 8"):
        compare(monkeypatch, tmp_path, eager=8)
    assert not (tmp_path / "out.json").exists()
    status, case, _ = compare(monkeypatch, tmp_path, jaxresnet="none")
    assert status == 1 and case["against"] == {} and "none" in case["contenders"]["jaxresnet"]["failed"]
    monkeypatch.setattr(compare_pytorch, "find_spec", lambda name: None)
    assert compare_pytorch.main([]) == 2 and "pip install -e '.[parity]'" in capsys.readouterr().err


@pytest.mark.pytorch
def test_the_rival_trains_the_same_network_on_the_same_batches(monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")
    import pytorch_step

    batches, on_device = [], pytorch_step.on_device
    monkeypatch.setattr(pytorch_step, "on_device", lambda *args: batches.extend(on_device(*args)) or batches)
    monkeypatch.setattr(worker, "set_up_ours", lambda config, device, data, steps: data)
    # Not narrower: with channels that are no multiple of 8, PyTorch 2.13 writes beyond its memory on processors without
    # AVX-512 (oneDNN's weight gradient of a 1x1 convolution).
    data, rival = worker.set_up("jaxresnet", CASE), worker.set_up("eager", CASE)
    rival.run()
    assert rival.about()["parameters"] == jr.count_params(jr.ModelConfig(width=8))
    images = np.concatenate([batch.permute(0, 2, 3, 1) for batch, _ in batches])
    np.testing.assert_array_equal(images, data.images[:32].astype(np.float32) / 128 - 1)
    assert np.concatenate([targets for _, targets in batches]).tolist() == data.labels[:32].tolist()
