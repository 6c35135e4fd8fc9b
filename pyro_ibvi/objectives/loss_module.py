"""The loss of a pair as one module, for optimizers, wrappers and loops that know torch alone."""

from __future__ import annotations

import sys
from typing import Any, NoReturn, cast

import torch
from pyro.infer.elbo import ELBO, ELBOModule
from torch import Tensor, nn
from torch.distributed import is_available, is_initialized

from pyro_ibvi._util.modes import owner_module
from pyro_ibvi.pairing.belonging import check_pair
from pyro_ibvi.pairing.past import note_learning


class LossModule(ELBOModule):
    r"""A model, its guide and an objective as one ``torch.nn.Module``, whose call is the loss.

    What ``objective(model, guide)`` returns, and the one thing to wrap for several devices. Its
    parameters are those of model and guide, its call draws the weights and returns the loss of a
    batch, so whatever wraps modules wraps it: ``DistributedDataParallel(loss)``,
    ``fully_shard(loss)``, ``accelerator.prepare(loss, ...)``. Model and guide by themselves are
    not wrapped: their gradients come from this call, not from theirs.

    With :math:`K` processes, each of which has :math:`B` of the data of a step, averaged gradients
    are those of the objective on the batch of :math:`KB`: each process scales its part to the
    whole data set (``num_data`` is the size of the whole, not of a process's share), or divides by
    its size (``reduction="mean"``). That needs equal parts, as ``DistributedSampler`` gives them.
    Draws should differ between processes, see :func:`~pyro_ibvi.training.seed_process`.

    Args:
        model: The model: a module, a method of one, or one of these behind Pyro's handlers.
        guide: Its guide, likewise.
        elbo: The objective.

    Attributes:
        model: The model.
        guide: The guide.
        elbo: The objective.

    Raises:
        TypeError: If model or guide is wrapped for several devices, the guide is none, or the
            objective has no differentiable loss (Pyro's ``TraceGraph_ELBO``).
        ValueError: If the guide was made for another model.

    Example:
        >>> import torch, pyro_ibvi as ibvi
        >>> net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
        >>> model = ibvi.SupervisedModel(ibvi.RandomModule(net), ibvi.Normal(0.1), num_data=50)
        >>> guide = ibvi.AutoMuPNormal(model)
        >>> loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")(model, guide)
        >>> groups = ibvi.mup_param_groups(guide, lr=0.01, optimizer=torch.optim.SGD)
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
        >>> loss(torch.randn(10, 2), torch.randn(10, 1)).backward()
        >>> optimizer.step()
    """

    def __init__(self, model: nn.Module, guide: nn.Module, elbo: ELBO) -> None:
        check_pair(model, guide)
        if not hasattr(elbo, "differentiable_loss"):
            raise TypeError(
                f"{type(elbo).__name__} adds gradients to parameters and has no loss that torch "
                f"could differentiate: train by SVI(model, guide, optim, loss), or use "
                f"TraceExpectedLogLikelihood."
            )
        super().__init__(model, guide, elbo)
        for kind, part in {"model": model, "guide": guide}.items():
            owner = owner_module(part)
            if owner is not None and owner is not part:  # behind a handler, or of a method
                self.add_module(f"{kind}_owner", owner)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch.

        Args:
            *args: The batch, as model and guide take it.
            **kwargs: Its parts by name.

        Returns:
            The loss, of shape ``()``: in nats per data set, or per datum for
            ``reduction="mean"``.
        """
        run = self._loss
        if "torch._dynamo" in sys.modules:  # Pyro's handlers are beyond it: it would take minutes
            run = torch.compiler.disable(run)
        return run(*args, **kwargs)

    def _loss(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = cast(Tensor, super().forward(*args, **kwargs))
        if loss.requires_grad:
            note_learning(self.model, self.guide)
        touch = getattr(self.guide, "touch", None)
        if touch is not None and is_available() and is_initialized():
            loss = loss + touch()
        return loss

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise TypeError(
            "DataParallel runs copies of a module in threads, and Pyro's handlers are the same "
            "for all threads: use DistributedDataParallel(objective(model, guide)), with a "
            "process for each device."
        )
