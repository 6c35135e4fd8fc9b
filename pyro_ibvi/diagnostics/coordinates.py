r"""Coordinate check: do activations keep their size, and learn at one pace, as a network grows?

For a network with random weights :math:`w = \text{loc} + S z` the check trains for a few steps at
each size and measures, at the output :math:`h_t(z)` of every layer after ``t`` steps, root mean
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

Over depths, blocks that repeat are taken together: ``trunk.*.up`` is the layer ``up`` of every
block of ``trunk``, by the root mean square over them. ``trunk.*`` is what the last block gives:
its size and change, and, as ``loc`` and ``factor``, what the means or the factors of all blocks
changed together in it, everything else being that of step 0. The means' changes add up, and by
the depth rule theirs is flat (:class:`~pyro_ibvi.MaximalUpdate`, ``branches``). Blocks have noise
of their own, so what their factors change adds up by its squares: it falls as ``depth^-1/2``
where each of them changes its own layer by as much as its mean does.

References:
    Yang, Hu et al., Tensor Programs V, 2022, arXiv:2203.03466, appendix D. Dey et al., CompleteP,
    2025, arXiv:2505.01618.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, get_args

import torch
from pyro.infer import SVI
from torch import Tensor
from torch.optim import Optimizer
from tqdm.auto import tqdm

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int, is_whole
from pyro_ibvi._util.handlers import HANDLERS
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.diagnostics.coordinate_result import Axis, CoordinateCheck
from pyro_ibvi.diagnostics.probe import KINDS, Key, Probe
from pyro_ibvi.diagnostics.repeats import prefixes_of_blocks
from pyro_ibvi.guides.normal import AutoMuPNormal
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.mup.parametrization import Family
from pyro_ibvi.objectives.expected_log_likelihood import TraceExpectedLogLikelihood
from pyro_ibvi.training.optim import MuPOptim

Build: TypeAlias = Callable[[int], tuple[SupervisedModel, AutoMuPNormal]]

#: Added to a run's seed for the draws that train and for those that measure, so that they differ.
_TRAIN_SEED = 20_000
_MEASURE_SEED = 10_000


@named_arguments()
def coordinate_check(
    build: Build,
    sizes: Sequence[int],
    data: tuple[Any, Tensor],
    *,
    axis: Axis = "width",
    optimizer: type[Optimizer] = torch.optim.SGD,
    optim_args: dict[str, Any] | None = None,
    family: Family | None = None,
    loss: Any = None,
    steps: int | Sequence[int] = (1, 10),
    num_seeds: int | Sequence[int] = 3,
    num_draws: int = 8,
    progress: bool = True,
) -> CoordinateCheck:
    """Measures how activations and their changes depend on a network's width or depth.

    Each run starts from its seed, so that the same call gives the same numbers, and leaves the
    global random state as it was. Networks are measured in evaluation mode, with the same draws
    of the noise before and after training. A run trains and is measured with the same noise at
    each width, as far as its shape allows (that of a low-rank factor is the same), which makes
    slopes more precise.

    Args:
        build: Makes a fresh model and its initialized guide for a width, or for a depth.
        sizes: At least two widths, or two depths.
        data: Inputs and targets; every step is on all of them.
        axis: What the sizes are. Over ``"depth"`` blocks that repeat are taken together, see
            :mod:`pyro_ibvi.diagnostics.coordinates`.
        optimizer: Class of the torch optimizer.
        optim_args: Its arguments, ``{"lr": 0.1}`` by default.
        family: How an optimizer that is not one of torch's scales its updates.
        loss: Pyro's loss; ``TraceExpectedLogLikelihood(reduction="mean")`` by default.
        steps: Numbers of optimizer steps after which to measure.
        num_seeds: Number of runs per size, or one number for each size: narrow networks cost
            less and vary more. There are as many seeds of the noise as the smallest number, and
            the runs take them in turn, so multiples of it are best.
        num_draws: Number of weight draws that measure.
        progress: Whether to show a progress bar; there is none where output is no terminal.

    Returns:
        The measurements, with slopes, a table and a picture.

    Raises:
        ValueError: If sizes, steps or a number of runs do not make sense, or a network has no
            blocks that repeat and the axis is its depth.

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
    _check_axis(axis)
    sizes, steps = checked_sizes(f"{axis}s", sizes), sorted(_checked_list("steps", steps, 1))
    seeds = _checked_seeds(num_seeds, len(sizes), axis)
    check_positive_int("num_draws", num_draws)
    loss = TraceExpectedLogLikelihood(reduction="mean") if loss is None else loss
    runs: dict[Key, list[list[float]]] = {}
    bar = tqdm(total=sum(seeds), desc="coordinate check", disable=None if progress else True)
    for place, (size, count) in enumerate(zip(sizes, seeds, strict=True)):
        for seed in range(count):
            with own_random_numbers(seed):
                model, guide = checked_build(build, size)
                blocks = prefixes_of_blocks(model.net.network, size) if axis == "depth" else {}
                optim = MuPOptim(optimizer, dict(optim_args or {"lr": 0.1}), guide, family=family)
                svi = SVI(model, guide, optim, loss)
                # Making a network takes random numbers, more the larger it is.
                noise_seed = seed % min(seeds)
                torch.manual_seed(noise_seed + _TRAIN_SEED)
                probe = Probe(model, guide, data[0], num_draws, noise_seed + _MEASURE_SEED, blocks)
                for key, value in _measure_run(svi, probe, data, steps).items():
                    # What does not change at some size has no slope, and is a row of zeros there.
                    rows = runs.setdefault(key, [[0.0] * number for number in seeds])
                    rows[place][seed] = value
            bar.update()
    bar.close()
    rms = {
        key: tuple(tuple(row) for row in rows) for key, rows in sorted(runs.items(), key=_order)
    }
    return CoordinateCheck(tuple(sizes), rms, axis)


def _order(item: tuple[Key, Any]) -> tuple[int, int]:
    """By quantity, then by step; layers stay in the order of the data flow."""
    quantities = ("size", "spread", "change", "mean change", *KINDS)
    return quantities.index(item[0][0]), item[0][1]


def _measure_run(
    svi: SVI, probe: Probe, data: tuple[Any, Tensor], steps: Sequence[int]
) -> dict[Key, float]:
    """Trains one network and measures it before the first and after the given steps."""
    result = dict(probe.measure(0))
    done = 0
    for step in steps:
        with module_mode(svi.model, svi.guide, training=True):
            for _ in range(step - done):
                with HANDLERS:
                    svi.step(*data)
        done = step
        result.update(probe.measure(step))
    return result


def checked_build(build: Build, size: int) -> tuple[SupervisedModel, AutoMuPNormal]:
    """What ``build`` makes for a width or a depth, checked.

    Args:
        build: The user's function.
        size: The width or depth.

    Returns:
        The model and the guide.

    Raises:
        TypeError: If it makes something else.
    """
    built = build(size)
    kinds = (SupervisedModel, AutoMuPNormal)
    fits = isinstance(built, tuple) and len(built) == len(kinds)
    if not fits or not all(isinstance(b, kind) for b, kind in zip(built, kinds, strict=True)):
        raise TypeError(
            f"build({size}) must return a SupervisedModel and its AutoMuPNormal guide, got "
            f"{type(built).__name__}: write `return model, guide`."
        )
    return built


def checked_sizes(name: str, sizes: Iterable[int]) -> list[int]:
    """The sizes, at least two different ones.

    Args:
        name: What they are, for the message.
        sizes: What the user gave.

    Returns:
        The sizes as a list.

    Raises:
        ValueError: If they are something else.
    """
    return _checked_list(name, sizes, 2)


def _check_axis(axis: str) -> None:
    if axis not in get_args(Axis):
        raise ValueError(f"axis must be 'width' or 'depth', got {axis!r}.")


def _checked_seeds(num_seeds: int | Sequence[int], num_sizes: int, axis: str) -> list[int]:
    """A number of runs for each size."""
    if not isinstance(num_seeds, Sequence):
        num_seeds = [num_seeds] * num_sizes
    if len(num_seeds) != num_sizes:
        raise ValueError(
            f"num_seeds must be one number, or one for each of the {num_sizes} {axis}s, got "
            f"{num_seeds!r}."
        )
    for number in num_seeds:
        check_positive_int("num_seeds", number)
    return list(num_seeds)


def _checked_list(name: str, values: Any, at_least: int) -> list[int]:
    result = [values] if is_whole(values) else list(values)
    whole = all(is_whole(v) and v > 0 for v in result)
    if len(set(result)) < max(at_least, len(result)) or not whole:
        raise ValueError(
            f"{name} must be at least {at_least} different positive whole numbers, got {result}."
        )
    return result
