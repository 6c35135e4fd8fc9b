"""Linear models in float64, and gradient descent on them written out by hand."""

import torch

N, P, R = 5, 9, 3


def randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def matrix(singular_values, num_rows, num_columns, seed):
    """A matrix with these singular values in random directions."""
    left, _ = torch.linalg.qr(randn(num_rows, num_rows, seed=seed))
    right, _ = torch.linalg.qr(randn(num_columns, num_columns, seed=seed + 1))
    values = torch.tensor(singular_values, dtype=torch.float64)
    return left[:, : len(values)] * values @ right[:, : len(values)].mT


def problem(seed=0):
    X = matrix([2.0, 1.8, 1.6, 1.4, 1.2], N, P, seed)
    return X, randn(N, seed=seed + 2), randn(P, seed=seed + 3), randn(P, R, seed=seed + 4)


def descend(
    X, y, loc, S, *, steps, rate, rate_S=None, momentum=0.0, batch=None, draws=0, weights=None
):
    """Gradient descent on the expected squared loss, in closed form or with draws of z."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.ones_like(y) if weights is None else weights
    velocity_loc, velocity_S = torch.zeros_like(loc), torch.zeros_like(S)
    for _ in range(steps):
        rows = (
            slice(None) if batch is None else torch.randperm(len(y), generator=generator)[:batch]
        )
        x, t, w = X[rows], y[rows], weights[rows, None]
        scaled = x * w / len(t)
        if draws:
            z = torch.randn(S.shape[1], draws, dtype=S.dtype, generator=generator)
            residual = x @ (loc[:, None] + S @ z) - t[:, None]
            grad_loc = scaled.mT @ residual.mean(-1)
            grad_S = scaled.mT @ (residual @ z.mT / draws)
        else:
            grad_loc = scaled.mT @ (x @ loc - t)
            grad_S = scaled.mT @ (x @ S)
        velocity_loc = momentum * velocity_loc + grad_loc
        velocity_S = momentum * velocity_S + grad_S
        loc = loc - rate * velocity_loc
        S = S - (rate_S or rate) * velocity_S
    return loc, S
