"""Eight virtual CPU devices for every test, and a data set small enough to train on in a test.

Set JAX_PLATFORMS (say, to cuda) to run the tests on something else, and JAXRESNET_TEST_DEVICES for another number of
virtual devices. Tests that need more devices than there are say so by `pytest.mark.devices(number)` and are skipped.
Where PyTorch is installed the parity tests
compare with it as well as with what it computed once.
"""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.util import find_spec

if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":  # read by JAX when it is first imported, below
    count = os.environ.get("JAXRESNET_TEST_DEVICES", "8")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"

os.environ.setdefault("JAXRESNET_CPU_BFLOAT16", "0")  # the same arithmetic on every CPU

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one process has compiled the others need not, nor the programs that tests start. The first to come here is
    # the one that starts the others, which inherit its environment.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxresnet-compiled-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import pytest

from jaxresnet.data.dataset import Dataset


@pytest.fixture(scope="module", autouse=True)
def what_other_files_left_is_gone():
    """JAX keeps what it has traced and compiled. Every program takes memory maps, of which Linux gives a process
    65,530; when they are used up, compiling aborts. And some tests collect garbage, which took most of a second with
    millions of old objects to look at: the engines, which other files may use again, are not looked at."""
    import jax

    jax.clear_caches()
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def quick_compilation():
    """LLVM leaves out its optimisations: for files of many small programs, whose arithmetic and structure XLA's own
    passes decide. What is fully optimised is held against PyTorch in test_parity_*.py, and trains everywhere else."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def a_step_a_dispatch():
    """A run can be stopped, and tells of itself, after any step. Else an epoch of a few images is one dispatch."""
    from jaxresnet.training import engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "IMAGES_PER_DISPATCH", {"bfloat16": 1, "float32": 1})
        yield


@pytest.fixture(scope="session")
def tiny_data() -> Dataset:
    from support.tiny import make_tiny_data

    return make_tiny_data()


def pytest_runtest_setup(item):
    import jax

    needed = max((mark.args[0] for mark in item.iter_markers("devices")), default=1)
    if needed > jax.device_count():
        pytest.skip(f"needs {needed} devices, and there are {jax.device_count()}")


def pytest_addoption(parser):
    parser.addoption("--parity-report", metavar="FILE", help="write the largest errors of the parity tests there")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist; without it, `pytest -o addopts=`
def pytest_xdist_auto_num_workers(config):
    """A process a core, each of some 2 GB. One alone on an accelerator, which they would not share, and where a report
    is gathered."""
    alone = os.environ["JAX_PLATFORMS"] != "cpu" or config.getoption("--parity-report")
    return 0 if alone else min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)


def pytest_configure(config):
    if config.getoption("--parity-report") and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--parity-report: the errors are gathered in one process; leave -n out")


def pytest_sessionfinish(session):
    path = session.config.getoption("--parity-report")
    if path and session.testscollected and not session.testsfailed:
        from support.parity import write_report

        write_report(path, ["pytest", *session.config.invocation_params.args])


WITH_PYTORCH = [
    pytest.mark.pytorch,
    pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed: pip install -e '.[parity]'"),
]


@pytest.fixture(params=["golden", pytest.param("live", marks=WITH_PYTORCH)])
def pytorch(request):
    """PyTorch's numbers: as kept in tests/support/golden, and, where it is installed, computed now."""
    from support.parity import Oracle

    return Oracle(request.param)


@pytest.fixture
def small_demo(monkeypatch, tmp_path):
    """An empty folder, one device, and demos of 300 images: with the flags `tiny.DEMO` runs are like `tiny.RUN`."""
    import jax

    from jaxresnet.cli import experiment

    make = experiment.make_synthetic
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "DEMO_VAL", 44)
    monkeypatch.setattr(experiment, "DEMO_TEST", 100)
    monkeypatch.setattr(experiment, "make_synthetic", lambda train, test: make(min(train, 300), test))
    devices = jax.devices()[:1]  # the engines of the other tests
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda: devices)


@pytest.fixture
def terminal(monkeypatch):
    """terminal(columns) -> a Terminal in the place of stdout and stderr."""
    if not hasattr(os, "openpty"):
        pytest.skip("this system has no pseudo-terminals")
    from support.terminal import Terminal

    opened = []

    def start(columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        opened.append(Terminal())
        monkeypatch.setattr("sys.stdout", opened[-1].file)
        monkeypatch.setattr("sys.stderr", opened[-1].file)
        return opened[-1]

    for name in ("LINES", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    yield start
    for each in opened:
        each.text()
