"""What a network with a distribution over its weights is asked for, trained or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi.front.parts import check_parts
from pyro_ibvi.front.scoring import batches_to_score, calibrate_batches
from pyro_ibvi.guides import AutoMuPMixture, AutoMuPNormal
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.prediction import Prediction, Temperature, evaluate, mean_network, predict
from pyro_ibvi.prediction.export import FrozenDraws, frozen_draws


class Predictor:
    """Predictions of a model and its guide, their scores and what else is made of the weights.

    Attributes:
        model: The Pyro model.
        guide: The guide, q.
        temperature: Temperature of the likelihood in predictions, 1 as trained.
    """

    model: SupervisedModel
    guide: AutoMuPNormal | AutoMuPMixture
    temperature: float

    @named_arguments()
    def predict(
        self,
        x: Any,
        *,
        num_samples: int = 100,
        seed: int | None = None,
        batch_size: int | None = None,
        chunk_size: int | None = None,
        max_memory: int | str | None = None,
    ) -> Prediction:
        """Predicts by averaging over draws of the weights.

        Args:
            x: Inputs: tensors, NumPy arrays, a data frame, or a loader that does not shuffle.
            num_samples: Number of draws.
            seed: Makes the draws the same at each call, without touching global random states.
            batch_size: Number of inputs that run at once.
            chunk_size: Number of draws that run at once.
            max_memory: Bytes, or a text such as ``"2 GB"``, within which to stay, see
                :func:`~pyro_ibvi.predict`.

        Returns:
            The prediction, see :class:`~pyro_ibvi.Prediction`.
        """
        check_parts(self)
        how: Any = {"chunk_size": chunk_size, "batch_size": batch_size, "max_memory": max_memory}
        return predict(self.model, self.guide, x, **how, **self._draws(num_samples, seed))

    @named_arguments()
    def evaluate(
        self,
        data: Any,
        y: Any = None,
        *,
        foreign: Any = None,
        num_samples: int = 100,
        seed: int | None = None,
    ) -> dict[str, float]:
        """Scores on held-out data.

        Args:
            data: Data in any of the forms that :meth:`fit` takes.
            y: The targets, if ``data`` are inputs.
            foreign: Inputs, or a loader, unlike those of training: does the network tell them?
            num_samples: Number of draws of the weights.
            seed: As for :meth:`predict`.

        Returns:
            The scores by name, see :func:`~pyro_ibvi.evaluate`.
        """
        check_parts(self)
        batches = batches_to_score(self.model, self.guide, data, y, num_samples)
        draws = self._draws(num_samples, seed)
        return evaluate(self.model, self.guide, batches, foreign=foreign, **draws)

    @named_arguments()
    def calibrate(
        self, data: Any, y: Any = None, *, num_samples: int = 100, seed: int | None = None
    ) -> Temperature:
        """Finds the temperature on validation data, and predicts by it from then on.

        Args:
            data: Data that training has not seen, in any of the forms that :meth:`fit` takes.
            y: The targets, if ``data`` are inputs.
            num_samples: Number of draws of the weights.
            seed: As for :meth:`predict`.

        Returns:
            The temperature and what it did, see :func:`~pyro_ibvi.prediction.fit_temperature`.
        """
        check_parts(self)
        batches = batches_to_score(self.model, self.guide, data, y, num_samples)
        draws = self._draws(num_samples, seed)
        found = calibrate_batches(self.model, self.guide, batches, **draws)
        self.temperature = found.value
        return found

    def mean_network(self) -> nn.Module:
        """The plain network with each weight at its mean, see :mod:`pyro_ibvi.prediction`."""
        check_parts(self)
        return mean_network(self.model, self.guide)

    @named_arguments()
    def frozen_draws(self, num_samples: int = 16, *, seed: int | None = None) -> FrozenDraws:
        """Draws of the weights as one module to serve, for ``torch.export`` and ONNX.

        Args:
            num_samples: Number of draws.
            seed: As for :meth:`predict`, whose draws these are.

        Returns:
            A module that gives the predictive mean and variance.
        """
        check_parts(self)
        return frozen_draws(self.model, self.guide, **self._draws(num_samples, seed))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.guide.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type of the weights."""
        return next(self.guide.parameters()).dtype

    def _draws(self, num_samples: int, seed: int | None) -> dict[str, Any]:
        return {"num_samples": num_samples, "generator": seed, "temperature": self.temperature}
