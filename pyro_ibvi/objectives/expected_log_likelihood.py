r"""Expected log-likelihood as an objective for `SVI`: the ELBO without its divergence.

Implicit-bias variational inference trains :math:`q_\theta(w)` by

.. math::  \min_\theta \; -E_{q_\theta(w)}[\log p(y \mid w)]

alone, and leaves the regularization to the optimizer, which started at the prior. As an ELBO is a
sum over sample sites, this is Pyro's own estimator with the latent terms left out, and everything
between the two is a weight (:math:`\beta` is ``kl_weight``):

.. math::  L = -E_q\Big[\sum_{obs} \log p(y \mid w)
               + \beta \sum_{latents} \log p(w) - \beta \log q(w)\Big].

Reference: Wenger, Coker, Marusic, Cunningham (2025), *Variational Deep Learning via Implicit
Regularization*, arXiv:2505.20235.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.util import warn_if_inf, warn_if_nan
from torch import Tensor

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi.objectives.checks import check_held
from pyro_ibvi.objectives.head import ClosedFormHead
from pyro_ibvi.objectives.kept import KeepKL
from pyro_ibvi.objectives.known import Known
from pyro_ibvi.objectives.mixin import ExpectedLogLikelihood
from pyro_ibvi.objectives.penalty import DivergencePenalty
from pyro_ibvi.objectives.routes import DirectRoute, KnownRoutes, NumDraws, as_draws, direct_route
from pyro_ibvi.objectives.sites import Traces, sample_sites
from pyro_ibvi.objectives.sums import log_ratio, mean_terms, site_sums, sum_of_terms
from pyro_ibvi.objectives.threads import alone_at_handlers
from pyro_ibvi.objectives.weights import Weights

#: Stands among a pair's warnings for that of its draws; no site has this name.
_DRAWS = "draws="


class TraceExpectedLogLikelihood(ExpectedLogLikelihood, Trace_ELBO):
    r"""The expected log-likelihood, with as much of the KL divergence as you ask for.

    A drop-in for `Trace_ELBO`: it works with any Pyro model and guide, through `SVI` or through
    ``loss_fn = TraceExpectedLogLikelihood()(model, guide)``. With the sets of observed sites O,
    of latent sites Z, and the guide's sites G, it estimates

    .. math::

        L = -\frac{1}{n} E_q\Big[\sum_{o \in O} s_o \log p(y_o \mid z)
            + \sum_{z \in Z} \beta_z s_z \log p(z \mid \cdot)
            - \sum_{g \in G} \beta_g s_g \log q(g \mid \cdot)\Big],

    where s are the scales of plates and `poutine.scale` (and masks), :math:`\beta` is
    ``kl_weight`` (1 for sites in ``keep_kl``), and n is 1 for ``reduction="sum"`` or the number of
    observations for ``reduction="mean"``. What has :math:`\beta = 0` is not evaluated: a
    distribution there needs no ``log_prob``.

    The latent terms are: the prior of each latent site, and in the guide the density of every
    site, auxiliary sites (``infer={"is_auxiliary": True}``), factors and the ``log_density`` of
    Delta sites included. A latent that the model enumerates belongs to the likelihood.

    - **Discrete latents** (guide sites without a pathwise gradient) get a score-function gradient,
      which needs their log q although its weight be zero. As in `Trace_ELBO`, terms of other plate
      elements are left out of it, and baselines belong to the ``TraceGraph`` form.
    - **Masked data** may be NaN: masked-out values are replaced before the density is evaluated.
      NaN in the model's inputs is not repaired. At ``kl_weight=1`` Pyro's behavior stands.
    - **A latent in a subsampled plate** has one value per datum: without its KL it fits the data
      exactly and nothing reaches the rest of the model. An error unless ``keep_kl`` names it.
    - **At the first step with** ``kl_weight=0`` one warning names the latents and parameters that
      reach only dropped terms, so that training cannot move them.

    ``keep_kl`` keeps, for each latent that it names, the prior's and the guide's term, and those
    factors of the guide that it names. The auxiliary site ``<name>_unconstrained`` of Pyro's
    `AutoNormal`, or ``<name>_aux`` of `AutoStructured`, goes with its latent; guides that draw
    many latents from one auxiliary site (`AutoDiagonalNormal`) need all named, ``"*"``.

    After its first step a pair whose guide offers a ``direct_route(model)``, as `AutoMuPNormal`
    does for a `SupervisedModel`, is evaluated without Pyro's traces, unless a handler or hook
    takes part: faster, and the same numbers.

    A step costs one synchronization with the device, at the end, unless ``kl_weight=1``, where it
    *is* `Trace_ELBO`: the same loss and gradients to the last digit.

    Args:
        num_particles: Number of draws of the guide per step.
        max_plate_nesting: Bound on the number of nested plates, as for `Trace_ELBO`.
        kl_weight: Weight of the latent terms, finite and at least 0. It may be set between steps.
        keep_kl: Names, shell-style patterns (``"encoder.*"``), or a predicate on the site, of
            the latents whose KL stays in full.
        reduction: ``"sum"`` for nats per data set (Pyro's convention), ``"mean"`` for nats per
            datum, which learning rates that follow muP expect. An observation is one batch
            element of an observed site, counted with its scale, unless the distribution says by
            ``num_observed(value)`` how many there are: labels of pixels, none where missing.
        factors: ``"likelihood"`` counts the model's ``pyro.factor`` terms as likelihood,
            ``"drop"`` treats them as latent terms, of weight ``kl_weight``.
        allow_local: Whether a latent with one value per datum may lose its KL: no error for one
            in a subsampled plate, no warning for one in a plate of observations.
        vectorize_particles: Whether one vectorized run makes all particles.
        strict_enumeration_warning: As for `Trace_ELBO`.
        ignore_jit_warnings: As for `Trace_ELBO`; nothing here is compiled.
        jit_options: As for `Trace_ELBO`; nothing here is compiled.
        retain_graph: As for `Trace_ELBO`.
        draws: Draws of the weights in a step: ``"batch"`` for one; ``"datum"`` for one for each
            datum; a number for one for each of so many parts of the batch. The loss is a sum over
            data, so its expectation is the same and its gradient's variance falls. A draw for each
            datum needs noise on the inputs of layers, :class:`~pyro_ibvi.Multiplicative`; other
            noise is drawn once, or once for each part, of two parts with opposite signs, so that
            what is odd in it cancels. It needs the evaluation without traces,
            too. A warning says where it is not to be had. Batch statistics of norm layers are
            those of a part.
        penalty: A divergence from the prior in closed form, added to the loss.
        head: Takes the expectation over a network's last layer in closed form.

    Attributes:
        routes: The ways without traces that were seen to give the same.

    Raises:
        TypeError: If ``kl_weight`` is not a number, or ``keep_kl`` holds anything but names.
        ValueError: If an option has a value outside its range. At a step: if the guide draws a
            site that the model observes, nothing is observed at all, a local latent would lose
            its KL, or ``keep_kl`` does not fit the model.

    Reference:
        Wenger, Coker, Marusic, Cunningham (2025), arXiv:2505.20235.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer import SVI
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(x, y):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)
        >>> loss = TraceExpectedLogLikelihood(reduction="mean")
        >>> svi = SVI(model, AutoNormal(model), pyro.optim.SGD({"lr": 0.1}), loss)
        >>> x = torch.linspace(-1.0, 1.0, 5)
        >>> losses = [svi.step(x, 2.0 * x) for _ in range(100)]
        >>> losses[-1] < losses[0]
        True
    """

    @named_arguments()
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
        draws: NumDraws = "batch",
        penalty: DivergencePenalty | None = None,
        head: ClosedFormHead | None = None,
    ) -> None:
        super().__init__(
            num_particles,
            max_plate_nesting,
            kl_weight=kl_weight,
            keep_kl=keep_kl,
            reduction=reduction,
            factors=factors,
            allow_local=allow_local,
            vectorize_particles=vectorize_particles,
            strict_enumeration_warning=strict_enumeration_warning,
            ignore_jit_warnings=ignore_jit_warnings,
            jit_options=jit_options,
            retain_graph=retain_graph,
        )
        self.draws = as_draws(draws)
        check_held("penalty", penalty, DivergencePenalty)
        check_held("head", head, ClosedFormHead)
        self.penalty = penalty
        self.head = head
        self.routes = KnownRoutes()
        self._check_head()

    @property
    def weight(self) -> float:
        """Weight of the penalty, which may be set between steps; there is none without one."""
        return self._held_penalty().weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._held_penalty().weight = value

    def _held_penalty(self) -> DivergencePenalty:
        if self.penalty is None:
            raise AttributeError(
                "The objective has no penalty whose weight could be asked for: write "
                "TraceExpectedLogLikelihood(penalty=DivergencePenalty('kl', weight=0.1))."
            )
        return self.penalty

    def _check_head(self) -> None:
        """Refuses options that a closed-form head cannot have."""
        if self.head is not None and (self._kl_weight or self.vectorize_particles):
            raise ValueError(
                f"kl_weight={self._kl_weight}, vectorize_particles={self.vectorize_particles}: "
                "with a closed-form head the last layer is not drawn, so its KL is not estimated "
                "by draws, and particles are drawn one after the other. Add a divergence in "
                'closed form, penalty=DivergencePenalty("kl", weight=...).'
            )

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Estimates the loss without gradients.

        Args:
            model: The model.
            guide: The guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Returns:
            The loss, in nats per data set, or per datum for ``reduction="mean"``.
        """
        with alone_at_handlers():
            if self._is_elbo:
                return super().loss(model, guide, *args, **kwargs)
            losses, sums = [], []
            for loss, _, terms in self._particles(model, guide, args, kwargs):
                losses.append(loss)
                sums += terms
            return self._as_float(losses, sums)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Estimates the loss as a tensor to be differentiated.

        Args:
            model: The model.
            guide: The guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Returns:
            The loss, of shape (), whose gradient is the gradient estimate.
        """
        loss: Tensor | float = 0.0
        surrogate: Tensor | float = 0.0
        with alone_at_handlers():
            if self._is_elbo:
                return super().differentiable_loss(model, guide, *args, **kwargs)
            for loss_particle, surrogate_particle, _ in self._particles(
                model, guide, args, kwargs
            ):
                loss = loss + loss_particle / self.num_particles
                surrogate = surrogate + surrogate_particle / self.num_particles
        assert isinstance(surrogate, Tensor)
        warn_if_nan(torch.as_tensor(loss), "loss")
        return loss + (surrogate - surrogate.detach())

    def _loss_and_grads(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> float:
        if self._is_elbo:
            return super()._loss_and_grads(model, guide, args, kwargs)
        losses, sums = [], []
        for loss, surrogate_particle, terms in self._particles(model, guide, args, kwargs):
            losses.append(loss)
            sums += terms
            if surrogate_particle.requires_grad:
                if self.num_particles > 1:
                    surrogate_particle = surrogate_particle / self.num_particles
                surrogate_particle.backward(retain_graph=self.retain_graph)
        return self._as_float(losses, sums)

    def _particles(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Iterator[tuple[Tensor, Tensor, list[tuple[str, Tensor]]]]:
        """Yields loss, surrogate and each site's term of every particle."""
        route = direct_route(model, guide) if self.is_likelihood_alone else None
        if route is not None and route in self.routes and route.is_open(args, kwargs):
            draws: Any = {} if self.draws == "batch" else {"draws": self.draws}
            for _ in range(self.num_particles):
                log_probs, scale, num_observed = route.log_likelihood(*args, **draws, **kwargs)
                if self.reduction == "mean":  # in the traces' order, equal to the last digit
                    log_probs, scale = mean_terms(log_probs, scale, num_observed)
                elbo = (log_probs if scale == 1.0 else log_probs * scale).sum()
                yield -elbo.detach(), -elbo, [(route.observed, elbo.detach())]
            return
        known = self._pairs.of(model, guide)
        for traces in self._get_traces(model, guide, args, kwargs):
            if known.judged:
                self.routes.learn(route, *traces)
            yield *self._differentiable_loss_particle(*traces), site_sums(*traces)
        if known.judged and self.draws != "batch":
            self._warn_of_one_draw(known, route)

    def _warn_of_one_draw(self, known: Known, route: DirectRoute | None) -> None:
        """Says once that a pair goes by traces, unless that is its first step alone."""
        is_first = route is not None and route in self.routes and not known.went_by_traces
        known.went_by_traces = True
        if not is_first and _DRAWS not in known.warned:
            known.warned.add(_DRAWS)
            warnings.warn(
                f"draws={self.draws!r}, which VariationalNetwork may have taken by itself: this "
                f"model and guide have one draw for a batch, since several need the evaluation "
                f"without Pyro's traces, which is for a SupervisedModel with its AutoMuPNormal or "
                f"AutoMuPMixture, kl_weight=0, and no handlers, hooks, penalty, head or "
                f"vectorized particles. draws='batch' asks for one.",
                UserWarning,
                stacklevel=2,
            )

    @property
    def is_likelihood_alone(self) -> bool:
        """Whether the likelihood is all that this objective evaluates, draw by draw."""
        one_by_one = not self.vectorize_particles or self.num_particles == 1
        is_plain = type(self) is TraceExpectedLogLikelihood
        is_plain = is_plain and self.penalty is None and self.head is None
        return is_plain and one_by_one and self._kl_weight == 0.0 and not self.keep_kl

    @property
    def _is_elbo(self) -> bool:
        return super()._is_elbo and self.penalty is None and self.head is None

    def _run(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Trace, Trace]:
        self._check_head()  # the weight may have been set since
        if self.head is None:
            return super()._run(model, guide, args, kwargs)
        return self.head.run(model, guide, args, kwargs)

    def apply_weights(self, traces: Traces, weights: Weights, factor: Tensor | float) -> None:
        """Weighs the sites as usual, and adds the penalty as one more term of the model.

        Args:
            traces: The traces.
            weights: Weights of the model's sites and of the guide's, by name.
            factor: A common factor of all weights.
        """
        penalty = None if self.penalty is None else self.penalty.site(traces, factor)
        super().apply_weights(traces, weights, factor)
        if penalty is not None:
            traces.model.add_node("_divergence", **penalty)

    def _differentiable_loss_particle(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[Tensor, Tensor]:
        if self._is_elbo:
            return super()._differentiable_loss_particle(model_trace, guide_trace)
        elbo = sum_of_terms(model_trace, guide_trace)
        terms = [site["log_prob_sum"] for _, site in sample_sites(model_trace)]
        surrogate = sum(terms, torch.zeros(())) if not terms else sum(terms)
        log_r = None
        for _, site in sample_sites(guide_trace):
            _, score_function, entropy_term = site["score_parts"]
            if not is_identically_zero(entropy_term):
                surrogate = surrogate - entropy_term.sum()
            if not is_identically_zero(score_function):
                if log_r is None:
                    log_r = log_ratio(model_trace, guide_trace)
                weight = log_r.sum_to(site["cond_indep_stack"])
                surrogate = surrogate + (weight * score_function).sum()
        return -elbo.detach(), -surrogate

    def _as_float(self, losses: list[Tensor], sums: list[tuple[str, Tensor]]) -> float:
        """The loss, fetched from its device once, with Pyro's warnings if it is not finite."""
        total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        loss = total.item() / self.num_particles
        if not math.isfinite(loss) and is_validation_enabled():
            for name, log_prob_sum in sums:
                warn_if_nan(log_prob_sum, f"log_prob_sum at site '{name}'")
                warn_if_inf(log_prob_sum, f"log_prob_sum at site '{name}'", allow_neginf=True)
        if math.isnan(loss):
            warn_if_nan(total, "loss")
        return loss
