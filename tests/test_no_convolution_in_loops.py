"""Inside the body of a loop XLA:CPU convolves up to 50 times slower (weight gradients): no program of a run on CPU has
a convolution there. Matrix products are as fast there as outside (`benchmarks/conv_passes.py`)."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import PARTIAL

from jaxresnet import chunks
from jaxresnet.metrics import zero_totals
from jaxresnet.optim import epoch_hypers
from jaxresnet.parallel import Engine, Program
from jaxresnet.train import fit

pytestmark = pytest.mark.usefixtures("quick_compilation")
LOOPS = {"scan", "while"}
# Like no other test's, so that its programs are compiled here.
CONFIG = replace(PARTIAL, model=replace(PARTIAL.model, width=16, stage_sizes=(1, 1), pool_size=16), num_epochs=1)


def primitives(jaxpr, in_loop=False):
    """(name, whether it is in a loop) of everything that a jaxpr does."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield name, in_loop
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner, in_loop or name in LOOPS)


def count(primitive, fn, *args):
    """{whether it is in a loop: how often} for a primitive in `fn`."""
    found = [in_loop for name, in_loop in primitives(jax.make_jaxpr(fn)(*args).jaxpr) if name == primitive]
    return {in_loop: found.count(in_loop) for in_loop in (True, False)}


@pytest.mark.skipif(jax.devices()[0].platform != "cpu", reason="an epoch is a loop there")
@pytest.mark.parametrize(("bfloat16", "precision"), [("0", "float32"), ("1", "bfloat16")])
def test_no_program_of_a_run_has_a_convolution_in_a_loop(bfloat16, precision, monkeypatch, tiny_data):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", bfloat16)
    monkeypatch.setattr(chunks, "NUMBERS_PER_CHUNK", 3 * 32 * 32 * 9 * 16)  # so that there are loops, of products
    config = replace(CONFIG, model=replace(CONFIG.model, precision=precision))
    convolutions, products, gathers_of_bits = [], [], []
    compile_it = Program._compile

    def noted(program, *args):
        convolutions.append(count("conv_general_dilated", program._mapped, *args))
        products.append(count("dot_general", program._mapped, *args))
        gathers_of_bits.append("bitcast_convert_type[new_dtype=uint16]" in str(jax.make_jaxpr(program._mapped)(*args)))
        return compile_it(program, *args)

    monkeypatch.setattr(Program, "_compile", noted)
    fit(config, tiny_data, devices=jax.devices()[:1])
    assert len(convolutions) == 4, "two sizes of a training step, and evaluation of two data sets"
    assert not any(one[True] for one in convolutions), convolutions
    assert all((one[False] >= 1) == (precision == "float32") for one in convolutions), "in bfloat16 all are products"
    # Of evaluation, and of the smaller last step, which is in no loop over steps.
    assert sum(one[True] >= 3 for one in products) == (4 if precision == "bfloat16" else 2), products
    assert any(gathers_of_bits) == (bfloat16 == "1"), "the convolutions that are meant"


def test_the_epoch_of_an_accelerator_has_them():
    """So that one would be found."""
    steps = Engine(CONFIG, 260, tuple(jax.devices()[:1]))._steps
    state = jax.eval_shape(steps.init, np.uint32(0))
    images, labels = jax.ShapeDtypeStruct((260, 32, 32, 3), np.uint8), jax.ShapeDtypeStruct((260,), np.int32)
    hypers = epoch_hypers(CONFIG.optim, 5, 1, 0)
    in_a_mesh = jax.pmap(
        steps.train_epoch, axis_name="devices", in_axes=(*[None] * 6, 0), out_axes=None, devices=jax.devices()[:1]
    )
    ranks = jax.ShapeDtypeStruct((1,), np.int32)
    found = count("conv_general_dilated", in_a_mesh, state, zero_totals(), hypers, images, labels, np.int32(0), ranks)
    assert found[True] >= 5 and found[False] >= 5, "the steps in the loop, and the smaller last one after it"
