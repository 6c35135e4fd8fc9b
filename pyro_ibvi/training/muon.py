r"""Muon for hidden matrices and AdamW for everything else, as one optimizer with one state.

Muon replaces the gradient of a matrix by the nearest orthogonal one, so that a step has the same
size in every direction. It is meant for hidden matrices alone: what reads data, makes outputs or
is a vector learns by AdamW, and so do covariance factors, whose gradients of single draws are of
rank one (see :func:`~pyro_ibvi.theory.spread_floor` for what stability allows them).

References:
    Jordan, Muon: An optimizer for hidden layers in neural networks, 2024.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer


def check_muon() -> None:
    """Checks that the installed torch has Muon.

    Raises:
        RuntimeError: If it has not.
    """
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(
            f"The installed torch {torch.__version__} has no Muon: install torch 2.9 or later, or "
            f"train by torch.optim.AdamW."
        )


class MuonWithAdamW(Optimizer):
    """``torch.optim.Muon`` and ``torch.optim.AdamW`` over groups of one optimizer.

    Args:
        params: Parameter groups; those with ``"family": "muon"`` hold matrices that learn by
            Muon, the others learn by AdamW. :func:`~pyro_ibvi.mup_param_groups` makes them.
        lr: Learning rate of groups that do not have their own.
        weight_decay: Decay of matrices, decoupled, for both.
        momentum: Muon's.
        nesterov: Muon's.
        ns_coefficients: Muon's.
        ns_steps: Muon's.
        eps: Muon's.
        adamw: Arguments of AdamW: ``betas`` and ``eps``. The key ``lr`` is for
            :class:`~pyro_ibvi.MuPOptim`: the rate of what learns by AdamW, if not ``lr``.

    Raises:
        RuntimeError: If torch has no Muon; it came with torch 2.9.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        ns_steps: int = 5,
        eps: float = 1e-7,
        adamw: Mapping[str, Any] | None = None,
    ) -> None:
        check_muon()
        self._muon_defaults = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "ns_steps": ns_steps,
            "eps": eps,
            "adjust_lr_fn": None,
        }
        rest = {name: value for name, value in (adamw or {}).items() if name != "lr"}
        dummy = AdamW([torch.zeros(())], lr=lr, weight_decay=weight_decay, **rest)
        self._adamw_defaults = {
            name: value
            for name, value in dummy.defaults.items()
            if name not in ("lr", "weight_decay")
        }
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "family": "adam"})

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle has: torch's own part, and the defaults of both."""
        own = {name: vars(self)[name] for name in ("_muon_defaults", "_adamw_defaults")}
        return {**super().__getstate__(), **own}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, with the defaults of the optimizer that it is for.

        Args:
            param_group: The group.

        Raises:
            ValueError: If a group for Muon holds something other than matrices.
        """
        is_muon = param_group.get("family") == "muon"
        params = param_group["params"]
        param_group["params"] = [params] if isinstance(params, Tensor) else list(params)
        tensors = (p[-1] if isinstance(p, tuple) else p for p in param_group["params"])  # or named
        shapes = [tuple(p.shape) for p in tensors if p.dim() != 2]
        if is_muon and shapes:
            raise ValueError(f"Muon is for matrices, got parameters of the shapes {shapes}.")
        for name, value in (self._muon_defaults if is_muon else self._adamw_defaults).items():
            param_group.setdefault(name, value)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step of both.

        Args:
            closure: Evaluates the loss anew.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts():
            part.step()
        return loss

    def _parts(self) -> Iterable[Optimizer]:
        """The two optimizers over this one's own groups and state."""
        for kind, is_muon in ((torch.optim.Muon, True), (AdamW, False)):
            groups = [g for g in self.param_groups if (g["family"] == "muon") == is_muon]
            if groups:
                part = kind.__new__(kind)
                part.defaults, part.state, part.param_groups = groups[0], self.state, groups
                part._optimizer_step_pre_hooks = OrderedDict()
                part._optimizer_step_post_hooks = OrderedDict()
                part._warned_capturable_if_run_uncaptured = True
                yield part
