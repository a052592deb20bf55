"""Inside the body of a loop XLA:CPU convolves up to 50 times slower (weight gradients): no program of a run on CPU has
a convolution there. Matrix products are as fast there as outside (`benchmarks/conv_passes.py`)."""

from dataclasses import replace

import compiling
import jax
import numpy as np
import pytest
from support.tiny import PARTIAL

import jaxresnet as jr
import jaxresnet.training.engine
from jaxresnet.nn.cpu import chunks
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.training.compilation import CompiledOnce
from jaxresnet.training.engine import Engine, Program
from jaxresnet.training.metrics import zero_totals

LOOPS = {"scan", "while"}
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
@pytest.mark.parametrize("protocol", ["intended", "published"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("bfloat16", ["0", "1"])
@pytest.mark.filterwarnings("ignore:precision=bfloat16 on a CPU not known to multiply it")
def test_no_program_of_a_run_has_a_convolution_in_a_loop(bfloat16, precision, protocol, monkeypatch):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", bfloat16)
    monkeypatch.setattr(chunks, "NUMBERS_PER_CHUNK", 3 * 32 * 32 * 9 * 16)  # so that there are loops, of products
    run = CONFIG if protocol == "intended" else replace(jr.published["adam_512"].config, batch_size=64)
    config = replace(run, model=replace(CONFIG.model, precision=precision), eval_batch_size=100)
    convolutions, products, moves_bits = [], [], []

    def noted(program, *args):
        convolutions.append(count("conv_general_dilated", program._mapped, *args))
        products.append(count("dot_general", program._mapped, *args))
        moves_bits.append("bitcast_convert_type[new_dtype=uint16]" in str(jax.make_jaxpr(program._mapped)(*args)))
        return compiling.not_run

    monkeypatch.setattr(Program, "_compile", noted)
    monkeypatch.setattr(jaxresnet.training.engine, "_compiled_once", lambda *_: CompiledOnce())
    compiling.prepare(config, Engine(config, 260, tuple(jax.devices()[:1])), 260, 100)
    assert len(convolutions) == 3, "two sizes of a training step, and evaluation"
    assert not any(one[True] for one in convolutions), convolutions
    without = precision == "bfloat16" and bfloat16 == "1"
    assert all((one[False] == 0) == without for one in convolutions), "then all are products"
    # Where there are convolutions, the kernel's gradients of the two training steps are products all the same.
    assert sum(one[True] >= 3 for one in products) == (3 if without else 2), products
    assert all(moves_bits) == any(moves_bits) == (precision == "bfloat16"), "the programs that are meant"


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
