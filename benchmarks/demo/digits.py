"""Handwritten digits: one network as usual, and one as a distribution over its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyro_ibvi as ibvi

USUAL, DISTRIBUTION = "as usual", "distribution"
COLORS = {USUAL: "#D55E00", DISTRIBUTION: "#0072B2"}
NUM_TRAIN, NOISE, NUM_DOUBTED = 1200, 0.6, 12

Predictions = dict[str, dict[str, ibvi.Prediction]]


@dataclass(frozen=True)
class Digits:
    """The images, their labels, and the two test sets."""

    x: Tensor
    y: Tensor
    tests: dict[str, Tensor]
    y_test: Tensor


def read() -> Digits:
    """The digits of scikit-learn, pixels from -1 to 1, and the same with noise."""
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 8 - 1
    labels = torch.tensor(data.target)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
    noise = NOISE * torch.randn(len(test), 64, generator=generator)
    tests = {"clean": images[test], "noisy": images[test] + noise}
    return Digits(images[train], labels[train], tests, labels[test])


def make_network() -> nn.Module:
    """A 64-128-128-10 network."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def train_as_usual(digits: Digits, num_epochs: int) -> nn.Module:
    """Momentum SGD on the cross-entropy."""
    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(digits.y)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(digits.x[rows]), digits.y[rows]).backward()
            optimizer.step()
    return network


def train_distribution(digits: Digits, num_epochs: int) -> ibvi.VariationalNetwork:
    """The same network with random weights in its first and last layer, the paper's recipe."""
    bnn = ibvi.VariationalNetwork(
        make_network(), ibvi.Categorical(), stochastic=["0.weight", "4.weight", "4.bias"]
    )
    bnn.fit(digits.x, digits.y, batch_size=100, num_epochs=num_epochs, progress=False)
    return bnn


def predict(digits: Digits, network: nn.Module, bnn: ibvi.VariationalNetwork) -> Predictions:
    """Predictions of both, by test set and method."""
    predictions: Predictions = {}
    for name, x in digits.tests.items():
        with torch.no_grad():  # to a prediction, a network is one draw of the weights
            usual = ibvi.Prediction(network(x)[None], ibvi.Categorical())
        predictions[name] = {USUAL: usual, DISTRIBUTION: bnn.predict(x, seed=0)}
    return predictions


def doubted(prediction: ibvi.Prediction, number: int) -> Tensor:
    """The images about which the draws of the weights disagree most, in order."""
    return prediction.mutual_information().topk(number).indices


def draw_doubted(digits: Digits, prediction: ibvi.Prediction, path: Path) -> None:
    """A picture of the digits that it doubts, with its two best guesses and the truth."""
    indices = doubted(prediction, NUM_DOUBTED).tolist()
    figure, axes = plt.subplots(2, NUM_DOUBTED // 2, figsize=(9, 4.2), layout="constrained")
    for axis, i in zip(axes.flat, indices, strict=True):
        percents, guesses = (100 * prediction.mean[i]).topk(2)
        (first, second), (most, next_most) = guesses.tolist(), percents.tolist()
        axis.imshow(digits.tests["clean"][i].reshape(8, 8).numpy(), cmap="gray_r")
        axis.set_title(
            f"{first} ({most:.0f} %) or {second} ({next_most:.0f} %)?\nit is a "
            f"{digits.y_test[i].item()}",
            fontsize=9,
        )
        axis.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_reliability(digits: Digits, predictions: Predictions, path: Path) -> None:
    """Confidence against accuracy on the noisy digits."""
    figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    for method, prediction in predictions["noisy"].items():
        bins = ibvi.reliability(prediction, digits.y_test, num_bins=8)
        axis.plot(bins.confidence, bins.accuracy, "o-", color=COLORS[method], label=method)
    axis.plot([0, 1], [0, 1], "k:", label="calibrated")
    axis.set(xlabel="confidence", ylabel="accuracy", title="Noisy digits")
    axis.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)
