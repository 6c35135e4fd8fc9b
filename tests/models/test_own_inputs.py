"""A network that writes on its inputs gives what it would give on a copy, by every route."""

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi

X, LABELS = torch.randn(40, 4) + 3, torch.arange(40) % 3


class Scaling(nn.Module):
    """Standardizes its input, in place as much public code does, or not."""

    def __init__(self, how, *, in_turn=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.how, self.in_turn = how, in_turn

    def forward(self, x):
        if self.how == "in place":
            x -= 3.0
            x.div_(2.0)
        elif self.how == "in training" and self.training:
            x.mul_(0.5)
        elif self.how == "in training, copied" and self.training:
            x = x * 0.5
        elif self.how == "copied":
            x = (x - 3.0) / 2.0
        h = self.first(x).tanh()
        if self.in_turn and h.mean().item() > 9:  # vmap refuses to look at a number
            return self.last(-h)
        return self.last(h)


def make(how, **options):
    torch.manual_seed(1)
    return ibvi.VariationalNetwork(
        Scaling(how, in_turn=options.pop("in_turn", False)),
        ibvi.Categorical(),
        parametrization=ibvi.MaximalUpdate(),
        roles={"first": "input", "last": "output"},
        **options,
    )


@pytest.mark.filterwarnings("ignore:The forward pass of")
@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize(
    ("how", "copied"), [("in place", "copied"), ("in training", "in training, copied")]
)
@pytest.mark.parametrize("draws", ["batch", "datum", 2])
def test_draws_do_not_see_what_others_left(how, copied, draws, in_turn):
    found, kept = [], X.clone()
    for kind in (how, copied):
        bnn = make(kind, draws=draws, in_turn=in_turn)
        before = bnn.predict(kept, num_samples=5, seed=0).mean
        torch.manual_seed(2)
        batches = [(kept, LABELS)]  # the same tensors in every epoch
        history = bnn.fit(batches, num_data=40, num_epochs=3, progress=False)
        after = bnn.predict(kept, num_samples=5, seed=0, batch_size=16).mean
        mean, _ = bnn.frozen_draws(5, seed=0)(kept)
        torch.testing.assert_close(mean, bnn.predict(kept, num_samples=5, seed=0).mean)
        found.append((before, after, torch.tensor(history.train_loss)))
        assert torch.equal(kept, X)
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.filterwarnings("ignore:The forward pass of")
def test_inference_mode_makes_no_difference():
    bnn, expected = make("in place"), make("copied")
    with torch.inference_mode():
        found = bnn.predict(X.clone(), num_samples=5, seed=0).mean
    assert torch.equal(found, expected.predict(X, num_samples=5, seed=0).mean)
    torch.testing.assert_close(bnn.predict(X, num_samples=5, seed=0).mean, found.clone())


def test_inputs_that_are_left_as_they_are_are_not_copied_again():
    bnn, seen = make("copied"), []
    bnn.predict(X, num_samples=3)
    bnn.net.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    bnn.predict(X, num_samples=3)
    whole = [given for given in seen if given.shape == X.shape]  # others look at one row
    assert whole
    assert all(given.data_ptr() == X.data_ptr() for given in whole)
