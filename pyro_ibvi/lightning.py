"""A network with random weights as a Lightning module: many devices, half precision, callbacks.

What Lightning has, Lightning does: ``Trainer(devices=4, strategy="ddp", precision="bf16-mixed",
accumulate_grad_batches=2)``, checkpoints, early stopping, loggers. This module says what is
trained, at which rates, and what is measured. It needs the extra ``lightning``, and nothing else
of the package knows it.
"""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from pyro.infer import ELBO, SVI
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.inputs import as_call
from pyro_ibvi._util.network_copies import is_compiled
from pyro_ibvi.front import VariationalNetwork
from pyro_ibvi.front.batches import settled_num_data
from pyro_ibvi.front.parts import warn_of_temperature
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.pairing.counting import counting
from pyro_ibvi.prediction import Prediction, predict, predict_batches
from pyro_ibvi.prediction.metrics import NUM_BINS
from pyro_ibvi.prediction.scored import Scored
from pyro_ibvi.prediction.scores import join_parts, of_all_processes, score_batches, summarize
from pyro_ibvi.training import MuPOptim, seed_process
from pyro_ibvi.training.checks import (
    check_no_data,
    check_schedule,
    check_svi,
    warn_of_rows,
    warn_of_sum,
)
from pyro_ibvi.training.schedules import Interval, begin_epoch
from pyro_ibvi.training.step import size_of

__all__ = ["IBVIModule"]

_KEY = "pyro_ibvi"


class IBVIModule(lightning.LightningModule):
    """Implicit-bias variational inference for Lightning's ``Trainer``.

    It logs ``train_loss``, and for validation and test data what predictions by several draws of
    the weights are worth, as ``val_nll``, ``val_accuracy``, ``val_ece`` of labels or ``val_rmse``
    of numbers (see :func:`~pyro_ibvi.score`), over the data of all processes together, where
    Lightning's sampler repeats some so that each has as many. Where there are several loaders, the
    second one's are ``val_nll_1`` and so on. Validation draws are the same at each call and do not
    touch the random numbers of training.

    With several processes each draws weights of its own, also after ``seed_everything``, and one
    step is that on all their batches together; see :class:`~pyro_ibvi.objectives.LossModule`.

    Args:
        net: The network; or a :class:`~pyro_ibvi.VariationalNetwork`, which is trained by it and
            then predicts and saves; or a ``pyro.infer.SVI`` of a model, its guide, a
            :class:`~pyro_ibvi.MuPOptim` and an objective. A model that is no
            :class:`~pyro_ibvi.SupervisedModel` is trained, and neither predicts nor is scored.
        likelihood: The likelihood, for a network.
        num_data: Number of training data in all processes, where the loader cannot tell.
        schedule_every: When the scheduler takes a step: after each ``"epoch"`` or ``"step"``.
        monitor: What a ``ReduceLROnPlateau`` looks at.
        num_samples: Number of draws of the weights in validation and prediction.
        seed: Seed of these draws.
        **choices: For a network, as for :class:`~pyro_ibvi.VariationalNetwork`: ``optimizer``,
            ``lr``, ``scheduler``, ``covariance`` and the others. ``clip_norm`` is used if the
            trainer has no ``gradient_clip_val``.

    Attributes:
        bnn: The network with all its parts, or None if it was made of an ``SVI``.
        loss: The loss of model and guide as a module.

    Raises:
        TypeError: If a part is of the wrong kind.
        ValueError: If parts belong to different pairs, or choices are given for a network that
            has made them.

    Example:
        >>> import lightning, pyro_ibvi as ibvi
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x = torch.linspace(-1, 1, 64).unsqueeze(-1)
        >>> net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        >>> module = IBVIModule(net, ibvi.Normal(0.1))
        >>> trainer = lightning.Trainer(
        ...     max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(module, DataLoader(TensorDataset(x, x**2), batch_size=16))
        >>> module(x).mean.shape
        torch.Size([64, 1])
    """

    def __init__(
        self,
        net: nn.Module | VariationalNetwork | SVI,
        likelihood: Likelihood | None = None,
        *,
        num_data: int | None = None,
        schedule_every: Interval = "epoch",
        monitor: str = "val_nll",
        num_samples: int = 16,
        seed: int = 0,
        **choices: Any,
    ) -> None:
        super().__init__()
        self.bnn = _as_network(net, likelihood, choices)
        svi: Any = net if self.bnn is None else self.bnn.svi
        check_svi(svi)
        warn_of_sum(svi)
        objective = getattr(svi.loss, "__self__", svi.loss)
        if not isinstance(objective, ELBO) or not isinstance(svi.optim, MuPOptim):
            raise TypeError(
                f"IBVIModule needs an SVI(model, guide, MuPOptim(...), "
                f"TraceExpectedLogLikelihood(reduction='mean')), got the optimizer "
                f"{type(svi.optim).__name__} and the loss {type(objective).__name__}."
            )
        check_schedule(svi.optim, schedule_every)
        for name, number in (("num_data", num_data), ("num_samples", num_samples)):
            if number is not None:
                check_positive_int(name, number)
        if num_data is not None and not hasattr(svi.model, "num_data"):
            raise TypeError(
                f"num_data={num_data} is for a SupervisedModel, and {type(svi.model).__name__} "
                f"counts its data itself: leave it out, and write pyro.plate('data', {num_data}, "
                f"subsample=x) in the model."
            )
        self.loss = objective(svi.model, svi.guide)
        self._optim = svi.optim
        self._num_data = num_data
        self._schedule_every = schedule_every
        self._monitor = monitor
        self._num_samples = num_samples
        self._seed = seed
        self._scored: dict[tuple[int, str], list[Scored]] = {}

    @property
    def model(self) -> Any:
        """The Pyro model."""
        return self.loss.model

    @property
    def guide(self) -> Any:
        """The guide, q."""
        return self.loss.guide

    def forward(self, x: Any) -> Prediction:
        """Predicts.

        Args:
            x: Inputs.

        Returns:
            The prediction, by the same draws at each call.
        """
        return predict(self._supervised, self.guide, x, **self._draws)

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """The loss of a batch.

        Args:
            batch: The model's arguments, as a tuple, or as a mapping of their names.
            batch_idx: Its number in the epoch.

        Returns:
            The loss.

        Raises:
            FloatingPointError: If it is not finite.
        """
        args, kwargs = as_call(batch)
        with counting() as counted:
            loss: Tensor = self.loss(*args, **kwargs)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The loss of batch {batch_idx} in epoch {self.current_epoch} is {value}: try a "
                f"smaller lr, and look whether inputs and targets are standardized."
            )
        size = size_of(counted, self.model, args, kwargs)
        options: dict[str, Any] = {"batch_size": size, "sync_dist": True}
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, **options)
        self.log("train_loss_step", value, on_step=True, on_epoch=False, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Predicts a batch and keeps what its scores need.

        Args:
            batch: The batch, with targets.
            batch_idx: Its number.
            dataloader_idx: The number of its loader, where there are several.
        """
        self._score(batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Predicts a batch and keeps what its scores need.

        Args:
            batch: The batch, with targets.
            batch_idx: Its number.
            dataloader_idx: The number of its loader, where there are several.
        """
        self._score(batch, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Prediction:
        """Predicts a batch.

        Args:
            batch: The inputs; targets are left out.
            batch_idx: Its number.
            dataloader_idx: The number of its loader.

        Returns:
            The prediction.
        """
        args, kwargs = as_call(batch)
        return self.forward(self._supervised.read(*args, **kwargs)[0])

    def setup(self, stage: str) -> None:
        """Refuses a module that was compiled as a whole.

        Args:
            stage: What is to be done.

        Raises:
            TypeError: If it was.
        """
        if self._compiler_ctx is not None or is_compiled(self):
            raise TypeError(
                "The IBVIModule is compiled as a whole, which takes minutes and gains nothing: "
                "drawing weights is not what torch.compile is for. Compile the network before it "
                "is wrapped, IBVIModule(VariationalNetwork(torch.compile(net), likelihood))."
            )

    def on_train_start(self) -> None:
        """Counts the data, and gives each process draws of its own.

        Raises:
            TypeError: If the trainer was given data, and no loader.
            ValueError: If the number of data cannot be found.
        """
        warn_of_temperature(self._temperature)
        is_counted = type(self).configure_optimizers is IBVIModule.configure_optimizers
        if self.bnn is None or not is_counted:  # whose first data are looked at once
            self._count_data()
        if self.global_rank > 0:
            seed_process((torch.initial_seed() + self.global_step) % 2**32, self.global_rank)

    def on_train_epoch_start(self) -> None:
        """Tells a schedule that ends with the trainer's epochs where it is."""
        trainer, size = self.trainer, self.trainer.num_training_batches
        ends = trainer.max_epochs, size, trainer.accumulate_grad_batches, trainer.max_steps
        interval = self._schedule_every
        begin_epoch(self.lr_schedulers(), self.current_epoch, *ends, interval=interval)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Warns, before the first step, where the loader makes several rows of a datum.

        Args:
            batch: The batch.
            batch_idx: Its number in the epoch.
        """
        if self.global_step == batch_idx == 0:
            warn_of_rows(self.model, self.trainer.train_dataloader, *as_call(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the scores of the validation data."""
        self._log_scores("val_")

    def on_test_epoch_end(self) -> None:
        """Logs the scores of the test data."""
        self._log_scores("test_")

    def configure_optimizers(self) -> Any:
        """The torch optimizer at the rates of the guide's parametrization, and its schedule.

        Returns:
            The optimizer, or a dictionary of both.
        """
        if self.bnn is not None and self._trainer is not None:  # the rate goes with the data
            self.trainer.fit_loop.setup_data()
            self._count_data()
        trained = [p for p in self.loss.parameters() if p.requires_grad]
        optimizer, scheduler = self._optim.make_torch(trained)
        if scheduler is None:
            return optimizer
        schedule = {"scheduler": scheduler, "interval": self._schedule_every}
        return {"optimizer": optimizer, "lr_scheduler": {**schedule, "monitor": self._monitor}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as the trainer says, or else as the network was told.

        Args:
            optimizer: The optimizer.
            gradient_clip_val: The trainer's bound.
            gradient_clip_algorithm: The trainer's way.
        """
        if gradient_clip_val is None:
            gradient_clip_val, gradient_clip_algorithm = self._optim.clip_norm, "norm"
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what prediction needs beside tensors.

        Args:
            checkpoint: The checkpoint.
        """
        num_data = getattr(self.model, "num_data", None)
        checkpoint[_KEY] = {"num_data": num_data, "temperature": self._temperature}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes that back.

        Args:
            checkpoint: The checkpoint.
        """
        saved = checkpoint.get(_KEY, {})
        if hasattr(self.model, "num_data"):
            self.model.num_data = saved.get("num_data", self.model.num_data)
        if self.bnn is not None:
            self.bnn.temperature = saved.get("temperature", self.bnn.temperature)

    def _count_data(self) -> None:
        trainer, count = self.trainer, getattr(self.model, "num_data_in", None)
        loader: Any = trainer.train_dataloader
        check_no_data("train_dataloaders", loader)
        if self.bnn is not None:
            num_batches = trainer.accumulate_grad_batches * trainer.world_size
            num_data = settled_num_data(self._num_data, loader, count)
            self.bnn.set_num_data(num_data, loader, num_batches)
        elif self._num_data is not None or getattr(self.model, "num_data", 0) is None:
            self.model.num_data = settled_num_data(self._num_data, loader, count)

    @property
    def _temperature(self) -> float:
        return 1.0 if self.bnn is None else self.bnn.temperature

    @property
    def _draws(self) -> dict[str, Any]:
        """How the network predicts, wherever it does."""
        draws = {"num_samples": self._num_samples, "generator": self._seed}
        return {**draws, "temperature": self._temperature}

    @property
    def _supervised(self) -> SupervisedModel:
        """The model, if it is one that predicts."""
        if not isinstance(self.model, SupervisedModel):
            raise TypeError(
                f"IBVIModule predicts and scores by a SupervisedModel, got "
                f"{type(self.model).__name__}: train it without validation data, and predict by "
                f"pyro.infer.Predictive(model, guide=guide, num_samples={self._num_samples})."
            )
        return self.model

    def _score(self, batch: Any, loader: int) -> None:
        predictions = predict_batches(self._supervised, self.guide, [batch], **self._draws)
        for task, scored in score_batches(predictions).items():
            self._scored.setdefault((loader, task), []).append(scored)

    def _log_scores(self, prefix: str) -> None:
        parts, self._scored = of_all_processes(self._scored), {}
        for loader in sorted({loader for loader, _ in parts}):
            own = {task: found for (number, task), found in parts.items() if number == loader}
            suffix = f"_{loader}" * (loader > 0)
            found = summarize(join_parts(own), NUM_BINS)
            scores = {f"{prefix}{name}{suffix}": value for name, value in found.items()}
            self.log_dict(scores, prog_bar=True, sync_dist=True)  # alike in all processes


def _as_network(
    net: Any, likelihood: Likelihood | None, choices: dict[str, Any]
) -> VariationalNetwork | None:
    """The network with all its parts, or None for an ``SVI``."""
    if not isinstance(net, (VariationalNetwork, SVI)):
        if likelihood is None:
            raise TypeError(
                f"IBVIModule needs a network and its likelihood, a VariationalNetwork, or a "
                f"pyro.infer.SVI, got {type(net).__name__} alone: write "
                f"IBVIModule(net, Categorical()), or another likelihood."
            )
        return VariationalNetwork(net, likelihood, **choices)
    given = [*(["likelihood"] if likelihood is not None else []), *choices]
    if given:
        raise ValueError(
            f"The {type(net).__name__} has made its choices: give {', '.join(given)} when you "
            f"make it."
        )
    return net if isinstance(net, VariationalNetwork) else None
