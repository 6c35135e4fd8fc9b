"""The front door: network, model, guide, optimizer, objective and SVI in one object."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NoReturn

import torch
from pyro.infer import SVI
from torch import nn
from torch.optim import Optimizer

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.devices import checked_device
from pyro_ibvi.front.batches import as_batches, checked_batch_size, settled_num_data
from pyro_ibvi.front.choices import describe_choices, describe_network, describe_training
from pyro_ibvi.front.copying import state_to_copy, take_copied
from pyro_ibvi.front.elsewhere import OF_FIT, OF_NETWORK, check_set, what_is_meant
from pyro_ibvi.front.files import state_of, write_network
from pyro_ibvi.front.first_batch import FirstBatch
from pyro_ibvi.front.guessing import warn_of_guessing
from pyro_ibvi.front.parts import as_objective, check_parts, optimizer_args, warn_of_temperature
from pyro_ibvi.front.predictor import Predictor
from pyro_ibvi.front.rate import share_of_rate
from pyro_ibvi.front.recipe import as_random, default_optimizer, scheduler_for
from pyro_ibvi.front.scoring import NUM_VALID_SAMPLES, validation_scores
from pyro_ibvi.front.settling import Unsettled
from pyro_ibvi.models import SupervisedModel
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.mup.parametrization import Family, Parametrization
from pyro_ibvi.mup.roles import RoleOverrides
from pyro_ibvi.training import History, MuPOptim, fit
from pyro_ibvi.training.checks import check_no_data
from pyro_ibvi.training.scheduler_maker import MakeScheduler


class VariationalNetwork(Predictor):
    """A network with a distribution over its weights: trained, asked, saved as one thing.

    Its parts agree with one another: rates that follow the layers' widths, and an objective per
    datum, which such rates expect. They are attributes for those who go on in Pyro.

    What is random follows the targets. For class labels (``Categorical``, ``Bernoulli``) the
    weights of linear layers, and of convolutions behind the first, start at the network's and have
    noise relative to them, ``Multiplicative(0.35, rate=0.0)``, less for convolutions, for few
    features and for tables of many rows, with a draw for each datum in a step; linear layers
    behind convolutions are a mixture of four where that is cheap. SGD's rates are then those of
    ordinary training of this network; to tune them on a smaller one pass
    ``parametrization=MaximalUpdate(base=small)``. Numbers of images, series and tokens have the
    same with less noise, by how many there are, and Adam. For those of tables, where there is no
    such layer, and where ``stochastic`` or ``init_scale`` is given, it is the paper's recipe: a
    low-rank factor in the first and the last layer, from the prior on. A ``covariance`` says which
    of the two. See *Choose a guide and its covariance*.

    Args:
        net: The network, as it is; or a :class:`~pyro_ibvi.RandomModule` for choices beyond
            those here (priors, roles).
        likelihood: The distribution of a target given the network's output.
        output: Which part of what the network returns the likelihood takes; this and the next two
            as in :class:`~pyro_ibvi.SupervisedModel`.
        inputs: Which parts of a batch the network gets.
        target: Which part of a batch is the target.
        stochastic: Which parameters are random, see :class:`~pyro_ibvi.RandomModule`; as above.
        parametrization: How scales and rates follow the widths, see there.
        roles: Roles of parameters that no known layer describes, see there.
        example_input: A batch of inputs, for networks that cannot be read without, see there.
        covariance: Structure of the weights' covariance, see :class:`~pyro_ibvi.AutoMuPNormal`.
        init_loc_fn: Start of the means; :func:`~pyro_ibvi.init_to_network` for a network that is
            trained already.
        init_scale: Start of the standard deviations, in units of the prior's.
        num_components: Number of Gaussians of which the guide is a mixture, see
            :class:`~pyro_ibvi.AutoMuPMixture`; 1 for a guide that is one Gaussian.
        optimizer: Class of the torch optimizer; by default SGD for class labels, and Adam for
            transformers and other targets, where SGD's largest rate goes with the noise.
        lr: Global learning rate, for which SGD, Adam, AdamW and Muon have a default; SGD's goes
            with the data in a step and the labels of a datum, Adam's with the number of layers.
        optim_args: Further arguments of the optimizer.
        family: How the steps of an optimizer that is not torch's go with the gradient, see
            :func:`~pyro_ibvi.mup_param_groups`.
        scheduler: Makes a torch scheduler from the optimizer, see :class:`~pyro_ibvi.MuPOptim`;
            or ``"constant"``. By default ``"cosine"`` for numbers, from 1,000 steps of fit on.
        clip_norm: Largest Euclidean norm of the gradient.
        draws: Draws in a step, see :class:`~pyro_ibvi.TraceExpectedLogLikelihood`; by default 2
            for numbers of tables where :meth:`fit` sees that data run alone, else as above.
        loss: The objective; by default the expected log-likelihood per datum.

    Attributes:
        net: The random network.
        likelihood: The likelihood.
        model: The Pyro model.
        guide: The guide, q.
        optim: The optimizer.
        loss: The objective.
        svi: Pyro's stochastic variational inference over these.
        history: What training measured.
        temperature: Temperature of the likelihood in predictions, 1 as trained.

    Raises:
        TypeError: If a part is of the wrong kind.
        ValueError: If the optimizer has no default rate and none is given.

    Example:
        >>> import torch, pyro_ibvi as ibvi
        >>> x = torch.linspace(-1, 1, 64).unsqueeze(-1)
        >>> net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        >>> bnn = ibvi.VariationalNetwork(net, ibvi.Normal(0.1))
        >>> bnn.fit(x, x**2, num_epochs=3, progress=False).num_epochs
        3
        >>> bnn.predict(x, seed=0).mean.shape
        torch.Size([64, 1])
    """

    @named_arguments(elsewhere=OF_NETWORK)
    def __init__(
        self,
        net: nn.Module,
        likelihood: Likelihood,
        *,
        output: Any = None,
        inputs: Any = None,
        target: Any = None,
        stochastic: Any = None,
        parametrization: Parametrization | None = None,
        roles: RoleOverrides | None = None,
        example_input: Any = None,
        covariance: Any = None,
        init_loc_fn: Callable[..., Any] | None = None,
        init_scale: float | None = None,
        num_components: int | None = None,
        optimizer: type[Optimizer] | None = None,
        lr: float | None = None,
        optim_args: Mapping[str, Any] | None = None,
        family: Family | None = None,
        scheduler: MakeScheduler | Literal["constant"] | None = None,
        clip_norm: float | None = None,
        draws: int | Literal["batch", "datum"] | None = None,
        loss: Any = None,
    ) -> None:
        self.net, recipe = as_random(
            net,
            likelihood,
            stochastic=stochastic,
            parametrization=parametrization,
            roles=roles,
            example_input=example_input,
            covariance=covariance,
            is_scaled=init_scale is not None,
            optimizer=optimizer,
        )
        parts = {"output": output, "inputs": inputs, "target": target}
        self.model = SupervisedModel(self.net, likelihood, **parts)
        self.likelihood = self.model.likelihood
        self.guide = recipe.make_guide(self.model, num_components, init_loc_fn, init_scale)
        optimizer = default_optimizer(self.net, likelihood) if optimizer is None else optimizer
        args = optimizer_args(optimizer, lr, optim_args, share_of_rate(self.model, optimizer))
        own: Any = {"scheduler": scheduler_for(likelihood, scheduler), "clip_norm": clip_norm}
        self.optim = MuPOptim(optimizer, args, self.guide, family=family, **own)
        self.loss = as_objective(loss, draws, recipe.draws_for(self.model))
        self.svi = SVI(self.model, self.guide, self.optim, self.loss)
        self.history = History()
        self.temperature = 1.0
        is_rated = lr is not None or "lr" in (optim_args or {})
        is_drawn = loss is not None or draws is not None
        self._unsettled = Unsettled(recipe.follows_data, draws=not is_drawn, rate=not is_rated)

    @named_arguments(passed_to=fit, elsewhere=OF_FIT)
    def fit(
        self,
        data: Any,
        y: Any = None,
        *,
        valid_loader: Any = None,
        num_epochs: int = 50,
        batch_size: int | None = None,
        num_data: int | None = None,
        **options: Any,
    ) -> History:
        """Trains; called again, it goes on.

        Args:
            data: A ``DataLoader`` or a list of batches ``(x, y)``, a data set or a list of its
                rows, or the inputs: tensors, NumPy arrays or a data frame.
            y: The targets, if ``data`` are inputs.
            valid_loader: Validation data, in any of these forms; inputs with targets as a pair.
            num_epochs: Number of epochs.
            batch_size: Number of data in a step, where they come without a loader; by default 128.
            num_data: Number of training data, where the loader cannot tell.
            **options: As for :func:`~pyro_ibvi.fit`: ``patience``, ``callback``, ``checkpoint``,
                ``device``, ``progress`` and others. By default ``metrics`` are scores by 16 draws:
                negative log density, accuracy and calibration error of labels, RMSE of numbers.

        Returns:
            The history, of all calls.

        Raises:
            ValueError: If the number of data cannot be found, or the data do not fit.
        """
        check_parts(self)
        warn_of_temperature(self.temperature)
        size = checked_batch_size(batch_size, data)
        as_own = partial(as_batches, model=self.model, batch_size=size)
        batches = as_own(data, y, shuffle=True)
        if valid_loader is not None:
            valid_loader = as_own(valid_loader, shuffle=False)
            scores = partial(validation_scores, **self._draws(NUM_VALID_SAMPLES, None))
            options.setdefault("metrics", scores)
        num_data = settled_num_data(num_data, batches, self.model.num_data_in)
        self.set_num_data(num_data, batches, options.get("accumulate", 1))
        if options.get("checkpoint") is None:
            options.setdefault("history", self.history)
        self.history = fit(self.svi, batches, num_epochs, valid_loader=valid_loader, **options)
        warn_of_guessing(self)
        return self.history

    def set_num_data(self, num_data: int, batches: Any = None, accumulate: int = 1) -> None:
        """Says how many data there are, for steps of one's own; :meth:`fit` counts them.

        Args:
            num_data: Number of training data, with which the default's noise on tables goes.
            batches: A loader of them, which shows points of a datum, and if data run alone.
            accumulate: Number of batches in a step, with whose data SGD's default rate goes.

        Raises:
            ValueError: If it is no positive whole number.
            TypeError: If data stand in the place of their batches.
        """
        check_positive_int("num_data", num_data)
        check_positive_int("accumulate", accumulate)
        check_no_data("batches", batches)
        self.model.num_data = int(num_data)
        self._unsettled.settle(self, FirstBatch(self.model, batches, accumulate))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that prediction needs to one file, for :func:`~pyro_ibvi.load`.

        The file is in the safetensors format and runs no code when it is read. It takes the place
        of an earlier one at once.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
            ValueError: If a part was exchanged, and is not that of ``svi``.
        """
        check_parts(self)
        choices = describe_choices(self.model, self.guide) | describe_training(self)
        write_network(path, choices, state_of(self.model, self.guide))

    def to(self, device: torch.device | str) -> VariationalNetwork:
        """Moves model and guide to a device, the optimizer's state with them.

        Args:
            device: The device.

        Returns:
            The network itself.
        """
        device = checked_device(device)
        state = self.optim.get_state()
        self.model.to(device)
        self.guide.to(device)
        self.optim.set_state(state)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses to be called as a module, since a prediction is no tensor."""
        raise TypeError(
            "A VariationalNetwork is not called as a network is, whose output is one tensor: "
            "write bnn.predict(x), and .mean, .variance or .outputs behind it."
        )

    def __getstate__(self) -> dict[str, Any]:
        return state_to_copy(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        take_copied(self, state)

    def __setattr__(self, name: str, value: Any) -> None:
        check_set(name)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"A VariationalNetwork has no {name!r}{what_is_meant(name)}.")

    def __repr__(self) -> str:
        return describe_network(self)
