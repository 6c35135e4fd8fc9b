"""Damaged checkpoints and those of other trainings: a sentence each, and nothing is changed."""

import copy
import random

import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi
from tests.training.killable import differences, make_svi, summary
from tests.training.test_checkpoints import X, Y, stepped


def state(svi):
    """Everything that a load could change, random states included."""
    return {
        **summary(svi, ibvi.training.History()),
        "loss": {k: v for k, v in vars(svi.loss.__self__).items() if isinstance(v, (int, float))},
    }


def refused(path, make, match, *args):
    """Loads into a training and into its twin that is left alone, and compares the two."""
    svi, twin = make(), make()
    random_state = torch.get_rng_state()
    with pytest.raises(ValueError, match=match):
        ibvi.load_checkpoint(path, svi, *args)
    assert torch.equal(torch.get_rng_state(), random_state)
    found = state(svi)
    torch.set_rng_state(random_state)
    expected = state(twin)
    assert differences(expected["modules"], found["modules"]) == []
    assert expected["loss"] == found["loss"]
    assert not any(p.grad is not None for p in svi.guide.parameters())


def test_no_flipped_byte_goes_unseen(tmp_path):
    """It is refused, or it is one that no value depends on, such as the date of a part."""
    path = tmp_path / "run.pt"
    svi = stepped(make_svi("momentum"))
    ibvi.save_checkpoint(path, svi, num_steps=2)
    content, good = path.read_bytes(), torch.load(path, weights_only=True)
    generator, other = random.Random(0), make_svi("momentum", seed=9)
    before = copy.deepcopy(other.guide.state_dict())
    num_refused = 0
    for _ in range(60):
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            ibvi.load_checkpoint(path, other)
        except ValueError as error:
            assert "damaged or no checkpoint" in str(error) or "reads" in str(error)  # noqa: PT017
            assert differences(before, other.guide.state_dict()) == []
            num_refused += 1
        else:
            found = torch.load(path, weights_only=True)
            assert differences(good, found) == []
            other.guide.load_state_dict(before)
    assert num_refused > 0


def rewritten(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


DAMAGE = {
    "a tensor": lambda c: c["modules"]["guide"]["locs.net.0.weight"].add_(1e-6),
    "a number": lambda c: c["optimizer"]["state"]["optimizer"]["param_groups"][0].update(lr=1.0),
    "a name": lambda c: c["trained"].reverse(),
    "the extra part": lambda c: c["extra"].update(num_steps=3),
    "a missing part": lambda c: c.pop("optimizer"),
    "no digest": lambda c: c.pop("digest"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_changed_content_is_found(tmp_path, what):
    path = tmp_path / "run.pt"
    ibvi.save_checkpoint(path, stepped(make_svi("momentum")), num_steps=2)
    rewritten(path, DAMAGE[what])
    refused(path, lambda: make_svi("momentum", seed=9), "its content has another digest")


FILES = {
    "a state_dict": (
        lambda path: torch.save(nn.Linear(1, 1).state_dict(), path),
        "got a state_dict, which load_state_dict of its module takes",
    ),
    "another dictionary": (
        lambda path: torch.save({"epoch": 3, "model": {}}, path),
        "a dictionary with the keys 'epoch', 'model'",
    ),
    "a list": (lambda path: torch.save([1], path), "got a list"),
    "a saved network": (
        lambda path: safetensors.torch.save_file({"w": torch.ones(2)}, path),
        r"cannot be read: .* by ibvi\.load",
    ),
    "a pickle with code": (lambda path: torch.save(nn.Linear(1, 1), path), "cannot be read"),
    "an older version": (
        lambda path: torch.save({"format": "pyro_ibvi checkpoint, version 1"}, path),
        "a checkpoint of version 1, and this version of the package reads version 2",
    ),
    "a newer version": (
        lambda path: torch.save({"format": "pyro_ibvi checkpoint, version 9"}, path),
        "a checkpoint of version 9",
    ),
    "text": (lambda path: path.write_text("epoch 3"), "is damaged or no checkpoint"),
    "nothing": (lambda path: path.write_bytes(b""), "is damaged or no checkpoint"),
    "a folder": (lambda path: path.mkdir(), "is a folder: name the checkpoint in it"),
}


@pytest.mark.parametrize("what", FILES)
def test_another_file_is_named(tmp_path, what):
    write, match = FILES[what]
    write(tmp_path / "run.pt")
    refused(tmp_path / "run.pt", lambda: make_svi("momentum"), match)
    with pytest.raises(TypeError, match="Expected the path of a checkpoint, got True"):
        ibvi.load_checkpoint(True, make_svi("momentum"))


def wider(seed=0):
    return make_svi("momentum", seed, width=7)


def without_momentum():
    svi = make_svi("momentum")
    svi.optim = pyro.optim.SGD({"lr": 0.1})
    return svi


OTHERS = {
    "width": (wider, "of another model"),
    "optimizer": (lambda: make_svi("adamw"), "of the optimizer MuPOptim"),
    "kind of optimizer": (without_momentum, r"this one is PyroOptim\(SGD\)"),
    "scheduler": (lambda: make_svi("momentum", scheduler=None), "of the scheduler StepLR"),
}


@pytest.mark.parametrize("args", [(), (X, Y)], ids=["without a batch", "with a batch"])
@pytest.mark.parametrize("what", OTHERS)
def test_a_load_that_fails_changes_nothing(tmp_path, what, args):
    make, match = OTHERS[what]
    ibvi.save_checkpoint(tmp_path / "run.pt", stepped(make_svi("momentum")))
    refused(tmp_path / "run.pt", make, match, *args)


def test_parameters_that_a_failed_load_made_are_gone(tmp_path):
    def model(x, y):
        scale = pyro.param("scale of a failed load", torch.tensor(1.0))
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(loc, scale), obs=y.squeeze(-1))

    ibvi.save_checkpoint(tmp_path / "run.pt", stepped(make_svi("momentum")))
    guide = ibvi.AutoMuPNormal(model)
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood())
    with pytest.raises(ValueError, match="of another model"):
        ibvi.load_checkpoint(tmp_path / "run.pt", svi, X, Y)
    assert "scale of a failed load" not in pyro.get_param_store()
