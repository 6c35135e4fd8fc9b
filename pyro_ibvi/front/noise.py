"""How much relative noise a network bears, by the features and the data that there are.

Where a layer reads many features, each says little that others do not, and noise on them keeps a
network from learning single data by heart. Of few features each says what no other does, and where
what counts is a small difference of two, noise on them hides it. Many data for each feature cannot
be learned by heart, and there noise is information lost: first that on the features, then that in
the layers behind (page *Results*).

What counts is the labels for each feature behind one of them. A layer over the points or the times
of a datum reads its features as often as there are points: of a datum with one label they are as
many features more, and with a label for each they are data.

Of numbers what counts is how many of them there are, of all data, times and pixels: few are
learned by heart sooner and ask for more noise, many bear less (page *Results*).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from pyro_ibvi.front.first_batch import FirstBatch
from pyro_ibvi.front.tables import is_of_tables
from pyro_ibvi.guides import AutoMuPMixture, AutoMuPNormal, Multiplicative
from pyro_ibvi.models import RandomModule, SupervisedModel
from pyro_ibvi.models.kinds import is_of_labels
from pyro_ibvi.mup.layers import owner_of

#: Numbers of features up to which a layer that reads data bears no noise, and from which on it
#: bears that of the others.
_FEW_FEATURES, _MANY_FEATURES = 16, 32
#: Data for each feature from which on features bear less, and from which on they bear none and
#: the layers behind bear less.
_SOME_DATA, _MANY_DATA = 200, 400
#: Number of numbers to learn that the noise is meant for, and how far it goes from there.
_NUM_NUMBERS, _LEAST, _MOST = 1000, 0.5, 1.75


def share_of_features(num_features: int) -> float:
    """Noise on features, in units of that of hidden units, by how many a layer reads.

    Args:
        num_features: Their number.

    Returns:
        The share, between 0 and 1.
    """
    return _ramp(_FEW_FEATURES, num_features, _MANY_FEATURES)


def data_shares(density: float) -> tuple[float, float]:
    """What many data leave of the noise.

    Args:
        density: Number of training data for each feature.

    Returns:
        The shares of the noise on features and of that of hidden units, between 0 and 1.
    """
    return 1 - _ramp(_SOME_DATA, density, _MANY_DATA), min(1.0, _MANY_DATA / density)


def share_of_numbers(num_numbers: float) -> float:
    """Relative noise, in units of what is meant for a thousand numbers, by how many there are.

    Args:
        num_numbers: Number of the targets' numbers in all training data.

    Returns:
        The share, between a half and one and three quarters.
    """
    return min(_MOST, max(_LEAST, math.sqrt(_NUM_NUMBERS / num_numbers)))


def noise_on_features(
    net: RandomModule, noise: Multiplicative
) -> dict[str, Multiplicative | None]:
    """The noise of linear layers that read few features, None for none.

    Args:
        net: The random network.
        noise: The noise of hidden units.

    Returns:
        The noise by site.
    """
    shares = {name: share_of_features(num) for name, num in _features(net).items()}
    return {
        net.site_name(name): replace(noise, std=noise.std * share) if share else None
        for name, share in shares.items()
        if share < 1
    }


@torch.no_grad()
def settle_noise(
    guide: AutoMuPNormal | AutoMuPMixture,
    model: SupervisedModel,
    num_data: int,
    first: FirstBatch,
) -> None:
    """Sets a guide's relative noise by the number of data: of labels where they come in tables.

    Args:
        guide: The guide, whose noise is held where it starts.
        model: The model.
        num_data: Number of training data.
        first: Data that show how many rows of features a datum has; where there are none, one.
    """
    net = model.net
    if not is_of_labels(model.likelihood):
        share = share_of_numbers(num_data * _numbers_of_datum(first))
        _set_shares(guide, model, dict.fromkeys(net.stochastic, share))
        return
    features = _features(net)
    if not features or not is_of_tables(net.network):
        return
    num_rows = _rows_for_labels(model, list(features), first)
    # Several layers may read the same features or others: by the former there is less noise.
    on_features, on_all = data_shares(num_data * num_rows / max(features.values()))
    shares = dict.fromkeys(net.stochastic, on_all) | dict.fromkeys(features, on_features)
    _set_shares(guide, model, shares)


def _set_shares(
    guide: AutoMuPNormal | AutoMuPMixture, model: SupervisedModel, shares: Mapping[str, float]
) -> None:
    """Sets relative noise to shares of what it is by the covariance, by parameter."""
    by_site = {model.net.site_name(name): share for name, share in shares.items()}
    for component in guide.components:
        for layer in component.layers:
            if not isinstance(layer.covariance, Multiplicative):
                continue
            for site in layer.sites:
                component.factor(site.name).fill_(layer.covariance.std * by_site[site.name])


def _numbers_of_datum(first: FirstBatch) -> float:
    """How many numbers a datum has to be learned, 1 where there are no data to look at."""
    target = first.target()
    return 1.0 if target is None else target.numel() / len(target)


def _rows_for_labels(model: SupervisedModel, names: list[str], first: FirstBatch) -> float:
    """How many rows of a table a datum is: with a label for each its rows, with one a part."""
    net = model.net
    readers = {owner_of(net.network, name)[0] for name in names}
    last = {owner_of(net.network, n)[0] for n, role in net.roles.items() if role.role == "output"}
    if not all(map(first.rows.get, readers | last)):
        return 1.0
    # A label sees as many rows of features as there are for each row of the last layer.
    num_labels = max(first.rows[layer] for layer in last)
    return num_labels**2 / max(first.rows[layer] for layer in readers)


def _features(net: RandomModule) -> dict[str, int]:
    """Numbers of features that layers with noise on them read, by parameter."""
    roles = {name: net.roles[name] for name in net.stochastic}
    names = {name for name, role in roles.items() if role.role == "input"}
    # Where one layer alone has noise, without it nothing would be random.
    if not names and len(roles) > 1 and is_of_tables(net.network):
        names = {name for name in [_first_behind_frozen(net)] if name in roles}
    return {name: roles[name].fans.fan_in for name in names}


def _first_behind_frozen(net: RandomModule) -> str | None:
    """The first weight that learns, where those in front do not: what they make are its features.

    Args:
        net: The random network.

    Returns:
        Its name, None if the layer that reads the data learns.
    """
    learns = [
        (name, parameter.requires_grad or name in net.stochastic)
        for name, parameter in net.network.named_parameters()
        if net.roles[name].role in ("input", "hidden", "output")
    ]
    first = next((i for i, (_, does) in enumerate(learns) if does), 0)
    return learns[first][0] if first else None


def _ramp(start: float, value: float, end: float) -> float:
    """0 up to the start, 1 from the end on, a straight line between them."""
    return min(1.0, max(0.0, (value - start) / (end - start)))
