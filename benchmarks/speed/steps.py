"""Steps of training: every contender on every network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch

from benchmarks.speed import timing
from benchmarks.speed.contenders import Contender, Trainer
from benchmarks.speed.names import DETERMINISTIC, OURS_SVI
from benchmarks.speed.networks import Network

Key = tuple[str, str]


def make_trainers(
    network: Network, contenders: Sequence[Contender], device: torch.device
) -> dict[Key, Trainer]:
    """The contenders on one batch, by family and name."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    x, y = network.data(network.batch, device)
    return {(c.family, c.who): c.make(network, x, y) for c in contenders}


def work(trainer: Trainer, device: torch.device) -> dict[str, Any]:
    """What a step does, so that nobody is fast by doing less."""
    trainer.step()  # some parameters are made by the first step
    drawn = []
    changed = timing.fraction_changed(
        lambda: drawn.append(timing.random_numbers(trainer.step)), trainer.parameters
    )
    result = {
        "fraction_trained": changed,
        "num_parameters": sum(p.numel() for p in trainer.parameters()),
        "random_numbers": drawn[0],
    }
    syncs = timing.host_syncs(trainer.step, device)
    return result if syncs is None else {**result, "host_syncs": syncs}


def measure_network(
    network: Network, contenders: Sequence[Contender], rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Times and ratios on one network, by family and contender.

    Args:
        network: The network.
        contenders: The contenders; ordinary training is one of them.
        rounds: Number of timed steps of each.
        device: Where they run.

    Returns:
        For each the median ``ms``, the ``ratio`` to the deterministic step of the same round,
        ``against_ours``, the ratio to this package's ``SVI`` step with the same random weights,
        and what the step does.

    Raises:
        FloatingPointError: If training ends in parameters that are not finite.
    """
    trainers = make_trainers(network, contenders, device)
    works = {key: work(trainer, device) for key, trainer in trainers.items()}
    calls = {" / ".join(key): trainer.step for key, trainer in trainers.items()}
    times = timing.in_turn(calls, rounds, device, warmup=0 if rounds < 10 else 5)
    base = times[f"{DETERMINISTIC} / {DETERMINISTIC}"]
    results: dict[str, dict[str, Any]] = {}
    for (family, who), trainer in trainers.items():
        if not all(p.isfinite().all() for p in trainer.parameters()):
            raise FloatingPointError(f"{who}, {family}, ends in parameters that are not finite.")
        ours = times.get(f"{family} / {OURS_SVI}")
        row = timing.summary(times[f"{family} / {who}"], ratio=base, against_ours=ours)
        results.setdefault(family, {})[who] = {**row, **works[family, who]}
    return results


def measure(
    networks: Mapping[str, Network],
    contenders: Sequence[Contender],
    device: torch.device,
    *,
    quick: bool,
) -> dict[str, Any]:
    """The same for every network, with the batch size beside it."""
    results = {}
    for name, network in networks.items():
        rounds = min(network.rounds, 2) if quick else network.rounds
        families = measure_network(network, contenders, rounds, device)
        ratios = {
            f"{who}, {family}": round(row["ratio"], 2)
            for family, rows in families.items()
            for who, row in rows.items()
        }
        print("step,", name, ratios, flush=True)
        results[name] = {"batch": network.batch, "families": families}
    return results
