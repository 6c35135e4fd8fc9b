"""What a person hears who calls an argument by another library's name."""

import inspect

import pytest
import torch
from torch import nn

import pyro_ibvi as ibvi
from pyro_ibvi._util import arguments

X, Y = torch.randn(6, 3), torch.zeros(6, dtype=torch.long)


def network(**options):
    return ibvi.VariationalNetwork(nn.Linear(3, 2), ibvi.Categorical(), **options)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("epochs", "it is called 'num_epochs' here"),
        ("max_epochs", "it is called 'num_epochs' here"),
        ("val_loader", "it is called 'valid_loader' here"),
        ("early_stopping", "it is called 'patience' here"),
        ("verbose", "it is called 'progress' here"),
        ("callbacks", "it is called 'callback' here"),
        ("learning_rate", r"VariationalNetwork\(net, likelihood, lr="),
        ("scheduler", r"VariationalNetwork\(.*scheduler="),
        ("patiense", "did you mean 'patience'"),
        ("colour", "it has .*num_epochs.*valid_loader"),
    ],
)
def test_fit_says_what_is_meant(name, meant):
    bnn = network()
    with pytest.raises(
        TypeError, match=f"VariationalNetwork.fit has no argument '{name}'.*{meant}"
    ):
        bnn.fit(X, Y, **{name: 3})
    with pytest.raises(TypeError, match=f"fit has no argument '{name}'.*{meant}"):
        ibvi.fit(bnn.svi, [(X, Y)], 1, **{name: 3})
    assert bnn.history.num_epochs == 0


@pytest.mark.parametrize("name", ["n_samples", "num_draws", "draws"])
def test_predict_says_what_is_meant(name):
    bnn = network()
    for call in (
        bnn.predict,
        bnn.evaluate,
        lambda x, **o: ibvi.predict(bnn.model, bnn.guide, x, **o),
    ):
        with pytest.raises(
            TypeError, match=f"no argument '{name}': it is called 'num_samples' here"
        ):
            call(X, **{name: 3})


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"learning_rate": 0.1}, "is called 'lr' here"),
        ({"momentum": 0.9}, r"optim_args=\{'momentum': 0\.9\}"),
        ({"prior_std": 1.0}, r"RandomModule\(net, prior=1\.0\)"),
        ({"rank": 10}, r"covariance=LowRank\(10\)"),
        ({"epochs": 10}, "argument of fit"),
    ],
)
def test_the_network_says_where_an_argument_belongs(options, meant):
    with pytest.raises(TypeError, match=f"^VariationalNetwork has no argument '.*{meant}"):
        network(**options)


def test_what_is_left_out_or_too_much():
    bnn = network()
    with pytest.raises(TypeError, match=r"fit takes \(svi, train_loader, num_epochs, .*2 by posi"):
        ibvi.fit(bnn.svi, [(X, Y)])
    with pytest.raises(TypeError, match=r"a VariationalNetwork has a method .*\.predict\("):
        ibvi.predict(bnn, X)
    with pytest.raises(TypeError, match=r"Network takes \(net, likelihood, .*got 1 by position"):
        ibvi.VariationalNetwork(nn.Linear(3, 2))
    with pytest.raises(TypeError, match=r"Categorical takes \(class_dim=, .*got 1 by position"):
        ibvi.Categorical(2)
    with pytest.raises(
        TypeError, match=r"\(build, data, y=, valid_loader=, .*valid_loader is miss"
    ):
        ibvi.rate_search(lambda lr: network(lr=lr), X, Y)
    with pytest.raises(TypeError, match=r"fit has no argument 'train_loader': .* 'data' here"):
        bnn.fit(train_loader=[(X, Y)])
    with pytest.raises(TypeError, match="Normal has no argument 'std': it is called 'scale' here"):
        ibvi.Normal(std=0.1)


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: ibvi.MuPOptim(torch.optim.SGD, {}, None, lr=0.1), r'\{"lr": 0\.05, "momentum"'),
        (
            lambda: ibvi.MuPOptim(torch.optim.SGD, {}, None, clip_args={}),
            "called 'clip_norm' here",
        ),
        (lambda: ibvi.mup_param_groups(None, 0.1), "optimizer is missing"),
        (lambda: ibvi.RandomModule(None, covariance=None), "it is the guide's, AutoMuPNormal"),
        (lambda: ibvi.SupervisedModel(None, None, n_data=3), "called 'num_data' here"),
        (lambda: ibvi.TraceExpectedLogLikelihood(beta=0.1), "called 'kl_weight' here"),
        (lambda: ibvi.coordinate_check(None, widths=[8], data=None), "called 'sizes' here"),
        (lambda: ibvi.rate_transfer(None, [8], [0.1], []), "num_epochs is missing"),
        (lambda: ibvi.to_arviz(None, None, generator=0), "called 'seed' here"),
        (lambda: ibvi.write_arviz("a.nc", None, None, varnames=[]), "did you mean 'var_names'"),
    ],
)
def test_other_doors_say_so_too(call, meant):
    with pytest.raises(TypeError, match=meant):
        call()


def test_estimators_say_so_too():
    pytest.importorskip("sklearn")
    from pyro_ibvi.estimators import IBVIClassifier, IBVIRegressor

    with pytest.raises(
        TypeError, match="IBVIRegressor has no argument 'max_iter': it is called 'm"
    ):
        IBVIRegressor(max_iter=3)
    with pytest.raises(
        TypeError, match="IBVIClassifier has no argument 'lr': it is called 'learn"
    ):
        IBVIClassifier(lr=0.1)


def test_a_guide_in_the_place_of_the_optimizer_is_told_of_the_order():
    with pytest.raises(TypeError, match=r"optimizer first, .*, got AutoMuPNormal: write MuPOptim"):
        ibvi.MuPOptim(network().guide, torch.optim.SGD, {"lr": 0.1})


def test_what_takes_more_than_a_line_is_told_by_its_kind():
    with pytest.raises(ValueError, match=r"got a tensor of shape \(\d, 3\)\.$"):
        network().set_num_data(X)
    with pytest.raises(ValueError, match=r"got lr=AutoMuPNormal\.$"):
        ibvi.mup_param_groups(0.1, network().guide, optimizer=torch.optim.SGD)


def test_errors_of_the_function_itself_are_its_own():
    @arguments.named_arguments()
    def function(a, *, num_samples=1):
        """Text."""
        return len(a)

    with pytest.raises(TypeError, match=r"object of type 'int' has no len"):
        function(1)
    assert function([1], num_samples=2) == 1
    assert list(inspect.signature(function).parameters) == ["a", "num_samples"]
    assert function.__doc__ == "Text."


def test_no_name_stands_for_itself_and_another():
    for name, aliases in arguments._ALIASES.items():
        assert name not in aliases
