r"""Noise of each datum in the place of noise of each batch.

A multiplication of the columns of a weight matrix is one of the layer's inputs,
:math:`W (1 + s z)\, x = \text{loc}\, ((1 + s z)\, x)`. So where the noise of a site is
:class:`~pyro_ibvi.Multiplicative`, each datum of a batch can have a draw of its own for the price
of a multiplication: the network runs with the means and the inputs of the layer are multiplied.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ibvi._util.network_copies import is_compiled
from pyro_ibvi.guides.base import MuPGuide
from pyro_ibvi.guides.multiplicative import Multiplicative
from pyro_ibvi.guides.noise import normal_rows
from pyro_ibvi.guides.sites import Layer
from pyro_ibvi.models.random_module import RandomModule
from pyro_ibvi.models.replicas import find_places

#: Layers whose input has channels in its second dimension, with its number of dimensions.
_CHANNELS_SECOND = {
    nn.Conv1d: 3,
    nn.Conv2d: 4,
    nn.Conv3d: 5,
    nn.ConvTranspose1d: 3,
    nn.ConvTranspose2d: 4,
    nn.ConvTranspose3d: 5,
}


@dataclass(frozen=True)
class Inputs:
    """Where a layer's input holds the data and the units.

    Attributes:
        layer: Name of the layer in the network.
        units: Dimension of the units.
        least_dims: The least number of dimensions of an input with data in it.
        batch: Dimension of the data.
    """

    layer: str
    units: int
    least_dims: int
    batch: int = 0


class NoDrawPerDatumError(RuntimeError):
    """The input of a layer does not hold the data where a draw for each would be.

    Args:
        layer: Name of the layer.
        shape: Shape of its input.
    """

    def __init__(self, layer: str, shape: tuple[int, ...]) -> None:
        self.layer = layer
        super().__init__(f"The input of the layer {layer!r} has the shape {shape}.")


class InputNoise:
    """A function of a layer's input that multiplies it by noise, a draw for each datum.

    All calls of one run have the same noise.

    Args:
        inputs: The layer.
        multiplier: What each unit is multiplied by, ``1 + s z``, shape ``(batch, units)``.
    """

    def __init__(self, inputs: Inputs, multiplier: Tensor) -> None:
        self.inputs, self.multiplier = inputs, multiplier

    def __call__(self, x: Tensor) -> Tensor:
        """The input times ``1 + s z``.

        Args:
            x: The input.

        Returns:
            A tensor of its shape.

        Raises:
            NoDrawPerDatumError: If it does not hold a row for each datum.
        """
        inputs = self.inputs
        if not isinstance(x, Tensor) or x.dim() < inputs.least_dims:
            raise NoDrawPerDatumError(inputs.layer, tuple(getattr(x, "shape", ())))
        multiplier = self.multiplier
        batch_size, num_units = multiplier.shape
        num_rows = x.shape[inputs.batch]
        if x.shape[inputs.units] != num_units or num_rows % batch_size or not num_rows:
            raise NoDrawPerDatumError(inputs.layer, tuple(x.shape))
        if num_rows != batch_size:  # each datum has several rows, one after the other
            repeats = num_rows // batch_size
            multiplier = multiplier.unsqueeze(1).expand(-1, repeats, -1).reshape(num_rows, -1)
        if x.dim() > 2:
            shape = [1] * x.dim()
            shape[inputs.batch], shape[inputs.units] = num_rows, num_units
            multiplier = multiplier.reshape(shape)
        return x * multiplier


class PerDatum:
    """Which sites of a guide can have a draw for each datum, and the functions that do it.

    Args:
        layers: The guide's layers.
        net: The network whose weights they are.
        num_components: Number of Gaussians of which the guide is a mixture. The inputs are noisy
            alike for all of them, so of more than one the factors must be held where they start.
    """

    def __init__(
        self, layers: Sequence[Layer], net: RandomModule, num_components: int = 1
    ) -> None:
        self._layers, self._network = layers, net.network
        names = {net.site_name(name): name for name in net.stochastic}
        places = find_places(net.network)
        self.inputs: dict[str, Inputs] = {}
        if any(is_compiled(module) for module in net.network.modules()):
            return  # a function that is new at each run would be compiled at each run
        for layer in layers:
            name = names[layer.name]
            covariance = layer.covariance
            if num_components > 1 and covariance is not None and not covariance.is_held:
                continue
            if not all(site.is_real for site in layer.sites):
                continue  # the noise is on what the weight is a function of
            if isinstance(covariance, Multiplicative) and len(places[name]) == 1:
                found = _find_inputs(net.network, name)
                if found is not None:
                    self.inputs[layer.name] = found

    @property
    def others(self) -> list[Layer]:
        """The guide's layers that have one draw for a batch."""
        return [layer for layer in self._layers if layer.name not in self.inputs]

    def left_out(self) -> list[str]:
        """Names of the random sites that have one draw for a batch."""
        others = [layer for layer in self.others if layer.covariance is not None]
        return [site.name for layer in others for site in layer.sites]

    def drop(self, layer: str) -> None:
        """Gives the site of a layer one draw for a batch after all.

        Args:
            layer: Name of the layer in the network.
        """
        self.inputs = {name: i for name, i in self.inputs.items() if i.layer != layer}

    def draw(
        self, guide: MuPGuide, batch_size: int, opposite: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, InputNoise]]:
        """Draws all sites for one run.

        Args:
            guide: The guide.
            batch_size: Number of data.
            opposite: Values of another run, on the other side of whose means are those of this
                one; None for values of its own.

        Returns:
            Values by site, the mean where each datum has a draw of its own, and for each layer of
            those the function of its input.
        """
        values = guide.rsample(self.others) if opposite is None else self._mirror(guide, opposite)
        factors = {}
        for name in self.inputs:
            values[name] = guide.loc(name)
            factors[name] = guide.components[0].factor(name).reshape(-1)
        multipliers = _multipliers(factors, batch_size)
        maps = {i.layer: InputNoise(i, multipliers[name]) for name, i in self.inputs.items()}
        return values, maps

    def _mirror(self, guide: MuPGuide, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values with the sign of their noise changed, noise being on unconstrained ones."""
        result = {}
        for layer in self.others:
            for site in layer.sites:
                value = values[site.name]
                if layer.covariance is not None:
                    loc = guide.loc(site.name)
                    value = site.constrain(site.unconstrain(value).lerp(loc, 2.0))
                result[site.name] = value
        return result


def _multipliers(factors: Mapping[str, Tensor], batch_size: int) -> dict[str, Tensor]:
    """``1 + s z`` by name, drawn together: a layer's own is too small to be worth the calls."""
    alike: dict[tuple[torch.dtype, torch.device], list[str]] = {}
    for name, factor in factors.items():
        alike.setdefault((factor.dtype, factor.device), []).append(name)
    result: dict[str, Tensor] = {}
    for names in alike.values():
        sizes = [len(factors[name]) for name in names]
        joint = torch.cat([factors[name] for name in names])
        rows = normal_rows(batch_size, len(joint), joint).one_plus(joint)
        result.update(zip(names, rows.split(sizes, dim=1), strict=True))
    return result


def _find_inputs(net: nn.Module, name: str) -> Inputs | None:
    """Where the layer of a weight has its inputs, if noise on these is noise on the weight."""
    path, _, own_name = name.rpartition(".")
    layer: Any = net.get_submodule(path)
    if own_name == "weight" and isinstance(layer, nn.Linear):
        return Inputs(path, -1, least_dims=2)
    for kind, num_dims in _CHANNELS_SECOND.items():
        if own_name == "weight" and isinstance(layer, kind):
            return Inputs(path, 1, least_dims=num_dims)
    is_recurrent = isinstance(layer, nn.RNNBase) and not layer.bidirectional
    if own_name == "weight_ih_l0" and is_recurrent:
        return Inputs(path, -1, least_dims=3, batch=0 if layer.batch_first else 1)
    return None


def warn_of(names: Sequence[str]) -> None:
    """Warns of sites that have one draw for a batch where one for each datum was asked for.

    Args:
        names: The sites.
    """
    if names:
        warnings.warn(
            f"draws='datum', which VariationalNetwork takes by itself with relative noise: the "
            f"random sites {list(names)} have one draw for a batch. A draw for each datum can be "
            f"had where the covariance is Multiplicative (with rate=0 in a mixture) and the layer "
            f"reads an input with the data in its first dimension; draws=8 draws all sites eight "
            f"times, for an eighth of the batch each.",
            UserWarning,
            stacklevel=2,
        )
