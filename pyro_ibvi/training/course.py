"""The course of a training: how far it has come, and the checkpoints that it leaves on its way."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import Subset, TensorDataset

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.digest import digest
from pyro_ibvi._util.files import checked_path
from pyro_ibvi._util.inputs import num_batches
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import find_generators, get_random_state, set_random_state
from pyro_ibvi.training.checkpoints import load_checkpoint, save_checkpoint
from pyro_ibvi.training.history import History
from pyro_ibvi.training.step import Measured, Stepper, check_observed
from pyro_ibvi.training.validation import Best

_EMPTY = (
    "The training loader is empty: it yielded no batch. If the data set is smaller than the batch "
    "size, drop drop_last=True; an iterator can be used for one epoch only."
)


class Course:
    """How far a training has come, kept in a file if there is a path.

    Where the batches of an epoch are shuffled, their order is drawn when the epoch begins. A
    checkpoint in the middle of an epoch therefore holds two random states, that of the epoch's
    start, with which the order is found again, and that of the moment.

    Args:
        stepper: Who takes the steps.
        history: The training's history.
        best: Its best state.
        path: File of the checkpoint, or None.
        num_steps_between: Number of steps from one checkpoint to the next within an epoch; None
            for epochs alone.
        loaders: Data loaders by name, ``"train_loader"`` among them.
        accumulate: Number of batches in a step.

    Attributes:
        num_steps: Number of steps of the epoch that is under way.
        is_stopped: Whether a callback ended the training, or patience did.

    Raises:
        ValueError: If a loader can be iterated once only, which rules out checkpoints, or there
            is a number of steps and no file.
    """

    def __init__(
        self,
        stepper: Stepper,
        history: History,
        best: Best,
        path: str | os.PathLike[str] | None,
        num_steps_between: int | None,
        loaders: Mapping[str, Any],
        accumulate: int,
    ) -> None:
        self.stepper = stepper
        self.history = history
        self.path = None if path is None else checked_path(path)
        self.num_steps = 0
        self.is_stopped = False
        self._best = best
        self._accumulate = accumulate
        self._loader = loaders["train_loader"]
        self._total, self._size = 0.0, 0.0
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

    def resume(self, num_epochs: int) -> int:
        """Goes on from the checkpoint, and says what is different now.

        Args:
            num_epochs: Number of epochs that are asked for.

        Returns:
            The number of epochs that are done.

        Raises:
            ValueError: If the checkpoint is not of such a training.
        """
        assert self.path is not None
        saved = self._load().get("course")
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
        self.history.replace(saved["history"])
        self._best.set_state(saved["best"])
        self.num_steps = saved["num_steps"]
        self._total, self._size = saved["total"], saved["size"]
        self.is_stopped, self._start = saved["is_stopped"], saved["start"]
        self._set_generators(saved["generators"])
        self._warn_of_changes(saved["settings"], num_epochs)
        return self.history.num_epochs

    def batches(self, loader: Iterable[Any]) -> Iterator[list[Any]]:
        """The batches of an epoch by step, but for those trained before the checkpoint.

        Args:
            loader: The data loader.

        Yields:
            The batches of a step.

        Raises:
            ValueError: If the loader has fewer batches than that.
        """
        if self.path is None:
            yield from self._by_step(iter(loader))
            return
        now = self._random_state()
        if self.num_steps == 0:
            self._start = now
        else:
            self._set_random_state(self._start)
        iterator = self._by_step(iter(loader))
        for done in range(self.num_steps):
            if next(iterator, None) is None:
                raise ValueError(
                    f"{self.path} was written after step {self.num_steps} of an epoch, but the "
                    f"loader has {done} batches: use that of the training that was interrupted."
                )
        if self.num_steps:
            self._set_random_state(now)
        yield from iterator

    def add_step(self, measured: Measured) -> None:
        """Counts a step.

        Args:
            measured: Its loss, and by how much it counts.
        """
        self._total += measured.size * measured.loss
        self._size += measured.size
        self.num_steps += 1
        if self._num_steps_between and self.num_steps % self._num_steps_between == 0:
            self.save()

    def end_epoch(self) -> None:
        """Adds the epoch's mean loss to the history, and begins to count anew.

        Raises:
            ValueError: If there was no step, or none that observed anything.
        """
        if self.num_steps == 0:
            raise ValueError(_EMPTY)
        check_observed("training", self._size)
        self.history.add_epoch(self._total / self._size)
        self.num_steps, self._total, self._size = 0, 0.0, 0.0

    def save(self, *, is_stopped: bool = False) -> None:
        """Writes a checkpoint, if there is a path.

        Args:
            is_stopped: Whether the training ends here.
        """
        if self.path is None:
            return
        course = {
            "history": self.history.to_dict(),
            "best": self._best.state(),
            "num_steps": self.num_steps,
            "total": self._total,
            "size": self._size,
            "is_stopped": is_stopped,
            "start": self._start,
            "generators": self._random_state()["generators"],
            "settings": self._settings(),
        }
        save_checkpoint(self.path, self.stepper.svi, course=course)

    def _load(self) -> dict[str, Any]:
        svi, path = self.stepper.svi, self.path
        assert path is not None
        with module_mode(svi.model, svi.guide, training=True):
            for batch in self._loader:
                args, kwargs = self.stepper.call(batch)
                return load_checkpoint(path, svi, *args, **kwargs)
        raise ValueError(_EMPTY)

    def _by_step(self, iterator: Iterator[Any]) -> Iterator[list[Any]]:
        while batches := list(islice(iterator, self._accumulate)):
            yield batches

    def _settings(self) -> dict[str, Any]:
        """What may differ without an error, but not without a word."""
        svi, dataset = self.stepper.svi, getattr(self._loader, "dataset", None)
        rate = getattr(svi.optim, "lr", None)
        if rate is None:
            args = getattr(svi.optim, "pt_optim_args", None)
            rate = args.get("lr") if isinstance(args, Mapping) else None
        num_data = getattr(svi.model, "num_data", None)
        return {
            "learning rate": rate,
            "num_data": num_data if isinstance(num_data, int) else None,
            "size of the data set": num_batches(dataset),
            "digest of the data set's first and last row": _digest_of_ends(dataset),
            "number of batches": num_batches(self._loader),
            "accumulate": self._accumulate,
        }

    def _warn_of_changes(self, saved: Mapping[str, Any], num_epochs: int) -> None:
        now = self._settings()
        changes = [
            f"the {name} is {now[name]} now and was {before}"
            for name, before in saved.items()
            if now.get(name, before) != before
        ]
        if any(change.startswith("the learning rate") for change in changes):
            changes.append("the rates of the checkpoint are used, as its scheduler left them")
        if num_epochs < self.history.num_epochs:
            changes.append(
                f"{self.history.num_epochs} epochs were trained already and num_epochs is "
                f"{num_epochs}, so none is added and none taken back"
            )
        if changes:
            warnings.warn(
                f"The training of {self.path} is resumed with other settings: "
                f"{'; '.join(changes)}. To start anew, delete the file.",
                UserWarning,
                stacklevel=4,
            )

    def _random_state(self) -> dict[str, Any]:
        generators = {name: g.get_state() for name, g in self._generators.items()}
        return {"global": get_random_state(), "generators": generators}

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        set_random_state(state["global"])
        self._set_generators(state["generators"])

    def _set_generators(self, states: Mapping[str, Any]) -> None:
        for name, generator in self._generators.items():
            generator.set_state(states[name])


def _digest_of_ends(dataset: Any) -> str | None:
    """Some digits to know tensors by; None where rows may be made as they are read."""
    rows = [0, -1]
    while isinstance(dataset, Subset) and len(dataset):
        dataset, rows = dataset.dataset, [int(dataset.indices[row]) for row in rows]
    if not isinstance(dataset, TensorDataset) or not len(dataset):
        return None
    return digest([tensor[rows] for tensor in dataset.tensors])[:8]
