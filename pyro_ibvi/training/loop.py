"""Training: epochs over a data loader, with a progress bar and a history."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.inputs import as_call, first_tensor, to_device
from pyro_ibvi._util.modes import module_mode
from pyro_ibvi.training.course import Course
from pyro_ibvi.training.history import History
from pyro_ibvi.training.optim import MuPOptim

_EMPTY = (
    "The training loader is empty: it yielded no batch. If the data set is smaller than the batch "
    "size, drop drop_last=True; an iterator can be used for one epoch only."
)


def fit(
    svi: SVI,
    train_loader: Iterable[Any],
    num_epochs: int,
    *,
    valid_loader: Iterable[Any] | None = None,
    callback: Callable[[int, History], bool | None] | None = None,
    history: History | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_steps: int | None = None,
    progress: bool = True,
) -> History:
    """Trains by ``svi.step`` on each batch, for any Pyro model and guide.

    Modules are in training mode for steps and in evaluation mode for the validation loss, and
    are given back as they were. The scheduler of a :class:`~pyro_ibvi.MuPOptim` takes a step
    after each epoch, on the validation loss if it asks for one. If a loss is not finite, training
    stops before the optimizer's step, so that the parameters are those of the last good step.

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
        valid_loader: Batches for the validation loss.
        callback: Called with the epoch, from 0, and the history after each epoch; training stops
            when it returns True.
        history: A history to go on with.
        device: Where batches are moved to; by default the device of the guide's parameters.
        checkpoint: File to which the state of the training is written after each epoch, and from
            which it goes on if the file exists. A training that is at its end, or that a callback
            stopped, is restored and not continued: delete the file to start anew.
        checkpoint_steps: Number of steps after which it is written within an epoch, too.
        progress: Whether to show a progress bar; there is none where output is no terminal.

    Returns:
        The history.

    Raises:
        FileNotFoundError: If the checkpoint's folder does not exist.
        ValueError: If a loader is empty, ``num_epochs`` is not positive, or the checkpoint is
            damaged or of another training.
        FloatingPointError: If a loss is not finite.

    Example:
        >>> import pyro_ibvi as ibvi
        >>> x = torch.linspace(-1, 1, 32).unsqueeze(-1)
        >>> loader = torch.utils.data.DataLoader(
        ...     torch.utils.data.TensorDataset(x, x**2), batch_size=8)
        >>> net = ibvi.RandomModule(nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)))
        >>> model = ibvi.SupervisedModel(net, ibvi.Normal(0.1), num_data=32)
        >>> guide = ibvi.AutoMuPNormal(model)
        >>> optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 1e-3}, guide)
        >>> svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
        >>> ibvi.fit(svi, loader, num_epochs=2, progress=False).num_epochs
        2
    """
    check_positive_int("num_epochs", num_epochs)
    if history is not None and checkpoint is not None:
        raise ValueError("A checkpoint holds the history: pass `history` or `checkpoint` alone.")
    history = History() if history is None else history
    loaders = {"train_loader": train_loader, "valid_loader": valid_loader}
    course = Course(svi, history, checkpoint, checkpoint_steps, loaders)
    desc = "fit, resumed" if course.is_begun else "fit"
    first = _resume(course, train_loader, device) if course.is_begun else 0
    epochs = range(first, first if course.is_stopped else num_epochs)
    hidden = None if progress else True
    bar = tqdm(epochs, desc, initial=first, total=num_epochs, unit="epoch", disable=hidden)
    for _ in bar:
        history.train_loss.append(_train_epoch(course, train_loader, device))
        shown = {"loss": f"{history.train_loss[-1]:.4g}"}
        if valid_loader is not None:
            history.valid_loss.append(_evaluate(svi, valid_loader, device))
            shown["valid"] = f"{history.valid_loss[-1]:.4g}"
        bar.set_postfix(shown)
        _step_scheduler(svi.optim, history)
        is_stopped = callback is not None and bool(callback(history.num_epochs - 1, history))
        course.save(is_stopped=is_stopped)
        if is_stopped:
            break
    bar.close()
    return history


def _resume(course: Course, loader: Iterable[Any], device: torch.device | str | None) -> int:
    """Goes on from a checkpoint; returns the number of epochs that are done."""
    svi = course.svi
    with module_mode(svi.model, svi.guide, training=True):
        for batch in loader:
            args, kwargs = as_call(to_device(batch, device or _device_of(svi)))
            course.resume(*args, **kwargs)
            return course.history.num_epochs
    raise ValueError(_EMPTY)


def _train_epoch(
    course: Course, loader: Iterable[Any], device: torch.device | str | None
) -> float:
    svi, epoch = course.svi, course.history.num_epochs
    with module_mode(svi.model, svi.guide, training=True):
        for batch in course.batches(loader):
            args, kwargs = as_call(to_device(batch, device or _device_of(svi)))
            with _checked_loss(svi, f"step {course.num_steps} of epoch {epoch}"):
                loss = svi.step(*args, **kwargs)
            course.add_step(loss)
    if course.num_steps == 0:
        raise ValueError(_EMPTY)
    return course.end_epoch()


def _evaluate(svi: SVI, loader: Iterable[Any], device: torch.device | str | None) -> float:
    total, num_data = 0.0, 0
    with module_mode(svi.model, svi.guide, training=False):
        for batch in loader:
            args, kwargs = as_call(to_device(batch, device or _device_of(svi)))
            tensor = first_tensor((args, kwargs))
            size = 1 if tensor is None else len(tensor)
            total += size * svi.evaluate_loss(*args, **kwargs)
            num_data += size
    if num_data == 0:
        raise ValueError("The validation loader is empty: it yielded no batch.")
    return total / num_data


def _step_scheduler(optim: Any, history: History) -> None:
    if not isinstance(optim, MuPOptim) or optim.scheduler is None:
        return
    with warnings.catch_warnings():
        # The optimizer's steps may all have been taken before a restart.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        if isinstance(optim.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            optim.step_scheduler((history.valid_loss or history.train_loss)[-1])
        else:
            optim.step_scheduler()


@contextmanager
def _checked_loss(svi: SVI, where: str) -> Iterator[None]:
    """Stops ``svi.step`` between the gradient and the optimizer if the loss is not finite."""
    loss_and_grads = svi.loss_and_grads

    def checked(model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        loss = loss_and_grads(model, guide, *args, **kwargs)
        if not math.isfinite(loss):
            raise FloatingPointError(_diagnose(model, guide, args, kwargs, float(loss), where))
        return loss

    svi.loss_and_grads = checked
    try:
        yield
    except FloatingPointError:
        for parameter in _parameters(svi):
            parameter.grad = None
        raise
    finally:
        svi.loss_and_grads = loss_and_grads


def _diagnose(model: Any, guide: Any, args: Any, kwargs: Any, loss: float, where: str) -> str:
    """A sentence that says at which sites a loss is not finite."""
    with torch.no_grad(), poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs)
    bad = []
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or not isinstance(site["value"], Tensor):
            continue
        if site["value"].is_floating_point() and not site["value"].isfinite().all():
            bad.append(f"{name!r} (its value)")
        elif site["is_observed"] and not site["fn"].log_prob(site["value"]).isfinite().all():
            bad.append(f"{name!r} (its log-probability)")
    sites = ", ".join(bad) or "none that another draw shows"
    return (
        f"The loss is {loss} at {where}; sites that are not finite: {sites}. The parameters are "
        f"those before this step. Usual causes: a learning rate that is too large, or NaN or "
        f"infinite data."
    )


def _parameters(svi: SVI) -> Iterator[nn.Parameter]:
    for root in (svi.model, svi.guide):
        if isinstance(root, nn.Module):
            yield from root.parameters()


def _device_of(svi: SVI) -> torch.device | None:
    parameter = next(_parameters(svi), None)
    return None if parameter is None else parameter.device
