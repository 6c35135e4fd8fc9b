"""What an objective leaves unmoved, and what it lets fit one datum each.

Dropping the KL divergence is right where the likelihood sees every latent and many data share it.
Elsewhere it fails in silence: a latent that only a prior sees is never moved, and a latent with
one value per datum fits that datum exactly. The functions here find these cases and say so.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pyro.infer.inspect import site_is_deterministic
from pyro.poutine import Trace
from torch import Tensor

from pyro_ibvi._util.distributions import innermost, is_delta
from pyro_ibvi._util.names import as_patterns
from pyro_ibvi.objectives.kept import auxiliary_sources, names_to_keep
from pyro_ibvi.objectives.locality import latents_of_single_data
from pyro_ibvi.objectives.reach import Reachable, tensors_of
from pyro_ibvi.objectives.sites import PARTICLES, Site, Traces, is_missing


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a pair of model and guide under an objective.

    Attributes:
        latents: Latent sites that reach terms, but none that is kept.
        idle: Latent sites that no law was computed from.
        is_cut: Whether there are such, and nothing that is kept has a gradient at all.
        missing: Those of them that stand for missing data.
        params: Parameters that no term that is kept can move.
        users: Sites that are drawn given those latents or parameters.
        local: Latents that have one value per observation and lose their KL.
        rows: Latents that have one row per row of an observed matrix and lose their KL.
        constant: Observed sites that a mean counts and nothing learned has a part in.
        priors: Observed sites whose value is the draw of a latent.
        drawn: Sites that are drawn from their prior in each step.
        factors: The guide's factors that are dropped and may be losses.
        sources: The guide's auxiliary sites that its latents come from.
    """

    latents: tuple[str, ...]
    idle: tuple[str, ...]
    is_cut: bool
    missing: tuple[str, ...]
    params: tuple[str, ...]
    users: tuple[str, ...]
    local: tuple[str, ...]
    rows: tuple[str, ...]
    constant: tuple[str, ...]
    priors: tuple[str, ...]
    drawn: tuple[str, ...]
    factors: tuple[str, ...]
    sources: Mapping[str, list[str]]

    @property
    def names(self) -> set[str]:
        """Names of all that is wrong."""
        learned = {*self.latents, *self.idle, *self.params, *self.local, *self.rows}
        return learned | {*self.constant, *self.priors, *self.drawn, *self.factors}

    def __str__(self) -> str:
        parts = (self._of_dropped(), self._of_idle(), self._of_local(), self._of_other_sites())
        return " ".join(itertools.chain(*parts))

    def _of_other_sites(self) -> Iterator[str]:
        if self.drawn:
            yield (
                f"The guide has no sites {list(self.drawn)}, which are drawn from their prior in "
                "each step and never learned, as is right for what was hidden from it. "
                "AutoMuPNormal of a SupervisedModel looks at the network's parameters alone, so "
                "pyro.sample in a network's forward makes noise: write torch.randn_like(x) if "
                "that is meant. A latent that shall be learned belongs into a model written by "
                "hand, before the network runs: z = pyro.sample(...); net(x, z), and "
                "AutoMuPNormal(that_model)."
            )
        if self.constant:
            yield (
                f"The observed sites {list(self.constant)} depend on no latent and no parameter: "
                "they teach nothing, and reduction='mean' counts them among the observations that "
                "it divides by. What poutine.condition holds is observed; to hold a latent at a "
                "value and observe nothing, hide it: poutine.block(poutine.condition(model, "
                f"data=...), hide={list(self.constant)})."
            )
        if self.priors:
            yield (
                f"The observed sites {list(self.priors)} observe draws of latent sites and no "
                "data: they are priors, as a translation from Stan writes them, and count as "
                "likelihood all the same. Give each latent its prior where it is drawn, z = "
                "pyro.sample('z', prior), for kl_weight to reach it; what shall stay in the "
                "objective is pyro.factor('z_factor', prior.log_prob(z))."
            )
        if self.factors:
            yield (
                f"The guide's factors {list(self.factors)} count as its density, which is "
                "dropped. A loss of its own, as of a classifier, belongs into the model with the "
                f"opposite sign, or is kept with keep_kl={list(self.factors)}."
            )

    def _of_dropped(self) -> Iterator[str]:
        found = [f"latent sites {list(self.latents)}"] * bool(self.latents)
        found += [f"parameters {list(self.params)}"] * bool(self.params)
        if found:
            keep = names_to_keep((*self.latents, *self.users), self.sources)
            way = f"keep the KL of the sites whose prior they enter with keep_kl={keep}, or "
            yield (
                f"The expected log-likelihood cannot move the {' and the '.join(found)}: they "
                "reach only terms that it drops (a prior, or the guide's entropy), so they stay "
                "where they started. Write the model so that they reach the likelihood "
                f"(non-centered: theta = mu + tau * eps), or {way * bool(keep)}train with "
                "kl_weight=1."
            )

    def _of_idle(self) -> Iterator[str]:
        idle = [name for name in self.idle if name not in self.missing]
        if self.is_cut:
            yield (
                "No gradient of the data's log-likelihood reaches any of the latent sites "
                f"{idle}, so nothing is learned. A network's forward does that which "
                "runs under torch.no_grad() or torch.inference_mode(), or whose output has left "
                "autograd's graph: by detach(), .data, .item(), NumPy, argmax or torch.tensor(...)"
                " of a tensor. Take that out of the forward; predictions need no gradients anyway."
            )
        elif idle:
            yield (
                f"Nothing in this step was computed from the latent sites {idle}. A "
                "part of a network that these data do not pass, such as an expert that was given "
                "none, learns when others pass it. What none ever passes stays where it started, "
                "and so does what a detach() or torch.no_grad() in the forward cuts off: take "
                "that out, or leave it out of what is random, RandomModule(net, stochastic=...), "
                f"or hold it at its prior with keep_kl={idle}."
            )
        if self.missing:
            yield (
                f"The latent sites {list(self.missing)} are missing data (obs_mask) from which "
                "nothing that is observed was computed: without their KL they stay where they "
                "started, and predict nothing. Leave them to the model, which draws them given "
                "the other latents: make the guide of poutine.block(model, "
                f"hide={list(self.missing)}); or keep their KL with "
                f"keep_kl={list(self.missing)}."
            )

    def _of_local(self) -> Iterator[str]:
        if self.local:
            keep = names_to_keep(self.local, self.sources)
            yield (
                f"Each of the latent sites {as_patterns(self.local)} has one value per "
                "observation: without its KL it fits its own datum, and the rest of the model "
                f"learns little. Keep it with keep_kl={keep}, or say that you mean it with "
                "allow_local=True."
            )
        if self.rows:
            keep = names_to_keep(self.rows, self.sources)
            yield (
                f"Each row of the latent sites {as_patterns(self.rows)} reaches one row of an "
                "observed matrix. If the rows are data, as in a factor model, it fits its own "
                f"datum without its KL: keep it with keep_kl={keep}. If they are groups of "
                "several data, as in a panel, say so by plates, of groups and of data in them, or "
                "by allow_local=True."
            )


def verdict_on(traces: Traces, dropped: set[str], reduction: str, *, allow_local: bool) -> Verdict:
    """Judges a pair of weighted traces by the graph of the terms that were just evaluated.

    Nothing is run again. Draws without a gradient (discrete ones) are not judged.

    Args:
        traces: The traces; those sites are left in them whose terms are kept.
        dropped: Names of the model's sites whose terms are dropped.
        reduction: ``"mean"`` if the terms are divided by the number of observations.
        allow_local: Whether the user means local latents to lose their KL.

    Returns:
        The verdict.
    """
    roots = [site["log_prob"] for site in _evaluated(traces.model)]
    for site in _evaluated(traces.guide):
        roots += [part for part in site["score_parts"] if isinstance(part, Tensor)]
    kept = Reachable(roots)
    unmoved = _unmoved_latents(traces, kept)
    idle = _idle_latents(unmoved, traces)
    latents = [name for name in unmoved if name not in idle]
    params = _unmoved_parameters(traces, kept, idle)
    priors = _observed_draws(traces)
    local = [] if allow_local else [n for n in _local_latents(traces, priors) if n in dropped]
    rows: list[str] = []
    if not (allow_local or kept.is_hidden):
        others = dropped - {*local, *unmoved}
        single, rows = latents_of_single_data(traces, others, priors)
        local += single
    missing = tuple(name for name in idle if is_missing(name, traces.model_sites))
    return Verdict(
        tuple(latents),
        tuple(idle),
        len(idle) > len(missing) and not any(root.requires_grad for root in roots),
        missing,
        tuple(params),
        tuple(_users_of(latents, params, traces)),
        tuple(name for name in local if name not in unmoved),
        tuple(rows),
        tuple(_constant_sites(traces)) if reduction == "mean" else (),
        tuple(priors),
        tuple(_drawn(traces)),
        tuple(_dropped_factors(traces)),
        auxiliary_sources(traces) if latents or params or local or rows else {},
    )


def _drawn(traces: Traces) -> Iterator[str]:
    """Sites that the guide lacks and could have, but for missing data, which are the model's."""
    for name, kind in traces.model_kinds.items():
        law = innermost(traces.model_sites[name]["fn"])
        has_spread = law.has_rsample and not is_delta(law)
        if kind == "predicted" and has_spread and not is_missing(name, traces.model_sites):
            yield name


def _dropped_factors(traces: Traces) -> Iterator[str]:
    """The guide's factors that lost their term, but for those of draws with a pathwise gradient.

    These complete a density, as of a reparametrized law that Pyro does not have.

    Yields:
        Their names.
    """
    for name, kind in traces.guide_kinds.items():
        law = innermost(traces.guide_sites[name]["fn"])
        is_learned = kind == "factor" and not law.has_rsample and law.log_factor.requires_grad
        if is_learned and not traces.guide.nodes[name]["log_prob"].requires_grad:
            yield name


def _evaluated(trace: Trace) -> Iterator[Site]:
    return (site for site in trace.nodes.values() if site["type"] == "sample")


def _unmoved_latents(traces: Traces, kept: Reachable) -> list[str]:
    """Latents of the guide that reach no kept term, by their draw or by parameters of their own.

    The draw may go unused where the model takes the guide's parameters themselves, as the
    inducing values of a sparse Gaussian process are integrated out.

    Returns:
        Their names.
    """
    drawn = {
        name: site["value"]
        for name, site in traces.guide_sites.items()
        if traces.guide_kinds[name] == "latent"
        and isinstance(site["value"], Tensor)
        and site["value"].requires_grad
    }
    leaves = {name: Reachable([value]).leaves for name, value in drawn.items()}
    counts = Counter(leaf for own in leaves.values() for leaf in own)
    unmoved = []
    for name, value in drawn.items():
        own = {leaf for leaf in leaves[name] if counts[leaf] == 1}
        if value not in kept and not own & kept.leaves:
            unmoved.append(name)
    return unmoved


def _idle_latents(unmoved: Collection[str], traces: Traces) -> list[str]:
    """Unmoved latents from whose draws the law of no site of the model was computed."""
    sites = traces.model_sites.values() if unmoved else ()
    laws = [tensors_of(site["fn"]) for site in sites if not site_is_deterministic(site)]
    used = Reachable(tensor for tensors in laws for tensor in tensors)
    return [name for name in unmoved if traces.guide_sites[name]["value"] not in used]


def _unmoved_parameters(traces: Traces, kept: Reachable, idle: Collection[str]) -> list[str]:
    """Parameters that reach dropped terms only.

    Those that no term uses, or only the terms of latents that are idle, are not judged.

    Returns:
        Their names.
    """
    tensors: list[Tensor] = []
    for name, site in (*traces.model_sites.items(), *traces.guide_sites.items()):
        if name.removesuffix("_unconstrained") in idle:  # `AutoNormal` draws it there
            continue
        if site_is_deterministic(site):  # a note of a value, no term
            continue
        tensors += [t for t in (*tensors_of(site["fn"]), site["value"]) if isinstance(t, Tensor)]
    used = Reachable(tensors)
    return [
        name
        for name, value in _parameters(traces).items()
        if value.requires_grad and value not in kept and value in used
    ]


def _constant_sites(traces: Traces) -> list[str]:
    """The observed sites whose terms have no gradient, beside others that have one."""
    terms = {
        name: traces.model.nodes[name]["log_prob"].requires_grad
        for name, kind in traces.model_kinds.items()
        if kind == "observed" and name in traces.model.nodes
    }
    return [name for name, learns in terms.items() if not learns] if any(terms.values()) else []


def _observed_draws(traces: Traces) -> list[str]:
    """The observed sites whose value is a latent's as it was drawn."""
    sites, kinds = traces.model_sites, traces.model_kinds
    drawn = {id(site["value"]) for name, site in sites.items() if kinds[name] == "latent"}
    return [n for n, s in sites.items() if kinds[n] == "observed" and id(s["value"]) in drawn]


def _parameters(traces: Traces) -> dict[str, Tensor]:
    """The unconstrained tensors that the traces' param statements gave out, by name."""
    params = {}
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "param" and isinstance(site["value"], Tensor):
                unconstrained = getattr(site["value"], "unconstrained", None)
                params[name] = unconstrained() if callable(unconstrained) else site["value"]
    return params


def _local_latents(traces: Traces, priors: Collection[str]) -> list[str]:
    """Latents of the guide that have one value per observation: all plates of an observed site.

    Returns:
        Their names; what is observed of priors is no datum.
    """
    plates = {
        name: {f.name for f in site["cond_indep_stack"] if f.name != PARTICLES}
        for name, site in traces.model_sites.items()
    }
    kinds = traces.model_kinds
    data = {n for n, kind in kinds.items() if kind == "observed" and n not in priors}
    observed = [own for name, own in plates.items() if name in data and own]
    return [
        name
        for name, own in plates.items()
        if kinds[name] == "latent" and any(other <= own for other in observed)
    ]


def _users_of(latents: list[str], params: list[str], traces: Traces) -> list[str]:
    """The sites whose law, in model or guide, depends on some latents or parameters.

    Returns:
        Their names, and those of the guide's factors that do.
    """
    values = [traces.model_sites[name]["value"] for name in latents if name in traces.model_sites]
    values += [value for name, value in _parameters(traces).items() if name in params]
    users = []
    factors = {n: s for n, s in traces.guide_sites.items() if traces.guide_kinds[n] == "factor"}
    for name, site in (traces.drawn() | factors).items():
        laws = [site["fn"], *(s["fn"] for s in (traces.guide_sites.get(name),) if s is not None)]
        reachable = Reachable(tensor for law in laws for tensor in tensors_of(law))
        if any(value in reachable for value in values):
            users.append(name)
    return users
