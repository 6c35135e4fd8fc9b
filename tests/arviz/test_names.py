"""Shapes, names and labels of an export, and what is never exported unasked."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoNormal,
)

from pyro_ibvi.arviz import to_arviz
from tests.arviz.pairs import N, groups, hierarchical, network_model


def test_dimensions_come_from_plates_and_no_size_one_dimension_is_dropped(data):
    result = to_arviz(hierarchical, AutoNormal(hierarchical), *data, num_samples=2)
    posterior = result.posterior
    assert posterior["tau"].dims == ("chain", "draw")
    assert posterior["one"].dims == ("chain", "draw", "one_dim_0")
    assert posterior["one"].shape == (1, 2, 1)
    assert posterior["theta"].dims == ("chain", "draw", "group")
    assert posterior["beta"].dims == ("chain", "draw", "beta_dim_0")
    assert result.log_likelihood["y"].dims == ("chain", "draw", "data")
    assert result.log_likelihood["total"].dims == ("chain", "draw")
    assert result.observed_data["y"].dims == ("data",)
    assert result.constant_data["x"].dims == ("data", "x_dim_1")
    assert set(result.constant_data) == {"x", "group"}
    np.testing.assert_array_equal(result.observed_data["y"].values, data[2].numpy())
    np.testing.assert_array_equal(result.constant_data["x"].values, data[0].numpy())


def test_size_one_plates_and_single_draws_keep_their_dimensions():
    def model(y):
        with pyro.plate("a", 1, dim=-2), pyro.plate("b", 1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    result = to_arviz(model, AutoNormal(model), torch.zeros(1, 1, 1), num_samples=1)
    assert result.posterior["z"].dims == ("chain", "draw", "a", "b", "z_dim_2")
    assert result.posterior["z"].shape == (1, 1, 1, 1, 1)
    assert result.log_likelihood["y"].dims == ("chain", "draw", "a", "b")


def test_dims_and_coords_of_the_user(data):
    index = pd.Index(list("abcdefg"), name="case")
    result = to_arviz(
        hierarchical,
        AutoNormal(hierarchical),
        *data,
        num_samples=2,
        dims={"beta": ["feature"], "x": [None, "feature"], "mean": ["data"]},
        coords={"data": index, "feature": ["height", "width"], "group": torch.tensor([5, 6, 7])},
    )
    assert list(result.posterior["beta"].coords["feature"].values) == ["height", "width"]
    assert list(result.log_likelihood["y"].coords["data"].values) == list("abcdefg")
    assert list(result.posterior["theta"].coords["group"].values) == [5, 6, 7]
    assert result.constant_data["x"].dims == ("data", "feature")
    assert result.posterior["mean"].dims == ("chain", "draw", "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": {"beta": ["a", "b"]}}, "name all of them, or only the 1 that no plate names"),
        ({"coords": {"group": [1, 2]}}, r"2 labels for a dimension of length 3; labels of new"),
        ({"coords": {"data": pd.MultiIndex.from_product([range(N), [1]])}}, "index.map"),
        ({"var_names": ["gamma*"]}, r"'gamma\*' matches no site; the sites are 'tau', 'one'"),
        ({"groups": ["posteriors"]}, r"Unknown groups \['posteriors'\]"),
        ({"dims": {"gamma": ["a"]}}, r"dims speaks of \['gamma'\]; there are \['beta'"),
        ({"coords": {"feature": [1, 2]}}, r"coords speaks of \['feature'\]; there are"),
        ({"dtype": "int8"}, "floating-point type such as 'float32', got 'int8'"),
        ({"groups": ["predictions"]}, r"\['predictions'\] would be empty: .* predictions=x"),
        ({"num_samples": 0}, "num_samples must be a positive whole number, got 0"),
        ({"max_bytes": 100}, r"need \d+ bytes, more than max_bytes=100; the largest .*var_names="),
        ({"dims": {"mean": ["group"]}}, "Dimension 'group' has length 3 in one variable and 7"),
    ],
)
def test_wrong_options_are_sentences(options, message, data):
    with pytest.raises(ValueError, match=message):
        to_arviz(hierarchical, AutoNormal(hierarchical), *data, **{"num_samples": 2} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"var_names": "tau"}, r"write \['tau'\]"),
        ({"constant_data": torch.zeros(3)}, r'by name, \{"x": x\}, got a tensor of shape \(3,\)'),
        ({"seed": torch.Generator()}, "seed must be a whole number, got Generator"),
    ],
)
def test_options_of_another_kind_are_sentences(options, message, data):
    with pytest.raises(TypeError, match=message):
        to_arviz(hierarchical, AutoNormal(hierarchical), *data, num_samples=2, **options)


def test_column_targets_against_flat_means_raise():
    def model(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(loc.expand(5), 1.0), obs=y)

    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"shape \(5, 1\), but its distribution has shape \(5,\)"),
    ):
        to_arviz(model, AutoNormal(model), torch.zeros(5, 1), num_samples=1)


@pytest.mark.parametrize(
    ("var_names", "expected"),
    [
        (None, {"sigma"}),
        (["net.0.*"], {"net.0.weight", "net.0.bias"}),
        (["net.0.bias", "sigma"], {"net.0.bias", "sigma"}),
        (["*", "~*.weight"], {"net.0.bias", "sigma"}),
        (["~sigma"], set()),
    ],
)
def test_weights_of_networks_are_exported_only_when_named(var_names, expected, data):
    args = data[0], data[2]
    guide = AutoNormal(network_model)
    result = to_arviz(network_model, guide, *args, num_samples=2, var_names=var_names)
    found = set(result["posterior"]) if "posterior" in groups(result) else set()
    assert found == expected
    assert "y" in result.posterior_predictive


def test_attributes_and_history(data):
    guide = AutoNormal(hierarchical)
    objective = pyro.infer.Trace_ELBO()
    result = to_arviz(
        hierarchical,
        guide,
        *data,
        num_samples=2,
        objective=objective,
        loss_history=[3.0, 2.0, 1.0],
    )
    for attrs in (result.attrs, result.posterior.attrs):
        assert attrs["inference_library"] == "pyro"
        assert attrs["inference_library_version"] == pyro.__version__
        assert attrs["guide"] == "AutoNormal"
        assert attrs["model"] == "hierarchical"
        assert attrs["objective"] == "Trace_ELBO"
    options = {"num_samples": 1, "groups": ["posterior"]}
    bound = to_arviz(hierarchical, guide, *data, objective=objective.loss, **options)
    assert bound.attrs["objective"] == "Trace_ELBO"
    assert to_arviz(hierarchical, guide, *data, **options).attrs["objective"] == "not stated"
    assert result.sample_stats["loss"].dims == ("step",)
    assert list(result.sample_stats["loss"].values) == [3.0, 2.0, 1.0]


def test_deterministic_sites_inside_plates():
    def model(y):
        with pyro.plate("school", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            theta = pyro.deterministic("theta", 2 * z)
            pyro.deterministic("pair", torch.stack([z, theta], -1))
            pyro.deterministic("told", torch.stack([z, theta], -1), event_dim=1)
            pyro.deterministic("other", torch.zeros(3))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    result = to_arviz(model, AutoNormal(model), torch.zeros(4), num_samples=3)
    for group in (result.posterior, result.prior):
        assert group["theta"].dims == ("chain", "draw", "school")
        assert group["pair"].dims == ("chain", "draw", "school", "pair_dim_1")
        assert group["told"].dims == ("chain", "draw", "school", "told_dim_1")
        assert group["other"].dims == ("chain", "draw", "other_dim_0")
        np.testing.assert_array_equal(group["theta"].values, 2 * group["z"].values)


def test_names_that_a_file_cannot_hold():
    def model(y):
        with pyro.plate("y", len(y)):
            z = pyro.sample("a/z", dist.Normal(0.0, 1.0))
            pyro.sample("y_", dist.Normal(z, 1.0), obs=y)

    result = to_arviz(model, AutoNormal(model), torch.zeros(3), num_samples=2)
    assert result.posterior["a.z"].dims == ("chain", "draw", "y")

    def clash(y):
        pyro.sample("draw", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'chain' and 'draw' are taken"):
        to_arviz(clash, AutoNormal(clash), torch.zeros(3), num_samples=2)


def test_a_plate_named_like_a_site():
    def model(data):
        with pyro.plate("y", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y_obs", dist.Normal(z, 1.0), obs=data)
        pyro.sample("data_sum", dist.Normal(z.sum(), 1.0), obs=data.sum())

    def same(x):
        with pyro.plate("x", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    result = to_arviz(model, AutoNormal(model), torch.zeros(3), num_samples=2)
    assert result.posterior["z"].dims == ("chain", "draw", "y")
    result = to_arviz(same, AutoNormal(same), torch.zeros(3), num_samples=2)
    assert result.constant_data["x"].dims == ("x_dim_0",)


def test_changing_shapes_are_a_sentence():
    def model():
        n = 1 + int(torch.rand(()) * 100)
        pyro.deterministic("d", torch.zeros(n))

    def guide():
        pass

    with pytest.raises(ValueError, match=r"needs sites of fixed shape.*var_names=\['~d'\]"):
        to_arviz(model, guide, num_samples=20, seed=0)


@pytest.mark.parametrize("columns", [1, 2])
def test_a_plate_that_is_given_the_batch_labels_nothing(columns):
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2, columns), 1.0).to_event(2))
        mean = x @ weight
        with pyro.plate("data", 16, subsample=mean.squeeze(-1)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    data = torch.randn(5, 2), torch.randn(5, columns)
    result = to_arviz(model, AutoNormal(model), *data, num_samples=2)
    assert list(result.log_likelihood["y"].coords["data"].values) == [0, 1, 2, 3, 4]
