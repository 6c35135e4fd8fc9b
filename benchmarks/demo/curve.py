"""A curve with a gap in its data: what decides how much a band widens there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import pyro_ibvi as ibvi

NOISE, WIDTH = 0.2, 128
AMONG, GAP = torch.tensor([[-1.4], [1.4]]), torch.tensor([[-0.1], [0.1]])


def truth(x: Tensor) -> Tensor:
    """The curve."""
    return torch.sin(2 * x)


def read() -> tuple[Tensor, Tensor]:
    """Forty points on each side of a gap that is 1.6 wide."""
    generator = torch.Generator().manual_seed(0)
    left, right = 1.2 * torch.rand(2, 40, 1, generator=generator)
    x = torch.cat([left - 2.0, right + 0.8])
    return x, truth(x) + NOISE * torch.randn(x.shape, generator=generator)


def make_network(scale: float) -> nn.Sequential:
    """A 1-128-128-1 network whose first layer starts with a standard deviation of ``scale``."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1)
    )
    nn.init.normal_(net[0].weight, std=scale)
    nn.init.normal_(net[0].bias, std=scale)
    return net


@dataclass(frozen=True)
class Fit:
    """A way to fit the curve, and what came out.

    Attributes:
        name: What it is called.
        network: The trained network.
        exact: Standard deviations, among the data and in the gap, of the Gaussian process with
            this network's prior: the answer of exact Bayes at infinite width.
    """

    name: str
    network: ibvi.VariationalNetwork
    exact: tuple[float, float]

    def spread(self, x: Tensor) -> float:
        """Epistemic standard deviation at some inputs."""
        prediction = self.network.predict(x, num_samples=500, seed=0)
        return float(prediction.epistemic.mean().sqrt())


def train(scale: float, num_steps: int, *, exact_head: bool) -> ibvi.VariationalNetwork:
    """Fits the curve.

    Args:
        scale: Standard deviation at which the first layer starts.
        num_steps: Number of steps, on all data at once.
        exact_head: Whether the expectation over the last layer is taken exactly, the layers in
            front being points; otherwise first and last layer are drawn, once a step.

    Returns:
        The network.
    """
    x, y = read()
    net = ibvi.RandomModule(
        make_network(scale),
        stochastic="last" if exact_head else "input+output",
        parametrization=ibvi.MaximalUpdate(base=32, rank_exponent=0.0),
        prior=None if exact_head else {"0.weight": scale, "0.bias": scale},
    )
    bnn = ibvi.VariationalNetwork(
        net,
        ibvi.Normal(NOISE),
        covariance=ibvi.LowRank(None) if exact_head else ibvi.Diagonal(),
        optimizer=torch.optim.Adam,
        lr=3e-3,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, num_steps
        ),
        loss=(ibvi.TraceClosedFormHead if exact_head else ibvi.TraceExpectedLogLikelihood)(
            reduction="mean"
        ),
    )
    bnn.fit(x, y, batch_size=len(x), num_epochs=num_steps, progress=False)
    return bnn


def exact_spread(scale: float, num_networks: int = 200) -> tuple[float, float]:
    """Standard deviation of the Gaussian process of the prior, among the data and in the gap.

    Its kernel is the mean over random networks of the products of their last hidden layers.
    """
    x, _ = read()
    points = torch.cat([x, AMONG, GAP])
    kernel = torch.zeros(len(points), len(points), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_networks):
        weight, bias = scale * torch.randn(2, WIDTH, generator=generator)
        hidden = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
        features = nn.functional.silu(points * weight + bias) @ hidden
        features = nn.functional.silu(features).double()
        kernel += features @ features.mT / (WIDTH * num_networks)
    n = len(x)
    data = kernel[:n, :n] + NOISE**2 * torch.eye(n)
    explained = kernel[n:, :n] @ torch.linalg.solve(data, kernel[:n, n:])
    variance = (kernel[n:, n:] - explained).diagonal()
    among, gap = (part.mean().sqrt().item() for part in variance.split(len(AMONG)))
    return among, gap


def run(num_steps: int) -> list[Fit]:
    """The three ways."""
    ways = (
        ("first layer of scale 1", 1.0, True),
        ("first layer of scale 5", 5.0, True),
        ("scale 5, one draw a step: not at its end", 5.0, False),
    )
    return [
        Fit(name, train(scale, num_steps, exact_head=head), exact_spread(scale))
        for name, scale, head in ways
    ]


def draw(fits: list[Fit], path: Path) -> None:
    """The curve, the data and the bands."""
    grid = torch.linspace(-3, 3, 200).unsqueeze(-1)
    x, y = read()
    figure, axes = plt.subplots(1, len(fits), figsize=(13, 4), sharey=True, layout="constrained")
    for axis, fit in zip(axes, fits, strict=True):
        prediction = fit.network.predict(grid, num_samples=500, seed=0)
        mean = prediction.mean[:, 0]
        for spread, alpha, label in (
            (prediction.stddev, 0.2, "with noise"),
            (prediction.epistemic.sqrt(), 0.45, "the network's own doubt"),
        ):
            low, high = mean - 2 * spread[:, 0], mean + 2 * spread[:, 0]
            axis.fill_between(grid[:, 0], low, high, alpha=alpha, color="#0072B2", label=label)
        axis.plot(grid, mean, color="#0072B2")
        axis.plot(grid, truth(grid), "k--", linewidth=1, label="truth")
        axis.plot(x, y, "k.", markersize=3)
        axis.set(title=fit.name, ylim=(-2.5, 2.5), xlabel="x")
    axes[0].legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
