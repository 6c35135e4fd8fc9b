r"""How well a fit predicts, and how far its guide is from the posterior.

Leave-one-out cross-validation by importance sampling (:func:`arviz.loo`) takes its draws for
draws of the posterior. Draws of a guide are none, and an implicit-bias fit least of all: it fits
the training data without a penalty, and its distribution over the weights is flat along the
directions that the data leave free. The estimate then has no meaning, and its own diagnostic does
not tell. What remains honest:

- :func:`log_predictive_density`, on data that the fit has not seen: the default;
- :func:`pareto_k`, which says whether the guide may stand for the posterior at all;
- :func:`loo_approximate_posterior`, which corrects for the guide's density, if it has one and
  :func:`pareto_k` is small.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int, shown
from pyro_ibvi.arviz.draws import Sampler, log_density
from pyro_ibvi.arviz.gaps import drop_masked
from pyro_ibvi.arviz.groups import density_notes
from pyro_ibvi.arviz.heldout import HeldOut, LocalDraws
from pyro_ibvi.arviz.inputs import Inputs
from pyro_ibvi.arviz.running import evaluating
from pyro_ibvi.arviz.sites import subsamples

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class LogPredictiveDensity:
    r"""Log predictive density of data, :math:`\log \frac1S \sum_s p(y_n \mid w_s)` for each.

    Attributes:
        pointwise: Log densities in nats, one per datum; NaN where masked.
        num_samples: Number ``S`` of draws.
        pointwise_mc_se: Standard errors of ``pointwise`` for the number of draws, where known.
        given: Latent sites that the guide drew.
        summed: Latent sites whose states were summed out.
        averaged: Latent sites of single data that were integrated out by draws.
        checksum: Checksum of the observed values, where known.
    """

    pointwise: np.ndarray
    num_samples: int
    pointwise_mc_se: np.ndarray | None = None
    given: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()
    checksum: int | None = None

    @property
    def num_data(self) -> int:
        """Number of observations, masked ones apart."""
        return int(np.count_nonzero(~np.isnan(self.pointwise)))

    @property
    def total(self) -> float:
        """Sum over the observations in nats."""
        return float(np.nansum(self.pointwise))

    @property
    def se(self) -> float:
        """Standard error of the sum, for observations that are drawn independently."""
        return _standard_error(self.pointwise)

    @property
    def mean(self) -> float:
        """Mean over the observations in nats per datum."""
        return self.total / self.num_data

    @property
    def mean_se(self) -> float:
        """Standard error of the mean in nats per datum."""
        return self.se / self.num_data

    def __str__(self) -> str:
        return (
            f"log predictive density {self.mean:.4f} ± {self.mean_se:.4f} nats per datum "
            f"({self.num_data} data, {self.num_samples} draws{self._integrated()})"
        )

    def _integrated(self) -> str:
        parts = {"summed out": self.summed, "averaged": self.averaged}
        return "".join(f"; {', '.join(sites)} {how}" for how, sites in parts.items() if sites)


def _standard_error(pointwise: np.ndarray) -> float:
    values = pointwise[~np.isnan(pointwise)]
    return float(np.sqrt(len(values)) * np.std(values, ddof=1)) if len(values) > 1 else np.nan


@named_arguments()
def log_predictive_density(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    site: str | Sequence[str] | None = None,
    local: Collection[str] | None = None,
    local_draws: LocalDraws = "model",
    seed: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> LogPredictiveDensity:
    r"""Log predictive density of held-out data under a fit, with its standard error.

    .. math:: \log \hat p(y_n) = \log \frac1S \sum_{s=1}^S p(y_n \mid w_s), \quad w_s \sim q

    Only what all data share is drawn from the guide. A latent site is *local* if it belongs to
    single data: it lies in all plates of the observed site, or the guide computes it from the
    targets, or its plate has another size here than in the guide. A draw of it would have seen the
    datum, or be that of another one, so local sites are integrated out: enumerated ones (in the
    model or in the guide, in parallel or in sequence) by an exact sum over their states, unmarked
    ones of few states as well if the model can be run in all of them at once, and others by draws.
    Observations that share a local site are one datum, with their joint density: a
    sequence of a hidden Markov model, an image of many pixels.

    The sum over draws is accumulated as they are made: memory does not grow with their number.

    Args:
        model: Pyro model.
        guide: Its trained guide.
        *args: Held-out arguments of both, targets included.
        num_samples: Number of draws ``S``.
        site: The observed site, where the model has several, or a list of sites whose joint
            density is wanted.
        local: Names or shell patterns of the local sites, in place of those that are found: a
            list without some site scores new data of the units that the fit knows.
        local_draws: Where draws of local sites come from: ``"model"``, that is their prior given
            the other draws, or ``"guide"``, weighted by ``p(z) / q(z)``, which needs a density of
            the guide for each datum and fewer draws.
        seed: As in :func:`pyro_ibvi.arviz.to_arviz`.
        model_kwargs: Keyword arguments of the model and the guide.

    Returns:
        The pointwise densities with their sum, mean and standard errors.

    Raises:
        ValueError: If there is no observed site, or several and none named, a density is NaN, the
            guide draws from the scored data what all data share, or a local site can neither be
            summed out nor drawn.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("loc", dist.Delta(torch.tensor(0.0)))
        >>> print(log_predictive_density(model, guide, torch.zeros(4)))
        log predictive density -0.9189 ± 0.0000 nats per datum (4 data, 1000 draws)
    """
    check_positive_int("num_samples", num_samples)
    data = HeldOut(
        model,
        guide,
        Inputs(args, model_kwargs or {}),
        site=site,
        local=local,
        local_draws=local_draws,
        seed=seed,
    )
    total = squares = torch.tensor(-torch.inf, dtype=torch.float64)
    with evaluating(model, guide), data.streams("posterior"):
        for _ in range(num_samples):
            log_prob = data.draw().double().cpu()
            total = torch.logaddexp(total, log_prob)
            squares = torch.logaddexp(squares, 2 * log_prob)
    num_bad = int((total.isnan() & data.kept.cpu()).sum())
    if num_bad:
        names = " and ".join(repr(name) for unit in data.units for name in unit.sites)
        raise ValueError(
            f"The log-density of {num_bad} observations at {names} is NaN: the fit or the data "
            f"hold values that are not finite; mask such data by poutine.mask."
        )
    # relative variance of a mean of S densities, E p^2 / (E p)^2 - 1 over S
    spread = (squares - 2 * total + np.log(num_samples)).exp().sub(1).clamp(min=0)
    return LogPredictiveDensity(
        (total - np.log(num_samples)).numpy(),
        num_samples,
        spread.div(num_samples).sqrt().numpy(),
        given=tuple(sorted(data.latents.given)),
        summed=tuple(sorted(data.latents.summed)),
        averaged=tuple(sorted(data.latents.local)),
        checksum=_checksum(data.values),
    )


def _checksum(values: Sequence[torch.Tensor]) -> int:
    """A number that other values, another order or other units would change."""
    found = 0
    for value in values:
        found = zlib.crc32(torch.as_tensor(value).detach().float().cpu().numpy().tobytes(), found)
    return found


def compare_predictive(fits: Mapping[str, LogPredictiveDensity]) -> DataFrame:
    """Compares fits by their log predictive density on the same held-out data.

    Args:
        fits: Results of :func:`log_predictive_density` by name.

    Returns:
        A pandas table, best fit first: ``elpd`` and ``se`` (sum over the data, nats),
        ``elpd_diff`` to the best and ``dse``, the standard error of that difference, which
        is paired by datum and so is much smaller than ``se``.

    Raises:
        TypeError: If they are not such results by name.
        ValueError: If the fits were not evaluated on data of the same shape.
    """
    import pandas as pd

    if not isinstance(fits, Mapping) or not all(
        isinstance(fit, LogPredictiveDensity) for fit in fits.values()
    ):
        raise TypeError(
            f"Fits to compare are results of log_predictive_density by name, "
            f'{{"first": fit, "second": other}}, got {shown(fits)}.'
        )
    shapes = {name: fit.pointwise.shape for name, fit in fits.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"Fits compare on the same held-out data only; the shapes are {shapes}.")
    if len({fit.checksum for fit in fits.values()} - {None}) > 1:
        warnings.warn(
            "The fits were not evaluated on the same observed values in the same order and units, "
            "and their differences by datum mean nothing: give log_predictive_density the same "
            "held-out data for each.",
            UserWarning,
            stacklevel=2,
        )
    best = max(fits.values(), key=lambda fit: fit.total)
    rows = {
        name: {
            "elpd": fit.total,
            "se": fit.se,
            "elpd_diff": best.total - fit.total,
            "dse": _standard_error(best.pointwise - fit.pointwise),
        }
        for name, fit in fits.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("elpd", ascending=False)


@named_arguments()
def pareto_k(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    seed: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> float:
    r"""Pareto :math:`\hat k` of the guide against the posterior.

    The tail shape of the importance ratios :math:`p(w, y) / q(w)`. Below
    :math:`\min(1 - 1/\log_{10} S, 0.7)` draws of the guide can be reweighted into draws of the
    posterior; above it they cannot, and no criticism that takes them for such holds. An
    implicit-bias fit is far above it by design: it does not approximate the posterior.

    Args:
        model: Pyro model.
        guide: Its guide.
        *args: Arguments of both: the **whole** training data.
        num_samples: Number of draws ``S``.
        seed: As in :func:`pyro_ibvi.arviz.to_arviz`.
        model_kwargs: Keyword arguments of the model and the guide.

    Returns:
        The estimate of k.

    Raises:
        ValueError: If the guide or the model has no density at the draws, or the arguments are
            only a part of the data.

    References:
        Yao, Vehtari, Simpson, Gelman, Yes, but Did It Work? Evaluating Variational Inference,
        arXiv:1802.02538; Vehtari, Simpson, Gelman, Yao, Gabry, Pareto Smoothed Importance
        Sampling, arXiv:1507.02646.
    """
    if num_samples < 25:
        raise ValueError(f"num_samples must be at least 25 to see a tail, got {num_samples}.")
    sampler = Sampler(model, guide, Inputs(args, model_kwargs or {}), seed)
    notes = density_notes(sampler)
    if notes:
        raise ValueError(
            f"Pareto k needs both densities, but {'; '.join(notes.values()).removesuffix('.')}."
        )
    parts = sorted(subsamples(sampler.model_trace))
    if parts:
        raise ValueError(
            f"The plates {parts} hold a part of their data only: Pareto k needs the joint density "
            f"of all data; pass the whole training set."
        )
    log_ratios = np.empty(num_samples)
    with evaluating(model, guide), sampler.streams("posterior"):
        for s in range(num_samples):
            guide_trace, model_trace = sampler.posterior()
            log_ratios[s] = sampler.log_joint((guide_trace, model_trace)) - log_density(
                guide_trace
            )
    return tail_shape(log_ratios)


def tail_shape(log_weights: np.ndarray) -> float:
    """Pareto shape of importance weights, as the installed ArviZ estimates it.

    Args:
        log_weights: Logarithms of the weights, shape ``(num_samples,)``.

    Returns:
        The estimate of k.
    """
    if find_spec("arviz_stats"):
        # this line of ArviZ takes log-likelihoods: the negative log-weights
        statistics = import_module("arviz_stats.base").array_stats
        return float(statistics.psislw(-log_weights)[1])
    return float(import_module("arviz").psislw(log_weights)[1])


def loo_approximate_posterior(data: Any, var_name: str | None = None) -> Any:
    """Leave-one-out log predictive density of a guide's draws, corrected for its density.

    Valid only where :func:`pareto_k` is small. Masked data are left out. A thin layer over
    ArviZ's function of the same name, which ArviZ has from 1.0 on.

    Args:
        data: Result of :func:`pyro_ibvi.arviz.to_arviz` on the whole training data.
        var_name: The observed site, where there are several.

    Returns:
        ArviZ's ``ELPDData``, pointwise.

    Raises:
        ImportError: If the installed ArviZ lacks the function.
        ValueError: If the densities are missing from ``sample_stats``.
    """
    if not find_spec("arviz_stats"):
        raise ImportError(
            "loo_approximate_posterior needs ArviZ 1.x (Python 3.12 or later) or arviz-stats: "
            "pip install 'arviz-stats[xarray]'. On ArviZ 0.x compare by log_predictive_density."
        )
    stats = data["sample_stats"]
    missing = [n for n in ("log_p", "log_q") if n not in stats]
    if missing:
        reasons = [stats.attrs.get(f"{n}_omitted", f"{n} was not exported") for n in missing]
        raise ValueError(f"The correction needs both densities, but {'; '.join(reasons)}.")
    data = drop_masked(data)
    function = import_module("arviz_stats").loo_approximate_posterior
    return function(
        data, log_p=stats["log_p"], log_q=stats["log_q"], var_name=var_name, pointwise=True
    )
