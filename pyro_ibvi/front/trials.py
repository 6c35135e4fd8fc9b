"""Trainings of networks that differ in one choice, compared on validation data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from pyro_ibvi._util.arguments import fits
from pyro_ibvi._util.random_state import own_generators, own_random_numbers
from pyro_ibvi.front.network import VariationalNetwork


@dataclass
class Trials:
    """What all trainings have in common: the data in the same order and the same random numbers.

    Attributes:
        data: Training data, in any form that ``fit`` takes.
        y: The targets, if ``data`` are inputs.
        valid: Validation data, likewise; inputs with targets as a pair.
        num_epochs: Number of epochs.
        batch_size: Number of data in a step, where they come without a loader; None for 128.
        num_samples: Number of draws by which the validation data are predicted.
        seed: Seed of each training.
        progress: Whether to show a progress bar; there is none where output is no terminal.
    """

    data: Any
    y: Any
    valid: Any
    num_epochs: int
    batch_size: int | None
    num_samples: int
    seed: int
    progress: bool
    _trained: set[nn.Parameter] = field(default_factory=set)

    def nlls(self, builds: Sequence[Callable[[], Any]], what: str, call: str) -> tuple[float, ...]:
        """The validation losses of new networks after training, infinite where that diverges.

        Args:
            builds: Make the networks.
            what: What the progress bar says.
            call: How the user writes what makes a network.

        Returns:
            The negative log predictive densities, in nats per datum.

        Raises:
            TypeError: If something else is made.
            ValueError: If a network shares parameters with the one that was trained before.
        """
        bar = tqdm(builds, desc=what, disable=None if self.progress else True)
        return tuple(self._nll(build, call) for build in bar)

    def _nll(self, build: Callable[[], Any], call: str) -> float:
        loaders = {"data": self.data, "valid": self.valid}
        with own_random_numbers(self.seed), own_generators(loaders):
            bnn = build()
            if not isinstance(bnn, VariationalNetwork):
                raise TypeError(
                    f"build must make a VariationalNetwork, got {type(bnn).__name__}: write "
                    f"{call}."
                )
            self._check_new(bnn)
            return self._train(bnn)

    def _check_new(self, bnn: VariationalNetwork) -> None:
        trained = {p: name for name, p in bnn.model.named_parameters() if p.requires_grad}
        shared = [name for parameter, name in trained.items() if parameter in self._trained]
        if shared:
            raise ValueError(
                f"The networks that build makes share {shared[0]!r}, so that one would go on from "
                f"what another learned: make the RandomModule inside of build."
            )
        self._trained = set(trained)

    def _train(self, bnn: VariationalNetwork) -> float:
        with warnings.catch_warnings():
            # Pyro announces what is a result here: some choice diverges.
            warnings.filterwarnings("ignore", message=r"Encountered (NaN|[+-]inf)")
            try:
                bnn.fit(
                    self.data,
                    self.y,
                    num_epochs=self.num_epochs,
                    batch_size=self.batch_size,
                    progress=False,
                )
            except FloatingPointError:
                return math.inf
            scores = bnn.evaluate(self.valid, num_samples=self.num_samples, seed=0)
            # Of several tasks each has its own, "task/nll".
            nll = sum(s for name, s in scores.items() if name.rpartition("/")[2] == "nll")
        return nll if math.isfinite(nll) else math.inf


def check_build(build: Any, call: str, *args: Any, **kwargs: Any) -> None:
    """Checks that networks can be made, before any is trained.

    Args:
        build: What the user gave to make them.
        call: What to write.
        *args: What it will be given by position.
        **kwargs: What it will be given by name.

    Raises:
        TypeError: If it is a network itself, or takes other arguments.
    """
    is_network = isinstance(build, (nn.Module, VariationalNetwork))
    if is_network or not callable(build) or not fits(build, args, kwargs):
        what = type(build).__name__
        if isinstance(build, type):
            what = f"the class {build.__name__}"
        elif not is_network and callable(build):
            what = f"one of {signature(build)}"
        raise TypeError(
            f"build must be a function that makes a VariationalNetwork, got {what}: write {call}."
        )


def shown_nll(nll: float) -> str:
    """A loss as tables of trainings show it."""
    return "diverged" if math.isinf(nll) else f"{nll:.4g}"


def index_of_best(nlls: Sequence[float]) -> int:
    """Where the smallest loss stands."""
    return min(range(len(nlls)), key=nlls.__getitem__)
