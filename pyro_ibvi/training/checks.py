"""What a training cannot do, said before it begins."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, cast

import torch
from pyro.infer import ELBO, SVI
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyro_ibvi._util.arguments import takes
from pyro_ibvi._util.checks import check_positive_int, shown
from pyro_ibvi._util.inputs import is_array
from pyro_ibvi._util.modes import owner_module
from pyro_ibvi._util.samplers import num_drawn
from pyro_ibvi._util.torch_losses import likelihood_for
from pyro_ibvi.pairing.belonging import check_optimizer_of, check_pair, holds_svi
from pyro_ibvi.pairing.loss_scale import LossScale
from pyro_ibvi.training.history import History
from pyro_ibvi.training.optim import MuPOptim
from pyro_ibvi.training.processes import check_whole
from pyro_ibvi.training.schedules import goes_by_epochs, has_scheduler
from pyro_ibvi.training.state import modules_of

_LOADER = "DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)"


def check_svi(svi: Any) -> None:
    """Checks the parts of a training.

    Args:
        svi: The training.

    Raises:
        TypeError: If it, or its objective, is of the wrong kind.
        ValueError: If its parts belong to different pairs, or are on different devices.
    """
    if holds_svi(svi):
        raise TypeError(
            f"Training needs a pyro.infer.SVI, got a {_name(svi)}, which trains itself: write "
            f".fit(...) behind it, or pass its .svi."
        )
    if not isinstance(svi, SVI):
        raise TypeError(
            f"Training needs a pyro.infer.SVI, got {_name(svi)}: write "
            f"fit(SVI(model, guide, optim, TraceExpectedLogLikelihood()), loader, num_epochs)."
        )
    check_loss(svi.loss)
    check_pair(svi.model, svi.guide)
    check_optimizer_of(svi.optim, svi.guide)
    devices = {
        kind: {p.device for p in module.parameters()} for kind, module in modules_of(svi).items()
    }
    if len(set().union(*devices.values())) > 1:
        places = ", ".join(f"{kind}: {sorted(map(str, d))}" for kind, d in devices.items())
        raise ValueError(
            f"Model and guide are on different devices ({places}): move both, "
            f"model.to(device) and guide.to(device), before training."
        )


def check_loss(loss: Any) -> None:
    """Checks that the loss of a training is an objective.

    Args:
        loss: The loss.

    Raises:
        TypeError: If it is a loss of outputs and targets, a class, or nothing that can be called.
    """
    if _is_torch_loss(loss) or not callable(loss):
        likelihood = likelihood_for(loss)
        hint = f", {likelihood}" if likelihood is not None else ""
        raise TypeError(
            f"The loss of SVI must be an objective such as TraceExpectedLogLikelihood(), got "
            f"{_name_of(loss)}: what it says of outputs and "
            f"targets, the model's likelihood says{hint}."
        )
    if isinstance(loss, type):
        raise TypeError(
            f"The loss of SVI must be an object, got the class {loss.__name__}: write "
            f"{loss.__name__}(), with parentheses."
        )


def warn_of_sum(svi: SVI) -> None:
    """Warns, before the first step, where rates for a loss per datum meet a sum over data.

    Args:
        svi: The training.
    """
    loss = getattr(svi.loss, "__self__", svi.loss)
    num_data = getattr(svi.model, "num_data", None)
    is_sum = isinstance(loss, ELBO) and getattr(loss, "reduction", "sum") == "sum"
    if isinstance(svi.optim, MuPOptim) and is_sum and isinstance(num_data, int):
        svi.optim.warn_of_scale(LossScale(type(loss).__name__, num_data))


def check_no_data(name: str, loader: Any) -> None:
    """Checks that data are not passed where their batches are expected.

    Args:
        name: Name of the argument.
        loader: Its value.

    Raises:
        TypeError: If they are.
    """
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise TypeError(
            f"{name} is a data set, which gives single data: write "
            f"DataLoader(data, batch_size=128, shuffle=True)."
        )
    is_pair = isinstance(loader, tuple) and any(map(is_array, loader))
    if is_pair or isinstance(loader, str) or is_array(loader):
        raise TypeError(f"{name} must give batches, got {_name(loader)}: write {_LOADER}.")


def check_loader(name: str, loader: Any) -> None:
    """Checks that something can be a loader.

    Args:
        name: Name of the argument.
        loader: Its value.

    Raises:
        TypeError: If it gives no batches.
        ValueError: If it gives one process's share of them.
    """
    check_no_data(name, loader)
    if isinstance(loader, Mapping):
        raise TypeError(
            f"{name} must give batches, got a mapping with the keys {list(loader)[:5]}: write "
            f"[batch] for a single batch of all data."
        )
    check_whole(name, loader)
    if not isinstance(loader, Iterable) or isinstance(loader, (int, float)):
        raise TypeError(f"{name} must give batches, got {_name(loader)}: write {_LOADER}.")


def check_num_epochs(num_epochs: Any) -> None:
    """Checks a number of epochs.

    Args:
        num_epochs: The number.

    Raises:
        TypeError: If data stand in its place.
    """
    if isinstance(num_epochs, (Tensor, list, tuple)) or hasattr(num_epochs, "__len__"):
        raise TypeError(
            f"The third argument is the number of epochs, got {_name(num_epochs)}; x and y come "
            f"in batches: fit(svi, {_LOADER}, num_epochs=20)."
        )
    check_positive_int("num_epochs", num_epochs)


def check_history(history: Any) -> None:
    """Checks a history to go on with.

    Args:
        history: The history, or None.

    Raises:
        TypeError: If it is something else.
    """
    if history is not None and not isinstance(history, History):
        raise TypeError(f"The history must be what an earlier fit returned, got {_name(history)}.")


def check_metrics(metrics: Any) -> None:
    """Checks what measures predictions.

    Args:
        metrics: The function, or None.

    Raises:
        TypeError: If it is no function of model, guide and loader.
    """
    if callable(getattr(metrics, "compute", None)):  # as torchmetrics has it
        raise TypeError(
            f"metrics is a function of model, guide and loader, got a {type(metrics).__name__}, "
            f"which is one of predictions and targets: evaluate(...) has accuracy, calibration "
            f"error and others, and predict_batches gives predictions with their targets."
        )
    _check_function("metrics", metrics, "model, guide, loader", "numbers by name")


def check_callback(callback: Any) -> None:
    """Checks a callback.

    Args:
        callback: The function, or None.

    Raises:
        TypeError: If it is no function of the epoch and the history.
    """
    _check_function("callback", callback, "epoch, history", "True to stop")


def is_end(answer: Any) -> bool:
    """Whether what a callback returned ends training.

    Args:
        answer: What it returned.

    Returns:
        Whether it does.

    Raises:
        TypeError: If it is something else than an answer.
    """
    kind = str(getattr(answer, "dtype", type(answer).__name__))  # NumPy and torch have their own
    if answer is not None and kind.removeprefix("torch.") != "bool":
        raise TypeError(
            f"callback returned {shown(answer)}, and what it returns says whether training ends: "
            f"return True to end it, and nothing or False to go on."
        )
    return bool(answer)


def _check_function(name: str, function: Any, arguments: str, returned: str) -> None:
    if function is None:
        return
    if not callable(function) or isinstance(function, type):
        raise TypeError(
            f"{name} must be a function of ({arguments}) that returns {returned}, got "
            f"{function!r}."
        )
    if not takes(function, len(arguments.split(", "))):
        raise TypeError(
            f"{name} is called with ({arguments}), and {_name_of(function)} takes "
            f"{inspect.signature(function)}: write def {name}({arguments})."
        )


def check_schedule(optim: Any, interval: Any) -> None:
    """Checks when a scheduler is stepped.

    Args:
        optim: The optimizer.
        interval: ``"epoch"`` or ``"step"``.

    Raises:
        ValueError: If there is no such interval, or nothing to step by it.
    """
    if interval not in ("epoch", "step"):
        raise ValueError(f"schedule_every must be 'epoch' or 'step', got {interval!r}.")
    if interval == "step" and not has_scheduler(optim):
        raise ValueError(
            "schedule_every='step' needs a scheduler: MuPOptim(..., scheduler=lambda optimizer: "
            "torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps))."
        )
    if interval == "step" and goes_by_epochs(optim):
        raise ValueError(
            "ReduceLROnPlateau looks at the validation loss, once an epoch, and 'cosine' goes by "
            "the epochs of fit: leave schedule_every='epoch'."
        )


def checked_autocast(autocast: Any) -> torch.dtype | None:
    """A type for inner arithmetic.

    Args:
        autocast: The type, or None.

    Returns:
        The type, or None.

    Raises:
        ValueError: If it is another one than bfloat16.
    """
    if autocast is None or autocast is torch.bfloat16:
        return autocast
    more = ": its range needs scaled gradients, which this loop has not"
    raise ValueError(
        f"autocast must be torch.bfloat16 or None, got {autocast!r}"
        f"{more * (autocast is torch.float16)}."
    )


def check_validation(train_loader: Any, valid_loader: Any, **needing: Any) -> None:
    """Checks that there are validation data if anything looks at them.

    Args:
        train_loader: The training loader.
        valid_loader: The validation loader.
        **needing: Arguments that need it.

    Raises:
        TypeError: If they can be iterated once only.
        ValueError: If there are none, or a number is named and nobody looks at it.
    """
    given = [name for name, value in needing.items() if value is not None]
    if valid_loader is None and given:
        raise ValueError(f"{given[0]} looks at validation data: pass valid_loader=.")
    if given == ["monitor"] or given == ["metrics", "monitor"]:
        raise ValueError(
            "monitor is what patience looks at: pass patience=, the number of epochs to wait for "
            "a better one, after which the best state is put back."
        )
    if "patience" in given and valid_loader is train_loader:
        warnings.warn(
            "valid_loader is the training loader, whose data a network may know by heart: with "
            "patience training ends, and the best state is chosen, by data held back.",
            UserWarning,
            stacklevel=4,
        )
    if isinstance(valid_loader, Iterator):
        raise TypeError(
            "valid_loader is an iterator, which gives its batches once, and is needed after each "
            "epoch: pass a DataLoader or a list of batches."
        )


def warn_of_rows(model: Any, loader: Any, batch: tuple[Any, ...], named: Any) -> None:
    """Warns where the model counts data, or batches, and the loader gives more rows than these.

    A loader may make several rows of one of its data.

    Args:
        model: The model.
        loader: The loader.
        batch: A batch of it, the positional parts.
        named: The parts by name.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return
    size, dataset = loader.batch_size, cast(Sized, loader.dataset)
    count, num_data = getattr(model, "num_data_in", None), getattr(model, "num_data", None)
    if size is None or not callable(count):
        return
    num_rows = count(*batch, **named)
    if num_rows > size and isinstance(num_data, int) and num_data <= len(dataset):
        warnings.warn(
            f"The loader's batches of {size} data hold {num_rows} rows, as its collate_fn makes "
            f"them, and num_data={num_data} counts data: pass the number of rows of all of them, "
            f"num_data=.",
            UserWarning,
            stacklevel=2,
        )
    drawn = num_drawn(loader) or 0
    if num_rows > 1 and num_data == len(loader) < drawn:
        warnings.warn(
            f"num_data={num_data} is the number of the loader's batches, and it is that of the "
            f"data by which a loss is scaled: write num_data={drawn}, the length of the data set.",
            UserWarning,
            stacklevel=2,
        )


def check_call(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Checks that a model takes a batch.

    Args:
        model: The model.
        args: Positional arguments, the parts of the batch.
        kwargs: Keyword arguments, the batch's keys.

    Raises:
        TypeError: If it does not.
    """
    owner = owner_module(model)
    function = owner.forward if owner is not None and owner is model else model
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a callable that does not tell
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = f"the keys {list(kwargs)}" if kwargs else f"{len(args)} parts"
        raise TypeError(
            f"A batch of {given} does not fit the model, which takes {signature}: {error}. Let "
            f"the loader give the model's arguments, as a tuple (x, y) or as a mapping of its "
            f"names; several inputs go into one: ((x1, x2), y)."
        ) from None


def _is_torch_loss(thing: Any) -> bool:
    """Whether something is a loss of outputs and targets, or any module: no objective is one."""
    if inspect.isfunction(thing):
        return thing.__module__.startswith("torch.nn.")
    return isinstance(thing, nn.Module) or (
        isinstance(thing, type) and issubclass(thing, nn.Module)
    )


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _name(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
