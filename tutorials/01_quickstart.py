# %% [markdown]
# # Quickstart: from a network to an uncertainty
#
# You have a PyTorch network. You want to know where it is sure and where it guesses. This page
# trains one as usual, and once more as a distribution over networks, and shows both images that
# are unlike the ones they saw.

# %% tags=["hide-input"]
import argparse
import os
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import pyro_ibvi as ibvi

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="out", help="folder for what is written")
out = Path(parser.parse_known_args()[0].out)
out.mkdir(parents=True, exist_ok=True)
num_epochs = 2 if "PYRO_IBVI_SMOKE" in os.environ else 40  # few where only the code is checked

# %% [markdown]
# ## Data
#
# Handwritten digits, 1,200 to train on. The noisy ones are what the networks never saw.

# %%
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, test = order[:1200], order[1200:]
noisy = images[test] + 0.6 * torch.randn(len(test), 64)
test_sets = {"clean": images[test], "noisy": noisy}


def make_network():
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


# %% [markdown]
# ## As usual

# %%
network = make_network()
optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
for _ in range(num_epochs):
    for rows in train[torch.randperm(len(train))].split(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()

# %% [markdown]
# ## As a distribution
#
# Wrap it, train it, ask it. Its weights start at the network's own and have noise of a third of their
# size, and its learning rates are those of ordinary training.

# %%
bnn = ibvi.VariationalNetwork(make_network(), ibvi.Categorical())
bnn.fit(images[train], labels[train], batch_size=100, num_epochs=num_epochs)

# %% [markdown]
# ## Both, on what they know and on what they do not
#
# Accuracy in percent; the negative log-likelihood (NLL, nats per image) and the expected
# calibration error (ECE), for which lower is better.

# %%
predictions = {}
for name, x in test_sets.items():
    with torch.no_grad():
        usual = ibvi.Prediction(network(x)[None], ibvi.Categorical())  # one draw of the weights
    predictions[name] = {"as usual": usual, "distribution": bnn.predict(x, seed=0)}
    print(f"{name:<13} accuracy    NLL    ECE")
    for method, prediction in predictions[name].items():
        s = ibvi.score(prediction, labels[test])
        print(f"{method:<13} {100 * s['accuracy']:8.1f} {s['nll']:6.3f} {s['ece']:6.3f}")

# %% [markdown]
# Confidence against accuracy on the noisy images. Below the diagonal a network is surer than it
# should be.

# %% mystnb={"image": {"alt": "Reliability on noisy digits: the usual network's accuracy is far below its confidence, that of the distribution is closer to the diagonal."}}
figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
for (method, prediction), color in zip(
    predictions["noisy"].items(), ("#D55E00", "#0072B2"), strict=True
):
    bins = ibvi.reliability(prediction, labels[test], num_bins=8)
    axis.plot(bins.confidence, bins.accuracy, "o-", color=color, label=method)
axis.plot([0, 1], [0, 1], "k:", label="calibrated")
axis.set(xlabel="confidence", ylabel="accuracy", title="Noisy digits")
axis.legend()
figure.savefig(out / "reliability.png", dpi=100)

# %% [markdown]
# ## Where it guesses
#
# The clean test images on which draws of the weights disagree most:

# %% mystnb={"image": {"alt": "The eight clean digits about which the draws of the weights disagree most, each with the two most probable classes: badly written ones."}}
prediction = predictions["clean"]["distribution"]
unsure = prediction.epistemic.sum(-1).topk(8).indices
figure, axes = plt.subplots(1, 8, figsize=(9, 1.8), layout="constrained")
for axis, i in zip(axes, unsure.tolist(), strict=True):
    first, second = prediction.mean[i].topk(2).indices.tolist()
    axis.imshow(images[test][i].reshape(8, 8).numpy(), cmap="gray_r")
    axis.set_title(f"{first} or {second}?", fontsize=10)
    axis.axis("off")
figure.savefig(out / "unsure.png", dpi=100)

# %% [markdown]
# ## Keep it
#
# The network in one file, and draws of its last layer with predictions for ArviZ.

# %%
bnn.save(out / "network.ibvi")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next version
    posterior = ibvi.to_arviz(
        bnn.model,
        bnn.guide,
        images[test],
        labels[test],
        num_samples=20,
        var_names=["net.4.*"],
        seed=0,
    )
    posterior.to_netcdf(str(out / "posterior.nc"))

# %% [markdown]
# Next: [the same in three ways](07_three_ways.py), with stock Pyro's ELBO beside it and a
# regression; [your own Pyro model](02_existing_pyro_model.py); or the pages by what you want to do.
