# %% [markdown]
# # Adopting it in an existing Pyro model
#
# You have a Pyro program that works with `Trace_ELBO`. This page changes its loss, one line, and
# looks at what that does to the posterior: in a logistic regression, in a hierarchical
# regression, and in a variational autoencoder, where the KL divergence must stay.

# %% tags=["hide-input"]
import argparse
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import pyro_ibvi as ibvi

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="out", help="folder for the pictures")
out = Path(parser.parse_known_args()[0].out)
out.mkdir(parents=True, exist_ok=True)
smoke = "PYRO_IBVI_SMOKE" in os.environ  # shortens the runs where only the code is checked


def fit(model, guide, loss, *args, num_steps=1500, lr=0.01):
    """The training loop that the program has; it stays as it is."""
    pyro.set_rng_seed(0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), loss)
    for _ in range(10 if smoke else num_steps):
        svi.step(*args)
    return svi


# %% [markdown]
# ## Logistic regression
#
# Breast cancer, 30 features, 200 patients to train on. The model and the guide are Pyro's own.

# %%
features, labels = load_breast_cancer(return_X_y=True)
x_train, x_test, y_train, y_test = (
    torch.tensor(part, dtype=torch.float32)
    for part in train_test_split(features, labels, train_size=200, random_state=0)
)
mean, std = x_train.mean(0), x_train.std(0)
x_train, x_test = (x_train - mean) / std, (x_test - mean) / std


def logistic(x, y=None):
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([30]).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
    logits = (x * weight).sum(-1) + bias.unsqueeze(-1)
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def describe(guide):
    median = guide.median()["weight"]
    low, high = guide.quantiles([0.16, 0.84])["weight"]
    draws = [guide()["weight"] for _ in range(200)], [guide()["bias"] for _ in range(200)]
    weight, bias = (torch.stack(values).detach() for values in draws)
    probability = (x_test @ weight.T + bias).sigmoid().mean(-1)
    nll = -dist.Bernoulli(probs=probability).log_prob(y_test).mean().item()
    spread = ((high - low) / 2).mean().item()
    return f"{median.norm():.2f} | {spread:.3f} | {nll:.3f}"


posteriors = {}
rows = [
    "| loss | length of the median | mean posterior std | test NLL |",
    "| --- |" + " --- |" * 3,
]
for name, loss in {
    "Trace_ELBO": Trace_ELBO(),
    "kl_weight=1": ibvi.TraceExpectedLogLikelihood(kl_weight=1),
    "kl_weight=0.1": ibvi.TraceExpectedLogLikelihood(kl_weight=0.1),
    "kl_weight=0": ibvi.TraceExpectedLogLikelihood(),
}.items():
    pyro.clear_param_store()
    guide = AutoNormal(logistic)
    _ = fit(logistic, guide, loss, x_train, y_train)
    rows.append(f"| {name} | {describe(guide)} |")
    posteriors[name] = torch.stack(list(guide.quantiles([0.16, 0.5, 0.84])["weight"]))
print("\n".join(rows))

# %% tags=["hide-input"] mystnb={"image": {"alt": "Medians and 68 percent intervals of the thirty weights. With the whole KL they are small and their intervals wide; the less of it is left, the larger the weights and the shorter the intervals."}}
figure, axis = plt.subplots(figsize=(7, 3))
for shift, (name, color) in enumerate(
    {"Trace_ELBO": "0.5", "kl_weight=0.1": "tab:orange", "kl_weight=0": "tab:blue"}.items()
):
    low, median, high = posteriors[name].detach()
    place = torch.arange(30) + 0.25 * shift
    axis.errorbar(place, median, [median - low, high - median], fmt="o", ms=3, c=color, label=name)
axis.axhline(0, c="0.8", zorder=0)
axis.set(xlabel="feature", ylabel="weight")
axis.legend()
figure.savefig(out / "logistic_weights.png", dpi=150, bbox_inches="tight")

# %% [markdown]
# `kl_weight=1` *is* `Trace_ELBO`, to the last digit. Without the KL the data decide: they are
# many against 31 parameters, so that every direction is determined, the standard deviations
# shrink, and the classes being separable the weights grow for as long as one trains. **That is
# what to expect outside of the overparametrized regime: maximum likelihood.** The implicit
# regularization comes from directions that the data leave free, of which a network has plenty
# and this model has none. Keep the ELBO here.
#
# ## A hierarchical regression
#
# Disease progression of 442 diabetics on body mass index, with a slope for each of five age
# groups. First as many would write it:

# %%
diabetes = load_diabetes()
bmi = torch.tensor(diabetes.data[:, 2] * 21, dtype=torch.float32)
progression = torch.tensor((diabetes.target - 152) / 77, dtype=torch.float32)
age = torch.tensor(diabetes.data[:, 0])
group = torch.bucketize(age, torch.quantile(age, torch.tensor([0.2, 0.4, 0.6, 0.8]).double()))


def centered(bmi, group, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(0.5))
    with pyro.plate("groups", 5):
        slope = pyro.sample("slope", dist.Normal(mu, tau))
    with pyro.plate("data", len(bmi)):
        pyro.sample("y", dist.Normal(slope[..., group] * bmi, 0.8), obs=y)


data = (bmi, group, progression)
pyro.clear_param_store()
print(ibvi.explain(ibvi.TraceExpectedLogLikelihood(), centered, AutoNormal(centered), *data))

# %% [markdown]
# The report says what the objective does with each site, and what it cannot move: `mu` and `tau`
# reach the data only through the prior of the slopes, which is dropped. The same is said once, as
# a warning, at the first training step. There are two ways out. Keep the KL of the slopes:

# %%
pyro.clear_param_store()
kept_guide = AutoNormal(centered)
keep = ibvi.TraceExpectedLogLikelihood(keep_kl=["slope", "mu", "tau"])
_ = fit(centered, kept_guide, keep, *data)


# %% [markdown]
# or write the hierarchy so that its parameters act on the data (non-centered):


# %%
def non_centered(bmi, group, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(0.5))
    with pyro.plate("groups", 5):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
    slope = mu.unsqueeze(-1) + tau.unsqueeze(-1) * raw
    with pyro.plate("data", len(bmi)):
        pyro.sample("y", dist.Normal(slope[..., group] * bmi, 0.8), obs=y)


rows = ["| model and loss | mu | tau |", "| --- | --- | --- |"]


def hierarchy_row(name, guide):
    quantiles = guide.quantiles([0.16, 0.5, 0.84])
    cells = [
        f"{median:.2f} ({low:.2f} to {high:.2f})"
        for low, median, high in (quantiles["mu"], quantiles["tau"])
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


rows.append(hierarchy_row("centered, KL kept", kept_guide))
for name, loss in {
    "non-centered, Trace_ELBO": Trace_ELBO(),
    "non-centered, IBVI": ibvi.TraceExpectedLogLikelihood(),
}.items():
    pyro.clear_param_store()
    guide = AutoNormal(non_centered)
    _ = fit(non_centered, guide, loss, *data)
    rows.append(hierarchy_row(name, guide))
print("\n".join(rows))

# %% [markdown]
# With `keep_kl` on every latent nothing is left to drop, and the result is the ELBO's: in a
# hierarchy the KL *is* the model. IBVI's intervals are too narrow here for the same reason as
# above. Its place is the network inside a bigger model: drop the KL of the weights, keep the rest.
#
# ## A variational autoencoder: where the KL must stay
#
# Each image has a latent code of its own. Without the KL each code would remember its image, and
# the prior, from which new images are to be drawn, would not be seen. The objective says so:

# %%
images = torch.tensor(load_digits().data, dtype=torch.float32) / 16
batch = images[:100]


class Autoencoder(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.decoder = ibvi.RandomModule(
            nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64))
        )
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 8))

    def model(self, x):
        weights = self.decoder.sample_parameters()
        with pyro.plate("images", len(images), subsample=range(len(x))):
            code = pyro.sample("code", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            logits = self.decoder.run(weights, code)
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)

    def guide(self, x):
        self.weight_guide()
        pyro.module("encoder", self.encoder)
        with pyro.plate("images", len(images), subsample=range(len(x))):
            loc, raw_scale = self.encoder(x).chunk(2, dim=-1)
            scale = nn.functional.softplus(raw_scale)
            pyro.sample("code", dist.Normal(loc, scale).to_event(1))


def make_autoencoder():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    autoencoder = Autoencoder()
    autoencoder.weight_guide = ibvi.AutoMuPNormal(autoencoder.decoder, covariance=ibvi.LowRank(10))
    return autoencoder


autoencoder = make_autoencoder()
careless = ibvi.TraceExpectedLogLikelihood()
try:
    careless.loss(autoencoder.model, autoencoder.guide, batch)
except ValueError as error:
    print(error)

# %% [markdown]
# So: the KL of the codes is kept, that of the decoder's weights is dropped. The decoder is now
# trained by implicit-bias VI, and the autoencoder remains one.

# %%
autoencoder = make_autoencoder()
vae_loss = ibvi.TraceExpectedLogLikelihood(keep_kl=["code"], reduction="mean")
print(ibvi.explain(vae_loss, autoencoder.model, autoencoder.guide, batch))

# %%
svi = SVI(autoencoder.model, autoencoder.guide, pyro.optim.Adam({"lr": 1e-2}), vae_loss)
vae_losses = []
for epoch in range(1 if smoke else 40):
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
    epoch_losses = [svi.step(images[rows]) for rows in order.split(100)]
    vae_losses.append(sum(epoch_losses) / len(epoch_losses))
print(f"nats per image: {vae_losses[0]:.1f} in the first epoch, {vae_losses[-1]:.1f} in the last")

# %% [markdown]
# What it makes of ten images, above: the image; below: what comes out of its code, averaged over
# draws of the code and of the weights.

# %% tags=["hide-input"] mystnb={"image": {"alt": "Ten handwritten digits in a row, and below each the blurred digit that the autoencoder makes of its four numbers."}}
shown = images[:10]
with torch.no_grad():
    made = 0
    for _ in range(20):
        weights = pyro.poutine.replay(
            autoencoder.decoder.sample_parameters,
            trace=pyro.poutine.trace(autoencoder.weight_guide).get_trace(),
        )()
        loc, raw_scale = autoencoder.encoder(shown).chunk(2, dim=-1)
        code = loc + nn.functional.softplus(raw_scale) * torch.randn_like(loc)
        made = made + autoencoder.decoder.run(weights, code).sigmoid() / 20
figure, axes = plt.subplots(2, 10, figsize=(7, 1.6))
for column in range(10):
    for axis, image in zip(
        axes[:, column], (shown[column].numpy(), made[column].numpy()), strict=True
    ):
        axis.imshow(image.reshape(8, 8), cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
figure.savefig(out / "autoencoder.png", dpi=150, bbox_inches="tight")

# %% [markdown]
# ## Annealing the KL down to 0
#
# `kl_weight` is a plain attribute: it may change while training runs. `KLAnnealing` is a schedule
# for it; here it takes the logistic regression from the ELBO to the expected log-likelihood.

# %%
pyro.clear_param_store()
pyro.set_rng_seed(0)
guide = AutoNormal(logistic)
loss = ibvi.TraceExpectedLogLikelihood(kl_weight=1.0)
schedule = ibvi.KLAnnealing(1.0, 0.0, num_steps=500, delay=500)
svi = SVI(logistic, guide, pyro.optim.Adam({"lr": 0.01}), loss)
for step in range(10 if smoke else 1500):
    loss.kl_weight = schedule(step)
    _ = svi.step(x_train, y_train)
print(describe(guide))
