"""The estimators in scikit-learn's hands: its own checks, its tools, and what they mean."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import (
    check_sample_weight_equivalence_on_dense_data,
    parametrize_with_checks,
)

import pyro_ibvi as ibvi
from pyro_ibvi.estimators import IBVIClassifier, IBVIRegressor

QUICK = {"hidden_layer_sizes": (16,), "num_samples": 8, "random_state": 0}
CHECKED = {**QUICK, "max_epochs": 30, "batch_size": 64, "early_stopping": False}


def expected_failures(estimator):
    """The one exception: a row that stands twice may have two draws of its noise, not one."""
    if estimator.covariance is not None:
        return {}
    of_numbers = isinstance(estimator, IBVIRegressor)
    what = "half of a batch" if of_numbers else "row"
    reason = f"each {what} has noise of its own, so two rows are not one row of twice the weight"
    return {"check_sample_weight_equivalence_on_dense_data": reason}


@parametrize_with_checks(
    [
        IBVIClassifier(**CHECKED),
        IBVIClassifier(**CHECKED, covariance=ibvi.LowRank(10)),
        IBVIRegressor(**CHECKED),
    ],
    expected_failed_checks=expected_failures,
)
@pytest.mark.filterwarnings("ignore:The network has learned nothing")  # of labels at random
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


class Counting(torch.nn.Sequential):
    """A network of whose batches no part is one: it keeps what it has seen."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def whole_batch(num_inputs, num_outputs):
    layers = torch.nn.Linear(num_inputs, 16), torch.nn.Tanh(), torch.nn.Linear(16, num_outputs)
    return Counting(*layers)


def test_weights_of_numbers_are_copies_where_a_batch_has_one_draw():
    model = IBVIRegressor(**{**CHECKED, "network": whole_batch})
    check_sample_weight_equivalence_on_dense_data("IBVIRegressor", model)


@pytest.fixture(scope="module")
def diabetes():
    return load_diabetes(return_X_y=True, as_frame=True)


def test_a_data_frame_to_intervals(diabetes):
    X, y = diabetes
    model = IBVIRegressor(hidden_layer_sizes=(32,), max_epochs=40, random_state=0)
    model.fit(X[:350], y[:350])
    mean, std = model.predict(X[350:], return_std=True)
    linear = LinearRegression().fit(X[:350], y[:350])
    assert model.score(X[350:], y[350:]) > linear.score(X[350:], y[350:]) - 0.1
    inside = (np.abs(mean - y[350:]) < 1.96 * std).mean()
    assert 0.85 < inside <= 1
    low, high = model.predictive(X[350:]).interval(0.95)
    assert 0.85 < ((y[350:] > low[:, 0].numpy()) & (y[350:] < high[:, 0].numpy())).mean() <= 1
    assert model.n_iter_ <= 40
    assert list(model.feature_names_in_) == list(X.columns)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_real_classes_are_told(optimizer):
    X, y = load_breast_cancer(return_X_y=True)
    model = IBVIClassifier(optimizer=optimizer, max_epochs=20, random_state=0).fit(
        X[:400], y[:400]
    )
    assert model.score(X[400:], y[400:]) > 0.93
    proba, std = model.predict_proba(X[400:], return_std=True)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert (std >= 0).all()


def test_units_of_the_data_make_no_difference(diabetes):
    X, y = (part.to_numpy() for part in diabetes)
    model = IBVIRegressor(**QUICK, max_epochs=3)
    mean, std = model.fit(X, y).predict(X, return_std=True)
    moved_mean, moved_std = model.fit(1e3 * X - 7, 100 * y + 5e4).predict(1e3 * X - 7, True)
    np.testing.assert_allclose(moved_mean, 100 * mean + 5e4, rtol=1e-5)
    np.testing.assert_allclose(moved_std, 100 * std, rtol=1e-4)


@pytest.mark.parametrize("unit", [2.0**1000, 2.0**-1000])
def test_units_whose_squares_are_no_numbers_make_no_difference(diabetes, unit):
    X, y = (part.to_numpy() for part in diabetes)
    usual, extreme = (
        IBVIRegressor(**QUICK, max_epochs=3).fit(factor * X, y) for factor in (1, unit)
    )
    np.testing.assert_array_equal(extreme.x_scale_, unit * usual.x_scale_)
    np.testing.assert_array_equal(extreme.predict(unit * X), usual.predict(X))


@pytest.mark.parametrize("weight", [None, "random"])
def test_a_feature_that_is_constant_is_one_whatever_its_sum_rounds_to(diabetes, weight):
    X, y = (part.to_numpy() for part in diabetes)
    # Each constant's sum differs in the last digits from as many times the constant.
    constants = np.array([0.1, 0.998, 288.3, -1e-7, 1.7e9 + 0.1])
    rows = np.hstack([X, np.tile(constants, (len(X), 1)), X[:, :1] + 1e9])
    weight = weight and np.random.default_rng(0).uniform(0.1, 2, len(y))
    model = IBVIRegressor(**QUICK, max_epochs=3).fit(rows, y, sample_weight=weight)
    truth = StandardScaler().fit(X, sample_weight=weight)
    np.testing.assert_array_equal(model.x_scale_[10:15], 1.0)
    np.testing.assert_array_equal(model.x_mean_[10:15], constants)
    np.testing.assert_allclose(model.x_scale_[:10], truth.scale_, rtol=1e-12)
    np.testing.assert_allclose(model.x_scale_[15], truth.scale_[0], rtol=1e-5)
    near = rows + np.pad(1e-4 * constants[:2], (10, 4))
    np.testing.assert_allclose(model.predict(near), model.predict(rows), rtol=1e-2)


@pytest.mark.parametrize("heteroscedastic", [False, True])
def test_a_weight_is_a_number_of_copies(diabetes, heteroscedastic):
    X, y = (part.to_numpy()[:60] for part in diabetes)
    weight = np.arange(60) % 4
    options = {"batch_size": 500, "early_stopping": False, "max_epochs": 5}
    model = IBVIRegressor(**QUICK, **options, heteroscedastic=heteroscedastic)
    copies = model.fit(X.repeat(weight, 0), y.repeat(weight)).predict(X, return_std=True)
    weighted = model.fit(X, y, sample_weight=weight).predict(X, return_std=True)
    plain = model.fit(X, y).predict(X, return_std=True)
    np.testing.assert_allclose(weighted, copies, rtol=1e-6)
    assert not np.allclose(plain, copies, rtol=1e-2)


def test_weights_count_in_early_stopping_and_end_with_training(diabetes):
    X, y = (part.to_numpy() for part in diabetes)
    weight = np.random.default_rng(0).uniform(0.1, 2, len(y))
    model = IBVIRegressor(**QUICK, max_epochs=4).fit(X, y, sample_weight=weight)
    x = torch.as_tensor((X - model.x_mean_) / model.x_scale_)
    scores = model.network_.evaluate(x, torch.tensor(y).unsqueeze(-1), seed=0)
    rmse = np.sqrt(np.mean((model.network_.predict(x, seed=0).mean[:, 0].numpy() - y) ** 2))
    assert scores["rmse"] == pytest.approx(rmse, rel=1e-5)
    assert model.network_.history.metrics["nll"][-1] > 0


def test_class_weight_multiplies_the_sample_weight():
    X, y = load_iris(return_X_y=True)
    options = {**CHECKED, "max_epochs": 20}
    by_class = IBVIClassifier(**options, class_weight={0: 1, 1: 20, 2: 1}).fit(X, y)
    by_row = IBVIClassifier(**options).fit(X, y, sample_weight=np.where(y == 1, 20.0, 1.0))
    np.testing.assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X))
    plain = IBVIClassifier(**options).fit(X, y)
    assert by_row.predict_proba(X)[:, 1].mean() > plain.predict_proba(X)[:, 1].mean() + 0.03


def test_strings_in_a_pipeline_a_grid_and_cross_validation():
    X, y = load_iris(return_X_y=True, as_frame=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    pipeline = make_pipeline(MinMaxScaler(), IBVIClassifier(**QUICK, max_epochs=20))
    assert cross_val_score(pipeline, X, names, cv=3).mean() > 0.85
    grid = {"ibviclassifier__max_epochs": np.array([1, 20])}
    found = GridSearchCV(pipeline, grid, cv=2, scoring="neg_log_loss").fit(X, names)
    assert found.best_params_ == {"ibviclassifier__max_epochs": 20}
    assert set(found.predict(X)) <= set(names)


def test_a_seed_is_all_that_a_fit_depends_on(diabetes):
    X, y = diabetes
    model = IBVIRegressor(**QUICK, max_epochs=3)
    state = torch.get_rng_state()
    first = model.fit(X, y).predict(X)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    np.testing.assert_array_equal(clone(model).fit(X, y).predict(X), first)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), first)
    other = clone(model).set_params(random_state=1).fit(X, y)
    assert not np.allclose(other.predict(X), first)


def test_early_stopping_ends_before_the_last_epoch_and_keeps_the_best(diabetes):
    X, y = diabetes
    model = IBVIRegressor(hidden_layer_sizes=(32,), max_epochs=200, patience=3, random_state=0)
    model.fit(X, y)
    nll = model.network_.history.metrics["nll"]
    assert model.n_iter_ == len(nll) == np.argmin(nll) + 4 < 200


def test_a_small_table_is_trained_for_steps_and_not_for_epochs():
    """A hundred epochs of one step, of which ten without gain end it, leave a sine a line."""
    x = np.random.default_rng(0).uniform(-2, 2, (100, 1))
    y = np.sin(3 * x[:, 0])
    model = IBVIRegressor((64, 64), random_state=0).fit(x.astype(np.float32), y)
    assert model.score(x, y) > 0.9 > LinearRegression().fit(x, y).score(x, y) + 0.5
    assert 200 < model.n_iter_ <= 2000


@pytest.mark.parametrize(
    ("num_rows", "options", "num_epochs", "patience"),
    [
        (100, {}, 2000, 500),  # one step in an epoch
        (600, {}, 400, 100),  # five
        (20_000, {}, 100, 25),
        (600, {"batch_size": 60}, 200, 50),
        (600, {"max_epochs": 7}, 7, 100),
        (600, {"max_epochs": 7, "patience": 3}, 7, 3),
        (600, {"patience": 3}, 400, 3),
    ],
)
def test_length_of_training(monkeypatch, num_rows, options, num_epochs, patience):
    seen = {}
    monkeypatch.setattr(ibvi.VariationalNetwork, "fit", lambda *_, **kwargs: seen.update(kwargs))
    rows = np.random.default_rng(0).normal(size=(num_rows, 3))
    early = {"validation_fraction": 1e-9}  # one row
    IBVIRegressor(**options, **early).fit(rows, rows[:, 0])
    assert (seen["num_epochs"], seen["patience"]) == (num_epochs, patience)


@pytest.mark.parametrize("seed", range(3))
def test_few_epochs_of_a_small_table_are_not_ended_by_a_handful_of_rows(seed):
    """Six rows tell nothing after twenty steps, as many as a tenth of the epochs were."""
    X = np.random.default_rng(seed).normal(size=(64, 4))
    model = IBVIRegressor((8,), max_epochs=200, random_state=0).fit(X, X.sum(1))
    assert model.score(X, X.sum(1)) > 0.9


@pytest.mark.parametrize(
    ("model", "options", "share"),
    [
        (IBVIRegressor, {}, 0.0),
        (IBVIRegressor, {"max_epochs": 999}, 1.0),  # steps, too few for the rate to fall
        (IBVIRegressor, {"max_epochs": 1000}, 0.0),
        (IBVIClassifier, {}, 1.0),
    ],
)
def test_the_rate_falls_for_numbers_where_training_is_long(monkeypatch, model, options, share):
    rates = []
    begin = ibvi.training.loop.step_scheduler

    def see(optim, history):
        begin(optim, history)
        rates.append(optim.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(ibvi.training.loop, "step_scheduler", see)
    X = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    model((4,), early_stopping=False, **options).fit(X, X[:, 0] > 0)
    full = rates[0] if share else max(rates)
    assert rates[-1] == pytest.approx(share * full, abs=1e-12)
    assert len(rates) == options.get("max_epochs", 2000)


def test_classes_and_numbers_have_the_front_doors_optimizer():
    X, y = load_iris(return_X_y=True)
    for estimator, likelihood in (
        (IBVIClassifier, ibvi.Categorical()),
        (IBVIRegressor, ibvi.Normal(0.5)),
    ):
        fitted = estimator(**QUICK, max_epochs=1).fit(X, y).network_
        plain = ibvi.VariationalNetwork(torch.nn.Linear(4, 3), likelihood)
        assert type(fitted.optim.optimizer) is type(plain.optim.optimizer)
        assert fitted.optim.lr == plain.optim.lr


def test_an_optimizer_of_ones_own_has_the_rates_of_its_family():
    class Signs(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(p.grad.sign(), alpha=-group["lr"])

    def rates(**options):
        options = {**QUICK, "learning_rate": 0.01, "max_epochs": 1, **options}
        fitted = IBVIClassifier(**options).fit(*load_iris(return_X_y=True)).network_
        return [group["lr"] for group in fitted.optim.optimizer.param_groups]

    with pytest.raises(ValueError, match='pass family="sgd" if it does, family="adam"'):
        rates(optimizer=Signs)
    assert rates(optimizer=Signs, family="adam") == rates(optimizer=torch.optim.Adam)
    assert rates(optimizer=Signs, family="sgd") != rates(optimizer=Signs, family="adam")


def test_numbers_of_a_table_get_a_mixture_unless_the_choice_is_the_users():
    X, y = load_iris(return_X_y=True)

    def num_components(estimator=IBVIRegressor, **options):
        fitted = estimator(**{**QUICK, "max_epochs": 1, **options}).fit(X, y).network_
        return len(fitted.guide.components)

    assert (num_components(), num_components(IBVIClassifier)) == (4, 1)
    assert num_components(IBVIClassifier, num_components=3) == 3
    assert num_components(num_components=np.int64(2)) == 2
    assert num_components(covariance=ibvi.LowRank(2)) == num_components(network=whole_batch) == 1
    assert num_components(covariance=ibvi.LowRank(2), num_components=3) == 3


@pytest.mark.parametrize(
    ("num_rows", "options", "expected"),
    [
        (150, {}, 1.0),
        (5000, {}, 0.5),
        (5000, {"init_scale": 0.3}, 0.3),
        (5000, {"init_scale": np.float32(0.25)}, 0.25),
        (5000, {"network": whole_batch}, 1.0),
    ],
)
def test_noise_of_numbers_starts_by_the_number_of_rows(num_rows, options, expected):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(num_rows, 3))
    quick = {**QUICK, "max_epochs": 1, "validation_fraction": 0.2, "learning_rate": 1e-9}

    def scale(**options):
        fitted = IBVIRegressor(**quick, **options).fit(X, X[:, 0]).network_
        return fitted.guide.components[0].scale("net.0.weight")

    ones = scale(**{**options, "init_scale": 1.0})
    torch.testing.assert_close(scale(**options), expected * ones, rtol=1e-4, atol=0.0)


def test_single_precision_several_targets_and_a_network_of_ones_own(diabetes):
    X, y = (part.to_numpy(dtype=np.float32) for part in diabetes)
    Y = np.stack([y, -2 * y], 1)
    model = IBVIRegressor(**QUICK, max_epochs=2, network=torch.nn.Linear, noise_scale=0.7)
    mean, std = model.fit(X, Y).predict(X, return_std=True)
    assert mean.shape == std.shape == Y.shape
    assert mean.dtype == np.float32
    assert isinstance(model.network_, ibvi.VariationalNetwork)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_epochs": 0}, "max_epochs must be a positive whole number, got 0"),
        ({"num_components": 2.5}, "num_components must be a positive whole number, got 2.5"),
        ({"init_scale": "large"}, "init_scale must be positive and finite, got 'large'"),
        ({"init_scale": -1}, "init_scale must be positive and finite, got -1"),
        ({"hidden_layer_sizes": (8, -1)}, "Each of hidden_layer_sizes must be .*, got -1"),
        ({"validation_fraction": 1.5}, "validation_fraction is the share .*, got 1.5"),
        ({"validation_fraction": "a"}, "validation_fraction is the share .*, got 'a'"),
        ({"early_stopping": 5}, "early_stopping is True or False, got 5: .* is patience=5"),
        ({"activation": "relu"}, r"activation is the class .*torch\.nn\.SiLU, got 'relu'"),
        ({"activation": torch.nn.ReLU()}, r"activation is the class .*, got ReLU\(\)"),
        ({"network": torch.nn.Linear(1, 2)}, r"network is a function .*num_outputs: .*got Linear"),
        ({"network": lambda n: torch.nn.Linear(n, 2)}, r"network is a function .*, got <function"),
        (
            {"network": lambda n, m: torch.nn.Linear(n, 7)},
            r"network\(1, 2\) made .*of shape \(2, 7\) for 2 rows, and \(2, 2\) is needed",
        ),
        ({"class_weight": {0: -1.0, 1: 1.0}}, "class_weight must be 0 or more for each class"),
    ],
)
def test_a_wrong_option_gets_a_sentence(options, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        IBVIClassifier(**options).fit([[0.0], [1.0]], [0, 1])


def test_a_single_hidden_layer_may_be_a_number():
    X, y = load_iris(return_X_y=True)
    options = {**QUICK, "max_epochs": 2}
    one = IBVIClassifier(**{**options, "hidden_layer_sizes": 16}).fit(X, y)
    assert np.array_equal(one.predict(X), IBVIClassifier(**options).fit(X, y).predict(X))


def test_one_class_alone_is_named_as_it_is():
    with pytest.raises(ValueError, match="holds the 1 class 2 alone"):
        IBVIClassifier(**QUICK).fit([[0.0], [1.0]], [2, 2])


def test_text_is_no_number():
    with pytest.raises(ValueError, match=r"got targets such as 'a': .* write IBVIClassifier"):
        IBVIRegressor().fit([[0.0], [1.0]], ["a", "b"])


def test_weights_that_are_all_zero_and_a_network_that_is_none():
    X, y = pd.DataFrame({"a": [0.0, 1.0, 2.0]}), [0, 1, 1]
    with pytest.raises(ValueError, match=r"Every sample_weight is 0|at least one non-zero"):
        IBVIClassifier().fit(X, y, sample_weight=[0, 0, 0])
    with pytest.raises(TypeError, match=r"network is a function .* returns int"):
        IBVIClassifier(network=lambda a, b: a + b).fit(X, y)
