"""The mixture of Gaussians: its law, its loss, and what its components share."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive
from torch import Tensor, nn

import pyro_ibvi as ibvi
from pyro_ibvi.prediction import frozen_draws, mean_network


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def make_pair(
    num_components: int = 3, stochastic: Any = "last weights", **options: Any
) -> tuple[ibvi.SupervisedModel, ibvi.AutoMuPMixture]:
    net = ibvi.RandomModule(make_net().double(), stochastic=stochastic)
    model = ibvi.SupervisedModel(net, ibvi.Categorical(), num_data=60)
    options.setdefault("covariance", ibvi.Multiplicative(0.35, rate=0.0))
    return model, ibvi.AutoMuPMixture(model, num_components, **options)


def make_data() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 5).double(), torch.randint(0, 3, (6,))


def test_law_of_the_draws_is_the_mixtures() -> None:
    """Mean and covariance in closed form: law of total covariance over equal weights."""
    torch.manual_seed(0)
    net = ibvi.RandomModule(nn.Linear(2, 1), stochastic=["weight"])
    guide = ibvi.AutoMuPMixture(net, 2, covariance=ibvi.LowRank(2))
    draws = guide.draw(40_001)["weight"].reshape(-1, 2)
    locs = guide.loc("weight").reshape(2, 2)
    within = sum(c.covariance("weight") for c in guide.components) / 2
    between = torch.cov(locs.T, correction=0)
    torch.testing.assert_close(draws.mean(0), locs.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(draws.T), within + between, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7])
def test_each_component_has_its_turn(num_samples: int) -> None:
    _, guide = make_pair(3, covariance=None)
    with torch.no_grad():
        for k, component in enumerate(guide.components):
            component.loc("net.2.weight").fill_(100.0 * k)
            component.factor("net.2.weight").zero_()
    draws = guide.draw(num_samples)["net.2.weight"]
    shares = [(draws[:, 0, 0] == 100.0 * k).sum().item() for k in range(3)]
    assert sum(shares) == num_samples
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_components_go_on_taking_turns_over_chunks_of_draws(size: int) -> None:
    model, guide = make_pair(3, covariance=None)
    with torch.no_grad():
        for k, component in enumerate(guide.components):
            component.loc("net.2.weight").fill_(100.0 * k)
            component.factor("net.2.weight").zero_()
    for seed in range(5):  # a component drawn anew for each chunk would seldom be in turn
        outputs = ibvi.predict(
            model, guide, make_data()[0], num_samples=10, chunk_size=size, generator=seed
        ).outputs
        first = outputs[:, 0, 0]
        assert len(first[:3].unique()) == 3
        torch.testing.assert_close(first, first[:3].repeat(4)[:10])


@pytest.mark.parametrize("num_components", [1, 3])
@pytest.mark.parametrize("draws", ["batch", "datum", 2])
def test_step_is_the_mean_over_networks_by_hand(num_components: int, draws: Any) -> None:
    """Loss and gradients are those of networks that share their first layer, in plain torch."""
    torch.manual_seed(0)
    model, guide = make_pair(num_components)
    (x, y), net = make_data(), model.net.network
    objective = ibvi.TraceExpectedLogLikelihood(reduction="mean", draws=draws)(model, guide)
    objective(x, y)  # the first call looks at model and guide, which draws numbers too
    torch.manual_seed(1)
    loss = objective(x, y)
    loss.backward()

    torch.manual_seed(1)
    locs = [c.loc("net.2.weight").detach().clone().requires_grad_() for c in guide.components]
    hidden = net[:2](x)
    if draws == "batch":
        zs = [torch.randn(1, 8, dtype=torch.float64) for _ in locs]
    else:  # this site has a draw for each datum where others have one for a part of the batch
        sizes = [6] if draws == "datum" else [3, 3]
        zs = [torch.cat([torch.randn(size, 8, dtype=torch.float64) for size in sizes])] * len(locs)
    outputs = [(hidden * (1 + 0.35 * z)) @ loc.T for loc, z in zip(locs, zs, strict=True)]
    losses = [nn.functional.cross_entropy(output + net[2].bias, y) for output in outputs]
    by_hand = torch.stack(losses).mean()
    torch.testing.assert_close(loss, by_hand, rtol=1e-12, atol=0)
    expected = torch.autograd.grad(by_hand, [net[0].weight, *locs])
    found = [net[0].weight.grad, *(c.loc("net.2.weight").grad for c in guide.components)]
    for own, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(own, gradient, rtol=1e-10, atol=1e-14)


class Stubborn(nn.Module):
    """Looks at a number of a draw, which vmap does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        output = self.last(torch.tanh(self.first(x)))
        return output if output.sum().item() < 1e9 else output * 0


def test_network_that_runs_draw_by_draw() -> None:
    torch.manual_seed(0)
    roles = {"first": "input", "last": "output"}
    net = ibvi.RandomModule(Stubborn(), stochastic=["last.weight"], roles=roles)
    model = ibvi.SupervisedModel(net, ibvi.Categorical(), num_data=60)
    guide = ibvi.AutoMuPMixture(model, 2, covariance=ibvi.Multiplicative(1e-9, rate=0.0))
    x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
    objective = ibvi.TraceExpectedLogLikelihood(reduction="mean", draws="datum")(model, guide)
    objective(x, y)
    hidden = torch.tanh(net.network.first(x))
    losses = [
        nn.functional.cross_entropy(hidden @ loc.T + net.network.last.bias, y)
        for loc in guide.loc("net.last.weight")
    ]
    torch.testing.assert_close(objective(x, y), torch.stack(losses).mean())


def test_learned_factors_have_one_draw_for_a_batch_and_it_says_so() -> None:
    model, guide = make_pair(2, covariance=ibvi.Multiplicative(0.35))
    objective = ibvi.TraceExpectedLogLikelihood(draws="datum")(model, guide)
    objective(*make_data())
    with pytest.warns(UserWarning, match=r"one draw for a batch.*rate=0"):
        objective(*make_data())


def test_trace_draws_a_component_and_then_from_it() -> None:
    _, guide = make_pair(2)
    with torch.no_grad():
        for k, component in enumerate(guide.components):
            component.loc("net.2.weight").fill_(1.0 + 99.0 * k)
    torch.manual_seed(0)
    large = sum(bool(guide()["net.2.weight"].abs().max() > 10) for _ in range(200))
    assert 70 < large < 130  # 100 +- 4 standard deviations


def test_predictive_has_every_component_or_says_what_to_write() -> None:
    model, guide = make_pair(2)
    x, y = make_data()
    guide(x, y)
    with torch.no_grad():
        for k, component in enumerate(guide.components):
            component.loc("net.2.weight").fill_(1.0 + 99.0 * k)
    sites = ["net.2.weight"]
    at_once = Predictive(model, guide=guide, num_samples=40, parallel=True, return_sites=sites)
    with pytest.raises(NotImplementedError, match="write parallel=False"):
        at_once(x)
    posterior = guide.draw(40)
    one_by_one = Predictive(model, guide=guide, num_samples=40, return_sites=sites)
    from_draws = Predictive(model, posterior_samples=posterior, return_sites=sites)
    for predictive in (one_by_one, from_draws):
        large = predictive(x)["net.2.weight"].flatten(1).abs().amax(1) > 10
        assert 5 < large.sum() < 35


def test_any_pyro_model_trains_by_traces() -> None:
    """A mixture finds both modes of a posterior that has two."""

    def model(y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(w**2, 0.5), obs=y)

    torch.manual_seed(0)
    y = torch.full((20,), 1.0)
    guide = ibvi.AutoMuPMixture(model, 4, init_scale=0.1)
    guide.initialize(y)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), ibvi.TraceExpectedLogLikelihood())
    for _ in range(1200):
        svi.step(y)
    found = guide.loc("w")
    torch.testing.assert_close(found.abs(), torch.ones(4), rtol=0, atol=0.15)
    assert found.min() < 0 < found.max()


def test_shared_sites_are_one_parameter() -> None:
    torch.manual_seed(0)
    model, guide = make_pair(3, "all weights", shared=["net.0.*"])
    first, *others = guide.components
    assert guide.loc("net.0.weight").shape == (8, 5)
    assert guide.loc("net.2.weight").shape == (3, 3, 8)
    assert guide.rsample()["net.0.weight"].shape == (8, 5)
    for other in others:
        assert other.loc("net.0.weight") is first.loc("net.0.weight")
        assert other.factor("net.0.weight") is first.factor("net.0.weight")
    (x, y), net = make_data(), model.net.network
    objective = ibvi.TraceExpectedLogLikelihood(reduction="mean", draws="datum")(model, guide)
    objective(x, y)
    torch.manual_seed(1)
    loss = objective(x, y)
    torch.manual_seed(1)
    z = torch.randn(6, 13, dtype=torch.float64)
    hidden = torch.tanh(
        (x * (1 + 0.35 * z[:, :5])) @ first.loc("net.0.weight").T + net[0].bias
    ) * (1 + 0.35 * z[:, 5:])
    losses = [
        nn.functional.cross_entropy(hidden @ loc.T + net[2].bias, y)
        for loc in guide.loc("net.2.weight")
    ]
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-12, atol=0)


def test_components_start_apart() -> None:
    torch.manual_seed(0)
    options = {"init_loc_fn": ibvi.init_to_network}
    model, guide = make_pair(400, **options)
    weight = model.net.network.get_parameter("2.weight")
    locs = guide.loc("net.2.weight")
    assert torch.equal(locs[0], weight)
    spread = locs[1:].std(0) / weight.abs()
    torch.testing.assert_close(spread, torch.full_like(spread, 0.35), rtol=0, atol=0.06)
    _, sampled = make_pair(2)
    assert not torch.equal(*sampled.loc("net.2.weight"))


def test_rates_are_those_of_one_gaussian() -> None:
    model, guide = make_pair(3, covariance=ibvi.LowRank(2))
    one = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(2))
    for family in ("sgd", "adam"):
        rates = {p: rate for _, p, rate in guide.named_rates(family)}
        trained = {*guide.parameters(), model.net.network.get_parameter("0.weight")}
        assert trained <= rates.keys()
        names = [name for name, _, _ in guide.named_rates(family)]
        assert len(set(names)) == len(names)
        expected = {parameter: rate for _, parameter, rate in one.named_rates(family)}
        for component in guide.components:
            for kind in ("loc", "factor"):
                own, other = (getattr(g, kind)("net.2.weight") for g in (component, one))
                assert rates[own] == expected[other]
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    before = [p.detach().clone() for p in guide.parameters()]
    for _ in range(2):
        svi.step(*make_data())
    assert all(not torch.equal(a, b) for a, b in zip(before, guide.parameters(), strict=True))


def test_copies_and_states() -> None:
    model, guide = make_pair(3, "all weights", shared=["net.0.weight"])
    model_2, guide_2 = copy.deepcopy((model, guide))
    assert guide_2.model is model_2
    first, second, _ = guide_2.components
    assert first.loc("net.0.weight") is second.loc("net.0.weight")
    assert first.loc("net.0.weight") is not guide.components[0].loc("net.0.weight")
    assert copy.deepcopy(guide).model is model
    _, new = make_pair(3, "all weights", shared=["net.0.weight"])
    new.load_state_dict(pickle.loads(pickle.dumps(guide)).state_dict())
    for own, other in zip(new.parameters(), guide.parameters(), strict=True):
        assert torch.equal(own, other)
    for copied in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert vars(copied).keys() == vars(guide).keys()


def test_predictions_are_the_same_from_the_same_seed_and_from_frozen_draws() -> None:
    torch.manual_seed(0)
    model, guide = make_pair(3)
    x, _ = make_data()
    state = torch.get_rng_state()
    first = ibvi.predict(model, guide, x, num_samples=7, generator=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(1)
    again = ibvi.predict(model, guide, x, num_samples=7, generator=3)
    assert torch.equal(first.mean, again.mean)
    mean, _ = frozen_draws(model, guide, num_samples=7, generator=3)(x)
    torch.testing.assert_close(mean, first.mean)


def test_saved_and_trained_on(tmp_path: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )
    x, y = torch.randn(32, 1, 8), torch.randint(0, 3, (32,))
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical())
    bnn.fit(x, y, num_epochs=2, batch_size=16, progress=False)
    bnn.save(tmp_path / "net")
    again = ibvi.load(tmp_path / "net", net)
    assert torch.equal(again.predict(x, seed=0).mean, bnn.predict(x, seed=0).mean)
    again.fit(x, y, num_epochs=1, progress=False)
    (first, second, *_) = again.guide.components
    assert first.loc("net.2.weight") is second.loc("net.2.weight")


def test_mistakes() -> None:
    model, guide = make_pair(2)
    for number in (0, -1, 2.0, True, "4"):
        with pytest.raises((TypeError, ValueError), match="num_components must be a positive"):
            ibvi.AutoMuPMixture(model, number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shared names \['net.9'\], but the latent sites are"):
        ibvi.AutoMuPMixture(model, 2, shared="net.9")
    for kind in (ibvi.AutoMuPMixture, ibvi.AutoMuPNormal):
        with pytest.raises(
            TypeError, match=r"AutoMuP\w+ has no argument 'rank': write covariance="
        ):
            kind(model, rank=3)
    with pytest.raises(ValueError, match="no network at its mean"):
        mean_network(model, guide)
    assert isinstance(mean_network(model, guide.components[0]), nn.Sequential)


def test_moments_are_those_of_each_component_and_quantiles_are_refused() -> None:
    _, guide = make_pair(covariance=ibvi.LowRank(4))
    name = "net.2.weight"
    covariance = guide.covariance(name)
    assert guide.scale(name).shape == guide.loc(name).shape == (3, 3, 8)
    assert covariance.shape == (3, 24, 24)
    variances = covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(guide.scale(name).square().flatten(1), variances)
    for asked, words in (
        (guide.median, r"no median in closed form.*guide\.draw"),
        (lambda: guide.quantiles([0.5]), r"no quantiles in closed form.*guide\.draw"),
    ):
        with pytest.raises(ValueError, match=words):
            asked()
