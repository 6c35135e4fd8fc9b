"""The numbers that docs/theory.md quotes: who reaches the limit of Theorem 1, and who does not.

    python -m benchmarks.theory.limits

Twenty random regressions, 5 data and 9 features, a factor of rank 3, in float64, trained side by
side by loops written out here. The result goes to ``limits.json`` beside this file.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import quad

from benchmarks.provenance import provenance
from pyro_ibvi.theory import (
    classification_limit,
    expected_logistic_loss,
    max_stable_rate,
    mean_field_limit,
    null_space_projection,
    regression_limit,
    wasserstein2_squared,
)

SEED, PROBLEMS, N, P, R = 0, 20, 5, 9, 3


def randn(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def problems() -> tuple[torch.Tensor, ...]:
    """Data with singular values from 2 to 1.2 in random directions, targets, means, factors."""
    left, _ = torch.linalg.qr(randn(PROBLEMS, N, N, seed=SEED))
    right, _ = torch.linalg.qr(randn(PROBLEMS, P, N, seed=SEED + 1))
    X = left * torch.linspace(2, 1.2, N, dtype=torch.float64) @ right.mT
    y, loc, S = (randn(PROBLEMS, *s, seed=SEED + 2 + len(s)) for s in ((N,), (P,), (P, R)))
    return X, y, loc, S


def gradients(
    X: torch.Tensor, y: torch.Tensor, loc: torch.Tensor, S: torch.Tensor, z: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the expected loss, or of one draw z of it."""
    if z is None:
        residual = (X @ loc.unsqueeze(-1)).squeeze(-1) - y
        return (X.mT @ residual.unsqueeze(-1)).squeeze(-1) / N, X.mT @ X @ S / N
    residual = (X @ (loc.unsqueeze(-1) + S @ z)).squeeze(-1) - y
    grad_loc = X.mT @ residual.unsqueeze(-1) / N
    return grad_loc.squeeze(-1), grad_loc * z.mT


def train(
    optimizer: Callable,
    steps: int,
    *,
    draws: bool = False,
    decay: float = 1.0,
    batch: int = N,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the trained means and factors of all problems."""
    X, y, loc, S = problems()
    generator = torch.Generator().manual_seed(SEED + 10)
    optimizer = optimizer([loc, S])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    for _ in range(steps):
        rows = torch.randperm(N, generator=generator)[:batch]
        shape = (PROBLEMS, R, 1)
        z = torch.randn(shape, dtype=X.dtype, generator=generator) if draws else None
        loc.grad, S.grad = gradients(X[:, rows], y[:, rows], loc, S, z)
        optimizer.step()
        schedule.step()
    return loc, S


def compare(loc: torch.Tensor, S: torch.Tensor) -> dict:
    """How far the result is from the limit and from the prior; medians over the problems."""
    X, y, loc0, S0 = problems()
    rows = []
    for i in range(PROBLEMS):
        limit = regression_limit(X[i], y[i], loc0[i], S0[i])
        null = null_space_projection(X[i])
        to_prior = wasserstein2_squared(loc[i], S[i], loc0[i], S0[i])
        shortest = wasserstein2_squared(*limit, loc0[i], S0[i])
        fit = (X[i] @ loc[i] - y[i]).square() + (X[i] @ S[i]).square().sum(-1)
        rows.append(
            {
                "loss": fit.mean().item() / 2,
                "error": max((loc[i] - limit.loc).abs().max(), (S[i] - limit.S).abs().max()),
                "distance_to_limit": wasserstein2_squared(loc[i], S[i], *limit).sqrt(),
                "distance_to_prior_over_shortest": (to_prior / shortest).sqrt(),
                "null_variance_change": (null(S[i] - S0[i]).norm() / null(S0[i]).norm()),
            }
        )
    median = {key: float(np.median([float(row[key]) for row in rows])) for key in rows[0]}
    return {"worst_error": float(max(row["error"] for row in rows)), **median}


def regression() -> dict:
    sgd, adam = torch.optim.SGD, torch.optim.Adam
    runs = {
        "gradient descent": train(lambda p: sgd(p, lr=1.0), 400),
        "momentum 0.9": train(lambda p: sgd(p, lr=0.5, momentum=0.9), 600),
        "stochastic, 2 of 5 data": train(lambda p: sgd(p, lr=0.4), 2000, batch=2),
        "single draws": train(lambda p: sgd(p, lr=0.25), 2000, draws=True),
        "stochastic, momentum 0.9, single draws": train(
            lambda p: sgd(p, lr=0.02, momentum=0.9), 5000, draws=True, batch=2
        ),
    }
    for rate in (0.1, 0.01, 0.001):
        steps = int(20 / rate)
        runs[f"Adam, rate {rate}"] = train(lambda p, rate=rate: adam(p, lr=rate), steps)
    decay = 1e-4 ** (1 / 5000)
    runs["Adam, rate 0.05 decayed, single draws"] = train(
        lambda p: adam(p, lr=0.05), 5000, draws=True, decay=decay
    )
    return {name: compare(*result) for name, result in runs.items()}


def mean_field() -> dict:
    """Variance left by a full factor that starts at the identity, and by a diagonal."""
    X, y, loc0, _ = problems()
    eye = torch.eye(P, dtype=torch.float64)
    kept = [regression_limit(X[i], y[i], loc0[i], eye).S.square().sum() / P for i in range(5)]
    diagonal = [mean_field_limit(X[i], eye.diagonal()).square().sum() / P for i in range(5)]
    return {"full": float(np.mean(kept)), "diagonal": float(np.mean(diagonal))}


def exponents() -> dict:
    """Decay of X S in Theorem 2 on 200 random classifications of 5 data in 8 dimensions."""
    found = []
    for seed in range(200):
        X, w = randn(5, 8, seed=10_000 + seed), randn(8, seed=20_000 + seed)
        y = torch.sign(X @ w)
        limit = classification_limit(X, y, w, torch.ones_like(X.mT), require_span=False)
        found.append(limit.decay_exponent)
    spans = [value for value in found if value > 0]
    return {
        "cases": len(found),
        "support_spans": len(spans),
        "quartiles_where_it_does": np.quantile(spans, [0.25, 0.5, 0.75]).round(4).tolist(),
        "share_above_0.95": float(np.mean(np.array(spans) > 0.95)),
    }


def expectation(margin: float, scale: float) -> float:
    """Of the logistic loss over N(margin, scale^2), by adaptive quadrature."""

    def integrand(z: float) -> float:
        return np.logaddexp(0, -margin - scale * z) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)

    bends = [z for k in (-30, -5, 0, 5, 30) if abs(z := (k - margin) / scale) < 15]
    return quad(integrand, -15, 15, points=bends, limit=2000, epsabs=1e-17)[0]


def quadrature() -> dict:
    """Largest relative error of the expected logistic loss over margins from -8 to 6."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    one, result = torch.ones(1, 1, dtype=torch.float64), {}
    for scale in (1.0, 3.0, 5.0, 10.0, 30.0):
        errors = []
        for margin in (-8.0, -3.0, -1.0, 0.0, 0.5, 2.0, 6.0):
            truth = expectation(margin, scale)
            hermite = weights @ np.logaddexp(0, -margin - scale * nodes)
            moments = (torch.tensor([v], dtype=torch.float64) for v in (margin, scale))
            ours = expected_logistic_loss(one, one[0], *moments).item()
            errors.append((abs(hermite / truth - 1), abs(ours / truth - 1)))
        hermite_error, our_error = np.max(errors, 0)
        result[f"standard deviation {scale}"] = {
            "Gauss-Hermite, 64 nodes": float(f"{hermite_error:.1e}"),
            "expected_logistic_loss": float(f"{our_error:.1e}"),
        }
    return result


def rank_rule() -> dict:
    """Stable rates of S in units of 1 / curvature, one draw a step."""
    return {
        f"rank {rank}": {
            "mean held": max_stable_rate(1.0, rank),
            "mean at the same rate": max_stable_rate(1.0, rank, loc_rate_ratio=1.0),
            "mean at R times the rate": max_stable_rate(1.0, rank, loc_rate_ratio=rank),
        }
        for rank in (1, 10, 100)
    }


def main() -> None:
    torch.set_num_threads(1)
    report = {
        "regression": regression(),
        "share of variance kept": mean_field(),
        "decay exponents": exponents(),
        "logistic quadrature": quadrature(),
        "stable rates": rank_rule(),
        "seed": SEED,
        **provenance(),
    }
    text = json.dumps(report, indent=2)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
