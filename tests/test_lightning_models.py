"""The module for Lightning over models that are not this package's, against a loop by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule
from torch import nn

import pyro_ibvi as ibvi

lightning = pytest.importorskip("lightning")
from pyro_ibvi.lightning import IBVIModule  # noqa: E402
from tests.test_lightning import NUMBERS, X, make_loader, make_trainer, train  # noqa: E402


class Slope(PyroModule):
    """A model written by hand, which knows nothing of this package."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", 48, subsample_size=len(x)):
            pyro.sample("y", dist.Normal(x @ slope + self.shift, 1.0), obs=y.squeeze(-1))


def make_slope(**options):
    model = Slope()
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"slope": torch.zeros(3)}))
    guide(X, NUMBERS)
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.03}, guide)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")
    return IBVIModule(SVI(model, guide, optim, loss), **options)


def test_any_pyro_model_is_trained_and_neither_predicts_nor_is_scored(tmp_path):
    module, loader = make_slope(), make_loader(NUMBERS)
    trainer = train(module, loader)
    slope, shift = torch.zeros(3, requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([slope, shift], 0.03)
    for _ in range(2):
        for x, y in loader:
            loss = 0.5 * (x @ slope + shift - y.squeeze(-1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(module.guide.slope.detach(), slope.detach())
    torch.testing.assert_close(module.model.shift.detach(), shift.detach())
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    other = make_slope()
    make_trainer().fit(other, loader, ckpt_path=path)
    assert torch.equal(other.guide.slope, module.guide.slope)
    match = r"predicts and scores by a SupervisedModel, got Slope: .*pyro\.infer\.Predictive"
    for call in (
        lambda: make_trainer().test(module, loader, verbose=False),
        lambda: make_trainer().predict(module, loader),
        lambda: module(X),
    ):
        with pytest.raises(TypeError, match=match):
            call()
    with pytest.raises(TypeError, match=r"num_data=48 is for a SupervisedModel, and Slope"):
        make_slope(num_data=48)


def test_a_module_that_is_compiled_as_a_whole_hears_what_to_compile():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    module = torch.compile(
        IBVIModule(ibvi.VariationalNetwork(net, ibvi.Normal(0.1))), backend="eager"
    )
    data = torch.utils.data.TensorDataset(torch.randn(4, 3), torch.randn(4, 1))
    with pytest.raises(TypeError, match=r"IBVIModule\(VariationalNetwork\(torch\.compile\(net\)"):
        make_trainer().fit(module, torch.utils.data.DataLoader(data))


@pytest.mark.parametrize(
    ("ends", "num_epochs"),
    [
        ({"max_epochs": 4}, 4),
        ({"max_epochs": -1, "max_steps": 16}, 4),  # of 4 steps each
        ({"max_epochs": 4, "max_steps": 10}, 3),
        ({"max_epochs": -1, "max_steps": 7, "accumulate_grad_batches": 2}, 4),
        ({"max_epochs": 2, "max_steps": 100}, 2),
    ],
)
def test_the_falling_rate_ends_with_the_trainer(ends, num_epochs):
    class Rates(lightning.Callback):
        def __init__(self):
            self.of_epochs = []

        def on_train_batch_end(self, trainer, *_):
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            if len(self.of_epochs) <= trainer.current_epoch:
                self.of_epochs.append(rate)

    rates = Rates()
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    module = IBVIModule(net, ibvi.Normal(0.5), scheduler="cosine")
    make_trainer(callbacks=[rates], **ends).fit(module, make_loader(NUMBERS))
    cosine = [(1 + math.cos(math.pi * i / num_epochs)) / 2 for i in range(num_epochs)]
    assert rates.of_epochs == pytest.approx([rates.of_epochs[0] * c for c in cosine])
