"""A file of finished runs, which knows what they were runs of."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from typing import Any

from pyro_ibvi._util.digest import digest
from pyro_ibvi._util.files import checked_path, whole_file
from pyro_ibvi._util.inputs import tensors_of
from pyro_ibvi._util.random_state import own_generators, own_random_numbers
from pyro_ibvi.objectives import ClosedFormHead, DivergencePenalty

Cell = tuple[int, float, int]


class Book:
    """Losses of finished runs by size, rate and seed, kept in a JSON file if there is a path.

    Args:
        path: The file, or None.
        settings: What the runs have in common, strings and numbers by name.
        networks: A digest of what is trained, by size.
        data: A digest of what it is trained on, by size, if that depends on it.
        axis: What the sizes are.

    Raises:
        FileNotFoundError: If the file's folder does not exist.
        ValueError: If the file is of other runs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: dict[str, Any],
        networks: dict[int, str],
        data: dict[int, str] | None = None,
        *,
        axis: str = "width",
    ) -> None:
        self.path = None if path is None else checked_path(path)
        self.axis = axis
        self.settings = {"axis": axis, **settings}
        self.networks = {str(size): text for size, text in networks.items()}
        self.data = {str(size): text for size, text in (data or {}).items()}
        self.runs: list[dict[str, Any]] = []
        if self.path is not None and self.path.exists():
            self._read(json.loads(self.path.read_text()))
        self.losses: dict[Cell, float] = {
            (run[axis], run["rate"], run["seed"]): math.inf if run["loss"] is None else run["loss"]
            for run in self.runs
        }

    def _read(self, content: dict[str, Any]) -> None:
        before = {"axis": "width", **content.get("settings", {})}
        then, data = content.get("networks", {}), content.get("data", {})
        changed = [
            f"{name} {before.get(name)!r} and now {value!r}"
            for name, value in self.settings.items()
            if before.get(name) != value
        ]
        at = self.axis.replace("_", " ")
        changed += [
            f"{what} at {at} {size}"
            for what, old, new in (
                ("another network, likelihood, prior or covariance", then, self.networks),
                ("other data", data, self.data),
            )
            for size, text in new.items()
            if old.get(size, text) != text
        ]
        if changed:
            raise ValueError(
                f"{self.path} holds runs with {'; '.join(changed)}: choose another file, or "
                f"delete that one."
            )
        self.runs, self.networks = content["runs"], {**then, **self.networks}
        self.data = {**data, **self.data}

    def add(self, cell: Cell, loss: float, seconds: float) -> None:
        """Notes a run, and writes the file so that a stop in between leaves it whole.

        Args:
            cell: Size, rate and seed.
            loss: The loss.
            seconds: How long it took.
        """
        size, rate, seed = cell
        self.losses[cell] = loss
        self.runs.append(
            {
                self.axis: size,
                "rate": rate,
                "seed": seed,
                "loss": json_number(loss),
                "seconds": round(seconds, 3),
            }
        )
        if self.path is not None:
            with whole_file(self.path) as part:
                content = {
                    "settings": self.settings,
                    "networks": self.networks,
                    **({"data": self.data} if self.data else {}),
                    "runs": self.runs,
                }
                part.write_text(json.dumps(content, indent=1))


def json_number(value: float) -> float | None:
    """A number for JSON, None if it is not finite."""
    return value if math.isfinite(value) else None


def digest_of_pair(model: Any, guide: Any) -> str:
    """A digest of a model and its guide at their start, structure and values.

    Args:
        model: The model.
        guide: The guide.

    Returns:
        A digest that changes with the network, the likelihood, the priors and the covariance.
    """
    states = [dict(module.state_dict()) for module in (model, guide)]
    layers = [str(layer.covariance) for layer in guide.layers]
    return digest([str(model), layers, states])[:16]


def digest_of_data(loaders: dict[str, Any]) -> str:
    """A digest of all batches of some loaders, which are left as they were.

    Args:
        loaders: The loaders, or None, by name.

    Returns:
        The digest; the order of the rows counts where it is not random.
    """
    with own_generators(loaders), own_random_numbers(0):
        parts = {name: _sums(loader) for name, loader in loaders.items() if loader is not None}
    return digest(parts)[:16]


def _sums(loader: Iterable[Any]) -> list[Any]:
    """What the rows come to, in whatever order they come."""
    shapes: list[Any] = []
    total, weighted = 0.0, 0.0
    for batch in loader:
        for tensor in tensors_of(batch):
            values = tensor.detach().double().cpu()
            shapes.append([str(tensor.dtype), list(tensor.shape)])
            total += float(values.sum())
            weighted += float(values.square().sum())
    return [sorted(shapes, key=str), f"{total:.9g}", f"{weighted:.9g}"]


def describe_loss(loss: Any) -> str:
    """An objective with the numbers and names that it was made with.

    Args:
        loss: Pyro's loss, or a part of one.

    Returns:
        The description.
    """
    plain, parts = (int, float, str, bool, type(None), tuple), (DivergencePenalty, ClosedFormHead)
    options = {n: repr(v) for n, v in vars(loss).items() if isinstance(v, plain)}
    options |= {n: describe_loss(v) for n, v in vars(loss).items() if isinstance(v, parts)}
    return f"{type(loss).__name__}({', '.join(f'{n}={options[n]}' for n in sorted(options))})"
