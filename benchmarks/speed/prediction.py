"""Prediction: class probabilities averaged over draws of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.speed import timing
from benchmarks.speed.contenders import Contender
from benchmarks.speed.names import BY_HAND, OURS_SVI, OURS_TORCH
from benchmarks.speed.networks import Network
from benchmarks.speed.steps import make_trainers

NUM_ROWS = 1000
NUM_DRAWS = (16, 100)
ROUNDS = 3
#: Draws of the ResNet on so many rows take minutes on a processor.
NETWORKS = ("MLP 64", "MLP 256", "LeNet-5", "33 narrow layers")
FAMILIES = ("mean-field", "rank 10")


def measure_network(
    network: Network,
    contenders: Sequence[Contender],
    num_draws: int,
    num_rows: int,
    rounds: int,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """Times of a prediction by family and contender, and their ratios to the loop and to ours.

    Args:
        network: The network.
        contenders: The contenders; those that do not predict are left out.
        num_draws: Number of draws of the weights.
        num_rows: Number of inputs.
        rounds: Number of timed predictions.
        device: Where they run.

    Returns:
        For each the median ``ms``, the ratio ``against_loop`` to the hand-written loop of the
        same round, ``against_ours``, and the random numbers drawn.
    """
    trainers = make_trainers(network, contenders, device)
    x, _ = network.data(num_rows, device)
    calls = {}
    for (family, who), trainer in trainers.items():
        if trainer.predict is not None:
            trainer.step()  # guides and some parameters are made by the first step
            calls[f"{family} / {who}"] = partial(trainer.predict, x, num_draws)
    drawn = {name: timing.random_numbers(call) for name, call in calls.items()}
    times = timing.in_turn(calls, rounds, device, warmup=1)
    results: dict[str, dict[str, Any]] = {}
    for name, values in times.items():
        family, _, who = name.partition(" / ")
        row = timing.summary(
            values,
            against_loop=times.get(f"{family} / {BY_HAND}"),
            against_ours=times.get(f"{family} / {OURS_SVI}"),
        )
        results.setdefault(family, {})[who] = {**row, "random_numbers": drawn[name]}
    return results


def measure(
    networks: Mapping[str, Network],
    contenders: Sequence[Contender],
    device: torch.device,
    *,
    quick: bool,
) -> dict[str, Any]:
    """The same for several networks and numbers of draws."""
    chosen = [c for c in contenders if c.family in FAMILIES and c.who != OURS_TORCH]
    results: dict[str, Any] = {}
    for name in NETWORKS:
        if name not in networks:
            continue
        results[name] = {"rows": 20 if quick else NUM_ROWS, "draws": {}}
        for num_draws in NUM_DRAWS:
            families = measure_network(
                networks[name],
                chosen,
                num_draws,
                results[name]["rows"],
                1 if quick else ROUNDS,
                device,
            )
            results[name]["draws"][str(num_draws)] = families
            times = {f: {w: round(r["ms"], 1) for w, r in v.items()} for f, v in families.items()}
            print(f"{num_draws} draws,", name, times, flush=True)
    return results
