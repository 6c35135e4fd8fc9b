"""Saved networks: the same predictions elsewhere, and a sentence for every file that is none."""

import json
import random
import subprocess
import sys

import numpy as np
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.front import files
from pyro_ibvi.front.choices import describe, restore
from pyro_ibvi.front.files import state_of
from pyro_ibvi.models import Standardized
from tests.front.conftest import make_net
from tests.full_disk import full_disk
from tests.optimizers import MUON, needs_muon

ELSEWHERE = """
import sys, torch, pyro_ibvi as ibvi
from tests.front.conftest import make_net
torch.set_num_threads(1)
bnn = ibvi.load(sys.argv[1], make_net())
x = torch.load(sys.argv[2])
torch.save(bnn.predict(x, seed=5).outputs, sys.argv[2])
"""


def test_another_process_predicts_the_same_numbers(trained, data, tmp_path):
    trained.save(tmp_path / "net.ibvi")
    torch.save(data[0], tmp_path / "x.pt")
    command = [sys.executable, "-c", ELSEWHERE, tmp_path / "net.ibvi", tmp_path / "x.pt"]
    subprocess.run(command, check=True)
    assert torch.equal(torch.load(tmp_path / "x.pt"), trained.predict(data[0], seed=5).outputs)


CHOICES = {
    "all random, Kronecker, muP from a base": {
        "stochastic": "all",
        "parametrization": ibvi.MaximalUpdate(base=make_net(8)),
        "covariance": {
            "net.3.bias": None,
            "input": ibvi.Kronecker(2, 3),
            "output": ibvi.LowRank(2),
        },
    },
    "numbers of NumPy's": {"covariance": ibvi.LowRank(np.int64(3)), "init_scale": np.float32(1)},
    "relative noise": {"covariance": ibvi.Multiplicative(np.float32(0.3), rate=np.float64(0.1))},
    "standard, mean-field": {
        "parametrization": ibvi.Standard(),
        "covariance": ibvi.Diagonal(),
        "init_scale": 0.3,
    },
}


@pytest.mark.parametrize("choices", CHOICES)
def test_the_choices_come_back(choices, data, tmp_path):
    bnn = ibvi.VariationalNetwork(make_net(), ibvi.Normal(0.123456789), **CHOICES[choices])
    bnn.fit(*data, num_epochs=1, progress=False)
    bnn.save(tmp_path / "net.ibvi")
    again = ibvi.load(tmp_path / "net.ibvi", make_net())
    assert torch.equal(
        again.predict(data[0], seed=1).outputs, bnn.predict(data[0], seed=1).outputs
    )
    assert str(ibvi.roles(again.model)) == str(ibvi.roles(bnn.model))
    assert [layer.covariance for layer in again.guide.layers] == [
        layer.covariance for layer in bnn.guide.layers
    ]
    rates = [[rate for *_, rate in b.guide.named_rates("adam")] for b in (again, bnn)]
    assert rates[0] == rates[1]
    assert again.model.num_data == 40
    assert again.model.likelihood.arguments() == bnn.model.likelihood.arguments()
    again.fit(*data, num_epochs=1, progress=False)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x):
        return self.out(self.table(x)) / 4


def test_double_precision_is_kept_whatever_the_default(tmp_path):
    """Also of what the likelihood learns and holds, to digits that single precision has not."""
    x = torch.randn(50, 2, dtype=torch.float64)
    y = 1e6 + x[:, :1] / 3
    likelihood = Standardized.of(ibvi.Normal(0.3, learn_scale=True), y)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        bnn = ibvi.VariationalNetwork(make_net().double(), likelihood)
        bnn.fit(x, y, num_epochs=1, progress=False)
    finally:
        torch.set_default_dtype(default)
    assert bnn.likelihood.loc.item() == pytest.approx(y.mean().item(), rel=1e-14)
    bnn.save(tmp_path / "net.ibvi")
    again = ibvi.load(tmp_path / "net.ibvi", make_net().double())
    for found in (bnn, again):
        state = state_of(found.model, found.guide)
        kinds = {v.dtype for v in state.values() if v.is_floating_point()}
        assert kinds == {torch.float64}
        assert torch.equal(found.predict(x, seed=0).mean, bnn.predict(x, seed=0).mean)
    half = ibvi.VariationalNetwork(make_net().bfloat16(), likelihood)
    assert half.likelihood.loc.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*read-out")
def test_tied_weights(tmp_path):
    bnn = ibvi.VariationalNetwork(Tied(), ibvi.Categorical(), stochastic="all")
    bnn.save(tmp_path / "net.ibvi")
    x = torch.arange(5)
    again = ibvi.load(tmp_path / "net.ibvi", Tied())
    assert torch.equal(again.predict(x, seed=1).mean, bnn.predict(x, seed=1).mean)


@pytest.mark.parametrize("draws", [None, "batch", 4])
def test_a_loaded_network_draws_as_often_in_a_step(draws, tmp_path):
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    bnn = ibvi.VariationalNetwork(net, ibvi.Categorical(), draws=draws)
    bnn.save(tmp_path / "net.ibvi")
    again = ibvi.load(tmp_path / "net.ibvi", net)
    assert again.loss.draws == bnn.loss.draws == (draws or "datum")


TRAINED_BY = {
    "Adam": {"optimizer": torch.optim.Adam, "lr": 0.003, "optim_args": {"betas": (0.8, 0.95)}},
    "Muon": {"optimizer": MUON, "optim_args": {"adamw": {"lr": 0.002}}},
    "bounds": {"lr": np.float64(0.03), "clip_norm": np.float32(3.0), "scheduler": "cosine"},
    "constant": {"likelihood": ibvi.Normal(0.3), "scheduler": "constant"},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_muon] * (name == "Muon")) for name in TRAINED_BY]
)
def test_a_loaded_network_goes_on_by_its_optimizer(name, tmp_path):
    choices = {"likelihood": ibvi.Categorical(), **TRAINED_BY[name]}
    x, y = torch.randn(40, 2), torch.randint(0, 3, (40,))
    y = y if isinstance(choices["likelihood"], ibvi.Categorical) else torch.randn(40, 3)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    bnn = ibvi.VariationalNetwork(net, **choices)
    bnn.save(tmp_path / "net.ibvi")
    again, means = ibvi.load(tmp_path / "net.ibvi", net), []
    for one in (bnn, again):
        torch.manual_seed(1)
        one.fit(x, y, num_epochs=3, progress=False)
        means.append(one.predict(x, seed=0).mean)
        assert one.optim.lr == bnn.optim.lr
    assert torch.equal(*means)


def test_the_temperature_is_part_of_it(trained, data, tmp_path):
    x, y = data
    plain = trained.evaluate(x, y, num_samples=4, seed=1)
    trained.temperature = 2.5
    trained.save(tmp_path / "net.ibvi")
    again = ibvi.load(tmp_path / "net.ibvi", make_net())
    assert again.evaluate(x, y, num_samples=4, seed=1)["nll"] != plain["nll"]
    expected = trained.predict(x, num_samples=4, seed=1)
    for found in (
        again.predict(x, num_samples=4, seed=1).variance,
        again.frozen_draws(4, seed=1)(x)[1],
    ):
        torch.testing.assert_close(found, expected.variance, rtol=1e-6, atol=1e-6)


def test_loading_touches_neither_the_network_nor_random_states(trained, tmp_path):
    trained.save(tmp_path / "net.ibvi")
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    ibvi.load(tmp_path / "net.ibvi", net)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_every_flipped_byte_is_found(trained, tmp_path):
    path = tmp_path / "net.ibvi"
    trained.save(path)
    content = path.read_bytes()
    generator = random.Random(0)
    places = [generator.randrange(len(content)) for _ in range(40)]
    header_size = int.from_bytes(content[:8], "little")
    places += [generator.randrange(8 + header_size) for _ in range(40)] + list(range(8))
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(
            ValueError, match=r"net\.ibvi (is damaged|cannot be read|is a file of)"
        ):
            ibvi.load(path, make_net())


def rewrite(path, change):
    """Writes a file again with another header and a digest that fits."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["pyro_ibvi"])
    tensors = safetensors.torch.load_file(path)
    change(header)
    del header["digest"]
    header["digest"] = files.digest([header, tensors])
    safetensors.torch.save_file(tensors, path, {"pyro_ibvi": json.dumps(header)})


def newer(path):
    rewrite(path, lambda header: header.update(format=99))


def other_choice(path):
    rewrite(path, lambda header: header["choices"]["likelihood"].update({"class": "Cauchy"}))


def other_argument(path):
    rewrite(path, lambda header: header["choices"]["parametrization"].update(temper=2))


def state_dict(path):
    torch.save(make_net().state_dict(), path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def tensors_alone(path):
    safetensors.torch.save_file({"w": torch.ones(2)}, path)


WRONG = {
    newer: "by a newer version, .* in the format 99",
    other_choice: "choices that this version .* cannot make: Cauchy is no class",
    other_argument: "cannot make: MaximalUpdate has no temper in this version",
    state_dict: "it is a file of torch.save, such as a checkpoint",
    cut: "it is damaged, or no saved network",
    tensors_alone: "a file of tensors, but not one that VariationalNetwork.save wrote",
    lambda path: path.write_bytes(b""): "it is empty",
    lambda path: path.write_text("hello"): "it is damaged, or no saved network",
}


@pytest.mark.parametrize("make", WRONG)
def test_a_wrong_file_gets_a_sentence(make, trained, tmp_path):
    path = tmp_path / "net.ibvi"
    trained.save(path)
    make(path)
    with pytest.raises(ValueError, match=WRONG[make]):
        ibvi.load(path, make_net())


def test_another_network_gets_a_sentence(trained, tmp_path):
    path = tmp_path / "net.ibvi"
    trained.save(path)
    with pytest.raises(ValueError, match=r"\['0.weight', '0.bias'\] have no shape yet: run"):
        ibvi.load(path, nn.Sequential(nn.LazyLinear(16), nn.Linear(16, 1)))
    for net, message in (
        (make_net(17), r"0\.weight is float32 of shape \(16, 2\) there and .*\(17, 2\) here"),
        (make_net().double(), r"0\.weight is float32 .* there and float64"),
        (nn.Sequential(nn.Linear(2, 16)), r"it has 1\.weight, which is not here"),
        (nn.Sequential(make_net(), nn.Linear(1, 1)), r"it lacks 0\.0\.weight"),
    ):
        with pytest.raises(ValueError, match=rf"is of another network: .*{message}"):
            ibvi.load(path, net)
    for net in (nn.Linear, "net", trained.net):
        with pytest.raises(TypeError, match="Loading needs the plain network"):
            ibvi.load(path, net)
    with pytest.raises(FileNotFoundError, match="There is no saved network"):
        ibvi.load(tmp_path / "other", make_net())
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        trained.save(tmp_path / "nowhere" / "net.ibvi")


class Shifted(ibvi.Normal):
    """A likelihood of the user's own."""


def test_a_likelihood_of_ones_own_is_given_again(data, tmp_path):
    bnn = ibvi.VariationalNetwork(make_net(), Shifted(0.3))
    bnn.save(tmp_path / "net.ibvi")
    with pytest.raises(TypeError, match=r"a file holds no code: .* likelihood=Shifted\(\.\.\.\)"):
        ibvi.load(tmp_path / "net.ibvi", make_net())
    again = ibvi.load(tmp_path / "net.ibvi", make_net(), likelihood=Shifted(0.3))
    assert torch.equal(again.predict(data[0], seed=1).mean, bnn.predict(data[0], seed=1).mean)


def first_of(returned):
    return returned[0]


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(2, 1)

    def forward(self, x):
        return self.out(x), x


def test_functions_and_distributions_are_given_again(data, tmp_path):
    prior = {"out.weight": dist.LogNormal(torch.zeros(1, 2), 1.0).to_event(2)}
    net = ibvi.RandomModule(Several(), prior=prior)
    bnn = ibvi.VariationalNetwork(net, ibvi.Normal(0.3), output=first_of)
    path = tmp_path / "net.ibvi"
    bnn.save(path)
    with pytest.raises(
        TypeError, match=r"output=first_of\(\.\.\.\), prior={'out.weight': LogNormal\(\.\.\.\)}"
    ):
        ibvi.load(path, Several())
    again = ibvi.load(path, Several(), output=first_of, prior=prior)
    assert torch.equal(again.predict(data[0], seed=1).mean, bnn.predict(data[0], seed=1).mean)
    assert (again.guide.median()["net.out.weight"] > 0).all()


def test_batches_of_several_parts(data, tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 1)

        def forward(self, one, other):
            return {"sum": self.b(torch.tanh(self.a(one + other))), "aside": one}

    x, y = data
    parts = {"one": x, "other": x + 1, "size": y}
    bnn = ibvi.VariationalNetwork(Two(), ibvi.Normal(0.3), output="sum", target="size", draws=2)
    bnn.fit(parts, num_epochs=1, batch_size=10, progress=False)
    path = tmp_path / "net.ibvi"
    bnn.save(path)
    scores = bnn.evaluate(parts, num_samples=4, seed=1)
    assert ibvi.load(path, Two()).evaluate(parts, num_samples=4, seed=1) == scores


LIKELIHOODS = [
    ibvi.models.Categorical(class_dim=1, ignore_index=-1, weight=[1.0, 2.0, 3.0]),
    ibvi.models.HeteroscedasticNormal(0.02),
    ibvi.models.Masked(ibvi.Normal(0.1)),
    ibvi.models.Standardized(ibvi.Normal(0.1), torch.tensor([1.0, 2.0]), 3.0),
    ibvi.models.MultiTask({"kind": (ibvi.Categorical(), 3), "size": (ibvi.Normal(0.2), 1)}),
    ibvi.Bernoulli(),
    ibvi.Poisson(),
]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda one: type(one).__name__)
def test_every_likelihood_comes_back(likelihood):
    again = restore(json.loads(json.dumps(describe(likelihood))))
    assert type(again) is type(likelihood)
    assert describe(again) == describe(likelihood)


def test_a_full_disk_keeps_the_file_that_was_there(trained, tmp_path):
    path = tmp_path / "net.ibvi"
    trained.save(path)
    before = path.read_bytes()
    with full_disk(len(before) - 1), pytest.raises(OSError, match=r"net\.ibvi could not be wri"):
        trained.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_with_other_activations_is_told(tmp_path):
    def make(*ends):
        return nn.Sequential(nn.Linear(2, 8), *ends, nn.Linear(8, 1))

    path = tmp_path / "net.ibvi"
    bnn = ibvi.VariationalNetwork(make(nn.ReLU(), nn.Dropout()), ibvi.Normal(0.1))
    bnn.save(path)
    x = torch.randn(5, 2)
    same = ibvi.load(path, make(nn.ReLU(inplace=True), nn.Identity()))  # by the same predictions
    assert torch.equal(same.predict(x, seed=0).mean, bnn.predict(x, seed=0).mean)
    with pytest.warns(UserWarning, match=r"'1' is ReLU there and Tanh here\. Pass a network as"):
        other = ibvi.load(path, make(nn.Tanh(), nn.Dropout()))
    assert not torch.allclose(other.predict(x, seed=0).mean, bnn.predict(x, seed=0).mean)
