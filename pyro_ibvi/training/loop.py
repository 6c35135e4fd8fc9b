"""Training: epochs over a data loader, with validation, a progress bar and a history."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.infer import SVI

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.devices import checked_device
from pyro_ibvi._util.inputs import num_batches
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi.training.checks import (
    check_call,
    check_callback,
    check_history,
    check_loader,
    check_metrics,
    check_num_epochs,
    check_schedule,
    check_svi,
    check_validation,
    checked_autocast,
    is_end,
    warn_of_rows,
    warn_of_sum,
)
from pyro_ibvi.training.course import Course
from pyro_ibvi.training.history import History
from pyro_ibvi.training.processes import warn_of_processes
from pyro_ibvi.training.progress import Progress
from pyro_ibvi.training.schedules import (
    Interval,
    begin_epoch,
    end_training,
    scheduler_of,
    step_scheduler,
)
from pyro_ibvi.training.step import Stepper
from pyro_ibvi.training.validation import Best, Metrics, validate


@named_arguments(
    elsewhere={
        "lr": "the rate belongs to the optimizer, MuPOptim(torch.optim.SGD, {'lr': 0.05}, guide) "
        "or VariationalNetwork(net, likelihood, lr=0.05)",
        "optimizer": "it belongs to SVI(model, guide, optim, loss), or to "
        "VariationalNetwork(net, likelihood, optimizer=torch.optim.SGD)",
        "scheduler": "it belongs to the optimizer, MuPOptim(..., scheduler=...), or to "
        "VariationalNetwork(net, likelihood, scheduler=...)",
        "clip_norm": "it belongs to the optimizer, MuPOptim(..., clip_norm=1.0), or to "
        "VariationalNetwork(net, likelihood, clip_norm=1.0)",
        "batch_size": "the loader says it, DataLoader(data, batch_size=128, shuffle=True)",
        "shuffle": "the loader says it, DataLoader(data, batch_size=128, shuffle=True); tensors "
        "and data sets are shuffled",
        "num_data": "it belongs to the model, SupervisedModel(net, likelihood, num_data=...)",
        "draws": "they belong to the objective, TraceExpectedLogLikelihood(draws=...), or to "
        "VariationalNetwork(net, likelihood, draws=...)",
        "seed": "write torch.manual_seed(0) before network and loader are made",
        "generator": "write torch.manual_seed(0) before network and loader are made",
        "kl_weight": "it belongs to the objective, TraceExpectedLogLikelihood(kl_weight=...)",
    }
)
def fit(
    svi: SVI,
    train_loader: Iterable[Any],
    num_epochs: int,
    *,
    valid_loader: Iterable[Any] | None = None,
    metrics: Metrics | None = None,
    patience: int | None = None,
    monitor: str | None = None,
    callback: Callable[[int, History], bool | None] | None = None,
    history: History | None = None,
    device: torch.device | str | None = None,
    schedule_every: Interval = "epoch",
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_steps: int | None = None,
    progress: bool = True,
) -> History:
    """Trains by ``svi.step`` on each batch, for any Pyro model and guide.

    Modules are in training mode for steps and in evaluation mode for validation, and are given
    back as they were; a layer that its user put into evaluation mode while the rest trains stays
    there. The scheduler of a :class:`~pyro_ibvi.MuPOptim`, or one of ``pyro.optim``, takes a step
    after each epoch, on the validation loss if it asks for one. If a loss is not finite, training
    stops before the optimizer's step: parameters and buffers are those of the last good step.

    With a ``checkpoint`` a training that was killed goes on where the file was written last: set
    up everything as before and call ``fit`` again. What follows is bit for bit what would have
    followed without the interruption, on the same machine with as many threads: parameters,
    buffers, optimizer and scheduler, history, ``kl_weight``, the order of the batches and the
    global random states (torch with CUDA, NumPy, Python), as they are in
    :func:`~pyro_ibvi.save_checkpoint`. In the middle of an epoch the batches that were trained
    are loaded once more and passed over. Not covered are CUDA kernels that are not deterministic;
    what a callback or a data set remembers; samplers that draw from the global random state while
    an epoch is under way, other than at its start; and random augmentation in persistent worker
    processes, whose random states live from one epoch to the next (without
    ``persistent_workers`` workers are seeded anew in each epoch, and covered).

    Args:
        svi: Pyro's stochastic variational inference.
        train_loader: Batches, iterated once per epoch: tuples of the model's arguments, mappings
            of its keyword arguments, or single tensors.
        num_epochs: Number of epochs; with a checkpoint, in total, those before a restart included.
        valid_loader: Batches for the validation loss and the metrics.
        metrics: What else to measure after each epoch: a function of model, guide and validation
            loader that returns numbers by name, such as
            ``functools.partial(ibvi.evaluate, num_samples=16)``. Its random numbers are the same
            each time and do not touch those of the training.
        patience: Number of epochs without a better ``monitor`` after which training stops. If it
            is given, the state of the best epoch is put back at the end.
        monitor: The number to watch, smaller being better, but for accuracies and the like:
            ``"valid_loss"`` or a metric; by default ``"nll"`` if that is among the metrics, or
            else the validation loss.
        callback: Called with the epoch, from 0, and the history after each epoch; training stops
            when it returns True.
        history: A history to go on with.
        device: Where batches are moved to; by default the device of the model's parameters.
        schedule_every: When the scheduler takes a step: after each ``"epoch"`` or ``"step"``.
        accumulate: Number of batches whose gradients are averaged for one step, weighted by
            their sizes, as if they were one.
        autocast: ``torch.bfloat16`` for the network's inner arithmetic, or None.
        checkpoint: File to which the state of the training is written after each epoch, and from
            which it goes on if the file exists. A training that is at its end, or that a callback
            stopped, is restored and not continued: delete the file to start anew.
        checkpoint_steps: Number of steps after which it is written within an epoch, too.
        progress: Whether to show a progress bar; there is none where output is no terminal.

    Returns:
        The history.

    Raises:
        FileNotFoundError: If the checkpoint's folder does not exist.
        TypeError: If an argument is of the wrong kind, or a batch does not fit the model.
        ValueError: If a loader is empty, ``num_epochs`` is not positive, the parts of ``svi``
            belong to different pairs, or the checkpoint is damaged or of another training.
        FloatingPointError: If a loss is not finite.

    Example:
        >>> import pyro_ibvi as ibvi
        >>> x = torch.linspace(-1, 1, 32).unsqueeze(-1)
        >>> loader = torch.utils.data.DataLoader(
        ...     torch.utils.data.TensorDataset(x, x**2), batch_size=8)
        >>> from torch import nn
        >>> net = ibvi.RandomModule(nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)))
        >>> model = ibvi.SupervisedModel(net, ibvi.Normal(0.1), num_data=32)
        >>> guide = ibvi.AutoMuPNormal(model)
        >>> optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-3}, guide)
        >>> svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
        >>> ibvi.fit(svi, loader, num_epochs=2, progress=False).num_epochs
        2
    """
    check_svi(svi)
    warn_of_processes()
    warn_of_sum(svi)
    check_num_epochs(num_epochs)
    check_loader("train_loader", train_loader)
    if valid_loader is not None:
        check_loader("valid_loader", valid_loader)
    check_validation(
        train_loader, valid_loader, metrics=metrics, patience=patience, monitor=monitor
    )
    check_callback(callback)
    check_metrics(metrics)
    check_history(history)
    check_schedule(svi.optim, schedule_every)
    for name, number in (("accumulate", accumulate), ("patience", patience)):
        if number is not None:
            check_positive_int(name, number)
    if history is not None and checkpoint is not None:
        raise ValueError("A checkpoint holds the history: pass `history` or `checkpoint` alone.")
    history = History() if history is None else history
    stepper = Stepper(
        svi, None if device is None else checked_device(device), checked_autocast(autocast)
    )
    best = Best(svi, monitor, patience)
    loaders = {"train_loader": train_loader, "valid_loader": valid_loader}
    course = Course(stepper, history, best, checkpoint, checkpoint_steps, loaders, accumulate)
    first = course.resume(num_epochs) if course.is_begun else 0
    epochs = range(first, first if course.is_stopped else num_epochs)
    bar = Progress(train_loader, num_epochs, first, accumulate, hidden=not progress)
    size = num_batches(train_loader)
    for epoch in epochs:
        where = epoch, num_epochs, size, accumulate
        begin_epoch(scheduler_of(svi.optim), *where, interval=schedule_every)
        _train_epoch(course, train_loader, bar, schedule_every)
        if valid_loader is not None:
            validate(stepper, valid_loader, metrics, history)
        if schedule_every == "epoch":
            step_scheduler(svi.optim, history)
        is_stopped = best.see(history)
        if callback is not None:
            is_stopped |= is_end(callback(history.num_epochs - 1, history))
        bar.end_epoch(history)
        course.save(is_stopped=is_stopped)
        if is_stopped:
            break
    bar.close()
    best.restore()
    end_training(scheduler_of(svi.optim))
    return history


def _train_epoch(
    course: Course, loader: Iterable[Any], bar: Progress, schedule_every: Interval
) -> None:
    svi, history = course.stepper.svi, course.history
    with module_mode(svi.model, svi.guide, training=True):
        for batches in course.batches(loader):
            if course.num_steps == 0:
                call = course.stepper.call(batches[0])
                check_call(svi.model, *call)
                warn_of_rows(svi.model, loader, *call)
            where = f"step {course.num_steps} of epoch {history.num_epochs}"
            loss = course.stepper.step(batches, where)
            if schedule_every == "step":
                step_scheduler(svi.optim, history)
            course.add_step(loss)
            bar.step()
    course.end_epoch()
