r"""One torch optimizer with muP learning rates, inside ``SVI`` or by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from pyro_ibvi.guides import AutoMuPNormal
from pyro_ibvi.parametrization import Family

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


def mup_param_groups(
    guide: AutoMuPNormal,
    lr: float,
    *,
    optimizer: type[Optimizer],
    family: Family | None = None,
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    r"""Parameter groups with the learning rate that each parameter's parametrization gives.

    Every parameter of the guide and of the networks in its model is in exactly one group. With
    decoupled weight decay (AdamW) the product of rate and decay is kept, so a group's decay is
    ``weight_decay`` divided by its rate's factor.

    Args:
        guide: An initialized guide.
        lr: Global learning rate, multiplied by each parameter's factor.
        optimizer: Class of the optimizer that the groups are for.
        family: How the optimizer scales its updates: ``"sgd"`` in proportion to the gradient,
            ``"adam"`` regardless of its size. Found from the class if it is one of torch's.
        weight_decay: Weight decay.

    Returns:
        Groups with the keys ``params``, ``param_names``, ``lr`` and, if given, ``weight_decay``.

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
    if not isinstance(guide, AutoMuPNormal):
        raise TypeError(
            f"mup_param_groups needs an AutoMuPNormal guide, got {type(guide).__name__}; other "
            f"guides have one rate for all parameters."
        )
    groups: dict[float, dict[str, Any]] = {}
    seen: set[int] = set()
    for name, parameter, factor in guide.named_rates(family):
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        group = groups.setdefault(factor, {"params": [], "param_names": [], "lr": lr * factor})
        group["params"].append(parameter)
        group["param_names"].append(name)
        if weight_decay is not None:
            decoupled = issubclass(optimizer, torch.optim.AdamW)
            group["weight_decay"] = weight_decay / factor if decoupled else weight_decay
    return list(groups.values())


def find_family(optimizer: type[Optimizer], family: Family | None = None) -> Family:
    """How an optimizer scales its updates with the gradient.

    Args:
        optimizer: Class of the optimizer.
        family: The answer, for an optimizer that is not one of torch's.

    Returns:
        ``"sgd"`` or ``"adam"``.

    Raises:
        ValueError: If it cannot be told.
    """
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
    Gradients are released after each step.

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
        TypeError: If ``optim_args`` is not a dictionary.
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
        self._waiting_state: dict[str, Any] | None = None

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
        params = list(params)
        if self._optimizer is None:
            self._build(params)
        else:
            self._add([p for p in params if p not in self._names])
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(self._names), self.clip_norm)
        self.optimizer.step(*args, **kwargs)
        self.optimizer.zero_grad(set_to_none=True)

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
        """Restores what :meth:`get_state` gave, now or as soon as the parameters exist.

        Args:
            state_dict: The state.

        Raises:
            ValueError: If the state is for other parameters.
        """
        self._waiting_state = state_dict
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
        """Makes the optimizer from the guide's groups and the other parameters."""
        groups: list[dict[str, Any]] = []
        if isinstance(self.guide, AutoMuPNormal):
            groups = mup_param_groups(
                self.guide,
                self.lr,
                optimizer=self.pt_optim_constructor,  # type: ignore[arg-type]
                family=self.family,
                weight_decay=self.pt_optim_args.get("weight_decay"),  # type: ignore[union-attr]
            )
        for group in groups:
            self._names.update(zip(group["params"], group["param_names"], strict=True))
        new = [p for p in params if p not in self._names]
        if new or not groups:
            groups.append(self._group(new))
        if not self._names:
            raise RuntimeError(
                "There are no parameters to optimize yet: take a step through SVI first, or "
                "initialize the guide."
            )
        self._optimizer = self.pt_optim_constructor(groups, **self.pt_optim_args)  # type: ignore
        if self._make_scheduler is not None:
            self._scheduler = self._make_scheduler(self._optimizer)
        if self._waiting_state is not None:
            self._restore()

    def _add(self, new: list[Tensor]) -> None:
        if new:
            self.optimizer.add_param_group(self._group(new))

    def _group(self, params: list[Tensor]) -> dict[str, Any]:
        """A group at the global rate for parameters that no parametrization rules."""
        store = pyro.get_param_store()
        named: dict[str, Tensor] = {}
        for parameter in params:
            name = store.param_name(parameter) or f"parameter_{len(self._names) + len(named)}"
            named[name] = parameter
        ordered = dict(sorted(named.items()))  # SVI passes a set, whose order changes
        self._names.update({parameter: name for name, parameter in ordered.items()})
        return {
            "params": list(ordered.values()),
            "param_names": list(ordered),
            "lr": self.lr,
        }

    def _restore(self) -> None:
        assert self._optimizer is not None
        assert self._waiting_state is not None
        names = [group["param_names"] for group in self._optimizer.param_groups]
        state = self._waiting_state
        if state["names"] != names:
            raise ValueError(
                f"The optimizer's state is for the parameters {state['names']}, but the "
                f"parameters are {names}."
            )
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None and "scheduler" in state:
            self._scheduler.load_state_dict(state["scheduler"])
        self._waiting_state = None


def _checked_rate(lr: object) -> float:
    if isinstance(lr, (int, float)) and 0 < lr < math.inf:
        return float(lr)
    raise ValueError(f"The learning rate must be a positive finite number, got lr={lr!r}.")
