"""What of a batch is what; which batches a network's output has; what it returns."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi
from tests.layouts import Bags, Graphs, Packed, TimeFirst

#: Roles are not the subject here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The forward pass of"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


class ByTraces(ibvi.TraceExpectedLogLikelihood):
    """A subclass takes the route by traces."""


def make(net, *, likelihood=None, num_data=60, **options):
    torch.manual_seed(0)
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(net), likelihood or ibvi.Normal(0.5), num_data=num_data, **options
    )
    return model, ibvi.AutoMuPNormal(model)


def step(model, guide, *args, objective=ibvi.TraceExpectedLogLikelihood, **kwargs):
    """The loss per datum of the second step, which goes without traces where it may."""
    loss_fn = objective(reduction="mean")(model, guide)
    for _ in range(2):
        torch.manual_seed(1)
        loss = loss_fn(*args, **kwargs)
    return loss


def expected(model, guide, y, *x, pick=lambda out: out, **named):
    """The mean negative log-density for the draw that seed 1 gives, by hand."""
    torch.manual_seed(1)
    draw = {k.removeprefix("net."): v for k, v in guide.rsample().items()}
    output = pick(torch.func.functional_call(model.net.network, draw, x, named))
    return -torch.distributions.Normal(output, 0.5).log_prob(y).sum() / len(y)


LAYOUTS = {
    "graphs": (Graphs, (torch.randn(12, 3), torch.arange(12) // 4), 3),
    "one graph a step": (Graphs, (torch.randn(12, 3), torch.zeros(12).long()), 1),
    "time first": (TimeFirst, torch.randn(20, 4, 3), 4),
    "more time than data": (TimeFirst, torch.randn(80, 4, 3), 4),
    "bags": (Bags, (torch.randint(0, 30, (50,)), torch.tensor([0, 10, 25])), 3),
}


@pytest.mark.parametrize("objective", [ibvi.TraceExpectedLogLikelihood, ByTraces])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_batch_is_what_comes_out(name, objective):
    kind, x, size = LAYOUTS[name]
    model, guide = make(kind())
    y = torch.randn(size, 1)
    args = x if isinstance(x, tuple) else (x,)
    loss = step(model, guide, x, y, objective=objective)
    torch.testing.assert_close(loss, expected(model, guide, y, *args))
    total = objective()(model, guide)
    for _ in range(2):
        torch.manual_seed(1)
        scaled = total(x, y)
    torch.testing.assert_close(scaled, 60 * loss)  # num_data, whatever lies in front
    with pytest.raises(ValueError, match=r"target has shape \(7, 1\), but for an output of shape"):
        total(x, torch.randn(7, 1))


def test_time_in_front_of_the_output_hears_of_output():
    class All(TimeFirst):
        def forward(self, x):
            return self.o(self.a(x)[0])

    x, y = torch.randn(20, 4, 3), torch.randn(4, 20, 1)
    model, guide = make(All())
    with (
        pytest.warns(UserWarning, match=r"times in front, give SupervisedModel output="),
        pytest.raises(ValueError, match=r"target has shape \(4, 20, 1\).*output of shape \(20, 4"),
    ):
        step(model, guide, x, y)
    model, guide = make(All(), output=lambda out: out.transpose(0, 1))
    pick = model.picker.choice
    torch.testing.assert_close(step(model, guide, x, y), expected(model, guide, y, x, pick=pick))


def test_validation_weighs_batches_by_data_and_not_by_nodes():
    torch.manual_seed(0)
    graphs = [
        ((torch.randn(40, 3), torch.arange(40) // 20), torch.randn(2, 1)),
        ((torch.randn(6, 3), torch.arange(6) // 1), torch.randn(6, 1)),
    ]
    model, _ = make(Graphs())
    guide = ibvi.AutoMuPNormal(model, covariance={"*": None})  # no draw differs from another
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-9}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    history = ibvi.fit(svi, graphs, 1, valid_loader=graphs, progress=False)
    losses = [svi.evaluate_loss(*batch) for batch in graphs]
    expected = (2 * losses[0] + 6 * losses[1]) / 8
    assert history.valid_loss[-1] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - (40 * losses[0] + 6 * losses[1]) / 46) > 1e-3


class Three(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.o = nn.Linear(3, 8), nn.Linear(2, 8), nn.Linear(8, 1)

    def forward(self, a, b, c):
        return self.o((self.a(a) + self.b(b)).relu()) + c


A, B, C, Y = torch.randn(8, 3), torch.randn(8, 2), torch.randn(8, 1), torch.randn(8, 1)
MAPPING = {"a": A, "b": B, "c": C, "labels": Y}
RENAMED = {"first": A, "second": B, "third": C, "score": Y, "index": torch.arange(8)}


@pytest.mark.parametrize(
    ("options", "args", "kwargs"),
    [
        ({}, ((A, B, C), Y), {}),
        ({}, (A, B, C, Y), {}),
        ({}, (), MAPPING),
        ({}, (UserDict(MAPPING),), {}),
        ({}, ({"a": A, "b": B, "c": C}, Y), {}),
        ({"inputs": [1, 2, 3]}, (Y, A, B, C), {}),
        ({"target": 0}, (Y, A, B, C), {}),
        ({"target": -1}, (A, B, C, Y), {}),
        ({"target": -4}, (Y, A, B, C), {}),
        ({"inputs": [-3, -2, -1]}, (Y, A, B, C), {}),
        ({"inputs": [0, 1, -3], "target": -1}, (A, B, C, torch.arange(8), Y), {}),
        ({"inputs": [0, 1, 2], "target": 4}, (A, B, C, torch.arange(8), Y), {}),
        ({"inputs": ["first", "second", "third"], "target": "score"}, (), RENAMED),
        (
            {"inputs": {"c": "third", "b": "second", "a": "first"}, "target": "score"},
            (),
            RENAMED,
        ),
    ],
)
def test_batches_of_several_inputs(options, args, kwargs):
    model, guide = make(Three(), **options)
    loss = step(model, guide, *args, **kwargs)
    torch.testing.assert_close(loss, expected(model, guide, Y, A, B, C))


@pytest.mark.parametrize("names", [("image", "label"), ("x", "y"), ("pixels", "target")])
def test_a_mapping_with_one_input_and_a_label(names):
    model, guide = make(nn.Sequential(nn.Linear(3, 1)))
    loss = step(model, guide, **dict(zip(names, (A, Y), strict=True)))
    torch.testing.assert_close(loss, expected(model, guide, Y, A))


def test_labels_do_not_go_into_a_network_that_would_take_them():
    class Transformer(nn.Linear):
        def forward(self, input_ids, attention_mask=None, labels=None):
            assert labels is None
            return namedtuple("Out", ["loss", "logits"])(None, super().forward(input_ids))

    model, guide = make(Transformer(3, 1))
    loss = step(model, guide, input_ids=A, attention_mask=B, labels=Y)
    torch.testing.assert_close(loss, expected(model, guide, Y, A, pick=lambda out: out.logits))


def test_fit_takes_the_loaders_that_people_have():
    loaders = {
        "tuple": (DataLoader(TensorDataset(A, B, C, Y), batch_size=4), {}),
        "mapping": (
            DataLoader([{k: v[i] for k, v in MAPPING.items()} for i in range(8)], batch_size=4),
            {},
        ),
        "named": (
            DataLoader(TensorDataset(Y, A, B, C), batch_size=4),
            {"target": 0},
        ),
    }
    for loader, options in loaders.values():
        model, guide = make(Three(), **options)
        optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-4}, guide)
        svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
        history = ibvi.fit(svi, loader, 1, valid_loader=loader, progress=False)
        assert history.train_loss[0] > 0


def test_packed_sequences():
    x = pack_sequence([torch.randn(n, 3) for n in (6, 4, 2)])
    y = torch.randn(3, 1)
    model, guide = make(Packed())
    torch.testing.assert_close(step(model, guide, x, y), expected(model, guide, y, x))
    model, guide = make(nn.GRU(3, 4))
    with pytest.raises(TypeError, match="returned"):
        step(model, guide, x, torch.randn(3, 6, 4))
    model, guide = make(
        nn.GRU(3, 4), output=lambda out: pad_packed_sequence(out[0], batch_first=True)[0]
    )
    assert step(model, guide, x, torch.randn(3, 6, 4)) > 0


class OfRows(nn.Linear):
    """A sum over rows, of which each datum has a number of its own."""

    def forward(self, x):
        return torch.stack([rows.sum(0) for rows in super().forward(x).unbind()])


def test_nested_tensors():
    rows, y = [torch.randn(n, 3) for n in (6, 4, 2, 5)], torch.randn(4, 1)
    x = torch.nested.nested_tensor(rows, layout=torch.jagged)
    model, guide = make(OfRows(3, 1))
    torch.testing.assert_close(step(model, guide, x, y), expected(model, guide, y, x))
    whole = ibvi.predict(model, guide, x, num_samples=3, generator=0).outputs
    for size in (1, 3):
        parts = ibvi.predict(model, guide, x, num_samples=3, generator=0, batch_size=size).outputs
        torch.testing.assert_close(parts, whole)
    bad = torch.nested.nested_tensor([rows[0], rows[1] / 0], layout=torch.jagged)
    with pytest.raises(ValueError, match=r"The input holds -?inf at index"):
        step(model, guide, bad, y[:2])
    strided = torch.nested.nested_tensor(rows, layout=torch.strided)
    for act in (
        lambda: step(model, guide, strided, y),
        lambda: ibvi.predict(model, guide, strided),
    ):
        with pytest.raises(TypeError, match="in torch's jagged layout, got a strided one"):
            act()
    bnn = ibvi.VariationalNetwork(OfRows(3, 1), ibvi.Normal(0.5))
    with pytest.raises(TypeError, match=r"pass torch\.nested\.to_padded_tensor\(x, 0\.0\), or"):
        bnn.fit(x, y)


class Returns(nn.Linear):
    def __init__(self, wrap):
        super().__init__(3, 1)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(super().forward(x))


Pair = namedtuple("Pair", ["mean", "aside"])


@dataclass(slots=True)
class Scores:
    scores: torch.Tensor
    aside: torch.Tensor | None = None


WRAPS = [
    (None, lambda out: (out,)),
    (None, lambda out: {"logits": out, "hidden": out}),
    (None, lambda out: {"only": out, "name": None}),
    (1, lambda out: (None, out, out)),
    ("mean", lambda out: {"mean": out, "aside": 0 * out}),
    ("mean", lambda out: Pair(out, 0 * out)),
    (0, lambda out: Pair(out, 0 * out)),
    (None, Scores),
    ("scores", lambda out: Scores(out, 0 * out)),
    (lambda out: out[0]["a"], lambda out: ({"a": out}, 2 * out)),
]


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize(("output", "wrap"), WRAPS)
def test_what_the_network_returns(output, wrap, vectorize):
    torch.manual_seed(3)
    model, guide = make(Returns(wrap), output=output)
    objective = ibvi.TraceExpectedLogLikelihood(
        num_particles=2, vectorize_particles=vectorize, reduction="mean"
    )
    torch.manual_seed(3)
    plain, plain_guide = make(nn.Linear(3, 1))
    losses = []
    for pair in ((model, guide), (plain, plain_guide)):
        torch.manual_seed(1)
        losses.append(objective.loss(*pair, A, Y))
    assert losses[0] == pytest.approx(losses[1])
    assert ibvi.predict(model, guide, A, num_samples=3).mean.shape == (8, 1)


@pytest.mark.parametrize(
    ("output", "wrap", "error", "message"),
    [
        (None, lambda out: (out, out), TypeError, r"returned \(a tensor of shape \(8, 1\), .*=0"),
        (None, lambda out: {"a": out, "b": out}, TypeError, r"SupervisedModel\(.*output='a'\)"),
        (None, lambda out: Scores(out, out), TypeError, "='scores'.*lambda out: out.scores"),
        (None, lambda out: torch.distributions.Normal(out, 1), TypeError, r"='loc'.*: out.loc\.$"),
        (None, lambda out: torch.distributions.Poisson(out.exp()), TypeError, "output='rate'"),
        (None, lambda out: None, TypeError, "None: let its forward end in `return output`"),
        (None, lambda out: out.sum().item(), TypeError, "a float without a tensor in it"),
        ("c", lambda out: {"a": out}, ValueError, "output='c' picks no part of what"),
        (2, lambda out: (out, out), ValueError, "output=2 picks no part of what the network"),
        ("a", lambda out: out, ValueError, "output='a' picks no part of what the network"),
    ],
)
def test_an_output_with_no_reading(output, wrap, error, message):
    model, guide = make(Returns(wrap), output=output)
    with pytest.raises(error, match=message):
        step(model, guide, A, Y)
    with pytest.raises(error, match=message):
        ibvi.predict(model, guide, A, num_samples=3)


class Optional(nn.Linear):
    def forward(self, x, mask=None):
        return super().forward(x)


@pytest.mark.parametrize(
    ("net", "options", "args", "kwargs", "message"),
    [
        (nn.Linear(3, 1), {}, (A, B, Y), {}, r"has 3 parts, and the network takes \(input\)"),
        (Optional(3, 1), {}, (A, Y, C), {}, r"has 3 parts, .* takes \(x, mask\)"),
        (Three(), {}, (), {"a": A, "b": B, "d": C, "labels": Y}, r"\['d'\] .*=\['a', 'b'\]"),
        (nn.Linear(3, 1), {}, (), {"a": A, "b": B, "y": Y}, r"yield \(\(mapping,\), target\)"),
        (nn.Linear(3, 1), {}, (), RENAMED, r"say which is the target, .*inputs=\['first'\]"),
        (Three(), {}, (), {"y": A, "labels": Y}, r"say which is the target"),
        (nn.Linear(3, 1), {"inputs": "x1", "target": "y"}, (), {"x": A, "y": Y}, "no part 'x1'"),
        (nn.Linear(3, 1), {"inputs": -4, "target": 2}, (A, B, Y), {}, r"no part -4; it is"),
        (nn.Linear(3, 1), {"inputs": 0}, (A, B, Y), {}, r"parts \[1, 2\] of the batch are no in"),
    ],
)
def test_batches_with_no_reading(net, options, args, kwargs, message):
    model, _ = make(net, **options)
    with pytest.raises(ValueError, match=message):
        model(*args, **kwargs)


def test_a_position_from_the_end_is_that_part():
    model, _ = make(nn.Linear(3, 1), target=-1)
    found = model.read(A, Y)
    assert found[0] is A
    assert found[1] is Y
    assert model.read(A) == (A, None)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("names", [("size", "kind"), ("kind", "size")])
def test_targets_of_tasks_in_their_order(names, named):
    """Told by positions or by other names they come in the order of the tasks."""
    likelihoods = {"size": (ibvi.Normal(0.5), 1), "kind": (ibvi.Categorical(), 3)}
    tasks = ibvi.models.MultiTask({name: likelihoods[name] for name in names})
    targets = {"size": torch.randn(8, 1), "kind": torch.arange(8) % 3}
    parts = [A, *(targets[name] for name in names)]
    if named:
        model, _ = make(nn.Linear(3, 4), likelihood=tasks, inputs="x", target=["r", "c"])
        read = model.read(**dict(zip(("x", "r", "c"), parts, strict=True)))
    else:
        model, _ = make(nn.Linear(3, 4), likelihood=tasks, target=[1, -1])
        read = model.read(*parts)
    assert read[0] is A
    assert torch.equal(tasks.as_target(read[1]), tasks.as_target(targets))
    model, _ = make(nn.Linear(3, 4), likelihood=tasks, inputs="x", target=["kind", "size"])
    read = model.read(x=A, **targets)  # of the tasks' own names, in whatever order
    assert torch.equal(tasks.as_target(read[1]), tasks.as_target(targets))


def test_bad_options():
    for name in ("inputs", "target"):
        with pytest.raises(TypeError, match=f"{name} names parts of a batch, by positions"):
            make(nn.Linear(3, 1), **{name: 1.5})
    with pytest.raises(TypeError, match="output picks a part of what the network returns"):
        make(nn.Linear(3, 1), output=1.5)
    model, _ = make(nn.Linear(3, 1))
    with pytest.raises(TypeError, match="The model needs inputs"):
        model()
