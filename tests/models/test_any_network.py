"""Random small networks: every route gives the same numbers, and the network stays as it is."""

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyro.infer import SVI
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Diagonal,
    Kronecker,
    LowRank,
    MaximalUpdate,
    MuPOptim,
    Normal,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
    predict,
)

BATCH, TIMES, FEATURES = 5, 4, 3
generator = torch.Generator().manual_seed(0)
NUMBERS = torch.randn(BATCH, TIMES, FEATURES, generator=generator)
TOKENS = torch.randint(0, 7, (BATCH, TIMES), generator=generator)
Y = torch.randn(BATCH, 2, generator=generator)
NORMS = {
    "none": lambda width: nn.Identity(),
    "batch": nn.BatchNorm1d,
    "layer": lambda width: nn.GroupNorm(1, width),
    "group": lambda width: nn.GroupNorm(2, width),
}


class ByTraces(TraceExpectedLogLikelihood):
    """The same objective; the direct route is not for subclasses."""


class Network(nn.Module):
    """From numbers or tokens, through a body of some kind, to what the output is wrapped in."""

    def __init__(self, front, body, norm, dropout, width, wrap):
        super().__init__()
        # The head comes first, so that the order of registration tells nothing.
        self.head = nn.Linear(width, 2)
        self.front = {
            "numbers": lambda: nn.Linear(FEATURES, width),
            "tokens": lambda: nn.Embedding(7, width),
            "padded tokens": lambda: nn.Embedding(7, width, padding_idx=2),
        }[front]()
        self.kind, self.wrap = body, wrap
        self.norm, self.dropout = NORMS[norm](width), nn.Dropout(dropout)
        self.body = {
            "mlp": lambda: nn.Sequential(
                nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
            ),
            "convolution": lambda: nn.Conv1d(width, width, 3, padding=1),
            "gru": lambda: nn.GRU(width, width, batch_first=True),
            "lstm": lambda: nn.LSTM(width, width // 2, batch_first=True, bidirectional=True),
            "attention": lambda: nn.MultiheadAttention(width, 2, batch_first=True),
        }[body]()

    def forward(self, x):
        h = self.front(x)
        if self.kind == "convolution":
            h = self.body(h.transpose(1, 2)).transpose(1, 2)
        elif self.kind == "attention":
            h = h + self.body(h, h, h, need_weights=False)[0]
        else:
            h = self.body(h)
            h = h[0] if self.kind in ("gru", "lstm") else h
        h = self.dropout(self.norm(h.mean(1)).tanh())
        out = self.head(h)
        return {"tensor": out, "tuple": (out, h), "dict": {"out": out, "h": h}}[self.wrap]


networks = st.fixed_dictionaries(
    {
        "front": st.sampled_from(["numbers", "tokens", "padded tokens"]),
        "body": st.sampled_from(["mlp", "convolution", "gru", "lstm", "attention"]),
        "norm": st.sampled_from(list(NORMS)),
        "dropout": st.sampled_from([0.0, 0.3]),
        "width": st.sampled_from([4, 6]),
        "wrap": st.sampled_from(["tensor", "tuple", "dict"]),
    }
)
choices = st.sampled_from(["all", "all weights", "input+output weights", "last"])
covariances = st.sampled_from([Diagonal(), LowRank(2), Kronecker(2, 2)])
frozen_parts = st.sampled_from([None, "front", "body", "norm"])
random_networks = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def build(network, frozen, stochastic, covariance):
    torch.manual_seed(0)
    net = Network(**network)
    if frozen is not None:
        getattr(net, frozen).requires_grad_(False)
    random_net = RandomModule(
        net, stochastic=stochastic, parametrization=MaximalUpdate(attention="1/d")
    )
    output = {"tensor": None, "tuple": 0, "dict": "out"}[network["wrap"]]
    model = SupervisedModel(random_net, Normal(0.5, learn_scale=True), num_data=20, output=output)
    guide = AutoMuPNormal(model, covariance=covariance)
    return net, model, guide, NUMBERS if network["front"] == "numbers" else TOKENS


def train(model, guide, x, objective):
    optim = MuPOptim(torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}, guide)
    svi = SVI(model, guide, optim, objective(reduction="mean"))
    torch.manual_seed(1)
    losses = [svi.step(x, Y) for _ in range(3)]
    return losses, copy.deepcopy({**model.state_dict(), **guide.state_dict()})


def outputs(model, guide, x, seed, **options):
    generator = torch.Generator().manual_seed(seed)
    options = {"num_samples": 3, "generator": generator, **options}
    return predict(model, guide, x, **options).outputs


def facts(net):
    modules = {
        n: (m.training, sorted(m.__dict__), len(m._forward_hooks)) for n, m in net.named_modules()
    }
    grads = {n: (p.requires_grad, p.grad is None) for n, p in net.named_parameters()}
    return modules, grads


@random_networks
@given(network=networks, frozen=frozen_parts, stochastic=choices, covariance=covariances)
def test_any_network(network, frozen, stochastic, covariance):
    case = network, frozen, stochastic, covariance
    net, model, guide, x = build(*case)
    values, before = copy.deepcopy(net.state_dict()), facts(net)

    # The direct route is the traced one, to the last digit.
    losses, state = train(model, guide, x, TraceExpectedLogLikelihood)
    _, traced_model, traced_guide, _ = build(*case)
    traced_losses, traced_state = train(traced_model, traced_guide, x, ByTraces)
    assert losses == traced_losses
    assert all(torch.equal(value, traced_state[name]) for name, value in state.items())

    # What was frozen is what it was; what was passed in is untouched.
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            assert name not in model.net.stochastic
            assert torch.equal(model.net.network.get_parameter(name), parameter)
    assert facts(net) == before
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())

    # All draws at once are one after the other, whatever runs at a time, and in threads too.
    alone = [outputs(model, guide, x, seed) for seed in range(4)]
    one_by_one = outputs(model, guide, x, 0, chunk_size=3, batch_size=2)
    torch.testing.assert_close(one_by_one, alone[0], rtol=1e-4, atol=1e-5)
    draws = model.net.with_draws(guide.draw(3))
    model.eval()
    together = model.run(draws, x)
    for i in range(3):
        single = {n: v[i] if n in model.net.stochastic else v for n, v in draws.items()}
        torch.testing.assert_close(model.run(single, x), together[i], rtol=1e-4, atol=1e-5)
    model.train()
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda seed: outputs(model, guide, x, seed), range(4)))
    assert all(torch.equal(*pair) for pair in zip(alone, threaded, strict=True))

    # A new model and guide with the same state predict the same.
    _, new_model, new_guide, _ = build(*case)
    new_model.load_state_dict(model.state_dict())
    new_guide.load_state_dict(guide.state_dict())
    assert torch.equal(outputs(new_model, new_guide, x, 0), alone[0])
