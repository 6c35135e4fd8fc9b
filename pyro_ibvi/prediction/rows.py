"""Inputs of a prediction: what are the data in them, and how they are cut into batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.inputs import first_tensor, rows_of
from pyro_ibvi._util.precision import are_close
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.models.data_checks import check_finite
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.prediction.chunking import Sizes, draws_to_run, output_sizes, rows_to_run


class Rows:
    """Inputs, whose first dimension is the batch unless they run as a whole.

    Args:
        model: The model.
        x: Inputs on its device.

    Raises:
        DataError: If there are none, some are not finite, or they lack the batch.
    """

    def __init__(self, model: SupervisedModel, x: Any) -> None:
        self.model, self.x = model, x
        first = first_tensor(x)
        self.num_rows = 1 if first is None else len(first)
        if self.num_rows == 0:
            raise DataError(
                "There is nothing to predict: the inputs have a first dimension of size 0."
            )
        check_finite("input", x)
        model.check_has_batch(x)
        self._is_checked = False

    def batches(self, batch_size: int | None) -> Iterator[Any]:
        """Some rows after the other.

        Args:
            batch_size: Number of rows at once, None for all of them.

        Yields:
            The inputs of each batch; what has no row for each datum goes to all.
        """
        if batch_size is None or batch_size >= self.num_rows:
            yield self.x
            return
        for start, stop in itertools.pairwise(_bounds(self.num_rows, batch_size)):
            yield self._cut(slice(start, stop))

    def draws_to_run(self, batch_size: int | None) -> int:
        """Number of draws to run at once.

        Args:
            batch_size: Number of rows that run at once.

        Returns:
            The number.
        """
        num_rows = min(self.num_rows, batch_size or self.num_rows)
        return draws_to_run(self.model.net, self._sizes, num_rows)

    def rows_to_run(self) -> int | None:
        """Number of rows to run at once where nobody says, None for all of them.

        Returns:
            The number, so that layers' outputs do not fill memory; None where rows cannot be cut.
        """
        batch_size = rows_to_run(self._sizes)
        if batch_size >= self.num_rows:
            return None
        net = self.model.net
        try:
            self._check_cut(
                {n: net.network.get_parameter(n)[None] for n in net.stochastic}, batch_size
            )
        except DataError:  # nodes, say, which see one another
            return None
        self._is_checked = True
        return batch_size

    @cached_property
    def _sizes(self) -> Sizes:
        return output_sizes(self.model.net, self.one_row())

    def one_row(self) -> Any:
        """The network's positional and keyword arguments for one datum."""
        row = self._cut(slice(0, 1))
        self.model.settle(row)
        return self.model.arguments_of(row)

    def run(self, values: Mapping[str, Tensor], x: Any, batch_size: int | None) -> Tensor:
        """Runs the network on a batch.

        Args:
            values: Draws of the weights.
            x: The batch.
            batch_size: Number of rows that run at once.

        Returns:
            The outputs, draws in front.

        Raises:
            DataError: If the rows that were cut are not those of the output.
        """
        if batch_size is not None and batch_size < self.num_rows and not self._is_checked:
            self._check_cut(values, batch_size)
            self._is_checked = True
        return self.model.run(values, x)

    def _check_cut(self, values: Mapping[str, Tensor], batch_size: int) -> None:
        """Two sizes, of which the output must have both: one may agree by chance."""
        names = self.model.net.stochastic
        one = {**values, **{name: values[name][:1] for name in names}}
        sizes = {batch_size, max(1, batch_size // 2), batch_size + 1} & set(range(self.num_rows))
        failures: list[Exception] = []
        outputs: list[Tensor] = []

        def run(size: int, seed: int) -> Tensor:
            with own_random_numbers(seed):
                return self.model.run(one, self._cut(slice(0, size)))[0]

        for size in sorted(sizes):
            try:
                outputs.append(run(size, 0))
                made = f"made {len(outputs[-1])} outputs"
            except (DataError, TypeError):
                return  # not the cut, but the data: the run itself says so
            except Exception as error:
                failures.append(error)  # networks may refuse a number of rows
                made = f"failed ({next(iter(str(error).splitlines()), '')})"
                if len(failures) < len(sizes):
                    continue
            if made != f"made {size} outputs":
                raise DataError(
                    f"batch_size={batch_size} cuts the inputs at their first dimension, of size "
                    f"{self.num_rows}, but of {size} of its rows the network {made}: the data are "
                    f"not there. Leave batch_size out, or pass a loader of batches."
                )
        if len(outputs) > 1 and not _are_same_rows(*outputs[:2], again=run(len(outputs[0]), 1)):
            raise DataError(
                f"batch_size={batch_size} cuts the inputs at their first dimension, of size "
                f"{self.num_rows}, and the network's outputs for the same rows are others where "
                f"there are more of them: an input that is for all data has as many rows by "
                f"chance, or the data see one another. Leave batch_size out, or pass a loader of "
                f"batches."
            )

    def _cut(self, rows: slice) -> Any:
        return rows_of(self.x, rows, self.num_rows)


def _are_same_rows(few: Tensor, many: Tensor, *, again: Tensor) -> bool:
    """Whether rows have the same outputs beside others, unless these are drawn at each run."""
    same = many[: len(few)]
    if same.shape != few.shape:
        return False
    return not torch.equal(few, again) or are_close(few, same, many)


def _bounds(num_rows: int, batch_size: int) -> list[int]:
    """Where batches begin and end, none of them of one row where that can be had."""
    # A squeeze() in a network takes the batch dimension of one row for one to leave out.
    bounds = [*range(0, num_rows, batch_size), num_rows]
    if batch_size > 2 and num_rows - bounds[-2] == 1:
        bounds[-2] -= 1
    return bounds
