"""Draws as a model of BoTorch: against the network run by hand, and at work."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

import pyro_ibvi as ibvi

pytest.importorskip("botorch")
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.optim import optimize_acqf

from pyro_ibvi.botorch import FunctionDraws

X = torch.rand(7, 2, dtype=torch.double)


def network(likelihood, num_outputs=1, **options):
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, num_outputs))
    return ibvi.VariationalNetwork(net, likelihood, **options)


def by_hand(bnn, x, num_samples, seed):
    """Outputs of the plain network with each draw of the weights put in, ``(s, n, m)``."""
    with ibvi._util.random_state.thread_random_numbers(seed):
        draws = {name: d.detach() for name, d in bnn.guide.draw(num_samples).items()}
    net = copy.deepcopy(bnn.net.network).eval()
    outputs = []
    for i in range(num_samples):
        weights = {name: draws[bnn.net.site_name(name)][i] for name in bnn.net.stochastic}
        outputs.append(functional_call(net, weights, (x,)))
    return torch.stack(outputs)


@pytest.mark.parametrize("stochastic", ["all", "last", "input+output"])
def test_members_are_the_network_with_drawn_weights(stochastic):
    bnn = network(ibvi.Normal(0.1), stochastic=stochastic)
    draws = FunctionDraws(bnn.model, bnn.guide, num_samples=5, generator=3)
    expected = by_hand(bnn, X.float(), 5, 3).double()
    posterior = draws.posterior(X)
    torch.testing.assert_close(posterior.values, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(posterior.mean, expected.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(posterior.variance, expected.var(0), rtol=1e-4, atol=1e-6)
    assert posterior.values.dtype == torch.double
    assert draws.num_outputs == 1


def test_batches_of_points_are_their_rows():
    bnn = network(ibvi.Normal(0.1), num_outputs=3)
    draws = FunctionDraws(bnn.model, bnn.guide, num_samples=4, num_outputs=3, generator=0)
    points = torch.rand(2, 5, 3, 2)
    values = draws.posterior(points).values
    assert values.shape == (2, 5, 4, 3, 3)
    for i in range(2):
        for j in range(5):
            torch.testing.assert_close(values[i, j], draws.posterior(points[i, j]).values)
    chosen = draws.posterior(points, output_indices=[1]).values
    torch.testing.assert_close(chosen, values[..., [1]])
    assert draws.num_outputs == 3


@pytest.mark.parametrize("stochastic", ["all", "last"])
def test_many_points_run_with_few_draws_at_once(stochastic, monkeypatch):
    bnn = network(ibvi.Normal(0.1), stochastic=stochastic)
    draws = FunctionDraws(bnn.model, bnn.guide, num_samples=5, generator=3)
    monkeypatch.setattr(ibvi.prediction.chunking, "_MAX_OUTPUTS", {"cpu": 250, "other": 250})
    monkeypatch.setattr(ibvi.prediction.chunking, "_MAX_OUTPUTS_SHARED", 250)
    sizes = []
    run = draws._model.run

    def note(values, x):
        sizes.append(len(values[bnn.net.stochastic[0]]))
        return run(values, x)

    monkeypatch.setattr(draws._model, "run", note)
    with torch.no_grad():
        values = draws.posterior(X).values
    torch.testing.assert_close(
        values, by_hand(bnn, X.float(), 5, 3).double(), rtol=1e-5, atol=1e-6
    )
    assert sum(sizes) == 5
    assert (max(sizes) < 5) == (
        stochastic == "all"
    )  # the outputs of the last layer are the result


def test_members_are_in_the_units_of_the_target():
    def members(likelihood, num_outputs=1):
        bnn = network(likelihood, num_outputs=num_outputs)
        options = {"num_samples": 4, "num_outputs": num_outputs, "generator": 0}
        draws = FunctionDraws(bnn.model, bnn.guide, **options)
        return draws.posterior(X).values, by_hand(bnn, X.float(), 4, 0).double()

    values, outputs = members(ibvi.models.Standardized(ibvi.Normal(0.1), 30.0, 10.0))
    torch.testing.assert_close(values, 30 + 10 * outputs, rtol=1e-5, atol=1e-5)
    values, outputs = members(ibvi.Categorical(), 3)
    torch.testing.assert_close(values, outputs.softmax(-1), rtol=1e-5, atol=1e-6)
    values, outputs = members(ibvi.Bernoulli())
    torch.testing.assert_close(values, outputs.sigmoid(), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    bnn = network(ibvi.Normal(0.1))
    draws = FunctionDraws(bnn.model, bnn.guide, num_samples=3, generator=0)
    points = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: draws.posterior(x).values, points)
    assert not any(p.requires_grad for p in draws.parameters())


def test_training_that_goes_on_does_not_move_the_draws():
    bnn = network(ibvi.Normal(0.1))
    draws = FunctionDraws(bnn.model, bnn.guide, num_samples=3)
    before = draws.posterior(X).values
    bnn.fit(X.float(), X.float().sum(-1, keepdim=True), num_epochs=2)
    assert torch.equal(draws.posterior(X).values, before)
    assert torch.equal(copy.deepcopy(draws).posterior(X).values, before)
    after = FunctionDraws(bnn.model, bnn.guide, num_samples=3).posterior(X).values
    assert not torch.allclose(after, before)
    twin = FunctionDraws(bnn.model, bnn.guide, num_samples=3)
    twin.load_state_dict(draws.state_dict())
    assert torch.equal(twin.posterior(X).values, before)


def test_expected_improvement_is_that_of_the_members():
    """With every member drawn once, it is the mean of what they improve."""
    bnn = network(ibvi.Normal(0.1))
    draws = FunctionDraws(bnn.model, bnn.guide, num_samples=32, generator=0)
    values = draws.posterior(X.unsqueeze(1)).values[..., 0, 0]  # (points, members)
    best = values.median()
    acquisition = qLogExpectedImprovement(draws, best_f=best, tau_max=1e-6, tau_relu=1e-8)
    acquisition.sampler = EveryMember(torch.Size([32]))
    expected = (values - best).clamp(min=0).mean(1)
    torch.testing.assert_close(acquisition(X.unsqueeze(1)).exp(), expected, rtol=1e-3, atol=1e-6)


class EveryMember(nn.Module):
    """A sampler that takes each member once."""

    def __init__(self, sample_shape):
        super().__init__()
        self.sample_shape = sample_shape

    def forward(self, posterior):
        return posterior.values.movedim(-3, 0)


def test_the_optimizer_of_botorch_finds_where_the_members_are_best():
    """A linear network's largest value in a box is at one of its corners."""
    bnn = ibvi.VariationalNetwork(nn.Linear(2, 1), ibvi.Normal(0.1), stochastic="all")
    draws = FunctionDraws(bnn.model, bnn.guide, num_samples=1, generator=0)
    box = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.double)
    improvement = qLogExpectedImprovement(draws, best_f=-10.0)
    point, _ = optimize_acqf(improvement, box, q=1, num_restarts=2, raw_samples=8)
    slope = draws.posterior(torch.eye(2)).values - draws.posterior(torch.zeros(1, 2)).values
    torch.testing.assert_close(point, slope[..., 0].sign().double())


def test_what_is_no_model_is_refused():
    bnn, other = network(ibvi.Normal(0.1)), network(ibvi.Normal(0.1))
    with pytest.raises(TypeError, match=r"write FunctionDraws\(bnn.model, bnn.guide\)"):
        FunctionDraws(bnn, None)
    with pytest.raises(ValueError, match="another SupervisedModel"):
        FunctionDraws(bnn.model, other.guide)
    with pytest.raises(ValueError, match="num_samples"):
        FunctionDraws(bnn.model, bnn.guide, num_samples=0)
    with pytest.raises(ValueError, match=r"has 1 outputs for each point.*write num_outputs=1"):
        FunctionDraws(bnn.model, bnn.guide, num_outputs=2).posterior(X)
    draws = FunctionDraws(bnn.model, bnn.guide, num_samples=2)
    with pytest.raises(ValueError, match=r"\(\*batch, n, d\), with one row for each, got \(2,\)"):
        draws.posterior(torch.zeros(2))
