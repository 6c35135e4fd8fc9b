"""Shares in the place of labels, and weights of labels, against torch's losses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi
from pyro_ibvi.models import Masked, MultiTask
from pyro_ibvi.prediction import Prediction, fit_temperature

WEIGHT = torch.tensor([1.0, 0.5, 2.0])
OPTIONS = [
    {},
    {"weight": WEIGHT},
    {"label_smoothing": 0.2},
    {"weight": WEIGHT, "label_smoothing": 0.1},
]


class ByTraces(ibvi.TraceExpectedLogLikelihood):
    """A subclass takes the route by traces."""


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.kind, self.mark = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x):
        hidden = self.body(x).relu()
        return {"kind": self.kind(hidden), "mark": self.mark(hidden)}


def linear(num_outputs=3):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, num_outputs))


def loss_and_truth(net, likelihood, x, y, truth, objective):
    """A step's loss, and torch's for the same draw."""
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), likelihood, num_data=len(x))
    guide = ibvi.AutoMuPNormal(model)
    loss_fn = objective(reduction="mean")(model, guide)
    for _ in range(2):  # the second step goes without traces where it may
        torch.manual_seed(1)
        loss = loss_fn(x, y)
    torch.manual_seed(1)
    draw = {k.removeprefix("net."): v for k, v in guide.rsample().items()}
    return loss, truth(torch.func.functional_call(model.net.network, draw, (x,)))


@pytest.mark.parametrize("objective", [ibvi.TraceExpectedLogLikelihood, ByTraces])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_shares_of_classes_have_the_cross_entropy_of_torch(options, objective):
    torch.manual_seed(0)
    x, shares = torch.randn(6, 4), torch.randn(6, 3).softmax(-1)
    likelihood = ibvi.Categorical(**options)
    losses = loss_and_truth(
        linear(),
        likelihood,
        x,
        shares,
        lambda out: F.cross_entropy(out, shares, **options),
        objective,
    )
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_shares_of_pixels_are_laid_out_as_in_torch(options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    x, shares = torch.randn(5, 2, 4, 6), torch.randn(5, 3, 4, 6).softmax(1)
    losses = loss_and_truth(
        net,
        ibvi.Categorical(class_dim=1, **options),
        x,
        shares,
        lambda out: F.cross_entropy(out, shares, **options),
        ibvi.TraceExpectedLogLikelihood,
    )
    torch.testing.assert_close(*losses)


def test_mixed_data_train_and_labels_score():
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    y = x[:, :3].argmax(-1)
    share, other = torch.rand(200, 1), torch.randperm(200)
    mixed = share * x + (1 - share) * x[other]
    targets = share * F.one_hot(y, 3) + (1 - share) * F.one_hot(y[other], 3)
    bnn = ibvi.VariationalNetwork(linear(), ibvi.Categorical())
    loader = DataLoader(TensorDataset(mixed, targets), batch_size=50)
    bnn.fit(loader, valid_loader=(x, y), num_epochs=20, progress=False)
    assert bnn.evaluate(x, y, seed=0)["accuracy"] > 0.8
    assert bnn.model.num_data == 200


def test_scores_of_shares_are_those_of_the_averaged_probabilities():
    torch.manual_seed(0)
    prediction = Prediction(torch.randn(7, 5, 3), ibvi.Categorical())
    shares = torch.randn(5, 3).softmax(-1)
    expected = (shares * prediction.mean.log()).sum(-1)
    torch.testing.assert_close(prediction.log_prob(shares), expected)
    scores = ibvi.score(prediction, shares.numpy())
    assert scores["nll"] == pytest.approx(-expected.mean().item(), rel=1e-5)
    by_label = ibvi.score(prediction, shares.argmax(-1))
    assert {**scores, "nll": 0} == {**by_label, "nll": 0}
    hard = F.one_hot(shares.argmax(-1), 3).float()
    assert ibvi.score(prediction, hard)["nll"] == pytest.approx(by_label["nll"])


def test_the_temperature_of_shares_is_that_of_a_scan():
    torch.manual_seed(0)
    outputs, shares = 3 * torch.randn(4, 50, 3).double(), torch.randn(50, 3).double().softmax(-1)
    outputs += 2 * shares.log()
    found = fit_temperature(Prediction(outputs, ibvi.Categorical()), shares)
    values = torch.linspace(0.5, 20, 400).double()
    averaged = torch.stack([(outputs / t).softmax(-1).mean(0).log() for t in values])
    scan = -(shares * averaged).sum(-1).mean(-1)
    assert found.nll == pytest.approx(scan.min().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("y", "match"),
    [
        (torch.randn(5, 3) * 3, r"logits pass y\.softmax\(-1\)"),
        (torch.full((5, 3), 2.0), r"counts y / y\.sum\(-1, keepdim=True\)"),
        (torch.tensor([[1.0, 1.0, 0.0]] * 5), r"several may hold at once, write Bernoulli"),
        (
            torch.full((5, 3), torch.nan),
            r"nan_to_num\(0\.0\) and then y = y / y\.sum\(-1, keepdim=True\)",
        ),
    ],
)
def test_what_are_no_shares_hears_what_to_write(y, match):
    bnn = ibvi.VariationalNetwork(linear(), ibvi.Categorical())
    with pytest.raises(ValueError, match=match):
        bnn.fit(torch.randn(5, 4), y, num_epochs=1, progress=False)


def test_the_bound_of_a_closed_form_head_is_linear_in_shares():
    torch.manual_seed(0)
    x, shares = torch.randn(6, 4), torch.randn(6, 3).softmax(-1)
    net = ibvi.RandomModule(linear(), stochastic="last")
    model = ibvi.SupervisedModel(net, ibvi.Categorical())
    guide = ibvi.AutoMuPNormal(model)
    loss = ibvi.TraceClosedFormHead(categorical_bound="tilted")
    losses = [
        [loss.loss(model, guide, x[i : i + 1], torch.tensor([c])) for c in range(3)]
        for i in range(6)
    ]
    expected = (shares * torch.tensor(losses)).sum().item()
    assert loss.loss(model, guide, x, shares) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weight", [None, 3.0, [1.0, 2.0, 0.5]], ids=str)
@pytest.mark.parametrize("objective", [ibvi.TraceExpectedLogLikelihood, ByTraces])
def test_binary_labels_and_shares_have_the_loss_of_torch(weight, objective):
    torch.manual_seed(0)
    for y in (torch.randint(0, 2, (6, 3)), torch.rand(6, 3)):
        as_tensor = None if weight is None else torch.tensor(weight)

        def truth(out, y=y, weight=as_tensor):
            loss = F.binary_cross_entropy_with_logits
            return loss(out, y.float(), pos_weight=weight, reduction="sum") / 6  # per datum

        likelihood = ibvi.Bernoulli(pos_weight=weight)
        losses = loss_and_truth(linear(), likelihood, torch.randn(6, 4), y, truth, objective)
        torch.testing.assert_close(*losses)


@pytest.mark.parametrize("around", [lambda inner: inner, Masked], ids=["alone", "masked"])
def test_predictions_are_free_of_the_weight(around):
    torch.manual_seed(0)
    outputs, y = torch.randn(7, 5, 3), torch.randint(0, 2, (5, 3)).float()
    if around is Masked:
        y[0, 0] = torch.nan
    plain = Prediction(outputs, around(ibvi.Bernoulli()))
    weighted = Prediction(outputs, around(ibvi.Bernoulli(pos_weight=9.0)))
    torch.testing.assert_close(weighted.log_prob(y), plain.log_prob(y))
    assert ibvi.score(weighted, y) == ibvi.score(plain, y)
    torch.testing.assert_close(weighted.mean, plain.mean)


def test_the_weight_is_kept_in_a_file(tmp_path):
    net = linear()
    bnn = ibvi.VariationalNetwork(net, Masked(ibvi.Bernoulli(pos_weight=[1.0, 2.0, 3.0])))
    bnn.save(tmp_path / "net.ibvi")
    likelihood = ibvi.load(tmp_path / "net.ibvi", net).likelihood.likelihood
    torch.testing.assert_close(likelihood.pos_weight, torch.tensor([1.0, 2.0, 3.0]))


def test_a_weight_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"pos_weight holds finite numbers from 0 on; got -1\.0"):
        ibvi.Bernoulli(pos_weight=-1.0)
    with pytest.raises(TypeError, match=r"order of the labels, as in pos_weight=\[5\.0\]"):
        ibvi.Bernoulli(pos_weight={1: 5.0})
    bnn = ibvi.VariationalNetwork(linear(), ibvi.Bernoulli(pos_weight=[1.0, 2.0]))
    with pytest.raises(ValueError, match=r"pos_weight of shape \(2,\).*has \(3,\) for each datum"):
        bnn.fit(torch.randn(5, 4), torch.zeros(5, 3), num_epochs=1, progress=False)
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(linear(), stochastic="last"), ibvi.Bernoulli(pos_weight=2.0), num_data=5
    )
    with pytest.raises(ValueError, match=r"knows Bernoulli\(\) without options alone"):
        ibvi.TraceClosedFormHead().loss(
            model, ibvi.AutoMuPNormal(model), torch.randn(5, 4), torch.zeros(5, 3)
        )


def test_tasks_have_weights_and_shares_of_their_own():
    torch.manual_seed(0)
    x, kind, mark = torch.randn(6, 4), torch.randint(0, 3, (6,)), torch.rand(6, 2)
    tasks = {"kind": (ibvi.Categorical(), 3), "mark": (ibvi.Bernoulli(pos_weight=2.0), 2)}

    def truth(out):
        marks = F.binary_cross_entropy_with_logits(
            out["mark"], mark, pos_weight=torch.tensor(2.0), reduction="sum"
        )
        return F.cross_entropy(out["kind"], kind) + marks / 6

    y = {"kind": kind, "mark": mark}
    losses = loss_and_truth(
        Heads(), MultiTask(tasks), x, y, truth, ibvi.TraceExpectedLogLikelihood
    )
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("objective", [ibvi.TraceExpectedLogLikelihood, ByTraces])
def test_shares_of_a_task_have_the_cross_entropy_of_torch_beside_labels_and_numbers(objective):
    class Three(Heads):
        def forward(self, x):
            return {**super().forward(x), "age": self.body(x)[:, :1]}

    torch.manual_seed(0)
    x, shares, marks = torch.randn(6, 4), torch.rand(6, 3).softmax(-1), torch.randint(2, (6,))
    options = {"weight": [1.0, 3.0], "label_smoothing": 0.1}
    tasks = MultiTask(
        {
            "kind": (ibvi.Categorical(), 3),
            "mark": (ibvi.Categorical(**options), 2),
            "age": (Masked(ibvi.Normal(0.5)), 1),
        }
    )
    age = torch.randn(6)
    age[2] = torch.nan
    seen = ~age.isnan()

    def truth(out):
        weight = torch.tensor(options["weight"])
        mark = F.cross_entropy(
            out["mark"], marks, weight=weight, label_smoothing=0.1, reduction="sum"
        )
        normal = torch.distributions.Normal(out["age"][:, 0], 0.5)
        numbers = normal.log_prob(age.nan_to_num())[seen].sum()
        return F.cross_entropy(out["kind"], shares) + (mark - numbers) / 6

    for y in (
        {"kind": shares, "mark": marks, "age": age},
        (shares.numpy(), marks.numpy(), age.numpy()),
        {"kind": shares, "mark": F.one_hot(marks).float(), "age": age},
        {"kind": shares, "mark": F.one_hot(marks), "age": age},
    ):
        torch.testing.assert_close(*loss_and_truth(Three(), tasks, x, y, truth, objective))


def test_shares_of_a_task_are_scored_as_they_are_alone():
    torch.manual_seed(0)
    x, shares, marks = torch.randn(6, 4), torch.rand(6, 3).softmax(-1), torch.randint(2, (6,))
    tasks = MultiTask({"kind": (ibvi.Categorical(), 3), "mark": (ibvi.Categorical(), 2)})
    bnn = ibvi.VariationalNetwork(Heads(), tasks)
    y = {"kind": shares, "mark": marks}
    bnn.fit([(x, y)], num_epochs=1, progress=False)
    prediction = bnn.predict(x, seed=0)
    found = bnn.evaluate([(x, y)], seed=0)
    for name, target in y.items():
        alone = ibvi.score(prediction[name], target)
        assert {k: found[f"{name}/{k}"] for k in alone} == pytest.approx(alone, rel=1e-5)
    with pytest.raises(ValueError, match=r"take the tasks one by one, prediction\['name'\]"):
        prediction.log_prob(y)
    for export in (ibvi.to_arviz, ibvi.log_predictive_density):
        with pytest.raises(ValueError, match="shares of classes"):
            export(bnn.model, bnn.guide, x, y, num_samples=3)


@pytest.mark.parametrize(
    ("y", "match"),
    [
        ({"kind": torch.rand(5, 3) + 1, "mark": torch.zeros(5).long()}, "with the sum 1"),
        ({"kind": torch.full((5, 3), 1 / 3), "mark": -torch.ones(5).long()}, "that are missing"),
        ({"kind": torch.full((5, 3), 1 / 3), "mark": 2 * torch.ones(5).long()}, "from 0 to 1"),
        ({"kind": torch.full((5,), torch.nan), "mark": torch.zeros(5).long()}, "ignore_index=-1"),
        (torch.zeros(5, 3), "target has shape"),
        ({"kind": torch.eye(3).long()[[0] * 5], "mark": torch.zeros(5)}, r"y\.argmax\(-1\)"),
    ],
)
def test_targets_of_tasks_that_are_no_shares_are_refused(y, match):
    mark = ibvi.Categorical(ignore_index=-1)
    tasks = MultiTask({"kind": (ibvi.Categorical(), 3), "mark": (mark, 2)})
    bnn = ibvi.VariationalNetwork(Heads(), tasks)
    with pytest.raises((ValueError, TypeError), match=match):
        bnn.fit([(torch.randn(5, 4), y)], num_epochs=1, progress=False)


def test_counts_of_a_task_are_whole_numbers():
    tasks = {"kind": (ibvi.Categorical(), 3), "mark": (ibvi.Poisson(), 2)}
    bnn = ibvi.VariationalNetwork(Heads(), MultiTask(tasks))
    y = {"kind": torch.zeros(6).long(), "mark": torch.full((6, 2), 1.5)}
    with pytest.raises(ValueError, match="Poisson counts must be whole numbers"):
        bnn.fit([(torch.randn(6, 4), y)], num_epochs=1, progress=False)


def test_an_export_has_densities_free_of_weights_and_none_of_shares():
    torch.manual_seed(0)
    x, y = torch.randn(6, 4), torch.randint(0, 3, (6,))
    likelihood = ibvi.Categorical(weight=[9.0, 1.0, 1.0], label_smoothing=0.3)
    model = ibvi.SupervisedModel(ibvi.RandomModule(linear()), likelihood, num_data=6)
    guide = ibvi.AutoMuPNormal(model)
    idata = ibvi.to_arviz(model, guide, x, y, num_samples=3, var_names=["*"])
    for i in range(3):
        draw = {
            name: torch.tensor(idata.posterior[f"net.{name}"].values[0, i])
            for name in model.net.stochastic
        }
        out = torch.func.functional_call(model.net.network, draw, (x,))
        truth = -F.cross_entropy(out, y, reduction="none")
        found = torch.tensor(idata.log_likelihood["obs"].values[0, i])
        torch.testing.assert_close(found, truth, check_dtype=False)
    with pytest.raises(ValueError, match=r"shares of classes.*such as y\.argmax\(-1\)"):
        ibvi.to_arviz(model, guide, x, F.one_hot(y, 3).float(), num_samples=3)
    with pytest.raises(ValueError, match=r"shares of classes.*such as y\.argmax\(-1\)"):
        ibvi.log_predictive_density(model, guide, x, F.one_hot(y, 3).float(), num_samples=3)


def test_weights_in_words_hear_of_numbers_that_work():
    y = torch.tensor([0, 0, 0, 1, 2, 2])
    with pytest.raises(TypeError, match=r"len\(y\) / \(num_classes \* torch\.bincount\(y\)\)"):
        ibvi.Categorical(weight="balanced")
    weight = ibvi.Categorical(weight=len(y) / (3 * torch.bincount(y))).weight
    torch.testing.assert_close(weight[y].sum(), torch.tensor(6.0))
    torch.testing.assert_close(weight[y[y == 0]].sum(), weight[y[y == 2]].sum())
    with pytest.raises(ValueError, match=r"weight holds finite numbers.*inf"):
        ibvi.Categorical(weight=[1.0, float("inf"), 1.0])
    with pytest.raises(ValueError, match="label_smoothing is a share"):
        ibvi.Categorical(label_smoothing="a")
