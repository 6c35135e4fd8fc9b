"""A model and a guide of which one alone has learned are told, and nothing else is."""

import copy
import io

import pytest
import torch
from pyro.infer import SVI
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi.prediction import frozen_draws, mean_network

X, Y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(20, 1)
GUIDE = "model was trained and this guide was not: its weights are still those it was made with"
MODEL = r"and the model is as it was made: 'net\..* are not those that the guide was trained with"


def make(net=None, guide=ibvi.AutoMuPNormal, **options):
    net = net or nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    random = ibvi.RandomModule(net, **options)
    model = ibvi.SupervisedModel(random, ibvi.Normal(0.5), num_data=20)
    return model, guide(model)


def train(model, guide, num_steps=3):
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.05}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    for _ in range(num_steps):
        svi.step(X, Y)
    return model, guide


def train_by_hand(model, guide):
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")(model, guide)
    groups = ibvi.mup_param_groups(guide, lr=0.05, optimizer=torch.optim.SGD)
    optimizer = torch.optim.SGD(groups)
    loss(X, Y).backward()
    optimizer.step()
    return model, guide


def filed(module):
    """A state as a file gives it back."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def predict(model, guide):
    return ibvi.predict(model, guide, X, num_samples=3)


def new_guide():
    model, _ = train(*make())
    return model, ibvi.AutoMuPNormal(model)


def new_guide_after_a_loop_by_hand():
    model, _ = train_by_hand(*make())
    return model, ibvi.AutoMuPNormal(model)


def new_mixture():
    model, _ = train(*make(guide=ibvi.AutoMuPMixture))
    return model, ibvi.AutoMuPMixture(model)


def new_guide_of_a_copy():
    model, _ = train(*make())
    return copy.deepcopy((model, ibvi.AutoMuPNormal(model)))


def state_of_the_model_alone():
    (model, _), (other, fresh) = train(*make()), make()
    other.load_state_dict(filed(model))
    return other, fresh


def state_of_the_guide_alone(guide=ibvi.AutoMuPNormal):
    (_, trained), (other, fresh) = train(*make(guide=guide)), make(guide=guide)
    fresh.load_state_dict(filed(trained))
    return other, fresh


def state_of_the_mixture_alone():
    return state_of_the_guide_alone(ibvi.AutoMuPMixture)


def state_of_the_guide_alone_passed_on():
    _, fresh = state_of_the_guide_alone()
    third, newest = make()
    newest.load_state_dict(filed(fresh))
    return third, newest


HALVES = [
    (new_guide, GUIDE),
    (new_guide_after_a_loop_by_hand, GUIDE),
    (new_mixture, GUIDE),
    (new_guide_of_a_copy, GUIDE),
    (state_of_the_model_alone, GUIDE),
    (state_of_the_guide_alone, MODEL),
    (state_of_the_mixture_alone, MODEL),
    (state_of_the_guide_alone_passed_on, MODEL),
]


@pytest.mark.parametrize(("pair", "message"), HALVES)
def test_one_that_was_left_behind_is_said(pair, message):
    model, guide = pair()
    with pytest.warns(UserWarning, match=message):
        predict(model, guide)
    with pytest.warns(UserWarning, match=message):
        ibvi.evaluate(model, guide, [(X, Y)], num_samples=3)
    with pytest.warns(UserWarning, match=message):
        frozen_draws(model, guide, num_samples=2)
    with pytest.warns(UserWarning, match=message):
        ibvi.to_arviz(model, guide, X, Y, num_samples=2)
    if len(guide.components) == 1:
        with pytest.warns(UserWarning, match=message):
            mean_network(model, guide)


def both_as_made():
    return make()


def both_states():
    (model, guide), (other, fresh) = train(*make()), make()
    other.load_state_dict(filed(model))
    fresh.load_state_dict(filed(guide))
    return other, fresh


def both_states_of_a_module_that_holds_them():
    model, guide = train(*make())
    other, fresh = make()
    loss = ibvi.TraceExpectedLogLikelihood()
    loss(other, fresh).load_state_dict(filed(loss(model, guide)))
    return other, fresh


def both_states_in_low_precision():
    other, fresh = both_states()
    return other.bfloat16().float(), fresh.bfloat16().float()


def states_without_metadata():
    _, guide = train(*make())
    other, fresh = make()
    fresh.load_state_dict(dict(guide.state_dict()))
    return other, fresh


def state_of_a_model_as_made():
    (model, _), (other, fresh) = make(), make()
    other.load_state_dict(filed(model))
    return other, fresh


def copied():
    return copy.deepcopy(train(*make()))


def a_pretrained_network():
    network = train(*make())[0].net.network.requires_grad_()
    return make(copy.deepcopy(network))


def weights_into_the_network_alone():
    (model, _), (other, fresh) = train(*make()), make()
    other.net.network.load_state_dict(model.net.network.state_dict())
    return other, fresh


def guide_beside_a_network_that_was_given_trained():
    model, guide = train(*make())
    other, fresh = make(model.net.network.requires_grad_())
    fresh.load_state_dict(filed(guide))
    return other, fresh


def guide_loaded_and_trained_on():
    _, guide = train(*make())
    other, fresh = make()
    fresh.load_state_dict(filed(guide))
    return train(other, fresh, 1)


def values_put_into_a_guide():
    model, guide = train(*make())
    fresh = ibvi.AutoMuPNormal(model)
    for mine, its in zip(fresh.parameters(), guide.parameters(), strict=True):
        mine.data.copy_(its.data)
    return model, fresh


def nothing_but_random_weights():
    model, _ = train(*make(stochastic="all"))
    return model, ibvi.AutoMuPNormal(model)


def a_component():
    model, guide = train(*make(guide=ibvi.AutoMuPMixture))
    return model, guide.components[1]


def another_model_of_the_same_network():
    model, _ = train(*make())
    other = ibvi.SupervisedModel(model.net, ibvi.Normal(0.1))
    return other, ibvi.AutoMuPNormal(other)


WHOLES = [
    both_as_made,
    both_states,
    both_states_of_a_module_that_holds_them,
    both_states_in_low_precision,
    states_without_metadata,
    state_of_a_model_as_made,
    copied,
    a_pretrained_network,
    weights_into_the_network_alone,
    guide_beside_a_network_that_was_given_trained,
    guide_loaded_and_trained_on,
    values_put_into_a_guide,
    nothing_but_random_weights,
    a_component,
    another_model_of_the_same_network,
]


@pytest.mark.parametrize("pair", WHOLES)
def test_everything_else_is_taken_in_silence(pair):
    """A warning would be an error here."""
    predict(*pair())


def test_training_begins_in_silence():
    predict(*train(*new_guide()))
