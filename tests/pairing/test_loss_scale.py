"""A sum over data at rates for a mean is said once, where it does harm, whoever takes steps."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from torch import nn

import pyro_ibvi as ibvi
from tests.optimizers import MUON, needs_muon

NUM_DATA = 50
X = torch.linspace(-1, 1, NUM_DATA).unsqueeze(-1)
Y = X.square()
HARMFUL = {"lr": 0.05, "momentum": 0.9}  # 50 times 0.05 for a mean, and ten times that by momentum
SENTENCE = r"per datum, and this {} is a sum, 50 times.* at lr=0.05: write .*reduction='mean'"
Sum = ibvi.TraceExpectedLogLikelihood
BINARY = ibvi.Bernoulli()


class Regression(pyro.nn.PyroModule):
    """A model written by hand."""

    def __init__(self):
        super().__init__()
        self.net = ibvi.RandomModule(
            nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)), stochastic="last"
        )

    def forward(self, x, y):
        mean = self.net(x).squeeze(-1)
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
            return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y.squeeze(-1))


def make(model=None):
    pyro.set_rng_seed(0)
    if model is None:
        net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
        model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(1.0), NUM_DATA)
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.Diagonal())


def in_list(model):
    guide = AutoGuideList(model)
    guide.append(ibvi.AutoMuPNormal(model, covariance=ibvi.Diagonal()))
    guide(X[:10], Y[:10])
    return guide


def step(loss, optimizer=torch.optim.SGD, arguments=HARMFUL, pair=make, **kwargs):
    model, guide = pair()
    optim = ibvi.MuPOptim(optimizer, arguments, guide, **kwargs)
    svi = SVI(model, guide, optim, loss)
    svi.step(X[:10], Y[:10])
    return svi


@pytest.mark.parametrize(
    "make_loss",
    [
        Sum,
        partial(Sum, kl_weight=0.5),
        partial(Sum, kl_weight=1.0),  # Pyro's own objective
        partial(Sum, num_particles=3, vectorize_particles=True),
        ibvi.TraceMeanFieldExpectedLogLikelihood,
        ibvi.TraceGraphExpectedLogLikelihood,
        partial(ibvi.TraceGeneralizedVI, divergence="wasserstein2", weight=0.1),
        ibvi.TraceClosedFormHead,
    ],
)
def test_a_loop_by_hand_hears_of_a_sum_once(make_loss):
    loss = make_loss()
    with pytest.warns(UserWarning, match=SENTENCE.format(type(loss).__name__)):
        svi = step(loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Encountered")
        svi.step(X[:10], Y[:10])


def test_what_is_counted_is_what_was_observed():
    """A model by hand, its plate subsampled, and a guide in a list of guides."""
    model = Regression()
    for guide in (lambda m: make(m)[1], in_list):
        with pytest.warns(UserWarning, match=SENTENCE.format("TraceExpectedLogLikelihood")):
            step(Sum(), pair=lambda guide=guide: (model, guide(model)))


@pytest.mark.parametrize(
    ("loss", "optimizer", "arguments"),
    [
        (Sum(reduction="mean"), torch.optim.SGD, HARMFUL),
        (Sum(reduction="mean", kl_weight=1.0), torch.optim.SGD, HARMFUL),
        (Sum(), torch.optim.SGD, {"lr": 0.05 / NUM_DATA, "momentum": 0.9}),  # divided by hand
        (Sum(), torch.optim.Adam, {"lr": 0.1}),  # whose steps do not grow with the gradient
        pytest.param(Sum(), MUON, {"lr": 0.05}, marks=needs_muon),
    ],
)
def test_what_does_no_harm_is_not_said(loss, optimizer, arguments):
    step(loss, optimizer, arguments)


def test_the_loss_at_hand_counts_and_no_earlier_one():
    model, guide = make()
    with pytest.warns(UserWarning, match="is a sum, 50 times"):
        SVI(model, guide, ibvi.MuPOptim(torch.optim.SGD, HARMFUL, guide), Sum()).step(X, Y)
    guide = make(model)[1]
    Sum().loss_and_grads(model, guide, X, Y)
    guide.zero_grad()
    mean = Sum(reduction="mean")
    SVI(model, guide, ibvi.MuPOptim(torch.optim.SGD, HARMFUL, guide), mean).step(X, Y)


def test_harm_is_where_it_is_said():
    """Training at the rate that is warned of loses what the same rate learns of a mean."""

    def error_after(loss):
        model, guide = make()
        svi = SVI(model, guide, ibvi.MuPOptim(torch.optim.SGD, HARMFUL, guide), loss)
        for _ in range(40):
            svi.step(X, Y)
        return (ibvi.predict(model, guide, X, num_samples=20).mean - Y).square().mean().item()

    assert error_after(Sum(reduction="mean")) < 0.2
    with pytest.warns(UserWarning, match="is a sum"):
        assert not error_after(Sum()) < 2.0


@pytest.mark.parametrize("loss", [ibvi.TraceExpectedLogLikelihood, Trace_ELBO])
def test_fit_says_it_of_pyros_objectives_as_well(loss):
    model, guide = make()
    svi = SVI(model, guide, ibvi.MuPOptim(torch.optim.SGD, HARMFUL, guide), loss())
    with pytest.warns(UserWarning, match=SENTENCE.format(loss.__name__)) as caught:
        ibvi.fit(svi, [(X[:2], Y[:2])], 1, progress=False)
    assert sum("is a sum" in str(warning.message) for warning in caught) == 1


def of_pixels(**options):
    """Which pixels of an image are above the mean around them, learned in a few epochs."""
    torch.manual_seed(0)
    images = torch.randn(96, 1, 12, 12)
    labels = (nn.functional.avg_pool2d(images, 3, 1, 1) > 0).long()
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    )
    bnn = ibvi.VariationalNetwork(
        nn.Sequential(net, nn.Conv2d(8, 1, 1)), ibvi.models.Masked(ibvi.Bernoulli()), **options
    )
    bnn.fit(images, labels.float(), num_epochs=8, batch_size=32, progress=False)
    return bnn.evaluate(images, labels.float(), num_samples=20, seed=0)["accuracy"]


def test_a_sum_over_pixels_is_told_and_what_it_names_works():
    with pytest.warns(UserWarning, match=r"144 binary labels.*pass lr=0\.0007, or .*Adam"):
        too_large = of_pixels(lr=0.1)
    by_rate, by_adam = of_pixels(lr=0.0007), of_pixels(optimizer=torch.optim.Adam)  # in silence
    assert too_large < 0.8 < min(by_rate, by_adam)


def test_the_default_rate_is_one_for_the_labels_of_all_pixels():
    """It is that which learns the mean over them: the same steps as by the rate that is named."""
    assert of_pixels() == of_pixels(lr=0.1 / 144)


def test_labels_beside_one_another_are_no_pixels():
    torch.manual_seed(0)
    x = torch.randn(100, 10)
    y = (x @ torch.randn(10, 200) > 0).long()
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 200))
    bnn = ibvi.VariationalNetwork(net, ibvi.Bernoulli())
    bnn.fit(x, y, num_epochs=60, batch_size=10, progress=False)  # in silence
    assert bnn.evaluate(x, y, num_samples=20, seed=0)["accuracy"] > 0.8
    as_image = ibvi.VariationalNetwork(nn.Sequential(net, nn.Unflatten(1, (1, 10, 20))), BINARY)
    as_image.fit(x, y.reshape(-1, 1, 10, 20), num_epochs=2, progress=False)  # of weights each


def test_labels_of_times_are_places_without_a_dimension_of_their_own_too():
    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.rnn(x)[0]).squeeze(-1)

    x = torch.randn(20, 40, 3)
    with pytest.warns(UserWarning, match="40 binary labels, of pixels or times"):
        ibvi.VariationalNetwork(Times(), BINARY, lr=0.1).fit(
            x, (x[..., 0] > 0).float(), num_epochs=1, progress=False
        )
    bnn = ibvi.VariationalNetwork(Times(), BINARY)
    bnn.fit(x, (x[..., 0] > 0).float(), num_epochs=1, progress=False)
    assert bnn.optim.lr == pytest.approx(0.1 / 40)
    bnn.fit(x[:, :20], (x[:, :20, 0] > 0).float(), num_epochs=1, progress=False)  # goes on
    assert bnn.optim.lr == pytest.approx(0.1 / 40)
