"""Supervised learning as a Pyro model: a random network and a likelihood."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_ibvi._util.arguments import named_arguments
from pyro_ibvi._util.checks import check_positive_int
from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.inputs import as_arguments, as_tensors, known_numbers
from pyro_ibvi.models.admission import admit_likelihood
from pyro_ibvi.models.batch_dimension import BatchDimension
from pyro_ibvi.models.batches import BatchReader, Inputs, Target
from pyro_ibvi.models.data_checks import check_data, check_not_empty, num_data_of, warn_of_first
from pyro_ibvi.models.faults import explain_fault
from pyro_ibvi.models.laws import law_of
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.models.outputs import Output, OutputPicker
from pyro_ibvi.models.random_module import RandomModule
from pyro_ibvi.models.replicas import InputMap
from pyro_ibvi.models.soft import as_observed
from pyro_ibvi.models.whole_numbers import WholeNumbers
from pyro_ibvi.pairing.belonging import check_unwrapped
from pyro_ibvi.pairing.past import Past, read_past, write_past


class SupervisedModel(PyroModule):
    r"""Targets given inputs by a network with random weights.

    .. math:: w \sim p(w), \qquad y_n \mid x_n, w \sim p(y_n \mid f_w(x_n)), \quad n = 1, \dots, N

    The sites are the network's weights, named ``net.<parameter>``, and ``obs`` inside of the
    plate ``data``, which scales a minibatch to the whole data set.

    Args:
        net: The network.
        likelihood: The distribution of a target given the network's output; it is copied, as the
            network was.
        num_data: Number ``N`` of data in the training set; by default a batch is the whole set.
            In training mode no batch may be larger.
        output: Which part of what the network returns the likelihood takes: a position, a name,
            or a function of what it returns for one draw of the weights, whose first dimension
            is then the batch. By default the only tensor, or the ``logits``.
        inputs: Which parts of a batch the network gets, by position or name: one, several in the
            order of its arguments, or a mapping from its arguments to parts. By default a batch
            is a pair; a longer one ends in the target if the network takes exactly the others; in
            a mapping the target is called ``labels``, ``label``, ``target``, ``targets`` or ``y``,
            or is the one part that the network does not take.
        target: Which part of a batch is the target, or which are those of several tasks; an
            attribute's name where a batch is one object, as of graphs.

    Raises:
        TypeError: If the network or the likelihood is not one of this package, or a part is
            neither a position nor a name.
        ValueError: If ``num_data`` is not positive.

    Example:
        >>> import torch
        >>> from pyro_ibvi import Normal, RandomModule
        >>> model = SupervisedModel(RandomModule(nn.Linear(3, 1)), Normal(0.1), num_data=100)
        >>> model(torch.zeros(5, 3)).shape
        torch.Size([5, 1])

        A network with an argument for each of two inputs, and batches that are mappings:

        >>> class Sum(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(3, 1), nn.Linear(2, 1)
        ...     def forward(self, a, b):
        ...         return {"sum": self.a(a) + self.b(b), "aside": a}
        >>> model = SupervisedModel(RandomModule(Sum()), Normal(0.1), output="sum")
        >>> batch = {"a": torch.zeros(5, 3), "b": torch.zeros(5, 2), "labels": torch.zeros(5, 1)}
        >>> model(**batch).shape
        torch.Size([5, 1])
    """

    @named_arguments()
    def __init__(
        self,
        net: RandomModule,
        likelihood: Likelihood,
        num_data: int | None = None,
        *,
        output: Output | None = None,
        inputs: Inputs | None = None,
        target: Target | None = None,
    ) -> None:
        super().__init__()
        check_unwrapped(net=net)
        if not isinstance(net, RandomModule):
            what = f"the class {net.__name__}" if isinstance(net, type) else type(net).__name__
            hint = f": write RandomModule({what}(...))" * isinstance(net, nn.Module)
            raise TypeError(f"SupervisedModel needs a RandomModule, got {what}{hint}.")
        likelihood = admit_likelihood(likelihood, net.network)
        if num_data is not None:
            check_positive_int("num_data", num_data)
        self.net = net
        self.likelihood = likelihood
        self.num_data: int | None = None if num_data is None else int(num_data)
        self.reader = BatchReader(net.network, inputs, target, getattr(likelihood, "widths", None))
        self.picker = OutputPicker(output, likelihood)
        self._is_checked = False
        self._whole_numbers = WholeNumbers()
        self._past = Past()
        self._batch_dimension = BatchDimension(net.network)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        write_past(self, destination, prefix)

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *args: Any) -> None:
        super()._load_from_state_dict(state, prefix, metadata, *args)
        read_past(self, metadata)

    def sample_parameters(self) -> dict[str, Tensor]:
        """Samples the weights alone; a guide finds its sites here, without any data.

        Returns:
            The network's parameters by name.
        """
        return self.net.sample_parameters()

    def read(self, x: Any = None, y: Any = None, *more: Any, **named: Any) -> tuple[Any, Any]:
        """Inputs and targets of a batch, arrays and data frames as tensors of the network's type.

        Args:
            x: Inputs, or the first part of the batch.
            y: Targets, or the second part.
            *more: Further parts.
            **named: Parts by name.

        Returns:
            Inputs and targets, None for what is not there.

        Raises:
            TypeError: If there is nothing at all, or an array of other things than numbers.
            ValueError: If it cannot be told which part is what.
        """
        x, y = self._parts(x, y, more, named)
        return self._as_tensors(x), self._as_tensors(y, torch.float32)

    def _as_tensors(self, data: Any, least: torch.dtype | None = None) -> Any:
        if data is None or isinstance(data, Tensor):  # as in most steps
            return data if data is None else known_numbers(data)
        parameters = (p for _, p in self.net.runner.named_parameters() if p.is_floating_point())
        like = next(parameters, torch.empty(0))
        data = data if least is None else self.likelihood.by_task(data)
        dtype = like.dtype if least is None else torch.promote_types(like.dtype, least)
        return as_tensors(data, dtype, like.device)

    def _parts(
        self, x: Any, y: Any, more: tuple[Any, ...], named: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        is_told = self.reader.inputs is not None or self.reader.target is not None
        if not named and not more and not is_told and not (y is None and isinstance(x, Mapping)):
            if x is None:
                raise TypeError("The model needs inputs, and was called without any.")
            return x, y
        if not named:
            if y is None and not more and isinstance(x, Mapping):
                return self.reader.read(x)
            return self.reader.read((x, *(() if y is None and not more else (y,)), *more))
        given = {name: part for name, part in (("x", x), ("y", y)) if part is not None}
        return self.reader.read({**given, **named})

    def num_data_in(self, *args: Any, **kwargs: Any) -> int:
        """Number of data in a batch: that of the targets, where inputs have others in front.

        Args:
            *args: A batch.
            **kwargs: Its parts by name.

        Returns:
            The number.
        """
        return num_data_of(*self.read(*args, **kwargs))

    def read_inputs(self, x: Any) -> Any:
        """The inputs to be predicted as tensors, without the target that a mapping may hold.

        Args:
            x: Inputs.

        Returns:
            The inputs.
        """
        return self._as_tensors(self.reader.read_inputs(x))

    def run(
        self,
        values: Mapping[str, Tensor],
        x: Any,
        input_maps: Mapping[str, InputMap] | None = None,
    ) -> Tensor:
        """The network's output for given weights, as the likelihood takes it.

        Args:
            values: Parameters by name, as :meth:`sample_parameters` returns them.
            x: Inputs.
            input_maps: For layers of the network by name, a function that their first input goes
                through.

        Returns:
            The output, see :meth:`RandomModule.run`, in float32 at least.

        Raises:
            TypeError: If the inputs' type does not fit the network's, or the output is no tensor.
            DataError: If the inputs' shape or device does not fit.
            RuntimeError: If the network fails in another way.
            IndexError: Likewise.
            ValueError: Likewise.
        """

        def run_network(*args: Any, **kwargs: Any) -> Any:
            return self.net.runner.run(
                values, args, kwargs, input_maps=input_maps, pick=self.picker
            )

        output: Tensor = self.call(run_network, values, x)
        return output

    def call(self, function: Callable[..., Any], values: Mapping[str, Tensor], x: Any) -> Any:
        """Calls a function of the network's arguments, and says what is wrong with the input.

        Args:
            function: Runs the network.
            values: The parameters that it runs with.
            x: Inputs.

        Returns:
            What the function returns.

        Raises:
            TypeError: As :meth:`run`.
            DataError: As :meth:`run`.
            RuntimeError: As :meth:`run`.
            IndexError: As :meth:`run`.
            ValueError: As :meth:`run`.
        """
        self.check_has_batch(x)
        args, kwargs = self.arguments_of(x)
        try:
            output = function(*args, **kwargs)
        except DataError:
            raise
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            if self._whole_numbers.learn(error, x):
                return self.call(function, values, x)
            self._batch_dimension.explain(error, x, self._run_plain)
            explain_fault(error, self.net.network, x, values)
            raise
        self._whole_numbers.is_settled = True
        self._batch_dimension.look(x, self._run_plain)
        return output

    def arguments_of(self, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The network's arguments of inputs: whole numbers as real ones where it takes them so.

        Args:
            x: Inputs.

        Returns:
            Positional and keyword arguments.
        """
        taken = self._whole_numbers.as_taken(x, self.net.network)
        return as_arguments(self.net.network.forward, taken)

    def settle(self, x: Any) -> None:
        """Finds out which whole numbers the network takes as real ones, unless it has run.

        Args:
            x: Inputs.
        """
        if self._whole_numbers.is_settled or not self._whole_numbers.are_in(x):
            return
        with contextlib.suppress(Exception):  # what is wrong shows when it runs on all data
            self.call(lambda *args, **kwargs: self.net.runner.run({}, args, kwargs), {}, x)

    def check_has_batch(self, x: Any) -> None:
        """Refuses one datum that a layer of the network would take for a batch.

        Args:
            x: Inputs.
        """
        self._batch_dimension.check(x, self._run_plain)

    def _run_plain(self, x: Any) -> Tensor:
        """The network's output by its own parameters."""
        return self.picker.pick(self.net.runner.run({}, *self.arguments_of(x)))

    def forward(self, x: Any = None, y: Any = None, *more: Any, **named: Any) -> Tensor:
        """The model: samples weights and targets, or observes the targets.

        Args:
            x: Inputs: a tensor, or a tuple or a mapping of tensors for networks with several
                arguments.
            y: Observed targets, or None to draw them.
            *more: Further parts of a batch, see ``inputs`` and ``target``.
            **named: Parts of a batch by name.

        Returns:
            The targets.
        """
        x, y = self.read(x, y, *more, **named)
        check_not_empty(x)
        values = self.sample_parameters()
        num_draw_dims = self.net.num_draw_dims(values)
        num_batch_dims = max(2, num_draw_dims) if num_draw_dims else 1
        output = self.run(values, x)
        y = None if y is None else self._checked(x, y, output, num_batch_dims)
        # The batch is what comes out: inputs may have nodes, words or time in front.
        batch_size = output.shape[num_batch_dims - 1] if output.dim() >= num_batch_dims else 0
        rows: Any = range(batch_size)  # Pyro's own would cost a permutation of all data a step
        with pyro.plate("data", self._num_data(batch_size), None, rows, dim=-1):
            law = law_of(self.likelihood, output, num_batch_dims, y)
            return pyro.sample("obs", as_observed(law, y), obs=y)

    def log_likelihood(
        self, values: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, float, Tensor | None]:
        """Log-likelihoods of observed targets for a draw of the weights, without Pyro.

        Args:
            values: Random parameters by name. Of several draws, which are in front, the mean of
                the log-likelihoods is taken.
            *args: A batch, as for the model.
            **kwargs: Its parts by name.

        Returns:
            The log-likelihood of each datum in nats, shape ``(batch,)``; the scale from the
            batch to the whole data set; and the number of observations of each datum, None where
            it is 1.
        """
        x, y = self.read(*args, **kwargs)
        check_not_empty(x)
        return self.log_likelihood_of(self.run(values, x), x, y, self.net.num_draw_dims(values))

    def log_likelihood_of(
        self, output: Tensor, x: Any, y: Any, num_draw_dims: int = 0
    ) -> tuple[Tensor, float, Tensor | None]:
        """Log-likelihoods of observed targets for a network's output.

        Args:
            output: What the network made of the inputs.
            x: The inputs.
            y: Targets.
            num_draw_dims: Number of dimensions of draws in front of the output's batch, over
                which the mean is taken.

        Returns:
            As for :meth:`log_likelihood`.
        """
        y = self._checked(x, y, output, num_draw_dims + 1)
        law = law_of(self.likelihood, output, num_draw_dims + 1, y)
        log_probs: Tensor = law.log_prob(y)
        if num_draw_dims:
            log_probs = log_probs.mean(tuple(range(num_draw_dims)))
        num_observed = law.num_observed(y) if hasattr(law, "num_observed") else None
        return log_probs, self._num_data(len(log_probs)) / len(log_probs), num_observed

    def _num_data(self, batch_size: int) -> int:
        num_data = batch_size if self.num_data is None else self.num_data
        if batch_size == 0:
            raise DataError("The batch is empty: the network's output has no rows.")
        if batch_size > num_data and self.training:
            raise DataError(
                f"The batch holds {batch_size} data, but num_data={num_data}: num_data is the "
                f"size of the whole training set, not the number of its batches."
            )
        # Test data are no part of the training set and may be more.
        return max(num_data, batch_size)

    def _checked(self, x: Any, y: Any, output: Tensor, num_batch_dims: int) -> Tensor:
        """The target as the likelihood takes it, compared with what came out of the network."""
        likelihood = self.likelihood
        y = likelihood.as_target(y)
        if not isinstance(y, Tensor):
            raise TypeError(
                f"Targets must be a tensor, an array or a data frame, got {type(y).__name__}: "
                f"write numpy.unique(y, return_inverse=True)[1] for labels that are text."
            )
        if output.dim() < 1 or output.dim() < num_batch_dims:
            raise DataError(
                f"The network's output has shape {tuple(output.shape)}; its first dimension "
                f"must be the batch."
            )
        one_draw = output[(0,) * (num_batch_dims - 1)]
        check_data(likelihood, x, y, one_draw)
        if not self._is_checked:
            self._is_checked = True
            warn_of_first(likelihood, self.net.network, x, y, one_draw)
        return likelihood.convert_target(y, output)
