"""PyTorch's side of the parity tests: the published network, optimisers, schedules and training, on the CPU.

Written from the published project's description and from the papers; needs PyTorch, which jaxresnet does not.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from support.golden import cases
from torch import nn
from torch.nn import functional

from jaxresnet.config import ModelConfig, OptimConfig, TrainConfig

Arrays = dict[str, np.ndarray]


class Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int, shortcut_kernel: int):
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()  # modules, so that `nearest_kink` sees what they are given
        self.shortcut = nn.Sequential()
        if stride != 1 or into != out:
            # The published 3x3 shortcut has no padding, and fails; padded it runs.
            projection = nn.Conv2d(into, out, shortcut_kernel, stride, shortcut_kernel // 3, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.relu = nn.ReLU()
        into, self.num_stages = config.width, len(config.stage_sizes)
        for i, num_blocks in enumerate(config.stage_sizes):
            out = config.width * 2**i
            blocks = []
            for j in range(num_blocks):
                blocks.append(Block(into, out, 2 if i > 0 and j == 0 else 1, config.shortcut_kernel))
                into = out
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.pool_size = config.pool_size
        self.linear = nn.Linear(into, config.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for i in range(self.num_stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.linear(functional.avg_pool2d(x, self.pool_size).flatten(1))


def build(config: ModelConfig) -> ResNet:
    """The network with PyTorch's own random weights."""
    return ResNet(config)


def network(config: ModelConfig, tensors: Arrays) -> ResNet:
    """The network with the given weights; the counts of batches, which do nothing, are left at 0."""
    net = build(config)
    counts = {name: t for name, t in net.state_dict().items() if name.endswith("num_batches_tracked")}
    net.load_state_dict({**{name: torch.from_numpy(t.copy()) for name, t in tensors.items()}, **counts}, strict=True)
    return net


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def numpy(tensors: dict[str, torch.Tensor]) -> Arrays:
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def logits(name: str, batch: int) -> Arrays:
    """In training and in inference mode, each from the same weights."""
    config = cases.NETWORKS[name]
    images = channels_first(cases.images(name, batch))
    with torch.no_grad():
        inference = network(config, cases.state_dict(config)).eval()(images)
        training = network(config, cases.state_dict(config)).train()(images)
    return numpy({"inference": inference, "training": training})


def gradients(name: str, batch: int) -> Arrays:
    """Of the mean cross-entropy with respect to every parameter, in PyTorch's names and layout; and the loss."""
    tensors, images, labels, dtype = cases.gradient_case(name, batch)
    return loss_and_gradients(network(cases.NETWORKS[name], tensors).to(getattr(torch, dtype)), images, labels)


def loss_and_gradients(net: ResNet, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """In the network's own dtype."""
    net.zero_grad()
    logits = net.train()(channels_first(images).to(net.linear.weight.dtype))
    loss = functional.cross_entropy(logits, torch.from_numpy(labels.astype(np.int64)))
    loss.backward()
    grads = {parameter: p.grad for parameter, p in net.named_parameters() if p.grad is not None}
    return numpy({**grads, "loss": loss})


def nearest_kink(net: ResNet, images: np.ndarray) -> float:
    """The smallest distance from zero, over all ReLUs, of what they are given in training mode, in float64."""
    nearest = []
    net = net.double().train()
    relus = [module for module in net.modules() if isinstance(module, nn.ReLU)]
    hooks = [r.register_forward_hook(lambda _, given, __: nearest.append(given[0].abs().min().item())) for r in relus]
    with torch.no_grad():
        net(channels_first(images).double())
    for hook in hooks:
        hook.remove()
    return min(nearest)


def batch_norms() -> Arrays:
    """Every running mean and variance of the default network while it sees batch after batch."""
    config = ModelConfig()
    net = network(config, cases.initial_state_dict(config)).train()
    found: Arrays = {}
    with torch.no_grad():
        for step in range(1, max(cases.BATCH_NORM_STEPS) + 1):
            net(channels_first(cases.images(f"step {step}", cases.BATCH_NORM_BATCH)))
            if step in cases.BATCH_NORM_STEPS:
                running = {f"{n}, step {step}": t for n, t in net.state_dict().items() if "running" in n}
                found |= numpy(running)
    return found


class Lookahead:
    """Lookahead as the published project describes it: every `k` steps of `inner` the slow weights go `alpha` of the
    way to the fast ones, which restart there. `momentum`: "none" leaves the inner momentum, "reset" zeroes it,
    "pullback" moves it like the weights, from its value after the last synchronisation, zero at first."""

    def __init__(self, inner: torch.optim.Optimizer, k: int, alpha: float, momentum: str):
        self.inner, self.k, self.alpha, self.momentum, self.count = inner, k, alpha, momentum, 0
        self.parameters = [p for group in inner.param_groups for p in group["params"]]
        self.slow = [p.detach().clone() for p in self.parameters]
        self.kept = [torch.zeros_like(p) for p in self.parameters]

    def step(self) -> None:
        self.inner.step()
        self.count += 1
        if self.count % self.k:
            return
        for parameter, slow, kept in zip(self.parameters, self.slow, self.kept, strict=True):
            parameter.data.mul_(self.alpha).add_(slow, alpha=1 - self.alpha)
            slow.copy_(parameter.data)
            for name in ("momentum_buffer", "exp_avg"):
                momentum = self.inner.state[parameter].get(name)
                if momentum is None or self.momentum == "none":
                    continue
                if self.momentum == "reset":
                    momentum.zero_()
                else:
                    momentum.mul_(self.alpha).add_(kept, alpha=1 - self.alpha)
                    kept.copy_(momentum)


def optimizer(config: OptimConfig, parameters: list[torch.Tensor]) -> torch.optim.Optimizer | Lookahead:
    """At the config's peak learning rate."""
    inner: torch.optim.Optimizer
    if config.optimizer == "sgd":
        inner = torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    else:
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        inner = kind(
            parameters,
            lr=config.learning_rate,
            betas=(config.b1, config.b2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    if not config.lookahead:
        return inner
    return Lookahead(inner, config.sync_period, config.slow_step_size, config.lookahead_momentum)


def descents() -> Arrays:
    """The weights after every step, (50, 4), of every optimiser."""
    found = {}
    for descent, config in cases.DESCENTS.items():
        weights = {name: torch.from_numpy(w.copy()) for name, w in cases.DESCENT_START.items()}
        tx = optimizer(config, list(weights.values()))
        path = []
        for step in range(cases.DESCENT_STEPS):
            for name, w in weights.items():
                noise = torch.from_numpy(cases.DESCENT_NOISE[name][step])
                w.grad = torch.from_numpy(cases.DESCENT_CURVATURE[name]) * w + noise
            tx.step()
            path.append(np.concatenate([w.numpy().copy() for w in weights.values()]))
        found[descent] = np.stack(path)
    return found


def make_scheduler(config: OptimConfig, inner: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Over `schedule_length` of its own steps."""
    length = config.schedule_length
    if config.schedule == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            inner, config.learning_rate, total_steps=length, pct_start=config.warmup_fraction
        )
    return torch.optim.lr_scheduler.CosineAnnealingLR(inner, T_max=length)


def rates() -> Arrays:
    """The learning rate before every step of each scheduler, and what OneCycle makes of the momentum."""
    found = {}
    for name, (config, count) in cases.RATES.items():
        inner = optimizer(replace(config, lookahead=False), [torch.zeros(1, requires_grad=True)])
        assert isinstance(inner, torch.optim.Optimizer)
        scheduler = make_scheduler(config, inner)
        path, momenta = [], []
        for _ in range(count):
            (group,) = inner.param_groups
            path.append(group["lr"])
            momenta.append(group["momentum"] if config.optimizer == "sgd" else group["betas"][0])
            inner.step()
            scheduler.step()
        found[name] = np.float32(path)
        found[f"{name}, momentum"] = np.float32(momenta)
    return found


def training_steps(
    config: TrainConfig,
    tensors: Arrays,
    images: np.ndarray,
    labels: np.ndarray,
    draws: cases.Draws,
    dtype: str = "float32",
    nudge: float = 0.0,
) -> Iterator[tuple[float, ResNet]]:
    """(loss before the step, network after it) for every whole batch of an epoch. A schedule that moves once an epoch
    is at its peak.

    nudge: the part by which each weight of the first layer is made larger or smaller before."""
    net = network(config.model, tensors).to(getattr(torch, dtype))
    first = net.conv1.weight.data
    signs = torch.from_numpy(cases.uniform("nudge", tuple(first.shape)) - 0.5).sign()
    first.mul_(1 + nudge * signs.to(first.dtype))
    tx = optimizer(config.optim, list(net.parameters()))
    inner = tx.inner if isinstance(tx, Lookahead) else tx
    scheduler = make_scheduler(config.optim, inner) if config.optim.schedule_unit == "step" else None
    for start in range(0, len(draws.order) - config.batch_size + 1, config.batch_size):
        rows = cases.Draws(*(column[start : start + config.batch_size] for column in draws))
        batch = cases.augmented(cases.cropped(images[rows.order], rows, config.augment), rows, config.augment, dtype)
        loss = loss_and_gradients(net, batch, labels[rows.order])["loss"]
        tx.step()
        if scheduler:
            scheduler.step()
        yield float(loss), net


def losses(name: str) -> Arrays:
    """Of the first steps of a published protocol, (steps,), and in float64 some tensors after them. See
    `cases.TRAININGS`."""
    config, _, dtype = cases.TRAININGS[name]
    images, labels = cases.training_set(name)
    draws = cases.draws(len(images), config.augment)
    steps = list(training_steps(config, cases.initial_state_dict(config.model), images, labels, draws, dtype))
    last = numpy(steps[-1][1].state_dict())
    looked_at = cases.LOOKED_AT if dtype == "float64" else ()  # in float32 training has magnified the rounding by then
    return {"losses": np.float64([loss for loss, _ in steps]), **{name: last[name] for name in looked_at}}
