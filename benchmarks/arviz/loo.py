"""Leave-one-out by importance sampling against held-out data, for two objectives.

Run: ``python -m benchmarks.arviz.loo [--smoke]``; writes ``loo.json`` beside this file.

A small regression network is fitted with the ELBO and with the expected log-likelihood alone, by
the same guide. ``loo`` is ArviZ's estimate from the training draws, ``truth`` the log predictive
density on 2000 fresh data of the same process: what ``loo`` claims to estimate.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import arviz
import numpy as np
import pyro
import torch
from pyro.infer import SVI

import pyro_ibvi as ibvi
from benchmarks.provenance import provenance
from pyro_ibvi.arviz import to_arviz
from pyro_ibvi.arviz.criticism import log_predictive_density, pareto_k

NOISE, NUM_TRAIN, NUM_TEST, DIM = 0.5, 40, 2000, 5


def make_data(num_data: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(num_data, DIM)
    mean = x[:, :1] + torch.sin(2 * x[:, 1:2])
    return x, mean + NOISE * torch.randn(num_data, 1)


def fit(
    kl_weight: float, seed: int, steps: int
) -> tuple[ibvi.SupervisedModel, ibvi.AutoMuPNormal]:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    x, y = make_data(NUM_TRAIN)
    net = torch.nn.Sequential(torch.nn.Linear(DIM, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1))
    random_net = ibvi.RandomModule(net, stochastic="all", parametrization=ibvi.Standard())
    model = ibvi.SupervisedModel(random_net, ibvi.Normal(NOISE))
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.Diagonal(), init_scale=0.1)
    optim = ibvi.MuPOptim(torch.optim.Adam, {"lr": 0.01}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(kl_weight=kl_weight))
    for _ in range(steps):
        svi.step(x, y)
    return model, guide


def measure(kl_weight: float, seed: int, steps: int, draws: int) -> dict[str, float]:
    model, guide = fit(kl_weight, seed, steps)
    pyro.set_rng_seed(seed)
    train = make_data(NUM_TRAIN)
    pyro.set_rng_seed(1000 + seed)
    test = make_data(NUM_TEST)
    groups = ["log_likelihood"]
    data = to_arviz(model, guide, *train, num_samples=draws, seed=seed, groups=groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # large k is reported in numbers
        loo = arviz.loo(data, pointwise=True, reff=1.0)  # the draws are independent
    k = np.asarray(loo.pareto_k)
    truth = log_predictive_density(model, guide, *test, num_samples=draws, seed=seed)
    seen = log_predictive_density(model, guide, *train, num_samples=draws, seed=seed)
    elpd = float(getattr(loo, "elpd_loo", getattr(loo, "elpd", np.nan)))
    return {
        "loo_per_datum": elpd / NUM_TRAIN,
        "loo_se": float(loo.se) / NUM_TRAIN,
        "truth_per_datum": truth.mean,
        "truth_se": truth.mean_se,
        "training_per_datum": seen.mean,
        "loo_largest_k": float(k.max()),
        "loo_share_k_above_0.7": float((k > 0.7).mean()),
        "guide_k": pareto_k(model, guide, *train, num_samples=draws, seed=seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="a few steps, nothing written")
    smoke = parser.parse_args().smoke
    torch.set_num_threads(1)
    steps, draws, seeds = (20, 50, [0]) if smoke else (4000, 1000, [0, 1, 2])
    names = {"elbo": 1.0, "expected log-likelihood": 0.0}
    runs = {n: [measure(w, s, steps, draws) for s in seeds] for n, w in names.items()}
    result = {
        "mean_over_seeds": {
            n: {key: round(float(np.mean([r[key] for r in rows])), 3) for key in rows[0]}
            for n, rows in runs.items()
        },
        "runs": runs,
        "seeds": seeds,
        "steps": steps,
        "draws": draws,
        **provenance(arviz),
    }
    print(json.dumps(result["mean_over_seeds"], indent=2))
    if not smoke:
        path = Path(__file__).with_name("loo.json")
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
