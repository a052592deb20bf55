"""What an epoch asks of the device, read off JAX's own trace: on an accelerator one dispatch, and one to evaluate."""

from pathlib import Path

import jax
import pytest
from support.tiny import RUN

import jaxresnet.training.fit
from jaxresnet.training.engine import Engine
from jaxresnet.training.fit import fit


@pytest.fixture(scope="module")
def executions(tiny_data, tmp_path_factory):
    """{whether an epoch is one dispatch: programs run in the third epoch}, validation included."""
    counts = {}
    for whole in (True, False):
        engine = Engine(RUN, 256, tuple(jax.devices()[:1]))
        engine.whole_epochs = whole
        folder = tmp_path_factory.mktemp("trace")

        def trace_the_third(history, folder=folder):
            if len(history) == 2:
                jax.profiler.start_trace(folder)
            elif len(history) == 3:
                jax.profiler.stop_trace()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jaxresnet.training.fit, "make_engine", lambda *_, engine=engine: engine)
            fit(RUN, tiny_data, on_epoch=trace_the_third)
        counts[whole] = count_executions(folder)
    return counts


def count_executions(folder: Path) -> int:
    (path,) = folder.rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event.name for plane in planes for line in plane.lines for event in line.events]
    # One for every start of a compiled program, however small.
    count = sum(name.endswith("LoadedExecutable::ExecuteHelperOnSingleDevice") for name in events)
    assert count, f"this version of jaxlib names it otherwise: {sorted({n for n in events if 'xecut' in n})}"
    return count


def test_an_epoch_is_one_dispatch_on_an_accelerator(executions):
    """The epoch, validation, and the copy of the state, where it is the best so far."""
    assert executions[True] in (2, 3)


def test_a_step_is_one_on_a_cpu(executions):
    assert executions[False] == executions[True] + 1 + 3, "the plan, and three steps more"
