r"""Posteriors of any Pyro model and guide in ArviZ.

:func:`to_arviz` returns what the installed ArviZ works with: an ``InferenceData`` for ArviZ 0.x,
an xarray ``DataTree`` for 1.x. Both hold the same groups, built once as xarray data sets::

    posterior, posterior_predictive, predictions, log_likelihood, sample_stats,
    prior, prior_predictive, observed_data, constant_data, predictions_constant_data

An array of a draw has exactly the shape that its site has in Pyro, behind the sample dimensions
``(chain=1, draw)``. ArviZ and xarray are imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int, shown
from pyro_ibvi._util.files import whole_file
from pyro_ibvi.arviz.draws import Sampler
from pyro_ibvi.arviz.files import append_netcdf, append_zarr
from pyro_ibvi.arviz.groups import choose_groups
from pyro_ibvi.arviz.inputs import Inputs
from pyro_ibvi.arviz.labels import Labels, index_values
from pyro_ibvi.arviz.plan import Export, Options
from pyro_ibvi.arviz.structure import attributes, backend, datasets, wrap

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


Callables = Callable[..., Any]


@named_arguments()
def to_arviz(
    model: Callables,
    guide: Callables,
    *args: Any,
    num_samples: int = 1000,
    var_names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    coords: Mapping[str, Any] | None = None,
    predictions: Any = None,
    predictions_coords: Mapping[str, Any] | None = None,
    constant_data: Mapping[str, Any] | None = None,
    loss_history: Any = None,
    objective: Any = None,
    dtype: DTypeLike | None = None,
    max_bytes: int = 4 * 2**30,
    seed: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Draws from a guide and its model, and returns the draws as ArviZ's data structure.

    The model and the guide are called as ``model(*args, **model_kwargs)``, targets included, in
    ``eval`` mode and without gradients; modes and BatchNorm statistics are as before afterwards.
    Sites that are observed in this call are the data: they fill ``observed_data``,
    ``log_likelihood`` (in nats per observation, without the scale of plates and
    ``poutine.scale``; NaN where masked) and, drawn again given each posterior draw,
    ``posterior_predictive``. A model called without its targets has them in
    ``posterior_predictive`` alone.

    Discrete sites that are marked for enumeration in the model and missing from the guide are
    drawn from their exact conditional distribution (:func:`pyro.infer.infer_discrete`). In the
    log-likelihood and in ``log_p`` their states are summed out, those of labels that a guide
    enumerates as well; observations that share such a state are one datum, with their joint
    density (variable ``joint``). Attributes of each log-likelihood say what it is given:
    ``conditioned_on``, ``summed_out``, and ``seen_the_datum`` for the sites whose draws belong to
    the very data, so that no criticism may take it for a density of unseen data.

    What Pyro's reparametrizers compute from other sites belongs to the posterior, and so does what
    the guide computes by ``pyro.deterministic``. Arguments that go into the observed values, and
    into no distribution of them, are targets and no constant data.

    Args:
        model: Any Pyro model.
        guide: Its trained guide: an autoguide, ours or a function.
        *args: Positional arguments of both.
        num_samples: Number of posterior draws, and of prior draws.
        var_names: Latent and deterministic sites to keep, by name or shell pattern
            (``"net.0.*"``); names that start with ``~`` are left out. By default all but the
            weights of networks, which are exported only when named.
        groups: Groups to make, by default all; ``["~prior"]`` leaves one out. Where a
            reparametrizer keeps the prior as a density, there are no draws of it, and the
            attribute ``prior_omitted`` says so.
        dims: Dimension names by site, for all its dimensions or for those that no plate names;
            ``None`` in a list keeps the automatic name, ``<site>_dim_<k>``.
        coords: Labels by dimension: sequences, arrays or pandas indices. A subsampled plate
            takes the labels of its full size too.
        predictions: Arguments of the model for new inputs: a tuple (positional), a mapping
            (keywords) or one tensor. Latent sites whose shape is the same there keep their
            posterior draws, unless the guide computes them from the data; others are drawn from
            the model (and named in the attribute ``drawn_from_model``).
        predictions_coords: Labels of the dimensions of the new data.
        constant_data: Arrays by name. By default the model's tensor arguments that are no
            targets, by their names in its signature.
        loss_history: Losses of the training, step by step, several such sequences by name, or
            the result of :func:`pyro_ibvi.fit`; kept in ``sample_stats``.
        objective: The objective that trained the guide (an instance or a text), for the
            attributes.
        dtype: Floating-point type to store draws in, for example ``"float32"``; the
            log-likelihood has at least that. By default the model's.
        max_bytes: Largest export in bytes.
        seed: Makes the draws reproducible and leaves the global generators as they were. With
            ``None`` the posterior consumes the global generator as a loop over
            ``poutine.trace(guide).get_trace(*args)`` does.
        model_kwargs: Keyword arguments of the model and the guide.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (1.x) with arrays of shape
        ``(1, num_samples, *shape)``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the export is larger than ``max_bytes``, a name matches nothing, names or
            labels do not fit, data do not fit their distribution or have one without ``sample``,
            a group that is named would be empty, or sites change between draws.
        ImportError: If ArviZ is not installed.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_ibvi.arviz import to_arviz
        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> x = torch.linspace(-1, 1, 5)
        >>> data = to_arviz(model, AutoNormal(model), x, 2 * x, num_samples=10, seed=0)
        >>> data["log_likelihood"]["y"].dims
        ('chain', 'draw', 'data')
        >>> data["posterior"]["slope"].shape
        (1, 10)
    """
    backend()  # fail before the work, not after it
    inputs = Inputs(args, model_kwargs or {})
    export = _plan(
        Sampler(model, guide, inputs, seed),
        var_names=var_names,
        groups=groups,
        dims=dims,
        coords=coords,
        predictions=predictions,
        predictions_coords=predictions_coords,
        constant_data=constant_data,
        loss_history=loss_history,
        dtype=dtype,
    )
    check_positive_int("num_samples", num_samples)
    _check_size(export, num_samples, max_bytes)
    attrs = attributes(model, guide, objective) | export.notes
    ((_, arrays),) = export.chunks(num_samples, num_samples)
    return wrap(datasets(export, arrays, attrs, range(num_samples)), attrs)


@named_arguments(passed_to=to_arviz)
def write_arviz(
    path: str | Path,
    model: Callables,
    guide: Callables,
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    **options: Any,
) -> Path:
    """Draws from a guide and writes the draws to a file as they are made.

    The file equals that of ``to_arviz(...).to_netcdf(path)`` with the same arguments, but never
    is more than one chunk of draws in memory: the way out for posteriors that do not fit.

    Args:
        path: File to write: ``.nc`` (netCDF; needs h5netcdf) or ``.zarr`` (needs zarr 3). Open
            it with ``arviz.from_netcdf`` or, on ArviZ 1.x, ``arviz.from_zarr`` (elsewhere
            ``xarray.open_datatree``).
        model: As in :func:`to_arviz`.
        guide: As in :func:`to_arviz`.
        *args: As in :func:`to_arviz`.
        num_samples: Number of draws.
        chunk_size: Draws in memory at a time; by default as many as take 256 MiB.
        **options: Further keyword arguments of :func:`to_arviz`; ``max_bytes`` is the limit of
            one chunk.

    Returns:
        The path.

    Raises:
        TypeError: If the path is none, or as :func:`to_arviz`.
        ValueError: If the suffix is unknown, or as :func:`to_arviz` does.
        FileExistsError: If the path exists.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(
            f"The path of the file comes first, write_arviz(path, model, guide, ...), got "
            f"{shown(path)}."
        )
    path = Path(path)
    if path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"Cannot tell the format of {str(path)!r}: end the path in .nc or .zarr.")
    if path.exists():
        raise FileExistsError(f"{str(path)!r} exists: remove it or choose another path.")
    check_positive_int("num_samples", num_samples)
    inputs = Inputs(args, options.pop("model_kwargs", None) or {})
    max_bytes = options.pop("max_bytes", 4 * 2**30)
    attrs = attributes(model, guide, options.pop("objective", None))
    sampler = Sampler(model, guide, inputs, options.pop("seed", None))
    export = _plan(sampler, **options)
    attrs |= export.notes
    if chunk_size is None:
        per_draw = sum(export.nbytes(2).values()) - sum(export.nbytes(1).values())
        chunk_size = max(1, 256 * 2**20 // max(per_draw, 1))
    chunk_size = min(chunk_size, num_samples)
    _check_size(export, chunk_size, max_bytes)
    append = append_netcdf if path.suffix == ".nc" else append_zarr
    with whole_file(path) as partial_path:
        for start, arrays in export.chunks(num_samples, chunk_size):
            stop = min(start + chunk_size, num_samples)
            drawn = datasets(export, arrays, attrs, range(start, stop))
            append(partial_path, drawn, attrs, start)
        if path.suffix == ".zarr":
            import_module("zarr").consolidate_metadata(str(partial_path))
    return path


def _plan(
    sampler: Sampler,
    *,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    coords: Mapping[str, Any] | None = None,
    groups: Sequence[str] | None = None,
    dtype: DTypeLike | None = None,
    predictions: Any = None,
    predictions_coords: Mapping[str, Any] | None = None,
    **options: Any,
) -> Export:
    if dtype is not None and np.dtype(dtype).kind != "f":
        raise ValueError(f"dtype must be a floating-point type such as 'float32', got {dtype!r}.")
    wanted = Options(
        groups=choose_groups(groups),
        named=frozenset([groups] if isinstance(groups, str) else groups or ()),
        labels=Labels(dims or {}, _index(coords)),
        dtype=None if dtype is None else np.dtype(dtype),
        predictions=None if predictions is None else Inputs.of(predictions),
        predictions_coords=_index(predictions_coords),
        **options,
    )
    return Export(sampler, wanted)


def _index(coords: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    return {dim: index_values(dim, values) for dim, values in (coords or {}).items()}


def _check_size(export: Export, num_samples: int, max_bytes: int) -> None:
    sizes = export.nbytes(num_samples)
    total = sum(sizes.values())
    if total > max_bytes:
        largest = sorted(sizes, key=lambda n: -sizes[n])[:3]
        listed = ", ".join(f"{n} ({sizes[n]} bytes)" for n in largest)
        raise ValueError(
            f"{num_samples} draws need {total} bytes, more than max_bytes={max_bytes}; the "
            f"largest are {listed}. Take fewer draws (num_samples=), leave variables out "
            f"(var_names=, groups=), store them in a smaller dtype=, write them to a file in "
            f"chunks (write_arviz), or raise max_bytes=."
        )
