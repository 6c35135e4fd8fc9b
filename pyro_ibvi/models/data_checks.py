"""Checks of the data that a model is given, and of what its network makes of them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ibvi._util.errors import DataError
from pyro_ibvi._util.inputs import as_call, first_tensor, tensors_of
from pyro_ibvi.models.binary import Bernoulli
from pyro_ibvi.models.counts import Poisson
from pyro_ibvi.models.labels import Categorical
from pyro_ibvi.models.likelihoods import HeteroscedasticNormal, Likelihood, Normal
from pyro_ibvi.models.tasks import MultiTask
from pyro_ibvi.models.wrapped import Masked, Standardized

#: Root mean squares of inputs, and of outputs beside the targets, that are of unscaled data. Where
#: inputs are standardized, outputs start at 0.1 to 0.5.
_LARGE_INPUT, _LARGE_OUTPUT = 20.0, 5.0

#: Root mean square of targets, in units of the outputs' and of 1, that are of unscaled ones.
_LARGE_TARGET = 20.0

#: Number of targets from which on it can be told that they are small.
_FEW = 8

#: Operations, by torch's names, that make a number positive, the ranges of these and others, and
#: those that keep numbers as they are.
_POSITIVE = frozenset({"Exp", "Softplus", "Relu"})
_RANGES = {
    **dict.fromkeys(_POSITIVE, (0.0, math.inf)),
    **dict.fromkeys(("Sigmoid", "Softmax"), (0.0, 1.0)),
    "Tanh": (-1.0, 1.0),
}
#: What lies outside of the range of a network's end, in units of the targets' standard deviation,
#: that no noise around its ends explains.
_FAR_OUTSIDE = 0.3
_SHAPES = frozenset(
    {"Alias", "Select", "SplitWithSizes", "Squeeze", "Unsqueeze", "View", "UnsafeView", "ToCopy"}
)


def batch_of(x: Any) -> Tensor:
    """The first tensor among the inputs.

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
            f"Inputs must be a tensor, an array or a data frame whose first dimension is the "
            f"batch, or a tuple or mapping of such; got {type(x).__name__}."
        )
    return tensor


def num_data_of(x: Any, y: Any) -> int:
    """Number of data in a batch: that of the targets, where inputs have others in front.

    Args:
        x: Inputs.
        y: Targets, None if there are none.

    Returns:
        The number.

    Raises:
        DataError: If neither shows any.
    """
    tensor = first_tensor(x if first_tensor(y) is None else y)
    if tensor is None:
        raise DataError(
            f"The batch is a {type(x).__name__}, and no targets are beside it: say which of its "
            f"attributes they are, as in SupervisedModel(..., target='y'), or let the loader "
            f"yield pairs, (batch, batch.y)."
        )
    return len(tensor)


def check_not_empty(x: Any) -> None:
    """Checks that there are data among the inputs.

    Args:
        x: Inputs.

    Raises:
        DataError: If there are none.
    """
    has_tensors = isinstance(x, Tensor) and x.dim() > 0
    if not has_tensors and first_tensor(x) is None and _is_number(x):
        batch_of(x)
    if has_tensors and len(x) == 0:
        raise DataError("The batch is empty: its inputs have a first dimension of size 0.")


def _is_number(x: Any) -> bool:
    """Whether inputs are single numbers, rather than objects that a network knows."""
    leaves = [*as_call(x)[0], *as_call(x)[1].values()]
    return any(isinstance(leaf, (int, float, Tensor)) for leaf in leaves)


def check_finite(what: str, x: Any, *, allows_missing: bool = False) -> None:
    """Checks that data hold no NaN and no infinity.

    On an accelerator this would wait for the device, so there a non-finite loss tells.

    Args:
        what: What the data are, for the message.
        x: Tensors.
        allows_missing: Whether NaN may mark what is missing.

    Raises:
        DataError: If some number is not finite.
    """
    for tensor in tensors_of(x):
        value = tensor.values() if tensor.is_nested else tensor  # all rows, one after the other
        if not value.is_floating_point() or value.device.type != "cpu" or _is_finite(value):
            continue
        is_bad = value.isinf() if allows_missing else ~value.isfinite()
        if is_bad.any():
            bad = is_bad.nonzero()[0].tolist()
            hint = " Targets that are missing are marked by NaN and left out by Masked(...)." * (
                what == "target" and bool(value.isnan().any())
            )
            raise DataError(
                f"The {what} holds {value[tuple(bad)].item()} at index {tuple(bad)} of shape "
                f"{tuple(value.shape)}. Remove or impute such data first.{hint}"
            )


def check_data(likelihood: Likelihood, x: Any, y: Tensor, output: Tensor) -> None:
    """Checks that targets fit a network's output, and that all numbers are there.

    Args:
        likelihood: The likelihood, which says whether targets may be missing.
        x: Inputs, as far as they are not checked.
        y: Targets.
        output: The network's output for one draw of the weights.

    Raises:
        TypeError: If the targets have the wrong type.
        DataError: If they have the wrong shape or values.
    """
    likelihood.check_target(y, output)
    check_finite("input", x)
    check_finite("target", y, allows_missing=likelihood.allows_missing)


def _is_finite(value: Tensor) -> bool:
    # The sum makes no tensor of the data's size, but can overflow without an infinite term.
    return math.isfinite(value.sum().item()) or bool(value.isfinite().all())


def warn_of_first(
    likelihood: Likelihood, network: nn.Module, x: Any, y: Tensor, output: Tensor
) -> None:
    """Warns of what a first batch tells of data and network.

    Args:
        likelihood: The likelihood.
        network: The network.
        x: Inputs.
        y: Targets.
        output: What the network made of the inputs.
    """
    _warn_of_size(likelihood, x, y, output)
    if not isinstance(likelihood, MultiTask):
        _warn_of_probabilities(likelihood, network, output)
        _warn_of_targets(likelihood, y, output)
        _warn_of_range(likelihood, y, output)
        return
    outputs, targets = likelihood.split(output), likelihood.split_target(y)
    for name, task in likelihood.likelihoods.items():
        _warn_of_probabilities(task, None, outputs[name], name)
        _warn_of_targets(task, targets[name], outputs[name], name)
        _warn_of_range(task, targets[name], outputs[name], name)


def _warn_of_targets(
    likelihood: Likelihood, y: Tensor, output: Tensor, task: str | None = None
) -> None:
    """Warns of numbers that are far from what a network makes before it has learned anything.

    One that is trained already is near them.
    """
    inner = _unmasked(likelihood)
    if isinstance(inner, Poisson):
        _warn_of_counts(y, output, task)
    if not isinstance(inner, (Normal, HeteroscedasticNormal)):
        return
    seen = y[~y.isnan()]
    size, made = _root_mean_square(seen), _root_mean_square(output)
    # A few numbers may be small by chance.
    is_small = seen.numel() >= _FEW and 0.0 < size * _LARGE_TARGET < min(1.0, made)
    if is_small or size > _LARGE_TARGET * max(1.0, made):
        kind, targets = type(inner).__name__, "y" if task is None else f"y[{task!r}]"
        warnings.warn(
            f"The targets{_of(task)} are of size {size:.3g} (root mean square), and what the "
            f"network makes at its start of size {made:.3g}, while its start and rates are meant "
            f"for numbers around 1: write Standardized.of({kind}(...), {targets}) in place of "
            f"{kind}(...), whose predictions are in the targets' own units.",
            UserWarning,
            stacklevel=2,
        )


def _warn_of_range(
    likelihood: Likelihood, y: Tensor, output: Tensor, task: str | None = None
) -> None:
    """Warns where a network ends in a function that does not reach the targets."""
    inner, units = _unmasked(likelihood), ""
    if isinstance(inner, Standardized):
        y = (y - inner.loc.to(y)) / inner.scale.to(y)
        inner, units = inner.likelihood, ", standardized,"
    low, high = _RANGES.get(_last_operation(output), (-math.inf, math.inf))
    seen = y[~y.isnan()].float()
    if not isinstance(inner, (Normal, HeteroscedasticNormal)) or seen.numel() < _FEW:
        return
    beyond = _root_mean_square(seen - seen.clamp(low, high))
    if beyond > _FAR_OUTSIDE * float(seen.std()):
        warnings.warn(
            f"The network ends in {_last_operation(output)}, which gives numbers from {low:g} to "
            f"{high:g}, and the targets{_of(task)}{units} go from {float(seen.min()):.3g} to "
            f"{float(seen.max()):.3g}: leave it out.",
            UserWarning,
            stacklevel=2,
        )


def _warn_of_counts(y: Tensor, output: Tensor, task: str | None) -> None:
    """Warns of counts whose logarithm is far from what a network makes at its start."""
    mean, made = float(y.float().nanmean()), float(output.detach().exp().mean())
    if mean > _LARGE_TARGET * max(1.0, made):
        logarithm = f"{math.log(mean):.3g}"
        where = "in the network" if task is not None else f"output=lambda out: out + {logarithm}"
        warnings.warn(
            f"The counts{_of(task)} are {mean:.3g} in the mean, and the rates that the network "
            f"makes at its start {made:.3g}, while its start and rates are meant for logarithms "
            f"around 0: add that of the mean, {logarithm}, to these outputs, {where}.",
            UserWarning,
            stacklevel=2,
        )


def _warn_of_size(likelihood: Likelihood, x: Any, y: Tensor, output: Tensor) -> None:
    """Warns where a network has large inputs and is off by as much before it has learned anything.

    A network that standardizes its inputs itself, by BatchNorm for example, is not.

    Args:
        likelihood: The likelihood; of standardized numbers what the network makes is of size 1.
        x: Inputs.
        y: Targets; for class labels the logits should be of size 1 at the start.
        output: What the network made of the inputs.
    """
    sizes = [_root_mean_square(leaf) for leaf in tensors_of(x) if _is_dense(leaf)]
    largest = max(sizes, default=0.0)
    if largest <= _LARGE_INPUT:
        return
    is_in_units = y.is_floating_point() and not isinstance(_unmasked(likelihood), Standardized)
    usual = max(1.0, _root_mean_square(y.nan_to_num())) if is_in_units else 1.0
    made = _root_mean_square(output)
    if made > _LARGE_OUTPUT * usual:
        warnings.warn(
            f"The inputs are of size {largest:.3g} (root mean square), and what the network makes "
            f"of them at its start of size {made:.3g}, while its start and "
            f"rates are meant for numbers around 1: standardize the inputs (for images write "
            f"x / 255), in training and prediction alike.",
            UserWarning,
            stacklevel=2,
        )


def _of(task: str | None) -> str:
    return "" if task is None else f" of the task {task!r}"


def _unmasked(likelihood: Likelihood) -> Likelihood:
    return likelihood.likelihood if isinstance(likelihood, Masked) else likelihood


def _is_dense(leaf: Tensor) -> bool:
    is_strided = leaf.layout is torch.strided and not leaf.is_nested
    return is_strided and leaf.is_floating_point() and leaf.numel() > 0


def _root_mean_square(values: Tensor) -> float:
    return float(values.detach().float().square().mean().sqrt())


def _last_operation(output: Tensor) -> str:
    """What a network ends in, as torch names it, beyond what only changes the shape."""
    step: Any = output.grad_fn
    while step is not None:
        name = str(step.name()).partition("Backward")[0]
        if name not in _SHAPES and name != "Cat":
            return name
        # Outputs of tasks are put side by side, and come out again in the same order.
        place = output.output_nr if name == "Cat" else 0
        step = step.next_functions[min(place, len(step.next_functions) - 1)][0]
    return ""


def _warn_of_probabilities(
    likelihood: Likelihood, network: nn.Module | None, output: Tensor, task: str | None = None
) -> None:
    """Warns where a network gives probabilities, or rates, to a likelihood that takes others.

    Args:
        likelihood: The likelihood.
        network: The network, None where other likelihoods have their part of it.
        output: What it made of a batch.
        task: Name of the task, if it is one of several.
    """
    kind = None
    likelihood = _unmasked(likelihood)
    if isinstance(likelihood, Categorical):
        dim = likelihood.class_dim_of(output, 1)
        total = output.detach().sum(dim)
        if bool((output >= 0).all()) and bool(((total - 1).abs() < 1e-3).all()):
            kind = "Softmax"
        elif _last_operation(output) == "Sigmoid":
            kind = "Sigmoid"
    elif isinstance(likelihood, Bernoulli):
        modules = [] if network is None else network.modules()
        leaves = [module for module in modules if not list(module.children())]
        ends = leaves and isinstance(leaves[-1], nn.Sigmoid)
        # Which part of several put side by side is meant only the numbers can tell.
        is_share = bool(((output >= 0) & (output <= 1)).all())
        is_last = is_share and _last_operation(output) == "Sigmoid"
        kind = "Sigmoid" if ends or is_last else None
    elif isinstance(likelihood, Poisson):
        last = _last_operation(output) if bool((output >= 0).all()) else ""
        if last not in _POSITIVE:
            return
        warnings.warn(
            f"The network ends in {last}, which gives rates, and the Poisson "
            f"likelihood{_of(task)} takes their logarithms: leave it out.",
            UserWarning,
            stacklevel=2,
        )
    if kind is not None:
        warnings.warn(
            f"The network's outputs{_of(task)} are probabilities, and the "
            f"{type(likelihood).__name__} likelihood takes logits: leave out the {kind} at its "
            f"end.",
            UserWarning,
            stacklevel=2,
        )
