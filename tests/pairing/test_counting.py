"""Losses of several batches are a mean over what was observed, whatever the batches' sizes."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import nn
from torch.nn.functional import cross_entropy

import pyro_ibvi as ibvi

WEIGHT = torch.tensor([1.0, 0.5, 3.0])


def make_batches():
    """Batches of 4, 4 and 2 rows, of which 1, 0 and 2 have a label."""
    torch.manual_seed(0)
    x, y = torch.randn(10, 5), torch.randint(0, 3, (10,))
    y[:3] = y[4:8] = -100
    return x, y, list(zip(x.split([4, 4, 2]), y.split([4, 4, 2]), strict=True))


def make(likelihood, *, lr=0.1):
    """A network without noise, a copy of it in plain torch, and how it is trained."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    plain = copy.deepcopy(net)
    random = ibvi.RandomModule(net, parametrization=ibvi.Standard(), stochastic="all")
    model = ibvi.SupervisedModel(random, likelihood, num_data=10)
    guide = ibvi.AutoMuPNormal(
        model, covariance={"*": None}, init_loc_fn=ibvi.init_to_network, init_scale=1.0
    )
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": lr}, guide)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")
    return SVI(model, guide, optim, loss), plain


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "class weights"])
@pytest.mark.parametrize("num_before", [0, 1], ids=["by traces first", "without traces"])
def test_history_is_a_mean_over_the_labels_that_count(weight, num_before):
    x, y, batches = make_batches()
    svi, plain = make(ibvi.Categorical(ignore_index=-100, weight=weight), lr=1e-12)
    for _ in range(num_before):
        svi.step(x, y)
    history = ibvi.fit(svi, batches, 1, valid_loader=batches, progress=False)
    expected = cross_entropy(plain(x), y, weight=weight).item()
    assert history.train_loss == pytest.approx([expected], rel=1e-6)
    assert history.valid_loss == pytest.approx([expected], rel=1e-6)
    by_batch = sum(cross_entropy(plain(a), b, weight=weight).nan_to_num() for a, b in batches) / 3
    assert abs(by_batch.item() - expected) > 0.1  # what it was


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_accumulated_gradients_are_a_mean_over_the_labels_that_count(order):
    x, y, batches = make_batches()
    svi, plain = make(ibvi.Categorical(ignore_index=-100))
    history = ibvi.fit(svi, [batches[i] for i in order], 1, accumulate=3, progress=False)
    loss = cross_entropy(plain(x), y)
    loss.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert history.train_loss == pytest.approx([loss.item()], rel=1e-6)
    trained = ibvi.prediction.mean_network(svi.model, svi.guide)
    for name, value in trained.named_parameters():
        torch.testing.assert_close(value, plain.get_parameter(name), rtol=1e-5, atol=1e-6)


def test_missing_numbers_count_by_what_is_observed_of_each_datum():
    x, _, _ = make_batches()
    y = torch.randn(10, 3)
    y[:3], y[3:5, 0] = math.nan, math.nan
    svi, plain = make(ibvi.models.Masked(ibvi.Normal(0.5)), lr=1e-12)
    batches = list(zip(x.split([3, 5, 2]), y.split([3, 5, 2]), strict=True))
    history = ibvi.fit(svi, batches, 1, valid_loader=batches, progress=False)
    terms = -dist.Normal(plain(x), 0.5).log_prob(y.nan_to_num())[~y.isnan()]
    expected = (terms.sum() / (terms.numel() / 3)).item()  # per datum of three numbers
    assert history.train_loss == pytest.approx([expected], rel=1e-5)
    assert history.valid_loss == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_masks_of_a_model_written_by_hand_count(reduction):
    """A subsampled plate stands for all data, and a batch counts by what it holds of them."""
    x, _, _ = make_batches()
    y, seen = x[:, 0] ** 2, torch.arange(10) > 2

    def model(y, seen):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample=y), poutine.mask(mask=seen):
            pyro.sample("obs", dist.Normal(loc, 1.0), obs=y)

    def guide(y, seen):
        pyro.sample("loc", dist.Delta(pyro.param("start", torch.tensor(0.5))))

    loss = ibvi.TraceExpectedLogLikelihood(reduction=reduction)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-12}), loss)
    batches = list(zip(y.split([3, 5, 2]), seen.split([3, 5, 2]), strict=True))
    history = ibvi.fit(svi, batches, 1, valid_loader=batches, progress=False)
    terms = -dist.Normal(0.5, 1.0).log_prob(y)[seen]
    expected = (terms.mean() if reduction == "mean" else terms.sum()).item()
    assert history.train_loss == pytest.approx([expected], rel=1e-5)
    assert history.valid_loss == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("which", ["training", "validation"])
def test_an_epoch_of_which_nothing_counts_is_refused(which):
    x, y, batches = make_batches()
    svi, _ = make(ibvi.Categorical(ignore_index=-100))
    nothing = [(x[:4], y[:4] * 0 - 100)]
    loaders = (nothing, batches) if which == "training" else (batches, nothing)
    with pytest.raises(ValueError, match=f"No target of the {which} data counts"):
        ibvi.fit(svi, loaders[0], 1, valid_loader=loaders[1], progress=False)
