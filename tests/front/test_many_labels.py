"""The rate by default where a datum has many labels, whose losses add up."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.models import MultiTask


class Heads(nn.Module):
    """A trunk and a layer for each label, which the forward pass puts beside one another."""

    def __init__(self, trunk: nn.Module, width: int, num_labels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(num_labels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of all labels."""
        h = self.trunk(x)
        return torch.cat([head(h) for head in self.heads], -1)


@pytest.mark.parametrize("layout", ["beside one another", "tasks", "heads"])
def test_many_labels_of_a_datum_are_borne_by_the_default_rate(layout: str) -> None:
    """The loss is the sum of theirs: at the rate for one label it grew a hundredfold."""
    torch.manual_seed(0)
    digits, num_labels = load_digits(), 100
    x = torch.from_numpy(digits.data).float() / 8 - 1
    y = torch.randint(0, 2, (10, num_labels)).float()[torch.from_numpy(digits.target)]
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    net = Heads(net, 128, num_labels) if layout == "heads" else net.append(nn.Linear(128, 100))
    tasks = {str(i): (ibvi.Bernoulli(), 1) for i in range(num_labels)}
    likelihood = MultiTask(tasks) if layout == "tasks" else ibvi.Bernoulli()
    bnn = ibvi.VariationalNetwork(net, likelihood)
    assert bnn.optim.lr == pytest.approx(0.01)
    loss = bnn.fit(x, y, num_epochs=8, progress=False).train_loss
    assert loss[-1] < 0.3 * 69.3  # that of coins
    given = ibvi.VariationalNetwork(net, likelihood, lr=0.1)
    assert given.optim.lr == 0.1
    assert ibvi.VariationalNetwork(net, likelihood, optimizer=torch.optim.Adam).optim.lr == 0.1


def test_a_network_of_one_layer_counts_its_labels() -> None:
    """Its weights read the data, and end the network all the same."""
    assert ibvi.VariationalNetwork(nn.Linear(4, 100), ibvi.Bernoulli()).optim.lr == pytest.approx(
        0.01
    )
    assert ibvi.VariationalNetwork(nn.Linear(4, 1), ibvi.Bernoulli()).optim.lr == 0.1
