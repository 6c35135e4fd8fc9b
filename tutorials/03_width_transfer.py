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
# # Tune small, train wide
#
# A learning rate that is best for a small network is usually wrong for a wide one. The maximal
# update parametrization (muP, Yang, Hu et al., arXiv:2203.03466) chooses initial scales and rates
# per layer so that it stays right, and carries over to the mean *and* the covariance of Bayesian
# weights (Wenger et al., arXiv:2505.20235). This page shows how to check that for your network:
#
# - `coordinate_check`: do activations, and the changes that training makes in them, keep their
#   size as the network widens?
# - `rate_transfer`: is the best learning rate the same at every width?

# %% tags=["hide-input"]
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi

smoke = "PYRO_IBVI_SMOKE" in os.environ  # shortens the runs where only the code is checked

# %% [markdown]
# ## A network for every width
#
# Both tools take a function that makes a fresh model and its guide for a width. Here it is a
# network for handwritten digits, its first and last layer random with a low-rank covariance. The
# base says at which width the rates are those that one would give a plain network: there the two
# parametrizations are the same.

# %%
base_width = 64


def make_network(width):
    return nn.Sequential(
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def make_build(parametrization):
    def build(width):
        random_net = ibvi.RandomModule(
            make_network(width), stochastic="input+output", parametrization=parametrization
        )
        model = ibvi.SupervisedModel(random_net, ibvi.Categorical(), num_data=1200)
        return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(10))

    return build


rules = {
    "MaximalUpdate": ibvi.MaximalUpdate(base=base_width),
    "Standard": ibvi.Standard(),
}

digits = load_digits()
images = (torch.tensor(digits.data, dtype=torch.float32) / 16 - 0.3) / 0.37
labels = torch.tensor(digits.target)

# %% [markdown]
# ## Coordinate check
#
# Five steps of SGD at each width on the same 128 images. `change` is how far the output of a layer
# has moved for the same draw of the weights; in the table, `loc` and `factor` say how much of that
# is due to the mean and to the covariance factor of one weight. A slope of zero means that the
# width does not matter.

# %%
check_widths = [64, 128] if smoke else [64, 256, 1024]
checks = {
    name: ibvi.coordinate_check(
        make_build(rule),
        check_widths,
        (images[:128], labels[:128]),
        optim_args={"lr": 0.02},
        steps=[5],
        num_seeds=1 if smoke else 3,
    )
    for name, rule in rules.items()
}
print(checks["MaximalUpdate"])

# %% mystnb={"image": {"alt": "Change of each layer's outputs against width on logarithmic axes, under muP flat and under the standard parametrization rising."}}
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for axis, (name, check) in zip(axes, checks.items(), strict=True):
    check.plot("change", ax=axis).set_title(name)
figure.tight_layout()

# %% [markdown]
# With `Standard` the changes of the hidden layer and of the output grow with the width, and those
# of the input layer ("0") shrink. With `MaximalUpdate` they are flat, to within the noise of a few
# runs. The output's ("4") may fall at first, since the random part of the read-out averages out.
#
# `largest_slope` is the number for a test of your own code:

# %%
for name, check in checks.items():
    print(f"{name}: largest slope {check.largest_slope(['change'], layers=['0', '2']):.2f}")

# %% [markdown]
# ## Does the learning rate transfer?
#
# Short trainings over widths and rates. The stars mark the best rates. With
# `path="runs.json"` finished runs would be kept, and a second call would go on from there.

# %%
transfer_widths = [32, 64] if smoke else [64, 256, 1024]
rates = [10**-3, 10**-2] if smoke else [10 ** (k / 4) for k in range(-12, -2)]
loader = DataLoader(TensorDataset(images[:1200], labels[:1200]), batch_size=100, shuffle=True)
transfers = {
    name: ibvi.rate_transfer(
        make_build(rule),
        transfer_widths,
        rates,
        loader,
        num_epochs=1 if smoke else 3,
        optim_args={"momentum": 0.9},
        num_draws=4,
    )
    for name, rule in rules.items()
}

# %% mystnb={"image": {"alt": "Validation loss against learning rate for three widths: under muP the best rates lie above one another, under the standard parametrization they move with the width."}}
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for axis, (name, result) in zip(axes, transfers.items(), strict=True):
    result.plot(axis).set(title=name, ylim=(None, 10))
figure.tight_layout()
for name, result in transfers.items():
    best = {width: f"{result.best_rate(width):.2g}" for width in transfer_widths}
    print(f"{name}: best rates {best}, slope {result.slope():+.2f}")

# %% [markdown]
# With `MaximalUpdate` a rate that is tuned where trainings are cheap serves every width, to within
# the noise of single runs, and wider networks are better at it. With `Standard` the best rate
# falls with the width, and a wider network gains nothing even at its own.
#
# ## What a mean-field guide can and cannot learn
#
# A `Diagonal` covariance has noise of its own for every weight. The wider the layer, the smaller
# the part of a unit's noise that any one weight decides, and a step that sees one draw of the
# noise tells little about each of them. Its factor can learn no faster than the mean does without
# diverging, so in a wide layer it hardly moves in a finite run (see `MaximalUpdate`). A low-rank
# factor shares its few noise variables over the layer and keeps learning at every width:

# %%
hidden = {}
for covariance in (ibvi.Diagonal(), ibvi.LowRank(10)):

    def build(width, covariance=covariance):
        random_net = ibvi.RandomModule(make_network(width), stochastic="all")
        model = ibvi.SupervisedModel(random_net, ibvi.Categorical(), num_data=1200)
        return model, ibvi.AutoMuPNormal(model, covariance=covariance)

    check = ibvi.coordinate_check(
        build,
        check_widths,
        (images[:128], labels[:128]),
        optimizer=torch.optim.Adam,
        optim_args={"lr": 0.01},
        steps=[3],
        num_seeds=1,
    )
    hidden[str(covariance)] = check.mean("factor", 3, "2.weight")
    print(f"{covariance}: slope {check.slope('factor', 3, '2.weight'):+.2f}")

# %% mystnb={"image": {"alt": "Change made by the hidden factor S against width for the covariances compared on this page."}}
figure, axis = plt.subplots(figsize=(5, 4))
for name, values in hidden.items():
    axis.plot(check_widths, values, "o-", label=name)
axis.set_xscale("log", base=2)
axis.set(yscale="log", xlabel="width", ylabel="change made by the hidden factor S")
axis.legend()
figure.tight_layout()

# %% [markdown]
# Run as a script, this page leaves its pictures in the folder `out`.

# %% tags=["remove-cell"]
out = Path("out")
out.mkdir(exist_ok=True)
for number in plt.get_fignums():
    plt.figure(number).savefig(out / f"03_width_transfer_{number}.png", dpi=100)
