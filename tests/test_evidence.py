"""The comparison of methods: scores against other libraries, tables from committed runs."""

import json

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from benchmarks.evidence import data, networks, records, report, scores, series

P = torch.softmax(torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).double(), -1)
Y = (torch.rand(200, generator=torch.Generator().manual_seed(1)) < P[:, 1]).long()


def test_scores_are_those_of_scikit_learn():
    found = scores.classification(P, Y)
    assert found["nll"] == pytest.approx(log_loss(Y, P), rel=1e-5)
    # Summed over both classes, which doubles it.
    assert found["brier"] == pytest.approx(2 * brier_score_loss(Y, P[:, 1]), rel=1e-5)
    detected = scores.detection(P[Y == 1, 1], P[Y == 0, 1])
    assert detected["auroc"] == pytest.approx(roc_auc_score(Y, P[:, 1]), rel=1e-12)


@pytest.mark.parametrize("module", [data, series])
def test_corruptions_grow(module):
    """In their distance from what they corrupt, which they leave as it is."""
    shape = (20, 3, 16, 16) if module is data else (20, 25, 12)
    values = ndi.gaussian_filter(
        np.random.RandomState(0).rand(*shape), (0, *[1] * (len(shape) - 1))
    )
    before = values.copy()
    for kind in module.CORRUPTIONS:
        copies = [module.corrupt(values, kind, severity) for severity in module.SEVERITIES]
        assert all(copy.shape == values.shape for copy in copies)
        distances = [np.abs(copy - values).mean() for copy in copies]
        assert 0 < distances[0] < distances[-1]
        assert all(np.diff(distances) > -0.1 * distances[-1])
    assert np.array_equal(values, before)


@pytest.fixture
def _fast_path():
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.usefixtures("_fast_path")
@pytest.mark.parametrize("name", ["lenet5", "resnet8", "transformer"])
def test_dropout_acts_on_every_network(name):
    shape = {"lenet5": (1, 28, 28), "resnet8": (3, 32, 32), "transformer": (25, 12)}[name]
    x = torch.randn(2, *shape)
    net = networks.NETWORKS[name]()
    expected = net.eval()(x)
    with_dropout = networks.with_dropout(net, 0.2).eval()
    with torch.no_grad():
        torch.testing.assert_close(with_dropout(x), expected)
        for module in with_dropout.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train()
        assert not torch.equal(with_dropout(x), with_dropout(x))
    # Also inside, where a fast path of torch's would leave it out.
    with_dropout[-2].eval()
    with torch.no_grad():
        assert not torch.equal(with_dropout(x), with_dropout(x))


def test_the_temperature_is_found():
    calibrated = torch.softmax(
        torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)), -1
    )
    y = torch.multinomial(calibrated, 1, generator=torch.Generator().manual_seed(1)).squeeze(-1)
    assert scores.find_temperature(scores.tempered(calibrated, 0.5), y) == pytest.approx(
        2, abs=0.1
    )


def test_the_tables_hold_the_means_of_the_committed_runs():
    for task in report.task_names():
        runs = report.chosen_runs(task, "last")["MC dropout"]
        found = [run["last"]["test"]["nll"] for run in runs]
        assert len({run["seed"] for run in runs}) == len(runs) >= 3
        (row,) = [r for r in report.image_table(task, "last").splitlines() if "MC dropout" in r]
        assert f"| {sum(found) / len(found):.3f}\u00a0±" in row


def test_a_run_is_found_by_what_tells_it_from_others(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_IBVI_RESULTS", str(tmp_path))
    runs = records.Records("runs", ("settings", "seed"))
    assert runs.find({"settings": {"lr": 0.1, "p": 0.5}, "seed": 0}) is None
    for seed in (0, 1):
        runs.add({"settings": {"lr": 0.1, "p": 0.5}, "seed": seed, "score": seed + 1.0})
    again = records.Records("runs", ("settings", "seed"))
    found = again.find({"settings": {"p": 0.5, "lr": 0.1}, "seed": 1})
    assert found is not None
    assert found["score"] == 2.0
    assert found["versions"]["torch"] == torch.__version__
    assert again.find({"settings": {"lr": 0.2, "p": 0.5}, "seed": 1}) is None
    assert len(records.read(tmp_path / "runs.jsonl")) == 2


def test_differences_are_paired_by_seed():
    task = "lenet5_fashion_12k"
    one, other = (
        {run["seed"]: run["last"]["test"]["error"] for run in report.chosen_runs(task, "last")[c]}
        for c in ("mixture with relative noise", "deterministic")
    )
    gaps = 100 * np.array([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])
    rows = report.differences_table("mixture with relative noise", ["deterministic"], "last")
    (row,) = [r for r in rows.splitlines() if report.title(task) in r]
    error = gaps.std(ddof=1) / len(gaps) ** 0.5
    assert f"| {gaps.mean():.2f}\u00a0±\u00a0{error:.2f} |" in row


def test_the_table_of_splits_takes_the_settings_that_validation_chose(tmp_path, monkeypatch):
    lines = [
        {
            "data": "yacht",
            "contender": "deterministic",
            "settings": {"lr": lr},
            "split": split,
            "valid": {"log_likelihood": valid},
            "test": {"log_likelihood": test, "rmse": 1.0},
        }
        for lr, valid, test, splits in ((0.1, -1.0, -3.0, 2), (0.2, -0.5, -2.0, 4))
        for split in range(splits)
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "uci.jsonl").write_text(text + "\n")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "| deterministic | -2.00\u00a0±\u00a00.00 |" in report.uci_table("log_likelihood")


def test_validation_chooses_the_noise_of_four_components(tmp_path, monkeypatch):
    rows = [
        ("four components, two draws a step", -1.0, -5.0),
        ("four components with relative noise", -0.5, -2.0),
        ("MC dropout", -0.7, -2.25),
    ]
    lines = [
        {
            "data": "yacht",
            "contender": contender,
            "settings": {},
            "split": split,
            "valid": {"log_likelihood": valid},
            "test": {"log_likelihood": test + split, "rmse": 1.0},
        }
        for contender, valid, test in rows
        for split in range(3)
    ]
    (tmp_path / "uci.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    found = report.uci_differences_table(report.CHOSEN_FOUR, ["MC dropout", "deterministic"])
    assert "| MC dropout | 0.250\u00a0±\u00a00.000 |" in found
    assert "| deterministic | - |" in found


def test_estimators_are_compared_on_the_splits_that_both_were_trained_on(tmp_path, monkeypatch):
    runs = [(1, 0, -1.0, 2.0), (1, 1, -3.0, 2.0), (1, 2, 9.0, 1.0)]
    runs += [(4, 0, -0.5, 3.0), (4, 1, -1.5, 7.0)]
    names = ("num_components", "split", "log_likelihood", "seconds")
    lines = [json.dumps({"data": "iris", **dict(zip(names, run, strict=True))}) for run in runs]
    (tmp_path / "estimators.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (row,) = [line for line in report.estimators_table().splitlines() if "iris" in line]
    cells = [cell.strip().replace("\u00a0", " ") for cell in row.split("|")[1:-1]]
    assert cells == ["iris", "-2.000 ± 1.000", "-1.000 ± 0.500", "1.000 ± 0.500", "2.5"]
