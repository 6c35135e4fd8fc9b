r"""One torch optimizer with muP learning rates, inside ``SVI`` or by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi.mup.parametrization import Family, Rate
from pyro_ibvi.pairing.loss_scale import LossScale, noted_scale
from pyro_ibvi.training.admission import (
    check_clip_norm,
    check_guide,
    check_optim_args,
    check_takes_part,
    warn_of_rate,
)
from pyro_ibvi.training.families import find_family
from pyro_ibvi.training.kernels import can_fuse, choose_kernels, has_choice
from pyro_ibvi.training.muon import MuonWithAdamW
from pyro_ibvi.training.param_groups import (
    Decayed,
    ParameterGroup,
    add_parameter,
    checked_rate,
    collect_rates,
    group_factor,
    make_groups,
    trained_first,
    unique_name,
)
from pyro_ibvi.training.ratios import check_ratios
from pyro_ibvi.training.saved_state import check_complete, check_saved, entries
from pyro_ibvi.training.scheduler_maker import MakeScheduler, check_scheduler, made_scheduler

_OF_THIS_OPTIMIZER = ("params", "param_names", "fused")  # what no state brings


class MuPOptim(PyroOptim):
    r"""A Pyro optimizer that holds one torch optimizer with muP learning rates.

    Parameters that the guide's parametrization does not know (a ``pyro.param`` in the model, a
    likelihood's scale) learn at the global rate, from the step at which they first appear.
    Gradients are released after each step. Where the torch optimizer has fused kernels for the
    parameters and ``optim_args`` do not choose between its implementations, it uses them: for
    large networks they save a good part of the step's memory traffic.

    Rates, weight decay and epsilon are those of :func:`~pyro_ibvi.mup_param_groups`. Parameters
    are known by name: one that is replaced, or trained from some step on, has the rate of its
    name. A schedule that does not multiply the rates of all groups alike is refused.

    Args:
        optimizer: Class of the torch optimizer. ``torch.optim.Muon`` stands for
            :class:`~pyro_ibvi.training.MuonWithAdamW`, with Muon for the means of hidden matrices
            and AdamW for the rest, whose own global rate and other arguments ``optim_args`` may
            name: ``{"lr": 0.02, "adamw": {"lr": 0.01}}``.
        optim_args: Its arguments; ``lr`` is the global learning rate.
        guide: The guide, or a module such as Pyro's ``AutoGuideList`` that holds some; other
            guides than :class:`~pyro_ibvi.AutoMuPNormal` learn at one rate.
        family: See :func:`~pyro_ibvi.mup_param_groups`.
        decayed: See :func:`~pyro_ibvi.mup_param_groups`.
        clip_norm: Largest Euclidean norm of the gradient over all parameters together.
        scheduler: Makes a torch scheduler from the optimizer, for example ``lambda optimizer:
            torch.optim.lr_scheduler.StepLR(optimizer, 30)``, which :meth:`step_scheduler` steps,
            as ``fit`` does after each epoch; or ``"cosine"``, to 0 by the last epoch of ``fit``.

    Raises:
        TypeError: If ``optim_args`` is not a dictionary, a class stands for an object or a model
            for its guide, or the optimizer has no such argument.
        ValueError: If a rate or a norm is not positive, the optimizer's family is not known, or a
            schedule loses the ratios of rates.

    Example:
        >>> from pyro_ibvi import AutoMuPNormal, Normal, RandomModule, SupervisedModel
        >>> from torch import nn
        >>> guide = AutoMuPNormal(SupervisedModel(RandomModule(nn.Linear(2, 1)), Normal(), 10))
        >>> optim = MuPOptim(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, guide)
        >>> [group["lr"] for group in optim.optimizer.param_groups][0]
        0.05
    """

    @named_arguments(elsewhere={"lr": 'it is among the second one, {"lr": 0.05, "momentum": 0.9}'})
    def __init__(
        self,
        optimizer: type[Optimizer],
        optim_args: dict[str, Any],
        guide: Callable[..., Any],
        *,
        family: Family | None = None,
        decayed: Decayed = "weights",
        clip_norm: float | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        self.family = find_family(optimizer, family)
        if self.family == "muon":
            optimizer = MuonWithAdamW
        check_optim_args(optimizer, optim_args)
        check_guide(guide)
        check_clip_norm(clip_norm)
        check_scheduler(scheduler)
        super().__init__(optimizer, optim_args)
        self.lr = checked_rate(optim_args["lr"])
        self._kind_of_optimizer: str = getattr(optimizer, "__name__", repr(optimizer))
        self.guide = guide
        self.decayed = decayed
        self.clip_norm = clip_norm
        self._make_scheduler = scheduler
        self._optimizer: Optimizer | None = None
        self._scheduler: Any = None
        self._names: dict[Tensor, str] = {}
        self._kinds: list[tuple[Rate, float] | None] = []  # of the groups; None is what is unknown
        self._waiting_state: dict[str, Any] = {}
        self._is_fused = False
        self._has_stepped = self._told_of_sum = False

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
        if not self._has_stepped:
            params = list(params)
            self._begin(params)
        self.register(params)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(self._names), self.clip_norm)
        if self._is_fused:
            self._is_fused = choose_kernels(self.optimizer, self._names)
        self.optimizer.step(*args, **kwargs)
        for parameter in self._names:  # zero_grad, without its detours
            parameter.grad = None

    def make_torch(self, params: Iterable[Tensor] = ()) -> tuple[Optimizer, Any]:
        """A new torch optimizer at the same rates, and its scheduler, for a loop that is not SVI.

        Such a loop steps both itself, clips, and may scale gradients, which is why no fused
        kernels are chosen for it. A step is refused if the ratios of the rates are lost.

        Args:
            params: Parameters beside those that the guide knows, as ``SVI`` would pass them.

        Returns:
            The optimizer, of parameters that are there now, and the scheduler or None.
        """
        args: dict[str, Any] = dict(self.pt_optim_args)  # type: ignore[arg-type]
        if has_choice(self.pt_optim_constructor, args):
            args["fused"] = False
        kind: Any = self.pt_optim_constructor
        options: Any = {"decayed": self.decayed, "scheduler": self._make_scheduler}
        new = MuPOptim(kind, args, self.guide, family=self.family, **options)
        new.register(params)
        return new.optimizer, new.scheduler

    def register(self, params: Iterable[Tensor]) -> None:
        """Adds the parameters that the optimizer does not hold yet; takes no step.

        Args:
            params: Parameters, as ``SVI`` would pass them.
        """
        params = list(params)
        if self._optimizer is None:
            self._build(params)
        else:
            new = self._name_new(params)
            if new and self._waiting_state:
                self._restore(new)

    def step_scheduler(self, *args: Any) -> None:
        """Steps the scheduler, if there is one.

        Args:
            *args: Arguments of its ``step``, such as the validation loss for
                ``ReduceLROnPlateau``.

        Raises:
            ValueError: If the schedule loses the ratios of the groups' rates.
        """
        if self.scheduler is not None:
            self.scheduler.step(*args)
            check_ratios(self.optimizer.param_groups, self.scheduler)

    def get_state(self) -> dict[str, Any]:
        """State of the optimizer and the scheduler, for ``set_state`` or ``torch.save``.

        Returns:
            A dictionary of tensors, numbers and names.
        """
        state: dict[str, Any] = {"kind": self._kind_of_optimizer}
        state["optimizer"] = self.optimizer.state_dict()
        state["names"] = [group["param_names"] for group in self.optimizer.param_groups]
        state["shapes"] = {name: list(p.shape) for p, name in self._names.items()}
        state["entries"] = entries(state["optimizer"], state["names"])
        if self._scheduler is not None:
            state["scheduler"] = self._scheduler.state_dict()
        return state

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`get_state` gave, each parameter's part as soon as it exists.

        Args:
            state_dict: The state.

        Raises:
            TypeError: If it is not what :meth:`get_state` gives.
            ValueError: If the state is for other parameters, or is incomplete.
        """
        if not isinstance(state_dict, dict) or not {"optimizer", "names"} <= set(state_dict):
            raise TypeError("set_state needs what MuPOptim.get_state() gave.")
        check_complete(state_dict)
        before, self._waiting_state = self._waiting_state, copy.deepcopy(state_dict)
        if self._optimizer is not None:
            try:
                self._restore()
            except Exception:
                self._waiting_state = before  # which would be refused at each later parameter
                raise

    def load(self, filename: str, map_location: Any = None) -> None:
        """Restores state that :meth:`save` wrote.

        Args:
            filename: Path of the file.
            map_location: As in ``torch.load``.
        """
        self.set_state(torch.load(filename, map_location=map_location, weights_only=True))

    def start_at(self, lr: float) -> None:
        """Sets the global rate of a torch optimizer that is not made yet; later it stays.

        Args:
            lr: The rate.
        """
        if self._optimizer is None:
            self.lr = self.pt_optim_args["lr"] = checked_rate(lr)  # type: ignore[index]

    def warn_of_scale(self, scale: LossScale) -> None:
        """Warns once if the rates are too large for what the loss is a sum of."""
        if not self._told_of_sum:
            args: Any = self.pt_optim_args
            self._told_of_sum = warn_of_rate(args, self.family, scale)

    def _begin(self, params: list[Tensor]) -> None:
        """Checks, at the first step, that it is one of this guide and of a loss for its rates."""
        check_takes_part(self.guide, params, self.family)
        if (scale := noted_scale(self.guide)) is not None:
            self.warn_of_scale(scale)
        self._has_stepped = True

    def _build(self, params: list[Tensor]) -> None:
        """Makes the optimizer from the guide's groups and a group of all other parameters."""
        rates = collect_rates(self.guide, self.family)
        groups = make_groups(rates, self.lr, adamw_lr=self._adamw_lr, decayed=self.decayed)
        self._kinds = list(dict.fromkeys(self._kind(*item) for item in trained_first(rates)))
        # There from the start, since schedulers look at the groups that they find.
        unknown = Rate(family="adam" if self.family == "muon" else self.family)
        factor = group_factor(unknown, torch.empty(0), self._adamw_lr / self.lr)
        groups = [*groups, ParameterGroup(unknown, self.lr, factor, self.decayed)]
        self._kinds.append(None)
        for group in groups:
            self._names.update(zip(group["params"], group["param_names"], strict=True))
        self._name_new(params, groups, rates)
        if not self._names:
            raise RuntimeError(
                "There are no parameters to optimize yet: take a step through SVI first, or "
                "initialize the guide."
            )
        arguments: dict[str, Any] = dict(self.pt_optim_args)  # type: ignore[arg-type]
        self._is_fused = can_fuse(self.pt_optim_constructor, arguments, self._names)
        if self._is_fused:
            arguments["fused"] = True
        self._optimizer = self.pt_optim_constructor(groups, **arguments)  # type: ignore
        # They have the optimizer's defaults now, and torch.compile takes plain dictionaries alone.
        self._optimizer.param_groups = [dict(group) for group in self._optimizer.param_groups]
        if self._make_scheduler is not None:
            self._scheduler = made_scheduler(self._make_scheduler, self._optimizer)
            check_ratios(self._optimizer.param_groups, self._scheduler)
        if self._waiting_state:
            try:
                self._restore()
            except Exception:
                self._optimizer, self._scheduler, self._names = None, None, {}
                raise  # at each try: no step is taken without the state that was given

    @property
    def _adamw_lr(self) -> float:
        return float(self.pt_optim_args.get("adamw", {}).get("lr", self.lr))  # type: ignore[union-attr]

    def _kind(self, parameter: Tensor, named: tuple[str, Rate]) -> tuple[Rate, float]:
        """What the parameters of one group have in common."""
        rate = named[1]
        return rate, group_factor(rate, parameter, self._adamw_lr / self.lr)

    def _name_new(
        self,
        params: Iterable[Tensor],
        groups: list[Any] | None = None,
        rates: dict[Tensor, tuple[str, Rate]] | None = None,
    ) -> list[str]:
        """Adds parameters that are not in the optimizer to their groups; returns their names."""
        params = list(params)
        new = [p for p in params if p not in self._names]
        if not new:
            return []
        groups = self.optimizer.param_groups if groups is None else groups
        rates = collect_rates(self.guide, self.family) if rates is None else rates
        known = dict(self._named_elsewhere())
        store = pyro.get_param_store()
        named = {}
        for i, parameter in enumerate(new):
            name = rates[parameter][0] if parameter in rates else known.get(parameter)
            name = name or store.param_name(parameter) or f"parameter_{len(self._names) + i}"
            named[self._free_name(name, {*params, *rates})] = parameter
        # SVI passes a set, whose order changes; a restored optimizer keeps the order it had,
        # since the norm of the gradient is rounded in that order.
        before = (n for names in self._waiting_state.get("names", []) for n in names)
        rank = {name: i for i, name in enumerate(before)}
        for name in sorted(named, key=lambda name: (rank.get(name, len(rank)), name)):
            parameter = named[name]
            add_parameter(groups[self._index(name, parameter, rates)], name, parameter)
            self._names[parameter] = name
        return list(named)

    def _free_name(self, name: str, live: Container[Tensor]) -> str:
        """A name for a new parameter: its own, also where it replaces one that is gone."""
        old = next((p for p, n in self._names.items() if n == name), None)
        if old is None or old in live:
            return unique_name(name, self._names.values())
        for group in self.optimizer.param_groups:
            if name in group["param_names"]:
                i = group["param_names"].index(name)
                del group["params"][i], group["param_names"][i]
        del self._names[old]
        self.optimizer.state.pop(old, None)
        return name

    def _index(self, name: str, parameter: Tensor, rates: dict[Tensor, tuple[str, Rate]]) -> int:
        """The group of a parameter."""
        kind = self._kind(parameter, rates[parameter]) if parameter in rates else None
        if kind not in self._kinds:
            raise RuntimeError(
                f"The parameter {name!r} has a learning rate that no group of the optimizer has, "
                f"and came after the optimizer was made: make a new MuPOptim."
            )
        return self._kinds.index(kind)

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
        parameters = {name: p for p, name in self._names.items()}
        check_saved(saved, self._kind_of_optimizer, current, parameters)
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
        self._optimizer.load_state_dict(new)
        if only is None and self._scheduler is not None and "scheduler" in saved:
            self._scheduler.load_state_dict(saved["scheduler"])
        if set(position) <= set(names):
            self._waiting_state = {}
