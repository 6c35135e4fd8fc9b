"""How the time grows with depth, rank, batch and draws; growth in width is in the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.speed import prediction, steps
from benchmarks.speed.contenders import (
    Contender,
    Make,
    by_hand,
    deterministic,
    ours,
    stock_pyro,
)
from benchmarks.speed.names import (
    BY_HAND,
    DETERMINISTIC,
    INFERNO,
    OURS_SVI,
    PYRO,
    family_name,
)
from benchmarks.speed.networks import Network, mlp
from benchmarks.speed.peers import inferno

DEPTHS = (1, 4, 16, 64)
RANKS = (1, 10, 100, 300)
BATCHES = (32, 128, 512, 2048)
DRAWS = (1, 4, 16, 64)
#: Makers for a rank, where None is mean-field.
MAKERS: dict[str, Callable[[int | None], Make]] = {
    BY_HAND: by_hand,
    OURS_SVI: lambda rank: ours(rank, svi=True),
    INFERNO: inferno,
    PYRO: stock_pyro,
}


def contenders_of(rank: int | None, who: Sequence[str]) -> list[Contender]:
    """The contenders in the plots, ordinary training first."""
    family = family_name(rank)
    return [
        Contender(DETERMINISTIC, DETERMINISTIC, deterministic),
        *(Contender(name, family, make(rank)) for name, make in MAKERS.items() if name in who),
    ]


def times(families: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds and ratios by contender."""
    keys = ("ms", "ratio", "against_loop", "against_ours")
    return {
        who: {key: row[key] for key in keys if key in row}
        for rows in families.values()
        for who, row in rows.items()
    }


def growth_of_steps(
    networks: dict[int, Network], ranks: dict[int, int | None], who: Sequence[str], **how: Any
) -> dict[str, Any]:
    """Times of a step by value on the axis."""
    return {
        str(value): times(steps.measure_network(network, contenders_of(ranks[value], who), **how))
        for value, network in networks.items()
    }


def measure(who: Sequence[str], device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Times along each axis.

    Args:
        who: The contenders to measure, of those that the plots show.
        device: Where they run.
        quick: Whether to measure few points and rounds.

    Returns:
        For each axis what is held fixed and the times by value and contender.
    """
    end = 2 if quick else None
    how: dict[str, Any] = {"rounds": 2 if quick else 15, "device": device}
    depths = {n: mlp((64,) * n, 0) for n in DEPTHS[:end]}
    batches = {n: mlp((256,) * 3, 0, batch=n) for n in BATCHES[:end]}
    ranks = {n: mlp((1024,) * 3, 0) for n in RANKS[:end]}
    num_rows = 20 if quick else prediction.NUM_ROWS
    draws = {
        str(n): times(
            prediction.measure_network(
                mlp((256,) * 3, 0), contenders_of(None, who), n, num_rows, **how
            )
        )
        for n in DRAWS[:end]
    }
    mean_field = dict.fromkeys([*depths, *batches])
    results = {
        "hidden layers": {
            "fixed": "a step, mean-field, width 64, batch 128",
            "times": growth_of_steps(depths, mean_field, who, **how),
        },
        "batch": {
            "fixed": "a step, mean-field, MLP 256",
            "times": growth_of_steps(batches, mean_field, who, **how),
        },
        "rank": {
            "fixed": "a step, random input and output layer, MLP 1024, batch 128",
            "times": growth_of_steps(ranks, {n: n for n in ranks}, who, **how),
        },
        "draws": {
            "fixed": f"a prediction, mean-field, MLP 256, {num_rows} rows",
            "times": draws,
        },
    }
    print("growth measured", flush=True)
    return results
