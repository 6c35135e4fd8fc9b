"""The module for Lightning against loops written by hand, and what Lightning adds."""

import copy

import pyro
import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi

lightning = pytest.importorskip("lightning")
from pyro_ibvi.lightning import IBVIModule  # noqa: E402

X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
NUMBERS = X[:, :1].sin()


def make_net(num_outputs=3):
    return nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, num_outputs))


def make(likelihood=None, **choices):
    pyro.set_rng_seed(0)
    likelihood = ibvi.Categorical() if likelihood is None else likelihood
    return IBVIModule(make_net(), likelihood, **choices)


def make_loader(y=LABELS, batch_size=12, x=X):
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


class Stream:
    """Batches that draw no random numbers and do not say how many they are."""

    def __init__(self, *batches):
        self.batches = batches or ((X, LABELS),)

    def __iter__(self):
        return iter(self.batches)


def make_trainer(max_epochs=2, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"accelerator": "cpu", "enable_checkpointing": False, **quiet, **options}
    return lightning.Trainer(max_epochs=max_epochs, **options)


def train(module, loader=None, max_epochs=2, **options):
    """Trains with fixed draws; gives the trainer."""
    trainer = make_trainer(max_epochs, **options)
    pyro.set_rng_seed(1)
    trainer.fit(module, loader or make_loader())
    return trainer


def by_hand(module, num_epochs=2, *, optimizer, accumulate=1, precision=None, schedule=None):
    """The same training with nothing of Lightning in it, nor of ``MuPOptim``."""
    rates = ibvi.mup_param_groups(module.guide, lr=0.03, optimizer=type_of(optimizer))
    stepper = optimizer(rates)
    scheduler = schedule(stepper) if schedule else None
    module.model.num_data = len(X)
    pyro.set_rng_seed(1)
    for _ in range(num_epochs):
        # A loader draws a seed for its workers at each start, whether it has some or not.
        for i, (x, y) in enumerate(make_loader()):
            with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
                loss = module.loss(x, y)
            (loss / accumulate).backward()
            if (i + 1) % accumulate == 0:
                stepper.step()
                stepper.zero_grad()
        if scheduler:
            scheduler.step()
    return parameters(module)


def type_of(optimizer):
    return getattr(optimizer, "func", optimizer)


def parameters(module):
    return {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}


def halved(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def over_two_epochs(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.03, momentum=0.9)


sgd.func = torch.optim.SGD


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.03, weight_decay=0.1)


adamw.func = torch.optim.AdamW


@pytest.mark.parametrize(
    ("choices", "trainer", "hand"),
    [
        ({}, {}, {"optimizer": sgd}),
        ({}, {"accumulate_grad_batches": 2}, {"optimizer": sgd, "accumulate": 2}),
        ({}, {"precision": "bf16-mixed"}, {"optimizer": sgd, "precision": torch.bfloat16}),
        ({"scheduler": halved}, {}, {"optimizer": sgd, "schedule": halved}),
        ({"scheduler": "cosine"}, {}, {"optimizer": sgd, "schedule": over_two_epochs}),
        (
            {"optimizer": torch.optim.AdamW, "optim_args": {"weight_decay": 0.1}},
            {},
            {"optimizer": adamw},
        ),
    ],
    ids=["plain", "accumulated", "autocast", "scheduled", "cosine", "adamw"],
)
def test_it_trains_as_a_loop_by_hand(choices, trainer, hand):
    module, other = make(lr=0.03, **choices), make(lr=0.03, **choices)
    start = parameters(module)
    train(module, **trainer)
    expected = by_hand(other, **hand)
    found = parameters(module)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert max((found[n] - start[n]).abs().max() for n in found) > 1e-2


def test_it_trains_what_it_is_given():
    """A network with its parts, and an SVI of one's own, as ``fit`` would."""
    made = []
    for form in ("network", "svi", "fit"):
        pyro.set_rng_seed(0)
        bnn = ibvi.VariationalNetwork(make_net(), ibvi.Categorical(), lr=0.03)
        if form == "fit":
            pyro.set_rng_seed(1)
            bnn.fit(make_loader(), num_epochs=2, progress=False)
        else:
            module = IBVIModule(bnn if form == "network" else bnn.svi)
            assert (module.bnn is bnn) == (form == "network")
            train(module)
        assert bnn.model.num_data == len(X)
        made.append(bnn.predict(X, seed=0).mean)
    torch.testing.assert_close(made[0], made[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made[1], made[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "y", "names"),
    [
        (ibvi.Categorical(), LABELS, {"nll", "accuracy", "ece", "brier"}),
        (ibvi.Normal(0.1), NUMBERS, {"nll", "rmse", "coverage"}),
    ],
)
def test_it_logs_what_predictions_are_worth(likelihood, y, names):
    """Of all batches together, the last of which is smaller, as ``evaluate`` has them."""
    pyro.set_rng_seed(0)
    num_outputs = 3 if len(names) == 4 else 1
    module = IBVIModule(make_net(num_outputs), likelihood, lr=1e-3, num_samples=7, seed=5)
    trainer = make_trainer()
    trainer.fit(module, make_loader(y), make_loader(y[:20], x=X[:20]))
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert {n for n in logged if n.startswith("val_")} == {f"val_{name}" for name in names}
    assert {"train_loss", "train_loss_step"} <= logged.keys()
    expected = ibvi.evaluate(
        module.model, module.guide, [(X[:20], y[:20])], num_samples=7, generator=5
    )
    for name in names & expected.keys() - {"coverage"}:
        assert logged[f"val_{name}"] == pytest.approx(expected[name], rel=1e-5), name
    (tested,) = trainer.test(module, make_loader(y[:20], x=X[:20]), verbose=False)
    assert tested["test_nll"] == pytest.approx(logged["val_nll"])
    parts = trainer.predict(module, make_loader(y))
    torch.testing.assert_close(torch.cat([part.mean for part in parts]), module(X).mean)


def test_validation_leaves_training_as_it_is():
    found = []
    for with_validation in (False, True):
        module = make(lr=0.03)
        trainer = make_trainer(num_sanity_val_steps=0)
        pyro.set_rng_seed(1)
        valid = Stream((X[:5], LABELS[:5])) if with_validation else None
        trainer.fit(module, make_loader(), valid)
        found.append(parameters(module))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_checkpoint_predicts_the_same_bit_for_bit(tmp_path):
    module = make(lr=0.03)
    trainer = train(module)
    module.bnn.temperature = 1.3
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    again = IBVIModule.load_from_checkpoint(
        tmp_path / "net.ckpt", net=make_net(), likelihood=ibvi.Categorical()
    )
    assert torch.equal(again(X).mean, module(X).mean)
    assert again.bnn.temperature == 1.3
    assert again.model.num_data == len(X)
    again.bnn.save(tmp_path / "net.ibvi")
    loaded = ibvi.load(tmp_path / "net.ibvi", make_net())
    assert torch.equal(loaded.predict(X, seed=0).mean, module.bnn.predict(X, seed=0).mean)


def test_training_goes_on_from_a_checkpoint(tmp_path):
    """Momentum and the schedule's rates included: with equal draws as without a stop."""
    options = {"lr": 0.03, "scheduler": halved}
    whole = make(**options)
    trainer = make_trainer(1)
    pyro.set_rng_seed(1)
    trainer.fit(whole, make_loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    optimizer = trainer.optimizers[0]
    halves = []
    for module, path in ((whole, None), (make(**options), tmp_path / "half.ckpt")):
        trainer = make_trainer(2)
        module.loss(X, LABELS)  # the first call with a pair draws once more, to look at it
        pyro.set_rng_seed(2)
        if path is None:
            for x, y in make_loader():
                optimizer.zero_grad()
                module.loss(x, y).backward()
                optimizer.step()
        else:
            trainer.fit(module, make_loader(), ckpt_path=path)
        halves.append(parameters(module))
    torch.testing.assert_close(*halves, rtol=1e-6, atol=1e-7)


def test_scores_are_at_the_temperature_at_which_it_predicts():
    module = make()
    train(module)
    found = module.bnn.calibrate(X, LABELS.flip(0), seed=0)
    assert found.value > 1.1
    trainer = make_trainer()
    trainer.test(module, make_loader(), verbose=False)
    nll = trainer.callback_metrics["test_nll"].item()
    assert nll == pytest.approx(ibvi.score(module(X), LABELS)["nll"], rel=1e-5)
    evaluated = module.bnn.evaluate(X, LABELS, num_samples=16, seed=0)["nll"]
    assert nll == pytest.approx(evaluated, rel=1e-5)
    with pytest.warns(UserWarning, match="found for the weights as they were before .* calibrate"):
        train(module)


def test_early_stopping_looks_at_predictions():
    stop = lightning.pytorch.callbacks.EarlyStopping("val_nll", patience=1, min_delta=100.0)
    trainer = make_trainer(20, callbacks=[stop])
    trainer.fit(make(), make_loader(), make_loader())
    assert trainer.current_epoch < 5


def test_a_schedule_that_loses_the_ratios_is_refused():
    class Setter(lightning.Callback):
        def on_train_batch_start(self, trainer, *_):
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = 0.01

    module = make(parametrization=ibvi.MaximalUpdate())
    with pytest.raises(ValueError, match="sets the learning rates of the parameter groups"):
        make_trainer(callbacks=[Setter()]).fit(module, make_loader())


def test_ratios_are_kept_after_a_checkpoint_too(tmp_path):
    trainer = train(make(parametrization=ibvi.MaximalUpdate()), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "net.ckpt")

    def one_rate(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=100)

    with pytest.raises(ValueError, match="OneCycleLR sets the learning rates"):
        train(make(scheduler=one_rate, parametrization=ibvi.MaximalUpdate()))
    module = make(parametrization=ibvi.MaximalUpdate())
    optimizer, _ = module.bnn.optim.make_torch()
    optimizer.load_state_dict(torch.load(tmp_path / "net.ckpt")["optimizer_states"][0])
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    with pytest.raises(ValueError, match="loses their ratios"):
        optimizer.step()


def test_plateau_schedules_look_at_predictions():
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=100.0)

    module = make(scheduler=plateau)
    trainer = make_trainer(4)
    trainer.fit(module, make_loader(), make_loader())
    first = trainer.optimizers[0].param_groups[0]
    assert first["lr"] < 0.2 * first["rate_factor"] * module.bnn.optim.lr


def test_clipping_is_the_trainers_or_the_networks():
    steps = []
    for choices, options in (
        ({"clip_norm": 1e-3}, {}),
        ({}, {"gradient_clip_val": 1e-3}),
        ({"clip_norm": 1e3}, {"gradient_clip_val": 1e-3}),
    ):
        module = make(**choices, lr=0.03)
        train(module, max_epochs=1, **options)
        steps.append(parameters(module))
    torch.testing.assert_close(steps[0], steps[1], rtol=0, atol=0)
    torch.testing.assert_close(steps[0], steps[2], rtol=0, atol=0)


def test_a_copy_is_whole():
    """Averages of weights are kept in a copy of the module."""
    module = make(lr=0.03)
    twin = copy.deepcopy(module)
    train(module)
    assert not torch.equal(twin(X).mean, module(X).mean)
    train(twin)
    assert torch.equal(twin(X).mean, module(X).mean)
    assert twin.bnn.model is twin.model


def svi_of(optim, loss):
    model = ibvi.SupervisedModel(ibvi.RandomModule(make_net()), ibvi.Categorical(), num_data=48)
    guide = ibvi.AutoMuPNormal(model)
    return SVI(model, guide, optim(guide), loss)


def mup(guide):
    return ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.1}, guide)


MEAN = ibvi.TraceExpectedLogLikelihood(reduction="mean")


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: IBVIModule(make_net()), TypeError, r"got Sequential alone: write IBVIModule\("),
        (
            lambda: IBVIModule(ibvi.VariationalNetwork(make_net(), ibvi.Categorical()), lr=0.1),
            ValueError,
            "VariationalNetwork has made its choices: give lr when",
        ),
        (
            lambda: IBVIModule(svi_of(mup, MEAN), ibvi.Categorical()),
            ValueError,
            "SVI has made its choices: give likelihood when",
        ),
        (
            lambda: IBVIModule(svi_of(lambda _: pyro.optim.Adam({"lr": 0.1}), MEAN)),
            TypeError,
            "got the optimizer PyroOptim and the loss TraceExpectedLogLikelihood",
        ),
        (lambda: make(num_samples=0), ValueError, "num_samples must be a positive"),
        (lambda: make(schedule_every="batch"), ValueError, "schedule_every must be 'epoch' or"),
        (lambda: make(schedule_every="step"), ValueError, "schedule_every='step' needs a sched"),
        (
            lambda: train(make(), loader=Stream()),
            ValueError,
            r"number of training data cannot be found.*pass num_data=, the number in all",
        ),
        (
            lambda: train(make(), loader=TensorDataset(X, LABELS)),
            TypeError,
            r"train_dataloaders is a data set, which gives single data: write DataLoader",
        ),
        (
            lambda: train(make(), loader=(X, LABELS)),
            TypeError,
            r"train_dataloaders must give batches, got tuple: write DataLoader\(Tensor",
        ),
        (
            lambda: make_trainer().fit(make(), make_loader(), Stream(X[:5])),
            ValueError,
            r"There is nothing to score by: .* let the loader yield \(x, y\)",
        ),
        (
            lambda: train(
                make(ibvi.Normal(0.1), lr=1e30), loader=make_loader(NUMBERS.repeat(1, 3))
            ),
            FloatingPointError,
            r"loss of batch \d in epoch 0 is (nan|inf): try a smaller lr",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Encountered (NaN|.inf)")
def test_mistakes_are_said(build, error, match):
    with pytest.raises(error, match=match):
        build()


def test_the_number_of_data_can_be_told():
    module = make(num_data=480)
    train(module, loader=Stream())
    assert module.model.num_data == 480
