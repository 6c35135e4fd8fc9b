"""What fit refuses, in sentences, and that a refusal leaves everything as it was."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torchmetrics
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Subset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import pyro_ibvi as ibvi
from tests.training.killable import make_svi as make_killable
from tests.training.killable import train
from tests.training.test_loop import make_data, make_loader, make_svi
from tests.training.test_options import make_stock

X, Y = make_data()


def everything(svi):
    state = {**svi.model.state_dict(), **{f"q.{k}": v for k, v in svi.guide.state_dict().items()}}
    return {name: value.clone() for name, value in state.items()}


@pytest.mark.filterwarnings("ignore:Encountered")
def test_a_refused_step_leaves_parameters_gradients_and_statistics():
    net = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    svi = make_svi(net)
    ibvi.fit(svi, make_loader(), 1, progress=False)
    before = everything(svi)
    parameters = [*svi.model.parameters(), *svi.guide.parameters()]
    without = [parameter.grad is None for parameter in parameters]
    huge = torch.full((10, 1), 3e38)
    for accumulate in (1, 2):
        with pytest.raises(FloatingPointError, match="step 0 of epoch 0"):
            ibvi.fit(
                svi,
                [(X[:10], huge), (huge, Y[:10])],
                1,
                accumulate=accumulate,
                progress=False,
            )
        for name, value in everything(svi).items():
            assert torch.equal(value, before[name]), name
        assert [parameter.grad is None for parameter in parameters] == without
        assert not any(p.grad is not None and p.grad.any() for p in parameters)


@pytest.mark.filterwarnings("ignore:Encountered")
def test_a_parameter_in_pyros_store_keeps_no_bad_gradient():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0))
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale, validate_args=False), obs=x)

    svi = SVI(
        model, AutoNormal(model), pyro.optim.SGD({"lr": 1e-3}), ibvi.TraceExpectedLogLikelihood()
    )
    ibvi.fit(svi, [X[:, 0]], 1, progress=False)
    pyro.enable_validation(False)
    with pytest.raises(FloatingPointError, match="step 0 of epoch 0"):
        ibvi.fit(svi, [X[:, 0] * math.nan], 1, progress=False)
    pyro.enable_validation(True)
    gradient = pyro.get_param_store().get_param("scale").grad
    assert gradient is None or gradient == 0


def test_parts_of_different_pairs_are_refused():
    svi, other = make_svi(), make_svi()
    loader = make_loader()
    with pytest.raises(ValueError, match="guide was made for another SupervisedModel"):
        ibvi.fit(SVI(other.model, svi.guide, svi.optim, svi.loss.__self__), loader, 1)
    with pytest.raises(ValueError, match="optimizer was made for another guide"):
        ibvi.fit(SVI(svi.model, svi.guide, other.optim, svi.loss.__self__), loader, 1)
    with pytest.raises(TypeError, match="model itself was passed as its guide"):
        ibvi.fit(SVI(svi.model, svi.model, svi.optim, svi.loss.__self__), loader, 1)


def test_guides_of_parts_functions_and_handlers_pass():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    blocked = pyro.poutine.block(model, hide=["x"])
    for guide in (AutoNormal(model), AutoNormal(blocked)):
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), ibvi.TraceExpectedLogLikelihood())
        assert ibvi.fit(svi, [X[:, 0]], 1, progress=False).num_epochs == 1


def test_a_function_that_calls_a_guide_has_its_rates():
    svi = make_svi()
    guide = svi.guide
    x, y = next(iter(make_loader()))

    def calls(x, y=None):
        return guide(x, y)

    optims = [ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-3}, g) for g in (guide, calls)]
    SVI(svi.model, calls, optims[1], svi.loss.__self__).step(x, y)
    its, found = [
        {p: group["lr"] for group in optim.optimizer.param_groups for p in group["params"]}
        for optim in optims
    ]
    assert its == found
    assert len(set(its.values())) > 1


def len_of(model, guide, loader):
    return len(loader)


def mistakes():
    svi = make_svi()
    loader = make_loader()
    loss = ibvi.TraceExpectedLogLikelihood
    parts = svi.model, svi.guide, svi.optim
    yield (svi.model, loader, 1), {}, TypeError, "needs a pyro.infer.SVI, got SupervisedModel"
    yield (SVI(*parts, loss), loader, 1), {}, TypeError, r"class .*: write .*LogLikelihood\(\)"
    yield (SVI(*parts, nn.CrossEntropyLoss()), loader, 1), {}, TypeError, "got CrossEntropyLoss"
    yield (SVI(*parts, nn.MSELoss), loader, 1), {}, TypeError, r"got MSELoss.* Normal\(0\.1\)\."
    function = nn.functional.cross_entropy
    yield (SVI(*parts, function), loader, 1), {}, TypeError, r"got cross_entropy.* Categorical\(\)"
    bnn = ibvi.VariationalNetwork(nn.Linear(1, 1), ibvi.Normal(0.1))
    yield (bnn, loader, 1), {}, TypeError, r"got a VariationalNetwork.*: write \.fit\(\.\.\.\)"
    pair = X.numpy(), Y.numpy()
    yield (svi, pair, 1), {}, TypeError, "train_loader must give batches, got tuple"
    yield (svi, X.numpy(), 1), {}, TypeError, "train_loader must give batches, got ndarray"
    yield (svi, X, Y), {}, TypeError, "third argument is the number of epochs, got Tensor"
    yield (svi, (X, Y), 1), {}, TypeError, r"must give batches, got tuple.*DataLoader\(Tensor"
    yield (svi, X, 1), {}, TypeError, "train_loader must give batches, got Tensor"
    yield (svi, TensorDataset(X, Y), 1), {}, TypeError, r"is a data set.*DataLoader\(data"
    yield (svi, 5, 1), {}, TypeError, "must give batches, got int"
    stock = make_stock(pyro.optim.Adam({"lr": 0.1}))
    yield (stock, [(X[:9], Y[:9], Y[:9])], 1), {}, TypeError, r"3 parts does not fit.*\(x, y\)"
    yield (stock, [{"x": X, "label": Y}], 1), {}, TypeError, r"keys \['x', 'label'\] does not"
    options = {
        "callback": ("stop", TypeError, "callback must be a function.*'stop'"),
        "checkpoint": (True, TypeError, "path of a file.*True"),
        "history": ([], TypeError, "must be what an earlier fit returned, got list"),
        "device": ("gpu", ValueError, "no device 'gpu': write 'cpu', 'cuda'"),
        "autocast": (torch.float16, ValueError, "bfloat16 or None, got torch.float16: its range"),
        "accumulate": (0, ValueError, "accumulate must be a positive whole number"),
        "patience": (3, ValueError, "patience looks at validation data: pass valid_loader="),
        "metrics": (len, ValueError, "metrics looks at validation data"),
        "schedule_every": ("step", ValueError, "schedule_every='step' needs a scheduler"),
        "valid_loader": (iter([]), TypeError, "valid_loader is an iterator"),
    }
    for name, (value, error, match) in options.items():
        yield (svi, loader, 1), {name: value}, error, match
    for metrics, match in (
        ("nll", "metrics must be a function"),
        (len_of, "numbers by name"),
        (lambda model, guide, loader: {"nll": "low"}, "numbers by name.* got {'nll': 'low'}"),
        (lambda model: {}, r"called with \(model, guide, loader\), and <lambda> takes \(model\)"),
    ):
        yield (svi, loader, 1), {"valid_loader": loader, "metrics": metrics}, TypeError, match
    yield (svi, {"x": X, "y": Y}, 1), {}, TypeError, r"a mapping with the keys \['x', 'y'\]"
    sampler = DistributedSampler(TensorDataset(X, Y), num_replicas=2, rank=0)
    share = DataLoader(TensorDataset(X, Y), sampler=sampler)
    yield (svi, share, 1), {}, ValueError, "train_loader has a DistributedSampler.* 2 processes"
    batches = BatchSampler(sampler, 4, drop_last=False)
    share = DataLoader(TensorDataset(X, Y), batch_sampler=batches)
    yield (svi, share, 1), {}, ValueError, "train_loader has a DistributedSampler"
    yield (svi, loader, 1), {"valid_loader": share}, ValueError, "valid_loader has a Distr"
    yield (svi, loader, 1), {"schedule_every": "batch"}, ValueError, "'epoch' or 'step', got 'b"
    yield (
        (svi, loader, 1),
        {"valid_loader": make_loader(), "patience": 1, "monitor": "nll"},
        ValueError,
        r"monitor='nll' is not measured: choose among \['train_loss', 'valid_loss'\]",
    )
    watched = {"valid_loader": make_loader(), "metrics": lambda *_: {"coverage": 0.9, "nll": 1.0}}
    yield (svi, loader, 1), {**watched, "monitor": "nll"}, ValueError, "pass patience="
    watched |= {"patience": 1, "monitor": "coverage"}
    yield (svi, loader, 1), watched, ValueError, "at its best, which is 0.95: watch 'nll'"
    metric = {"valid_loader": make_loader(), "metrics": torchmetrics.MeanMetric()}
    yield (svi, loader, 1), metric, TypeError, "got a MeanMetric, .* evaluate"
    plateau = make_svi(scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    yield (plateau, loader, 1), {"schedule_every": "step"}, ValueError, "ReduceLROnPlateau looks"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without one")
def test_an_absent_gpu_is_said():
    with pytest.raises(ValueError, match="no device 'cuda' here: torch finds no GPU"):
        ibvi.fit(make_svi(), make_loader(), 1, device="cuda", progress=False)


@pytest.mark.parametrize("number", range(len(list(mistakes()))))
def test_a_mistake_gets_a_sentence(number):
    args, kwargs, error, match = list(mistakes())[number]
    with pytest.raises(error, match=match):
        ibvi.fit(*args, progress=False, **kwargs)


@pytest.mark.parametrize(
    ("callback", "takes"),
    [
        (lambda: None, r"\(\)"),
        (lambda epoch: None, r"\(epoch\)"),
        (lambda epoch, history, more: None, r"\(epoch, history, more\)"),
        ([].append, r"\(object, /\)"),
    ],
)
def test_a_callback_of_other_arguments_is_refused_before_a_step(callback, takes):
    svi = make_svi()
    before = everything(svi)
    with pytest.raises(TypeError, match=rf"with \(epoch, history\), and .* takes {takes}"):
        ibvi.fit(svi, make_loader(), 1, callback=callback, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in everything(svi).items())


def test_training_data_are_no_validation_data_to_end_by():
    loader = make_loader()
    with pytest.warns(
        UserWarning, match=r"valid_loader is the training loader, .* data held back"
    ):
        ibvi.fit(make_svi(), loader, 1, valid_loader=loader, patience=1, progress=False)
    ibvi.fit(make_svi(), loader, 1, valid_loader=loader, progress=False)  # to look at


@pytest.mark.parametrize("callback", [lambda *args: None, lambda epoch, history, more=1: None])
def test_a_callback_may_take_more(callback):
    assert ibvi.fit(make_svi(), make_loader(), 1, callback=callback, progress=False).num_epochs


CHANGES = {
    "rate": (
        "the learning rate is 0.5 now and was 0.002; the rates of the checkpoint are used",
        lambda svi: setattr(svi.optim, "lr", 0.5),
    ),
    "num_data": (
        "the num_data is 80 now and was 37",
        lambda svi: setattr(svi.model, "num_data", 80),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_resuming_with_other_settings_is_said(tmp_path, change):
    train(make_killable("momentum"), checkpoint=tmp_path / "run.pt", num_epochs=1)
    svi = make_killable("momentum")
    message, apply = CHANGES[change]
    apply(svi)
    with pytest.warns(UserWarning, match=rf"resumed with other settings: {message}"):
        train(svi, checkpoint=tmp_path / "run.pt", num_epochs=2)


def test_resuming_on_other_data_of_the_same_size_is_said(tmp_path):
    path = tmp_path / "run.pt"
    loader = make_loader()
    x, y = loader.dataset.tensors
    ibvi.fit(make_svi(), loader, 1, checkpoint=path, progress=False)
    with warnings.catch_warnings():  # a copy is the same data
        warnings.simplefilter("error")
        copies = DataLoader(TensorDataset(x.clone(), y.clone()), loader.batch_size)
        ibvi.fit(make_svi(), copies, 1, checkpoint=path, progress=False)
    others = DataLoader(TensorDataset(x + 1, y), loader.batch_size)
    with pytest.warns(UserWarning, match="digest of the data set's first and last row is "):
        ibvi.fit(make_svi(), others, 2, checkpoint=path, progress=False)


def test_a_part_of_a_data_set_is_known_again(tmp_path):
    path, x = tmp_path / "run.pt", torch.arange(40.0).unsqueeze(-1)

    def train(x, rows, num_epochs):
        inner = Subset(TensorDataset(x, x), range(4, 40))  # a part of a part
        loader = DataLoader(Subset(inner, rows), batch_size=8)
        ibvi.fit(make_svi(), loader, num_epochs, checkpoint=path, progress=False)

    train(x, range(10, 26), 1)
    train(x.clone(), range(10, 26), 2)  # a warning would be an error here
    away = x.clone()
    away[:14], away[30:] = -1.0, -1.0
    train(away, range(10, 26), 3)
    for other, rows in ((x + 1, range(10, 26)), (x, range(9, 25))):
        with pytest.warns(UserWarning, match="digest of the data set's first and last row is "):
            train(other, rows, 3)


def test_a_network_says_so_of_tensors(tmp_path):
    def fit(x, num_epochs):
        bnn = ibvi.VariationalNetwork(nn.Linear(1, 1), ibvi.Normal(0.1))
        bnn.fit(x, Y, num_epochs=num_epochs, checkpoint=tmp_path / "run.pt", progress=False)

    fit(X, 1)
    with pytest.warns(UserWarning, match="digest of the data set's first and last row is "):
        fit(X + 1, 2)


def test_fewer_epochs_than_were_done_are_said(tmp_path):
    train(make_killable("momentum"), checkpoint=tmp_path / "run.pt", num_epochs=2)
    with pytest.warns(UserWarning, match="2 epochs were trained already and num_epochs is 1"):
        train(make_killable("momentum"), checkpoint=tmp_path / "run.pt", num_epochs=1)


def test_a_sampler_of_one_process_gives_all_data():
    sampler = DistributedSampler(TensorDataset(X, Y), num_replicas=1, rank=0)
    whole = DataLoader(TensorDataset(X, Y), batch_size=8, sampler=sampler)
    assert ibvi.fit(make_svi(), whole, 1, progress=False).num_epochs == 1
