"""Loss functions of torch's, which people pass where a likelihood or an objective is meant."""

from __future__ import annotations

from typing import Any

from torch import Tensor

#: What says the same of outputs and targets here, by the loss's name without case and joints.
_LIKELIHOODS = {
    "crossentropy": "Categorical()",
    "nll": "Categorical()",
    "categorical": "Categorical()",
    "softmax": "Categorical()",
    "multiclass": "Categorical()",
    "bcewithlogits": "Bernoulli()",
    "binarycrossentropywithlogits": "Bernoulli()",
    "bce": "Bernoulli()",
    "binarycrossentropy": "Bernoulli()",
    "bernoulli": "Bernoulli()",
    "mse": "Normal(0.1)",
    "gaussian": "Normal(0.1)",
    "normal": "Normal(0.1)",
    "gaussiannll": "HeteroscedasticNormal()",
    "poissonnll": "Poisson()",
    "poisson": "Poisson()",
}

#: Number of weights up to which a message holds them.
_MANY = 10


def likelihood_for(thing: Any) -> str | None:
    """The likelihood that is meant by a loss of torch's, a distribution, or the name of either.

    Args:
        thing: What was given.

    Returns:
        The likelihood as code, or None if nobody knows.
    """
    name = thing if isinstance(thing, str) else getattr(thing, "__name__", type(thing).__name__)
    plain = name.lower().replace("_", "").replace("-", "").replace(" ", "").removesuffix("loss")
    found = _LIKELIHOODS.get(plain)
    return None if found is None else found.replace("()", f"({_options(found, thing)})")


def _options(likelihood: str, loss: Any) -> str:
    """The options of a loss of torch's that its likelihood has, too, as code."""
    names = {"Categorical()": ("weight", "label_smoothing"), "Bernoulli()": ("pos_weight",)}
    given = {name: getattr(loss, name, None) for name in names.get(likelihood, ())}
    if likelihood == "Categorical()" and getattr(loss, "ignore_index", -100) != -100:
        given["ignore_index"] = loss.ignore_index
    return ", ".join(
        f"{name}={_as_code(name, value)}"
        for name, value in given.items()
        if isinstance(value, Tensor) or value not in (None, 0.0) or name == "ignore_index"
    )


def _as_code(name: str, value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return str(value.tolist()) if value.numel() <= _MANY else f"loss.{name}"
