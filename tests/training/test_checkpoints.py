"""Files of a training's state: what they hold, and what is said if they do not fit."""

import copy
import random
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn

import pyro_ibvi as ibvi
from tests.full_disk import full_disk
from tests.training.killable import Killed, differences, make_loader, make_svi, summary, train

X = torch.randn(8, 2, generator=torch.Generator().manual_seed(2))
Y = X.sum(-1, keepdim=True)


def stepped(svi, num_steps=2):
    for _ in range(num_steps):
        svi.step(X, Y)
    return svi


def state(svi):
    return summary(svi, ibvi.training.History())


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("args", [(), (X, Y)], ids=["without a batch", "with a batch"])
def test_a_loop_of_ones_own_goes_on(tmp_path, optimizer, args):
    svi = stepped(make_svi(optimizer))
    svi.optim.step_scheduler()
    extra = {"epoch": 3, "losses": [1.0, np.float64(2.5)], "best": {"w": torch.ones(2)}, "n": None}
    ibvi.save_checkpoint(tmp_path / "run.pt", svi, **extra)
    expected = [svi.step(X, Y) for _ in range(3)], state(svi)
    other = make_svi(optimizer, seed=9)
    found = ibvi.load_checkpoint(tmp_path / "run.pt", other, *args)
    assert differences(extra, found) == []
    assert type(found["losses"][1]) is float
    assert differences(expected, ([other.step(X, Y) for _ in range(3)], state(other))) == []


def penalized():
    penalty = ibvi.objectives.DivergencePenalty("wasserstein2", weight=0.5)
    return ibvi.TraceExpectedLogLikelihood(penalty=penalty)


@pytest.mark.parametrize(
    "make_loss",
    [
        penalized,
        partial(ibvi.TraceGeneralizedVI, weight=0.5),
        partial(ibvi.TraceClosedFormHead, weight=0.5),
    ],
    ids=["penalty", "generalized", "head"],
)
def test_random_states_and_the_weight_of_the_penalty(tmp_path, make_loss):
    svi = stepped(make_svi("adamw", loss=make_loss()))
    svi.loss.__self__.weight = 0.25
    random.gauss(0.0, 1.0), np.random.randn()  # each leaves a second number for later
    ibvi.save_checkpoint(tmp_path / "run.pt", svi)
    draws = [torch.rand(2), np.random.randn(), random.gauss(0.0, 1.0), np.random.randn()]
    other = make_svi("adamw", seed=9, loss=make_loss())
    ibvi.load_checkpoint(tmp_path / "run.pt", other)
    again = [torch.rand(2), np.random.randn(), random.gauss(0.0, 1.0), np.random.randn()]
    assert differences(draws, again) == []
    assert other.loss.__self__.weight == other.loss.__self__.penalty.weight == 0.25


SCHEDULERS = {
    "milestones": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4], 0.5),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, [0.01 * group["rate_factor"] for group in o.param_groups], total_steps=20
    ),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "warm-up": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=2),
            torch.optim.lr_scheduler.CosineAnnealingLR(o, 8),
        ],
        [2],
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")  # SequentialLR's own doing
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_kind_of_schedule_goes_on(tmp_path, scheduler):
    def steps(svi):
        losses = []
        for _ in range(3):
            losses.append(svi.step(X, Y))
            svi.optim.step_scheduler()
        return losses

    def make(seed):
        return make_svi("momentum", seed, scheduler=SCHEDULERS[scheduler])

    svi = make(0)
    steps(svi)
    ibvi.save_checkpoint(tmp_path / "run.pt", svi)
    other = make(9)
    ibvi.load_checkpoint(tmp_path / "run.pt", other)
    random_state = torch.get_rng_state()
    expected = steps(svi), state(svi)
    torch.set_rng_state(random_state)
    assert differences(expected[0], steps(other)) == []
    for part in ("modules", "optimizer"):
        assert differences(expected[1][part], state(other)[part]) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_state_of_a_gpu(tmp_path):
    torch.rand(1, device="cuda")
    ibvi.save_checkpoint(tmp_path / "run.pt", stepped(make_svi("adamw")))
    draw = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(3)
    ibvi.load_checkpoint(tmp_path / "run.pt", make_svi("adamw", seed=9))
    assert torch.equal(torch.rand(3, device="cuda"), draw)


def test_the_file_is_safe_to_load_and_holds_no_data(tmp_path):
    x = torch.full((8, 2), 12345.678)
    svi = make_svi("momentum")
    svi.step(x, Y)
    ibvi.save_checkpoint(tmp_path / "run.pt", svi)
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    assert content["format"].startswith("pyro_ibvi checkpoint")
    assert x[:1].numpy().tobytes() not in (tmp_path / "run.pt").read_bytes()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    svi = stepped(make_svi("momentum"))
    ibvi.save_checkpoint(path, svi, num_steps=2)
    before = path.read_bytes()
    with (
        full_disk(len(before) // 2),
        pytest.raises(OSError, match=r"run\.pt could not be wr"),
    ):
        ibvi.save_checkpoint(path, stepped(svi), num_steps=4)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("part", ["half", "empty", "text", "other"])
def test_a_damaged_file_is_refused(tmp_path, part):
    path = tmp_path / "run.pt"
    svi = stepped(make_svi("momentum"))
    ibvi.save_checkpoint(path, svi)
    content = path.read_bytes()
    if part == "other":
        torch.save(svi.guide.state_dict(), path)
    else:
        pieces = {"half": content[: len(content) // 2], "empty": b"", "text": b"epoch 3\n"}
        path.write_bytes(pieces[part])
    before = state(svi)
    message = (
        "no checkpoint that this version reads" if part == "other" else "is damaged or no che"
    )
    with pytest.raises(ValueError, match=message):
        ibvi.load_checkpoint(path, svi)
    with pytest.raises(ValueError, match=message):
        train(svi, checkpoint=path)
    assert differences(before["modules"], state(svi)["modules"]) == []


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    ibvi.save_checkpoint(path, stepped(make_svi("momentum")))
    with pytest.raises(
        ValueError,
        match=r"of another model: model\.net\.net\.0\.weight is float32 of shape \(6, 2\) there "
        r"and float32 of shape \(7, 2\) here; .*; and \d+ more",
    ):
        ibvi.load_checkpoint(path, make_svi("momentum", width=7))
    svi = make_svi("momentum")
    svi.model.double(), svi.guide.double()
    with pytest.raises(ValueError, match=r"float32 of shape \(6, 2\) there and float64 of shape"):
        ibvi.load_checkpoint(path, svi)
    svi = make_svi("momentum")
    svi.model.register_buffer("count", torch.zeros(1))
    with pytest.raises(ValueError, match=r"another model: it lacks model\.count\."):
        ibvi.load_checkpoint(path, svi)
    ibvi.save_checkpoint(path, stepped(svi))
    with pytest.raises(ValueError, match=r"it has model\.count, which is not here\."):
        ibvi.load_checkpoint(path, make_svi("momentum"))


def test_a_parameter_of_a_later_batch_is_made_beforehand(tmp_path):
    def late(x, y):
        if len(x) == 4:
            pyro.param("late", lambda: torch.randn(()))
        linear(x, y)

    def make():
        svi = make_linear()
        svi.model = late
        return svi

    path = tmp_path / "run.pt"
    svi = stepped(make())
    svi.step(X[:4], Y[:4])
    ibvi.save_checkpoint(path, svi)
    expected = svi.step(X[:4], Y[:4])
    with pytest.raises(ValueError, match=r"it has store\.late, which is not here.*evaluate_loss"):
        ibvi.load_checkpoint(path, make(), X, Y)
    other = make()
    other.evaluate_loss(X[:4], Y[:4])
    ibvi.load_checkpoint(path, other, X, Y)
    assert other.step(X[:4], Y[:4]) == expected


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    ibvi.save_checkpoint(path, stepped(make_svi("momentum")))
    with pytest.raises(
        ValueError, match=r"optimizer MuPOptim\(SGD\), but this one is MuPOptim\(A"
    ):
        ibvi.load_checkpoint(path, make_svi("adamw"))
    with pytest.raises(ValueError, match="scheduler StepLR, but this one is NoneType"):
        ibvi.load_checkpoint(path, make_svi("momentum", scheduler=None))
    for others in (None, SCHEDULERS["milestones"]):
        svi = stepped(make_svi("momentum", scheduler=others))
        before = copy.deepcopy(svi.optim.get_state()["optimizer"]["state"])
        with pytest.raises(ValueError, match="of the scheduler StepLR, but this one is"):
            ibvi.load_checkpoint(path, svi)
        after = svi.optim.get_state()["optimizer"]["state"]
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    svi = make_svi("momentum")
    svi.optim = pyro.optim.SGD({"lr": 0.1})
    with pytest.raises(ValueError, match=r"MuPOptim\(SGD\), but this one is PyroOptim\(SGD\)"):
        ibvi.load_checkpoint(path, svi)


def linear(x, y):
    scale = pyro.param("scale", lambda: torch.rand(()) + 1.0)
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Normal(x @ w, scale), obs=y.squeeze(-1))


def make_linear():
    pyro.clear_param_store()
    return SVI(linear, AutoNormal(linear), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())


def test_parameters_that_appear_at_the_first_step_need_a_batch(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(RuntimeError, match="take a step through SVI first"):
        ibvi.save_checkpoint(path, make_linear())
    svi = stepped(make_linear())
    ibvi.save_checkpoint(path, svi)
    expected = [svi.step(X, Y) for _ in range(3)]
    with pytest.raises(ValueError, match=r"it has store\.scale, which is not here.*x, y\)"):
        ibvi.load_checkpoint(path, make_linear())
    other = make_linear()
    ibvi.load_checkpoint(path, other, X, Y)
    assert [other.step(X, Y) for _ in range(3)] == expected


def test_what_the_training_makes_later_is_not_there_too_early(tmp_path):
    svi = stepped(make_linear())
    ibvi.save_checkpoint(tmp_path / "run.pt", svi)

    def with_more(x, y):
        pyro.param("later", torch.zeros(()))
        linear(x, y)

    other = make_linear()
    other.model = with_more
    ibvi.load_checkpoint(tmp_path / "run.pt", other, X, Y)
    assert "later" not in pyro.get_param_store()


class Normed(PyroModule):
    """A regression on normalized features."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2, 1), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(self.norm(x) @ weight, 1.0).to_event(1), obs=y)


@pytest.mark.parametrize("num_handlers", [0, 1, 2])
def test_buffers_of_a_model_behind_handlers_are_saved(tmp_path, num_handlers):
    def make():
        pyro.clear_param_store()
        module = Normed()
        model = module if num_handlers < 2 else pyro.poutine.block(module, hide=["none"])
        model = pyro.poutine.scale(model, scale=0.5) if num_handlers else model
        guide = AutoNormal(module)
        return module, SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())

    module, svi = make()
    stepped(svi)
    ibvi.save_checkpoint(tmp_path / "run.pt", svi)
    other, again = make()
    ibvi.load_checkpoint(tmp_path / "run.pt", again, X, Y)
    assert module.norm.num_batches_tracked > 0
    assert differences(dict(module.named_buffers()), dict(other.named_buffers())) == []


def test_the_store_of_another_training_is_left_alone(tmp_path):
    svi = stepped(make_linear())
    pyro.param("of another program", torch.tensor(1.0))
    ibvi.save_checkpoint(tmp_path / "run.pt", svi)
    other = make_linear()
    pyro.param("of a third", torch.tensor(2.0))
    ibvi.load_checkpoint(tmp_path / "run.pt", other, X, Y)
    assert "of another program" not in pyro.get_param_store()
    assert pyro.param("of a third").item() == 2.0


def test_a_parameter_that_nothing_holds_is_refused(tmp_path):
    net = ibvi.RandomModule(nn.Linear(2, 1))

    def model(x, y):
        f = net(x)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(f[:, 0], 1.0), obs=y.squeeze(-1))

    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    with pytest.raises(
        ValueError, match=r"parameters of shape \(1,\) that are neither.*self\.net"
    ):
        ibvi.save_checkpoint(tmp_path / "run.pt", stepped(svi))


def test_bad_input(tmp_path):
    svi = stepped(make_svi("momentum"))
    nowhere = tmp_path / "nowhere" / "run.pt"
    for call in (
        lambda: ibvi.save_checkpoint(nowhere, svi),
        lambda: train(svi, checkpoint=nowhere),
    ):
        with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere for the file"):
            call()
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*nowhere"):
        ibvi.load_checkpoint(nowhere, svi)
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        train(svi, checkpoint=tmp_path)
    with pytest.raises(
        TypeError, match=r"the checkpoint\['extra'\]\['net'\]\[0\] is of the type L"
    ):
        ibvi.save_checkpoint(tmp_path / "run.pt", svi, net=[nn.Linear(1, 1)])
    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match="checkpoint_steps must be a positive whole number"):
        train(svi, checkpoint=path, checkpoint_steps=0)
    with pytest.raises(ValueError, match="pass `history` or `checkpoint` alone"):
        train(svi, checkpoint=path, history=ibvi.training.History())
    with pytest.raises(
        ValueError, match="train_loader is an iterator, which cannot be begun anew"
    ):
        train(svi, checkpoint=path, loader=iter(make_loader()))
    with pytest.raises(ValueError, match="checkpoint_steps=5 needs a file to write to"):
        train(svi, checkpoint_steps=5)
    with pytest.raises(TypeError, match=r"a pyro.infer.SVI, but got AutoMuPNormal"):
        ibvi.save_checkpoint(path, svi.guide)
    with pytest.raises(TypeError, match=r"a pyro.infer.SVI, but got AutoMuPNormal"):
        ibvi.load_checkpoint(path, svi.guide)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*the number of batches is 3 now and was 5")
def test_a_checkpoint_of_other_loaders_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(Killed):
        train(make_svi("momentum"), killed_after=4, checkpoint=path, checkpoint_steps=2)
    with pytest.raises(ValueError, match="after step 4 of an epoch, but the loader has 3 batches"):
        train(make_svi("momentum"), loader=make_loader(batch_size=16), checkpoint=path)
    other = make_loader(generator=torch.Generator())
    with pytest.raises(ValueError, match=r"generators \[\], but the loaders have \['train_loader"):
        train(make_svi("momentum"), loader=other, checkpoint=path)
    with pytest.raises(ValueError, match="training loader is empty"):
        train(make_svi("momentum"), loader=[], checkpoint=path)
    svi = stepped(make_svi("momentum"))
    ibvi.save_checkpoint(path, svi)
    with pytest.raises(
        ValueError, match="was not written by fit: restore it with load_checkpoint"
    ):
        train(svi, checkpoint=path)
