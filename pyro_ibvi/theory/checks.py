"""Sentences for what users of the linear models get wrong."""

import torch
from torch import Tensor


def check_data(X: Tensor, y: Tensor | None = None) -> None:
    """Checks that the data are a finite matrix, and the targets a vector beside it.

    Args:
        X: Data, shape ``(N, P)``.
        y: Targets, ``(N,)``.

    Raises:
        ValueError: If they are not.
    """
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(
            f"X has the shape {tuple(X.shape)}, and (N, P) was expected, one datum a row, with at "
            "least one of each. Write X.reshape(len(X), -1)."
        )
    if not X.is_floating_point():
        raise ValueError(
            f"X has the type {X.dtype}, and floating-point numbers were expected. Write "
            "X.double()."
        )
    if not X.isfinite().all():
        bad = int((~X.isfinite()).any(-1).sum())
        raise ValueError(
            f"{bad} of the {len(X)} rows of X hold a NaN or an infinity, and finite numbers were "
            "expected. Drop those rows: X[X.isfinite().all(-1)]."
        )
    if y is None:
        return
    if y.shape != X.shape[:1]:
        raise ValueError(
            f"y has the shape {tuple(y.shape)}, and ({len(X)},) was expected, one number for each "
            "row of X. A column (N, 1) is written y.squeeze(-1)."
        )
    if not y.isfinite().all():
        raise ValueError(
            f"{int((~y.isfinite()).sum())} of the {len(y)} entries of y are NaN or infinite, and "
            "finite numbers were expected. Drop those data."
        )


def check_prior(X: Tensor, loc: Tensor, S: Tensor, *, diagonal: bool = False) -> None:
    """Checks that the mean and the factor fit the data.

    Args:
        X: Data, shape ``(N, P)``.
        loc: Mean, ``(P,)``.
        S: Factor, ``(P, R)``.
        diagonal: Whether a factor ``(P,)`` is welcome too.

    Raises:
        ValueError: If they do not.
    """
    size = X.shape[1]
    if loc.shape != (size,):
        raise ValueError(
            f"The mean has the shape {tuple(loc.shape)}, and ({size},) was expected, one entry "
            "for each column of X."
        )
    if diagonal and S.shape == (size,):
        return
    if S.ndim != 2 or len(S) != size:
        remedy = (
            f"({size},) for a diagonal or ({size}, R) was expected."
            if diagonal
            else f"({size}, R) was expected. A free matrix that starts out diagonal is written "
            "S0.diag(); for a diagonal that stays one, use mean_field_limit."
        )
        raise ValueError(f"The factor has the shape {tuple(S.shape)}, and {remedy}")


def check_labels(y: Tensor) -> None:
    """Checks that the labels are -1 or 1.

    Args:
        y: Labels, shape ``(N,)``.

    Raises:
        ValueError: If another label occurs.
    """
    strange = y[(y != 1) & (y != -1)]
    if strange.numel():
        raise ValueError(
            f"y holds the label {strange.flatten()[0].item()!r}, and -1 or 1 was expected. Labels "
            "0 and 1 are written 2 * y - 1."
        )


def check_noise(noise_scale: float | Tensor | None, y: Tensor) -> Tensor:
    """Checks the standard deviation of the noise.

    Args:
        noise_scale: One number or ``(N,)``; None means 1.
        y: Targets, shape ``(N,)``.

    Returns:
        The standard deviation for each datum, ``(N,)``.

    Raises:
        ValueError: If it has another shape, or is not positive and finite.
    """
    scale = torch.as_tensor(1.0 if noise_scale is None else noise_scale).to(y)
    if scale.ndim and scale.shape != y.shape:
        raise ValueError(
            f"noise_scale has the shape {tuple(scale.shape)}, and one number or ({len(y)},) was "
            "expected."
        )
    if not ((scale > 0) & scale.isfinite()).all():
        raise ValueError(
            f"The smallest noise_scale is {scale.min().item():.3g} and the largest "
            f"{scale.max().item():.3g}, and positive finite standard deviations were expected. "
            "Leave out a datum that is to have no weight."
        )
    return scale.expand(y.shape)


def check_rates(rates: Tensor, X: Tensor) -> Tensor:
    """Checks the learning rates of the features.

    Args:
        rates: Shape ``(P,)``.
        X: Data, shape ``(N, P)``.

    Returns:
        The rates over the largest of them, ``(P,)``.

    Raises:
        ValueError: If they have another shape, or are not positive and finite.
    """
    if rates.shape != X.shape[1:]:
        raise ValueError(
            f"rates has the shape {tuple(rates.shape)}, and ({X.shape[1]},) was expected, one for "
            "each column of X."
        )
    if not ((rates > 0) & rates.isfinite()).all():
        raise ValueError(
            f"The smallest of rates is {rates.min().item():.3g} and the largest "
            f"{rates.max().item():.3g}, and positive finite numbers were expected. A feature that "
            "is not trained is taken out of X, and its part of X @ loc0 out of y."
        )
    return rates / rates.max()
