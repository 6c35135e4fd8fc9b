"""The contenders that need nothing but this package: ordinary training, by hand, ours, Pyro's.

A contender makes a :class:`Trainer` for a network and a batch. A new one is a function that does
so and an entry in :func:`own_contenders`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

import pyro_ibvi as ibvi
from benchmarks.speed.names import (
    BY_HAND,
    DETERMINISTIC,
    OURS_SVI,
    OURS_TORCH,
    PYRO,
    RANKS,
    family_name,
)
from benchmarks.speed.networks import Network

MOMENTUM = 0.9
NUM_DATA = 10_000


@dataclass(frozen=True)
class Trainer:
    """What a contender does.

    Attributes:
        step: Takes one step of training and returns the loss.
        parameters: The tensors that it trains.
        predict: Mean class probabilities over a number of draws of the weights.
    """

    step: Callable[[], float]
    parameters: Callable[[], list[Tensor]]
    predict: Callable[[Tensor, int], Tensor] | None = None


Make = Callable[[Network, Tensor, Tensor], Trainer]


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    Attributes:
        who: Whose code it is.
        family: ``"mean-field"`` (every weight random), ``"rank 10"`` and so on (input and output
            layer random), or ``"deterministic"``.
        make: Makes the trainer.
    """

    who: str
    family: str
    make: Make


def torch_trainer(
    optimizer: torch.optim.Optimizer,
    compute_loss: Callable[[], Tensor],
    predict: Callable[[Tensor, int], Tensor] | None = None,
) -> Trainer:
    """The usual four lines around a torch optimizer."""

    def step() -> float:
        optimizer.zero_grad()
        loss = compute_loss()
        loss.backward()
        optimizer.step()
        return loss.item()

    return Trainer(
        step, lambda: [p for group in optimizer.param_groups for p in group["params"]], predict
    )


def sgd(parameters: Any, lr: float) -> torch.optim.SGD:
    """The optimizer of every contender."""
    return torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM)


def mean_of_draws(draw_logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Prediction by one forward pass after the other."""

    @torch.no_grad()
    def predict(x: Tensor, num_draws: int) -> Tensor:
        total = draw_logits(x).softmax(-1)
        for _ in range(num_draws - 1):
            total += draw_logits(x).softmax(-1)
        return total / num_draws

    return predict


def deterministic(network: Network, x: Tensor, y: Tensor) -> Trainer:
    """Ordinary training with one torch optimizer."""
    net = network.build().to(x.device)
    optimizer = sgd(net.parameters(), 1e-3)
    return torch_trainer(optimizer, lambda: nn.functional.cross_entropy(net(x), y))


def weight_layers(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Linear and convolutional layers by name, in the order in which data flows through them."""
    return [(n, m) for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def random_layers(net: nn.Module, rank: int | None) -> list[tuple[str, nn.Module]]:
    """All of them for mean-field, the first and the last for low rank."""
    layers = weight_layers(net)
    return layers if rank is None else [layers[0], layers[-1]]


class ByHand:
    """Weights ``loc + S z`` as a user of torch would write them, without Pyro."""

    def __init__(self, net: nn.Module, rank: int | None) -> None:
        self.net = net
        self.rank = rank
        self.factors: dict[str, dict[str, Tensor]] = {}
        for prefix, layer in random_layers(net, rank):
            columns = () if rank is None else (rank,)
            self.factors[prefix] = {
                f"{prefix}.{name}": torch.randn(*p.shape, *columns, device=p.device)
                .mul_(0.1 * (rank or 1) ** -0.5 * p.detach().square().mean().sqrt())
                .requires_grad_()
                for name, p in layer.named_parameters(recurse=False)
            }

    def parameters(self) -> list[Tensor]:
        """Means and factors."""
        factors = [factor for layer in self.factors.values() for factor in layer.values()]
        return [*self.net.parameters(), *factors]

    def weights(self) -> dict[str, Tensor]:
        """A draw of the random weights; those of a layer share low-rank noise."""
        values = {}
        for layer in self.factors.values():
            noise = None
            for name, factor in layer.items():
                loc = self.net.get_parameter(name)
                if self.rank is None:
                    values[name] = torch.addcmul(loc, factor, torch.randn_like(loc))
                    continue
                if noise is None:
                    noise = torch.randn(self.rank, device=loc.device)
                rows = factor.view(-1, self.rank)
                values[name] = torch.addmv(loc.view(-1), rows, noise).view(loc.shape)
        return values

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs of the network at a draw of its weights."""
        return torch.func.functional_call(self.net, self.weights(), (x,))


def by_hand(rank: int | None) -> Make:
    """Hand-written; for prediction, a loop."""

    def make(network: Network, x: Tensor, y: Tensor) -> Trainer:
        random_net = ByHand(network.build().to(x.device), rank)
        optimizer = sgd(random_net.parameters(), 1e-3)
        return torch_trainer(
            optimizer,
            lambda: nn.functional.cross_entropy(random_net(x), y),
            mean_of_draws(random_net),
        )

    return make


def ours(rank: int | None, *, svi: bool) -> Make:
    """This package as its README shows it, through ``SVI`` or with torch's optimizer."""
    stochastic = "all" if rank is None else "input+output"
    covariance = ibvi.Diagonal() if rank is None else ibvi.LowRank(rank)
    lr = 1e-4

    def make(network: Network, x: Tensor, y: Tensor) -> Trainer:
        net = ibvi.RandomModule(network.build().to(x.device), stochastic=stochastic)
        model = ibvi.SupervisedModel(net, ibvi.Categorical(), num_data=NUM_DATA)
        guide = ibvi.AutoMuPNormal(model, covariance=covariance)
        loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")

        def predict(x: Tensor, num_draws: int) -> Tensor:
            return ibvi.predict(model, guide, x, num_samples=num_draws).mean

        if not svi:
            loss_fn = loss(model, guide)
            groups = ibvi.mup_param_groups(guide, lr, optimizer=torch.optim.SGD)
            return torch_trainer(sgd(groups, lr), lambda: loss_fn(x, y), predict)
        optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": lr, "momentum": MOMENTUM}, guide)
        trainer = SVI(model, guide, optim, loss)

        def parameters() -> list[Tensor]:
            return [p for group in optim.optimizer.param_groups for p in group["params"]]

        return Trainer(lambda: trainer.step(x, y), parameters, predict)

    return make


class PyroNetwork(PyroModule):
    """A Bayesian network as Pyro's tutorial writes it; biases are random like the weights."""

    def __init__(self, name: str, net: nn.Module, rank: int | None) -> None:
        super().__init__(name)
        layers = [layer for _, layer in random_layers(net, rank)]
        to_pyro_module_(net)
        self.net = net
        for layer in layers:
            for parameter_name, p in list(layer.named_parameters(recurse=False)):
                scale = math.prod(p.shape[1:]) ** -0.5 * torch.ones((), device=p.device)
                prior = dist.Normal(torch.zeros_like(scale), scale)
                setattr(layer, parameter_name, PyroSample(prior.expand(p.shape).to_event(p.dim())))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Logits; labels are observed in a plate."""
        logits = self.net(x)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Categorical(logits=logits), obs=y)
        return logits


def stock_pyro(rank: int | None) -> Make:
    """``SVI``, ``Trace_ELBO`` and ``AutoNormal`` or ``AutoLowRankMultivariateNormal``."""

    def make(network: Network, x: Tensor, y: Tensor) -> Trainer:
        # Guides take the names of their parameters in Pyro's store from the name of their class:
        # contenders that live side by side need names of their own.
        base = AutoNormal if rank is None else AutoLowRankMultivariateNormal
        guide_class = type(f"{base.__name__}_{rank}", (base,), {})
        options = {} if rank is None else {"rank": rank}
        model = PyroNetwork(f"Network_{rank}", network.build().to(x.device), rank)
        guide = guide_class(model, **options)
        optim = pyro.optim.SGD({"lr": 1e-6, "momentum": MOMENTUM})
        svi = SVI(model, guide, optim, Trace_ELBO())

        def predict(x: Tensor, num_draws: int) -> Tensor:
            predictive = Predictive(
                model, guide=guide, num_samples=num_draws, return_sites=("_RETURN",)
            )
            return predictive(x)["_RETURN"].softmax(-1).mean(0)

        def parameters() -> list[Tensor]:
            return [*guide.parameters(), *model.parameters()]

        return Trainer(lambda: svi.step(x, y), parameters, predict)

    return make


def own_contenders() -> list[Contender]:
    """The contenders that need no peer, ordinary training first."""
    contenders = [Contender(DETERMINISTIC, DETERMINISTIC, deterministic)]
    for rank in (None, *RANKS):
        family = family_name(rank)
        contenders += [
            Contender(BY_HAND, family, by_hand(rank)),
            Contender(OURS_SVI, family, ours(rank, svi=True)),
            Contender(OURS_TORCH, family, ours(rank, svi=False)),
            Contender(PYRO, family, stock_pyro(rank)),
        ]
    return contenders
