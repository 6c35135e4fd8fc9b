"""The one object: it does what its parts do, with whatever holds the data."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from pyro.infer import SVI
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pyro_ibvi as ibvi
from pyro_ibvi.front.files import state_of
from pyro_ibvi.models import MultiTask
from tests.front.conftest import make_net


def test_it_is_its_parts(data):
    torch.manual_seed(0)
    bnn = ibvi.VariationalNetwork(
        make_net(),
        ibvi.Normal(0.3),
        covariance=ibvi.LowRank(5),
        optimizer=torch.optim.SGD,
        lr=0.01,
        clip_norm=3.0,
    )
    loader = DataLoader(TensorDataset(*data), batch_size=8)
    torch.manual_seed(1)
    history = bnn.fit(loader, num_epochs=2, progress=False)

    torch.manual_seed(0)
    model = ibvi.SupervisedModel(ibvi.RandomModule(make_net()), ibvi.Normal(0.3), num_data=40)
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(5))
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}, guide, clip_norm=3.0)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    torch.manual_seed(1)
    assert ibvi.fit(svi, loader, 2, progress=False).train_loss == history.train_loss
    for name, value in bnn.guide.state_dict().items():
        assert torch.equal(value, guide.state_dict()[name])
    assert bnn.model.num_data == 40
    expected = ibvi.predict(model, guide, data[0], num_samples=7, generator=4)
    assert torch.equal(bnn.predict(data[0], num_samples=7, seed=4).outputs, expected.outputs)


def test_six_lines_learn_digits():
    x, y = load_digits(return_X_y=True)
    x = x / 8 - 1
    net = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10))
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical())
    bnn.fit(x[:1200], y[:1200], num_epochs=20, progress=False)
    scores = bnn.evaluate(x[1200:], y[1200:])
    assert scores["accuracy"] > 0.88
    assert scores["nll"] < 0.45


def kinds(x, y):
    frame = pd.DataFrame(x.numpy().astype(np.float64), columns=["a", "b"])
    batches = [(x[:10], y[:10]), (x[10:25], y[10:25]), (x[25:], y[25:])]
    return {
        "tensors": (x, y),
        "pair": ((x, y),),
        "list of two": ([x, y],),
        "numpy": (x.numpy(), y.numpy().astype(np.float64)),
        "pandas": (frame, pd.DataFrame(y.numpy())),
        "dataset": (TensorDataset(x, y),),
        "rows": ([(a, b) for a, b in zip(x, y, strict=True)],),
        "loader": (DataLoader(TensorDataset(x, y), batch_size=10),),
        "batches": (batches,),
    }


@pytest.mark.parametrize(
    "kind", ["tensors", "pair", "list of two", "numpy", "pandas", "dataset", "loader", "batches"]
)
def test_whatever_holds_the_data(data, kind):
    torch.manual_seed(0)
    bnn = ibvi.VariationalNetwork(make_net(), ibvi.Normal(0.3))
    given = kinds(*data)[kind]
    bnn.fit(*given, num_epochs=1, batch_size=10, progress=False)
    assert bnn.model.num_data == 40
    assert bnn.history.num_epochs == 1
    scores = bnn.evaluate(*given, num_samples=5, seed=1)
    assert scores["nll"] == pytest.approx(
        ibvi.score(bnn.predict(data[0], num_samples=5, seed=1), data[1])["nll"], rel=1e-5
    )


def test_inputs_of_several_tensors(data):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 8), nn.Linear(2, 8)
            self.out = nn.Linear(8, 1)

        def forward(self, a, b):
            return self.out(torch.tanh(self.a(a) + self.b(b)))

    x, y = data
    bnn = ibvi.VariationalNetwork(Two(), ibvi.Normal(0.3))
    bnn.fit((x, x + 1), y, num_epochs=1, batch_size=10, progress=False)
    assert bnn.predict({"a": x, "b": x + 1}, num_samples=3).mean.shape == (40, 1)


def test_targets_of_several_tasks_as_a_pair(data):
    x, y = data
    tasks = MultiTask({"size": (ibvi.Normal(0.3), 1), "kind": (ibvi.Categorical(), 3)})
    targets = {"size": y, "kind": torch.arange(40) % 3}
    found = []
    for given in ((x, targets), ((x, targets),)):
        torch.manual_seed(0)
        bnn = ibvi.VariationalNetwork(nn.Linear(2, 4), tasks)
        bnn.fit(*given, valid_loader=(x, targets), num_epochs=2, batch_size=10, progress=False)
        assert bnn.model.num_data == 40
        found.append(bnn.history)
    assert found[0] == found[1]
    assert {"size/nll", "kind/nll"} <= found[0].metrics.keys()


def test_validation_measures_predictions(data):
    x, y = data
    bnn = ibvi.VariationalNetwork(make_net(), ibvi.Normal(0.3), lr=0.01)
    history = bnn.fit(
        x, y, valid_loader=(x, y), num_epochs=30, patience=4, batch_size=10, progress=False
    )
    assert history.metrics.keys() == {"nll", "rmse", "coverage"}
    best = min(history.metrics["nll"])
    torch.manual_seed(0)  # of training's draws for metrics
    assert bnn.evaluate(x, y, num_samples=16)["nll"] == pytest.approx(best, rel=1e-6)


def test_it_is_served_elsewhere(trained, data):
    expected = trained.predict(data[0], num_samples=4, seed=2)
    mean, _ = trained.frozen_draws(4, seed=2)(data[0])
    torch.testing.assert_close(mean, expected.mean, rtol=1e-6, atol=1e-6)
    assert trained.mean_network()(data[0]).shape == (40, 1)


def test_training_goes_on(trained, data):
    trained.fit(*data, num_epochs=3, progress=False)
    assert trained.history.num_epochs == 5


@pytest.mark.parametrize("num_components", [1, 2])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda bnn: pickle.loads(pickle.dumps(bnn))])
def test_a_copy_and_a_pickle_train_as_the_original(how, num_components):
    torch.manual_seed(0)
    x, y = torch.randn(60, 2), torch.arange(60) % 3
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical(), num_components=num_components)
    bnn.fit(x, y, num_epochs=1, batch_size=20, progress=False)
    other = how(bnn)
    assert other.guide.model is other.model is not bnn.model
    for one in (other, bnn):
        torch.manual_seed(1)
        one.fit(x, y, num_epochs=2, batch_size=20, progress=False)
    expected = state_of(bnn.model, bnn.guide)
    for name, value in state_of(other.model, other.guide).items():
        assert torch.equal(value, expected[name])
    assert str(ibvi.roles(other.guide)) == str(ibvi.roles(bnn.guide))


def test_two_networks_with_one_likelihood_share_nothing():
    x, likelihood = torch.randn(60, 2), ibvi.Normal(0.3, learn_scale=True)
    first, second = (ibvi.VariationalNetwork(nn.Linear(2, 1), likelihood) for _ in range(2))
    first.fit(x, x[:, :1], num_epochs=3, progress=False)
    found = [one.log_scale.item() for one in (first.likelihood, second.likelihood, likelihood)]
    assert found[0] != found[1] == found[2] == pytest.approx(np.log(0.3))


def test_defaults_agree():
    bnn = ibvi.VariationalNetwork(make_net(), ibvi.Normal())
    assert bnn.loss.reduction == "mean"
    assert bnn.optim.guide is bnn.guide
    assert bnn.guide.model is bnn.model
    random = ibvi.RandomModule(make_net(), stochastic="all")
    assert ibvi.VariationalNetwork(random, ibvi.Normal()).net is random


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_it_moves_with_its_optimizer(trained, data, device):
    momentum = [s["exp_avg"].clone() for s in trained.optim.optimizer.state.values()]
    assert trained.to(device) is trained
    for buffer, state in zip(momentum, trained.optim.optimizer.state.values(), strict=True):
        assert torch.equal(buffer, state["exp_avg"].cpu())
    trained.fit(*data, num_epochs=1, progress=False)
    assert trained.device.type == device


def test_columns_of_a_data_frame_keep_their_order():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 2)), columns=["a", "b"])
    y, turned = frame[["a"]], frame[["b", "a"]]
    bnn = ibvi.VariationalNetwork(make_net(), ibvi.Normal(0.3))
    bnn.fit(frame, y, num_epochs=1, progress=False)
    for ask in (
        lambda: bnn.predict(turned),
        lambda: bnn.evaluate(turned, y),
        lambda: bnn.fit(turned, y, num_epochs=1, progress=False),
    ):
        with pytest.raises(
            ValueError, match=r"columns \['b', 'a'\], .* another order, \['a', 'b'"
        ):
            ask()
    expected = bnn.predict(frame, seed=0).mean
    for same in (frame.to_numpy(), pd.DataFrame(frame.to_numpy()), turned[["a", "b"]]):
        assert torch.equal(bnn.predict(same, seed=0).mean, expected)


def test_what_made_the_inputs_is_not_trained():
    trunk = nn.Linear(2, 2)
    x, y = torch.randn(30, 2), torch.randn(30, 1)
    outputs = []
    for features in (trunk(x), trunk(x).detach()):
        torch.manual_seed(0)
        bnn = ibvi.VariationalNetwork(make_net(), ibvi.Normal(0.3))
        bnn.fit(features, y, num_epochs=2, batch_size=10, progress=False)
        outputs.append(bnn.predict(features, seed=0).mean)
    assert torch.equal(*outputs)
    assert trunk.weight.grad is None


class Stream(IterableDataset):
    def __iter__(self):
        yield from [(torch.zeros(2), torch.zeros(1))] * 4


def test_bad_input(trained, data):
    x, y = data
    with pytest.raises(ValueError, match="cannot be found from a DataLoader: pass num_data="):
        trained.fit(Stream(), num_epochs=1)
    trained.fit(Stream(), num_epochs=1, num_data=4, progress=False)
    with pytest.raises(TypeError, match="Targets are missing: got inputs alone"):
        trained.fit(x)
    with pytest.raises(TypeError, match="An iterator gives its batches once"):
        trained.fit(iter([(x, y)]))
    with pytest.raises(ValueError, match=r"one row per datum.*\(40, 2\), \(39, 1\)"):
        trained.fit(x, y[1:])
    with pytest.raises(TypeError, match="Expected numbers, got DataFrame of the type object"):
        trained.fit(pd.DataFrame({"a": ["red"] * 40, "b": range(40)}), y)
    column = pd.Series(y[:, 0].numpy())
    with pytest.raises(ValueError, match=r"of pandas' y\.to_numpy\(\)\.reshape\(-1, 1\)"):
        trained.fit(pd.DataFrame(x.numpy()), column, progress=False)
    with pytest.raises(ValueError, match="batch_size must be a positive whole number"):
        trained.fit(x, y, batch_size=0)
    with pytest.raises(ValueError, match="no default learning rate for RMSprop: pass lr="):
        ibvi.VariationalNetwork(make_net(), ibvi.Normal(), optimizer=torch.optim.RMSprop)
    with pytest.raises(ValueError, match=r"given twice: lr=0.1 and 0.2"):
        ibvi.VariationalNetwork(make_net(), ibvi.Normal(), lr=0.1, optim_args={"lr": 0.2})
    with pytest.raises(ValueError, match=r"RandomModule already.*stochastic to RandomModule"):
        ibvi.VariationalNetwork(trained.net, ibvi.Normal(), stochastic="all")
    with pytest.raises(TypeError, match="network comes first, got the likelihood Normal"):
        ibvi.VariationalNetwork(ibvi.Normal(), make_net())
    with pytest.raises(TypeError, match=r"class of a torch optimizer, .* got 'adam'"):
        ibvi.VariationalNetwork(make_net(), ibvi.Normal(), optimizer="adam")
    with pytest.raises(ValueError, match="num_data must be a positive whole number, got '40'"):
        trained.fit(x, y, num_data="40")
    with pytest.raises(ValueError, match="There is no device 'gpu'"):
        trained.to("gpu")
    with pytest.raises(TypeError, match=r"Expected the path of a file.*True"):
        trained.save(True)
    trained.guide = ibvi.AutoMuPNormal(trained.model)
    for call in (lambda: trained.fit(x, y), lambda: trained.predict(x)):
        with pytest.raises(ValueError, match=r"guide is not that of its svi.*bnn\.svi = SVI"):
            call()


def test_it_is_neither_a_network_nor_a_part(trained, data):
    for loss in (nn.MSELoss(), nn.MSELoss, "mse", nn.functional.mse_loss):
        with pytest.raises(TypeError, match=r"must be an objective .*likelihood says, Normal\(0"):
            ibvi.VariationalNetwork(make_net(), ibvi.Normal(), loss=loss)
    with pytest.raises(TypeError, match=r"is not called as a network is.*write bnn\.predict\(x\)"):
        trained(data[0])
    with pytest.raises(TypeError, match=r"guide is a VariationalNetwork, which holds a model and"):
        ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.1}, trained)
    with pytest.raises(TypeError, match=r"model is a VariationalNetwork, which holds a model and"):
        ibvi.AutoMuPNormal(trained)
    with pytest.raises(TypeError, match=r"its state_dict\(\) and this network by its own \.save"):
        ibvi.save_checkpoint("run.pt", trained)


def test_calibration_is_kept_and_scored(trained, data):
    """It changes the density and leaves the mean, and starts from the likelihood each time."""
    x, y = data
    noisy = y + 2 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    before = trained.evaluate(x, noisy, seed=1)
    found = trained.calibrate(x, noisy, seed=1)
    assert trained.temperature == found.value != 1
    after = trained.evaluate(x, noisy, seed=1)
    assert before["nll"] == pytest.approx(found.nll_before, rel=1e-4)
    assert after["nll"] == pytest.approx(found.nll, rel=1e-4)
    assert after["nll"] < before["nll"]
    assert after["rmse"] == pytest.approx(before["rmse"], rel=1e-5)
    again = trained.calibrate(x, noisy, seed=1)
    assert again.value == pytest.approx(found.value)
    foreign = trained.evaluate(x, y, foreign=[x], seed=1)
    assert foreign["auroc"] == pytest.approx(0.5)


def test_whatever_scores_does_so_at_the_temperature_found(trained, data):
    x, y = data
    found = trained.calibrate(x, 3 * y, num_samples=8, seed=0)
    assert found.value != pytest.approx(1.0, rel=1e-2)
    again = trained.calibrate(x, 3 * y, num_samples=8, seed=0)
    assert again.nll_before == pytest.approx(found.nll, rel=1e-5)
    one = {"covariance": {"*": None}, "lr": 1e-12}  # without noise all draws predict alike
    bnn = ibvi.VariationalNetwork(nn.Linear(2, 1), ibvi.Normal(0.3), **one)
    bnn.calibrate(x, y)
    with pytest.warns(UserWarning, match=r"before this training: call calibrate again after it"):
        history = bnn.fit(x, y, valid_loader=(x, y), num_epochs=1, progress=False)
    expected = bnn.evaluate(x, y)["nll"]
    assert history.metrics["nll"] == pytest.approx([expected], rel=1e-4)


def test_a_guide_that_was_exchanged_is_not_saved(tmp_path):
    bnn = ibvi.VariationalNetwork(torch.nn.Linear(3, 2), ibvi.Categorical())
    bnn.guide = ibvi.AutoMuPNormal(bnn.model)
    with pytest.raises(ValueError, match="guide is not that of its svi: a part that is exchanged"):
        bnn.save(tmp_path / "net.ibvi")
    assert not (tmp_path / "net.ibvi").exists()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("parameters", r"bnn\.guide"),
        ("eval", r"bnn\.predict"),
        ("cuda", r"bnn\.to"),
        ("spam", "'spam'."),
    ],
)
def test_what_modules_have_is_elsewhere(name: str, hint: str) -> None:
    bnn = ibvi.VariationalNetwork(nn.Linear(2, 1), ibvi.Normal(0.1))
    with pytest.raises(
        AttributeError, match=f"has no '{name}'.*{hint}" if hint[0] != "'" else hint
    ):
        getattr(bnn, name)
    assert not hasattr(copy.deepcopy(bnn), name)


@pytest.mark.filterwarnings("ignore:The targets are of size")
@pytest.mark.parametrize("kind", ["numpy", "pandas"])
def test_targets_keep_their_digits_in_a_network_of_few(kind):
    """As float32 tensors do; 8 bits would round 1001 to 1000."""
    x, y = torch.randn(40, 2), 1000 + torch.arange(40.0).unsqueeze(-1)
    scores = []
    pair = kinds(x, y)[kind]
    named = (dict(zip("xy", pair, strict=True)),)
    for given in (pair, named, (x.bfloat16(), y)):
        torch.manual_seed(0)
        bnn = ibvi.VariationalNetwork(nn.Linear(2, 1).bfloat16(), ibvi.Normal(10.0))
        read = bnn.model.read(*given)
        assert read[0].dtype == torch.bfloat16
        assert torch.equal(read[1], y)
        bnn.fit(*given, num_epochs=1, progress=False)
        scores.append(bnn.evaluate(*given, num_samples=5, seed=1))
    assert scores[0] == scores[1] == scores[2]


def test_an_optimizer_of_ones_own_has_the_rates_of_its_family():
    class Signs(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(p.grad.sign(), alpha=-group["lr"])

    def rates(**options):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
        bnn = ibvi.VariationalNetwork(net, ibvi.Normal(0.5), lr=0.01, **options)
        bnn.fit(torch.randn(8, 4), torch.randn(8, 1), num_epochs=1, progress=False)
        return [group["lr"] for group in bnn.optim.make_torch()[0].param_groups]

    with pytest.raises(ValueError, match='pass family="sgd" if it does, family="adam"'):
        rates(optimizer=Signs)
    assert rates(optimizer=Signs, family="adam") == rates(optimizer=torch.optim.Adam)
