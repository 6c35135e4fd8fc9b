"""Supervised learning as a Pyro model: a random network and a likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_ibvi._util.inputs import as_call, first_tensor, tensors_of
from pyro_ibvi.models.likelihoods import Likelihood
from pyro_ibvi.models.random_module import RandomModule
from pyro_ibvi.models.replicas import InputMap


class SupervisedModel(PyroModule):
    r"""Targets given inputs by a network with random weights.

    .. math:: w \sim p(w), \qquad y_n \mid x_n, w \sim p(y_n \mid f_w(x_n)), \quad n = 1, \dots, N

    The sites are the network's weights, named ``net.<parameter>``, and ``obs`` inside of the
    plate ``data``, which scales a minibatch to the whole data set.

    Args:
        net: The network.
        likelihood: The distribution of a target given the network's output.
        num_data: Number ``N`` of data in the training set; by default a batch is the whole set.
            In training mode no batch may be larger.

    Raises:
        TypeError: If the network or the likelihood is not one of this package.
        ValueError: If ``num_data`` is not positive.

    Example:
        >>> from pyro_ibvi import Normal, RandomModule
        >>> model = SupervisedModel(RandomModule(nn.Linear(3, 1)), Normal(0.1), num_data=100)
        >>> model(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self, net: RandomModule, likelihood: Likelihood, num_data: int | None = None
    ) -> None:
        super().__init__()
        if not isinstance(net, RandomModule):
            what = f"the class {net.__name__}" if isinstance(net, type) else type(net).__name__
            hint = f": write RandomModule({what}(...))" * isinstance(net, nn.Module)
            raise TypeError(f"SupervisedModel needs a RandomModule, got {what}{hint}.")
        if not isinstance(likelihood, Likelihood):
            hint = " class; write Normal(), with parentheses" * isinstance(likelihood, type)
            raise TypeError(
                f"SupervisedModel needs a likelihood such as Categorical() or Normal(), got the "
                f"{getattr(likelihood, '__name__', type(likelihood).__name__)}{hint}."
            )
        if num_data is not None and (
            isinstance(num_data, bool) or not isinstance(num_data, Integral) or num_data < 1
        ):
            raise ValueError(f"num_data must be a positive whole number, got {num_data!r}.")
        self.net = net
        self.likelihood = likelihood
        self.num_data: int | None = None if num_data is None else int(num_data)

    def sample_parameters(self) -> dict[str, Tensor]:
        """Samples the weights alone; a guide finds its sites here, without any data.

        Returns:
            The network's parameters by name.
        """
        return self.net.sample_parameters()

    def run(
        self,
        values: Mapping[str, Tensor],
        x: Any,
        input_maps: Mapping[str, InputMap] | None = None,
    ) -> Tensor:
        """The network's output for given weights.

        Args:
            values: Parameters by name, as :meth:`sample_parameters` returns them.
            x: Inputs.
            input_maps: For layers of the network by name, a function that their first input goes
                through.

        Returns:
            The output, see :meth:`RandomModule.run`.

        Raises:
            TypeError: If the inputs' type does not fit the network's.
            RuntimeError: If the network fails in another way.
        """
        args, kwargs = as_call(x)
        try:
            if input_maps:
                return self.net.runner.run(values, args, kwargs, input_maps=input_maps)
            return self.net.run(values, *args, **kwargs)
        except RuntimeError as error:
            raise_dtype_mismatch(error, x, values)
            raise

    def forward(self, x: Any, y: Tensor | None = None) -> Tensor:
        """The model: samples weights and targets, or observes the targets.

        Args:
            x: Inputs whose first dimension is the batch: a tensor, or a tuple or a mapping of
                tensors for networks with several arguments.
            y: Observed targets, the batch first, or None to draw them.

        Returns:
            The targets.
        """
        batch_size = batch_of(x).shape[0]
        values = self.sample_parameters()
        num_draw_dims = self.net.num_draw_dims(values)
        num_batch_dims = max(2, num_draw_dims) if num_draw_dims else 1
        output = self.run(values, x)
        if y is not None:
            self._check(x, y, output, num_batch_dims)
            y = self.likelihood.convert_target(y, output)
        # Any sequence of the right length does; indices drawn by Pyro would cost a permutation
        # of the whole data set each step.
        indices: Any = range(batch_size)
        with pyro.plate("data", self._num_data(batch_size), None, indices, dim=-1):
            return pyro.sample("obs", self.likelihood(output, num_batch_dims), obs=y)

    def log_likelihood(
        self, values: Mapping[str, Tensor], x: Any, y: Tensor
    ) -> tuple[Tensor, float]:
        """Log-likelihoods of observed targets for one draw of the weights, without Pyro.

        Args:
            values: Random parameters by name.
            x: Inputs, as for the model.
            y: Targets.

        Returns:
            The log-likelihood of each datum in nats, shape ``(batch,)``, and the scale from the
            batch to the whole data set.
        """
        return self.log_likelihood_of(self.run(values, x), x, y)

    def log_likelihood_of(self, output: Tensor, x: Any, y: Tensor) -> tuple[Tensor, float]:
        """Log-likelihoods of observed targets for a network's output.

        Args:
            output: What the network made of the inputs.
            x: The inputs.
            y: Targets.

        Returns:
            As for :meth:`log_likelihood`.
        """
        batch_size = batch_of(x).shape[0]
        self._check(x, y, output, 1)
        y = self.likelihood.convert_target(y, output)
        log_probs = self.likelihood(output, 1).log_prob(y)
        return log_probs, self._num_data(batch_size) / batch_size

    def _num_data(self, batch_size: int) -> int:
        num_data = batch_size if self.num_data is None else self.num_data
        if batch_size == 0:
            raise ValueError("The batch is empty: its inputs have a first dimension of size 0.")
        if batch_size > num_data and self.training:
            raise ValueError(
                f"The batch holds {batch_size} data, but num_data={num_data}: num_data is the "
                f"size of the whole training set."
            )
        # Test data are no part of the training set and may be more.
        return max(num_data, batch_size)

    def _check(self, x: Any, y: Tensor, output: Tensor, num_batch_dims: int) -> None:
        if not isinstance(y, Tensor):
            raise TypeError(f"Targets must be a tensor, got {type(y).__name__}.")
        if output.dim() < 1 or output.dim() < num_batch_dims:
            raise ValueError(
                f"The network's output has shape {tuple(output.shape)}; its first dimension "
                f"must be the batch."
            )
        one_draw = output[(0,) * (num_batch_dims - 1)]
        self.likelihood.check_target(y, one_draw)
        check_finite("input", x)
        check_finite("target", y)


def batch_of(x: Any) -> Tensor:
    """The first tensor among the inputs, whose first dimension is the batch.

    Args:
        x: Inputs.

    Returns:
        The tensor.

    Raises:
        TypeError: If there is none, or it has no dimension.
    """
    tensor = first_tensor(x)
    if tensor is None:
        raise TypeError(
            f"Inputs must be a tensor whose first dimension is the batch, or a tuple or mapping "
            f"of such; got {type(x).__name__}. NumPy arrays go through torch.as_tensor."
        )
    return tensor


def check_finite(what: str, x: Any) -> None:
    """Checks that data hold no NaN and no infinity.

    On an accelerator this would wait for the device, so there a non-finite loss tells.

    Args:
        what: What the data are, for the message.
        x: Tensors.

    Raises:
        ValueError: If some number is not finite.
    """
    for value in tensors_of(x):
        if not value.is_floating_point():
            continue
        if value.device.type == "cpu" and not _is_finite(value):
            bad = (~value.isfinite()).nonzero()[0].tolist()
            raise ValueError(
                f"The {what} holds {value[tuple(bad)].item()} at index {tuple(bad)} of shape "
                f"{tuple(value.shape)}. Remove or impute such data before training."
            )


def _is_finite(value: Tensor) -> bool:
    # The sum makes no tensor of the data's size, but can overflow without an infinite term.
    return math.isfinite(value.sum().item()) or bool(value.isfinite().all())


def raise_dtype_mismatch(error: RuntimeError, x: Any, values: Mapping[str, Tensor]) -> None:
    """Raises a clearer error if a network failed on inputs of another floating type.

    Args:
        error: What the network raised.
        x: Inputs.
        values: The network's parameters.

    Raises:
        TypeError: If the types differ.
    """
    dtypes = {v.dtype for v in values.values() if v.is_floating_point()}
    for value in tensors_of(x):
        if value.is_floating_point() and value.dtype not in dtypes:
            (dtype, *_) = dtypes or {torch.get_default_dtype()}
            raise TypeError(
                f"The input has dtype {value.dtype} and the network's weights {dtype}: pass "
                f"x.to({dtype}), or build the model from net.to({value.dtype})."
            ) from error
