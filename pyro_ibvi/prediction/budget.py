"""How a prediction is cut so that it stays within a memory budget."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pyro_ibvi._util.checks import is_whole
from pyro_ibvi.models.random_module import RandomModule
from pyro_ibvi.prediction.chunking import draws_to_make, output_sizes, shares_layers
from pyro_ibvi.prediction.moments import MAX_NUMBERS

#: What a budget is given as.
Memory = int | str

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

#: Tensors of a layer's output's size that live at once: input, output, and one in between twice.
_NUM_ALIVE = 4
#: Tensors of the outputs' size that are alive while moments are taken.
_NUM_OF_MOMENTS = 3
#: Rows that are worth running at once; fewer draws run together rather than fewer rows.
_MIN_ROWS = 32
#: Draws that are worth running at once where they share no layers.
_NUM_TOGETHER = 16


def read_memory(value: Memory) -> int:
    """A number of bytes.

    Args:
        value: Bytes, or a text such as ``"2 GB"`` or ``"512 MiB"``.

    Returns:
        The bytes.

    Raises:
        ValueError: If it is no positive amount.

    Example:
        >>> read_memory("1.5 GB"), read_memory("1 KiB"), read_memory(2000)
        (1500000000, 1024, 2000)
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", value, re.IGNORECASE)
        if match is not None and float(match[1]) > 0:
            return int(float(match[1]) * _UNITS[match[2].upper()])
    elif is_whole(value) and value > 0:
        return value
    raise ValueError(
        f"max_memory must be a number of bytes or a text such as '2 GB' or '512 MiB', got "
        f"{value!r}."
    )


@dataclass(frozen=True)
class Need:
    """Bytes that a prediction needs.

    Attributes:
        weights: For the random weights of one draw, and as many for running them.
        shared: For what all draws share of one datum, while it runs.
        own: For what differs between draws, of one datum and draw.
        output: For the network's output for one datum and draw.
    """

    weights: int
    shared: int
    own: int
    output: int

    @classmethod
    def of(cls, net: RandomModule, one_row: Any) -> Need:
        """What a network needs, found by running it on one datum.

        Args:
            net: The network.
            one_row: Its positional and keyword arguments for one datum.

        Returns:
            The need. Where the network refuses a single datum, that of its weights alone.
        """
        weights = [net.network.get_parameter(name) for name in net.stochastic]
        size = weights[0].element_size()
        in_front, own = output_sizes(net, one_row)
        return cls(
            weights=2 * size * sum(weight.numel() for weight in weights),
            shared=_NUM_ALIVE * size * max([*in_front, *own], default=0),
            own=_NUM_ALIVE * size * max(own, default=0),
            output=size * (own[-1] if own else 0),
        )

    def kept(self, num_samples: int, num_rows: int) -> int:
        """Bytes of a whole prediction: outputs, a few moments of each datum, taking these."""
        outputs = num_samples * num_rows * self.output
        taking = _NUM_OF_MOMENTS * min(outputs, 4 * MAX_NUMBERS)
        return outputs + 8 * num_rows * self.output + taking

    def cut(self, budget: int, num_samples: int, num_rows: int, num_made: int) -> tuple[int, int]:
        """How many draws and rows to run at once.

        Args:
            budget: Bytes for this.
            num_samples: Number of draws.
            num_rows: Number of rows.
            num_made: Number of draws of which the weights are there.

        Returns:
            The number of draws, and that of rows.

        Raises:
            ValueError: If not even one of each fits.
        """
        left = budget - num_made * self.weights
        draws, least = num_samples, min(num_rows, _MIN_ROWS)
        while draws > 1 and least * (self.shared + draws * self.own) > left:
            draws = (draws + 1) // 2
        rows = left // max(1, self.shared + draws * self.own)
        if rows < 1:
            need = num_made * self.weights + self.shared + self.own
            raise ValueError(
                f"The budget leaves {shown(max(0, budget))} for running the network, which takes "
                f"about {shown(need)} for one datum and draw: raise max_memory."
            )
        return draws, min(rows, num_rows)


def shown(num_bytes: int) -> str:
    """Bytes as a person reads them.

    Args:
        num_bytes: The number.

    Returns:
        The text.

    Example:
        >>> shown(1_500_000_000), shown(20_000)
        ('1.5 GB', '0.02 MB')
    """
    big = num_bytes >= 10**9
    return f"{num_bytes / 10**9:.3g} GB" if big else f"{num_bytes / 10**6:.2g} MB"


def cut_to_budget(
    net: RandomModule, one_row: Any, max_memory: Memory, num_samples: int, num_rows: int
) -> tuple[int, int, int]:
    """Draws to make, and draws and rows to run at once, to stay within a budget.

    Args:
        net: The network.
        one_row: Its arguments for one datum.
        max_memory: The budget, for all that a prediction allocates.
        num_samples: Number of draws.
        num_rows: Number of rows.

    Returns:
        The number of draws to make, of draws to run, and of rows.

    Raises:
        ValueError: If the prediction itself is larger than the budget, or nothing fits.
    """
    budget, need = read_memory(max_memory), Need.of(net, one_row)
    kept = need.kept(num_samples, num_rows)
    if kept > budget:
        fitting = max(1, budget // (2 * need.kept(num_samples, 1)))
        raise ValueError(
            f"The outputs of {num_samples} draws for {num_rows} data take {shown(kept)}, more "
            f"than max_memory={max_memory!r}: go through the data in parts that are thrown away, "
            f"for part, _ in predict_batches(model, guide, x, num_samples={num_samples}, "
            f"batch_size={fitting}, max_memory={max_memory!r}), or take fewer draws. For scores, "
            f"evaluate keeps no outputs."
        )
    most = max(1, 3 * (budget - kept) // 4 // max(1, need.weights))
    num_made = min(num_samples, draws_to_make(net), most)
    together = num_samples if shares_layers(net) else min(num_samples, _NUM_TOGETHER)
    return num_made, *need.cut(budget - kept, together, num_rows, num_made)
