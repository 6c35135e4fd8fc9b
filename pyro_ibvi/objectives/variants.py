"""The KL-free forms of Pyro's other ELBOs: one mixin, three estimators.

Each class weighs the sites as `TraceExpectedLogLikelihood` does and leaves the estimation to the
estimator of Pyro that it is named after. They take the same arguments, and at ``kl_weight=1`` they
are that estimator. Densities of weight zero are not evaluated here either; the synchronizations
with the device are those of Pyro's estimators.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.distributions import Distribution
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.trace_mean_field_elbo import _check_mean_field_requirement
from pyro.infer.traceenum_elbo import _check_tmc_elbo_constraint
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.infer.util import is_validation_enabled
from pyro.ops.provenance import detach_provenance, get_provenance, track_provenance
from pyro.poutine import Trace
from pyro.util import check_model_guide_match, check_traceenum_requirements

from pyro_ibvi.objectives.mixin import ExpectedLogLikelihood
from pyro_ibvi.objectives.sites import sample_sites
from pyro_ibvi.objectives.terms import is_reparametrized
from pyro_ibvi.objectives.threads import alone_at_handlers


class TraceGraphExpectedLogLikelihood(ExpectedLogLikelihood, TraceGraph_ELBO):
    """Expected log-likelihood with the variance reduction of `TraceGraph_ELBO`.

    For discrete guide sites: the score function of a site is multiplied only by the kept terms
    that depend on its draw, and baselines (``infer={"baseline": ...}``) are supported. See
    `TraceExpectedLogLikelihood` for the meaning of the terms and the arguments.

    Reference:
        Schulman, Heess, Weber, Abbeel (2015), *Gradient Estimation Using Stochastic Computation
        Graphs*, arXiv:1506.05254.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(y):
        ...     k = pyro.sample("k", dist.Bernoulli(0.5))
        ...     pyro.sample("y", dist.Normal(k, 1.0), obs=y)
        >>> def guide(y):
        ...     p = pyro.param("p", torch.tensor(0.5), dist.constraints.unit_interval)
        ...     baseline = {"use_decaying_avg_baseline": True}
        ...     pyro.sample("k", dist.Bernoulli(p), infer={"baseline": baseline})
        >>> loss = TraceGraphExpectedLogLikelihood()
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), loss)
        >>> loss = svi.step(torch.tensor(2.0))
    """

    _graph_type = "dense"

    def _weighted_traces(self, *args: Any) -> tuple[Trace, Trace]:
        with TrackNonReparam():
            traces = super()._weighted_traces(*args)
        _forget_draws_without_score(*traces)
        return traces


def _forget_draws_without_score(model_trace: Trace, guide_trace: Trace) -> None:
    """Lets no term know draws that have no site in the guide's trace, where Pyro looks them up.

    Pyro tracks what is drawn from a law without a pathwise gradient, in the model as in the guide.
    A latent may have such a prior, `LKJCholesky` say, and be reparametrized in the guide, from
    whose trace it goes with its density; one that no guide draws was never there.
    """
    for trace in (model_trace, guide_trace):
        for _, site in sample_sites(trace):
            for key in ("log_prob", "log_prob_sum"):
                known = get_provenance(site[key]) & guide_trace.nodes.keys()
                site[key] = track_provenance(detach_provenance(site[key]), frozenset(known))


class TraceEnumExpectedLogLikelihood(ExpectedLogLikelihood, TraceEnum_ELBO):
    r"""Expected log-likelihood with discrete sites summed out, as `TraceEnum_ELBO` has it.

    A site that the model enumerates is not a latent variable of the guide but a part of the
    likelihood: with w the guide's latents and k the enumerated sites,

    .. math::  L = -E_{q(w)}\Big[\log \sum_k p(k \mid w) \, p(y \mid k, w)\Big],

    so its prior is always kept. A site that the guide enumerates is averaged over exactly, with
    its own prior and entropy dropped. A latent of the guide whose prior depends on an enumerated
    site has that prior inside of the sum, raised to the power ``kl_weight``. See
    `TraceExpectedLogLikelihood` for the arguments.

    What :meth:`compute_marginals` and :meth:`sample_posterior` say of k is the model's own
    :math:`p(k \mid w, y)`, which no weight has a part in.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     with pyro.plate("data", len(y)):
        ...         enum = {"enumerate": "parallel"}
        ...         k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2), infer=enum)
        ...         pyro.sample("y", dist.Normal(loc[k], 1.0), obs=y)
        >>> guide = AutoNormal(pyro.poutine.block(model, hide=["k"]))
        >>> loss = TraceEnumExpectedLogLikelihood()
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), loss)
        >>> loss = svi.step(torch.tensor([-1.0, 1.0]))
    """

    _keeps_structure = True  # Dice reads the dimensions of every site of the guide
    strict_enumeration_warning: bool

    _asks_the_model = False  # whether the traces are for what the model says of enumerated sites

    def compute_marginals(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> dict[str, Distribution]:
        """Distribution of each enumerated site given the data and a draw of the guide.

        Args:
            model: The model.
            guide: The guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Returns:
            The marginals under the model as it stands, whatever the weights, by name.
        """
        marginals: dict[str, Distribution]
        with self._asking_the_model():
            marginals = super().compute_marginals(model, guide, *args, **kwargs)
        return marginals

    def sample_posterior(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Runs the model with enumerated sites drawn given the data and a draw of the guide.

        Args:
            model: The model.
            guide: The guide.
            *args: Arguments of both.
            **kwargs: Keyword arguments of both.

        Returns:
            What the model returns. The draws are under the model as it stands, whatever the
            weights.
        """
        with self._asking_the_model():
            return super().sample_posterior(model, guide, *args, **kwargs)

    @contextmanager
    def _asking_the_model(self) -> Iterator[None]:
        with alone_at_handlers():
            self._asks_the_model = True
            try:
                yield
            finally:
                self._asks_the_model = False

    def _weighted_traces(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Trace, Trace]:
        if not self._asks_the_model:
            return super()._weighted_traces(model, guide, args, kwargs)
        traces = self.run(model, guide, args, kwargs)
        if is_validation_enabled():
            check_model_guide_match(*traces.to_match(), self.max_plate_nesting)
        # The guide's density is no part of it, and a degenerate one has none.
        weights = dict.fromkeys(traces.model_sites, 1.0), dict.fromkeys(traces.guide_sites, 0.0)
        self.apply_weights(traces, weights, 1.0)
        return traces.model, traces.guide

    def _prepare(self, model_trace: Trace, guide_trace: Trace) -> None:
        if is_validation_enabled():
            check_traceenum_requirements(model_trace, guide_trace)
            _check_tmc_elbo_constraint(model_trace, guide_trace)
            if self.strict_enumeration_warning:
                _warn_if_nothing_is_enumerated(model_trace, guide_trace)
        guide_trace.pack_tensors()
        model_trace.pack_tensors(guide_trace.plate_to_symbol)


def _warn_if_nothing_is_enumerated(*traces: Trace) -> None:
    sites = [site for trace in traces for _, site in sample_sites(trace)]
    if not any(site["infer"].get("enumerate") for site in sites):
        warnings.warn(
            "TraceEnumExpectedLogLikelihood found no sample sites configured for enumeration. "
            'Mark them with infer={"enumerate": "parallel"} or config_enumerate, or use '
            "TraceExpectedLogLikelihood.",
            UserWarning,
            stacklevel=2,
        )


class TraceMeanFieldExpectedLogLikelihood(ExpectedLogLikelihood, TraceMeanField_ELBO):
    """Expected log-likelihood whose kept divergences are analytic where Pyro knows them.

    It differs from `TraceExpectedLogLikelihood` only where a KL is kept (``kl_weight`` above 0, or
    ``keep_kl``): the KL of each such site is computed in closed form, so its gradient is free of
    noise. The guide must be mean-field and reparametrized, as for `TraceMeanField_ELBO`. See
    `TraceExpectedLogLikelihood` for the arguments.

    Example:
        >>> loss = TraceMeanFieldExpectedLogLikelihood(kl_weight=0.1, reduction="mean")
    """

    def _prepare(self, model_trace: Trace, guide_trace: Trace) -> None:
        for name, site in sample_sites(guide_trace):
            if not is_reparametrized(site["fn"]):
                raise NotImplementedError(
                    f"Guide site {name!r} of type {type(site['fn']).__name__} is not "
                    "reparametrized, as the mean-field objective needs: use "
                    "TraceExpectedLogLikelihood or TraceGraphExpectedLogLikelihood."
                )
        super()._prepare(model_trace, guide_trace)
        if is_validation_enabled():
            _check_mean_field_requirement(model_trace, guide_trace)
