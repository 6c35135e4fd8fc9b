r"""Coordinate check: do activations keep their size, and learn at one pace, as a network widens?

For a network with random weights :math:`w = \text{loc} + S z` the check trains for a few steps at
each width and measures, at the output :math:`h_t(z)` of every layer after ``t`` steps, root mean
squares over data, units and a fixed set of draws ``z``:

================ =================================================================================
quantity         what it is
================ =================================================================================
``size``         :math:`h_t(z)`
``spread``       :math:`h_t(z)` minus its mean over draws
``change``       :math:`h_t(z) - h_0(z)`
``mean change``  the mean of :math:`h_t(z) - h_0(z)` over draws
``loc``          what one parameter's mean changed, by the parameter's name: its layer's output
                 with its ``loc`` of step ``t`` and everything else of step 0, minus
                 :math:`h_0(z)`
``factor``       the same for one parameter's covariance factor ``S``
``layer factor`` the same for the factor that a layer has beside those of its parameters
                 (:class:`~pyro_ibvi.Kronecker`), by what it does through one parameter
================ =================================================================================

Under the maximal update parametrization the log-log slopes of sizes and changes over widths are
zero for hidden layers; the output of the first step may fall as ``width^-1/2``.

References:
    Yang, Hu et al., Tensor Programs V, 2022, arXiv:2203.03466, appendix D.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from pyro.infer import SVI
from torch import Tensor
from torch.optim import Optimizer
from tqdm.auto import tqdm

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.diagnostics.probe import KINDS, Key, Probe
from pyro_ibvi.diagnostics.slopes import log_log_slope
from pyro_ibvi.guides.normal import AutoMuPNormal
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.mup.parametrization import Family
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.training.optim import MuPOptim

Build: TypeAlias = Callable[[int], tuple[SupervisedModel, AutoMuPNormal]]

#: Added to a run's seed for the draws that train and for those that measure, so that they differ.
_TRAIN_SEED = 20_000
_MEASURE_SEED = 10_000


@dataclass(frozen=True)
class CoordinateCheck:
    """What :func:`coordinate_check` measured.

    Attributes:
        widths: Widths of the networks.
        rms: Root mean squares by (quantity, step, name), one row per width, one entry per seed;
            the name is a layer's, or a parameter's for the quantities ``loc``, ``factor`` and
            ``layer factor``. Where widths have different numbers of seeds, of which the smallest
            is ``n``, entries ``i`` and ``i + n`` have the same noise.
    """

    widths: tuple[int, ...]
    rms: Mapping[Key, tuple[tuple[float, ...], ...]]

    def mean(self, quantity: str, step: int, layer: str) -> list[float]:
        """The quantity at each width, the root mean square over seeds.

        Args:
            quantity: Name of the quantity, see :mod:`pyro_ibvi.diagnostics.coordinates`.
            step: Number of optimizer steps.
            layer: Name of the layer in the network.

        Returns:
            A number per width.

        Raises:
            KeyError: If that was not measured.
        """
        key = (quantity, step, layer)
        if key not in self.rms:
            raise KeyError(f"No {key!r} was measured; there are {sorted(self.rms)}.")
        return _root_mean_squares(self.rms[key])

    def slope(self, quantity: str, step: int, layer: str) -> float:
        """Least-squares slope of the logarithm of a quantity over that of the width.

        Args:
            quantity: Name of the quantity.
            step: Number of optimizer steps.
            layer: Name of the layer in the network.

        Returns:
            The slope: 0 if the quantity does not depend on the width, NaN if it is zero or not
            finite at some width.
        """
        return log_log_slope(self.widths, self.mean(quantity, step, layer))

    def slope_error(self, quantity: str, step: int, layer: str) -> float:
        """Standard error of a slope, by the jackknife over the seeds of the noise.

        One is left out at every width, so that what its runs have in common does not count.

        Args:
            quantity: Name of the quantity.
            step: Number of optimizer steps.
            layer: Name of the layer in the network.

        Returns:
            The standard error, NaN where a width has a single run.
        """
        self.mean(quantity, step, layer)  # the error for a key that is not there
        rows = self.rms[quantity, step, layer]
        num_seeds = min(map(len, rows))
        if num_seeds < 2:
            return math.nan
        slopes = []
        for left_out in range(num_seeds):
            rest = [[v for i, v in enumerate(row) if i % num_seeds != left_out] for row in rows]
            slopes.append(log_log_slope(self.widths, _root_mean_squares(rest)))
        return math.sqrt(num_seeds - 1) * statistics.pstdev(slopes)

    def largest_slope(
        self,
        quantities: Iterable[str] = ("size", "change"),
        *,
        layers: Iterable[str] | None = None,
        from_step: int = 0,
    ) -> float:
        """Largest absolute slope, the number to compare with a tolerance.

        Args:
            quantities: Quantities to look at.
            layers: Layers to look at; all by default.
            from_step: First step to look at.

        Returns:
            The slope's absolute value; infinite if a quantity vanished or diverged.

        Raises:
            ValueError: If nothing was measured that fits.
        """
        quantities, chosen = set(quantities), None if layers is None else set(layers)
        slopes = [
            abs(self.slope(*key))
            for key in self.rms
            if key[0] in quantities
            and key[1] >= from_step
            and (chosen is None or key[2] in chosen)
        ]
        if not slopes:
            raise ValueError(
                f"Nothing was measured of {sorted(quantities)} from step {from_step} on"
                + (f" in the layers {sorted(chosen)}." if chosen is not None else ".")
            )
        return max(math.inf if math.isnan(slope) else slope for slope in slopes)

    def to_dict(self) -> dict[str, Any]:
        """Numbers and strings alone, for JSON.

        Returns:
            The widths and one record per quantity, step and layer, with its slope (None for NaN).
        """
        records = []
        for (quantity, step, layer), rows in self.rms.items():
            slope = self.slope(quantity, step, layer)
            records.append(
                {
                    "quantity": quantity,
                    "step": step,
                    "layer": layer,
                    "slope": None if math.isnan(slope) else slope,
                    "rms": [list(row) for row in rows],
                }
            )
        return {"widths": list(self.widths), "records": records}

    def plot(self, quantity: str = "change", *, step: int | None = None, ax: Any = None) -> Any:
        """Draws a quantity of each layer over the width, both axes logarithmic.

        Args:
            quantity: Name of the quantity.
            step: Number of optimizer steps; the last by default.
            ax: Axes of matplotlib; new ones by default.

        Returns:
            The axes.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots()[1]
        step = max(key[1] for key in self.rms) if step is None else step
        for layer in dict.fromkeys(k[2] for k in self.rms if k[:2] == (quantity, step)):
            label = f"{layer} ({self.slope(quantity, step, layer):+.2f})"
            ax.plot(self.widths, self.mean(quantity, step, layer), "o-", label=label)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set(xlabel="width", ylabel=f"{quantity}, step {step}")
        ax.legend(title="layer (slope)")
        return ax

    def __str__(self) -> str:
        layer_width = max(5, *(len(layer) for _, _, layer in self.rms))
        head = f"{'quantity':<12} {'step':>4} {'layer':<{layer_width}} "
        lines = [head + " ".join(f"{w:>9}" for w in self.widths) + f" {'slope':>7}"]
        for key in self.rms:
            values = " ".join(f"{value:9.3g}" for value in self.mean(*key))
            slope = f"{self.slope(*key):+7.2f}"
            lines.append(f"{key[0]:<12} {key[1]:>4} {key[2]:<{layer_width}} {values} {slope}")
        return "\n".join(lines)


def coordinate_check(
    build: Build,
    widths: Sequence[int],
    data: tuple[Any, Tensor],
    *,
    optimizer: type[Optimizer] = torch.optim.SGD,
    optim_args: dict[str, Any] | None = None,
    family: Family | None = None,
    loss: Any = None,
    steps: Sequence[int] = (1, 10),
    num_seeds: int | Sequence[int] = 3,
    num_draws: int = 8,
    progress: bool = True,
) -> CoordinateCheck:
    """Measures how activations and their changes depend on a network's width.

    Each run starts from its seed, so that the same call gives the same numbers, and leaves the
    global random state as it was. Networks are measured in evaluation mode, with the same draws
    of the noise before and after training. A run trains and is measured with the same noise at
    each width, as far as its shape allows (that of a low-rank factor is the same), which makes
    slopes more precise.

    Args:
        build: Makes a fresh model and its initialized guide for a width.
        widths: At least two widths.
        data: Inputs and targets; every step is on all of them.
        optimizer: Class of the torch optimizer.
        optim_args: Its arguments, ``{"lr": 0.1}`` by default.
        family: How an optimizer that is not one of torch's scales its updates.
        loss: Pyro's loss; ``TraceExpectedLogLikelihood(reduction="mean")`` by default.
        steps: Numbers of optimizer steps after which to measure.
        num_seeds: Number of runs per width, or one number for each width: narrow networks cost
            less and vary more. There are as many seeds of the noise as the smallest number, and
            the runs take them in turn, so multiples of it are best.
        num_draws: Number of weight draws that measure.
        progress: Whether to show a progress bar; there is none where output is no terminal.

    Returns:
        The measurements, with slopes, a table and a picture.

    Raises:
        ValueError: If widths, steps or a number of runs do not make sense.

    Example:
        >>> import pyro_ibvi as ibvi
        >>> from torch import nn
        >>> def build(width):
        ...     net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
        ...     model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal())
        ...     return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(4))
        >>> data = torch.randn(16, 4), torch.randn(16, 1)
        >>> check = coordinate_check(build, [32, 128], data, steps=[1], num_seeds=2)
        >>> abs(check.slope("size", 0, "0")) < 0.5
        True
    """
    widths, steps = checked_widths(widths), sorted(_checked_list("steps", steps, 1))
    seeds = _checked_seeds(num_seeds, len(widths))
    check_positive_int("num_draws", num_draws)
    loss = TraceExpectedLogLikelihood(reduction="mean") if loss is None else loss
    runs: dict[Key, list[list[float]]] = {}
    bar = tqdm(total=sum(seeds), desc="coordinate check", disable=None if progress else True)
    for width, count in zip(widths, seeds, strict=True):
        rows: dict[Key, list[float]] = {}
        for seed in range(count):
            with own_random_numbers(seed):
                model, guide = checked_build(build, width)
                optim = MuPOptim(optimizer, dict(optim_args or {"lr": 0.1}), guide, family=family)
                svi = SVI(model, guide, optim, loss)
                # Making a network takes random numbers, more the wider it is.
                noise_seed = seed % min(seeds)
                torch.manual_seed(noise_seed + _TRAIN_SEED)
                for key, value in _measure_run(svi, data, steps, num_draws, noise_seed).items():
                    rows.setdefault(key, []).append(value)
            bar.update()
        for key, row in rows.items():
            runs.setdefault(key, []).append(row)
    bar.close()
    rms = {
        key: tuple(tuple(row) for row in rows) for key, rows in sorted(runs.items(), key=_order)
    }
    return CoordinateCheck(tuple(widths), rms)


def _order(item: tuple[Key, Any]) -> tuple[int, int]:
    """By quantity, then by step; layers stay in the order of the data flow."""
    quantities = ("size", "spread", "change", "mean change", *KINDS)
    return quantities.index(item[0][0]), item[0][1]


def _measure_run(
    svi: SVI, data: tuple[Any, Tensor], steps: Sequence[int], num_draws: int, noise_seed: int
) -> dict[Key, float]:
    """Trains one network and measures it before the first and after the given steps."""
    probe = Probe(svi.model, svi.guide, data[0], num_draws, noise_seed + _MEASURE_SEED)
    result = dict(probe.measure(0))
    done = 0
    for step in steps:
        with module_mode(svi.model, svi.guide, training=True):
            for _ in range(step - done):
                svi.step(*data)
        done = step
        result.update(probe.measure(step))
    return result


def _root_mean_squares(rows: Iterable[Sequence[float]]) -> list[float]:
    """One number per row."""
    return [math.sqrt(sum(v * v for v in row) / len(row)) for row in rows]


def checked_build(build: Build, width: int) -> tuple[SupervisedModel, AutoMuPNormal]:
    """What ``build`` makes for a width, checked.

    Args:
        build: The user's function.
        width: The width.

    Returns:
        The model and the guide.

    Raises:
        TypeError: If it makes something else.
    """
    built = build(width)
    kinds = (SupervisedModel, AutoMuPNormal)
    fits = isinstance(built, tuple) and len(built) == len(kinds)
    if not fits or not all(isinstance(b, kind) for b, kind in zip(built, kinds, strict=True)):
        raise TypeError(
            f"build({width}) must return a SupervisedModel and its AutoMuPNormal guide, got "
            f"{type(built).__name__}: write `return model, guide`."
        )
    return built


def checked_widths(widths: Iterable[int]) -> list[int]:
    """The widths, at least two different ones.

    Args:
        widths: What the user gave.

    Returns:
        The widths as a list.

    Raises:
        ValueError: If they are something else.
    """
    return _checked_list("widths", widths, 2)


def _checked_seeds(num_seeds: int | Sequence[int], num_widths: int) -> list[int]:
    """A number of runs for each width."""
    if not isinstance(num_seeds, Sequence):
        num_seeds = [num_seeds] * num_widths
    if len(num_seeds) != num_widths:
        raise ValueError(
            f"num_seeds must be one number, or one for each of the {num_widths} widths, got "
            f"{num_seeds!r}."
        )
    for number in num_seeds:
        check_positive_int("num_seeds", number)
    return list(num_seeds)


def _checked_list(name: str, values: Iterable[int], at_least: int) -> list[int]:
    result = list(values)
    whole = all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in result)
    if len(set(result)) < max(at_least, len(result)) or not whole:
        raise ValueError(
            f"{name} must be at least {at_least} different positive whole numbers, got {result}."
        )
    return result
