"""What docs/scaling.md says of the cost is what the program does, and its commands are ones that there are."""

import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxresnet as jr
from jaxresnet.cli.options import parse
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.training.engine import make_engine
from jaxresnet.training.metrics import zero_totals

pytestmark = pytest.mark.devices(8)
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text()
CONFIG = jr.published["adam_512"].config
FLOP, BATCH = 1.52e9, 512  # an image; a step


@pytest.fixture(scope="module")
def all_reduced():
    """The number of elements of every all-reduce in a training step of the published network on eight devices."""
    engine = make_engine(CONFIG, 50_000)
    state = jax.eval_shape(engine._steps.init, jnp.uint32(0))
    shape = jax.ShapeDtypeStruct
    arguments = [
        *(state, jax.eval_shape(zero_totals)),
        jax.tree.map(lambda a: shape(np.shape(a), np.float32), epoch_hypers(CONFIG.optim, 98, CONFIG.num_epochs, 0)),
        *(shape((50_000, 32, 32, 3), np.uint8), shape((50_000,), np.int32)),
        *(jax.eval_shape(engine._steps.plan, state.key, 0), shape((), np.int32)),
    ]
    text = engine._train[BATCH]._mapped.lower(*arguments, shape((8,), np.int32)).as_text()
    results = re.findall(r'"stablehlo\.all_reduce".*?\}\) : \(.*?\) -> (.*?)\n', text, re.DOTALL)
    sizes = [[int(n) for n in tensor.split("x")[:-1]] for one in results for tensor in re.findall(r"<(.*?)>", one)]
    return len(results), sum(int(np.prod(size)) for size in sizes)


def test_bytes_and_number_of_the_all_reduces(all_reduced):
    number, elements = all_reduced
    gradients = jr.count_params(CONFIG.model)
    assert f"A step asks for {number} of them" in PAGE
    assert f"{gradients:,}\n  gradients and {elements - gradients:,} other float32 numbers" in PAGE
    channels = sum(leaf.size for leaf in jax.tree.leaves(statistics())) // 2
    assert f"{channels:,} channels" in PAGE and f"of which {4 * channels:,} are synchronised" in PAGE
    assert f"`G` = {4 * elements / 1e6:.2f} MB" in PAGE


def statistics():
    return jax.eval_shape(jr.build_model(CONFIG.model).init, jax.random.key(0))["batch_stats"]


def test_the_compute_an_image():
    macs = jr.count_macs(CONFIG.model)
    assert round(2 * 3 * macs, -7) == FLOP
    assert f"`F` = {FLOP / 1e9:.2f} GFLOP" in PAGE and f"{macs / 1e6:.0f} million multiply-adds" in PAGE


def test_the_table_is_the_formula():
    rows = [line.split("|")[2:-1] for line in PAGE.splitlines() if re.match(r"\|[^|]+\| \d+ \|", line)]
    assert len(rows) == 6
    for row in rows:
        n, tera, giga, micro, *shown = map(float, row)
        speed, width, latency = tera * 1e12, giga * 1e9, micro * 1e-6
        compute, gradients, small = BATCH * FLOP / n / speed, 2 * (n - 1) / n * 19.66e6 / width, 20 * latency
        faster = n * compute / (compute + gradients + small)
        expected = [1e3 * compute, 1e3 * gradients, 1e3 * small, faster, speed * (gradients + small) / FLOP]
        np.testing.assert_allclose(shown, expected, rtol=0.02, atol=0.05, err_msg=str(row))


def test_the_commands_are_ones_that_there_are():
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if not line.startswith("#")]
    assert len(commands) == 9
    for command in commands:
        script, flags = re.search(r"(experiments/\S+\.py)([^\"]*)", command).groups()
        names = {}
        exec(compile((ROOT / script).read_text(), script, "exec"), names)  # its __name__ is not __main__
        parse([names["EXPERIMENT"]], shlex.split(flags))
        if "launch" in command:
            assert re.search(r"launch --processes \d+ (--devices-per-process \d+ )?experiments", command)
