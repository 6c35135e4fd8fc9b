"""A progress bar that moves within an epoch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

from pyro_ibvi._util.inputs import num_batches
from pyro_ibvi.training.history import History


class Progress:
    """A bar over the steps of all epochs; there is none where output is no terminal.

    Args:
        loader: The training loader; a bar of one without a length learns it in its first epoch.
        num_epochs: Number of epochs, those before included.
        first: Number of epochs that were done before.
        accumulate: Number of batches in a step.
        hidden: Whether there is no bar.
        title: What stands before it.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        num_epochs: int,
        first: int,
        accumulate: int,
        *,
        hidden: bool,
        title: str = "fit",
    ) -> None:
        self._num_epochs = num_epochs
        self._title = title
        length = num_batches(loader)
        self._num_steps = None if length is None else -(-length // accumulate)
        total = None if self._num_steps is None else num_epochs * self._num_steps
        # A hidden bar of tqdm takes its lock, too, which forked processes share: whichever is
        # killed while it holds it stops all others.
        self._bar = None
        if not hidden:
            self._bar = tqdm(
                total=total,
                desc=self._describe(first),
                initial=first * (self._num_steps or 0),
                unit="step",
                disable=None,
            )

    def step(self) -> None:
        """Counts a step."""
        if self._bar is not None:
            self._bar.update()

    def end_epoch(self, history: History) -> None:
        """Shows what the epoch gave.

        Args:
            history: The history.
        """
        if self._bar is None or self._bar.disable:
            return
        if self._bar.total is None:
            self._bar.total = self._num_epochs * self._bar.n
        names = {"train_loss": "loss", "valid_loss": "valid"}
        shown = {names.get(n, n): f"{value:.4g}" for n, value in history.last().items()}
        self._bar.set_description(self._describe(history.num_epochs), refresh=False)
        self._bar.set_postfix(shown)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _describe(self, done: int) -> str:
        return f"{self._title}, epoch {min(done + 1, self._num_epochs)}/{self._num_epochs}"
