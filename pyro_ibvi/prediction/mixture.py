r"""The predictive distribution: a mixture over draws of the weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor

from pyro_ibvi._util.checks import shown
from pyro_ibvi._util.inputs import as_tensors, map_tensors
from pyro_ibvi._util.precision import at_least_float32, in_double
from pyro_ibvi.models.data_checks import check_data
from pyro_ibvi.models.kinds import kind_of
from pyro_ibvi.models.labels import Categorical
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.models.soft import mixed_law
from pyro_ibvi.models.tasks import MultiTask
from pyro_ibvi.models.wrapped import elementwise
from pyro_ibvi.prediction import marginals
from pyro_ibvi.prediction.moments import mixture_moments, rows_at_once

#: What other libraries' names for a prediction's parts are here.
_ELSEWHERE = {
    "std": "stddev",
    "scale": "stddev",
    "var": "variance",
    "loc": "mean",
    "probs": "mean",
    "probabilities": "mean",
    "logits": "outputs",
    "samples": "outputs, or .sample() with noise",
    "labels": "mean.argmax(-1)",
    "argmax": "mean.argmax(-1)",
    "numpy": "mean.numpy()",
}


class Prediction:
    r"""The predictive distribution, :math:`p(y \mid x) = \frac1S \sum_s p(y \mid f_{w_s}(x))`.

    For a :class:`~pyro_ibvi.Categorical` likelihood moments are those of the one-hot label, so
    that the mean holds class probabilities, where the network has its classes. A prediction owns
    what it holds: training that goes on does not move it.

    Attributes:
        outputs: The network's outputs, shape ``(num_samples, batch, *event)``.
        likelihood: The distribution of a target given an output.

    Args:
        outputs: The network's outputs.
        likelihood: The likelihood, of which a copy is kept.

    Raises:
        TypeError: If they are of another kind.
    """

    def __init__(self, outputs: Tensor, likelihood: Likelihood) -> None:
        if not isinstance(outputs, Tensor) or not isinstance(likelihood, Likelihood):
            raise TypeError(
                f"A prediction is made of a tensor of outputs, (num_samples, batch, ...), and a "
                f"likelihood, got {shown(outputs)} and {shown(likelihood)}."
            )
        self.outputs = at_least_float32(outputs)
        self.likelihood = likelihood.detached()

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, epistemic and aleatoric variance, which not every distribution has."""
        moments = mixture_moments(self.outputs, self.likelihood)
        noise = moments[2]
        if kind_of(self.likelihood) == "normal" and bool(((noise == 0) | noise.isinf()).any()):
            warnings.warn(
                f"Variances in the squares of the targets' units are beyond what {noise.dtype} "
                f"holds, and so are standard deviations: choose units in which targets are nearer "
                f"to one, or train in double precision. Quantiles and intervals need no variance.",
                UserWarning,
                stacklevel=4,
            )
        return moments

    @property
    def num_samples(self) -> int:
        """Number of draws of the weights."""
        return self.outputs.shape[0]

    @property
    def mean(self) -> Tensor:
        """Mean of the target, in its units; class probabilities for labels."""
        return self._moments[0]

    @property
    def variance(self) -> Tensor:
        """Variance of the target, noise included: ``epistemic + aleatoric``."""
        return self._moments[1] + self._moments[2]

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of the target, noise included."""
        return self.variance.sqrt()

    @property
    def epistemic(self) -> Tensor:
        """Variance over draws of the conditional mean: what more data could reduce."""
        return self._moments[1]

    @property
    def aleatoric(self) -> Tensor:
        """Mean over draws of the conditional variance: the noise of the target."""
        return self._moments[2]

    def target(self, y: Any) -> Tensor:
        """Targets as the likelihood takes them, checked.

        Args:
            y: Targets: a tensor, an array, a data frame or series, or a list.

        Returns:
            The targets.

        Raises:
            TypeError: If they have the wrong type.
        """
        y = as_tensors(self.likelihood.by_task(y), self.outputs.dtype)
        if isinstance(y, Prediction):
            raise TypeError("The target is a Prediction: pass the prediction first, then y.")
        y = map_tensors(lambda part: part.to(self.outputs.device), y)
        y = self.likelihood.as_target(y)
        if not isinstance(y, Tensor):
            raise TypeError(f"Targets must be a tensor or an array, got {type(y).__name__}.")
        check_data(self.likelihood, None, y, self.outputs[0])
        return self.likelihood.convert_target(y, self.outputs)

    def log_prob(self, y: Any) -> Tensor:
        r"""Log predictive density of targets, :math:`\log \frac1S \sum_s p(y \mid f_s)`.

        Args:
            y: Targets, shape as the likelihood expects.

        Returns:
            One number per datum, in nats, shape ``(batch,)``. Its targets are taken together; what
            was not observed counts nothing. Of shares of classes it is the cross-entropy.

        Raises:
            TypeError: If the target has the wrong type.
            ValueError: If it has the wrong shape or impossible values.
        """
        y = self.target(y)
        law: Any = mixed_law(self.likelihood, self.outputs, y)
        log_probs: Tensor = law.log_prob(y)
        return log_probs.logsumexp(0) - math.log(len(log_probs))

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Draws targets, one for each draw of the weights.

        Returns:
            Targets, shape ``(num_samples, batch, *event)``.
        """
        targets: Tensor = self.likelihood.density(self.outputs, 2).sample()
        return targets

    def cdf(self, y: Any) -> Tensor:
        """Probability of a target up to ``y``, for each number of the target by itself.

        Args:
            y: Numbers, of the shape of a target or broadcastable to it.

        Returns:
            Probabilities, in the shape of a target.

        Raises:
            TypeError: If the target is no number, or its distribution function is not known.
        """
        dtype = self.outputs.dtype
        y = torch.as_tensor(as_tensors(y, dtype), device=self.outputs.device)
        y = y.to(torch.promote_types(y.dtype, dtype))
        kind = self._kind("cdf")
        if kind == "poisson":
            return marginals.poisson_cdf(self.outputs.exp(), y)
        if kind == "bernoulli":
            below = torch.where(y >= 0, 1 - self.mean, 0.0)
            return torch.where(y >= 1, 1.0, torch.where(y.isnan(), y, below))
        try:
            law = elementwise(self.likelihood.density(self.outputs, 2))
            y = y if kind == "normal" else y.to(dtype)  # on which laws of others may insist
            cdf = marginals.cdf_of(law, y).mean(0)
        except NotImplementedError as error:
            raise TypeError(
                f"The distribution function of the {type(self.likelihood).__name__} likelihood is "
                f"not known: take quantiles of sample()."
            ) from error
        return cdf

    @torch.no_grad()
    def quantile(self, q: float | Sequence[float] | Tensor) -> Tensor:
        """Quantiles of the mixture, noise included, for each number of the target by itself.

        Args:
            q: Probabilities strictly between 0 and 1.

        Returns:
            The smallest numbers with these probabilities below, shape ``(*q, *target)``.

        Raises:
            TypeError: If the target is no number.
            ValueError: If a probability is out of range.
        """
        self._kind("quantile")
        q = torch.as_tensor(q, dtype=torch.float64)
        if q.numel() == 0 or not bool(((q > 0) & (q < 1)).all()):
            raise ValueError(
                f"Quantiles are at probabilities strictly between 0 and 1, got {q.tolist()}."
            )
        quantiles = marginals.quantile_of(self.cdf, q, self.outputs.dtype)
        return quantiles.ceil() if self.likelihood.discrete else quantiles

    def interval(self, coverage: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central predictive interval, with equal probabilities on both sides.

        Args:
            coverage: Probability of the target within, between 0 and 1.

        Returns:
            Lower and upper ends, each in the shape of a target.

        Raises:
            ValueError: If the coverage is out of range.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage is a probability such as 0.95, got {coverage!r}.")
        low, high = self.quantile([(1 - coverage) / 2, (1 + coverage) / 2])
        return low, high

    def entropy(self) -> Tensor:
        """Entropy of the mixture in nats, for each label or number of the target by itself.

        Returns:
            Entropies in the shape of a target; of numbers those of the density, which may be
            negative and depend on the units.
        """
        if kind_of(self.likelihood) in ("categorical", "bernoulli"):
            return self._entropy_of_labels(self.mean)
        return self._entropies()[0]

    def mutual_information(self) -> Tensor:
        """Mutual information of target and weights in nats: the epistemic part of the entropy.

        Returns:
            :meth:`entropy` less the mean entropy of the target given the weights, in the shape of
            a target, at least 0.
        """
        total, within = self._entropies()
        return (total - within).clamp(min=0)

    def components(self) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the target for each draw of the weights.

        Returns:
            Both of shape ``(num_samples, *target)``, in the target's units.
        """
        # In single precision variances would be 0 or infinite where their roots are numbers.
        is_normal = kind_of(self.likelihood) == "normal"
        outputs = in_double(self.outputs) if is_normal else self.outputs
        means, variances = self.likelihood.moments(outputs, 2)
        return means.to(self.outputs.dtype), variances.sqrt().to(self.outputs.dtype)

    def at_temperature(self, temperature: float) -> Prediction:
        r"""The mixture of tempered densities, :math:`p(y \mid f_s)^{1/T}`, each normalized.

        Args:
            temperature: :math:`T`; above 1 less sure, below 1 surer than trained.

        Returns:
            The prediction.

        Raises:
            TypeError: If the likelihood has no tempered form.
        """
        return Prediction(self.outputs, self.likelihood.at_temperature(temperature))

    def __getitem__(self, task: str) -> Prediction:
        """The prediction of one task of a ``MultiTask`` likelihood."""
        if not isinstance(self.likelihood, MultiTask):
            raise TypeError(
                "A prediction has parts where it is of several tasks, prediction['name'], and "
                "this one is not: take data out of its numbers, as in prediction.mean[0]."
            )
        if task not in self.likelihood.widths:
            names = list(self.likelihood.widths)
            raise KeyError(f"No task {task!r}; the likelihood has the tasks {names}.")
        outputs = self.likelihood.split(self.outputs)[task]
        return Prediction(outputs, self.likelihood.likelihoods[task])

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses to be taken for an array, of which NumPy would make one of objects."""
        raise TypeError(
            "A prediction is a distribution and no array: write prediction.mean.numpy()."
        )

    def __getattr__(self, name: str) -> Any:
        meant = f": write .{_ELSEWHERE.get(name)}" * (name in _ELSEWHERE)
        raise AttributeError(f"A Prediction has no {name!r}{meant}.")

    def __repr__(self) -> str:
        try:
            what, shape = "mean", tuple(self.mean.shape)
        except NotImplementedError:  # labels by a law of one's own
            what, shape = "outputs", tuple(self.outputs.shape)
        return f"Prediction(num_samples={self.num_samples}, {what} of shape {shape})"

    def _kind(self, what: str) -> str:
        kind = kind_of(self.likelihood)
        if kind == "categorical":
            raise TypeError(
                f"Class labels have no order, so no {what}: `mean` holds their probabilities."
            )
        if kind == "tasks":
            raise TypeError(f"Each task has a {what} of its own: prediction['name'].{what}(...).")
        return kind

    def _entropies(self) -> tuple[Tensor, Tensor]:
        """Entropy of the mixture and mean entropy of its components."""
        kind = kind_of(self.likelihood)
        if kind in ("categorical", "bernoulli"):
            num_rows = rows_at_once(self.outputs)  # of all data they are as large as the outputs
            of_draws = [
                self._entropy_of_labels(self.likelihood.moments(part, 2)[0]).mean(0)
                for part in self.outputs.split(num_rows, dim=1)
            ]
            return self._entropy_of_labels(self.mean), torch.cat(of_draws)
        if kind == "poisson":
            return marginals.poisson_entropy(self.outputs.exp())
        if kind == "tasks":
            raise TypeError("Each task has an entropy of its own: prediction['name'].entropy().")
        if kind != "normal":
            raise TypeError(
                f"The entropy of a mixture of the {type(self.likelihood).__name__} likelihood has "
                f"no closed form: estimate it by -log_prob of draws."
            )
        means, scales = self.components()
        within = scales.log().mean(0) + (1 + math.log(2 * math.pi)) / 2
        return marginals.normal_entropy(means, scales), within

    def _entropy_of_labels(self, probabilities: Tensor) -> Tensor:
        """Entropy of labels whose probabilities are these, as :attr:`mean` has them."""
        if kind_of(self.likelihood) == "bernoulli":
            return _entropy(torch.stack([probabilities, 1 - probabilities], -1), -1)
        assert isinstance(self.likelihood, Categorical)
        return _entropy(probabilities, self.likelihood.class_dim_of(self.outputs, 2))


def check_prediction(prediction: Any, function: str, *rest: str) -> None:
    """Checks that a prediction is one, and not its mean, the targets or the model.

    Args:
        prediction: The prediction.
        function: Name of the function that takes it.
        *rest: Names of what the function takes behind it.

    Raises:
        TypeError: If it is something else.
    """
    if not isinstance(prediction, Prediction):
        first = "ibvi.predict(model, guide, x)"
        raise TypeError(
            f"{function} needs what predict returned{' and then the targets' * bool(rest)}, got "
            f"{type(prediction).__name__}: write {function}({', '.join([first, *rest])})."
        )


def _entropy(probabilities: Tensor, dim: int) -> Tensor:
    terms: Tensor = torch.special.xlogy(probabilities, probabilities)
    return -terms.sum(dim)
