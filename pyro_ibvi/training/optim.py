r"""One torch optimizer with muP learning rates, inside ``SVI`` or by itself."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_ibvi.mup.parametrization import Family

_SGD_LIKE: tuple[type[Optimizer], ...] = (torch.optim.SGD,)
# Optimizers whose step does not grow with the gradient.
_ADAM_LIKE: tuple[type[Optimizer], ...] = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
)

# Optimizers with fused kernels on CPU and CUDA, and the arguments that choose them or others.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
_OF_THIS_OPTIMIZER = ("params", "param_names", "fused")  # what no state brings
_IMPLEMENTATIONS = {"fused", "foreach", "differentiable", "capturable"}


@runtime_checkable
class HasRates(Protocol):
    """A guide that knows the learning rate of each parameter, as ``AutoMuPNormal`` does."""

    def named_rates(self, family: Family) -> Iterator[tuple[str, nn.Parameter, float]]:
        """Name, parameter and factor on the global learning rate of every parameter."""
        ...


def mup_param_groups(
    guide: HasRates,
    lr: float,
    *,
    optimizer: type[Optimizer],
    family: Family | None = None,
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    r"""Parameter groups with the learning rate that each parameter's parametrization gives.

    Every parameter of the guide and of its model is in exactly one group. With
    decoupled weight decay (AdamW) the product of rate and decay is kept, so a group's decay is
    ``weight_decay`` divided by its rate's factor.

    Args:
        guide: An initialized guide.
        lr: Global learning rate, multiplied by each parameter's factor.
        optimizer: Class of the optimizer that the groups are for.
        family: How the optimizer scales its updates: ``"sgd"`` in proportion to the gradient,
            ``"adam"`` regardless of its size. Found from the class if it is one of torch's.
        weight_decay: Weight decay; by default the optimizer's own.

    Returns:
        Groups with the keys ``params``, ``param_names``, ``lr`` and, if there is one,
        ``weight_decay``.

    Raises:
        RuntimeError: If the guide is not initialized.
        TypeError: If the guide has no learning rates.
        ValueError: If a rate is not positive or the optimizer's family is not known.

    Example:
        >>> from pyro_ibvi import AutoMuPNormal, Normal, RandomModule, SupervisedModel
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        >>> guide = AutoMuPNormal(SupervisedModel(RandomModule(net), Normal(), num_data=10))
        >>> groups = mup_param_groups(guide, lr=0.1, optimizer=torch.optim.SGD)
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    """
    lr = _checked_rate(lr)
    family = find_family(optimizer, family)
    if not isinstance(guide, HasRates):
        raise TypeError(
            f"mup_param_groups needs an AutoMuPNormal guide, got {type(guide).__name__}; other "
            f"guides have one rate for all parameters."
        )
    decoupled = _decouples_decay(optimizer)
    if weight_decay is None and decoupled:
        weight_decay = inspect.signature(optimizer).parameters["weight_decay"].default
    groups: dict[float, dict[str, Any]] = {}
    for name, parameter, factor in guide.named_rates(family):
        group = groups.setdefault(factor, {"params": [], "param_names": [], "lr": lr * factor})
        group["params"].append(parameter)
        group["param_names"].append(name)
        if weight_decay is not None:
            group["weight_decay"] = weight_decay / factor if decoupled else weight_decay
    return list(groups.values())


def _decouples_decay(optimizer: type[Optimizer]) -> bool:
    return isinstance(optimizer, type) and issubclass(optimizer, torch.optim.AdamW)


def find_family(optimizer: type[Optimizer], family: Family | None = None) -> Family:
    """How an optimizer scales its updates with the gradient.

    Args:
        optimizer: Class of the optimizer.
        family: The answer, for an optimizer that is not one of torch's.

    Returns:
        ``"sgd"`` or ``"adam"``.

    Raises:
        TypeError: If the optimizer is an object and not a class.
        ValueError: If it cannot be told.
    """
    if isinstance(optimizer, (Optimizer, PyroOptim)):
        raise TypeError(
            f"Expected the class of a torch optimizer, such as torch.optim.SGD, got an object of "
            f"{type(optimizer).__name__}: its arguments go into optim_args."
        )
    if family is not None:
        if family not in ("sgd", "adam"):
            raise ValueError(f"family must be 'sgd' or 'adam', got {family!r}.")
        return family
    if isinstance(optimizer, type) and issubclass(optimizer, _SGD_LIKE):
        return "sgd"
    if isinstance(optimizer, type) and issubclass(optimizer, _ADAM_LIKE):
        return "adam"
    name = getattr(optimizer, "__name__", repr(optimizer))
    raise ValueError(
        f"muP learning rates depend on whether {name} steps in proportion to the gradient: pass "
        f'family="sgd" if it does, family="adam" if its steps do not grow with the gradient.'
    )


class MuPOptim(PyroOptim):
    r"""A Pyro optimizer that holds one torch optimizer with muP learning rates.

    Parameters that the guide's parametrization does not know (a ``pyro.param`` in the model, a
    likelihood's scale) learn at the global rate, from the step at which they first appear.
    Gradients are released after each step. Where the torch optimizer has fused kernels for the
    parameters and ``optim_args`` do not choose between its implementations, it uses them: for
    large networks they save a good part of the step's memory traffic.

    Args:
        optimizer: Class of the torch optimizer.
        optim_args: Its arguments; ``lr`` is the global learning rate.
        guide: The guide; other guides than :class:`~pyro_ibvi.AutoMuPNormal` learn at one rate.
        family: See :func:`mup_param_groups`.
        clip_norm: Largest Euclidean norm of the gradient over all parameters together.
        scheduler: Makes a torch scheduler from the optimizer, for example
            ``lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30)``; step it by
            :meth:`step_scheduler`, as ``fit`` does after each epoch.

    Raises:
        TypeError: If ``optim_args`` is not a dictionary, or a class stands for an object.
        ValueError: If a rate or a norm is not positive, or the optimizer's family is not known.

    Example:
        >>> from pyro_ibvi import AutoMuPNormal, Normal, RandomModule, SupervisedModel
        >>> from torch import nn
        >>> guide = AutoMuPNormal(SupervisedModel(RandomModule(nn.Linear(2, 1)), Normal(), 10))
        >>> optim = MuPOptim(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, guide)
        >>> [group["lr"] for group in optim.optimizer.param_groups][0]
        0.05
    """

    def __init__(
        self,
        optimizer: type[Optimizer],
        optim_args: dict[str, Any],
        guide: Callable[..., Any],
        *,
        family: Family | None = None,
        clip_norm: float | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
    ) -> None:
        if not isinstance(optim_args, dict):
            raise TypeError(
                f'optim_args must be a dictionary such as {{"lr": 0.05}}, got '
                f"{type(optim_args).__name__}: rates per parameter come from the guide."
            )
        if "lr" not in optim_args:
            raise ValueError('optim_args needs the global learning rate: {"lr": 0.05, ...}.')
        if isinstance(guide, type) or not callable(guide):
            raise TypeError(f"The guide must be an object that SVI can call, got {guide!r}.")
        if clip_norm is not None and not 0 < clip_norm < math.inf:
            raise ValueError(f"clip_norm must be positive and finite, got {clip_norm!r}.")
        super().__init__(optimizer, optim_args)
        self.lr = _checked_rate(optim_args["lr"])
        self.guide = guide
        self.clip_norm = clip_norm
        self.family = find_family(optimizer, family)
        self._make_scheduler = scheduler
        self._optimizer: Optimizer | None = None
        self._scheduler: Any = None
        self._names: dict[Tensor, str] = {}
        self._waiting_state: dict[str, Any] = {}
        self._is_fused = False

    @property
    def optimizer(self) -> Optimizer:
        """The torch optimizer; made at the first use."""
        if self._optimizer is None:
            self._build([])
        assert self._optimizer is not None
        return self._optimizer

    @property
    def scheduler(self) -> Any:
        """The torch scheduler, or None."""
        return self._scheduler if self.optimizer else None

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Takes a step.

        Args:
            params: The parameters that the step's trace holds, as ``SVI`` collects them.
            *args: Arguments of the optimizer's ``step``.
            **kwargs: Keyword arguments of the optimizer's ``step``.
        """
        self.register(params)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(self._names), self.clip_norm)
        if self._is_fused:
            self._choose_kernels()
        self.optimizer.step(*args, **kwargs)
        for parameter in self._names:  # zero_grad, without its detours
            parameter.grad = None

    def register(self, params: Iterable[Tensor]) -> None:
        """Adds the parameters that the optimizer does not hold yet; takes no step.

        Args:
            params: Parameters, as ``SVI`` would pass them.
        """
        params = list(params)
        if self._optimizer is None:
            self._build(params)
        else:
            new = self._name_new(params, self.optimizer.param_groups[-1])
            if new and self._waiting_state:
                self._restore(new)

    def step_scheduler(self, *args: Any) -> None:
        """Steps the scheduler, if there is one.

        Args:
            *args: Arguments of its ``step``, such as the validation loss for
                ``ReduceLROnPlateau``.
        """
        if self.scheduler is not None:
            self.scheduler.step(*args)

    def get_state(self) -> dict[str, Any]:
        """State of the optimizer and the scheduler, for ``set_state`` or ``torch.save``.

        Returns:
            A dictionary of tensors, numbers and names.
        """
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        state["names"] = [group["param_names"] for group in self.optimizer.param_groups]
        if self._scheduler is not None:
            state["scheduler"] = self._scheduler.state_dict()
        return state

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`get_state` gave, each parameter's part as soon as it exists.

        Args:
            state_dict: The state.

        Raises:
            TypeError: If it is not what :meth:`get_state` gives.
            ValueError: If the state is for other parameters.
        """
        if not isinstance(state_dict, dict) or not {"optimizer", "names"} <= set(state_dict):
            raise TypeError("set_state needs what MuPOptim.get_state() gave.")
        self._waiting_state = copy.deepcopy(state_dict)
        if self._optimizer is not None:
            self._restore()

    def load(self, filename: str, map_location: Any = None) -> None:
        """Restores state that :meth:`save` wrote.

        Args:
            filename: Path of the file.
            map_location: As in ``torch.load``.
        """
        self.set_state(torch.load(filename, map_location=map_location, weights_only=True))

    def _build(self, params: list[Tensor]) -> None:
        """Makes the optimizer from the guide's groups and a group of all other parameters."""
        groups: list[dict[str, Any]] = []
        if isinstance(self.guide, HasRates):
            groups = mup_param_groups(
                self.guide,
                self.lr,
                optimizer=self.pt_optim_constructor,
                family=self.family,
                weight_decay=self.pt_optim_args.get("weight_decay"),
            )
        for group in groups:
            self._names.update(zip(group["params"], group["param_names"], strict=True))
        # There from the start, since schedulers look at the groups that they find.
        groups.append({"params": [], "param_names": [], "lr": self.lr})
        self._name_new(params, groups[-1])
        if not self._names:
            raise RuntimeError(
                "There are no parameters to optimize yet: take a step through SVI first, or "
                "initialize the guide."
            )
        arguments: dict[str, Any] = dict(self.pt_optim_args)  # type: ignore[arg-type]
        self._is_fused = _can_fuse(self.pt_optim_constructor, arguments, self._names)
        if self._is_fused:
            arguments["fused"] = True
        self._optimizer = self.pt_optim_constructor(groups, **arguments)  # type: ignore
        if self._make_scheduler is not None:
            self._scheduler = self._make_scheduler(self._optimizer)
        if self._waiting_state:
            self._restore()

    def _choose_kernels(self) -> None:
        """Leaves the fused kernels aside where they cannot do a step.

        Those of SGD expect momentum for all parameters of a group or for none; none takes sparse
        gradients.
        """
        if any(p.grad is not None and p.grad.is_sparse for p in self._names):
            self._is_fused = False
        fused = self._is_fused and len(self.optimizer.state) in (0, len(self._names))
        for group in self.optimizer.param_groups:
            group["fused"] = fused

    def _name_new(self, params: Iterable[Tensor], group: dict[str, Any]) -> list[str]:
        """Adds parameters that are not in the optimizer to a group; returns their names."""
        new = [p for p in params if p not in self._names]
        known = dict(self._named_elsewhere()) if new else {}
        store = pyro.get_param_store()
        named = {}
        for i, parameter in enumerate(new):
            name = known.get(parameter) or store.param_name(parameter)
            named[name or f"parameter_{len(self._names) + i}"] = parameter
        # SVI passes a set, whose order changes; a restored optimizer keeps the order it had,
        # since the norm of the gradient is rounded in that order.
        before = [n for names in self._waiting_state.get("names", []) for n in names]
        rank = {name: i for i, name in enumerate(before)}
        for name in sorted(named, key=lambda name: (rank.get(name, len(rank)), name)):
            parameter = named[name]
            self._names[parameter] = name
            group["params"].append(parameter)
            group["param_names"].append(name)
        return list(named)

    def _named_elsewhere(self) -> Iterator[tuple[Tensor, str]]:
        """Parameters that the guide and the model hold as modules, with their names."""
        for kind, root in (("model", getattr(self.guide, "model", None)), ("guide", self.guide)):
            if isinstance(root, torch.nn.Module):
                yield from ((p, f"{kind}.{name}") for name, p in root.named_parameters())

    def _restore(self, only: Iterable[str] | None = None) -> None:
        """Restores the optimizer from the waiting state, or some late parameters' part of it."""
        assert self._optimizer is not None
        saved, new = self._waiting_state, self._optimizer.state_dict()
        current = [group["param_names"] for group in self._optimizer.param_groups]
        if not _fit(current, saved["names"]):
            raise ValueError(
                f"The optimizer's state is for the parameters {saved['names']}, but the "
                f"parameters are {current}."
            )
        position = {name: i for i, name in enumerate(n for names in saved["names"] for n in names)}
        names = [name for group in current for name in group]
        for i, name in enumerate(names):
            if only is None or name in only:
                new["state"].pop(i, None)
                if position.get(name) in saved["optimizer"]["state"]:
                    new["state"][i] = saved["optimizer"]["state"][position[name]]
        if only is None:
            old_groups = saved["optimizer"]["param_groups"]
            for group, old in zip(new["param_groups"], old_groups, strict=True):
                group.update({k: v for k, v in old.items() if k not in _OF_THIS_OPTIMIZER})
            if self._scheduler is not None and "scheduler" in saved:
                self._scheduler.load_state_dict(saved["scheduler"])
        self._optimizer.load_state_dict(new)
        if set(position) <= set(names):
            self._waiting_state = {}


def _can_fuse(optimizer: Any, arguments: dict[str, Any], parameters: Iterable[Tensor]) -> bool:
    """Whether torch has fused kernels for all parameters and nobody chose another way."""
    if optimizer not in _FUSED or arguments.keys() & _IMPLEMENTATIONS:
        return False
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


def _fit(current: list[list[str]], saved: list[list[str]]) -> bool:
    """Whether saved groups are those of the optimizer, but for parameters that come later."""
    if len(current) != len(saved) or current[:-1] != saved[:-1]:
        return False
    now, then = set(current[-1]), set(saved[-1])
    return now <= then or then <= now


def _checked_rate(lr: object) -> float:
    rate = float(lr) if isinstance(lr, Real) and not isinstance(lr, bool) else math.nan
    if 0 < rate < math.inf:
        return rate
    raise ValueError(f"The learning rate must be a positive finite number, got lr={lr!r}.")
