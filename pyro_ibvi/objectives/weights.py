"""What every KL-free objective shares: its options, and traces that hold only what counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape
from torch import Tensor

from pyro_ibvi.objectives import checks
from pyro_ibvi.objectives.sites import Kind, guide_kind, model_kind, own_sites, sample_sites
from pyro_ibvi.objectives.terms import (
    KeepKL,
    as_patterns,
    as_weight,
    count_observations,
    evaluate_guide_site,
    evaluate_model_site,
    is_reparametrized,
    kept_names,
    run_traces,
    zero_terms,
)


class ExpectedLogLikelihood:
    """Mixin that turns an ELBO of Pyro into its KL-free form.

    For subclasses of Pyro's `ELBO`. It replaces the way in which traces are made: each
    site's log-density is multiplied by the site's weight, and is not evaluated where the weight is
    zero. The estimators of Pyro then run on these traces as they are.

    At ``kl_weight=1`` with ``reduction="sum"`` it steps aside, and the objective *is* Pyro's.

    Args:
        num_particles: Number of draws of the guide per step.
        max_plate_nesting: Bound on the number of nested plates, as for Pyro's ELBOs.
        kl_weight: Weight of the latent terms, finite and at least 0. A plain attribute: set it
            between steps to change it during training.
        keep_kl: Sites whose latent terms stay in full at any ``kl_weight``: names, shell-style
            patterns, or a predicate on the site.
        reduction: ``"sum"`` for nats per data set, ``"mean"`` for nats per datum.
        factors: ``"likelihood"`` counts the model's ``pyro.factor`` terms as likelihood,
            ``"drop"`` as latent terms.
        allow_local: Whether a latent with one value per datum may lose its KL.
        vectorize_particles: Whether one vectorized run makes all particles.
        strict_enumeration_warning: As for Pyro's ELBOs.
        retain_graph: As for Pyro's ELBOs.

    Raises:
        TypeError: If a weight is not a number, or ``keep_kl`` holds anything but names.
        ValueError: If an option has a value outside its range.
    """

    # Provided by Pyro's ELBO.
    num_particles: int
    max_plate_nesting: float
    vectorize_particles: bool

    _graph_type: Literal["flat", "dense"] = "flat"
    _keeps_structure = False  # whether the estimator needs dropped sites to stay in the traces

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        *,
        kl_weight: float = 0.0,
        keep_kl: KeepKL = (),
        reduction: Literal["sum", "mean"] = "sum",
        factors: Literal["likelihood", "drop"] = "likelihood",
        allow_local: bool = False,
        vectorize_particles: bool = False,
        strict_enumeration_warning: bool = True,
        retain_graph: bool | None = None,
    ) -> None:
        if reduction not in {"sum", "mean"}:
            raise ValueError(
                f"reduction={reduction!r}: expected 'sum' (nats per data set) or 'mean' (nats per "
                "datum)."
            )
        if factors not in {"likelihood", "drop"}:
            raise ValueError(
                f"factors={factors!r}: expected 'likelihood' (pyro.factor counts as likelihood) "
                "or 'drop' (it goes with the latent terms)."
            )
        super().__init__(  # type: ignore[call-arg]
            num_particles=num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            strict_enumeration_warning=strict_enumeration_warning,
            retain_graph=retain_graph,
        )
        self.kl_weight = kl_weight
        self.keep_kl = keep_kl if callable(keep_kl) else as_patterns(keep_kl)
        self.reduction = reduction
        self.factors = factors
        self.allow_local = allow_local
        self._checked = self._reported = False  # what is done at the first step only

    @property
    def kl_weight(self) -> float:
        """Weight of the latent terms: 0 drops them, 1 is the ELBO."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        self._kl_weight = as_weight("kl_weight", value)

    @property
    def _is_elbo(self) -> bool:
        return self._kl_weight == 1.0 and self.reduction == "sum"

    def site_weights(
        self, model_trace: Trace, guide_trace: Trace, kept: set[str]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Weight of each sample site's term in the objective, before the reduction.

        Args:
            model_trace: The model's trace.
            guide_trace: The guide's trace.
            kept: Names of the sites whose latent terms stay in full.

        Returns:
            Weights of at least 0, by name, for the model's sites and for the guide's.
        """
        of_factors = 1.0 if self.factors == "likelihood" else self._kl_weight
        fixed = {"observed": 1.0, "enumerated": 1.0, "deterministic": 0.0}

        def weight(name: str, kind: Kind) -> float:
            return fixed.get(kind, 1.0 if name in kept else self._kl_weight)

        model_weights = {}
        for name, site in sample_sites(model_trace):
            kind = model_kind(site, guide_trace.nodes)
            model_weights[name] = of_factors if kind == "factor" else weight(name, kind)
        guide_weights = {
            name: weight(name, guide_kind(site, model_trace.nodes))
            for name, site in sample_sites(guide_trace)
        }
        return model_weights, guide_weights

    def _get_trace(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Trace, Trace]:
        """Return traces of model and guide as the estimator takes them."""
        if self._is_elbo:
            return super()._get_trace(model, guide, args, kwargs)  # type: ignore[misc]
        traces = self._weighted_traces(self._graph_type, model, guide, args, kwargs)
        self._prepare(*traces)
        return traces

    def _prepare(self, model_trace: Trace, guide_trace: Trace) -> None:
        """Check and complete a pair of weighted traces, in place."""
        if is_validation_enabled():
            check_if_enumerated(guide_trace)

    def _weighted_traces(
        self,
        graph_type: Literal["flat", "dense"],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Trace, Trace]:
        """Return traces of guide and model with the terms whose weight is not zero."""
        model_trace, guide_trace = run_traces(graph_type, model, guide, args, kwargs)
        checks.reject_observed_guide_sites(model_trace, guide_trace)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        model_trace, guide_trace = own_sites(model_trace), own_sites(guide_trace)
        kept = kept_names(self.keep_kl, model_trace, guide_trace)
        if not self._checked:
            checks.reject_unknown_patterns(self.keep_kl, model_trace, guide_trace)
            checks.reject_half_kept(kept, guide_trace)
            self._checked = torch.is_grad_enabled()  # without a graph little can be seen
        if self._kl_weight < 1.0 and not self.allow_local:
            checks.reject_local_latents(kept, model_trace, guide_trace)
        return self._weigh(model_trace, guide_trace, kept)

    def _weigh(
        self, model_trace: Trace, guide_trace: Trace, kept: set[str]
    ) -> tuple[Trace, Trace]:
        """Return a pair of traces with every site scaled, evaluated or dropped, in place."""
        model_sites, guide_sites = dict(sample_sites(model_trace)), dict(sample_sites(guide_trace))
        model_weights, guide_weights = self.site_weights(model_trace, guide_trace, kept)
        checks.reject_empty_objective(model_weights, guide_weights)
        per_datum = self._per_datum(model_trace)
        self.apply_weights(model_trace, guide_trace, (model_weights, guide_weights), per_datum)
        self._validate_shapes(model_trace, guide_trace)
        if not self._reported and torch.is_grad_enabled() and self._kl_weight == 0.0:
            self._reported = True
            local = [] if self.allow_local else checks.local_latents(model_sites, guide_sites)
            local = [name for name in local if name not in kept]
            checks.warn_once(model_sites, guide_sites, model_trace, guide_trace, local)
        return model_trace, guide_trace

    def _per_datum(self, model_trace: Trace) -> Tensor | float:
        if self.reduction == "sum":
            return 1.0
        particles = self.num_particles if self.vectorize_particles else 1
        count = count_observations(model_trace, self.max_plate_nesting, particles)
        if not isinstance(count, Tensor) and count == 0.0:
            raise ValueError(
                "reduction='mean' divides by the number of observations, but the model observed "
                "nothing (or masked all of it out). Pass the targets to the step, or use "
                "reduction='sum'."
            )
        return 1.0 / count

    def apply_weights(
        self,
        model_trace: Trace,
        guide_trace: Trace,
        weights: tuple[dict[str, float], dict[str, float]],
        factor: Tensor | float,
    ) -> None:
        """Scale and evaluate the sites of weight above zero, and drop the others, in place.

        Args:
            model_trace: The model's trace.
            guide_trace: The guide's trace.
            weights: Weights of the model's sites and of the guide's, by name.
            factor: A common factor of all weights.
        """
        for name, weight in weights[0].items():
            self._apply_weight(model_trace, name, weight, factor, in_guide=False)
        for name, weight in weights[1].items():
            self._apply_weight(guide_trace, name, weight, factor, in_guide=True)

    def _apply_weight(
        self, trace: Trace, name: str, weight: float, per_datum: Tensor | float, *, in_guide: bool
    ) -> None:
        site = trace.nodes[name]
        power = 1.0
        if self._keeps_structure and not in_guide and weight:
            power, weight = weight, 1.0  # inside a sum over states, where a scale cannot act
        scale = weight * per_datum if weight else per_datum
        if isinstance(scale, Tensor) or scale != 1.0:
            site["scale"] = site["scale"] * scale
        if weight and in_guide:
            evaluate_guide_site(site)
        elif weight:
            evaluate_model_site(site, power)
        elif in_guide and not is_reparametrized(site["fn"]):
            zero_terms(site, score=True)
        elif self._keeps_structure:
            zero_terms(site, score=False)
        else:
            trace.remove_node(name)

    def _validate_shapes(self, *traces: Trace) -> None:
        if is_validation_enabled():
            for trace in traces:
                for _, site in sample_sites(trace):
                    check_site_shape(site, self.max_plate_nesting)  # type: ignore[arg-type]

    def _guess_max_plate_nesting(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Find the number of nested plates as Pyro does, but from shapes alone."""
        if self._is_elbo:
            super()._guess_max_plate_nesting(model, guide, args, kwargs)  # type: ignore[misc]
            return
        with poutine.block():
            traces = [own_sites(t) for t in run_traces("flat", model, guide, args, kwargs)]
        sites = [site for trace in traces for _, site in sample_sites(trace)]
        if is_validation_enabled():
            for site in sites:
                zero_terms(site, score=False)
                check_site_shape(site, math.inf)  # type: ignore[arg-type]
        frames = [frame for site in sites for frame in site["cond_indep_stack"]]
        self.max_plate_nesting = -min((f.dim for f in frames if f.vectorized), default=0)
        if self.vectorize_particles and self.num_particles > 1:
            self.max_plate_nesting += 1
