"""What every KL-free objective shares: its options, and traces that hold only what counts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape
from torch import Tensor, nn

from pyro_ibvi._util.arguments import show_arguments
from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi.objectives import checks
from pyro_ibvi.objectives.kept import (
    KeepKL,
    as_choice,
    kept_names,
    reject_half_kept,
    reject_unknown,
)
from pyro_ibvi.objectives.known import Known, Pairs
from pyro_ibvi.objectives.loss_module import LossModule
from pyro_ibvi.objectives.masks import counted_observations
from pyro_ibvi.objectives.sites import Site, Traces, computed_sites
from pyro_ibvi.objectives.terms import as_weight, run_traces, zero_terms
from pyro_ibvi.objectives.threads import alone_at_handlers
from pyro_ibvi.objectives.verdicts import verdict_on
from pyro_ibvi.objectives.weights import Weights, weigh_site, weights_of
from pyro_ibvi.pairing.loss_scale import note_gradients


@show_arguments
class ExpectedLogLikelihood:
    """Mixin that turns an ELBO of Pyro into its KL-free form.

    For subclasses of Pyro's `ELBO`. It replaces the way in which traces are made: each
    site's log-density is multiplied by the site's weight, and is not evaluated where the weight is
    zero. The estimators of Pyro then run on these traces as they are.

    At ``kl_weight=1`` with ``reduction="sum"`` it steps aside, and the objective *is* Pyro's.

    Args:
        num_particles: Number of draws of the guide per step.
        max_plate_nesting: Bound on the number of nested plates, as for Pyro's ELBOs.
        kl_weight: Weight of the latent terms, finite and at least 0; may be set between steps.
        keep_kl: Sites whose latent terms stay in full: names, patterns, or a function of a site.
        reduction: ``"sum"`` for nats per data set, ``"mean"`` for nats per datum.
        factors: ``"likelihood"`` counts the model's ``pyro.factor`` terms as likelihood,
            ``"drop"`` as latent terms.
        allow_local: Whether a latent with one value per datum may lose its KL.
        vectorize_particles: Whether one vectorized run makes all particles.
        strict_enumeration_warning: As for Pyro's ELBOs.
        ignore_jit_warnings: As for Pyro's ELBOs.
        jit_options: As for Pyro's ELBOs.
        retain_graph: As for Pyro's ELBOs.

    Raises:
        TypeError: If a weight is no number, ``keep_kl`` holds no names, or a model is passed.
        ValueError: If an option has a value outside its range.
    """

    num_particles: int  # Pyro's ELBO provides it, and the next
    vectorize_particles: bool

    _graph_type: Literal["flat", "dense"] = "flat"
    _keeps_structure = False  # whether the estimator needs dropped sites to stay in the traces
    _known: Known | None = None  # of the pair that is being evaluated
    _max_plate_nesting: float = math.inf

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuses a model in the place of options: the class was taken for a loss."""
        if args and callable(args[0]):
            raise TypeError(
                f"{cls.__name__} is a class and was called as if it were a loss: give SVI an "
                f"object, loss={cls.__name__}()."
            )
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        show_arguments(cls)  # and not those of __new__

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
        ignore_jit_warnings: bool = False,
        jit_options: dict[str, Any] | None = None,
        retain_graph: bool | None = None,
    ) -> None:
        check_positive_int("num_particles", num_particles)
        if reduction not in {"sum", "mean"}:
            raise ValueError(
                f"reduction={reduction!r}: expected 'sum' (over all data) or 'mean' (per datum)."
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
            ignore_jit_warnings=ignore_jit_warnings,
            jit_options=jit_options,
            retain_graph=retain_graph,
        )
        self.kl_weight = kl_weight
        self.keep_kl = keep_kl
        self.reduction = reduction
        self.factors = factors
        self.allow_local = allow_local
        self._pairs = Pairs()

    def __call__(self, model: nn.Module, guide: nn.Module) -> LossModule:
        """The loss of a model and its guide as one module: what to wrap for several devices.

        Args:
            model: The model.
            guide: Its guide.

        Returns:
            A :class:`~pyro_ibvi.objectives.LossModule`, whose call on a batch gives the loss.
        """
        return LossModule(model, guide, self)  # type: ignore[arg-type]

    @property
    def kl_weight(self) -> float:
        """Weight of the latent terms: 0 drops them, 1 is the ELBO."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        self._kl_weight = as_weight("kl_weight", value)

    @property
    def keep_kl(self) -> tuple[str, ...] | Callable[[Site], bool]:
        """Sites whose latent terms stay in full: names and patterns, or a function of a site."""
        return self._keep_kl

    @keep_kl.setter
    def keep_kl(self, value: KeepKL) -> None:
        self._keep_kl = as_choice(value)

    @property
    def max_plate_nesting(self) -> float:
        """Number of nested plates: the given bound, or what the pair at hand was found to have."""
        if self._known is None or self._max_plate_nesting < math.inf:
            return self._max_plate_nesting
        return self._known.max_plate_nesting

    @max_plate_nesting.setter
    def max_plate_nesting(self, value: float) -> None:
        if self._known is None:
            self._max_plate_nesting = value
        else:
            self._known.max_plate_nesting = value

    @property
    def _is_elbo(self) -> bool:
        return self._kl_weight == 1.0 and self.reduction == "sum"

    def site_weights(self, traces: Traces, kept: set[str]) -> Weights:
        """Weight of each sample site's term in the objective, before the reduction.

        Args:
            traces: The traces.
            kept: Names of the sites whose latent terms stay in full.

        Returns:
            Weights of at least 0, by name, for the model's sites and for the guide's.
        """
        return weights_of(traces, kept, self._kl_weight, self.factors)

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Estimates the loss and adds its gradient to the parameters' ``grad``.

        If that ends in an error, buffers (BatchNorm's statistics) and gradients are put back; the
        random numbers that were drawn are gone.

        Args:
            model: The model.
            guide: The guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Returns:
            The loss, in nats per data set, or per datum for ``reduction="mean"``.
        """
        checks.require_gradients()
        known = self._pairs.of(model, guide)
        known.is_counting = self.reduction == "sum" and known.num_observed is None
        with alone_at_handlers(), known.undo.if_refused():
            loss = self._loss_and_grads(model, guide, args, kwargs)
        is_mean = self.reduction == "mean"
        note_gradients(model, guide, type(self).__name__, 1.0 if is_mean else known.num_observed)
        return loss

    def _loss_and_grads(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> float:
        loss: float = super().loss_and_grads(model, guide, *args, **kwargs)  # type: ignore[misc]
        return loss

    def _get_traces(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Iterator[tuple[Trace, Trace]]:
        """Yields the traces of each particle, made with what is known of the pair at hand."""
        particles = iter(super()._get_traces(model, guide, args, kwargs))  # type: ignore[misc]
        while True:
            self._known = self._pairs.of(model, guide)
            try:
                traces = next(particles, None)
            finally:
                self._known = None
            if traces is None:
                return
            yield traces

    def _get_trace(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Trace, Trace]:
        """Returns traces of model and guide as the estimator takes them."""
        if self._is_elbo:
            pair: tuple[Trace, Trace] = super()._get_trace(model, guide, args, kwargs)  # type: ignore[misc]
            if self._known is not None and self._known.is_counting:
                self._reduce(Traces.of(*pair))
            return pair
        traces = self._weighted_traces(model, guide, args, kwargs)
        self._prepare(*traces)
        return traces

    def _prepare(self, model_trace: Trace, guide_trace: Trace) -> None:
        """Checks and completes a pair of weighted traces, in place."""
        if is_validation_enabled():
            check_if_enumerated(guide_trace)

    def _run(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Trace, Trace]:
        """Returns traces of model and guide, with no density evaluated."""
        return run_traces(self._graph_type, model, guide, args, kwargs)

    def run(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Traces:
        """Runs a model and its guide and tells their sites apart, as for a step.

        Args:
            model: The model.
            guide: The guide.
            args: Positional arguments of both.
            kwargs: Keyword arguments of both.

        Returns:
            The traces, with no density evaluated.
        """
        model_trace, guide_trace = self._run(model, guide, args, kwargs)
        data = None if self._known is None else self._known.data
        computed = computed_sites(model, model_trace, args, kwargs, known_data=data)
        return Traces.of(model_trace, guide_trace, computed)

    def _weighted_traces(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Trace, Trace]:
        """Returns traces of model and guide with the terms whose weight is not zero."""
        traces = self.run(model, guide, args, kwargs)
        checks.reject_observed_guide_sites(traces)
        if is_validation_enabled():
            check_model_guide_match(*traces.to_match(), self.max_plate_nesting)
        kept = kept_names(self.keep_kl, traces)
        known = self._pairs.of(model, guide) if self._known is None else self._known
        case = hash((traces.structure(), self._kl_weight == 0, self.keep_kl, self.allow_local))
        if case not in known.checked:
            self.check(traces, kept)
            if torch.is_grad_enabled():  # without a graph little can be seen
                known.checked.add(case)
        weights = self.site_weights(traces, kept)
        if self._kl_weight == 0.0 or traces.model_sites:  # Pyro takes a model without sites
            checks.reject_empty_objective(*weights)
        self.apply_weights(traces, weights, self._reduce(traces))
        self._validate_shapes(*traces)
        if self._kl_weight == 0.0 and case not in known.judged and torch.is_grad_enabled():
            known.judged.add(case)
            self._judge(traces, weights, known)
        return traces.model, traces.guide

    def check(self, traces: Traces, kept: set[str]) -> None:
        """Refuses what this objective would do wrong in silence.

        Args:
            traces: The traces.
            kept: Names of the sites whose KL is kept.

        Raises:
            ValueError: If ``keep_kl`` does not fit the model, or a local latent would lose its KL.
        """
        reject_unknown(self.keep_kl, traces)
        reject_half_kept(self.keep_kl, kept, traces)
        if self._kl_weight == 0.0 and not self.allow_local:
            checks.reject_local_latents(kept, traces)

    def _judge(self, traces: Traces, weights: Weights, known: Known) -> None:
        """Warns of what the objective cannot move, of each name once."""
        dropped = {name for name, weight in weights[0].items() if weight == 0.0}
        verdict = verdict_on(traces, dropped, self.reduction, allow_local=self.allow_local)
        if not verdict.names <= known.warned:
            known.warned |= verdict.names
            warnings.warn(str(verdict), UserWarning, stacklevel=2)

    def _reduce(self, traces: Traces) -> Tensor | float:
        particles = self.num_particles if self.vectorize_particles else 1
        if self.reduction == "mean":
            return 1.0 / counted_observations(traces, self.max_plate_nesting, particles)
        if self._known is not None:
            self._known.count(traces, self.max_plate_nesting, particles)
        return 1.0

    def apply_weights(self, traces: Traces, weights: Weights, factor: Tensor | float) -> None:
        """Scales and evaluates the sites of weight above zero, and drops the others, in place.

        Args:
            traces: The traces.
            weights: Weights of the model's sites and of the guide's, by name.
            factor: A common factor of all weights.
        """
        keeps = self._keeps_structure
        for name, weight in weights[0].items():
            weigh_site(traces.model, name, weight, factor, keeps_structure=keeps)
        for name, weight in weights[1].items():
            weigh_site(traces.guide, name, weight, factor, keeps_structure=keeps, in_guide=True)

    def _validate_shapes(self, *traces: Trace) -> None:
        if is_validation_enabled():
            checks.reject_wrong_shapes(traces, self.max_plate_nesting)

    def _guess_max_plate_nesting(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Finds the number of nested plates as Pyro does, but from shapes alone."""
        if self._is_elbo:
            super()._guess_max_plate_nesting(model, guide, args, kwargs)  # type: ignore[misc]
            return
        with poutine.block():
            traces = Traces.of(*run_traces("flat", model, guide, args, kwargs))
        sites = [*traces.model_sites.values(), *traces.guide_sites.values()]
        if is_validation_enabled():
            for site in sites:
                zero_terms(site, score=False)
                check_site_shape(site, math.inf)  # type: ignore[arg-type]
        frames = [frame for site in sites for frame in site["cond_indep_stack"]]
        self.max_plate_nesting = -min((f.dim for f in frames if f.vectorized), default=0)
        if self.vectorize_particles and self.num_particles > 1:
            self.max_plate_nesting += 1
