"""A training step of the published network in PyTorch, as fast as PyTorch makes it: for `compare_pytorch.py`.

Kinds of it, all channels-last with Adam in its fused form:
    eager         operation by operation
    compile       forward pass and loss, and with them the backward pass, through torch.compile
    graphs        the same, and the whole step captured as one CUDA graph, so that the host costs nothing
    max-autotune  the same, with kernels that torch.compile picks by timing them; takes minutes to build
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tests_on_path  # noqa: F401
import torch
from support.golden import oracle
from torch.nn import functional
from turns import Unit, resident_peak

import jaxresnet as jr

HOW = {
    "eager": "channels-last, fused Adam",
    "compile": "channels-last, torch.compile of forward pass and loss, fused Adam",
    "graphs": "as compile, the whole step captured as one CUDA graph",
    "max-autotune": "as graphs, torch.compile with mode='max-autotune-no-cudagraphs'",
}
Step = Callable[[torch.Tensor, torch.Tensor], None]


def set_up(kind: str, config: jr.TrainConfig, device: str, images: np.ndarray, labels: np.ndarray) -> Unit:
    """A unit is one pass over `images`, uint8 (N, 32, 32, 3), in whole batches.

    device: "cpu" or "cuda". config: its precision "float32" allows TF32 on CUDA, as JAX does; "bfloat16" is autocast.
    """
    on_cuda = device == "cuda"
    if on_cuda and not torch.cuda.is_available():
        raise RuntimeError(
            "PyTorch finds no GPU: install the build for its CUDA, https://pytorch.org/get-started/locally"
        )
    if on_cuda:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
    precision = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.model.precision]
    net: Any = oracle.build(config.model).to(device, memory_format=torch.channels_last).train()
    optim = config.optim
    optimizer = torch.optim.Adam(
        net.parameters(),
        lr=optim.learning_rate,
        betas=(optim.b1, optim.b2),
        eps=optim.eps,
        fused=True,
        capturable=on_cuda and kind not in ("eager", "compile"),
    )

    def loss_fn(batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # No cache of cast weights: each is used once a step, and a captured graph must not hold on to one.
        with torch.autocast(device, torch.bfloat16, enabled=precision is torch.bfloat16, cache_enabled=False):
            return functional.cross_entropy(net(batch), targets)

    if kind != "eager":
        mode = "max-autotune-no-cudagraphs" if kind == "max-autotune" else None
        loss_fn = torch.compile(loss_fn, mode=mode, dynamic=False)

    def step(batch: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_fn(batch, targets).backward()
        optimizer.step()

    batches = on_device(images, labels, config.batch_size, device, precision)
    run_step = step if kind in ("eager", "compile") else captured(step, *batches[0])

    def run() -> None:
        for batch in batches:
            run_step(*batch)
        if on_cuda:
            torch.cuda.synchronize()

    def peak_memory() -> int:
        return torch.cuda.max_memory_allocated() if on_cuda else resident_peak()

    def about() -> dict[str, Any]:
        if on_cuda:  # the memory that cuDNN tries its algorithms with is no part of training
            torch.cuda.reset_peak_memory_stats()
        parameters = sum(p.numel() for p in net.parameters())
        return {"how": HOW[kind], "parameters": parameters, "environment": torch_environment(on_cuda)}

    return Unit(run, peak_memory, about)


def on_device(
    images: np.ndarray, labels: np.ndarray, batch_size: int, device: str, precision: torch.dtype
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Normalised batches of (B, 3, 32, 32), in memory as (B, 32, 32, 3), which is what channels-last means."""
    batches = []
    for i in range(0, len(images) - batch_size + 1, batch_size):
        batch = torch.from_numpy(images[i : i + batch_size]).to(device).permute(0, 3, 1, 2)
        targets = torch.from_numpy(labels[i : i + batch_size].astype(np.int64)).to(device)
        batches.append((batch.to(torch.float32).div(128).sub(1).to(precision), targets))
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch, _ in batches)
    return batches


def captured(step: Step, batch: torch.Tensor, targets: torch.Tensor) -> Step:
    """`step` as one CUDA graph, which reads its batch from memory of its own."""
    given = batch.clone(), targets.clone()  # clone keeps the layout
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is made at the first steps must exist before a capture, see torch.cuda.graph
        for _ in range(3):
            step(*given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*given)

    def replay(batch: torch.Tensor, targets: torch.Tensor) -> None:
        given[0].copy_(batch)
        given[1].copy_(targets)
        graph.replay()

    return replay


def torch_environment(on_cuda: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if on_cuda:
        found |= {
            "device": torch.cuda.get_device_name(),
            "capability": list(torch.cuda.get_device_capability()),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    else:
        found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    return found
