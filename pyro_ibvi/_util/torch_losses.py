"""Loss functions of torch's, which people pass where a likelihood or an objective is meant."""

from __future__ import annotations

from typing import Any

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


def likelihood_for(thing: Any) -> str | None:
    """The likelihood that is meant by a loss of torch's, a distribution, or the name of either.

    Args:
        thing: What was given.

    Returns:
        The likelihood as code, or None if nobody knows.
    """
    name = thing if isinstance(thing, str) else getattr(thing, "__name__", type(thing).__name__)
    plain = name.lower().replace("_", "").replace("-", "").replace(" ", "").removesuffix("loss")
    return _LIKELIHOODS.get(plain)
