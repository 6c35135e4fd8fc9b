"""SGD's rate by default, by how many data a step sees."""

from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import pyro_ibvi as ibvi

NUM_DATA = 200
LABELS = torch.randint(0, 3, (NUM_DATA,), generator=torch.Generator().manual_seed(0))


class OfSets(nn.Module):
    """Logits of a set of points."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.points(x).relu().mean(1))


def of_rows(num_features: int = 4) -> nn.Module:
    hidden = [nn.Flatten(), nn.Linear(num_features, 8), nn.BatchNorm1d(8), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(8, 3))


def of_images() -> nn.Module:
    hidden = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*hidden, nn.Linear(16, 3))


def rate(bnn: ibvi.VariationalNetwork, batches: Any, y: Any = None, **options: Any) -> float:
    """The global rate that a training has."""
    bnn.fit(batches, y, num_epochs=1, progress=False, **options)
    return float(bnn.optim.lr)


@pytest.mark.parametrize(
    ("make", "shape", "size", "share"),
    [
        (of_rows, (4,), 32, 32 / 128),
        (of_rows, (4,), 128, 1),
        (of_rows, (4,), 150, 1),
        (of_rows, (4,), NUM_DATA, 1),
        (lambda: of_rows(36), (1, 6, 6), 8, 8 / 128),  # whatever the form in which rows come
        (OfSets, (5, 4), 32, 1),
        (OfSets, (5, 4), 8, 8 / 32),
        (of_images, (1, 6, 6), 64, 1),
        (of_images, (1, 6, 6), 4, 4 / 32),
    ],
)
def test_the_default_rate_goes_with_the_batch(
    make: Any, shape: tuple[int, ...], size: int, share: float
) -> None:
    x = torch.randn(NUM_DATA, *shape, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, LABELS)
    batches = [(x[i : i + size], LABELS[i : i + size]) for i in range(0, NUM_DATA, size)]
    sampler = BatchSampler(RandomSampler(data), size, drop_last=False)

    def network(**choices: Any) -> ibvi.VariationalNetwork:
        return ibvi.VariationalNetwork(make(), ibvi.Categorical(), **choices)

    for given in (DataLoader(data, size), DataLoader(data, batch_sampler=sampler), batches):
        assert rate(network(), given) == pytest.approx(0.1 * share)
    assert rate(network(), x, LABELS, batch_size=size) == pytest.approx(0.1 * share)
    assert rate(network(lr=0.1), batches) == 0.1
    assert rate(network(optimizer=torch.optim.Adam), batches) == 0.1


def test_a_batch_of_all_data_leaves_nothing_to_chance() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    bnn = ibvi.VariationalNetwork(of_rows(), ibvi.Categorical())
    assert rate(bnn, x, LABELS[:20], batch_size=20) == 0.1


def test_what_a_step_sees_are_the_batches_that_it_adds_up() -> None:
    x = torch.randn(NUM_DATA, 4, generator=torch.Generator().manual_seed(0))
    bnn = ibvi.VariationalNetwork(of_rows(), ibvi.Categorical())
    assert rate(bnn, x, LABELS, batch_size=16, accumulate=2) == pytest.approx(0.1 * 32 / 128)
    # A rate under way stays.
    assert rate(bnn, x, LABELS, batch_size=16) == pytest.approx(0.1 * 32 / 128)
    with pytest.raises(ValueError, match="accumulate must be a positive"):
        bnn.set_num_data(NUM_DATA, accumulate=0)


def test_small_batches_learn() -> None:
    """At the rate for large ones a network of digits stayed at guessing."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32)
    x, y = (x - x.mean(0)) / x.std(0).clamp_min(1e-6), torch.tensor(labels)
    hidden = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    bnn = ibvi.VariationalNetwork(nn.Sequential(*hidden, nn.Linear(64, 10)), ibvi.Categorical())
    bnn.fit(x[:900], y[:900], num_epochs=10, batch_size=16, progress=False)
    assert bnn.evaluate(x[900:], y[900:], seed=0)["accuracy"] > 0.9


def test_lightning_has_the_rate_that_fit_has() -> None:
    lightning = pytest.importorskip("lightning")
    from pyro_ibvi.lightning import IBVIModule

    pixels = torch.randn(NUM_DATA, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    convolution = nn.Conv2d(1, 1, 3, padding=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    for net, x, likelihood, y, share in [
        (of_rows(), torch.randn(NUM_DATA, 4), ibvi.Categorical(), LABELS, 32 / 128),
        (convolution, pixels, ibvi.Bernoulli(), (pixels > 0).float(), 32 / 32 / 36),
    ]:
        module = IBVIModule(net, likelihood)
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            enable_checkpointing=False,
            accumulate_grad_batches=2,
            **quiet,
        )
        trainer.fit(module, DataLoader(TensorDataset(x, y), 16))
        assert module.bnn is not None
        assert module.bnn.optim.lr == pytest.approx(0.1 * share)
        rates = {group["lr"] for group in trainer.optimizers[0].param_groups if group["params"]}
        assert max(rates) == pytest.approx(0.1 * share)
