# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Three posteriors side by side in ArviZ
#
# One small network, fitted three ways: NUTS (the reference), the ELBO with Pyro's `AutoNormal`,
# and implicit-bias variational inference. `to_arviz` brings all three into ArviZ with the same
# names, dimensions and labels. Then a digits classifier: named weights, posterior predictive
# checks, comparison on held-out data, and a file that is opened again.

# %% tags=["hide-input"]
import os
import tempfile
import warnings
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import xarray
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_digits

import pyro_ibvi as ibvi
from pyro_ibvi.arviz import compare_predictive, log_predictive_density, pareto_k, to_arviz

warnings.filterwarnings("ignore", module="arviz")  # ArviZ 0.23 beside newer pandas
SMOKE = bool(os.environ.get("PYRO_IBVI_SMOKE"))  # shorter, nothing skipped
torch.set_num_threads(1)
pyro.set_rng_seed(0)

# %% [markdown]
# ## A regression with a gap in its data

# %%
NOISE = 0.2
x = torch.cat([torch.linspace(-2.0, -0.7, 20), torch.linspace(0.7, 2.0, 20)])[:, None]
y = torch.sin(2 * x) + NOISE * torch.randn_like(x)
grid = torch.linspace(-3, 3, 61)[:, None]


def make_model():
    net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
    random_net = ibvi.RandomModule(net, stochastic="all", parametrization=ibvi.Standard())
    return ibvi.SupervisedModel(random_net, ibvi.Normal(NOISE))


model = make_model()


def train(guide, loss, optim, num_steps):
    svi = SVI(model, guide, optim, loss)
    return [svi.step(x, y) for _ in range(50 if SMOKE else num_steps)]


# %% [markdown]
# Implicit-bias inference: the expected log-likelihood alone, started at the prior.

# %%
ibvi_guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(5))
optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 3e-4, "momentum": 0.9}, ibvi_guide)
loss = ibvi.TraceExpectedLogLikelihood(reduction="mean")
ibvi_losses = train(ibvi_guide, loss, optim, 5000)

# %% [markdown]
# The ELBO, with Pyro's own guide, objective and optimizer.

# %%
elbo_guide = AutoNormal(model, init_scale=0.05)
elbo_losses = train(elbo_guide, Trace_ELBO(), pyro.optim.Adam({"lr": 0.01}), 3000)

# %% [markdown]
# NUTS. Its draws become a "guide" that hands out one of them at random: `to_arviz` takes any
# guide, so the result has the same groups as the other two.

# %%
num_draws = 10 if SMOKE else 200
mcmc = MCMC(NUTS(model, max_tree_depth=6), num_draws, num_draws, disable_progbar=True)
mcmc.run(x, y)
nuts_draws = mcmc.get_samples()


def nuts_guide(x, y=None):
    k = torch.randint(num_draws, ())
    for name, values in nuts_draws.items():
        pyro.sample(name, dist.Delta(values[k], event_dim=values.dim() - 1))


# %% [markdown]
# One call for each. The arguments are those of the model, targets included; `predictions=` asks
# for the grid as well; weights are exported since we name them, with readable dimensions.

# %%
options = {
    "num_samples": 50 if SMOKE else 400,
    "var_names": ["net.0.*"],
    "dims": {"net.0.weight": ["unit", "input"], "net.0.bias": ["unit"], "x": [None, "input"]},
    "coords": {"unit": [f"h{i}" for i in range(20)], "input": ["x"]},
    "predictions": (grid,),
    "predictions_coords": {"data": grid[:, 0]},
    "seed": 1,
}
posteriors = {
    "NUTS": to_arviz(model, nuts_guide, x, y, objective="NUTS", **options),
    "ELBO": to_arviz(
        model, elbo_guide, x, y, objective=Trace_ELBO(), loss_history=elbo_losses, **options
    ),
    "IBVI": to_arviz(model, ibvi_guide, x, y, objective=loss, loss_history=ibvi_losses, **options),
}
posteriors["IBVI"]["posterior"]

# %% [markdown]
# Plain ArviZ from here on, for example a summary of some weights. Draws of a guide are
# independent: the diagnostics of Markov chains have nothing to say about them.

# %%
az.summary(
    posteriors["IBVI"], var_names=["net.0.bias"], coords={"unit": ["h0", "h1", "h2"]}, kind="stats"
)

# %% [markdown]
# The labels make the three fits one array, with a dimension `fit`.

# %% mystnb={"image": {"alt": "Predictive bands of NUTS, the ELBO and implicit-bias VI on a regression with a gap in its data."}}
names = pd.Index(list(posteriors), name="fit")
predictions = xarray.concat([p["predictions"]["obs"] for p in posteriors.values()], dim=names)
bands = predictions.isel(obs_dim_1=0).quantile([0.05, 0.5, 0.95], dim=("chain", "draw"))

fig, axes = plt.subplots(1, 3, figsize=(12, 3.2), sharey=True)
for ax, name in zip(axes, names, strict=True):
    band = bands.sel(fit=name)
    ax.fill_between(band["data"], band.sel(quantile=0.05), band.sel(quantile=0.95), alpha=0.3)
    ax.plot(band["data"], band.sel(quantile=0.5))
    ax.plot(x, y, "k.", markersize=4)
    ax.set(title=name, xlabel="x", ylim=(-2.5, 2.5))
axes[0].set_ylabel("y")
fig.tight_layout()

# %% [markdown]
# Which fit predicts best where data are? Held-out log predictive density, in nats, with the
# standard error of the paired difference.

# %%
x_test = x + 0.02
y_test = torch.sin(2 * x_test) + NOISE * torch.randn_like(x_test)
guides = {"NUTS": nuts_guide, "ELBO": elbo_guide, "IBVI": ibvi_guide}
num_samples = options["num_samples"]
held_out = {
    name: log_predictive_density(model, guide, x_test, y_test, num_samples=num_samples, seed=2)
    for name, guide in guides.items()
}
compare_predictive(held_out).round(2)

# %% [markdown]
# How far is the ELBO's guide from the posterior? Pareto k above 0.7 says: too far to reweight its
# draws. The low-rank guide of IBVI has no density at all, and its export says so.

# %%
print(pareto_k(model, elbo_guide, x, y, num_samples=num_samples, seed=3))
print(posteriors["IBVI"]["sample_stats"].attrs["log_q_omitted"])

# %% [markdown]
# ## A digits classifier

# %%
digits = load_digits()
images = torch.as_tensor(digits.data, dtype=torch.float32) / 8 - 1
labels = torch.as_tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train_rows, test_rows = order[:1200], order[1200:1500]

net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 10))
random_net = ibvi.RandomModule(net, stochastic="input+output")
classifier = ibvi.SupervisedModel(random_net, ibvi.Categorical(), num_data=1200)
guide = ibvi.AutoMuPNormal(classifier)
optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, guide)
svi = SVI(classifier, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
loader = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(images[train_rows], labels[train_rows]), 128, shuffle=True
)
history = ibvi.fit(svi, loader, num_epochs=2 if SMOKE else 40, progress=False)

# %% [markdown]
# `coords` may be a pandas index: here the number of each image in the data set.

# %%
data = to_arviz(
    classifier,
    guide,
    images[test_rows],
    labels[test_rows],
    num_samples=50 if SMOKE else 300,
    var_names=["net.2.bias"],
    dims={"net.2.bias": ["digit"], "x": [None, "pixel"]},
    coords={"digit": digits.target_names, "data": pd.Index(test_rows.numpy(), name="image")},
    loss_history=history,
    objective=svi.loss,
    seed=0,
)
data["posterior_predictive"]

# %% [markdown]
# The posterior of the weights that were named, by digit.

# %% mystnb={"image": {"alt": "Posterior intervals of the ten biases of the output layer, one line each."}}
az.plot_forest(data, var_names=["net.2.bias"], combined=True)

# %% [markdown]
# A posterior predictive check: how often each digit is predicted, against how often it occurs.

# %% mystnb={"image": {"alt": "Cumulative distribution of the observed digits and of draws from the posterior predictive."}}
if hasattr(az, "plot_ppc_dist"):  # ArviZ 1.x
    az.plot_ppc_dist(data, kind="ecdf", num_samples=20)
else:
    az.plot_ppc(data, kind="cumulative", num_pp_samples=20)

# %% [markdown]
# The images on which the draws disagree most.

# %% mystnb={"image": {"alt": "Six digits, each with its true class and the probability that the posterior predictive gives it."}}
draws = data["posterior_predictive"]["obs"]
probabilities = xarray.concat([(draws == k).mean(("chain", "draw")) for k in range(10)], "digit")
confidence = probabilities.max("digit")
unsure = confidence["data"].values[np.argsort(confidence.values)[:6]]
fig, axes = plt.subplots(1, 6, figsize=(12, 2.4))
for ax, image in zip(axes, unsure, strict=True):
    ax.imshow(digits.images[image], cmap="gray_r")
    truth = int(data["observed_data"]["obs"].sel(data=image))
    ax.set_title(f"{truth}: p = {float(probabilities.sel(data=image)[truth]):.2f}")
    ax.axis("off")

# %% [markdown]
# Saved and opened again, nothing is lost, attributes included.

# %%
path = Path(tempfile.mkdtemp()) / "digits.nc"
data.to_netcdf(path)
again = az.from_netcdf(path)
assert np.array_equal(again["posterior"]["net.2.bias"], data["posterior"]["net.2.bias"])
print(again.attrs["objective"], again.attrs["guide"], f"{path.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# Run as a script, this page leaves its pictures in the folder `out`.

# %% tags=["remove-cell"]
out = Path("out")
out.mkdir(exist_ok=True)
for number in plt.get_fignums():
    plt.figure(number).savefig(out / f"05_arviz_{number}.png", dpi=100, bbox_inches="tight")
