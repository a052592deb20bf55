"""What is printed, where it cannot be: no run fails of it, and results and their tables are there all the same."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from safetensors.numpy import save_file
from support.fake_results import fake_comparison
from support.fake_weights import numbers
from support.tiny import DEMO, RUN

import jaxresnet as jr
from jaxresnet.cli import exits
from jaxresnet.cli.exits import exit_status, stop_on_signal
from jaxresnet.cli.experiment import Experiment
from jaxresnet.cli.options import parse
from jaxresnet.comparison.progress import Hooks
from jaxresnet.reporting import figures
from jaxresnet.results.store import read_results

ARMS = {"Äpfel ± Birnen": jr.published["adam_512"].config}
FLAGS = [*DEMO, "--seeds", "0", "--num-epochs", "2", "--batch-size", "64"]


def experiments(*names):
    return [Experiment(name, {name: ARMS}, demo_images=256) for name in names]


def status(monkeypatch, *names, out=None):
    """The exit status of a script with these comparisons, whose stdout is `out`."""
    monkeypatch.setattr(sys, "argv", ["script.py", *FLAGS])
    monkeypatch.setattr(sys, "stdout", out)
    try:
        jr.run_experiment(*experiments(*names))
    except SystemExit as e:
        return e.code
    return 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_under_the_log_costs_the_log(small_demo, monkeypatch, capfd):
    with open("/dev/full", "w") as full:
        assert status(monkeypatch, "one", "two", out=full) == 0
    for name in ("one", "two"):
        assert not read_results(f"out/{name}-demo").missing
        assert Path(f"out/{name}-demo/summary.md").is_file()
    assert capfd.readouterr().err.count("stdout cannot be written") == 1
    assert Path("out/report.html").is_file()


def test_an_encoding_without_the_characters_shows_others(small_demo, monkeypatch):
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    assert status(monkeypatch, "one", "two", out=out) == 0
    printed = raw.getvalue().decode("ascii")
    assert "?pfel ? Birnen" in printed and printed.count("nothing to compare") == 2


def test_closed_streams_are_nobodys_failure(small_demo, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert status(monkeypatch, "one", out=None) == 0 and not read_results("out/one-demo").missing
    closed = io.StringIO()
    closed.close()
    assert status(monkeypatch, "three", out=closed) == 0 and not read_results("out/three-demo").missing


def test_report_prints_where_it_can(tmp_path):
    fake_comparison(tmp_path / "adam_lookahead")
    command = [sys.executable, "-m", "jaxresnet", "report", str(tmp_path / "adam_lookahead")]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://no.such_backend"}
    done = subprocess.run(command, capture_output=True, env=environ)
    assert done.returncode == 0 and b" ? 0." in done.stdout and done.stderr == b"", done.stderr
    assert (tmp_path / "adam_lookahead" / "figure.png").stat().st_size > 10_000
    reader, writer = os.pipe()
    os.close(reader)
    assert subprocess.run(command, stdout=writer, stderr=subprocess.PIPE).returncode == 141
    os.close(writer)


def test_a_hook_that_fails_is_not_the_runs_failure(tiny_data, tmp_path):
    def broken(*args):
        raise OSError("the log is full")

    with pytest.raises(OSError, match="the log is full"):
        jr.compare({"a": RUN}, [0], tiny_data, tmp_path, devices=jax.devices()[:1], hooks=Hooks(on_epoch=broken))
    (run,) = (tmp_path / "runs").iterdir()
    assert not (run / "failed.json").exists()
    comparison = jr.compare({"a": RUN}, [0], tiny_data, tmp_path, devices=jax.devices()[:1])
    assert comparison.report.complete


class Tee:
    """What some programs put in the place of stdout: it can write, and nothing else."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


class Ascii(Tee):
    """A stream of 7 bits that cannot be told to replace."""

    def write(self, text):
        super().write(text.encode("ascii").decode())

    def isatty(self):
        return True


class Gone(Tee):
    """A terminal whose connection is lost."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def fileno(self):
        raise OSError(errno.EBADF, "Bad file descriptor")

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    "stream", [None, io.StringIO, Tee, Ascii, Gone], ids=["None", "closed", "Tee", "ascii", "gone"]
)
def test_compare_in_a_program_of_ones_own_minds_no_stream(stream, tiny_data, tmp_path, monkeypatch):
    out = stream and stream()
    if isinstance(out, io.StringIO):
        out.close()
    monkeypatch.setattr(sys, "stdout", out)
    comparison = jr.compare({"Ä ±": RUN}, [0], tiny_data, tmp_path, devices=jax.devices()[:1])
    assert comparison.report.complete and sys.stdout is out
    assert not isinstance(out, Ascii) or "? ?, seed 0: epoch 3/3" in out.text


@pytest.mark.parametrize("progress", [True, False])
def test_compare_shows_its_progress_on_a_terminal_whatever_its_encoding(progress, terminal, tiny_data, tmp_path):
    screen = terminal(120)
    screen.file.reconfigure(encoding="ascii")
    jr.compare({"Ä ±": RUN}, [0], tiny_data, tmp_path, devices=jax.devices()[:1], progress=progress)
    assert screen.file.errors == "strict"
    assert ("? ?, seed 0: epoch 3/3" in screen.text()) == progress


# -------------------------------------------------------------------------------------------------------- figures


def test_the_users_own_figures_keep_their_backend():
    code = (
        "from jaxresnet.reporting.figures import to_png\n"
        "def make():\n from matplotlib.figure import Figure\n return Figure()\n"
        "to_png(make)\nimport matplotlib.pyplot as plt; print(plt.get_backend())"
    )
    environ = {**os.environ, "MPLBACKEND": "svg"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.stdout.strip() == "svg", done.stderr


def test_a_page_that_fails_costs_that_page(tmp_path, monkeypatch, capsys):
    from jaxresnet.reporting import report

    monkeypatch.setattr(report, "make_page", lambda section: 1 / 0)
    drawn = report.render(fake_comparison(tmp_path / "adam_lookahead"))
    assert drawn.table and drawn.summary_md.is_file() and not drawn.html.exists()
    assert "report.html: not written (ZeroDivisionError" in capsys.readouterr().err


def test_a_figure_that_fails_costs_that_figure(small_demo, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no fonts here")

    monkeypatch.setattr("jaxresnet.reporting.report.make_curves", broken)
    out = io.StringIO()
    assert status(monkeypatch, "one", "two", out=out) == 0
    assert out.getvalue().count("nothing to compare") == 2
    err = capsys.readouterr().err
    assert err.count("no fonts here") >= 2 and "figure.png: not drawn" in err
    summary = Path("out/one-demo/summary.md").read_text()
    assert "figure.png" not in summary and "Äpfel ± Birnen" in summary
    assert "<img" not in Path("out/one-demo/report.html").read_text()


def test_a_figure_of_before_does_not_stand_beside_new_numbers(tmp_path, capsys):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    assert figures.draw(path, lambda: 1 / 0) is None and not path.exists()
    assert "division by zero" in capsys.readouterr().err


def test_whatever_else_goes_wrong_in_one_comparison_the_next_one_runs(small_demo, monkeypatch, capsys):
    def broken(results, found):
        raise KeyError("a bug")

    from jaxresnet.reporting import report

    describe = report.describe_comparison
    monkeypatch.setattr(
        report, "describe_comparison", lambda r, f: (broken if "one" in r.config["name"] else describe)(r, f)
    )
    monkeypatch.setattr("jaxresnet.cli.main.render_tree", lambda root: None)
    monkeypatch.setattr("jaxresnet.cli.main._page_over_all", lambda root: "")
    assert status(monkeypatch, "one", "two", out=io.StringIO()) == 2
    assert not read_results("out/two-demo").missing and Path("out/two-demo/summary.md").is_file()
    assert "KeyError: 'a bug'" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_a_lost_connection_and_slurms_warning_stop_and_save(name):
    signum = getattr(signal, name)
    with stop_on_signal() as should_stop:
        signal.raise_signal(signum)
        assert should_stop()
    with pytest.raises(SystemExit) as e, exit_status():
        signal.raise_signal(signum)
    assert e.value.code == exits.EXIT_INTERRUPTED


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_what_is_ignored_at_the_start_stays_so(name):
    signum = getattr(signal, name)
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with exit_status(), stop_on_signal() as should_stop:
            signal.raise_signal(signum)
            assert not should_stop() and signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, before)


# -------------------------------------------------------------------------------------------------------- devices


def test_convert_without_a_backend(tmp_path):
    save_file(numbers(), tmp_path / "a.safetensors")
    command = [sys.executable, "-m", "jaxresnet", "convert", "a.safetensors", "folder"]
    environ = {**os.environ, "JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ)
    assert done.returncode == 2 and done.stderr.startswith("error: JAX finds no device with JAX_PLATFORMS=cuda")


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as e:
        parse([], ["--version"])
    assert e.value.code == 0 and capsys.readouterr().out == f"jaxresnet {jr.__version__}\n"


@pytest.mark.parametrize("platform", ["cuda", "no-such"])
def test_a_backend_that_is_absent_is_one_sentence(platform, tmp_path):
    script = Path(jr.__file__).parents[1] / "experiments" / "adam_lookahead.py"
    done = subprocess.run(
        [sys.executable, str(script), "--demo"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": platform},
    )
    assert done.returncode == 2 and list(tmp_path.iterdir()) == []
    assert f"error: JAX finds no device with JAX_PLATFORMS={platform}" in done.stderr and "Traceback" not in done.stderr
