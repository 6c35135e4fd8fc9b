"""The objectives on networks with random weights, with every covariance of the package's guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_ibvi import (
    AutoMuPNormal,
    Categorical,
    Diagonal,
    Kronecker,
    LowRank,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    TraceGeneralizedVI,
    TraceMeanFieldExpectedLogLikelihood,
    explain,
)
from pyro_ibvi.theory.divergences import covariance_factor, wasserstein2_squared
from tests.objectives.zoo import Case, loss_and_grads

pytestmark = pytest.mark.usefixtures("double")
LAYERS = [["net.0.weight", "net.0.bias"], ["net.2.weight", "net.2.bias"]]
KRONECKERS = [Kronecker(2, 3), Kronecker(None, None)]
PARTICLES = [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}]


def network(covariance):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    model = SupervisedModel(
        RandomModule(net, stochastic="input+output"), Categorical(), num_data=50
    )
    guide = AutoMuPNormal(model, covariance=covariance)
    return Case(model, guide, (torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])))


@pytest.mark.parametrize("options", PARTICLES)
@pytest.mark.parametrize("covariance", [Diagonal(), LowRank(2), LowRank(30), *KRONECKERS])
def test_penalty_is_the_distance_of_the_dense_forms(covariance, options):
    case = network(covariance)
    with torch.no_grad():
        for param in case.guide.parameters():  # away from the prior, and from its symmetry
            param.mul_(1.5).add_(0.1 * torch.randn_like(param))
    free = loss_and_grads(TraceGeneralizedVI(weight=0.0, **options), case)
    full = loss_and_grads(TraceGeneralizedVI(**options), case)
    expected = 0.0
    for names in LAYERS:
        layers = [names] if covariance.shares_noise else [[name] for name in names]
        for layer in layers:
            loc = torch.cat([case.guide.loc(name).reshape(-1) for name in layer])
            factor = covariance_factor(case.guide.covariance(*layer))
            stds = [case.model.net.prior_std(n.removeprefix("net.")) for n in layer]
            sizes = [case.guide.loc(name).numel() for name in layer]
            scale = torch.cat([torch.full((n,), s) for n, s in zip(sizes, stds, strict=True)])
            expected += wasserstein2_squared(loc, factor, torch.zeros_like(loc), scale).item()
    assert full[0] - free[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", PARTICLES)
def test_no_site_of_a_network_is_reported(options):
    case = network(LowRank(2))
    loss = TraceExpectedLogLikelihood(reduction="mean", **options)
    value, grads = loss_and_grads(loss, case)
    assert 0.0 < value < 100.0
    assert all((grad != 0).any() for grad in grads.values())
    report = explain(TraceExpectedLogLikelihood(), *case[:2], *case.args)
    assert (report.unmoved, report.local, report.errors) == ((), (), ())


def test_a_degenerate_covariance_speaks_for_itself():
    case = network(LowRank(2))
    with pytest.raises(RuntimeError, match="degenerate and has no density"):
        loss_and_grads(TraceExpectedLogLikelihood(kl_weight=0.1), case)
    with pytest.raises(ValueError, match="has no density and no Kullback-Leibler divergence"):
        loss_and_grads(TraceGeneralizedVI(divergence="kl"), case)


def test_the_kl_of_a_diagonal_guide():
    case = network(Diagonal())
    pyro.set_rng_seed(0)
    exact = loss_and_grads(TraceGeneralizedVI(divergence="kl"), case)
    analytic = loss_and_grads(TraceMeanFieldExpectedLogLikelihood(kl_weight=1), case)
    assert exact[0] == pytest.approx(analytic[0], rel=1e-8)
    one = loss_and_grads(TraceExpectedLogLikelihood(kl_weight=1), case)
    assert one[0] == loss_and_grads(Trace_ELBO(), case)[0]


class TwoNetworks(pyro.nn.PyroModule):
    """A network on the output of another, and on a latent."""

    def __init__(self):
        super().__init__()
        self.first = RandomModule(torch.nn.Linear(3, 2))
        self.second = RandomModule(torch.nn.Linear(2, 1))

    def forward(self, x, y):
        hidden = self.first(x)
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        loc = self.second(torch.tanh(hidden)).squeeze(-1) + shift
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def test_a_network_on_particles_is_refused_where_it_would_cross_them():
    x, y = torch.randn(4, 3), torch.randn(4)
    model = TwoNetworks()
    guide = AutoMuPNormal(model)
    guide.initialize(x, y)
    options = {"num_particles": 5, "max_plate_nesting": 1}
    together = TraceExpectedLogLikelihood(vectorize_particles=True, **options)
    with pytest.raises(ValueError, match=r"'y' have the shape \(5, 5, 4\).*vectorize_particles=F"):
        together.loss(model, guide, x, y)
    pyro.set_rng_seed(0)
    loss = TraceExpectedLogLikelihood(**options).loss(model, guide, x, y)
    pyro.set_rng_seed(0)
    truth = 0.0
    for _ in range(5):
        draw = guide(x, y)
        hidden = torch.tanh(x @ draw["first.weight"].mT + model.first.network.bias)
        loc = (hidden @ draw["second.weight"].mT + model.second.network.bias).squeeze(-1)
        truth -= dist.Normal(loc + draw["shift"], 1.0).log_prob(y).sum().item() / 5
    assert loss == pytest.approx(truth, rel=1e-5)
