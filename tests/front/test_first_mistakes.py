"""What mistakes with data and networks of one's own hear: what was given, and what to write."""

from contextlib import nullcontext

import pandas as pd
import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi
from pyro_ibvi.models import Masked, Standardized

X, LABELS = torch.randn(60, 4), torch.arange(60) % 3
QUIET = {"num_epochs": 1, "progress": False, "batch_size": 20}


def mlp(num_outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, num_outputs))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (([[1.0, 2, 3, 4], [1.0, 2, 3]], [0, 1]), r"rows of 3 to 4 numbers.*pad_sequence"),
        (([([1.0, 2, 3, 4], 0), ([1.0, 2, 3], 1)],), r"row 0 has .*\(4,\).*row 1 .*\(3,\)"),
        (([{"x": [1.0, 2, 3, 4], "y": 0}, {"x": [1.0], "y": 1}],), r"row 1 \[\(1,\), \(\)\]"),
    ],
)
def test_rows_of_different_lengths_hear_how_to_fill_them_up(data, match):
    bnn = ibvi.VariationalNetwork(mlp(), ibvi.Categorical())
    with pytest.raises(ValueError, match=match):
        bnn.fit(*data, **QUIET)


def test_what_is_not_finite_is_named_by_its_own_row():
    x = X.clone()
    x[3, 1] = torch.nan
    bnn = ibvi.VariationalNetwork(mlp(), ibvi.Categorical())
    with pytest.raises(ValueError, match=r"nan at index \(3, 1\) of shape \(60, 4\)"):
        bnn.fit(x, LABELS, **QUIET)


def test_a_list_of_single_data_hears_of_stack():
    bnn = ibvi.VariationalNetwork(mlp(), ibvi.Categorical())
    with pytest.raises(TypeError, match=r"list of 60 tensors.*torch\.stack\(x\)"):
        bnn.predict(list(X))


def test_a_network_that_returns_more_in_training_hears_what_to_pick():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            out = self.net(x)
            return (out, out) if self.training else out

    def first(out):
        return out if isinstance(out, torch.Tensor) else out[0]

    bnn = ibvi.VariationalNetwork(Auxiliary(), ibvi.Categorical(), output=0)
    bnn.fit(X, LABELS, **QUIET)
    with pytest.raises(ValueError, match=r"more in training.*isinstance\(out.*else out\[0\]"):
        bnn.predict(X)
    bnn = ibvi.VariationalNetwork(Auxiliary(), ibvi.Categorical(), output=first)
    bnn.fit(X, LABELS, **QUIET)
    assert bnn.predict(X, num_samples=2).mean.shape == (60, 3)


def test_large_counts_are_told_of_their_logarithm():
    y = torch.poisson((X.sum(-1, keepdim=True) / 4 + 9).exp())
    shift = float(y.mean().log())
    torch.manual_seed(0)
    plain = ibvi.VariationalNetwork(mlp(1), ibvi.Poisson())
    with pytest.warns(UserWarning, match=rf"output=lambda out: out \+ {shift:.3g}"):
        plain.fit(X, y, num_epochs=30, progress=False)
    torch.manual_seed(0)
    moved = ibvi.VariationalNetwork(mlp(1), ibvi.Poisson(), output=lambda out: out + shift)
    moved.fit(X, y, num_epochs=30, progress=False)  # in silence
    errors = [bnn.evaluate(X, y, seed=0)["rmse"] for bnn in (plain, moved)]
    assert errors[1] < errors[0] / 2


def test_a_file_of_a_compiled_network_says_so(tmp_path):
    for saved, given, words in (
        (torch.compile(mlp(), backend="eager"), mlp(), r"Pass torch\.compile\(net\)"),
        (mlp(), torch.compile(mlp(), backend="eager"), r"from before torch\.compile"),
    ):
        ibvi.VariationalNetwork(saved, ibvi.Categorical()).save(tmp_path / "net.ibvi")
        with pytest.raises(ValueError, match=words):
            ibvi.load(tmp_path / "net.ibvi", given)
        ibvi.load(tmp_path / "net.ibvi", saved)


def test_pairs_of_lists_and_of_several_targets_are_pairs():
    def scores(net, likelihood, pair):
        torch.manual_seed(1)
        bnn = ibvi.VariationalNetwork(net, likelihood)
        return bnn.evaluate(pair, num_samples=3, seed=0)

    truth = scores(mlp(), ibvi.Categorical(), (X, LABELS))
    for pair in (
        (X.tolist(), LABELS.tolist()),
        (X.numpy(), LABELS.tolist()),
        [(X, LABELS)],
    ):
        assert scores(mlp(), ibvi.Categorical(), pair) == pytest.approx(truth)
    tasks = ibvi.models.MultiTask({"a": (ibvi.Categorical(), 2), "b": (ibvi.Normal(1.0), 1)})
    y = LABELS % 2, X[:, :1]
    truth = scores(mlp(), tasks, [(X, y)])
    assert scores(mlp(), tasks, (X, y)) == pytest.approx(truth)
    assert scores(mlp(), tasks, (X.numpy(), tuple(map(torch.Tensor.numpy, y)))) == truth


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (nn.CrossEntropyLoss(), r"write Categorical\(\), "),
        (nn.CrossEntropyLoss, r"write Categorical\(\), "),
        (
            nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]), ignore_index=0, label_smoothing=0.1),
            r"weight=\[1\.0, 2\.0\], label_smoothing=0\.1, ignore_index=0\)",
        ),
        (nn.CrossEntropyLoss(torch.ones(1000)), r"Categorical\(weight=loss\.weight\)"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), r"Bernoulli\(pos_weight=3\.0\)"),
    ],
    ids=str,
)
def test_a_loss_of_torch_hears_of_its_options_too(loss, words):
    with pytest.raises(TypeError, match=words):
        ibvi.VariationalNetwork(mlp(), loss)


def test_options_without_an_effect_are_told():
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    bnn = ibvi.VariationalNetwork(nn.Linear(3, 1), ibvi.Normal(0.1))
    with pytest.raises(ValueError, match=r"the DataLoader makes batches of 4: leave it out, or"):
        bnn.fit(loader, batch_size=2)
    with pytest.raises(TypeError, match=r"write fit\(loader, num_epochs=2\)"):
        bnn.fit(loader, 2)
    options = {"num_epochs": 1, "progress": False}
    bnn.fit(loader, batch_size=4, **options)
    bnn.fit(x, y, batch_size=2, valid_loader=loader, **options)  # it is for x and y
    for name, place in {
        "lr": r"argument of VariationalNetwork\(net, likelihood, lr=\.\.\.\)",
        "num_epochs": "argument of fit",
        "num_data": r"write bnn\.set_num_data",
    }.items():
        with pytest.raises(AttributeError, match=f"Setting '{name}' .* change nothing: .*{place}"):
            setattr(bnn, name, 0.3)
    with pytest.raises(TypeError, match=r"optim_args must be a mapping such as \{'momentum'"):
        ibvi.VariationalNetwork(nn.Linear(3, 1), ibvi.Normal(0.1), optim_args=["momentum", 0.9])
    bnn.notes = "mine"
    own = bnn.loss
    bnn.loss = ibvi.TraceExpectedLogLikelihood(kl_weight=1.0)
    with pytest.raises(ValueError, match="loss is not that of its svi"):
        bnn.fit(x, y, **options)
    bnn.loss, bnn.likelihood = own, ibvi.Normal(1.0)
    with pytest.raises(ValueError, match=r"write bnn\.model\.likelihood = bnn\.likelihood"):
        bnn.predict(x)
    bnn.model.likelihood = bnn.likelihood
    assert float(bnn.predict(x).aleatoric[0]) == 1.0


def test_what_was_loaded_does_not_say_that_it_was_never_trained(tmp_path):
    bnn = ibvi.VariationalNetwork(nn.Linear(3, 1), ibvi.Normal(0.1))
    bnn.fit(torch.randn(8, 3), torch.randn(8, 1), num_epochs=2, progress=False)
    assert "trained for 2 epochs" in repr(bnn)
    bnn.save(tmp_path / "net.ibvi")
    assert "trained for" not in repr(ibvi.load(tmp_path / "net.ibvi", nn.Linear(3, 1)))


@pytest.mark.parametrize(
    ("end", "y", "around"),
    [
        (nn.ReLU, torch.linspace(-1, 1, 60), lambda law, y: law),
        (nn.Tanh, 3 * torch.linspace(-1, 1, 60), lambda law, y: law),
        (nn.Softplus, torch.linspace(0, 2, 60), Standardized.of),
        (nn.Sigmoid, torch.linspace(-1, 1, 60), lambda law, y: Masked(Standardized.of(law, y))),
    ],
)
def test_an_end_that_does_not_reach_the_targets_is_told(end, y, around):
    """The best that the network can do is to be off by what lies outside."""
    net = nn.Sequential(mlp(1), end())
    bnn = ibvi.VariationalNetwork(net, around(ibvi.Normal(0.1), y[:, None]))
    name = {"ReLU": "Relu"}.get(end.__name__, end.__name__)
    with pytest.warns(UserWarning, match=rf"network ends in {name}, which .* from .*leave it out"):
        bnn.fit(X, y[:, None], **QUIET)


@pytest.mark.parametrize(
    ("end", "y"),
    [
        (nn.ReLU, torch.linspace(-0.1, 2, 60)),  # noise around zero
        (nn.Tanh, 0.9 * torch.linspace(-1, 1, 60)),
        (nn.Identity, 3 * torch.linspace(-1, 1, 60)),
    ],
)
def test_an_end_that_reaches_the_targets_is_taken_as_it_is(end, y):
    bnn = ibvi.VariationalNetwork(nn.Sequential(mlp(1), end()), ibvi.Normal(0.1))
    bnn.fit(X, y[:, None], **QUIET)


def test_another_column_in_the_place_of_one_is_refused():
    frame = pd.DataFrame(X.numpy(), columns=list("abcd"))
    bnn = ibvi.VariationalNetwork(mlp(), ibvi.Categorical())
    bnn.fit(frame, LABELS, **QUIET)
    with pytest.raises(ValueError, match=r"columns \['e'\], where the first .* had \['b'\]: pass"):
        bnn.predict(frame.rename(columns={"b": "e"}))
    named = bnn.predict(frame, seed=0).mean
    for unnamed in (frame.to_numpy(), frame.set_axis(range(4), axis=1)):
        assert torch.equal(bnn.predict(unnamed, seed=0).mean, named)


@pytest.mark.parametrize(("num_data", "told"), [(12, True), (60, False)])
def test_the_number_of_batches_is_no_number_of_data(num_data, told):
    loader = DataLoader(TensorDataset(X, LABELS), batch_size=5)
    model = ibvi.SupervisedModel(ibvi.RandomModule(mlp()), ibvi.Categorical(), num_data)
    guide = ibvi.AutoMuPNormal(model)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-6}), ibvi.TraceExpectedLogLikelihood())
    with pytest.warns(UserWarning, match="write num_data=60") if told else nullcontext():
        ibvi.fit(svi, loader, 1, progress=False)
