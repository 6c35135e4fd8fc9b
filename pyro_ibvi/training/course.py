"""The course of a training: how far it has come, and the checkpoints that it leaves on its way."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pyro.infer import SVI

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.files import checked_path
from pyro_ibvi._util.random_state import find_generators, get_random_state, set_random_state
from pyro_ibvi.training.checkpoints import load_checkpoint, save_checkpoint
from pyro_ibvi.training.history import History


class Course:
    """How far a training has come, kept in a file if there is a path.

    Where the batches of an epoch are shuffled, their order is drawn when the epoch begins. A
    checkpoint in the middle of an epoch therefore holds two random states, that of the epoch's
    start, with which the order is found again, and that of the moment.

    Args:
        svi: The training.
        history: Its history.
        path: File of the checkpoint, or None.
        num_steps_between: Number of steps from one checkpoint to the next within an epoch; None
            for epochs alone.
        loaders: Data loaders by name.

    Attributes:
        num_steps: Number of steps of the epoch that is under way.
        is_stopped: Whether a callback ended the training.

    Raises:
        ValueError: If a loader can be iterated once only, which rules out checkpoints, or there
            is a number of steps and no file.
    """

    def __init__(
        self,
        svi: SVI,
        history: History,
        path: str | os.PathLike[str] | None,
        num_steps_between: int | None,
        loaders: Mapping[str, Any],
    ) -> None:
        self.svi = svi
        self.history = history
        self.path = None if path is None else checked_path(path)
        self.num_steps = 0
        self.is_stopped = False
        self._total = 0.0
        self._start: dict[str, Any] = {}
        self._num_steps_between = num_steps_between
        self._generators = find_generators(loaders)
        if num_steps_between is not None:
            check_positive_int("checkpoint_steps", num_steps_between)
            if self.path is None:
                raise ValueError(
                    f"checkpoint_steps={num_steps_between} needs a file to write to: pass "
                    f'checkpoint="run.pt" too.'
                )
        once = [name for name, loader in loaders.items() if isinstance(loader, Iterator)]
        if self.path is not None and once:
            raise ValueError(
                f"{once[0]} is an iterator, which cannot be begun anew after a restart: training "
                f"with a checkpoint needs a DataLoader or a list of batches."
            )

    @property
    def is_begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.path is not None and self.path.exists()

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """Goes on from the checkpoint.

        Args:
            *args: Arguments of a step.
            **kwargs: Keyword arguments of a step.

        Raises:
            ValueError: If the checkpoint is not of such a training.
        """
        assert self.path is not None
        saved = load_checkpoint(self.path, self.svi, *args, **kwargs).get("course")
        if saved is None:
            raise ValueError(
                f"{self.path} was not written by fit: restore it with load_checkpoint, and go on "
                f"with another file."
            )
        if set(saved["generators"]) != set(self._generators):
            raise ValueError(
                f"{self.path} holds the states of the generators {sorted(saved['generators'])}, "
                f"but the loaders have {sorted(self._generators)}: use the loaders of the "
                f"training that was interrupted."
            )
        self.history.train_loss[:] = saved["train_loss"]
        self.history.valid_loss[:] = saved["valid_loss"]
        self.num_steps, self._total = saved["num_steps"], saved["total"]
        self.is_stopped, self._start = saved["is_stopped"], saved["start"]
        self._set_generators(saved["generators"])

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of an epoch but for those that were trained before the checkpoint.

        Args:
            loader: The data loader.

        Yields:
            The batches.

        Raises:
            ValueError: If the loader has fewer batches than that.
        """
        if self.path is None:
            yield from loader
            return
        now = self._random_state()
        if self.num_steps == 0:
            self._start = now
        else:
            self._set_random_state(self._start)
        iterator = iter(loader)
        for done in range(self.num_steps):
            if next(iterator, self) is self:
                raise ValueError(
                    f"{self.path} was written after step {self.num_steps} of an epoch, but the "
                    f"loader has {done} batches: use that of the training that was interrupted."
                )
        if self.num_steps:
            self._set_random_state(now)
        yield from iterator

    def add_step(self, loss: float) -> None:
        """Counts a step.

        Args:
            loss: Its loss.
        """
        self._total += loss
        self.num_steps += 1
        if self._num_steps_between and self.num_steps % self._num_steps_between == 0:
            self.save()

    def end_epoch(self) -> float:
        """Begins to count anew.

        Returns:
            The mean loss of the epoch's steps.
        """
        mean = self._total / self.num_steps
        self.num_steps, self._total = 0, 0.0
        return mean

    def save(self, *, is_stopped: bool = False) -> None:
        """Writes a checkpoint, if there is a path.

        Args:
            is_stopped: Whether the training ends here.
        """
        if self.path is None:
            return
        course = {
            "train_loss": self.history.train_loss,
            "valid_loss": self.history.valid_loss,
            "num_steps": self.num_steps,
            "total": self._total,
            "is_stopped": is_stopped,
            "start": self._start,
            "generators": self._random_state()["generators"],
        }
        save_checkpoint(self.path, self.svi, course=course)

    def _random_state(self) -> dict[str, Any]:
        generators = {name: g.get_state() for name, g in self._generators.items()}
        return {"global": get_random_state(), "generators": generators}

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        set_random_state(state["global"])
        self._set_generators(state["generators"])

    def _set_generators(self, states: Mapping[str, Any]) -> None:
        for name, generator in self._generators.items():
            generator.set_state(states[name])
