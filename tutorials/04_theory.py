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
# # The theory on linear models
#
# Training on the expected loss alone leaves the regularization to the optimizer. On linear models
# what the optimizer does is a theorem, and its result a formula. Here we train linear models
# through `SVI`, lay the formula over the result, and look at what ensembles, mean-field guides,
# unequal learning rates, Adam and an explicit penalty do. The page *Theory* states the theorems
# and says what is not proved.

# %% tags=["hide-input"]
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import init_to_mean, init_to_sample

import pyro_ibvi as ibvi
from pyro_ibvi.theory import (
    classification_limit,
    expected_exponential_loss,
    null_space_projection,
    regression_limit,
    wasserstein2_squared,
)

SMOKE = os.environ.get("PYRO_IBVI_SMOKE") == "1"  # a short run, to see that everything works
pyro.set_rng_seed(0)
torch.set_default_dtype(torch.float64)


def linear_svi(
    X, loss, lr, *, covariance=None, optimizer=torch.optim.SGD, momentum=0.0, init=init_to_sample
):
    """SVI of y = x'w + noise, with a standard normal prior of w."""
    net = torch.nn.Linear(X.shape[1], 1, bias=False)
    # The standard rates, but for the rank rule, which an expected loss in closed form can spare.
    exponent = 0.0 if isinstance(loss, ibvi.TraceClosedFormHead) else 1.0
    rule = ibvi.MaximalUpdate(base=X.shape[1], rank_exponent=exponent, diagonal="reference")
    net = ibvi.RandomModule(net, stochastic="all", parametrization=rule, prior=1.0)
    model = ibvi.SupervisedModel(net, ibvi.Normal(1.0), num_data=len(X))
    covariance = covariance or ibvi.LowRank(None)
    guide = ibvi.AutoMuPNormal(model, covariance=covariance, init_loc_fn=init)
    options = {"lr": lr, "momentum": momentum} if momentum else {"lr": lr}
    return SVI(model, guide, ibvi.MuPOptim(optimizer, options, guide), loss)


def law(svi):
    """Mean (P,) and factor (P, R) of the guide."""
    guide = svi.guide
    return guide.loc("net.weight")[0].detach().clone(), guide.factor("net.weight")[
        0
    ].detach().clone()


def train(svi, X, y, steps, batch=None):
    """Trains, and returns the law after each step, the start first."""
    path = [law(svi)]
    for _ in range(steps // 20 if SMOKE else steps):
        rows = torch.randperm(len(y))[:batch]
        svi.step(X[rows], y[rows, None])
        path.append(law(svi))
    return path


# %% [markdown]
# ## One datum, two weights
#
# The smallest overparametrized regression: `x = (2, 1)`, `y = 2`. All weights on the line
# `2 w_1 + w_2 = 2` fit. The guide starts at the prior, its factor is the identity. Each step takes
# one draw of the weights.

# %%
X, y = torch.tensor([[2.0, 1.0]]), torch.tensor([2.0])
draws = ibvi.TraceExpectedLogLikelihood(reduction="mean")
path = train(linear_svi(X, draws, lr=0.08), X, y, steps=600)
(loc0, S0), (loc, S) = path[0], path[-1]
limit = regression_limit(X, y, loc0, S0)
print("trained loc", loc, "\nlimit   loc", limit.loc)
print("trained S\n", S, "\nlimit S\n", limit.S)
if not SMOKE:
    torch.testing.assert_close((loc, S), tuple(limit), rtol=0, atol=1e-10)

# %% [markdown]
# The variance along `x` is gone, the variance across it is untouched. The trained Gaussian lies
# on the line of perfect fits, and each of its draws is the point of that line nearest to a prior
# draw.

# %% mystnb={"image": {"alt": "Plane of two weights: draws from the prior move along the data's direction onto the line of perfect fits, and keep their spread along it."}}
z = torch.randn(2, 300)
prior_draws = loc0[:, None] + S0 @ z
trained_draws = limit.loc[:, None] + limit.S @ z

fig, axis = plt.subplots(figsize=(5, 5))
axis.plot(*torch.stack([prior_draws, trained_draws])[:, :, :25].unbind(1), color="0.85", zorder=0)
axis.plot(*prior_draws, ".", color="C0", ms=3, label="prior")
axis.plot(*trained_draws, ".", color="C1", ms=3, label="trained")
axis.plot(*torch.stack([m for m, _ in path]).mT, color="C3", lw=1, label="the mean in training")
axis.plot(*limit.loc, "k*", ms=12, label="its limit")
axis.set(xlabel="$w_1$", ylabel="$w_2$", aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
axis.legend(loc="lower left", fontsize=8)
fig.tight_layout()

# %% [markdown]
# ## Whatever the gradients
#
# Five data, nine weights. The limit is the same for the exact expected loss
# (`TraceClosedFormHead` takes the expectation over a last linear layer in closed form), for
# minibatches, for momentum, and for single draws: at the limit the residual is zero for every
# datum and every draw, so the noise dies out on the way.

# %% mystnb={"image": {"alt": "Distance of mean and factor to the predicted limit falls to machine precision for every optimizer with gradients in the data's span."}}
N, P = 5, 9
left, _ = torch.linalg.qr(torch.randn(N, N))
right, _ = torch.linalg.qr(torch.randn(P, N))
X, y = left * torch.linspace(2, 1.2, N) @ right.mT, torch.randn(N)
exact = ibvi.TraceClosedFormHead(reduction="mean")
rank3 = ibvi.LowRank(3)
variants = {  # loss, learning rate, momentum, batch size, steps
    "exact, full batch": (exact, 1.0, 0.0, None, 600),
    "exact, batches of 2": (exact, 1.0, 0.0, 2, 600),
    "draws, full batch": (draws, 0.9, 0.0, None, 600),
    "draws, batches of 2, momentum 0.8": (draws, 0.05, 0.8, 2, 1300),
}
fig, axis = plt.subplots(figsize=(6, 3.5))
for name, (loss, lr, momentum, batch, steps) in variants.items():
    svi = linear_svi(X, loss, lr, covariance=rank3, momentum=momentum)
    path = train(svi, X, y, steps=steps, batch=batch)
    limit = regression_limit(X, y, *path[0])
    errors = [
        ((m - limit.loc).square().sum() + (F - limit.S).square().sum()).sqrt() for m, F in path
    ]
    assert SMOKE or errors[-1] < 1e-9, name
    axis.semilogy(errors, label=name)
axis.set(xlabel="step", ylabel="distance of (loc, S) to the limit", ylim=(1e-16, 10))
axis.legend(fontsize=8)
fig.tight_layout()

# %% [markdown]
# ## An ensemble in one Gaussian
#
# Draw 2,000 members from the prior, train each alone, and compare with the closed form: the same
# law, member for member.

# %%
loc0, S0 = torch.randn(P), torch.eye(P)
limit = regression_limit(X, y, loc0, S0)
z = torch.randn(2000, P)
members = loc0 + z @ S0.mT
for _ in range(300):
    members = members - (members @ X.mT - y) @ X / N
torch.testing.assert_close(members, limit.loc + z @ limit.S.mT, rtol=0, atol=1e-10)
print("largest difference:", (members - limit.loc - z @ limit.S.mT).abs().max().item())

# %% [markdown]
# ## What a mean-field guide does instead
#
# A diagonal factor cannot follow the null space of the data, which is rarely along the axes. It
# shrinks to zero on every feature that any datum uses, although four ninths of all directions are
# free. `VarianceMonitor` watches it: the share of the initial variance that is left on the span
# of the data and off it.

# %% mystnb={"image": {"alt": "Shares of the initial variance on and off the span of the data over training: the first goes to zero, and only a low-rank factor keeps the second."}}
fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
guides = {"full": ibvi.LowRank(None), "diagonal": ibvi.Diagonal()}
for axis, (name, covariance) in zip(axes, guides.items(), strict=True):
    svi = linear_svi(X, exact, 1.0, covariance=covariance)
    monitor = ibvi.VarianceMonitor(svi.guide, inputs=X)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y[:, None]), N)
    num_epochs = 30 if SMOKE else 200
    ibvi.fit(svi, loader, num_epochs, callback=monitor, progress=False)
    shares = [report.layers[0] for report in monitor.reports]
    steps = range(1, num_epochs + 1)
    axis.plot(steps, [share.on_span for share in shares], label="on the span")
    axis.plot(steps, [share.off_span for share in shares], label="off the span")
    axis.set(title=name, xlabel="step", xscale="log", ylim=(-0.05, 1.05))
axes[0].set_ylabel("share of the initial variance left")
axes[0].legend()
fig.tight_layout()

# %%
print(monitor.reports[-1])

# %% [markdown]
# What that means for predictions: forty cosine features of one input, six data. With a full
# factor the predictive variance is zero at the data and grows between them; a diagonal that is
# trained to the end knows nothing of its ignorance. (The limits are evaluated by the formulas.)

# %% mystnb={"image": {"alt": "Predictive bands of an ensemble and of implicit-bias VI along one input lie on each other."}}
generator = torch.Generator().manual_seed(1)
frequencies, phases = (
    4 * torch.randn(40, generator=generator),
    6.3 * torch.rand(40, generator=generator),
)


def features(x):
    return torch.cos(x[:, None] * frequencies + phases) * (2 / 40) ** 0.5


x_train = torch.tensor([-1.5, -1.2, -0.4, 0.1, 1.1, 1.3])
y_train, x_grid = torch.sin(3 * x_train), torch.linspace(-2, 2, 300)
full = regression_limit(features(x_train), y_train, torch.zeros(40), torch.eye(40))
mean, std = features(x_grid) @ full.loc, (features(x_grid) @ full.S).norm(dim=-1)
fig, axis = plt.subplots(figsize=(6, 3.2))
axis.fill_between(x_grid, mean - 2 * std, mean + 2 * std, alpha=0.3, label="full, 2 std")
axis.plot(x_grid, mean, label="mean; mean-field: all of it")
axis.plot(x_train, y_train, "k.", label="data")
axis.set(xlabel="$x$", ylim=(-4, 4))
axis.legend(fontsize=8)
fig.tight_layout()

# %% [markdown]
# ## A parametrization is a metric
#
# A learning rate for each layer, as muP sets it, changes the limit: training ends at the perfect
# fit that is nearest in a metric where the fast parameters are cheap. Take a linear layer with a
# bias. In the standard parametrization both learn at one rate; under muP the weight learns at
# `1 / fan_in` of the bias's. The formula has the argument `rates`.

# %%
x_and_one = torch.cat([X, torch.ones(N, 1)], -1)
for rule in (ibvi.Standard(), ibvi.MaximalUpdate()):
    pyro.set_rng_seed(1)
    net = ibvi.RandomModule(
        torch.nn.Linear(P, 1), stochastic="all", parametrization=rule, prior=1.0
    )
    model = ibvi.SupervisedModel(net, ibvi.Normal(1.0), num_data=N)
    guide = ibvi.AutoMuPNormal(model, covariance=rank3)
    sites = ("net.weight", "net.bias")

    def joint(guide=guide, sites=sites):
        loc = torch.cat([guide.loc(site).detach().flatten() for site in sites])
        return loc, torch.cat([guide.factor(site).detach().reshape(-1, 3) for site in sites])

    start = joint()
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.5, "momentum": 0.9}, guide)
    svi = SVI(model, guide, optim, exact)
    for _ in range(100 if SMOKE else 1000):
        svi.step(X, y[:, None])
    end = joint()
    print(type(rule).__name__)
    for weight_rate in (1.0, 1 / P):
        rates = torch.cat([torch.full((P,), weight_rate), torch.ones(1)])
        limit = regression_limit(x_and_one, y, *start, rates=rates)
        distance = wasserstein2_squared(*end, *limit).sqrt().item()
        print(f"  distance to the limit with rates {weight_rate:.2f} and 1: {distance:.1e}")

# %% [markdown]
# In the plane: the same line of perfect fits, three ratios of rates, three ends.

# %% mystnb={"image": {"alt": "Plane of two weights: means of gradient descent and Adam end at different points of the line of perfect fits."}}
X1, y1, start = torch.tensor([[2.0, 1.0]]), torch.tensor([2.0]), torch.tensor([-0.5, 1.0])
fig, axis = plt.subplots(figsize=(5, 4))
line = torch.linspace(-0.6, 1.4, 2)
axis.plot(line, 2 - 2 * line, "k", lw=1, label="perfect fits")
for ratio in (0.05, 1.0, 20.0):
    rates = torch.tensor([1.0, ratio])
    path = [start]
    for _ in range(400):
        path.append(path[-1] - 0.2 * rates / rates.max() * (X1.mT @ (X1 @ path[-1] - y1)))
    end = regression_limit(X1, y1, start, torch.eye(2), rates=rates).loc
    torch.testing.assert_close(path[-1], end, rtol=0, atol=1e-10)
    label = f"rate of $w_2$ / rate of $w_1$: {ratio}"
    (curve,) = axis.plot(*torch.stack(path).mT, ".-", ms=3, label=label)
    axis.plot(*end, "*", ms=12, color=curve.get_color())
axis.set(xlabel="$w_1$", ylabel="$w_2$")
axis.legend(fontsize=8)
fig.tight_layout()

# %% [markdown]
# ## Implicit and explicit regularization
#
# Gradient descent reaches the limit. Adam fits the data as well and ends elsewhere, since its
# steps leave the span of the data. An explicit 2-Wasserstein penalty (`TraceGeneralizedVI`; with
# `TraceClosedFormHead` the same without the noise of the draws) puts the limit into the
# objective, and then any optimizer finds it, up to the weight of the penalty. The penalty is the
# distance to the model's prior, so all start there: at the mean zero, with a full factor.

# %%
project = null_space_projection(X)


def penalized(weight):
    return ibvi.TraceClosedFormHead(reduction="mean", divergence="wasserstein2", weight=weight)


runs = {
    "SGD, implicit": (exact, torch.optim.SGD, 1.0, 300),
    "Adam, implicit": (exact, torch.optim.Adam, 0.02, 800),
    "SGD, weight 1": (penalized(1.0), torch.optim.SGD, 1.0, 300),
    "SGD, weight 0.1": (penalized(0.1), torch.optim.SGD, 1.0, 300),
    "SGD, weight 0.01": (penalized(0.01), torch.optim.SGD, 1.0, 300),
    "Adam, weight 0.1": (penalized(0.1), torch.optim.Adam, 0.02, 1500),
}
distances = {}
print(f"{'':18}{'loss':>9}{'to limit':>10}{'to prior':>10}{'moved off the span':>20}")
for name, (loss, optimizer, lr, steps) in runs.items():
    pyro.set_rng_seed(2)
    svi = linear_svi(X, loss, lr, optimizer=optimizer, init=init_to_mean)
    path = train(svi, X, y, steps)
    (loc0, S0), (loc, S) = path[0], path[-1]
    limit = regression_limit(X, y, loc0, S0)
    value = (0.5 * ((X @ loc - y).square() + (X @ S).square().sum(-1))).mean().item()
    distances[name] = wasserstein2_squared(loc, S, *limit).sqrt().item()
    to_prior = wasserstein2_squared(loc, S, loc0, S0).sqrt().item()
    moved = project(S - S0).norm().item()
    print(f"{name:18}{value:9.1e}{distances[name]:10.1e}{to_prior:10.4f}{moved:20.1e}")
if not SMOKE:
    assert distances["SGD, implicit"] < 1e-10
    assert distances["Adam, implicit"] > 0.1
    assert distances["SGD, weight 0.01"] < distances["SGD, weight 0.1"] / 5
    assert distances["Adam, weight 0.1"] < 1.1 * distances["SGD, weight 0.1"]

# %% [markdown]
# The last column of Adam's penalized run is not zero although its law is the same: the penalty
# knows the Gaussian only, and `S` and `S Q` with an orthogonal `Q` are the same Gaussian.
#
# `TraceGeneralizedVI` draws the weights as every other objective does. Its minimum is the same,
# but with a constant rate the noise of the draws does not die out: the penalty keeps variance
# where the data are, so their residual is not zero.

# %% mystnb={"image": {"alt": "2-Wasserstein distance to the implicit limit against steps, with an explicit penalty and without."}}
pyro.set_rng_seed(2)
svi = linear_svi(
    X,
    ibvi.TraceGeneralizedVI(reduction="mean", divergence="wasserstein2", weight=0.1),
    0.3,
    init=init_to_mean,
)
path = train(svi, X, y, steps=800)
limit = regression_limit(X, y, *path[0])
fig, axis = plt.subplots(figsize=(6, 3))
axis.semilogy(
    [wasserstein2_squared(*now, *limit).sqrt() for now in path], label="weight 0.1, draws"
)
axis.axhline(distances["SGD, weight 0.1"], color="k", ls="--", lw=1, label="weight 0.1, exact")
axis.set(xlabel="step", ylabel="2-Wasserstein distance\nto the implicit limit")
axis.legend()
fig.tight_layout()

# %% [markdown]
# ## Classification
#
# On separable data the mean grows without bound in the max-margin direction, the variance in the
# span of the data decays as a power of time, and the rest stays. The power is known: two support
# vectors at 60 degrees have the exponent 1/3. As that takes many steps, the loop is written out.

# %% mystnb={"image": {"alt": "Classification: direction and spread of the weights approach their limits as training goes on."}}
X = torch.tensor([[1.0, 0.0, 0.0], [-0.5, -(0.75**0.5), 0.0], [1.5, 0.75**0.5, 0.0]])
y = torch.tensor([1.0, -1.0, 1.0])
loc0, S0 = torch.tensor([0.3, -0.2, 0.5]), 0.3 * torch.eye(3)
limit = classification_limit(X, y, loc0, S0)
print(limit)

loc, S = loc0.numpy().copy(), S0.numpy().copy()
signed = (y[:, None] * X).numpy()
times, seen = np.unique(np.logspace(0, 2 if SMOKE else 4.5, 60).astype(int)), []
for step in range(1, times[-1] + 1):
    projected = signed @ S
    losses = np.exp(0.5 * (projected**2).sum(1) - signed @ loc) / 3
    loc += 0.5 * losses @ signed
    S -= 0.5 * signed.T @ (losses[:, None] * projected)
    if step in times:
        seen.append(np.linalg.norm(signed @ S))

trained = expected_exponential_loss(X, y, torch.tensor(loc), torch.tensor(S)).mean()
cosine = torch.cosine_similarity(torch.tensor(loc) - limit.loc, limit.direction, dim=0)
print(f"loss {trained:.1e}, cosine to the max-margin direction {cosine:.6f}")
print("third row of S, which no datum sees:", S[2], "at the start:", S0[2].numpy())
if not SMOKE:
    assert cosine > 0.9999

fig, axis = plt.subplots(figsize=(5, 3.5))
axis.loglog(times, seen, label="$|X S_t|$")
axis.loglog(
    times,
    seen[-1] * (times / times[-1]) ** -limit.decay_exponent,
    "k--",
    lw=1,
    label=f"slope -{limit.decay_exponent:.3f}, predicted",
)
axis.set(xlabel="step $t$")
axis.legend()
fig.tight_layout()

# %% [markdown]
# Run as a script, this page leaves its pictures in the folder `out`.

# %% tags=["remove-cell"]
out = Path("out")
out.mkdir(exist_ok=True)
for number in plt.get_fignums():
    plt.figure(number).savefig(out / f"04_theory_{number}.png", dpi=100)
