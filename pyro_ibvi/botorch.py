"""Draws of a random network as a model of BoTorch, to choose where to measure next.

It needs the extra ``botorch``, and nothing else of the package knows it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from botorch.models.ensemble import EnsembleModel
from torch import Tensor

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi.guides import MuPGuide
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.models.running import network_mode
from pyro_ibvi.pairing.belonging import check_pair
from pyro_ibvi.pairing.past import warn_of_one_left_behind
from pyro_ibvi.prediction.chunking import draws_to_run, output_sizes
from pyro_ibvi.prediction.draws import draw_parameters
from pyro_ibvi.prediction.seeds import Seed, seeded_numbers

__all__ = ["FunctionDraws"]


class FunctionDraws(EnsembleModel):
    r"""A fixed number of functions, drawn from a guide, as an ensemble for BoTorch.

    The :math:`s`-th member is the mean of the target given one draw of the weights,
    :math:`\mathbb E[y \mid f_{w_s}(x)]`: in the units of the targets, class probabilities for
    labels, without observation noise. The draws are made once, so that an acquisition function is
    a smooth and repeatable function of the points, with gradients with respect to them. They are
    copies: training that goes on does not move them, and a new round needs a new object.

    They are run in double precision, as BoTorch's optimizers need it; values come in the precision
    of the points. Conditioning on further observations (``fantasize``, as the knowledge gradient
    needs it) is not to be had without training.

    Args:
        model: The model, whose network takes rows of numbers and gives a row for each.
        guide: Its guide.
        num_samples: Number of draws of the weights.
        num_outputs: Number of targets for each point, which BoTorch asks for beforehand.
        generator: A seed, or a generator that gives one, as for :func:`~pyro_ibvi.predict`.

    Raises:
        TypeError: If the model or the guide is of another kind.
        ValueError: If a number is not positive, or the guide is another model's.

    Example:
        >>> import pyro_ibvi as ibvi
        >>> bnn = ibvi.VariationalNetwork(torch.nn.Linear(2, 1), ibvi.Normal(0.1))
        >>> draws = FunctionDraws(bnn.model, bnn.guide, num_samples=8, generator=0)
        >>> points = torch.zeros(5, 3, 2, dtype=torch.double)  # five batches of three points
        >>> posterior = draws.posterior(points)
        >>> posterior.values.shape, posterior.mean.shape
        (torch.Size([5, 8, 3, 1]), torch.Size([5, 3, 1]))
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: MuPGuide,
        *,
        num_samples: int = 64,
        num_outputs: int = 1,
        generator: Seed = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, SupervisedModel) or not isinstance(guide, MuPGuide):
            raise TypeError(
                f"FunctionDraws needs a SupervisedModel and its AutoMuPNormal guide, got "
                f"{type(model).__name__} and {type(guide).__name__}: for a VariationalNetwork "
                f"write FunctionDraws(bnn.model, bnn.guide)."
            )
        check_pair(model, guide)
        warn_of_one_left_behind(model, guide)
        check_positive_int("num_samples", num_samples)
        check_positive_int("num_outputs", num_outputs)
        with torch.no_grad(), seeded_numbers(generator, guide):
            values = draw_parameters(model, guide, None, num_samples)
        self._num_outputs, self.num_samples = num_outputs, num_samples
        # As buffers, so that the draws move between devices with the rest.
        self._names = list(values)
        for i, name in enumerate(self._names):  # each is let go once it is copied, they are large
            copied = values.pop(name).detach().to(torch.double, copy=True)
            self.register_buffer(f"value_{i}", copied)
        # A line search that stands at a maximum fails on the noise of single precision.
        self._model = copy.deepcopy(model).requires_grad_(False).double()

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803 - BoTorch's name
        """The functions at points.

        Args:
            X: Points, shape ``(*batch, n, d)``.

        Returns:
            Values, shape ``(*batch, num_samples, n, m)``.

        Raises:
            ValueError: If the points have another shape, or the network another number of outputs.
        """
        if X.dim() < 2:
            raise ValueError(
                f"Points have the shape (*batch, n, d), with one row for each, got "
                f"{tuple(X.shape)}: for a single point of d numbers write x.view(1, -1)."
            )
        values = {name: getattr(self, f"value_{i}") for i, name in enumerate(self._names)}
        first = next(iter(values.values()))
        rows = X.reshape(-1, X.shape[-1]).to(first)
        with network_mode(training=False):
            outputs = torch.cat([self._model.run(v, rows) for v in self._parts(values, rows)])
        means, _ = self._model.likelihood.moments(outputs, 2)
        if means.dim() > 3:
            raise ValueError(
                f"BoTorch's functions have a row of outputs for each point; the targets of this "
                f"network have the shape {tuple(means.shape[2:])}."
            )
        means = means.reshape(*means.shape[:2], -1)
        if means.shape[2] != self._num_outputs:
            raise ValueError(
                f"The network has {means.shape[2]} outputs for each point, not the "
                f"{self._num_outputs} of num_outputs=: write num_outputs={means.shape[2]}."
            )
        functions: Tensor = means.unflatten(1, X.shape[:-1]).movedim(0, -3).to(X)
        return functions

    def _parts(self, values: dict[str, Tensor], rows: Tensor) -> Iterator[dict[str, Tensor]]:
        """The draws in parts, which keep to the memory of a prediction where there is no graph."""
        net, num_draws = self._model.net, self.num_samples
        if not torch.is_grad_enabled() and len(rows):
            sizes = output_sizes(net, self._model.arguments_of(rows[:1]))
            num_draws = draws_to_run(net, sizes, len(rows))
        for start in range(0, self.num_samples, num_draws):
            part = {name: values[name][start : start + num_draws] for name in net.stochastic}
            yield values | part
