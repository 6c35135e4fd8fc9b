"""Whoever takes random numbers for a look gives all generators back, those of devices too."""

import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.diagnostics.book import digest_of_data
from pyro_ibvi.mup.forward_pass import record_steps, trace_steps

PACKAGE = Path(ibvi.__file__).parent
X, Y = torch.randn(6, 3), torch.randint(3, (6,))


class Device:
    """The generator of a device that this machine need not have."""

    def __init__(self):
        self.state, self.num_seeds = torch.tensor([7], dtype=torch.uint8), 0

    def seed_all(self, seed):
        self.num_seeds += 1
        self.state = torch.tensor([seed % 5 + 100], dtype=torch.uint8)

    def set_state(self, state, device):
        self.state = state


@pytest.fixture
def device(monkeypatch):
    made = Device()
    for name, value in {
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "device_count": lambda: 1,
        "get_rng_state": lambda device: made.state,
        "get_rng_state_all": lambda: [made.state],
        "set_rng_state": made.set_state,
        "manual_seed_all": made.seed_all,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def noisy():
    """A network whose pass draws on the generators of devices."""

    class Noise(nn.Module):
        def forward(self, x):
            torch.cuda.manual_seed_all(3)  # any other state
            return x + torch.randn(3)

    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3), Noise())


def look_at_noise():
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    random = ibvi.RandomModule(net, stochastic="dense weights")
    model = ibvi.SupervisedModel(random, ibvi.Categorical())
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.Multiplicative(0.1))
    loss = ibvi.TraceExpectedLogLikelihood(draws="datum")
    step = loss(model, guide)
    step(X, Y)  # by traces, which show that the next may go without them
    return lambda: step(X, Y)


def start_at_a_prior_of_draws():
    class Prior(dist.Gamma):
        def rsample(self, sample_shape=()):
            if sample_shape:  # many, to see how wide it is
                torch.cuda.manual_seed_all(3)
            shape = self.shape(sample_shape)
            # None of the generator of the CPU.
            return torch.linspace(0.5, 2.0, shape.numel()).reshape(shape)

    return lambda: ibvi.AutoMuPNormal(lambda: pyro.sample("scale", Prior(2.0, 1.0)))


def record_a_pass():
    net = noisy()
    return lambda: record_steps(net, X)


def trace_a_pass():
    net = noisy()
    return lambda: list(trace_steps(net))


def admit_a_lazy_network():
    net = nn.Sequential(nn.LazyLinear(3), *noisy())
    return lambda: ibvi.RandomModule(net, example_input=X)


LOOKS = {
    "alignment": look_at_noise,
    "start": start_at_a_prior_of_draws,
    "admission": admit_a_lazy_network,
    "recorded": record_a_pass,
    "traced": trace_a_pass,
    "digest": lambda: lambda: digest_of_data({"train_loader": [(X, Y)]}),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_look_gives_the_numbers_of_devices_back(device, look):
    run = look()
    device.state = torch.tensor([7], dtype=torch.uint8)
    before, device.num_seeds = torch.get_rng_state(), 0
    run()
    assert device.num_seeds, "it took another state in between"
    assert device.state.item() == 7
    if look is not look_at_noise:  # which is a step with draws of its own
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fails", [False, True])
def test_devices_that_start_within_have_the_callers_seed_afterwards(monkeypatch, fails):
    seeds = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(11)
    seeds.clear()
    try:
        with own_random_numbers(5):
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert seeds == [5, 11]
    assert torch.initial_seed() == 11


def test_generators_are_forked_in_one_place():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"fork_rng|\b(g|s)et_rng_state", path.read_text())
    }
    assert found == {"_util/random_state.py", "arviz/running.py"}  # the latter reads entropy alone
