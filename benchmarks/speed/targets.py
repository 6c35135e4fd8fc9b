"""What was wanted, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.names import (
    BY_HAND,
    DETERMINISTIC,
    INFERNO,
    MEAN_FIELD,
    OURS_SVI,
    PYRO,
    RANKS,
    family_name,
)

BYTES_PER_NUMBER = 4
NARROW = "33 narrow layers"
#: Largest wanted ratio of a step to the deterministic one, by family and network.
STEPS = {
    MEAN_FIELD: {"MLP 64": 2.5, "MLP 256": 2.0, "MLP 1024": 1.7, "MLP 2048": 1.6},
    "rank 10": {
        "MLP 64": 2.2,
        "MLP 256": 1.5,
        "MLP 1024": 1.1,
        "MLP 2048": 1.1,
        "LeNet-5": 1.1,
        "ResNet-18": 1.1,
    },
    "rank 100": {"MLP 2048": 1.4},
}
MEMORY = 1.15
FASTER_THAN_PYRO = 3.0
PREDICTION_FASTER_THAN_PYRO = 20.0
PREDICTION_FASTER_THAN_INFERNO = 2.0
NUM_DRAWS = "100"


@dataclass(frozen=True)
class Target:
    """A wanted number and the measured one.

    Attributes:
        what: What is compared.
        wanted: The limit.
        at_most: Whether the measured number may not be larger; else it may not be smaller.
        measured: The measured number.
        where: The network that decides, where the target is for several.
    """

    what: str
    wanted: float
    at_most: bool
    measured: float
    where: str = ""

    @property
    def reached(self) -> bool:
        """Whether the measured number is within the limit, as precisely as it is printed."""
        measured = round(self.measured, 2)
        return measured <= self.wanted if self.at_most else measured >= self.wanted


def rows(results: dict[str, Any], part: str, family: str, who: str) -> dict[str, Any]:
    """What a part of the results says of a contender, by network."""
    found = {}
    for network, entry in results.get(part, {}).items():
        families = entry["draws"][NUM_DRAWS] if part == "prediction" else entry["families"]
        if who in families.get(family, {}):
            found[network] = families[family][who]
    return found


def worst(
    what: str, wanted: float, measured: dict[str, float], pick: Callable[..., str] = min
) -> Iterator[Target]:
    """The target for several networks, decided by the one where it is farthest."""
    if measured:
        where = pick(measured, key=measured.__getitem__)
        yield Target(what, wanted, pick is max, measured[where], where)


def step_targets(results: dict[str, Any]) -> Iterator[Target]:
    """Steps against ordinary training, inferno and Pyro."""
    for family, limits in STEPS.items():
        measured = rows(results, "steps", family, OURS_SVI)
        for network, limit in limits.items():
            if network in measured:
                what = f"step / deterministic step, {family}, {network}"
                yield Target(what, limit, True, measured[network]["ratio"])
    for family in STEPS:
        for who, wanted in ((INFERNO, 1.0), (PYRO, FASTER_THAN_PYRO)):
            measured = rows(results, "steps", family, who)
            ratios = {n: row["against_ours"] for n, row in measured.items()}
            narrow = ratios.pop(NARROW, None) if (family, who) == (MEAN_FIELD, INFERNO) else None
            yield from worst(f"{who}'s step / ours, {family}", wanted, ratios)
            if narrow is not None:
                yield Target(f"{who}'s step / ours, {family}, {NARROW}", wanted, False, narrow)


def factor_bytes(row: dict[str, Any], deterministic: dict[str, Any]) -> int:
    """Size of the factor S."""
    return BYTES_PER_NUMBER * (row["num_parameters"] - deterministic["num_parameters"])


def without_factor(row: dict[str, Any], deterministic: dict[str, Any], copies: int) -> float:
    """Peak memory less some copies of S, in units of ordinary training's."""
    factor = factor_bytes(row, deterministic)
    return (row["steps"] - copies * factor) / deterministic["steps"]


def memory_targets(results: dict[str, Any]) -> Iterator[Target]:
    """Peak memory with low rank, less S; also less what trains S, its gradient and momentum."""
    ordinary = rows(results, "memory", DETERMINISTIC, DETERMINISTIC)
    for family in map(family_name, RANKS):
        measured = rows(results, "memory", family, OURS_SVI)
        for copies, name in ((1, "S"), (3, "S, its gradient and momentum")):
            ratios = {
                network: without_factor(row, ordinary[network], copies)
                for network, row in measured.items()
            }
            what = f"peak memory without {name} / deterministic, {family}"
            yield from worst(what, MEMORY, ratios, max)


def prediction_targets(results: dict[str, Any]) -> Iterator[Target]:
    """Prediction against Pyro's Predictive, inferno and a loop."""

    def ratios(who: str, family: str = MEAN_FIELD) -> dict[str, float]:
        measured = rows(results, "prediction", family, who)
        return {n: row["against_ours"] for n, row in measured.items()}

    mlps = {n: ratio for n, ratio in ratios(PYRO).items() if n.startswith("MLP")}
    yield from worst(
        f"Predictive / ours, {NUM_DRAWS} draws, MLP", PREDICTION_FASTER_THAN_PYRO, mlps
    )
    lenet = {n: ratio for n, ratio in ratios(INFERNO).items() if n == "LeNet-5"}
    what = f"inferno's prediction / ours, {NUM_DRAWS} draws"
    yield from worst(what, PREDICTION_FASTER_THAN_INFERNO, lenet)
    for family in (MEAN_FIELD, "rank 10"):
        what = f"a loop / our prediction, {NUM_DRAWS} draws, {family}"
        yield from worst(what, 1.0, ratios(BY_HAND, family))


def all_targets(results: dict[str, Any]) -> list[Target]:
    """Every target that the results can decide."""
    return [
        *step_targets(results),
        *memory_targets(results),
        *prediction_targets(results),
    ]
