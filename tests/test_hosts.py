"""Training in the hands of other libraries, each against the same training by hand."""

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi

X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
BATCH, NUM_EPOCHS = 12, 2


def make():
    """A network with what torch needs to train it."""
    pyro.set_rng_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2))
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical(), lr=0.03)
    bnn.model.num_data = len(X)
    return bnn, bnn.loss(bnn.model, bnn.guide)


def parameters(loss):
    return {n: p.detach().clone() for n, p in loss.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def expected():
    """Each epoch seeded, since hosts differ in the random numbers that they draw besides."""
    bnn, loss = make()
    optimizer = torch.optim.SGD(
        ibvi.mup_param_groups(bnn.guide, lr=0.03, optimizer=torch.optim.SGD), momentum=0.9
    )
    for epoch in range(NUM_EPOCHS):
        for i, (x, y) in enumerate(zip(X.split(BATCH), Y.split(BATCH), strict=True)):
            pyro.set_rng_seed(100 * epoch + i)
            optimizer.zero_grad()
            loss(x, y).backward()
            optimizer.step()
    return parameters(loss)


def test_accelerate(expected):
    accelerate = pytest.importorskip("accelerate")
    bnn, loss = make()
    accelerator = accelerate.Accelerator(cpu=True)
    # The loader is the host's own here, to see that it may prepare one.
    loader = DataLoader(TensorDataset(X, Y), batch_size=BATCH)
    wrapped, optimizer, loader = accelerator.prepare(loss, bnn.optim.make_torch()[0], loader)
    for epoch in range(NUM_EPOCHS):
        for i, (x, y) in enumerate(loader):
            pyro.set_rng_seed(100 * epoch + i)
            optimizer.zero_grad()
            accelerator.backward(wrapped(x, y))
            optimizer.step()
    torch.testing.assert_close(parameters(loss), expected, rtol=1e-6, atol=1e-7)
    assert accelerator.unwrap_model(wrapped) is loss


def test_skorch(expected):
    skorch = pytest.importorskip("skorch")
    bnn, loss = make()
    seeds = iter(100 * epoch + i for epoch in range(NUM_EPOCHS) for i in range(len(X) // BATCH))

    class Net(skorch.NeuralNet):
        """The module's call is the loss, and takes the targets too."""

        def initialize_optimizer(self, *_, **__):
            self.optimizer_ = bnn.optim.make_torch()[0]
            return self

        def train_step_single(self, batch, **_):
            pyro.set_rng_seed(next(seeds))
            loss = self.module_(*batch)
            loss.backward()
            return {"loss": loss, "y_pred": loss}

    net = Net(loss, nn.Identity, train_split=None, max_epochs=NUM_EPOCHS, batch_size=BATCH)
    net.set_params(verbose=0).fit(X, Y)
    torch.testing.assert_close(parameters(net.module_), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("plan", ["PyroTrainingPlan", "LowLevelPyroTrainingPlan"])
@pytest.mark.filterwarnings("ignore")  # those of a large library are its own
def test_scvi_tools(expected, plan):
    """Its plans for Pyro's models, by ``SVI`` and by torch."""
    scvi = pytest.importorskip("scvi")
    lightning = pytest.importorskip("lightning")
    bnn, loss = make()

    class Module(scvi.module.base.PyroBaseModuleClass):
        def __init__(self):
            super().__init__()
            self._model, self._guide = bnn.model, bnn.guide

        model = property(lambda self: self._model)
        guide = property(lambda self: self._guide)

        @staticmethod
        def _get_fn_args_from_batch(batch):
            return tuple(batch), {}

    class Seeded(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            pyro.set_rng_seed(100 * trainer.current_epoch + batch_idx)

    by_svi = plan == "PyroTrainingPlan"
    trained = getattr(scvi.train, plan)(
        Module(),
        loss_fn=ibvi.TraceExpectedLogLikelihood(reduction="mean"),
        optim=bnn.optim if by_svi else lambda _, lr: bnn.optim.make_torch()[0],
        optim_kwargs={"lr": 0.03},
    )
    assert not by_svi or isinstance(trained.svi, SVI)
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = lightning.Trainer(
        max_epochs=NUM_EPOCHS, accelerator="cpu", callbacks=[Seeded()], **quiet
    )
    trainer.fit(trained, DataLoader(TensorDataset(X, Y), batch_size=BATCH))
    torch.testing.assert_close(parameters(loss), expected, rtol=1e-5, atol=1e-6)
