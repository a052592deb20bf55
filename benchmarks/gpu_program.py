"""The program of an epoch as XLA compiles it for a GPU, without a GPU: what a step starts, and what it must move.

    pip install 'jax[cuda12]'
    JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python benchmarks/gpu_program.py results/gpu_program.json

XLA can compile for a device that is only described. The description here is that of an H100 (the H200 has the same chip
with faster memory). Nothing is run and nothing is timed: the JSON has the number of kernels, library calls and copies
that a step starts, the bytes that they must move and the arithmetic of its convolutions, and what the chip would need
for these alone at `--bandwidth` and `--flops`. cuDNN's algorithms are not chosen by trying, as there is nothing to try
them on; how XLA fuses, lays out and schedules is what it is on the device.

Each case is compiled as it is and with what was done for GPUs left out: the state as vectors (jaxresnet/packing.py) and
the gradient of batch normalisation (jaxresnet/batch_norm.py).
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
import jax.numpy as jnp
import numpy as np
from hlo import Program
from jax import lax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxresnet as jr
import jaxresnet.nn.resnet
import jaxresnet.training.steps
from jaxresnet.files import write_json
from jaxresnet.hardware import environment
from jaxresnet.nn.batch_norm import at_least_float32
from jaxresnet.optim.schedules import hypers_of, per_step
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.packing import AS_IT_IS
from jaxresnet.training.steps import AXIS, make_steps, steps_per_epoch

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Choosing algorithms by trying them needs the device.
OPTIONS: dict[str, Any] = {"xla_gpu_autotune_level": "0"}
FREE = ("bitcast", "constant", "get-tuple-element", "parameter", "tuple")  # start nothing


def plain_batch_norm(x: Any, scale: Any, bias: Any, eps: float, axis_name: str | None, _: bool = False) -> Any:
    """`batch_norm` with the gradient that JAX makes of it."""
    x32 = at_least_float32(x)
    mean, square = lax.pmean((x32.mean((0, 1, 2)), jnp.square(x32).mean((0, 1, 2))), axis_name)
    var = jnp.maximum(square - jnp.square(mean), 0)
    factor = scale * lax.rsqrt(var + eps)
    return (x * factor + (bias - mean * factor)).astype(x.dtype), mean, var


@contextmanager
def without(*parts: str) -> Iterator[None]:
    """Leave out "vectors", "batch_norm" or both."""
    with ExitStack() as stack:
        if "vectors" in parts:
            stack.enter_context(mock.patch.object(jaxresnet.training.steps, "vectors", lambda state: AS_IT_IS))
        if "batch_norm" in parts:
            stack.enter_context(mock.patch.object(jaxresnet.nn.resnet, "batch_norm", plain_batch_norm))
        yield


def compile_epoch(config: jr.TrainConfig, num_train: int, device: Any) -> Any:
    """The program of a whole epoch for a device that need not exist."""
    steps = make_steps(config, num_train, 1, "gpu")
    mesh = Mesh(np.array([device]), (AXIS,))

    def epoch(*args: Any) -> Any:
        whole = PartitionSpec()
        mapped = partial(jax.shard_map, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
        return mapped(lambda *args: steps.train_epoch(*args, jnp.int32(0)))(*args)

    num_steps = steps_per_epoch(num_train, config.batch_size)
    args = jax.eval_shape(
        lambda: (
            steps.init(jnp.uint32(0)),
            zero_totals(),
            jax.tree.map(jnp.float32, per_step(hypers_of(config.optim), num_steps)),
            jnp.zeros((num_train, 32, 32, 3), jnp.uint8),
            jnp.zeros(num_train, jnp.int32),
            jnp.int32(0),
        )
    )
    sharding = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), args)
    return jax.jit(epoch, donate_argnums=(0, 1)).lower(*placed).compile(dict(OPTIONS))


def describe(compiled: Any, bandwidth: float, flops: float, smallest_activation: int) -> dict[str, Any]:
    """What a pass of the longest loop of the program starts, moves and computes.

    smallest_activation: elements of the smallest array that lies between two layers."""
    program = Program(compiled.as_text())
    bodies = [name for i in program.instructions.values() if i.opcode == "while" for name in i.called]
    body = max((program.computations[name] for name in bodies), key=len)
    work = [i for i in body if i.opcode not in FREE]
    products = [product for i in work for product in program.products(i)]
    moved = {i.name: program.nbytes(i) for i in work}
    computed = sum(product.flops for product in products if product.kind == "convolution")
    convolutions = {i.name for i in work if any(p.kind == "convolution" for p in program.products(i))}
    by_bytes = sum(b for name, b in moved.items() if name not in convolutions) / bandwidth
    return {
        "started_a_step": len(work),
        "kernels": sum(i.opcode == "fusion" for i in work),
        "convolutions": len(convolutions),
        "copies": sum(i.opcode.startswith("copy") for i in work),
        "moving_less_than_a_megabyte": sum(b < 1e6 for b in moved.values()),
        "bytes_a_step": sum(moved.values()),
        "bytes_of_convolutions": sum(moved[name] for name in convolutions),
        "float32_activations": sum(
            shape.dtype == "f32" and len(shape.dims) > 1 and shape.size >= smallest_activation
            for i in work
            for shape in i.shapes
        ),
        "convolution_flops_a_step": computed,
        "floor_seconds_a_step": computed / flops + by_bytes,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="bytes a second (default: an H100's)")
    parser.add_argument("--flops", type=float, default=6.6e14, help="a second in bfloat16 (default: an H100's)")
    parser.add_argument("--flops-float32", type=float, default=3.3e14, help="a second in TF32 (default: half of that)")
    args = parser.parse_args()
    jax.devices()  # plugins are found, and a GPU's does not mind that there is none
    described = topologies.get_topology_desc("described", "cuda", target_config=H100, topology="1x1x1")
    device: Any = described.devices[0]
    cases = []
    for precision in args.precisions:
        for batch_size in args.batch_sizes:
            for left_out in ((), ("vectors",), ("batch_norm",), ("vectors", "batch_norm")):
                model = jr.ModelConfig(precision=precision, width=args.width)
                config = jr.TrainConfig(batch_size=batch_size, val_size=0, selection="last", model=model)
                with without(*left_out):
                    compiled = compile_epoch(config, args.images, device)
                case = {"precision": precision, "batch_size": batch_size, "without": list(left_out)}
                flops = args.flops if precision == "bfloat16" else args.flops_float32
                smallest = batch_size * 4 * 4 * 8 * args.width  # of the last stage
                cases.append(case := case | describe(compiled, args.bandwidth, flops, smallest))
                print(
                    f"{precision} {batch_size}, without {' and '.join(left_out) or 'nothing'}: "
                    f"{case['started_a_step']} started a step, {case['moving_less_than_a_megabyte']} of them for less "
                    f"than a megabyte; {case['bytes_a_step'] / 1e9:.2f} GB, "
                    f"floor {1e3 * case['floor_seconds_a_step']:.2f} ms, "
                    f"{case['temporary_bytes'] / 2**20:.0f} MiB",
                    flush=True,
                )
    write_json(args.out, {"environment": environment() | {"compiled_for": device.device_kind}, "cases": cases})


if __name__ == "__main__":
    main()
