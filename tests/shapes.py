"""Shapes and types of the theory's public functions, checked whenever a test calls one.

A function speaks first: it runs, and refuses in its own words what does not fit. Whatever it
takes must then have the shapes that its annotations say, and so must what it gives back.
"""

import dataclasses
import functools
import inspect
import sys
import typing

import jaxtyping
import torch
from beartype.door import is_bearable

import pyro_ibvi.theory

#: What the annotations name; the package itself imports it for type checkers alone.
NAMES = {name: getattr(jaxtyping, name) for name in ("Float", "Int", "Num")}


def hints_of(thing):
    module = sys.modules[thing.__module__]
    return typing.get_type_hints(thing, vars(module) | NAMES)


def fields_of(value):
    """A result, or the fields of a result that has some."""
    if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        return {
            f"{type(value).__name__}.{name}": (getattr(value, name), hint)
            for name, hint in hints_of(type(value)).items()
        }
    return {}


def checked(function):
    """The function, with its arguments and its result held against its annotations."""
    hints, signature = hints_of(function), inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        values = {name: (value, hints.get(name, object)) for name, value in arguments.items()}
        values["its result"] = result, hints["return"]
        with jaxtyping.jaxtyped("context"):
            for name, (value, hint) in (values | fields_of(result)).items():
                assert is_bearable(value, hint), (
                    f"{function.__name__} was given or gave {name} of the shape "
                    f"{getattr(value, 'shape', value)}, and {hint} is what it says"
                )
        return result

    return wrapper


def check_shapes():
    """Puts the checked functions in place of the public ones, wherever the package has them."""
    public = {
        thing: checked(thing)
        for thing in vars(pyro_ibvi.theory).values()
        if inspect.isfunction(thing) and torch.Tensor in _types(thing)
    }
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "pyro_ibvi":
            for key, thing in list(vars(module).items()):
                if inspect.isfunction(thing) and thing in public:
                    setattr(module, key, public[thing])


def _types(function):
    return {getattr(hint, "array_type", None) for hint in hints_of(function).values()}
