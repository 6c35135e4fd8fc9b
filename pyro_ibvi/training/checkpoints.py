"""Checkpoints: one file that holds everything with which a training goes on bit for bit.

A training that is restored between two steps draws the same random numbers and takes the same
steps as one that was never interrupted, if nothing that decides them is left out. Besides
parameters and the optimizer's state these are the buffers of modules (BatchNorm's statistics),
the random states, and whatever is found out at the first step only: a guide that looks at the
model, parameters that ``pyro.param`` makes, an objective that counts plates. A first step in a
fresh process draws random numbers and updates statistics for that, which one in the middle of a
training does not; :func:`load_checkpoint` therefore lets it happen before it restores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import pyro
from pyro.infer import SVI
from torch import Tensor

from pyro_ibvi._util.files import checked_path, readable_path
from pyro_ibvi._util.handlers import HANDLERS
from pyro_ibvi._util.misfits import listed, misfits
from pyro_ibvi._util.random_state import get_random_state, set_random_state
from pyro_ibvi.pairing.belonging import holds_svi
from pyro_ibvi.training.contents import read_content, write_content
from pyro_ibvi.training.optimizer_state import (
    check_optimizer,
    get_optimizer_state,
    set_optimizer_state,
    trained_tensors,
)
from pyro_ibvi.training.state import all_or_nothing, modules_of, named_parameters, set_tensors

#: What may change in an objective during training.
_LOSS_NUMBERS = ("max_plate_nesting", "kl_weight", "weight")


def save_checkpoint(path: str | os.PathLike[str], svi: SVI, /, **extra: Any) -> None:
    """Writes the state of a training between two steps.

    The file holds the parameters and buffers of model and guide as far as they are modules, the
    parameters in Pyro's store that the optimizer trains, the optimizer with its scheduler, the
    objective's ``kl_weight`` and the weight of its penalty, and the global random states of torch
    (with CUDA), NumPy and Python. It takes the place of an earlier file at once, so that a crash
    leaves a whole one. It holds tensors, numbers and strings alone (``torch.load(path,
    weights_only=True)`` reads it) and a digest of them, by which damage is found.

    Buffers of a network that belongs to a model function, known to Pyro by ``pyro.module`` alone,
    are not found: write such a model as a ``PyroModule``. Nor are gradients kept that a loop
    gathers over several steps.

    Args:
        path: The file.
        svi: The training, after a step. The optimizer may be one of Pyro's own.
        **extra: What :func:`load_checkpoint` gives back, such as the number of steps: tensors,
            numbers, strings, and lists and dictionaries of them.

    Raises:
        FileNotFoundError: If the file's folder does not exist.
        RuntimeError: If the optimizer holds no parameters yet.
        TypeError: If something of another type is to be saved, or ``svi`` is no ``SVI``.
        ValueError: If the optimizer trains a parameter that is nowhere to be found again.

    Example:
        >>> import tempfile, torch, pyro_ibvi as ibvi
        >>> from torch import nn
        >>> def make():
        ...     net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        ...     model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(0.1))
        ...     guide = ibvi.AutoMuPNormal(model)
        ...     optim = ibvi.MuPOptim(torch.optim.AdamW, {"lr": 1e-3}, guide)
        ...     return SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood())
        >>> x = torch.linspace(-1, 1, 8).unsqueeze(-1)
        >>> svi, path = make(), tempfile.mkdtemp() + "/run.pt"
        >>> _ = svi.step(x, x**2)
        >>> ibvi.save_checkpoint(path, svi, num_steps=1)
        >>> following = svi.step(x, x**2)
        >>> other = make()  # in another process, say
        >>> ibvi.load_checkpoint(path, other, x, x**2)
        {'num_steps': 1}
        >>> other.step(x, x**2) == following
        True
    """
    _check_svi(svi)
    path = checked_path(path)
    trained, stored = _trained_and_stored(svi)
    content = {
        "modules": {kind: module.state_dict() for kind, module in modules_of(svi).items()},
        "store": stored,
        "trained": list(trained),
        "optimizer": get_optimizer_state(svi.optim, list(trained.values())),
        "loss": {n: getattr(_loss(svi), n) for n in _LOSS_NUMBERS if hasattr(_loss(svi), n)},
        "random": get_random_state(),
        "extra": extra,
    }
    write_content(path, content)


def load_checkpoint(
    path: str | os.PathLike[str], svi: SVI, /, *args: Any, **kwargs: Any
) -> dict[str, Any]:
    """Restores what :func:`save_checkpoint` wrote, into a training that was set up likewise.

    Build model, guide, optimizer and objective as for the training that was saved. Learning rates
    and weights of the objective are then those of the checkpoint.

    Args:
        path: The file.
        svi: The training, at its start or after any number of steps.
        *args: Arguments of a step, with which the gradient is computed once, without a step,
            before anything is restored: as the first step of a new process would, this makes
            what does not exist before. Needed for guides that look at the model when first
            called, and for parameters that ``pyro.param`` makes.
        **kwargs: Keyword arguments of a step.

    Returns:
        What was passed to :func:`save_checkpoint` as ``extra``.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If ``svi`` is no ``SVI``, or ``path`` no path.
        ValueError: If the file is damaged or no checkpoint, or is of another model or optimizer.
            As after any error the training is as it was, but for an optimizer that was built.
    """
    _check_svi(svi)
    content = read_content(readable_path(path, "checkpoint"))
    extra: dict[str, Any] = content["extra"]
    with all_or_nothing(svi):
        check_optimizer(svi.optim, content["optimizer"])
        if args or kwargs:
            if not _misfits(content, svi):
                set_tensors(svi, content)  # the parameters here may be those of a failed training
            _run_once(svi, content["store"], args, kwargs)
        _check_fit(path, content, svi)
        parameters = named_parameters(svi)
        trained = [parameters[name] for name in content["trained"]]
        set_optimizer_state(svi.optim, trained, content["optimizer"])
        set_tensors(svi, content)
        _set_loss(svi, content["loss"])
        set_random_state(content["random"])
    return extra


def _check_svi(svi: object) -> None:
    if not isinstance(svi, SVI):
        raise TypeError(
            f"A checkpoint is of a whole training, a pyro.infer.SVI, but got "
            f"{type(svi).__name__}: write save_checkpoint(path, svi), or save a module by its "
            f"state_dict(){' and this network by its own .save(path)' * holds_svi(svi)}."
        )


def _trained_and_stored(svi: SVI) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The optimizer's parameters in its order, and those of the training in Pyro's store."""
    parameters, store = named_parameters(svi), pyro.get_param_store()
    names: dict[Tensor, str] = {}
    for name, parameter in parameters.items():
        names.setdefault(parameter, name)  # the first one, of a module rather than of the store
    tensors = trained_tensors(svi.optim)
    # Pyro replaces some of its parameters at each step, such as averages for baselines.
    replaced = {f"store.{store.param_name(p)}" for p in tensors if p not in names}
    if not replaced <= set(parameters):
        shapes = [str(tuple(parameter.shape)) for parameter in tensors if parameter not in names]
        raise ValueError(
            f"The optimizer trains parameters of shape {', '.join(shapes)} that are neither in "
            f"Pyro's store nor in the model or the guide as modules: a checkpoint would miss "
            f"them. Write the model as a PyroModule that holds its networks (self.net = ...)."
        )
    trained = {names[parameter]: parameter for parameter in tensors if parameter in names}
    in_store = replaced | {name for name in trained if name.startswith("store.")}
    return trained, {name: parameters[name] for name in sorted(in_store)}


def _check_fit(path: Any, content: Mapping[str, Any], svi: SVI) -> None:
    found = _misfits(content, svi)
    if found:
        raise ValueError(
            f"{path} is a checkpoint of another model: {listed(found)}. If a "
            f"parameter appears only when the model is run, run it once beforehand, as by "
            f"svi.evaluate_loss(x, y), or pass such arguments: load_checkpoint(path, svi, x, y)."
        )


def _run_once(svi: SVI, saved_store: Mapping[str, Any], args: Any, kwargs: Any) -> None:
    """Computes a gradient, as the first step does, so that everything exists that it makes."""
    store = pyro.get_param_store()
    before = set(store.keys())
    with HANDLERS:
        svi.loss_and_grads(svi.model, svi.guide, *args, **kwargs)
    # What the training made later, or never, must not be there with another start. Parameters of
    # modules, which Pyro lists in its store as well, are compared where they live.
    in_modules = {p for module in modules_of(svi).values() for p in module.parameters()}
    for name, parameter in list(store.named_parameters()):
        is_new = name not in before and f"store.{name}" not in saved_store
        if is_new and parameter not in in_modules:
            del store[name]


def _misfits(content: Mapping[str, Any], svi: SVI) -> list[str]:
    """What differs between the tensors of a checkpoint and those that are here."""
    there = _flat(content["modules"])
    here = _flat({kind: module.state_dict() for kind, module in modules_of(svi).items()})
    store = pyro.get_param_store().named_parameters()
    here.update({f"store.{n}": p for n, p in store if f"store.{n}" in content["store"]})
    there.update(content["store"])
    return misfits(there, here)


def _flat(states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{kind}.{name}": v for kind, state in states.items() for name, v in state.items()}


def _loss(svi: SVI) -> Any:
    """The objective, whose method the training calls."""
    return getattr(svi.loss, "__self__", None)


def _set_loss(svi: SVI, numbers: Mapping[str, float]) -> None:
    loss = _loss(svi)
    for name, value in numbers.items():
        # Pyro counts the plates at the first step, once for each objective.
        is_known = name == "max_plate_nesting" and not math.isinf(loss.max_plate_nesting)
        if hasattr(loss, name) and not is_known:
            setattr(loss, name, value)
