"""Words for a network that fails on its input: what was expected, what was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pyro_ibvi._util.errors import DataError, NetworkError
from pyro_ibvi._util.inputs import as_call, tensors_of
from pyro_ibvi.models.batches import Signature

_CONVOLUTIONS = {
    nn.Conv1d: "(batch, {c}, length)",
    nn.Conv2d: "(batch, {c}, height, width)",
    nn.Conv3d: "(batch, {c}, depth, height, width)",
}
#: What torch says of a name in the place of an index, which it takes for a list of letters.
_OF_NAMES = ("invalid data type 'str'", "too many indices for tensor")


def explain_fault(
    error: Exception, network: nn.Module, x: Any, values: Mapping[str, Tensor]
) -> None:
    """Raises a clearer error where the input's type, device, shape or number is at fault.

    Args:
        error: What the network raised.
        network: The network.
        x: Its inputs.
        values: Its parameters.

    Raises:
        TypeError: If the inputs are of another type than the network takes.
        ValueError: If they have another shape, or are on another device.
        NetworkError: If torch failed for a reason that is the network's own.
    """
    _explain_names(error, x)
    if isinstance(error, TypeError):
        _explain_arguments(error, network, x)
        return
    _explain_device(error, x, values)
    _explain_dtype(error, x, values)
    layer, given = failing_layer(error)
    if layer is not None and given is not None:
        _explain_layer(error, layer, given, _name_of(network, layer), _is_first(given, x))
    if type(error) is RuntimeError:  # those of its own kind, such as of memory, say more by that
        shapes = ", ".join(str(tuple(value.shape)) for value in tensors_of(x))
        inputs = f"inputs of the shape {shapes}" if shapes else f"a {type(x).__name__}"
        raise NetworkError(f"The network fails on {inputs}: {error}") from error


def _explain_names(error: Exception, x: Any) -> None:
    if isinstance(x, Tensor) and any(words in str(error) for words in _OF_NAMES):
        raise DataError(
            f"The network fails on an input of the shape {tuple(x.shape)}: {error}. Where its "
            f"forward looks up names in a mapping, put that into a tuple, since a mapping gives "
            f"its parts one by one: fit((x,), y) and predict((x,)), in a loader batches ((x,), y)."
        ) from error


def _explain_arguments(error: TypeError, network: nn.Module, x: Any) -> None:
    args, kwargs = as_call(x)
    foreign = [a for a in (*args, *kwargs.values()) if not isinstance(a, Tensor)]
    if "must be Tensor, not" in str(error) and foreign:
        hint = ", here x.toarray()" * hasattr(foreign[0], "toarray")  # SciPy's sparse ones
        raise TypeError(
            f"The network got a {type(foreign[0]).__name__}, where its first layer takes a "
            f"tensor: pass inputs as a tensor, an array or a data frame of numbers{hint}; for "
            f"batches there are DataLoader and predict_batches."
        ) from error
    if "argument" not in str(error):
        return
    signature = Signature(network)
    num = len(args) + len(kwargs)
    too_few = num < signature.required
    too_many = signature.most is not None and len(args) > signature.most
    unknown = [name for name in kwargs if not signature.takes(name)]
    if unknown and isinstance(x, Mapping) and signature.most == 1:
        raise TypeError(
            f"The network takes {signature}, and got the arguments {list(kwargs)}, which a "
            f"mapping gives by name: for a network that takes the mapping as a whole put it "
            f"into a tuple, fit((x,), y) and predict((x,)); else pass the one input alone."
        ) from error
    shapes = {value.shape for value in args if isinstance(value, Tensor)}
    if too_many and isinstance(x, list) and len(shapes) == 1:
        raise TypeError(
            f"The network takes {signature}, and got a list of {len(args)} tensors: make one "
            f"batch of single data, torch.stack(x); for batches there are DataLoader and "
            f"predict_batches."
        ) from error
    if too_few or too_many or unknown:
        given = list(kwargs) or f"{num} input(s)"
        raise TypeError(
            f"The network takes {signature}, and got {given}: pass several inputs as a tuple "
            f"(first, second) or as a mapping by the arguments' names, and say by inputs= of "
            f"SupervisedModel what of a batch they are."
            + " Targets stand apart, fit(x, y, valid_loader=(x, y)), and predict(x) takes none."
            * (num - 1 == signature.most == 1)
        ) from error


def _explain_device(error: Exception, x: Any, values: Mapping[str, Tensor]) -> None:
    devices = {value.device for value in values.values()}
    if len(devices) > 1 and "device" in str(error):
        places = " and ".join(sorted(map(str, devices)))
        raise DataError(
            f"The weights are on several devices, {places}: move model and guide together, "
            f"model.to(device) and guide.to(device)."
        ) from error
    for value in tensors_of(x):
        if devices and value.device not in devices:
            (device, *_) = devices
            raise DataError(
                f"The input is on {value.device} and the network's weights on {device}: move one "
                f"to the other, as in x.to({str(device)!r}), and model and guide together."
            ) from error


def _explain_dtype(error: Exception, x: Any, values: Mapping[str, Tensor]) -> None:
    dtypes = {v.dtype for v in values.values() if v.is_floating_point()}
    (dtype, *_) = dtypes or {torch.get_default_dtype()}
    if len(dtypes) > 1 and is_of_type(error):
        raise TypeError(
            f"The weights are of several types, {' and '.join(sorted(map(str, dtypes)))}: convert "
            f"model and guide together, model.to({dtype}) and guide.to({dtype})."
        ) from error
    for value in tensors_of(x):
        if value.is_floating_point() and value.dtype not in dtypes:
            raise TypeError(
                f"The input has dtype {value.dtype} and the network's weights {dtype}: pass "
                f"x.to({dtype}), or build the model from net.to({value.dtype})."
            ) from error
        if value.is_complex() and is_of_type(error):
            raise TypeError(
                f"The input has dtype {value.dtype} and the network's weights {dtype}: pass real "
                f"and imaginary parts as features, torch.view_as_real(x).flatten(1)."
            ) from error
        is_number = not value.is_floating_point() and not value.is_complex()
        if is_number and is_of_type(error):
            if isinstance(failing_layer(error)[0], (nn.Embedding, nn.EmbeddingBag)):
                raise TypeError(
                    f"The input has dtype {value.dtype}, and an embedding looks up whole numbers "
                    f"of 32 or 64 bits: pass x.long()."
                ) from error
            hint = ", for images divided by 255" * (value.dtype == torch.uint8)
            raise TypeError(
                f"The input has dtype {value.dtype} and the network's weights {dtype}: pass "
                f"x.to({dtype}){hint}."
            ) from error


def is_of_type(error: Exception) -> bool:
    """Whether an error of torch's is about the type of a tensor's numbers.

    Args:
        error: The error.

    Returns:
        Whether it is, as far as its words tell.
    """
    return any(word in str(error) for word in ("dtype", "type", "Byte", "Long"))


def failing_layer(error: Exception) -> tuple[nn.Module | None, Tensor | None]:
    """The innermost of torch's layers in which an error came up, and the layer's input.

    Args:
        error: The error, as it was caught.

    Returns:
        Both, or None for what is not known.
    """
    layer, given = None, None
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame.f_locals
        module, value = frame.get("self"), frame.get("input")
        is_torchs = type(module).__module__.startswith("torch.nn.modules")
        is_layer = is_torchs and not isinstance(module, nn.Sequential)
        if isinstance(module, nn.Module) and is_layer and isinstance(value, Tensor):
            layer, given = module, value
        traceback = traceback.tb_next
    return layer, given


def _explain_layer(
    error: Exception, layer: nn.Module, given: Tensor, name: str, is_first: bool
) -> None:
    shape = tuple(given.shape)
    what = f"The input x has shape {shape}" if is_first else f"A layer's input has shape {shape}"
    where = f"the layer {name}" + f" ({type(layer).__name__})" * (name[0] == "'")
    if isinstance(layer, nn.Linear) and shape[-1:] != (layer.in_features,):
        hint = ": pass x.unsqueeze(-1)" * (layer.in_features == len(shape) == 1 and is_first)
        raise DataError(
            f"{what}, but {where} expects {layer.in_features} features in the last dimension, "
            f"got {shape[-1] if shape else 'none'}{hint}."
        ) from error
    for kind, text in _CONVOLUTIONS.items():
        if isinstance(layer, kind):
            assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
            expected = text.format(c=layer.in_channels)
            if len(shape) != expected.count(",") + 1 or shape[1] != layer.in_channels:
                raise DataError(f"{what}, but {where} expects {expected}.") from error
    if isinstance(layer, nn.RNNBase) and shape[-1:] != (layer.input_size,):
        raise DataError(
            f"{what}, but {where} expects {layer.input_size} features in the last dimension."
        ) from error
    if isinstance(layer, nn.Embedding) and isinstance(error, IndexError):
        raise DataError(
            f"{what} with numbers up to {given.max().item()}, but {where} has rows from 0 to "
            f"{layer.num_embeddings - 1}."
        ) from error
    if isinstance(layer, nn.Embedding) and given.is_floating_point():
        raise TypeError(
            f"{what} and dtype {given.dtype}, but {where} takes whole numbers: pass x.long()."
        ) from error
    if isinstance(layer, _NormBase) and "more than 1 value" in str(error):
        raise DataError(
            f"{what}, and {where} needs more than one datum in training: let the loader drop the "
            f"last batch (drop_last=True), or use GroupNorm."
        ) from error
    if isinstance(layer, _NormBase) and shape[1:2] != (layer.num_features,):
        raise DataError(f"{what}, but {where} expects {layer.num_features} channels.") from error


def _name_of(network: nn.Module, layer: nn.Module) -> str:
    """Name of a layer, or of the only one that looks like it: runs may use a copy."""
    alike = []
    for name, module in network.named_modules():
        if module is layer:
            return repr(name)
        if repr(module) == repr(layer):
            alike.append(name)
    return repr(alike[0]) if len(alike) == 1 else repr(layer)


def _is_first(given: Tensor, x: Any) -> bool:
    return any(value.shape == given.shape for value in tensors_of(x))
