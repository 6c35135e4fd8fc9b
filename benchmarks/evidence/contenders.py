"""The contenders: how each trains on images, and the logits that it then draws.

Every contender is a function of a task, settings and a seed. It trains one epoch at a time, and
between epochs gives a function from images ``(N, ...)`` and a number of draws ``K`` to logits
``(K, N, classes)``, with the objects whose ``state_dict`` that function depends on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample
from torch import Tensor, nn

import pyro_ibvi as ibvi

from .data import LabelledData
from .implicit_bias import make_svi
from .networks import NETWORKS, with_dropout

Draw = Callable[[Tensor, int], Tensor]
Settings = dict[str, Any]
Epochs = Iterator[tuple[Draw, list[Any]]]


@dataclass(frozen=True)
class Task:
    """Data, network and schedule of a task."""

    data: LabelledData
    network: str
    epochs: int
    batch_size: int

    def build(self) -> nn.Sequential:
        """A network with fresh weights."""
        return NETWORKS[self.network]()

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled whole batches."""
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(self.data.x), generator=generator)
        for rows in order.split(self.batch_size):
            if len(rows) == self.batch_size:
                yield self.data.x[rows], self.data.y[rows]

    def cosine(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of all contenders."""
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)


def in_parts(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The output for many images, 1,000 at a time."""
    return torch.cat([run(part) for part in x.split(1000)])


def one_draw(net: nn.Module) -> Draw:
    """Logits of a network without randomness, as one draw."""

    def draw(x: Tensor, _: int) -> Tensor:
        net.eval()
        with torch.no_grad():
            return in_parts(net, x).unsqueeze(0)

    return draw


def train_epoch(
    task: Task, net: nn.Module, optimizer: torch.optim.Optimizer, seed: int, epoch: int
) -> None:
    """Ordinary training by cross-entropy."""
    net.train()
    for x, y in task.batches(seed, epoch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def sgd(net: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(
        net.parameters(),
        settings["lr"],
        momentum=0.9,
        weight_decay=settings.get("weight_decay", 0.0),
    )


def deterministic(task: Task, settings: Settings, seed: int) -> Epochs:
    """Ordinary training."""
    net = task.build()
    optimizer = sgd(net, settings)
    scheduler = task.cosine(optimizer)
    for epoch in range(task.epochs):
        train_epoch(task, net, optimizer, seed, epoch)
        scheduler.step()
        yield one_draw(net), [net]


def dropout(task: Task, settings: Settings, seed: int) -> Epochs:
    """Monte Carlo dropout in front of the linear layers."""
    net = with_dropout(task.build(), settings["p"], settings.get("p of data", 0.0))
    optimizer = sgd(net, settings)
    scheduler = task.cosine(optimizer)

    def draw(x: Tensor, num_draws: int) -> Tensor:
        net.eval()
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        with torch.no_grad():
            return torch.stack([in_parts(net, x) for _ in range(num_draws)])

    for epoch in range(task.epochs):
        train_epoch(task, net, optimizer, seed, epoch)
        scheduler.step()
        yield draw, [net]


def ensemble(task: Task, settings: Settings, seed: int) -> Epochs:
    """Several networks, trained side by side."""
    members = []
    for k in range(settings["members"]):
        torch.manual_seed(1000 * (seed + 1) + k)
        members.append(deterministic(task, settings, 100 * seed + k))
    for epochs in zip(*members, strict=True):
        draws = [draw for draw, _ in epochs]
        states = [state for _, states in epochs for state in states]
        yield lambda x, _, draws=draws: torch.cat([draw(x, 1) for draw in draws]), states


def swag(task: Task, settings: Settings, seed: int) -> Epochs:
    """SWAG (Maddox et al. 2019, arXiv:1902.02476): moments of SGD's path at a constant rate."""
    net = task.build()
    optimizer = sgd(net, settings)
    start = task.epochs * 3 // 4
    path: list[Tensor] = []
    square: Tensor | float = 0.0
    for epoch in range(task.epochs):
        fraction = max(0.0, 1.0 - epoch / start)
        for group in optimizer.param_groups:  # down to the constant rate of the path
            group["lr"] = settings["swa_lr"] + (settings["lr"] - settings["swa_lr"]) * fraction
        train_epoch(task, net, optimizer, seed, epoch)
        if epoch < start:
            yield one_draw(net), [net]
            continue
        flat = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
        path.append(flat.clone())
        square = square + flat.square()
        mean = torch.stack(path).mean(0)
        variance = (square / len(path) - mean.square()).clamp_min(1e-30)
        deviations = torch.stack(path[-20:]) - mean
        yield _swag_draws(copy.deepcopy(net), mean, variance, deviations), []


def _swag_draws(net: nn.Module, mean: Tensor, variance: Tensor, deviations: Tensor) -> Draw:
    def draw(x: Tensor, num_draws: int) -> Tensor:
        outputs = []
        for _ in range(num_draws):
            noise = torch.randn(len(deviations)) @ deviations
            noise = noise / (2 * max(1, len(deviations) - 1)) ** 0.5
            flat = mean + (variance / 2).sqrt() * torch.randn_like(mean) + noise
            torch.nn.utils.vector_to_parameters(flat, net.parameters())
            outputs.append(one_draw(net)(x, 1))
        return torch.cat(outputs)

    return draw


def laplace(task: Task, settings: Settings, seed: int) -> Epochs:
    """Laplace approximation of the last layer after ordinary training, by ``laplace-torch``."""
    from laplace import Laplace

    net = task.build()
    optimizer = sgd(net, settings)
    scheduler = task.cosine(optimizer)
    for epoch in range(task.epochs):
        train_epoch(task, net, optimizer, seed, epoch)
        scheduler.step()
        if epoch + 1 < task.epochs:
            yield one_draw(net), [net]
    net.eval()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(task.data.x, task.data.y), batch_size=500
    )
    posterior = Laplace(net, "classification", "last_layer", "kron")
    posterior.fit(loader)
    posterior.optimize_prior_precision(method="marglik")

    def draw(x: Tensor, num_draws: int) -> Tensor:
        parts = [posterior.functional_samples(part, n_samples=num_draws) for part in x.split(500)]
        return torch.cat([part.detach() for part in parts], dim=1)

    yield draw, [net]


def ivon(task: Task, settings: Settings, seed: int) -> Epochs:
    """IVON (Shen et al. 2024, arXiv:2402.17641), by ``ivon-opt``."""
    from ivon import IVON

    net = task.build()
    optimizer = IVON(
        net.parameters(),
        lr=settings["lr"],
        ess=len(task.data.x),
        hess_init=settings["hess_init"],
        weight_decay=settings.get("weight_decay", 1e-4),
    )
    scheduler = task.cosine(optimizer)

    def draw(x: Tensor, num_draws: int) -> Tensor:
        outputs = []
        for _ in range(num_draws):
            with optimizer.sampled_params():
                outputs.append(one_draw(net)(x, 1))
        return torch.cat(outputs)

    for epoch in range(task.epochs):
        net.train()
        for x, y in task.batches(seed, epoch):
            with optimizer.sampled_params(train=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        scheduler.step()
        yield draw, [net, optimizer]


def vbll(task: Task, settings: Settings, seed: int) -> Epochs:
    """A variational Bayesian last layer (Harrison et al. 2024, arXiv:2404.11599), by ``vbll``."""
    from vbll import DiscClassification

    net = task.build()
    last = net[-1]
    net[-1] = DiscClassification(  # a step with a dense covariance takes 45 times as long
        last.in_features, last.out_features, 1.0 / len(task.data.x), parameterization="diagonal"
    )
    optimizer = torch.optim.AdamW(net.parameters(), settings["lr"], weight_decay=1e-4)
    scheduler = task.cosine(optimizer)

    def draw(x: Tensor, _: int) -> Tensor:
        net.eval()
        with torch.no_grad():
            return in_parts(lambda part: net(part).predictive.probs.log(), x).unsqueeze(0)

    for epoch in range(task.epochs):
        net.train()
        for x, y in task.batches(seed, epoch):
            optimizer.zero_grad()
            net(x).train_loss_fn(y).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        scheduler.step()
        yield draw, [net]


def inferno(task: Task, settings: Settings, seed: int) -> Epochs:
    """Implicit-bias VI by its authors' ``inferno-torch``, as its documentation trains."""
    from benchmarks.speed.networks import Network
    from benchmarks.speed.peers import inferno_network, torchvision_stand_in

    torchvision_stand_in()
    from inferno import loss_fns

    x = task.data.x
    network = Network(NETWORKS[task.network], tuple(x.shape[1:]), task.batch_size, rounds=1)
    net = inferno_network(network, settings["rank"])
    groups = net.parameters_and_lrs(lr=settings["lr"], optimizer="SGD")
    optimizer = torch.optim.SGD(groups, settings["lr"], momentum=0.9)
    scheduler = task.cosine(optimizer)
    loss_fn = loss_fns.CrossEntropyLoss()

    def draw(x: Tensor, num_draws: int) -> Tensor:
        net.eval()
        with torch.no_grad():
            parts = [net(part, sample_shape=torch.Size([num_draws])) for part in x.split(1000)]
        return torch.cat(parts, dim=1)

    for epoch in range(task.epochs):
        net.train()
        for x, y in task.batches(seed, epoch):
            optimizer.zero_grad()
            loss_fn(net(x), y).backward()
            optimizer.step()
        scheduler.step()
        yield draw, [net]


def train_svi(task: Task, svi: SVI, scheduler: Callable[[], None] | None, seed: int) -> Epochs:
    """Steps of ``SVI``; the draws are those of ``predict``."""

    def draw(x: Tensor, num_draws: int) -> Tensor:
        return ibvi.predict(
            svi.model, svi.guide, x, num_samples=num_draws, batch_size=1000
        ).outputs

    for epoch in range(task.epochs):
        svi.model.train()
        svi.guide.train()
        for x, y in task.batches(seed, epoch):
            svi.step(x, y)
        if scheduler is not None:
            scheduler()
        yield draw, [x for x in (svi.model, svi.guide) if isinstance(x, nn.Module)]


def elbo(task: Task, settings: Settings, seed: int) -> Epochs:
    """Mean-field VI with Pyro's own guide, all weights random, the KL weighted."""
    pyro.clear_param_store()
    net = ibvi.RandomModule(task.build(), stochastic="all", prior=settings.get("prior"))
    model = ibvi.SupervisedModel(net, ibvi.Categorical(), num_data=len(task.data.x))
    model(task.data.x[:2], task.data.y[:2])
    guide = AutoNormal(model, init_loc_fn=init_to_sample, init_scale=settings["init_scale"])
    weight = settings["kl_weight"]
    loss = Trace_ELBO() if weight == 1 else ibvi.TraceExpectedLogLikelihood(kl_weight=weight)
    optimizer = pyro.optim.CosineAnnealingLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": settings["lr"]},
            "T_max": task.epochs,
        }
    )
    return train_svi(task, SVI(model, guide, optimizer, loss), optimizer.step, seed)


def implicit_bias(task: Task, settings: Settings, seed: int) -> Epochs:
    """Implicit-bias VI with a covariance and the layers that are random."""
    svi, optim = make_svi(
        task.build(),
        ibvi.Categorical(),
        len(task.data.x),
        settings,
        torch.optim.SGD,
        task.cosine,
        base=task.build() if settings.get("rates") == "ordinary" else None,
        momentum=0.9,
    )
    return train_svi(task, svi, optim.step_scheduler, seed)


CONTENDERS: dict[str, Callable[[Task, Settings, int], Iterator[Draw]]] = {
    "deterministic": deterministic,
    "dropout": dropout,
    "ensemble": ensemble,
    "swag": swag,
    "laplace": laplace,
    "ivon": ivon,
    "vbll": vbll,
    "inferno": inferno,
    "elbo": elbo,
    "implicit_bias": implicit_bias,
}
