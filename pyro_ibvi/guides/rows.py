"""What of a batch reaches a guide: the rows of plates that the model takes, and its masks.

A guide opens the plates of its local latents before the model does, and the model then takes the
guide's rows. Where it is the caller who chooses them, ``pyro.plate(..., subsample=rows)``, where
a batch is smaller than the first one, or where a mask hides elements of a latent, the guide has
to know: it runs the model up to there and looks.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pyro_ibvi._util.buffers import buffers_kept
from pyro_ibvi._util.checks import are_indices
from pyro_ibvi._util.handlers import from_inside
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.guides.sites import Site

#: The plate over time of Pyro's `ForecastingModel`.
_STEPS = "time"


@dataclass
class Batch:
    """What a guide knows of the batch at hand.

    Attributes:
        plates: The open plates by name.
        order: Rows of plates that hold all their elements, in another order or several times:
            Pyro selects rows of parameters only where there are fewer.
        masks: Masks of sites, by name.
    """

    plates: dict[str, Any]
    order: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Any] = field(default_factory=dict)

    def rows_of(self, value: Tensor, site: Site) -> Tensor:
        """The rows of a parameter that Pyro has not selected by itself.

        Args:
            value: The parameter's value inside of the site's plates.
            site: The site.

        Returns:
            The value for the rows of this batch.
        """
        for frame in site.frames:
            if frame.name in self.order:
                rows = self.order[frame.name].to(value.device)
                value = value.index_select(frame.dim - site.event_dim, rows)
        return value


class Plates:
    """The plates of a guide's sites, opened for each batch as the model opens them.

    Args:
        sites: The guide's sites.
        init_loc_fn: Gives each site a value when the model is run.
    """

    def __init__(self, sites: Iterable[Site], init_loc_fn: Callable[..., Any]) -> None:
        self._sites = {site.name: site for site in sites if site.frames}
        self._frames = {f.name: f for site in self._sites.values() for f in site.frames}
        self._init_loc_fn = init_loc_fn
        self._fixed: tuple[list[Any], dict[str, tuple[int, int]]] | None = None

    def open(
        self,
        model: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        created: Mapping[str, Any],
    ) -> Batch:
        """Opens the plates for a batch.

        Args:
            model: The model, None if there is none to look at.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            created: Plates that the user has opened.

        Returns:
            What the guide needs to know; a plate that has another number of elements than the
            guide has parameters cannot be entered.
        """
        seen = self._look(model, args, kwargs, created)
        batch = Batch(dict(created), masks=seen.masks)
        for name, frame in sorted(self._frames.items()):
            if name in created:
                continue
            full_size = frame.full_size or frame.size
            size, num_rows = seen.sizes.get(name, (full_size, frame.size))
            rows = seen.rows.get(name)
            if size > full_size and name == _STEPS and _is_forecast(model, args, kwargs):
                size = num_rows = full_size  # the model draws those after them by itself
            # in either case what all data share can be drawn all the same
            if size != full_size:
                batch.plates[name] = _Closed(self._of_other_size(frame, full_size, size))
                continue
            if rows is not None and not are_indices(rows):
                batch.plates[name] = _Closed(self._of_no_indices(name, full_size, rows))
                continue
            how: dict[str, Any] = {"subsample_size": num_rows}
            if rows is not None:
                how = {"subsample": rows}
                if num_rows >= full_size:
                    batch.order[name] = rows
            batch.plates[name] = pyro.plate(name, full_size, dim=frame.dim, **how)
        return batch

    def check_rows(
        self,
        model: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        plates: Mapping[str, Any],
    ) -> Batch:
        """Checks that plates which somebody else has opened have the rows of the model.

        Args:
            model: The model, None if there is none to look at.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            plates: The plates.

        Returns:
            What the guide needs to know.

        Raises:
            ValueError: If the caller of the model chose other rows.
        """
        seen = self._look(model, args, kwargs, ())
        for name, rows in seen.rows.items():
            if not torch.equal(torch.as_tensor(plates[name]._indices).cpu(), rows.cpu()):
                raise ValueError(
                    f"The model takes the rows of the plate {name!r} from its caller, "
                    f"subsample={rows.tolist()[:4]}..., and the list of guides opens it with rows "
                    f"of its own: pass create_plates to AutoGuideList, a function of the model's "
                    f"arguments that returns pyro.plate({name!r}, size, subsample=rows)."
                )
        return Batch(dict(plates), masks=seen.masks)

    def _of_other_size(self, frame: Any, known: int, now: int) -> str:
        name = frame.name
        latents = self._latents_in(name)
        return (
            f"The plate {name!r} has {now} elements now and had {known} when the guide was "
            f"initialized, which has parameters for each element of {latents}. What belongs to "
            f"rows of a data set needs their number and place: write pyro.plate({name!r}, "
            f"num_data, subsample=rows) in the model, where rows are the batch's indices. New "
            f"rows have their latents from the prior: take guide.draw(num_samples) without "
            f"{latents} to Predictive(model, draws). Where the model's caller goes on from the "
            f"{known} by itself, let the guide draw these: "
            f"guide.create_plates = lambda *args: pyro.plate({name!r}, {known}, dim={frame.dim})."
        )

    def _of_no_indices(self, name: str, known: int, rows: Tensor) -> str:
        return (
            f"The plate {name!r} was given subsample= of shape {tuple(rows.shape)} and type "
            f"{rows.dtype}, which does not say what rows of the data set these are, and the guide "
            f"has parameters for each row of {self._latents_in(name)}. Write "
            f"pyro.plate({name!r}, {known}, subsample=rows), where rows are the batch's indices, "
            f"or a guide that computes the law of a row from its data."
        )

    def _latents_in(self, name: str) -> list[str]:
        return [s.name for s in self._sites.values() if name in {f.name for f in s.frames}]

    def _look(
        self,
        model: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        created: Iterable[str],
    ) -> _Look:
        """Runs the model until the plates are open and the sites are drawn.

        Where Pyro draws the rows and nothing is masked, batches of the same shapes are not looked
        at again.

        Returns:
            What there is to see, nothing without plates or a model.
        """
        if not self._frames or model is None:
            return _Look((), ())
        shapes = _shapes(args, kwargs)
        look = _Look(self._frames.keys() - set(created), self._sites)
        if shapes is not None and self._fixed is not None and self._fixed[0] == shapes:
            look.sizes = self._fixed[1]
            return look
        with (
            poutine.block(),
            own_random_numbers(),
            buffers_kept(model),
            torch.no_grad(),
            warnings.catch_warnings(),
            suppress(_Seen),
            InitMessenger(self._init_loc_fn),
        ):
            warnings.simplefilter("ignore")  # whatever there is to say is said by the step
            from_inside(look, model)(*args, **kwargs)  # a block may hide the plates
        self._fixed = None if look.rows or look.masks else (shapes, look.sizes)
        return look


def _shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Shapes of arrays of any library, and numbers and words themselves.

    Returns:
        What can be compared with the arguments of another call; None if there are others.
    """
    leaves, structure = tree_flatten((args, dict(kwargs)))
    known: list[Any] = [structure]
    for leaf in leaves:
        shape = getattr(leaf, "shape", None)
        if isinstance(leaf, np.generic):  # a number, though it has a shape
            known.append(leaf.item())
        elif isinstance(shape, tuple):
            known.append(tuple(shape))
        elif leaf is None or isinstance(leaf, int | float | str | torch.Size):
            known.append(leaf)
        else:  # an object that holds who knows what
            return None
    return known


def _is_forecast(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether Pyro's `Forecaster` asks of what comes after the data.

    It puts the guide's draws in front of those that the model makes for later steps.

    Returns:
        Whether the covariates go on after the data.
    """
    forecast = sys.modules.get("pyro.contrib.forecast")  # a model of it has imported it
    if forecast is None or not isinstance(poutine.unwrap(model), forecast.ForecastingModel):
        return False
    signature = inspect.signature(forecast.ForecastingModel.forward)
    _, data, covariates = signature.bind(model, *args, **kwargs).arguments.values()
    return bool(data.size(-2) < covariates.size(-2))


class _Closed:
    """A plate of which the guide cannot tell which parameters belong to the elements.

    Args:
        reason: What to say to whoever enters it.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __enter__(self) -> None:
        raise ValueError(self._reason)

    def __exit__(self, *error: Any) -> None:
        """Never entered, never left."""


class _Seen(Exception):  # noqa: N818  # no error
    """Everything has been seen that the model was run for."""


class _Look(Messenger):
    """Notes rows, sizes and masks, and ends the run once it has all.

    Args:
        plates: Names of the plates to look at.
        sites: Names of the sites to look at.
    """

    def __init__(self, plates: Iterable[str], sites: Iterable[str]) -> None:
        super().__init__()
        self._plates, self._sites = set(plates), set(sites)
        self.rows: dict[str, Tensor] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.masks: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if not site_is_subsample(msg) or name not in self._plates:
            return
        self._plates.discard(name)
        size = msg["fn"].size
        num_rows = msg["fn"].subsample_size or size
        if msg["value"] is not None:
            self.rows[name] = torch.as_tensor(msg["value"])
            num_rows = len(self.rows[name])
        self.sizes[name] = (size, num_rows)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self._sites:
            self._sites.discard(msg["name"])
            if isinstance(msg["mask"], Tensor):
                self.masks[msg["name"]] = msg["mask"]
        if not self._sites:  # nor plates, then, but those that a handler hides
            raise _Seen
