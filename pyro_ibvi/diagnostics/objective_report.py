"""What an objective does with each site of a model, as a table."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.enum_messenger import EnumMessenger

from pyro_ibvi._util.buffers import buffers_kept
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi._util.tables import table_lines
from pyro_ibvi.objectives import checks
from pyro_ibvi.objectives.kept import kept_names
from pyro_ibvi.objectives.mixin import ExpectedLogLikelihood
from pyro_ibvi.objectives.sites import Kind, Site, Traces, subsampled_plate
from pyro_ibvi.objectives.terms import needs_score
from pyro_ibvi.objectives.verdicts import Verdict, verdict_on
from pyro_ibvi.pairing.belonging import check_pair


@dataclass(frozen=True)
class SiteReport:
    """What the objective does with one sample site.

    Attributes:
        name: Name of the site.
        where: Whether the row is of the model or of the guide.
        kind: What the site is.
        weight: Weight of its term, before the reduction.
        why: The reason, in words.
    """

    name: str
    where: Literal["model", "guide"]
    kind: Kind
    weight: float
    why: str


@dataclass(frozen=True)
class ObjectiveReport:
    """What the objective does with a model and a guide; its text is a table.

    Attributes:
        sites: A row for each sample site of the model, then of the guide.
        unmoved: Names of latents and parameters that reach no term that is kept.
        local: Names of latents with one value per datum whose KL is dropped.
        errors: What a training step would refuse, in words.
    """

    sites: tuple[SiteReport, ...]
    unmoved: tuple[str, ...]
    local: tuple[str, ...]
    errors: tuple[str, ...]

    def __str__(self) -> str:
        header = ("site", "in", "kind", "weight", "why")
        rows = [(s.name, s.where, s.kind, f"{s.weight:g}", s.why) for s in self.sites]
        lines = table_lines([header, *rows], rule=True)
        if self.unmoved:
            lines.append(f"Cannot be moved: {', '.join(self.unmoved)}.")
        if self.local:
            lines.append(f"One value per datum, without its KL: {', '.join(self.local)}.")
        return "\n".join([*lines, *(f"Error: {error}" for error in self.errors)])

    __repr__ = __str__


def explain(
    loss: ExpectedLogLikelihood,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> ObjectiveReport:
    """Says what an objective does with each site, and what it cannot move.

    The model and the guide are run as in a training step; torch's random state and the modules'
    buffers, such as BatchNorm's statistics, are put back afterwards. A guide that makes its
    parameters at its first call makes them here.

    Args:
        loss: The objective.
        model: The model.
        guide: The guide.
        *args: Arguments of both, targets included.
        **kwargs: Keyword arguments of both.

    Returns:
        A report that prints as a table.

    Raises:
        TypeError: If the objective is not one of this package.
        ValueError: If the guide was made for another model.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_ibvi import TraceExpectedLogLikelihood
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     tau = pyro.sample("tau", dist.HalfNormal(1.0))
        ...     theta = pyro.sample("theta", dist.Normal(0.0, tau))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(theta, 1.0), obs=y)
        >>> explain(TraceExpectedLogLikelihood(), model, AutoNormal(model), torch.zeros(3)).unmoved
        ('tau', 'AutoNormal.locs.tau', 'AutoNormal.scales.tau')
    """
    if not isinstance(loss, ExpectedLogLikelihood):
        raise TypeError(
            f"explain takes the objective first, explain(loss, model, guide, x, y), and one of "
            f"this package: got {type(loss).__name__}."
        )
    check_pair(model, guide)
    traces = _run_aside(loss, model, guide, args, kwargs)
    kept = kept_names(loss.keep_kl, traces)
    weights = loss.site_weights(traces, kept)
    errors = _errors(loss, kept, traces)
    with torch.enable_grad():  # from here on the traces hold only what counts
        loss.apply_weights(traces, weights, 1.0)
    dropped = {name for name, weight in weights[0].items() if weight == 0.0}
    verdict = verdict_on(traces, dropped, loss.reduction, allow_local=loss.allow_local)
    model_rows = [
        _row(
            site,
            "model",
            traces.model_kinds[name],
            weights[0][name],
            kept=name in kept,
            dropped_because=_why_dropped(site, traces.model_kinds[name], verdict),
        )
        for name, site in traces.model_sites.items()
    ]
    guide_rows = [
        _guide_row(site, traces.guide_kinds[name], weights[1][name], name in kept)
        for name, site in traces.guide_sites.items()
    ]
    return ObjectiveReport(
        (*model_rows, *guide_rows),
        (*verdict.latents, *verdict.idle, *verdict.params),
        verdict.local,
        tuple(errors),
    )


def _run_aside(
    loss: ExpectedLogLikelihood,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Traces:
    """The traces of a model and a guide; random state and buffers are as before."""
    with own_random_numbers(), buffers_kept(model, guide), torch.enable_grad():
        if isinstance(loss, TraceEnum_ELBO):
            model, guide = _enumerated(loss, model, guide, args, kwargs)
        return loss.run(model, guide, args, kwargs)


def _enumerated(
    loss: Any,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Model and guide as `TraceEnum_ELBO` runs them."""
    loss = copy.copy(loss)
    if loss.max_plate_nesting == math.inf:
        loss._guess_max_plate_nesting(model, guide, args, kwargs)
    first = EnumMessenger(first_available_dim=-1 - loss.max_plate_nesting)
    return EnumMessenger()(model), first(guide)


def _errors(loss: ExpectedLogLikelihood, kept: set[str], traces: Traces) -> list[str]:
    """The sentences with which a step of the objective would refuse the pair."""
    tests: list[Callable[[], None]] = [
        lambda: checks.reject_observed_guide_sites(traces),
        lambda: loss.check(traces, kept),
        lambda: checks.reject_empty_objective(*loss.site_weights(traces, kept)),
    ]
    errors = []
    for test in tests:
        try:
            test()
        except ValueError as error:
            errors.append(str(error))
    return errors


def _guide_row(site: Site, kind: Kind, weight: float, kept: bool) -> SiteReport:
    why = "log q dropped"
    if needs_score(site):
        why += ", but evaluated for the score function"
    return _row(site, "guide", kind, weight, kept=kept, dropped_because=why)


def _why_dropped(site: Site, kind: Kind, verdict: Verdict) -> str:
    """What becomes of a latent of the model whose prior is dropped."""
    name, frame = site["name"], subsampled_plate(site)
    if kind == "predicted":
        return "not in the guide: drawn from the prior"
    if name in verdict.latents:
        return "prior dropped: reaches no term that is kept"
    if frame is not None:
        return f"prior dropped: local, in the subsampled plate {frame.name!r}"
    return "prior dropped" + ": local, one value per observation" * (name in verdict.local)


def _row(
    site: Site,
    where: Literal["model", "guide"],
    kind: Kind,
    weight: float,
    *,
    kept: bool,
    dropped_because: str,
) -> SiteReport:
    reasons = {
        "observed": "likelihood",
        "enumerated": "summed out: a part of the likelihood",
    }
    if kind == "deterministic" and where == "model" and weight == 0.0:
        why = "computed from other sites"
    elif kind in reasons:
        why = reasons[kind]
    elif kept:
        why = "kept by keep_kl"
    elif weight:
        is_likelihood = where == "model" and kind == "factor"
        why = "counts as likelihood" if is_likelihood else "weighted by kl_weight"
    else:
        why = "counts as latent term" if kind == "factor" else dropped_because
    return SiteReport(site["name"], where, kind, weight, why)
