"""Class labels against torch's cross_entropy, with the same options, by every route."""

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI
from torch import nn

from pyro_ibvi import (
    AutoMuPNormal,
    Categorical,
    MuPOptim,
    RandomModule,
    SupervisedModel,
    TraceExpectedLogLikelihood,
)


class ByTraces(TraceExpectedLogLikelihood):
    """A subclass takes the route by traces."""


WEIGHT = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0])
OPTIONS = [
    {},
    {"ignore_index": 255},
    {"ignore_index": -100, "weight": WEIGHT},
    {"ignore_index": -100, "label_smoothing": 0.1},
    {"weight": WEIGHT, "label_smoothing": 0.2},
]


def segmentation(options, *, classes_last=False):
    class Net(nn.Sequential):
        def forward(self, x):
            out = super().forward(x)
            return out.movedim(1, -1) if classes_last else out

    torch.manual_seed(0)
    net = Net(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    likelihood = Categorical(class_dim=-1 if classes_last else 1, **options)
    model = SupervisedModel(RandomModule(net), likelihood, num_data=20)
    return model, AutoMuPNormal(model)


def images(options):
    x, y = torch.randn(4, 3, 6, 7), torch.randint(0, 5, (4, 6, 7))
    if "ignore_index" in options:
        y[:, :2] = options["ignore_index"]
    return x, y


@pytest.mark.parametrize("objective", [TraceExpectedLogLikelihood, ByTraces])
@pytest.mark.parametrize("classes_last", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pixels_count_as_in_torch(options, classes_last, objective):
    model, guide = segmentation(options, classes_last=classes_last)
    x, y = images(options)
    loss_fn = objective(reduction="mean")(model, guide)
    for _ in range(2):  # the second step goes without traces where it may
        torch.manual_seed(1)
        loss = loss_fn(x, y)
    (gradient,) = torch.autograd.grad(loss, guide.loc("net.0.weight"))
    torch.manual_seed(1)
    draw = {k.removeprefix("net."): v for k, v in guide.rsample().items()}
    output = torch.func.functional_call(model.net.network, draw, (x,))
    expected = F.cross_entropy(output.movedim(-1, 1) if classes_last else output, y, **options)
    torch.testing.assert_close(loss, expected)
    (by_torch,) = torch.autograd.grad(expected, guide.loc("net.0.weight"))
    torch.testing.assert_close(gradient, by_torch, rtol=1e-4, atol=1e-6)


def test_the_sum_is_scaled_by_data_and_not_by_pixels():
    model, guide = segmentation({"ignore_index": 255})
    x, y = images({"ignore_index": 255})
    loss_fn = TraceExpectedLogLikelihood()(model, guide)
    torch.manual_seed(1)
    loss = loss_fn(x, y)
    torch.manual_seed(1)
    draw = {k.removeprefix("net."): v for k, v in guide.rsample().items()}
    output = torch.func.functional_call(model.net.network, draw, (x,))
    expected = 20 / 4 * F.cross_entropy(output, y, ignore_index=255, reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_rows_without_a_label_are_no_observations():
    model = SupervisedModel(
        RandomModule(nn.Linear(3, 4)), Categorical(ignore_index=-1), num_data=50
    )
    guide = AutoMuPNormal(model)
    x, y = torch.randn(6, 3), torch.tensor([0, -1, 3, -1, -1, 2])
    loss_fn = TraceExpectedLogLikelihood(reduction="mean")(model, guide)
    for rows in (slice(None), [0, 2, 5]):
        for _ in range(2):
            torch.manual_seed(1)
            loss = loss_fn(x[rows], y[rows])
        if rows == slice(None):
            first = loss
    torch.testing.assert_close(loss, first)
    # A batch without any label has nothing to say, and does no harm.
    assert loss_fn(x, torch.full((6,), -1)) == 0.0


def test_vectorized_particles_see_the_same_pixels():
    model, guide = segmentation({"ignore_index": 255})
    x, y = images({"ignore_index": 255})
    losses = [
        TraceExpectedLogLikelihood(
            num_particles=400, vectorize_particles=vectorize, reduction="mean"
        ).loss(model, guide, x, y)
        for vectorize in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.parametrize("sure", [2.0, 6.0, 12.0])
@pytest.mark.parametrize("objective", [TraceExpectedLogLikelihood, ByTraces])
def test_confident_classes_keep_their_gradient_in_bfloat16(sure, objective):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([sure, 0.0, 0.0]))
    model = SupervisedModel(RandomModule(net), Categorical(), 64)
    guide = AutoMuPNormal(model, init_scale=1e-3)
    x, y = 0.01 * torch.randn(64, 4), torch.zeros(64, dtype=torch.long)
    loss_fn = objective(reduction="mean")(model, guide)
    bias = model.net.network[2].bias
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            torch.manual_seed(1)
            loss = loss_fn(x, y)
    (gradient,) = torch.autograd.grad(loss, bias)
    torch.manual_seed(1)
    draw = {k.removeprefix("net."): v for k, v in guide.rsample().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.cross_entropy(torch.func.functional_call(model.net.network, draw, (x,)), y)
    (by_torch,) = torch.autograd.grad(expected, bias)
    assert loss.dtype == torch.float32
    assert loss > 0
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, by_torch)


def test_probabilities_in_place_of_logits_are_told_once():
    net = nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1))
    model = SupervisedModel(RandomModule(net), Categorical(), num_data=6)
    x, y = torch.randn(6, 3), torch.randint(0, 4, (6,))
    with pytest.warns(UserWarning, match="takes logits: leave out the Softmax"):
        model(x, y)
    model(x, y)  # warnings are errors


BAD = [
    ((5, 1), torch.zeros(5).long(), "one logit write Bernoulli"),
    ((5, 3), torch.eye(5, 3), r"one-hot, pass y\.argmax\(-1\)"),
    ((5, 3), torch.tensor([0, 1, -100, 2, -100]), "write ignore_index=-100"),
    ((5, 3), torch.tensor([1, 2, 3, 2, 1]), r"from 1 to 3\. If labels start at 1, pass y - 1\.$"),
    ((5, 3), torch.tensor([0, 1, 3, 2, 1]), "write ignore_index=3"),
    ((5, 3), torch.tensor([0, 1, 7, 2, -3]), r"got values from -3 to 7\.$"),
    ((5, 3, 8), torch.zeros(5, 8).long(), r"write Categorical\(class_dim=1\)"),
]


@pytest.mark.parametrize(("shape", "target", "message"), BAD)
def test_a_bad_target(shape, target, message):
    with pytest.raises(ValueError, match=message):
        Categorical().check_target(target, torch.zeros(shape))


def test_labels_from_1_are_as_good_as_from_0():
    """What the message says is what helps, and no class is lost by it."""
    y, output = torch.tensor([1, 2, 3, 2, 1]), torch.randn(5, 3)
    Categorical().check_target(y - 1, output)
    found = Categorical()(output).log_prob(y - 1)
    torch.testing.assert_close(found, -F.cross_entropy(output, y - 1, reduction="none"))


def test_bad_options():
    for class_dim in (0, 1.0, True):
        with pytest.raises(ValueError, match="class_dim is the output's dimension that holds"):
            Categorical(class_dim=class_dim)
    with pytest.raises(TypeError, match="ignore_index is a label, a whole number; got 'void'"):
        Categorical(ignore_index="void")
    with pytest.raises(ValueError, match=r"label_smoothing is a share in \[0, 1\), got 1\.0"):
        Categorical(label_smoothing=1.0)
    with pytest.raises(ValueError, match="weight holds finite numbers from 0 on; got"):
        Categorical(weight=[1.0, -1.0])
    with pytest.raises(ValueError, match=r"has weights for 2 classes, and the .* has 3"):
        Categorical(weight=[1.0, 1.0])(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"class_dim=1\) needs an output that has this dimension"):
        Categorical(class_dim=1)(torch.zeros(4))


def test_labels_are_drawn_in_the_layout_of_the_targets():
    model, guide = segmentation({})
    pyro.set_rng_seed(0)
    assert model(torch.randn(4, 3, 6, 7)).shape == (4, 6, 7)
    optim = MuPOptim(torch.optim.SGD, {"lr": 1e-3}, guide)
    svi = SVI(model, guide, optim, TraceExpectedLogLikelihood(reduction="mean"))
    x, y = images({})
    assert svi.step(x, y) > 0
