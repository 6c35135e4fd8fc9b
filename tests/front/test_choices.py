"""Names of a user's own that are those of the file's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_ibvi as ibvi
from pyro_ibvi.front.choices import describe, restore
from pyro_ibvi.models import MultiTask

NAMES = ["class", "same", "other", "=class", "==same", "=", "=size"]


def through_json(value: Any) -> Any:
    return restore(json.loads(json.dumps(describe(value))))


@pytest.mark.parametrize("value", ["Normal", 0, 0.5, None, [1, 2], {"same": 0}])
def test_mappings_come_back_whatever_their_keys(value: Any) -> None:
    for name in NAMES:
        assert through_json({name: value}) == {name: value}
        assert through_json({"class": {name: value}, name: 1}) == {"class": {name: value}, name: 1}
    assert through_json(dict.fromkeys(NAMES, value)) == dict.fromkeys(NAMES, value)


@pytest.mark.parametrize("names", [("class",), ("same",), ("other",), ("class", "same", "other")])
def test_tasks_are_saved_under_any_name(names: tuple[str, ...], tmp_path: Path) -> None:
    noise = ibvi.Normal(0.3, learn_scale=True)  # of several tasks, written once
    bnn = ibvi.VariationalNetwork(
        nn.Linear(2, len(names)), MultiTask(dict.fromkeys(names, (noise, 1)))
    )
    x = torch.randn(8, 2)
    bnn.fit(x, {name: torch.randn(8, 1) for name in names}, num_epochs=1, progress=False)
    bnn.save(tmp_path / "net.ibvi")
    again = ibvi.load(tmp_path / "net.ibvi", nn.Linear(2, len(names)))
    assert tuple(again.likelihood.widths) == names
    assert len({id(one) for one in again.likelihood.likelihoods.values()}) == 1
    found, expected = (one.predict(x, num_samples=3, seed=1) for one in (again, bnn))
    assert torch.equal(found.outputs, expected.outputs)
    assert torch.equal(found.variance, expected.variance)


class Line(nn.Module):
    """A network whose parameters and arguments have such names."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.other = nn.Parameter(torch.ones(1, 2)), nn.Parameter(torch.zeros(1))

    def forward(self, same: Tensor, other: Tensor) -> Tensor:
        return (same + other) @ self.same.T + self.other


@pytest.mark.filterwarnings("ignore:.*role")
def test_parameters_and_inputs_have_any_name(tmp_path: Path) -> None:
    roles = {
        "same": ibvi.WeightRole.of("output", fan_in=2, fan_out=1),
        "other": ibvi.WeightRole.of("bias", fan_in=1, fan_out=1),
    }
    prior: dict[str, Any] = {
        "other": dist.LogNormal(0.0, 1.0).expand([1]).to_event(1),
        "same": 0.5,
    }
    bnn = ibvi.VariationalNetwork(
        ibvi.RandomModule(Line(), stochastic=["same", "other"], prior=prior, roles=roles),
        ibvi.Normal(0.3),
        inputs={"same": "a", "other": "b"},
        target="y",
    )
    bnn.save(tmp_path / "net.ibvi")
    with pytest.raises(TypeError, match=r"prior={'other': LogNormal\(\.\.\.\)}"):
        ibvi.load(tmp_path / "net.ibvi", Line())
    given = {"other": prior["other"]}
    again = ibvi.load(tmp_path / "net.ibvi", Line(), prior=given)
    x = {"a": torch.randn(4, 2), "b": torch.randn(4, 2)}
    found, expected = (one.predict(x, num_samples=3, seed=1).mean for one in (again, bnn))
    assert torch.equal(found, expected)


def test_files_of_before_are_read() -> None:
    """As they were written while keys had no mark."""
    normal = {"class": "Normal", "scale": 0.3, "learn_scale": False}
    likelihood = restore({"class": "MultiTask", "tasks": {"size": [normal, 1]}})
    assert describe(likelihood)["tasks"] == {"size": [describe(ibvi.Normal(0.3)), 1]}
    for name in ("class", "same", "other"):  # could be written, but not read
        tasks = restore({"class": "MultiTask", "tasks": {name: [normal, 1]}})
        assert list(tasks.widths) == [name]
