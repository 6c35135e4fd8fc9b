"""Devices and number types: nothing is tied to the CPU or to float32."""

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def make(device, dtype, likelihood, covariance, outputs):
    net = nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, outputs))
    net = net.to(device, dtype)
    model = ibvi.SupervisedModel(ibvi.RandomModule(net), likelihood.to(device), num_data=20)
    return model, ibvi.AutoMuPNormal(model, covariance=covariance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "covariance", [ibvi.Diagonal(), ibvi.LowRank(4), ibvi.LowRank(None), ibvi.Kronecker(2, 3)]
)
@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (ibvi.Normal(0.5), 2),
        (ibvi.Normal(0.5, learn_scale=True), 2),
        (ibvi.HeteroscedasticNormal(), 4),
        (ibvi.Categorical(), 2),
        (ibvi.Bernoulli(), 2),
        (ibvi.Poisson(), 2),
    ],
)
def test_training_and_prediction(device, dtype, covariance, likelihood, outputs):
    pyro.set_rng_seed(0)
    model, guide = make(device, dtype, likelihood, covariance, outputs)
    x = torch.randn(20, 3, device=device, dtype=dtype)
    if isinstance(likelihood, ibvi.Categorical):
        y = torch.randint(0, 2, (20,), device=device)
    else:
        y = torch.randint(0, 2, (20, 2), device=device)
        y = y if likelihood.discrete else y.to(dtype)
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    before = {name: parameter.clone() for name, parameter in guide.named_parameters()}
    history = ibvi.fit(svi, [(x.cpu(), y.cpu())], 2, valid_loader=[(x, y)], progress=False)
    assert torch.tensor(history.train_loss).isfinite().all()
    for name, parameter in guide.named_parameters():
        assert parameter.device.type == device
        assert parameter.dtype == dtype
        assert not torch.equal(parameter, before[name])
    prediction = ibvi.predict(model, guide, x.cpu(), num_samples=3)
    assert prediction.mean.device.type == device
    assert prediction.mean.dtype == dtype
    assert prediction.log_prob(y.cpu()).shape == (20,)
    assert torch.tensor(list(ibvi.score(prediction, y).values())).isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_waits_for_the_device_once():
    model, guide = make("cuda", torch.float32, ibvi.Categorical(), ibvi.LowRank(4), 2)
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-4}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    x, y = torch.randn(20, 3, device="cuda"), torch.randint(0, 2, (20,), device="cuda")
    for _ in range(3):
        svi.step(x, y)
    with torch.profiler.profile() as profiler:
        svi.step(x, y)
    waits = [event for event in profiler.events() if event.name == "aten::_local_scalar_dense"]
    assert len(waits) <= 1
