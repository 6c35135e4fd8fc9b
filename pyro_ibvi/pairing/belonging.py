"""Whether a model, a guide and an optimizer belong together."""

from __future__ import annotations

from functools import partial
from typing import Any

from pyro.infer import SVI
from pyro.infer.autoguide import AutoGuide
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pyro_ibvi._util.modes import owner_module
from pyro_ibvi._util.network_copies import is_compiled, is_parallel
from pyro_ibvi.pairing.past import warn_of_one_left_behind


def check_pair(model: Any, guide: Any) -> None:
    """Checks that a guide was made for a model, as far as both are modules.

    A guide of a part of the model passes, and one of a model with the same network; so does one of
    a function or of an effect handler, of which nothing can be said.

    Args:
        model: The model.
        guide: The guide.

    Raises:
        TypeError: If the guide is the model, or a class, or one of them is wrapped for several
            devices.
        ValueError: If the guide was made for another model.
    """
    check_unwrapped(model=model, guide=guide)
    check_distinct(model, guide)
    check_owner(model, guide)


def check_distinct(model: Any, guide: Any) -> None:
    """Checks that neither the model nor a class stands in the guide's place.

    Args:
        model: The model.
        guide: The guide.

    Raises:
        TypeError: If they are one and the same, or the guide is a class.
    """
    if isinstance(guide, type):
        raise TypeError(
            f"The guide must be an object, got the class {guide.__name__}: write "
            f"{guide.__name__}(model)."
        )
    if guide is model:
        raise TypeError(
            "The model itself was passed as its guide: write guide = AutoMuPNormal(model), or "
            "pass the guide that was fitted. A model without latent variables has the guide "
            "lambda *args, **kwargs: None."
        )


def check_order(model: Any, guide: Any) -> None:
    """Checks that a guide does not stand in the model's place, and the model in its.

    A guide of Pyro's may be the model of another one, which learns to be like it.

    Args:
        model: The model.
        guide: The guide.

    Raises:
        TypeError: If they are swapped.
    """
    if _is_guide(model) and not _is_guide(guide):
        raise TypeError(
            f"The model comes first, and the guide second: got the guide {type(model).__name__} "
            f"in the model's place. Write (model, guide, ...)."
        )


def _is_guide(thing: Any) -> bool:
    """Whether something is a guide of Pyro's or of this package, and no function."""
    return isinstance(thing, AutoGuide) or hasattr(thing, "named_site_parameters")


def check_owner(model: Any, guide: Any) -> None:
    """Checks that a guide was made for a model, as :func:`check_pair` does, and nothing else.

    Args:
        model: The model.
        guide: The guide.

    Raises:
        ValueError: If the guide was made for another model.
        TypeError: If they are swapped.
    """
    check_order(model, guide)
    mine, own = owner_module(model), owner_module(model_of(guide))
    if mine is None or own is None or own is mine:
        return
    if not set(mine.modules()).isdisjoint(own.modules()):
        return
    raise ValueError(
        f"The guide was made for another {type(own).__name__} than the model that it is used "
        f"with: make it anew, AutoMuPNormal(model), or use the model that is guide.model."
    )


def check_shown_pair(model: Any, guide: Any) -> None:
    """Checks a model and a guide of which draws are looked at.

    A model without parameters is no more than its priors, so that another one of its kind, for
    new data, serves as well.

    Args:
        model: The model.
        guide: The guide.

    Raises:
        TypeError: If one of them is nothing to call, is wrapped for several devices, or is a whole
            that holds both.
        ValueError: If the guide was made for another model, with parameters of its own.
    """
    check_unwrapped(model=model, guide=guide)
    for name, part in (("model", model), ("guide", guide)):
        if not callable(part):
            raise TypeError(
                f"The {name} must be a function or a module of Pyro, got {type(part).__name__}. "
                f"Draws that are there already, as those of MCMC, need no guide: "
                f"arviz.from_pyro(mcmc) in ArviZ 0.x, arviz.from_dict in any."
            )
    check_order(model, guide)
    check_distinct(model, guide)
    owner = owner_module(model)
    if owner is not None and any(True for _ in owner.parameters()):
        check_owner(model, guide)
        warn_of_one_left_behind(owner, guide)


def holds_svi(thing: Any) -> bool:
    """Whether something is no part of a training but a whole, such as a ``VariationalNetwork``.

    Args:
        thing: Anything.

    Returns:
        Whether it has an ``SVI`` of its own.
    """
    return isinstance(getattr(thing, "svi", None), SVI)


def check_part(name: str, part: Any) -> None:
    """Checks that a model or a guide is one, and not the whole that holds both.

    Args:
        name: What it is meant to be.
        part: The model or the guide.

    Raises:
        TypeError: If it is such a whole.
    """
    if holds_svi(part):
        raise TypeError(
            f"The {name} is a {type(part).__name__}, which holds a model and a guide: pass its "
            f".model and .guide, or call its own .fit(...), .predict(x) and .evaluate(x, y)."
        )


def check_unwrapped(**parts: Any) -> None:
    """Checks that no wrapper for several devices hides a model or a guide, or stands in one.

    Such a wrapper averages the gradients of its own calls between processes. An objective draws
    from the guide and runs the network by other ways, so each process would train a network of
    its own, without a word.

    Args:
        **parts: Model and guide, by what they are.

    Raises:
        TypeError: If there is one, the part is compiled, or it is a whole that holds both.
    """
    for name, part in parts.items():
        check_part(name, part)
        if any(map(is_compiled, _owners(part))):
            raise TypeError(
                f"The {name} is compiled by torch.compile, which would follow every draw into "
                f"Pyro: compile the network alone, before it is wrapped, "
                f"RandomModule(torch.compile(net)) or "
                f"VariationalNetwork(torch.compile(net), likelihood)."
            )
        # DataParallel inside of a model that somebody wrote works in one process, and is theirs.
        kinds = [
            module
            for owner in _owners(part)
            for module in owner.modules()
            if isinstance(module, DistributedDataParallel)
            or (module is owner and is_parallel(owner))
        ]
        if kinds:
            raise TypeError(
                f"The {name} is wrapped in {type(kinds[0]).__name__}, or holds it, which averages "
                f"the gradients of its own calls alone: the processes would drift apart. Make "
                f"model and guide of what is inside of it, and wrap their loss, "
                f"DistributedDataParallel(objective(model, guide))."
            )


def check_optimizer_of(optim: Any, guide: Any) -> None:
    """Checks that an optimizer that was made for a guide is used with it.

    Args:
        optim: The optimizer.
        guide: The guide that is trained.

    Raises:
        ValueError: If none of the parameters of the optimizer's guide is one of this guide.
    """
    its, ours = owner_module(getattr(optim, "guide", None)), owner_module(guide)
    if its is None or ours is None or its is ours:
        return
    trained = set(ours.parameters())
    if trained and trained.isdisjoint(its.parameters()):
        raise ValueError(
            f"The optimizer was made for another guide than the one that is trained: write "
            f"{type(optim).__name__}(..., guide) with the guide of this SVI."
        )


def _owners(part: Any) -> list[nn.Module]:
    """The modules that a call runs: one, its method's, and those inside of Pyro's handlers."""
    owner = owner_module(part)
    if owner is not None:
        return [owner]
    inner = (part.func, *part.args) if isinstance(part, partial) else ()
    return [module for thing in inner for module in _owners(thing)]


def model_of(guide: Any) -> Any:
    """The model that a guide was made for; a pickled guide has lost it.

    Args:
        guide: The guide.

    Returns:
        The model, or None.
    """
    if not isinstance(guide, nn.Module) or getattr(guide, "_model", None) is None:
        return None
    return getattr(guide, "model", None)
