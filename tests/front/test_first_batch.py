"""What a first batch tells of outputs and targets that a likelihood does not expect."""

import contextlib

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.models import Masked, MultiTask, Standardized
from tests.front.test_first_try import LABELS, X, mlp, trained


class Ending(nn.Module):
    """A network whose last step is a function, which no layer tells of."""

    def __init__(self, end):
        super().__init__()
        self.net, self.end = mlp(1), end

    def forward(self, x):
        return self.end(self.net(x))


@pytest.mark.parametrize("draws", ["batch", 2])
@pytest.mark.parametrize(
    ("end", "likelihood", "words"),
    [
        (torch.sigmoid, ibvi.Bernoulli(), "are probabilities.* leave out the Sigmoid"),
        (lambda out: out.sigmoid().reshape(-1, 1), ibvi.Bernoulli(), "leave out the Sigmoid"),
        (torch.exp, ibvi.Poisson(), "ends in Exp, which gives rates.* logarithms"),
        (nn.functional.softplus, ibvi.Poisson(), "ends in Softplus, which gives rates"),
        (lambda out: 2 * out.sigmoid(), ibvi.Bernoulli(), None),
        (lambda out: out, ibvi.Poisson(), None),
        (torch.sigmoid, Masked(ibvi.Bernoulli()), "are probabilities.* leave out the Sigmoid"),
    ],
)
def test_a_function_at_the_end_that_the_likelihood_has_itself_is_told(
    end, likelihood, words, draws
):
    y = (LABELS > 0).long().unsqueeze(-1)
    if words is None:
        trained(Ending(end), likelihood, X, y, draws=draws)
        return
    with pytest.warns(UserWarning, match=words):
        trained(Ending(end), likelihood, X, y, draws=draws)


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (
            (torch.sigmoid, lambda out: out),
            "outputs of the task 'mark' are probabilities.* leave out the Sigmoid",
        ),
        ((lambda out: out, torch.exp), "ends in Exp, which gives rates.* of the task 'count'"),
        ((lambda out: out, torch.sigmoid), None),
    ],
)
def test_what_a_network_ends_in_is_told_of_each_task(ends, words):
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.mark, self.count = nn.Linear(4, 1), nn.Linear(4, 1)
            self.end = nn.Sigmoid()

        def forward(self, x):
            return ends[0](self.mark(x)), ends[1](self.count(x))

    tasks = {"mark": (ibvi.Bernoulli(), 1), "count": (ibvi.Poisson(), 1)}
    y = {"mark": (LABELS > 0).long(), "count": LABELS}
    warning = pytest.warns(UserWarning, match=words) if words else contextlib.nullcontext()
    with warning:
        trained(Ends(), MultiTask(tasks), X.clamp(-1, 1), y)  # the end's exponential is large


@pytest.mark.parametrize("draws", ["datum", "batch"])
def test_classes_that_are_squashed_one_by_one_are_told(draws):
    net = nn.Sequential(mlp(3), nn.Sigmoid())
    with pytest.warns(UserWarning, match=r"are probabilities.* logits: leave out the Sigmoid"):
        trained(net, ibvi.Categorical(), X, LABELS, draws=draws)


def test_outputs_that_are_joined_otherwise_are_told_by_their_numbers():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            out = 5 * self.linear(x)
            return torch.cat([out[:, :2], out[:, 2:].sigmoid()], 1)

    tasks = {"a": (ibvi.Normal(), 1), "mark": (ibvi.Bernoulli(), 1), "b": (ibvi.Normal(), 2)}
    y = {"a": X[:, :1], "mark": (LABELS > 0).long(), "b": X[:, :2].sigmoid()}
    trained(Joined(), MultiTask(tasks), X, y)  # in silence


def test_counts_of_a_task_hear_what_to_write():
    tasks = MultiTask({"mark": (ibvi.Bernoulli(), 1), "count": (ibvi.Poisson(), 1)})
    y = {"mark": (LABELS > 0).long(), "count": 1000 + LABELS}
    with pytest.warns(UserWarning, match=r"of the task 'count' are 1e\+03 .* 6\.91, .*network\."):
        trained(mlp(2), tasks, X, y)


def test_targets_in_units_of_their_own_hear_of_standardizing():
    y = 1000 * X[:, :1] + 5000
    with pytest.warns(UserWarning, match=r"targets are of size .*Standardized\.of\(Normal\("):
        trained(mlp(1), ibvi.Normal(0.5), X, y)
    with pytest.warns(UserWarning, match=r"Standardized\.of\(HeteroscedasticNormal\("):
        trained(mlp(2), Masked(ibvi.HeteroscedasticNormal()), X, y)
    trained(mlp(1), Standardized.of(ibvi.Normal(0.5), y), X, y)
    tasks = MultiTask({"kind": (ibvi.Categorical(), 3), "size": (ibvi.Normal(), 1)})
    with pytest.warns(UserWarning, match=r"of the task 'size' .*Standardized\.of.*y\['size'\]"):
        trained(mlp(4), tasks, X, {"kind": LABELS, "size": y})
    with pytest.warns(
        UserWarning, match=r"targets are of size 0\.00.* Standardized\.of\(Normal\("
    ):
        trained(mlp(1), ibvi.Normal(1e-4), X, 1e-3 * X[:, :1])
    missing = torch.where(torch.arange(len(X)) % 20 == 0, X[:, 0], torch.nan).unsqueeze(-1)
    trained(mlp(1), Masked(ibvi.Normal()), X, 0.2 * missing)  # what is missing is not small
    near = nn.Sequential(nn.Linear(4, 1))
    with torch.no_grad():
        near[0].bias.fill_(5000.0)
    near = ibvi.RandomModule(near, stochastic=["0.weight"])
    trained(near, ibvi.Normal(0.5), X, y)  # a network that knows them already
