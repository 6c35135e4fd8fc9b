"""The defaults where a datum has more targets than one label or number, or is a sequence.

    python -m benchmarks.evidence.other_targets

Each network as ``VariationalNetwork`` makes it with nothing chosen, with one choice that was the
default before, and by Adam as an ordinary network. Negative log-likelihood per target on data held
out. Each run is a line of ``results/other_targets.jsonl``; what is there already is not run again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyro
import scipy.ndimage
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyro_ibvi as ibvi
from pyro_ibvi.models import MultiTask
from pyro_ibvi.models.likelihoods import Likelihood

from .records import Record, Records

NUM_SEEDS = 3
ORDINARY = "ordinary network"
#: The best of 1e-3, 3e-3 and 1e-2 on most of these.
ORDINARY_RATE = 3e-3
PRIMES = (2, 3, 5, 7)


@dataclass(frozen=True)
class Situation:
    """A network and data for it.

    Attributes:
        data: Inputs and targets.
        num_train: How many of them are to train on.
        make_net: Makes the network.
        make_likelihood: Makes its likelihood.
        num_targets: Number of targets of a datum.
        before: Choices that were the default before.
        num_epochs: Number of epochs.
        batch_size: Number of data in a step.
    """

    data: Callable[[], tuple[Tensor, Any]]
    num_train: int
    make_net: Callable[[], nn.Module]
    make_likelihood: Callable[[], Likelihood]
    num_targets: int = 1
    before: dict[str, Any] = field(default_factory=dict)
    num_epochs: int = 60
    batch_size: int = 64


class Recurrent(nn.Module):
    """A recurrent layer, read at each time or at the last."""

    def __init__(self, kind: type[nn.Module], *, last: bool, num_outputs: int = 1) -> None:
        super().__init__()
        self.rnn, self.head = kind(3, 32, batch_first=True), nn.Linear(32, num_outputs)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """One number for each time, or one."""
        h = self.rnn(x)[0]
        return self.head(h[:, -1]) if self.last else self.head(h).squeeze(-1)


class Convolutional(nn.Module):
    """Two convolutions along time and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(3, 32, 5, padding=2), nn.ReLU(), nn.Conv1d(32, 32, 5, padding=2), nn.ReLU()
        )
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A number for each sequence."""
        return self.head(self.net(x.transpose(1, 2)).mean(-1))


class Transformer(nn.Module):
    """Two layers of attention over places, and their mean."""

    def __init__(
        self, embed: nn.Module, num_places: int, num_outputs: int, *, norm_first: bool = False
    ) -> None:
        super().__init__()
        self.embed, self.place = embed, nn.Parameter(0.1 * torch.randn(num_places, 32))
        options: dict[str, Any] = {"batch_first": True, "norm_first": norm_first}
        layer, norm = nn.TransformerEncoderLayer(32, 4, 64, 0.0, **options), nn.LayerNorm(32)
        last = norm if norm_first else None
        self.layers = nn.TransformerEncoder(layer, 2, last, enable_nested_tensor=False)
        self.head = nn.Linear(32, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs for each sequence."""
        return self.head(self.layers(self.embed(x) + self.place).mean(1))


class Patches(nn.Sequential):
    """The 16 patches of an image of a digit, each made 32 features."""

    def __init__(self) -> None:
        super().__init__(nn.Unfold(2, stride=2), nn.Flatten(2), Transposed(), nn.Linear(4, 32))


class Transposed(nn.Module):
    """Places in the place of channels."""

    def forward(self, x: Tensor) -> Tensor:
        """The transposed matrices."""
        return x.mT


def digits() -> tuple[Tensor, Tensor]:
    """The images and labels of scikit-learn, in an order of its own."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32)[order] / 8 - 1, torch.tensor(labels)[order]


def digits_and_primes() -> tuple[Tensor, dict[str, Tensor]]:
    """What a digit is, and whether it is a prime."""
    x, y = digits()
    return x, {"digit": y, "prime": torch.isin(y, torch.tensor(PRIMES)).long()}


def codes(num_labels: int) -> tuple[Tensor, Tensor]:
    """Random binary codes of the digits, half of whose labels are 1."""
    x, y = digits()
    generator = torch.Generator().manual_seed(1)
    columns = [torch.randperm(10, generator=generator) < 5 for _ in range(num_labels)]
    return x, torch.stack(columns, 1).float()[y]


def bright_pixels() -> tuple[Tensor, Tensor]:
    """Which pixels are bright, of images under noise, in twice their size."""
    x, _ = digits()
    images = nn.functional.interpolate(x.reshape(-1, 1, 8, 8), scale_factor=2)
    generator = torch.Generator().manual_seed(1)
    noisy = images + 0.8 * torch.randn(images.shape, generator=generator)
    return noisy, (images[:, 0] > 0).float()


def angles() -> tuple[Tensor, Tensor]:
    """Digits that are turned by up to 45 degrees, and by how much, in units of the spread."""
    x, _ = digits()
    angle = 90 * torch.rand(len(x), generator=torch.Generator().manual_seed(1)) - 45
    turned = [
        scipy.ndimage.rotate(image, turn, reshape=False, order=1, cval=-1.0)
        for image, turn in zip(x.reshape(-1, 8, 8).numpy(), angle.tolist(), strict=True)
    ]
    return torch.from_numpy(np.stack(turned)).unsqueeze(1), (angle / angle.std()).unsqueeze(1)


def sequences(target: str, num_data: int = 700) -> tuple[Tensor, Tensor]:
    """Sequences of 30 times, and what is made of them: at each time, at the last, or their mean.

    Args:
        target: ``"each"`` and ``"last"`` for a state that forgets and is driven by a product,
            ``"mean"`` for the mean of products.
        num_data: Number of sequences.

    Returns:
        Sequences of three inputs, and targets of unit variance with noise of a tenth.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_data, 30, 3, generator=generator)
    if target == "mean":
        y = (x[..., 0] * x[..., 1]).mean(1, keepdim=True)
    else:
        states = [torch.zeros(num_data)]
        for step in x.unbind(1):
            states.append(0.7 * states[-1] + 0.5 * step[:, 0] * step[:, 1].tanh())
        y = torch.stack(states[1:], 1)
        y = y[:, -1:] if target == "last" else y
    y = y / y.std()
    return x, y + 0.1 * torch.randn(y.shape, generator=generator)


def classes_of_sequences(target: str, num_data: int = 1400) -> tuple[Tensor, Tensor]:
    """Sequences, and in which third their number is."""
    x, y = sequences(target, num_data)
    return x, torch.bucketize(y[:, 0], y[:, 0].quantile(torch.tensor([1 / 3, 2 / 3])))


def words() -> tuple[Tensor, Tensor]:
    """Sentences of 16 words out of 40, from four laws."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (1600,), generator=generator)
    laws = torch.softmax(0.8 * torch.randn(4, 40, generator=generator), -1)
    return torch.multinomial(laws[y], 16, replacement=True, generator=generator), y


def images() -> tuple[Tensor, Tensor]:
    """Digits as images."""
    x, y = digits()
    return x.reshape(-1, 1, 8, 8), y


def mlp(num_outputs: int) -> nn.Module:
    """Two hidden layers of 128 behind the pixels of a digit."""
    hidden = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(128, num_outputs))


def fully_convolutional() -> nn.Module:
    """Three convolutions and a logit for each pixel."""
    hidden: list[nn.Module] = []
    for num_channels in (1, 16, 16):
        hidden += [nn.Conv2d(num_channels, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Conv2d(16, 1, 1), nn.Flatten(0, 1))


def of_images() -> nn.Module:
    """Two convolutions and two linear layers."""
    hidden = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
    hidden += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*hidden, nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 1))


def numbers() -> Likelihood:
    """Numbers whose noise is learned."""
    return ibvi.Normal(learn_scale=True)


def of_sequences(make_net: Callable[[], nn.Module], target: str) -> Situation:
    """A situation of numbers by a network that reads sequences."""
    num_targets = 30 if target == "each" else 1
    before = {"draws": "batch", "init_scale": 1.0}
    return Situation(partial(sequences, target), 400, make_net, numbers, num_targets, before)


def by_transformer(
    data: Callable[[], tuple[Tensor, Any]], num_train: int, make_net: Callable[[], nn.Module]
) -> Situation:
    """A situation of class labels by a transformer."""
    before = {"optimizer": torch.optim.SGD}
    return Situation(data, num_train, make_net, ibvi.Categorical, 1, before, num_epochs=40)


TASKS = {"digit": (ibvi.Categorical(), 10), "prime": (ibvi.Categorical(), 2)}
LOW_RANK = {"covariance": ibvi.LowRank(10), "optimizer": torch.optim.Adam}
LARGE_RATE = {"lr": 0.1}
SITUATIONS = {
    "digits and primes, `MultiTask`": Situation(
        digits_and_primes, 1200, partial(mlp, 12), partial(MultiTask, TASKS), 1, LOW_RANK
    ),
    **{
        f"{k} labels of a digit": Situation(
            partial(codes, k), 1200, partial(mlp, k), ibvi.Bernoulli, k, LARGE_RATE
        )
        for k in (30, 100, 300, 1000)
    },
    "bright pixels, convolutions": Situation(
        bright_pixels, 400, fully_convolutional, ibvi.Bernoulli, 256, LARGE_RATE
    ),
    "angle of a digit, convolutions": Situation(
        angles, 1200, of_images, numbers, 1, {"draws": "batch", "init_scale": 1.0}
    ),
    "each time, GRU": of_sequences(partial(Recurrent, nn.GRU, last=False), "each"),
    "each time, LSTM": of_sequences(partial(Recurrent, nn.LSTM, last=False), "each"),
    "last time, GRU": of_sequences(partial(Recurrent, nn.GRU, last=True), "last"),
    "mean, convolutions": of_sequences(Convolutional, "mean"),
    "mean, transformer": of_sequences(lambda: Transformer(nn.Linear(3, 32), 30, 1), "mean"),
    "third of the mean, transformer": by_transformer(
        partial(classes_of_sequences, "mean"), 700, lambda: Transformer(nn.Linear(3, 32), 30, 3)
    ),
    "law of words, transformer": by_transformer(
        words, 800, lambda: Transformer(nn.Embedding(40, 32), 16, 4)
    ),
    "law of words, transformer that norms first": by_transformer(
        words, 800, lambda: Transformer(nn.Embedding(40, 32), 16, 4, norm_first=True)
    ),
    "patches of digits, transformer that norms first": by_transformer(
        images, 1200, lambda: Transformer(Patches(), 16, 10, norm_first=True)
    ),
}


def train_ordinary(net: nn.Module, situation: Situation, likelihood: Likelihood) -> float:
    """Trains a network and what its likelihood learns by Adam.

    Returns:
        The negative log-likelihood of held-out data.
    """
    x, y = situation.data()
    y, num_train = likelihood.as_target(y), situation.num_train
    optim = torch.optim.Adam([*net.parameters(), *likelihood.parameters()], ORDINARY_RATE)
    for _ in range(situation.num_epochs):
        for rows in torch.randperm(num_train).split(situation.batch_size):
            optim.zero_grad()
            (-likelihood(net(x[rows])).log_prob(y[rows]).mean()).backward()
            optim.step()
    with torch.no_grad():
        return -likelihood(net(x[num_train:])).log_prob(y[num_train:]).mean().item()


def train_variational(net: nn.Module, situation: Situation, **choices: Any) -> float:
    """Trains the network that the library makes of it.

    Returns:
        The negative log-likelihood of held-out data, infinite where training diverged.
    """
    x, y = situation.data()

    def part(rows: slice) -> Any:
        return {n: t[rows] for n, t in y.items()} if isinstance(y, dict) else y[rows]

    bnn = ibvi.VariationalNetwork(net, situation.make_likelihood(), **choices)
    train, test = slice(situation.num_train), slice(situation.num_train, None)
    try:
        bnn.fit(
            x[train],
            part(train),
            num_epochs=situation.num_epochs,
            batch_size=situation.batch_size,
            progress=False,
        )
    except FloatingPointError:
        return float("inf")
    return -bnn.predict(x[test], seed=0).log_prob(part(test)).mean().item()


def run(situation: Situation, contender: str, seed: int) -> Record:
    """The loss of a contender, for each target."""
    pyro.set_rng_seed(seed)
    net = situation.make_net()
    if contender == ORDINARY:
        nll = train_ordinary(net, situation, situation.make_likelihood())
    else:
        choices = situation.before if contender == "before" else {}
        nll = train_variational(net, situation, **choices)
    return {"nll": nll / situation.num_targets}


def main() -> None:
    """Runs all situations."""
    torch.set_num_threads(1)
    records = Records("other_targets", ("data", "contender", "seed"))
    contenders = ("default", "before", ORDINARY)
    for seed, name, contender in itertools.product(range(NUM_SEEDS), SITUATIONS, contenders):
        key = {"data": name, "contender": contender, "seed": seed}
        print(
            key, round(records.get(key, partial(run, SITUATIONS[name], contender, seed))["nll"], 4)
        )


if __name__ == "__main__":
    main()
