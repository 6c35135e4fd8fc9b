"""A batch of one datum has its batch dimension, whatever a network's squeeze() makes of it."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi


class Squeezing(nn.Module):
    """Leaves out every dimension of size 1, at its end or in its midst."""

    def __init__(self, num_outputs=1, where="end"):
        super().__init__()
        self.where = where
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, num_outputs)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        if self.where == "middle":
            return self.last(h.unsqueeze(1).squeeze())
        if self.where == "fails":
            return self.last(torch.cat([h.squeeze()[:, :4], h[:, 4:]], 1))
        return self.last(h).squeeze()


def make(net, likelihood):
    torch.manual_seed(0)
    return ibvi.VariationalNetwork(net, likelihood)


LOST = r"squeeze\(\) without a dimension leaves out that of the batch.* squeeze\(-1\)"
NETWORKS = [
    (lambda: Squeezing(), ibvi.Normal(0.3), ()),
    (lambda: Squeezing(3), ibvi.Normal(0.3), (3,)),
    (lambda: Squeezing(3), ibvi.Categorical(), ()),
    (lambda: Squeezing(3, "middle"), ibvi.Categorical(), ()),
    (lambda: Squeezing(2, "fails"), ibvi.Normal(0.3), (2,)),
]


def targets(likelihood, rows, shape):
    if isinstance(likelihood, ibvi.Categorical):
        return torch.randint(0, 3, (rows,))
    return torch.randn(rows, *shape)


@pytest.mark.filterwarnings("ignore:The forward pass of", "ignore:draws=.datum.")
@pytest.mark.parametrize(("make_net", "likelihood", "shape"), NETWORKS)
def test_a_batch_of_one_that_loses_its_dimension_is_refused(make_net, likelihood, shape):
    """The classes of one datum would be taken for as many data."""
    bnn = make(make_net(), likelihood)
    x, y = torch.randn(5, 4), targets(likelihood, 5, shape)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    for refused in (
        lambda: bnn.predict(x[:1], num_samples=3),
        lambda: bnn.predict(x, num_samples=3, batch_size=1),
        lambda: bnn.predict(loader, num_samples=3),
        lambda: bnn.evaluate(loader, num_samples=3),
        lambda: bnn.fit(loader, num_epochs=1, progress=False),
    ):
        with pytest.raises(ValueError, match=LOST):
            refused()
    bnn.fit(x, y, num_epochs=1, batch_size=4, progress=False)  # the last batch takes both rows


@pytest.mark.filterwarnings("ignore:The forward pass of")
@pytest.mark.parametrize(("make_net", "likelihood", "shape"), NETWORKS)
def test_no_batch_of_a_prediction_is_one_row_by_itself(make_net, likelihood, shape):
    bnn = make(make_net(), likelihood)
    x = torch.randn(9, 4)
    whole = bnn.predict(x, num_samples=3, seed=0)
    cut = bnn.predict(x, num_samples=3, seed=0, batch_size=4)
    torch.testing.assert_close(cut.mean, whole.mean)
    assert whole.log_prob(targets(likelihood, 9, shape)).shape == (9,)


def test_the_output_that_the_message_names_keeps_the_dimension():
    x, shift = torch.randn(5, 4), 1e-6
    plain = make(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), ibvi.Normal(0.3))
    torch.manual_seed(0)
    mended = ibvi.VariationalNetwork(
        Squeezing(3), ibvi.Normal(0.3), output=lambda out: out.reshape(-1, 3)
    )
    for part in (x, x[:1]):
        assert mended.predict(part, num_samples=3).mean.shape == (len(part), 3)
    loader = DataLoader(TensorDataset(x, torch.randn(5, 3)), batch_size=4)
    assert mended.fit(loader, num_epochs=1, progress=False).num_epochs == 1
    one, all_ = (plain.predict(part, num_samples=3, seed=0).mean for part in (x[:1], x))
    assert (one - all_[:1]).abs().max() < shift  # without a squeeze nothing is to be told


def test_a_dimension_of_size_one_that_stays_is_no_loss():
    net = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    bnn = make(net, ibvi.Normal(0.3))
    bnn.fit(torch.randn(1, 4), torch.randn(1, 1, 1), num_epochs=1, progress=False)
    assert bnn.predict(torch.randn(1, 4), num_samples=3).mean.shape == (1, 1, 1)


class Prototypes(nn.Module):
    """Distances to points that are the same for all data."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(4, 3), how

    def forward(self, x, points):
        h = self.layer(x)
        if self.how == "shape":
            return -(h.unsqueeze(1) - points).square().sum(-1)
        return h + points.mean(0)


@pytest.mark.parametrize("how", ["shape", "values"])
def test_an_input_for_all_data_with_as_many_rows_is_not_cut_in_silence(how):
    bnn = make(Prototypes(how), ibvi.Normal(0.3))
    points = torch.randn(3, 3)
    options = {"num_samples": 3, "seed": 0}
    whole = bnn.predict((torch.ones(3, 4), points), **options).mean
    more = bnn.predict((torch.ones(9, 4), points), batch_size=4, **options).mean
    torch.testing.assert_close(more[:3], whole)
    with pytest.raises(ValueError, match=r"batch_size=2 .* for the same rows are others"):
        bnn.predict((torch.ones(3, 4), points), batch_size=2, **options)
