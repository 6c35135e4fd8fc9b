"""What a network of one's own and data as they come give at the first try: a result or a word."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi
from pyro_ibvi.models import MultiTask

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3
QUIET = {"num_epochs": 1, "progress": False, "batch_size": 20}


def mlp(num_outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, num_outputs))


def trained(net, likelihood, *data, **options):
    """The first epoch's loss, by one seed."""
    torch.manual_seed(1)
    bnn = ibvi.VariationalNetwork(net, likelihood, **options)
    torch.manual_seed(2)
    return bnn.fit(*data, **QUIET).train_loss[0]


ROWS = {
    "pairs": [(x, int(y)) for x, y in zip(X, LABELS, strict=True)],
    "pairs of tensors": list(zip(X, LABELS, strict=True)),
    "lists": [[x, y] for x, y in zip(X, LABELS.numpy(), strict=True)],
    "records": [{"image": x, "label": int(y)} for x, y in zip(X, LABELS, strict=True)],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_list_of_rows_is_a_data_set(rows):
    """It would be taken for batches, of which each row has four data."""
    bnn = ibvi.VariationalNetwork(mlp(), ibvi.Categorical())
    bnn.fit(rows, **QUIET)
    assert bnn.model.num_data == 60
    found, whole = (bnn.evaluate(*data, seed=0, num_samples=5) for data in ((rows,), (X, LABELS)))
    assert found["nll"] == pytest.approx(whole["nll"], abs=1e-6)


PAIRS = torch.stack([LABELS.float(), -LABELS.float()], -1)
VECTORS = {
    "tensors": list(zip(X, PAIRS, strict=True)),
    "arrays": [(x.double().numpy(), y.double().numpy()) for x, y in zip(X, PAIRS, strict=True)],
    "lists": [[x.tolist(), y.tolist()] for x, y in zip(X, PAIRS, strict=True)],
    "tuples": [(tuple(x.tolist()), tuple(y.tolist())) for x, y in zip(X, PAIRS, strict=True)],
    "records": [{"x": x, "y": y} for x, y in zip(X, PAIRS, strict=True)],
}


@pytest.mark.parametrize("rows", VECTORS.values(), ids=VECTORS)
def test_rows_may_have_vectors_for_targets(rows):
    bnn = ibvi.VariationalNetwork(mlp(2), ibvi.Normal(1.0))
    bnn.fit(rows, **QUIET)
    assert bnn.model.num_data == 60
    found, whole = (bnn.evaluate(*data, seed=0, num_samples=5) for data in ((rows,), (X, PAIRS)))
    assert found["nll"] == pytest.approx(whole["nll"], rel=1e-5)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (("train.csv",), TypeError, "got 'train.csv', and files are not read here: read it first"),
        ((Path("train.csv"),), TypeError, "files are not read here"),
        ((b"1,2",), TypeError, "files are not read here"),
        ((X, "labels.csv"), TypeError, "got 'labels.csv', and files are not read here"),
        (
            (DataLoader(TensorDataset(X, X), 20), X),
            TypeError,
            "come with the DataLoader.* leave out y",
        ),
        ((None,), TypeError, "Data are expected, got None: pass inputs and targets"),
        ((3,), TypeError, "Data are expected, got 3"),
        (([],), ValueError, "The data are an empty list"),
    ],
    ids=["name", "path", "bytes", "name of labels", "given twice", "nothing", "number", "empty"],
)
def test_what_is_no_data_hears_what_is_expected(data, error, message):
    bnn = ibvi.VariationalNetwork(mlp(), ibvi.Categorical())
    for ask in (lambda: bnn.fit(*data, **QUIET), lambda: bnn.evaluate(*data)):
        with pytest.raises(error, match=message):
            ask()


def test_a_network_that_returns_an_array_hears_that_it_learns_nothing():
    class ByNumPy(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach().numpy()

    bnn = ibvi.VariationalNetwork(ByNumPy(*mlp()), ibvi.Categorical())
    with pytest.raises(TypeError, match=r"returned a NumPy array, which has left autograd"):
        bnn.fit(X, LABELS, **QUIET)


def test_a_list_of_batches_stays_one():
    batches = list(zip(X.split(20), LABELS.split(20), strict=True))
    bnn = ibvi.VariationalNetwork(mlp(), ibvi.Categorical())
    bnn.fit(batches, **QUIET)
    assert bnn.model.num_data == 60


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_tensors_are_told_of_dense_ones(convert):
    bnn = ibvi.VariationalNetwork(mlp(), ibvi.Categorical())
    with pytest.raises(TypeError, match=r"cut out of dense tensors.* pass x\.to_dense\(\)"):
        bnn.fit(convert(X), LABELS, **QUIET)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "int8", "uint8"])
def test_labels_of_any_type_of_numpys_are_the_same_labels(dtype):
    labels = LABELS.numpy()
    expected = trained(mlp(), ibvi.Categorical(), X, labels)
    assert trained(mlp(), ibvi.Categorical(), X, labels.astype(dtype)) == expected
    counts = labels[:, None].astype(dtype)
    expected = trained(mlp(1), ibvi.Poisson(), X, labels[:, None])
    assert trained(mlp(1), ibvi.Poisson(), X, counts) == expected


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64], ids=str)
@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (ibvi.Categorical(), LABELS),
        (ibvi.Categorical(ignore_index=2), LABELS),
        (ibvi.Poisson(), LABELS[:, None]),
        (ibvi.Bernoulli(), (LABELS > 0).long()[:, None]),
    ],
    ids=["labels", "some ignored", "counts", "yes or no"],
)
def test_types_that_torch_has_by_name_only_are_taken_as_what_they_count(likelihood, y, dtype):
    width = 3 if isinstance(likelihood, ibvi.Categorical) else 1
    expected = trained(mlp(width), likelihood, X, y)
    assert trained(mlp(width), likelihood, X, y.to(dtype)) == expected
    bnn = ibvi.VariationalNetwork(mlp(width), likelihood)
    assert bnn.evaluate(X, y.to(dtype), seed=0) == bnn.evaluate(X, y, seed=0)
    prediction = bnn.predict(X, seed=0)
    for score in (prediction.log_prob, lambda y: torch.tensor(ibvi.score(prediction, y)["nll"])):
        torch.testing.assert_close(score(y.to(dtype)), score(y))


def test_labels_that_lack_hear_of_ignore_index():
    labels = pd.Series(LABELS.numpy()).astype("Int64")
    labels[::6] = pd.NA
    with pytest.raises(TypeError, match=r"y\.fillna\(-1\).* Categorical\(ignore_index=-1\)"):
        trained(mlp(), ibvi.Categorical(), X, labels)
    mended = labels.fillna(-1).astype(int)
    loss = trained(mlp(), ibvi.Categorical(ignore_index=-1), X, mended)
    assert np.isfinite(loss)


@pytest.mark.parametrize(
    ("options", "missing"),
    [({"target": -5}, "-5"), ({"target": "label"}, "'label'"), ({"inputs": "x"}, "'x'")],
)
def test_a_part_that_a_pair_does_not_have_is_named(options, missing):
    with pytest.raises(ValueError, match=rf"no part {missing}; it is a tuple .* \[0, 1\]"):
        trained(mlp(), ibvi.Categorical(), X, LABELS, **options)


@dataclass
class Answer:
    """What many libraries return: no mapping, no tuple."""

    logits: torch.Tensor
    hidden: Any = None


class Answering(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return Answer(self.net(x), hidden=x)


def test_logits_of_a_dataclass_are_those_of_the_network_itself():
    assert trained(Answering(), ibvi.Categorical(), X, LABELS) == trained(
        mlp(), ibvi.Categorical(), X, LABELS
    )


class Words(nn.Module):
    def __init__(self, *, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last = nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, words):
        return self.last(self.table(words).mean(1))


def test_a_sparse_table_learns_as_a_dense_one():
    words = torch.arange(300).reshape(60, 5) % 9
    net = Words(sparse=True)
    with pytest.warns(UserWarning, match=r"'table' has sparse=True, and takes sparse=False"):
        found = trained(net, ibvi.Categorical(), words, LABELS)
    assert found == trained(Words(sparse=False), ibvi.Categorical(), words, LABELS)
    assert net.table.sparse  # the user's own stays as it is


def test_lazy_norm_layers_get_their_shapes_from_the_example():
    lazy = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(3))
    bnn = ibvi.VariationalNetwork(lazy, ibvi.Categorical(), example_input=X[:2])
    bnn.fit(X, LABELS, **QUIET)
    assert bnn.predict(X, num_samples=3).mean.shape == (60, 3)


def test_a_network_without_values_is_refused():
    with torch.device("meta"):
        net = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"meta device.*load_state_dict\(state, assign=True\)"):
        ibvi.VariationalNetwork(net, ibvi.Categorical())
    net.load_state_dict(nn.Linear(4, 3).state_dict(), assign=True)
    assert ibvi.VariationalNetwork(net, ibvi.Categorical()).predict(X).mean.shape == (60, 3)


def test_options_of_other_libraries_are_told_of_these():
    with pytest.raises(TypeError, match=r"order of the labels, as in weight=\[1.0, 2.0\]"):
        ibvi.Categorical(weight={"a": 1.0, "b": 2.0})
    bnn = ibvi.VariationalNetwork(mlp(), ibvi.Categorical())
    with pytest.raises(TypeError, match=r"IBVIRegressor\(\)\.fit\(X, y, sample_weight="):
        bnn.fit(X, LABELS, sample_weight=torch.ones(60))


@pytest.mark.parametrize(
    ("likelihood", "target"),
    [
        (ibvi.Normal(0.3), [0.5, float("nan")]),
        (ibvi.Bernoulli(), [1.0, float("nan")]),
        (ibvi.Poisson(), [2.0, float("nan")]),
    ],
    ids=str,
)
def test_targets_that_lack_are_refused_in_scores_as_in_training(likelihood, target):
    """Some scores left them out and others were NaN; Masked says that they may lack."""
    y = torch.tensor(target).repeat(30).unsqueeze(-1)
    words = r"The target holds nan at .*left out by Masked"
    bnn = ibvi.VariationalNetwork(mlp(1), likelihood)
    prediction = bnn.predict(X, num_samples=3)
    for refused in (
        lambda: bnn.fit(X, y, **QUIET),
        lambda: bnn.evaluate(X, y, num_samples=3),
        lambda: prediction.log_prob(y),
        lambda: ibvi.score(prediction, y),
    ):
        with pytest.raises(ValueError, match=words):
            refused()
    seen = ~y.isnan().squeeze(-1)
    masked = ibvi.Prediction(prediction.outputs, ibvi.models.Masked(likelihood))
    found = ibvi.score(masked, y)
    expected = ibvi.score(ibvi.Prediction(prediction.outputs[:, seen], likelihood), y[seen])
    assert found == pytest.approx(expected, abs=1e-6)


class TwoHeads(nn.Module):
    def __init__(self, pack):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.mean, self.spread = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 1)
        self.pack = pack

    def forward(self, x):
        h = self.trunk(x).tanh()
        return self.pack(self.mean(h), self.spread(h))


@pytest.mark.parametrize(
    ("pack", "words"),
    [
        (lambda a, b: (a, b), r"torch\.cat\(\[out\[0\], out\[1\]\], -1\)"),
        (lambda a, b: {"mean": a, "logvar": b}, r"\[out\['mean'\], out\['logvar'\]\], -1\)"),
    ],
)
@pytest.mark.parametrize("around", [lambda law: law, ibvi.models.Masked])
def test_two_heads_of_a_mean_and_a_scale_hear_how_to_join_them(pack, words, around):
    bnn = ibvi.VariationalNetwork(TwoHeads(pack), around(ibvi.HeteroscedasticNormal()))
    with pytest.raises(TypeError, match=words):
        bnn.fit(X, X[:, :1], **QUIET)
    joined = TwoHeads(lambda a, b: torch.cat([a, b], -1))
    expected = trained(joined, ibvi.HeteroscedasticNormal(), X, X[:, :1])
    found = trained(
        TwoHeads(pack),
        ibvi.HeteroscedasticNormal(),
        X,
        X[:, :1],
        output=lambda out: torch.cat([*(out.values() if isinstance(out, dict) else out)], -1),
    )
    assert found == expected


def test_a_grid_of_several_tasks_compares_the_sum_of_theirs():
    tasks = {"kind": (ibvi.Categorical(), 3), "size": (ibvi.Normal(0.5), 1)}
    y = {"kind": LABELS, "size": X[:, :1]}
    made = []

    def build(lr):
        made.append(ibvi.VariationalNetwork(mlp(4), MultiTask(tasks), lr=lr))
        return made[-1]

    options = {"valid_loader": (X, y), "num_epochs": 1, "progress": False}
    found = ibvi.grid_search(build, {"lr": [1e-3, 1e-2]}, X, y, num_samples=8, **options)
    for bnn, nll in zip(made, found.nlls, strict=True):
        scores = bnn.evaluate(X, y, num_samples=8, seed=0)
        assert nll == pytest.approx(scores["kind/nll"] + scores["size/nll"])
