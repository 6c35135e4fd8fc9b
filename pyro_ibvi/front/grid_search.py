"""Choices for one network, such as how much noise, by trainings with every combination."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.tables import table_lines
from pyro_ibvi.front.network import VariationalNetwork
from pyro_ibvi.front.trials import Trials, check_build, index_of_best, shown_nll


@dataclass(frozen=True)
class GridSearch:
    """What trainings with several choices came to; prints as a table.

    Attributes:
        choices: The combinations, a dictionary each.
        nlls: Negative log predictive density on the validation data after each, in nats per
            datum, of several tasks the sum of theirs; infinite where the training diverged.
    """

    choices: tuple[dict[str, Any], ...]
    nlls: tuple[float, ...]

    @property
    def best(self) -> dict[str, Any]:
        """The combination with the smallest ``nll``."""
        return self.choices[index_of_best(self.nlls)]

    def __str__(self) -> str:
        rows = [(*self.choices[0], "nll", "")]
        for choice, nll in zip(self.choices, self.nlls, strict=True):
            cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in choice.values()]
            rows.append((*cells, shown_nll(nll), "best" * (choice is self.best)))
        return "\n".join(table_lines(rows))


@named_arguments()
def grid_search(
    build: Callable[..., VariationalNetwork],
    grid: Mapping[str, Sequence[Any]],
    data: Any,
    y: Any = None,
    *,
    valid_loader: Any,
    num_epochs: int,
    batch_size: int | None = None,
    num_samples: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> GridSearch:
    """Trains a network with every combination of choices and compares them on validation data.

    How much noise serves best goes with the data: those with little noise of their own, and
    enough to fix the network, ask for little. It shows only in a training as long as the one that
    it is chosen for, since noise protects from what comes late. Each training begins at the same
    random state and sees the same batches.

    Args:
        build: Makes the network for a combination, whose names are its arguments, such as
            ``lambda s: VariationalNetwork(net, likelihood, covariance=Multiplicative(s))``.
        grid: The values to try, by the name of the argument.
        data: Training data, in any form that ``fit`` takes.
        y: The targets, if ``data`` are inputs.
        valid_loader: Validation data, likewise; inputs with targets as a pair.
        num_epochs: Number of epochs of each training.
        batch_size: Number of data in a step, where they come without a loader; by default 128.
        num_samples: Number of draws by which the validation data are predicted.
        seed: Seed of all trainings; the global random state and the generators of loaders are as
            before in the end.
        progress: Whether to show a progress bar; there is none where output is no terminal.

    Returns:
        The negative log predictive densities, with the best combination.

    Raises:
        TypeError: If ``grid`` is no mapping of lists, or ``build`` is no function of its names or
            makes something else.
        ValueError: If there are not two combinations, or all trainings diverged.

    Example:
        >>> import torch, pyro_ibvi as ibvi
        >>> from torch import nn
        >>> x = torch.linspace(-1, 1, 64).unsqueeze(-1)
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        >>> def build(scale):
        ...     return ibvi.VariationalNetwork(
        ...         net, ibvi.Normal(0.1), covariance=ibvi.Multiplicative(scale, rate=0.0))
        >>> found = ibvi.grid_search(
        ...     build, {"scale": [0.03, 0.3]}, x[::2], x[::2] ** 2,
        ...     valid_loader=(x[1::2], x[1::2] ** 2), num_epochs=100)
        >>> found.best
        {'scale': 0.03}
    """
    choices = _combinations(grid)
    trials = Trials(data, y, valid_loader, num_epochs, batch_size, num_samples, seed, progress)
    call = f"lambda {', '.join(grid)}: VariationalNetwork(net, likelihood, ...)"
    check_build(build, call, **choices[0])
    nlls = trials.nlls([partial(build, **choice) for choice in choices], "grid search", call)
    if all(math.isinf(nll) for nll in nlls):
        raise ValueError(
            f"Training diverged with every choice, {choices[0]} to {choices[-1]}: try smaller "
            f"rates, and look whether inputs and targets are standardized."
        )
    _warn_of_idle(choices, nlls)
    return GridSearch(tuple(choices), nlls)


def _warn_of_idle(choices: Sequence[dict[str, Any]], nlls: Sequence[float]) -> None:
    """Warns of a choice whose trainings are equal to the last digit, as those are of one seed."""
    for name in choices[0]:
        found: dict[str, set[float]] = {}
        for choice, nll in zip(choices, nlls, strict=True):
            others = repr({key: value for key, value in choice.items() if key != name})
            found.setdefault(others, set()).add(nll)
        is_idle = len(found) < len(choices) and all(len(nll) == 1 for nll in found.values())
        if is_idle and math.isfinite(min(nlls)):
            warnings.warn(
                f"The choice {name!r} changes nothing, to the last digit: let build pass it on, "
                f"or leave it out of the grid.",
                UserWarning,
                stacklevel=4,
            )


def _combinations(grid: Any) -> list[dict[str, Any]]:
    """Every combination of the values of a grid."""
    is_grid = isinstance(grid, Mapping) and all(isinstance(name, str) for name in grid)
    if is_grid:  # a sweep over an array
        is_array = {name: getattr(values, "ndim", 0) == 1 for name, values in grid.items()}
        grid = {name: v.tolist() if is_array[name] else v for name, v in grid.items()}
    if not is_grid or not all(
        isinstance(v, Sequence) and not isinstance(v, str) for v in grid.values()
    ):
        raise TypeError(
            f"grid must have a list of values for each argument of build, such as "
            f'{{"scale": [0.1, 0.2, 0.35]}}, got {grid!r}.'
        )
    choices = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    if len(choices) < 2:
        raise ValueError(
            f"There is nothing to choose from in grid={grid!r}: give two values or more."
        )
    return choices
