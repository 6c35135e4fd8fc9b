"""What a network brings is left as it is: frozen parameters, padding rows, unfit kinds."""

import copy

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal, init_to_median
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
    init_to_network,
    predict,
)
from pyro_ibvi.mup import find_roles

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
Y = torch.ones(6, 1)


def mlp():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def build(net, covariance=None, likelihood=None, **kwargs):
    model = SupervisedModel(RandomModule(net, **kwargs), likelihood or Normal(0.5), num_data=20)
    return model, AutoMuPNormal(model, covariance=covariance or LowRank(2))


def train(model, guide, x=X, y=Y, *, optimizer=torch.optim.SGD, num_steps=3, **options):
    optim = MuPOptim(optimizer, {"lr": 1e-2, **options}, guide)
    svi = SVI(model, guide, optim, TraceExpectedLogLikelihood(reduction="mean"))
    return [svi.step(x, y) for _ in range(num_steps)]


# -- frozen parameters ---------------------------------------------------------------------------


class Words(nn.Module):
    """Word vectors that somebody else has trained."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding.from_pretrained(torch.randn(9, 4))
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(self.hidden(self.words(x).mean(1)).tanh())


def frozen_front():
    net = mlp()
    net[0].requires_grad_(False)
    return net


@pytest.mark.parametrize(
    "stochastic", ["all", "all weights", "input+output", "input+output weights"]
)
@pytest.mark.parametrize(
    ("make", "frozen"), [(Words, ["words.weight"]), (frozen_front, ["0.weight", "0.bias"])]
)
def test_training_leaves_frozen_parameters_alone(make, frozen, stochastic):
    net = make()
    x = torch.randint(0, 9, (6, 5)) if make is Words else X
    model, guide = build(net, stochastic=stochastic)
    assert not set(frozen) & set(model.net.stochastic)
    train(model, guide, x, optimizer=torch.optim.AdamW)
    for name in frozen:
        assert torch.equal(model.net.network.get_parameter(name), net.get_parameter(name))
    sites = poutine.trace(model).get_trace(x, Y).nodes
    assert not {f"net.{name}" for name in frozen} & sites.keys()


def test_names_are_explicit_and_kinds_are_not():
    net = frozen_front()
    net[4].requires_grad_(False)
    assert RandomModule(net, stochastic=["0.weight", "4.*"]).stochastic == [
        "0.weight", "4.weight", "4.bias",
    ]  # fmt: skip
    assert RandomModule(net, stochastic=lambda name: "0" in name).stochastic[0] == "0.weight"
    assert RandomModule(net, stochastic=nn.Linear).stochastic == ["2.weight", "2.bias"]


@pytest.mark.parametrize("stochastic", ["all", "last", nn.Linear, "input+output weights"])
def test_a_network_that_is_frozen_as_a_whole(stochastic):
    net = mlp().requires_grad_(False)
    message = r"chooses none .* random by name alone.*stochastic=\['4.bias'\].*requires_grad_\(\)"
    with pytest.raises(ValueError, match=message):
        RandomModule(net, stochastic=stochastic)
    model, guide = build(net, stochastic=["4.*"])
    train(model, guide)
    assert torch.equal(model.net.network[0].weight, net[0].weight)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_what_is_unfrozen_later_learns_at_its_own_rate(optimizer):
    def rates(model, guide):
        family = "sgd" if optimizer is torch.optim.SGD else "adam"
        named = {id(p): rate.factor for _, p, rate in guide.named_rates(family)}
        trained = {n: p for n, p in model.net.network.named_parameters() if p.requires_grad}
        return {name: named[id(p)] for name, p in trained.items()}

    expected = rates(*build(mlp(), stochastic="last"))
    model, guide = build(frozen_front(), stochastic="last")
    assert not {"0.weight", "0.bias"} & rates(model, guide).keys()
    model.net.network[0].requires_grad_(True)
    assert rates(model, guide) == expected
    assert expected["0.bias" if optimizer is torch.optim.SGD else "2.weight"] not in (0.0, 1.0)
    before = model.net.network[0].weight.clone()
    train(model, guide, optimizer=optimizer)
    assert not torch.equal(model.net.network[0].weight, before)


# -- padding rows --------------------------------------------------------------------------------

PADDING = 2
ROW = torch.arange(4.0)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(7, 4, padding_idx=PADDING), nn.Linear(4, 1)
        with torch.no_grad():
            self.table.weight[PADDING] = ROW

    def forward(self, x):
        return self.out(self.table(x).sum(1))


class Bag(Padded):
    def __init__(self):
        super().__init__()
        self.table = nn.EmbeddingBag(7, 4, padding_idx=PADDING, mode="sum")
        with torch.no_grad():
            self.table.weight[PADDING] = ROW

    def forward(self, x):
        return self.out(self.table(x))


TOKENS = torch.randint(0, 7, (6, 5), generator=torch.Generator().manual_seed(0))
TOKENS[:, -1] = PADDING


@pytest.mark.parametrize(
    "covariance",
    [Diagonal(), LowRank(3), Kronecker(2, 2), {"input": None, "*": Diagonal()}],
    ids=["diagonal", "low rank", "kronecker", "point"],
)
@pytest.mark.parametrize("start", [None, init_to_network, init_to_median])
@pytest.mark.parametrize("kind", [Padded, Bag])
def test_a_padding_row_keeps_its_value_and_gets_no_noise(kind, start, covariance):
    torch.manual_seed(0)
    net = RandomModule(kind(), stochastic="all")
    model = SupervisedModel(net, Normal(0.5), num_data=20)
    options = {} if start is None else {"init_loc_fn": start}
    guide = AutoMuPNormal(model, covariance=covariance, **options)
    before = guide.loc("net.table.weight").clone()
    train(model, guide, TOKENS, optimizer=torch.optim.AdamW, weight_decay=0.1)
    name = "net.table.weight"
    for table in (
        guide()[name],
        guide.rsample()[name],
        guide.median()[name],
        *guide.draw(3)[name],
    ):
        assert torch.equal(table[PADDING], ROW)
    assert not guide.scale(name)[PADDING].any()
    others = [i for i in range(7) if i != PADDING]
    assert not torch.equal(guide.loc(name)[others], before[others])
    if kind is Padded:
        # Every draw sees the row, and nothing but the head differs.
        draws = guide.draw(3)
        expected = 5 * (draws["net.out.weight"] @ ROW) + draws["net.out.bias"]
        values = model.net.with_draws(draws)
        torch.testing.assert_close(model.run(values, torch.full((1, 5), PADDING))[:, 0], expected)


def test_the_prior_and_other_guides_leave_the_padding_row_too():
    net = RandomModule(
        nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Flatten()), stochastic="all"
    )
    pads = torch.zeros(2, 1, dtype=torch.long)
    assert not net(pads).any()
    model = SupervisedModel(net, Normal(0.5), num_data=20)
    guide = AutoNormal(model)
    assert not predict(model, guide, pads, num_samples=3).outputs.any()
    assert net(pads + 1).abs().min() > 0


@pytest.mark.parametrize("kl_weight", [0.5, 1.0])
def test_a_padding_row_adds_nothing_that_is_not_finite_to_the_kl(kl_weight):
    model, guide = build(Padded(), Diagonal(), stochastic="all")
    loss = TraceExpectedLogLikelihood(kl_weight=kl_weight).differentiable_loss(
        model, guide, TOKENS, Y
    )
    loss.backward()
    assert all(p.grad.isfinite().all() for p in guide.parameters())


# -- priors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(torch.zeros(1, 8), torch.ones(1, 8)).to_event(2),
        dist.Laplace(0.0, 1.0).expand([1, 8]).to_event(2),
        dist.TransformedDistribution(
            dist.Normal(0.0, 1.0).expand([1, 8]),
            dist.transforms.AffineTransform(0.0, torch.ones(8)),
        ).to_event(2),
        0.3,
    ],
    ids=["normal", "laplace", "transformed", "number"],
)
def test_priors_follow_the_model_to_another_type(prior):
    model, _ = build(mlp(), Diagonal(), stochastic=["4.weight"], prior={"4.weight": prior})
    x, y = X.double(), Y.double()
    model.double()
    assert model.net.prior("4.weight").sample().dtype == torch.float64
    guide = AutoMuPNormal(model, covariance=Diagonal())
    losses = train(model, guide, x, y, num_steps=2)
    assert torch.tensor(losses).isfinite().all()
    assert model.float().net.prior("4.weight").sample().dtype == torch.float32
    if not isinstance(prior, float):
        assert prior.sample().dtype == torch.float32


# -- what cannot be ------------------------------------------------------------------------------


class ComplexLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.weight = nn.Linear(3, 1), nn.Parameter(torch.ones(3, dtype=torch.cfloat))

    def forward(self, x):
        return self.head((x * self.weight).abs())


def test_complex_weights_are_point_estimates_or_refused_in_words():
    from pyro_ibvi import WeightRole

    roles = {"weight": WeightRole.of("hidden", fan_in=1, fan_out=3)}
    with pytest.raises(ValueError, match=r"'weight' has dtype torch.complex64.*view_as_complex"):
        RandomModule(ComplexLayer(), stochastic="all", roles=roles)
    model, guide = build(ComplexLayer(), stochastic="last", roles=roles)
    assert torch.tensor(train(model, guide)).isfinite().all()


def scripted():
    with pytest.warns(DeprecationWarning, match="deprecated"):
        return torch.jit.script(mlp())


def with_a_scripted_part():
    net = mlp()
    with pytest.warns(DeprecationWarning, match="deprecated"):
        net[2] = torch.jit.script(net[2])
    return net


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (scripted, "TorchScript, and it is scripted: pass the network from before torch.jit"),
        (with_a_scripted_part, "TorchScript, and its '2' is scripted"),
        (lambda: RandomModule(mlp()), "RandomModule and random already: pass the plain network"),
        (lambda: nn.Sequential(RandomModule(mlp())), "its '0' is a RandomModule and random alr"),
        (lambda: build(mlp())[0], "it is a SupervisedModel and random already"),
        (lambda: mlp, "needs a torch.nn.Module, got function"),
        (lambda: nn.Linear, r"got the class Linear: write Linear\(\.\.\.\)"),
    ],
)
def test_what_is_no_network(make, message):
    with pytest.raises(TypeError, match=message):
        RandomModule(make())


def test_what_cannot_be_copied():
    net = mlp()
    net.log = open(__file__)  # noqa: SIM115
    try:
        with pytest.raises(
            TypeError, match=r"Sequential holds something that cannot be copied \("
        ):
            RandomModule(net)
    finally:
        net.log.close()


@pytest.mark.parametrize("given", ["mup", 3, MaximalUpdate])
def test_what_is_no_parametrization(given):
    with pytest.raises(TypeError, match=r"must be an object such as MaximalUpdate\(\), got"):
        RandomModule(mlp(), parametrization=given)


# -- what is wrapped -----------------------------------------------------------------------------


def weight_norm(layer):
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_network_with_the_old_weight_normalization(steps_before):
    convolution = weight_norm(nn.Conv1d(2, 16, 3, padding=1))
    net = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), weight_norm(nn.Linear(160, 1)))
    x = torch.randn(6, 2, 10)
    for _ in range(steps_before):
        net(x).sum().backward()
    random_net = RandomModule(net, stochastic="all weights")
    roles = {name: role.role for name, role in random_net.roles.items()}
    assert roles == {
        "0.bias": "bias", "0.weight_g": "gain", "0.weight_v": "input",
        "3.bias": "bias", "3.weight_g": "gain", "3.weight_v": "output",
    }  # fmt: skip
    assert random_net.roles["0.weight_v"].fans.fan_in == 6
    assert random_net.stochastic == ["0.weight_v", "3.weight_v"]
    model = SupervisedModel(random_net, Normal(0.5), num_data=20)
    start = {"init_loc_fn": init_to_network, "init_scale": 1e-6}
    guide = AutoMuPNormal(model, covariance=Diagonal(), **start)
    outputs = predict(model, guide, x, num_samples=3).outputs
    torch.testing.assert_close(outputs, net(x).detach().expand(3, 6, 1), rtol=1e-3, atol=1e-4)
    before = random_net.network[0].weight_g.clone()
    train(model, guide, x)
    assert not torch.equal(random_net.network[0].weight_g, before)
    assert isinstance(copy.deepcopy(model), SupervisedModel)


class TopDown(nn.Module):
    """Its layers are registered from the head to the stem."""

    def __init__(self, wrap=lambda part: part):
        super().__init__()
        self.head = nn.Linear(8, 1)
        self.body = wrap(Inner())

    def forward(self, x):
        return self.head(self.body(x))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Linear(8, 8), nn.Linear(3, 8)

    def forward(self, x):
        return self.second(self.first(x).tanh()).tanh()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.DataParallel(TopDown()),
        lambda: nn.DataParallel(nn.DataParallel(TopDown())),
        lambda: TopDown(nn.DataParallel),
        lambda: nn.DataParallel(TopDown(nn.DataParallel)),
    ],
)
def test_networks_on_several_devices_become_random_inside(make):
    net = make()
    before = [type(module) for module in net.modules()]
    with pytest.warns(UserWarning, match="inside of DataParallel on one device"):
        wrapped = RandomModule(net, stochastic="all")
    plain = RandomModule(TopDown(), stochastic="all")
    assert wrapped.roles == plain.roles
    assert plain.roles["body.second.weight"].role == "hidden"
    assert wrapped.stochastic == plain.stochastic
    assert [type(module) for module in net.modules()] == before
    found = {name.replace("module.", ""): role.role for name, role in find_roles(net).items()}
    assert found == {name: role.role for name, role in plain.roles.items()}


@pytest.mark.parametrize("first", ["model", "device"])
def test_a_default_device_changes_nothing(first):
    # A tensor that is made without a device would be one without numbers.
    net = Padded()

    def run():
        model, guide = pair or build(net, {"*": Diagonal()}, stochastic="all")
        losses = train(model, guide, TOKENS)
        generator = torch.Generator("cpu").manual_seed(0)
        outputs = predict(model, guide, TOKENS, num_samples=3, generator=generator).outputs
        return losses, outputs

    pair = build(net, {"*": Diagonal()}, stochastic="all") if first == "model" else None
    copied = copy.deepcopy(pair)
    torch.manual_seed(0)
    losses, outputs = run()
    pair = copied
    torch.set_default_device("meta")
    try:
        torch.manual_seed(0)
        found_losses, found_outputs = run()
    finally:
        torch.set_default_device(None)
    assert found_losses == losses
    assert torch.equal(found_outputs, outputs)


def test_a_plain_network_is_no_model_of_a_guide():
    with pytest.raises(TypeError, match=r"a plain Sequential, .*SupervisedModel\(RandomModule\("):
        AutoMuPNormal(mlp())
    with pytest.raises(RuntimeError, match=r"no latent variables: .*by RandomModule\(net\)"):
        AutoMuPNormal(Words()).initialize(TOKENS)
