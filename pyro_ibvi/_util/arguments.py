"""What a person hears who calls an argument by another library's name, or leaves one out."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T", bound=type)

_TRAINING_DATA = (
    "loader",
    "dataloader",
    "train_dataloader",
    "data_loader",
    "dataset",
    "train_data",
    "train_dataset",
)
#: Names of the same thing elsewhere, by the names of this package.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "num_epochs": ("epochs", "n_epochs", "max_epochs", "nb_epochs", "n_iter", "max_iter"),
    "valid_loader": (
        "val_loader",
        "validation_loader",
        "valid",
        "val",
        "validation",
        "validation_data",
        "val_data",
        "eval_set",
        "val_dataloader",
        "val_dataloaders",
        "test_loader",
        "valid_data",
        "valid_set",
        "val_set",
        "validation_set",
        "eval_loader",
        "eval_data",
        "eval_dataset",
        "dev_loader",
    ),
    "train_loader": ("data", *_TRAINING_DATA),
    "data": ("train_loader", *_TRAINING_DATA, "X", "x", "inputs", "features", "x_train"),
    "x": ("X", "inputs", "features", "data", "x_test", "loader"),
    "y": ("Y", "targets", "target", "labels", "y_train", "y_test"),
    "patience": ("early_stopping", "early_stop", "n_iter_no_change"),
    "progress": ("verbose", "progress_bar", "show_progress", "disable_tqdm"),
    "callback": ("callbacks",),
    "checkpoint": ("checkpoint_path", "ckpt_path", "ckpt", "save_path"),
    "monitor": ("metric", "early_stopping_metric"),
    "accumulate": ("accumulate_grad_batches", "gradient_accumulation_steps", "accumulation_steps"),
    "autocast": ("precision", "amp", "mixed_precision"),
    "num_samples": ("n_samples", "samples", "num_draws", "n_draws", "draws", "num_mc_samples"),
    "seed": ("generator", "random_state", "rng", "random_seed"),
    "generator": ("seed", "random_state", "rng", "random_seed"),
    "random_state": ("seed", "generator", "random_seed"),
    "batch_size": ("batchsize", "bs"),
    "num_data": ("n_data", "dataset_size", "train_size", "n_train"),
    "lr": ("learning_rate", "eta", "alpha"),
    "optimizer": ("optim", "opt"),
    "optim_args": ("optimizer_args", "optimizer_kwargs", "optim_kwargs", "optimizer_params"),
    "scheduler": ("lr_scheduler", "schedule"),
    "clip_norm": ("clip_args", "max_norm", "grad_clip", "gradient_clip_val", "clip_grad_norm"),
    "covariance": ("guide", "posterior", "cov"),
    "stochastic": ("random", "bayesian", "bayesian_layers", "random_layers"),
    "draws": ("num_particles", "num_samples", "n_samples"),
    "init_scale": ("init_std", "scale", "prior_scale"),
    "prior": ("prior_std", "prior_scale", "sigma", "std"),
    "likelihood": ("loss_fn", "criterion", "lik"),
    "loss": ("objective", "elbo"),
    "scale": ("std", "sigma", "noise", "stddev", "sd", "noise_std"),
    "weight": ("weights", "class_weight", "class_weights"),
    "net": ("network", "module", "base_model"),
    "sizes": ("widths", "depths", "num_units"),
    "var_names": ("sites", "variables", "parameters"),
    "kl_weight": ("beta", "kl_scale", "annealing_factor"),
    "num_particles": ("num_samples", "n_samples"),
    "max_epochs": ("max_iter", "epochs", "num_epochs", "n_epochs", "n_iter"),
    "learning_rate": ("lr", "learning_rate_init", "eta"),
    "hidden_layer_sizes": ("hidden_sizes", "hidden_layers", "hidden_dims", "layers"),
    "validation_fraction": ("validation_split", "valid_fraction", "test_size"),
    "network": ("net", "module", "model"),
    "max_memory": ("memory", "memory_limit", "max_mem"),
}


def named_arguments(
    *, elsewhere: Mapping[str, str] | None = None, passed_to: Callable[..., Any] | None = None
) -> Callable[[_F], _F]:
    """Lets a function say what the argument is called that was meant.

    The function itself runs as it is; words are looked for only after a call that does not fit.

    Args:
        elsewhere: Where arguments belong that this function does not have: a line to write, by
            the argument's name.
        passed_to: The function to which further keyword arguments go.

    Returns:
        The decorator.
    """

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if passed_to is not None and not kwargs.keys() <= names:
                _refuse(function, names, args, kwargs, elsewhere or {})
            try:
                return function(*args, **kwargs)
            except TypeError:
                if fits(function, args, kwargs):
                    raise  # not the call is at fault
            _refuse(function, names, args, kwargs, elsewhere or {})

        names = _names_of(function)
        if passed_to is not None:
            names = names | _names_of(passed_to, inspect.Parameter.KEYWORD_ONLY)
        return cast(_F, call)

    return decorate


def named_fields(kind: _T) -> _T:
    """Lets a data class say what the argument is called that was meant, see above.

    Args:
        kind: The class.

    Returns:
        The class.
    """
    made: Any = kind
    made.__init__ = named_arguments()(made.__init__)
    return kind


def show_arguments(kind: _T) -> _T:
    """Lets ``help``, editors and the reference show the arguments of a class's ``__init__``.

    Where there is a ``__new__`` they show its own.

    Args:
        kind: The class.

    Returns:
        The class.
    """
    shown: Any = kind
    _, *arguments = inspect.signature(shown.__init__).parameters.values()
    shown.__signature__ = inspect.Signature(arguments)
    return kind


def takes(function: Callable[..., Any], num_arguments: int) -> bool:
    """Whether a function can be called with a number of arguments, as far as it tells.

    Args:
        function: The function.
        num_arguments: The number, by position.

    Returns:
        Whether it can; True for one that does not tell.
    """
    return fits(function, (None,) * num_arguments, {})


def fits(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function can be called with some arguments, as far as it tells.

    Args:
        function: The function.
        args: Those by position.
        kwargs: Those by name.

    Returns:
        Whether it can; True for one that does not tell.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of C's do not tell
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _names_of(function: Callable[..., Any], *kinds: Any) -> frozenset[str]:
    """Names of the arguments of some kinds, by default of all that have a name."""
    parameters = inspect.signature(function).parameters.values()
    of_several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [p for p in parameters if p.kind not in of_several]
    return frozenset(p.name for p in named if not kinds or p.kind in kinds) - {"self"}


def _refuse(
    function: Callable[..., Any],
    names: Iterable[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    elsewhere: Mapping[str, str],
) -> NoReturn:
    called = function.__qualname__.removesuffix(".__init__")
    unknown = [name for name in kwargs if name not in names]
    if unknown:
        meant = _meant(unknown[0], names, elsewhere)
        raise TypeError(f"{called} has no argument {unknown[0]!r}{meant}.")
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    given = args[1:] if "." in function.__qualname__ else args
    method = function.__name__
    own = None if method == "__init__" or not given else getattr(given[0], method, None)
    if callable(own) and not isinstance(given[0], type):
        raise TypeError(
            f"{called} takes {_shown(parameters)}, and a {type(given[0]).__name__} has a method "
            f"of its own: write .{method}(...) behind it."
        )
    got = _given(len(given), list(kwargs)) + _missing(function, args, kwargs)
    raise TypeError(f"{called} takes {_shown(parameters)}, and got {got}.")


def _meant(unknown: str, names: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    meant = [name for name, aliases in _ALIASES.items() if unknown in (name, *aliases)]
    for name in meant:
        if name in names:
            return f": it is called {name!r} here"
    for name in (unknown, *meant):
        if name in elsewhere:
            return f": {elsewhere[name]}"
    close = difflib.get_close_matches(unknown, list(names), n=1, cutoff=0.75)
    if close:
        return f": did you mean {close[0]!r}"
    return f"; it has {', '.join(sorted(names))}"


def _shown(parameters: list[inspect.Parameter]) -> str:
    """The arguments that must be given, and the first of those that may."""
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    optional = [p.name for p in named if p.default is not p.empty]
    by_name = {*optional, *(p.name for p in named if p.kind is p.KEYWORD_ONLY)}
    left_out = optional[3:]
    shown = [p.name + "=" * (p.name in by_name) for p in named if p.name not in left_out]
    return f"({', '.join([*shown, *['...'] * bool(left_out)])})"


def _missing(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """The arguments that a call lacks, where it has none too many."""
    signature = inspect.signature(function)
    try:
        bound = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return ""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = [p for p in signature.parameters.values() if p.kind not in kinds]
    lacks = [p.name for p in parameters if p.default is p.empty and p.name not in bound]
    return f": {' and '.join(lacks)} {'is' if len(lacks) == 1 else 'are'} missing"


def _given(num_positional: int, names: list[str]) -> str:
    parts = [f"{num_positional} by position"] if num_positional else []
    parts += [f"{', '.join(names)} by name"] if names else []
    return " and ".join(parts) or "none"
