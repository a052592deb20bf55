"""Real processes that cannot write: a full disk, files that may not grow, a read-only folder. What they say, and that
the same command then ends in the results of a process that nothing happened to, byte for byte.

The disks are mounted, which takes root or sudo without a password.
"""

import os
import resource
import shutil
import subprocess

import pytest
from support.watched import Training, results_of

DRAWN = ("summary.json", "summary.md", "figure.png", "report.html")
KIB, NAME = 1024, "num_epochs-demo"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """The output folder of a process that nothing happened to."""
    folder = tmp_path_factory.mktemp("untouched")
    finish(folder)
    return folder / "out"


@pytest.fixture
def disk(tmp_path):
    """remount(options), of a disk of its own at tmp_path / "out"."""
    out = tmp_path / "out"
    out.mkdir()
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]

    def mount(*args):
        try:
            subprocess.run([*root, *args, str(out)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as e:
            pytest.skip(f"no disk can be mounted here: {getattr(e, 'stderr', b'') or e}")

    mount("mount", "-t", "tmpfs", "-o", f"size=64m,uid={os.geteuid()}", "tmpfs")
    yield lambda options: mount("mount", "-o", f"remount,{options}")
    mount("umount", "--lazy")


def refused(folder, largest_file=None):
    """What the command says before it gives up: one line, after that on what the one before has left half-written."""
    with Training(folder) as training:
        if largest_file:
            resource.prlimit(training.process.pid, resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        said = training.ended()
    assert training.process.returncode == 2, said
    *warnings, error = said.splitlines()
    assert error.startswith("error: "), said
    assert all(line.startswith("warning: ") and "half-written. " in line for line in warnings), said
    return error


def finish(folder):
    with Training(folder) as training:
        said = training.ended()
    assert training.process.returncode == 0 and "Traceback" not in said, said


def finished(out):
    return sorted(path.parent.name for path in out.glob("runs/*/scores.json"))


def test_a_disk_that_is_full_or_read_only_costs_nothing_that_is_finished(untouched, disk, tmp_path):
    out = tmp_path / "out"
    disk(f"size={4 * KIB}")
    assert "cannot be written" in refused(tmp_path)
    assert not list(out.glob("*/comparison.json"))

    disk(f"size={1600 * KIB}")  # for two checkpoints or three, of which each wants 1 MiB free
    assert "a checkpoint cannot be written" in refused(tmp_path)
    assert len(finished(out)) < 3 and list(out.glob("runs/*/checkpoints/*/record.json"))

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    disk("ro")
    assert "Read-only file system); choose another folder" in refused(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    disk("rw,size=64m")
    finish(tmp_path)
    assert results_of(out) == results_of(untouched)


def test_room_for_everything_but_the_figure(untouched, tmp_path):
    """The figure is the first file of more than 30,000 bytes."""
    out = tmp_path / "out"
    shutil.copytree(untouched, out, ignore=shutil.ignore_patterns(*DRAWN))
    assert "figure.png: cannot be written (File too large). Make room or allow it" in refused(tmp_path, 30_000)
    assert not list(out.glob("*/figure.png")) and not list(out.glob("*/.*.tmp"))
    (out / NAME / ".figure.png.1.tmp").write_text("what process 1 was writing when it was killed")
    finish(tmp_path)
    assert results_of(out) == results_of(untouched)
    assert not list(out.glob("*/.*.tmp"))
