# %% [markdown]
# # Three ways to train one network
#
# This page trains one network in three ways, on scikit-learn's handwritten digits and on a curve
# with gaps in its data:
#
# - **deterministic**: ordinary training, one set of weights;
# - **ELBO**: stock Pyro, `AutoNormal` and `Trace_ELBO`, with standard normal priors;
# - **IBVI**: implicit-bias variational inference, this package. It starts at the prior,
#   maximizes the expected log-likelihood alone, and lets stochastic gradient descent regularize.
#
# It takes about two minutes on two CPU cores.

# %% tags=["hide-input"]
import argparse
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import scipy.ndimage
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="out", help="folder for the pictures")
out = Path(parser.parse_known_args()[0].out)
out.mkdir(parents=True, exist_ok=True)

smoke = "PYRO_IBVI_SMOKE" in os.environ  # shortens the runs where only the code is checked
num_epochs = 2 if smoke else 60
num_steps = 20 if smoke else 3000
seed = 0

# %% [markdown]
# ## Handwritten digits
#
# 1,200 images of 8x8 pixels to train on and 597 to test on. The shifted test sets have noise, or
# are turned by 30 degrees: a network should then be less sure.

# %%
digits = load_digits()
images = (torch.tensor(digits.data, dtype=torch.float32) / 16 - 0.3) / 0.37
x_train, x_test, y_train, y_test = train_test_split(
    images,
    torch.tensor(digits.target),
    test_size=597,
    random_state=0,
    stratify=digits.target,
)


def rotated(x, degrees):
    turned = scipy.ndimage.rotate(
        x.reshape(-1, 8, 8), degrees, axes=(1, 2), reshape=False, order=1, mode="nearest"
    )
    return torch.tensor(turned).reshape(-1, 64)


noise = torch.randn(x_test.shape, generator=torch.Generator().manual_seed(seed))
test_sets = {"clean": x_test, "noise": x_test + noise, "rotation": rotated(x_test, 30)}


def make_loader():
    return DataLoader(
        TensorDataset(x_train, y_train),
        batch_size=100,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )


def make_network():
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


# %% [markdown]
# ### Deterministic

# %%
pyro.set_rng_seed(seed)
network = make_network()
optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)
deterministic_loss = []
for _ in range(num_epochs):
    losses = []
    for x, y in make_loader():
        loss = nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    deterministic_loss.append(np.mean(losses))
    scheduler.step()

with torch.no_grad():
    deterministic = {
        # One draw of the weights: the same scores serve all three methods.
        name: ibvi.Prediction(network(x)[None], ibvi.Categorical())
        for name, x in test_sets.items()
    }

# %% [markdown]
# ### Stock Pyro
#
# `RandomModule` makes the network's parameters Pyro sites. Every weight is random, with a
# standard normal prior, as is usual. Its learning rate (0.01) and the initial scale of its guide
# (0.01) were the best of those that were tried; with Pyro's default scale of 0.1 it does worse.

# %%
pyro.set_rng_seed(seed)
pyro.clear_param_store()
elbo_model = ibvi.SupervisedModel(
    ibvi.RandomModule(make_network(), stochastic="all", prior=1.0),
    ibvi.Categorical(),
    num_data=len(x_train),
)
elbo_guide = AutoNormal(elbo_model, init_scale=0.01)
elbo_svi = SVI(elbo_model, elbo_guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
elbo_history = ibvi.fit(elbo_svi, make_loader(), num_epochs)
elbo = {name: ibvi.predict(elbo_model, elbo_guide, x) for name, x in test_sets.items()}

# %% [markdown]
# ### Implicit-bias VI
#
# The loss changes, and with it the guide and the optimizer. The weights of the first and the last
# layer are random, with a low-rank covariance; the others are trained as usual. The rule for the
# learning rates (muP) is `MuPOptim`'s business: the one that is given here serves a wider network
# as well.
#
# This takes seconds. Give a training of hours a file, `ibvi.fit(..., checkpoint="run.pt")`: killed
# and started again, the same script goes on after its last epoch, and ends bit for bit where it
# would have ended.

# %%
pyro.set_rng_seed(seed)
model = ibvi.SupervisedModel(
    ibvi.RandomModule(make_network()), ibvi.Categorical(), num_data=len(x_train)
)
guide = ibvi.AutoMuPNormal(model)
optim = ibvi.MuPOptim(
    torch.optim.SGD,
    {"lr": 0.1, "momentum": 0.9},
    guide,
    scheduler="cosine",  # to 0 by the last epoch
)
svi = SVI(model, guide, optim, loss=ibvi.TraceExpectedLogLikelihood(reduction="mean"))
history = ibvi.fit(svi, make_loader(), num_epochs)
implicit = {name: ibvi.predict(model, guide, x) for name, x in test_sets.items()}

# %% [markdown]
# ### What came out
#
# Accuracy in percent, negative log-likelihood (NLL, nats per image) and expected calibration
# error (ECE): lower is better for the last two.

# %%
methods = {"deterministic": deterministic, "ELBO": elbo, "IBVI": implicit}
for name in test_sets:
    print(f"{name:<15} accuracy    NLL    ECE")
    for method, predictions in methods.items():
        scores = ibvi.score(predictions[name], y_test)
        accuracy = 100 * scores["accuracy"]
        print(f"{method:<15} {accuracy:8.1f} {scores['nll']:6.3f} {scores['ece']:6.3f}")
    print()

# %% mystnb={"image": {"alt": "Left, confidence against accuracy on noisy digits of three ways of training; right, their objectives over epochs."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
for color, (method, predictions) in zip(("C0", "C1", "C2"), methods.items(), strict=True):
    bins = ibvi.reliability(predictions["noise"], y_test, num_bins=10)
    left.plot(bins.confidence, bins.accuracy, "o-", color=color, label=method)
left.plot([0, 1], [0, 1], "k:", label="calibrated")
left.set(xlabel="confidence", ylabel="accuracy", title="Reliability on noisy digits")
left.legend()
right.plot(deterministic_loss, color="C0", label="deterministic")
right.plot(np.array(elbo_history.train_loss) / len(x_train), color="C1", label="ELBO")
right.plot(history.train_loss, color="C2", label="IBVI")
right.set(xlabel="epoch", ylabel="objective, nats per image", yscale="log", title="Training")
right.legend()
figure.tight_layout()
figure.savefig(out / "digits.png", dpi=100)

# %% [markdown]
# The deterministic network is sure of itself on noisy and turned digits and often wrong. Averaging
# over weights that fit the data takes the edge off, at about the same accuracy. The ELBO pays for
# its prior: it is unsure of everything, which costs likelihood on clean digits and pays off on
# noisy ones. Neither is calibrated under a shift that it never saw. These are single runs; means
# over seeds are on the page [Results](../results.md).
#
# ## A curve with gaps
#
# Regression on three clusters of points with noise of standard deviation 0.2. The noise is known
# here; `Normal(0.2, learn_scale=True)` would learn it.

# %%
generator = torch.Generator().manual_seed(seed)


def curve(x):
    return torch.sin(2 * x)


x_curve = torch.cat(
    [
        low + (high - low) * torch.rand(30, 1, generator=generator)
        for low, high in ((-2.0, -1.2), (-0.2, 0.6), (1.5, 2.0))
    ]
)
y_curve = curve(x_curve) + 0.2 * torch.randn(x_curve.shape, generator=generator)
x_grid = torch.linspace(-3, 3, 200).unsqueeze(-1)


def make_curve_network():
    return nn.Sequential(
        nn.Linear(1, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1)
    )


# %% [markdown]
# The same three methods. `MaximalUpdate(base=32)` says that the rates were tuned on a network of
# width 32. With a single input the biases say where each hidden unit bends, so they are random
# here as well.

# %%
pyro.set_rng_seed(seed)
curve_network = make_curve_network()
optimizer = torch.optim.SGD(curve_network.parameters(), lr=0.01, momentum=0.9)
for _ in range(num_steps):
    optimizer.zero_grad()
    nn.functional.mse_loss(curve_network(x_curve), y_curve).backward()
    optimizer.step()
likelihood = ibvi.Normal(0.2)
with torch.no_grad():
    curve_deterministic = ibvi.Prediction(curve_network(x_grid)[None], likelihood)

pyro.set_rng_seed(seed)
pyro.clear_param_store()
elbo_curve_model = ibvi.SupervisedModel(
    ibvi.RandomModule(make_curve_network(), stochastic="all", prior=1.0), likelihood
)
elbo_curve_guide = AutoNormal(elbo_curve_model, init_scale=0.01)
elbo_curve_svi = SVI(
    elbo_curve_model, elbo_curve_guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()
)
for _ in range(num_steps):
    elbo_curve_svi.step(x_curve, y_curve)
curve_elbo = ibvi.predict(elbo_curve_model, elbo_curve_guide, x_grid)

pyro.set_rng_seed(seed)
curve_model = ibvi.SupervisedModel(
    ibvi.RandomModule(
        make_curve_network(),
        stochastic="input+output",
        parametrization=ibvi.MaximalUpdate(base=32),
    ),
    likelihood,
)
curve_guide = ibvi.AutoMuPNormal(curve_model, covariance=ibvi.LowRank(20))
curve_optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 5e-4, "momentum": 0.9}, curve_guide)
curve_svi = SVI(
    curve_model,
    curve_guide,
    curve_optim,
    loss=ibvi.TraceExpectedLogLikelihood(reduction="mean"),
)
for _ in range(num_steps):
    curve_svi.step(x_curve, y_curve)
curve_implicit = ibvi.predict(curve_model, curve_guide, x_grid)

# %% mystnb={"image": {"alt": "A curve with gaps in its data, fitted three ways: the deterministic band is the noise alone, those of the ELBO and of implicit-bias VI widen in the gaps."}}
figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
curve_predictions = {
    "deterministic": curve_deterministic,
    "ELBO": curve_elbo,
    "IBVI": curve_implicit,
}
for axis, (method, prediction) in zip(axes, curve_predictions.items(), strict=True):
    grid, mean = x_grid[:, 0], prediction.mean[:, 0]
    for spread, alpha, label in (
        (prediction.stddev, 0.2, "with noise"),
        (prediction.epistemic.sqrt(), 0.4, "epistemic"),
    ):
        band = 2 * spread[:, 0]
        axis.fill_between(grid, mean - band, mean + band, alpha=alpha, color="C2", label=label)
    axis.plot(grid, mean, color="C2")
    axis.plot(grid, curve(grid), "k--", linewidth=1, label="truth")
    axis.plot(x_curve, y_curve, "k.", markersize=3)
    axis.set(title=method, ylim=(-3, 3), xlabel="x")
axes[0].legend()
figure.tight_layout()
figure.savefig(out / "curve.png", dpi=100)

# %% [markdown]
# The law of total variance splits the band: the *aleatoric* part is the noise, the *epistemic*
# part is what more data could remove. In the gaps and beyond the data it grows.

# %%
inside = torch.cat([x_curve.min()[None] + 0.3, x_curve[40]])
gaps = torch.tensor([[-0.7], [1.0], [-2.8], [2.8]])
places = {"among the data": inside.unsqueeze(-1), "in the gaps and beyond": gaps}
for place, x in places.items():
    spread = ibvi.predict(curve_model, curve_guide, x).epistemic.mean().sqrt()
    print(f"{place:<24} epistemic standard deviation {spread:.3f}")
