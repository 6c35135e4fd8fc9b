"""What this package's guides have in common, whatever their law."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_ibvi._util.modes import owner_module
from pyro_ibvi.guides.sites import Layer
from pyro_ibvi.mup.parametrization import Family, Rate
from pyro_ibvi.pairing.belonging import model_of
from pyro_ibvi.pairing.past import Past, few_values, read_past, write_past


class MuPGuide(nn.Module):
    """A guide with learning rates, which draws the weights of networks without Pyro as well.

    It acts the same in training and in evaluation mode, and any number of threads may draw.
    """

    def _begin_past(self) -> None:
        """Notes the parameters that the guide was made with, before any state is loaded."""
        self._past = Past(start=few_values(self))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        write_past(self, destination, prefix, owner_module(model_of(self)))

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *args: Any) -> None:
        super()._load_from_state_dict(state, prefix, metadata, *args)
        read_past(self, metadata)

    @property
    def model(self) -> Callable[..., Any]:
        """The model."""
        raise NotImplementedError

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The sites, those together that share their noise, each with its covariance."""
        raise NotImplementedError

    @property
    def components(self) -> tuple[MuPGuide, ...]:
        """The Gaussians of which the guide is the mixture, or itself alone."""
        raise NotImplementedError

    def loc(self, name: str) -> Tensor:
        """Mean of a site in unconstrained space, those of several components in front."""
        raise NotImplementedError

    def factor(self, name: str) -> Tensor:
        """Factor of a site's covariance, those of several components in front."""
        raise NotImplementedError

    def named_site_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters in the order in which the guide reads them."""
        raise NotImplementedError

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Median of every site by name, of a guide that is one Gaussian."""
        raise NotImplementedError

    def draw(self, num_samples: int) -> dict[str, Tensor]:
        """Draws every global site many times, the draws' dimension in front."""
        raise NotImplementedError

    def draw_parts(self, num_samples: int, size: int) -> Iterator[dict[str, Tensor]]:
        """Draws as :meth:`draw` does, part by part.

        Args:
            num_samples: Number of draws in all parts together.
            size: Number of draws in a part, but for the last.

        Yields:
            The draws of a part.
        """
        for start in range(0, num_samples, size):
            yield self.draw(min(size, num_samples - start))

    def rsample(self, layers: Sequence[Layer] | None = None) -> dict[str, Tensor]:
        """Draws every global site once, or those of some layers, differentiably."""
        raise NotImplementedError

    def named_rates(self, family: Family) -> Iterator[tuple[str, nn.Parameter, Rate]]:
        """Every parameter of the guide and of its model, with its learning rate."""
        raise NotImplementedError

    def direct_route(self, model: Any) -> Any:
        """The way to evaluate a model's likelihood without Pyro's traces, if there is one."""
        raise NotImplementedError
