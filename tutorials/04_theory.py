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
# the result is known in closed form (`docs/theory.md`). Here we train linear models with plain
# gradient descent, lay the closed form over the result, and look at what ensembles, mean-field
# guides, Adam, unequal learning rates and an explicit penalty do. No network and no guide is
# needed: a Gaussian over weights is a mean and a factor.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from pyro_ibvi.theory import (
    classification_limit,
    expected_exponential_loss,
    expected_squared_loss,
    mean_field_limit,
    null_space_projection,
    regression_limit,
    wasserstein2_squared,
)

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def train(loss, loc, S, *, steps, rate, optimizer=torch.optim.SGD):
    """Minimizes loss(loc, S) from (loc, S) and returns where it ends."""
    loc, S = loc.clone().requires_grad_(), S.clone().requires_grad_()
    optim = optimizer([loc, S], lr=rate)
    for _ in range(steps):
        optim.zero_grad()
        loss(loc, S).backward()
        optim.step()
    return loc.detach(), S.detach()


# %% [markdown]
# ## One datum, two weights
#
# The smallest overparametrized regression: `x = (2, 1)`, `y = 2`. All weights on the line
# `2 w_1 + w_2 = 2` fit. The prior is a standard normal, so its factor is the identity.

# %%
X, y = torch.tensor([[2.0, 1.0]]), torch.tensor([2.0])
loc0, S0 = torch.tensor([-0.5, 1.0]), torch.eye(2)


def loss(loc, S):
    return expected_squared_loss(X, y, loc, S).mean()


loc, S = train(loss, loc0, S0, steps=300, rate=0.1)
limit = regression_limit(X, y, loc0, S0)
print("trained loc", loc, "\nlimit   loc", limit.loc)
print("trained S\n", S, "\nlimit S\n", limit.S)
torch.testing.assert_close((loc, S), tuple(limit), rtol=0, atol=1e-10)

# %% [markdown]
# The variance along `x` is gone, the variance across it is untouched. The trained Gaussian lies
# on the line of perfect fits, and each of its draws is the point of that line nearest to a prior
# draw.

# %%
z = torch.randn(2, 300)
prior_draws = loc0[:, None] + S0 @ z
trained_draws = loc[:, None] + S @ z
mean_field = mean_field_limit(X, torch.ones(2))

fig, axis = plt.subplots(figsize=(5, 5))
axis.plot(*torch.stack([prior_draws, trained_draws])[:, :, :25].unbind(1), color="0.85", zorder=0)
axis.plot(*prior_draws, ".", color="C0", ms=3, label="prior")
axis.plot(*trained_draws, ".", color="C1", ms=3, label="trained")
axis.plot(*limit.loc, "k*", ms=12, label="limit of the mean; of a mean-field guide: all of it")
axis.set(xlabel="$w_1$", ylabel="$w_2$", aspect="equal", xlim=(-3.5, 3.5), ylim=(-3.5, 4))
axis.legend(loc="lower left", fontsize=8)
plt.show()
print("mean-field scales in the limit:", mean_field)

# %% [markdown]
# A diagonal factor cannot point across the line. Both features are used, so both of its scales
# shrink to zero, and the whole Gaussian to the star.
#
# ## An ensemble in one Gaussian
#
# Draw 2,000 members from the prior, train each alone, and compare with the closed form: the same
# law, member for member.

# %%
N, P, R = 5, 9, 9
left, _ = torch.linalg.qr(torch.randn(N, N))
right, _ = torch.linalg.qr(torch.randn(P, N))
X = left * torch.linspace(2, 1.2, N) @ right.mT
y, loc0, S0 = torch.randn(N), torch.randn(P), torch.eye(P)
limit = regression_limit(X, y, loc0, S0)

z = torch.randn(2000, R)
members = loc0 + z @ S0.mT
for _ in range(300):
    members = members - (members @ X.mT - y) @ X / N
torch.testing.assert_close(members, limit.loc + z @ limit.S.mT, rtol=0, atol=1e-10)
print("largest difference:", (members - limit.loc - z @ limit.S.mT).abs().max().item())

# %% [markdown]
# ## The optimizer is the regularizer
#
# Gradient descent reaches the limit. Adam fits the data as well and ends elsewhere, since its
# steps leave the span of the data. An explicit 2-Wasserstein penalty puts the limit into the
# objective, and then any optimizer finds it, up to the weight of the penalty.


# %%
def penalized(weight):
    def objective(loc, S):
        return loss(loc, S) + weight * wasserstein2_squared(loc, S, loc0, S0)

    return objective


project = null_space_projection(X)
runs = {
    "gradient descent": train(loss, loc0, S0, steps=400, rate=1.0),
    "Adam": train(loss, loc0, S0, steps=3000, rate=0.01, optimizer=torch.optim.Adam),
    "penalty 1e-2": train(penalized(1e-2), loc0, S0, steps=3000, rate=0.5),
    "penalty 1e-3": train(penalized(1e-3), loc0, S0, steps=3000, rate=0.5),
    "the same, Adam": train(
        penalized(1e-3), loc0, S0, steps=5000, rate=0.01, optimizer=torch.optim.Adam
    ),
}
distances = {}
print(f"{'':18}{'loss':>9}{'to limit':>10}{'to prior':>10}{'moved off the span':>20}")
for name, (m, F) in runs.items():
    distances[name] = wasserstein2_squared(m, F, *limit).sqrt().item()
    to_prior = wasserstein2_squared(m, F, loc0, S0).sqrt().item()
    moved = project(F - S0).norm().item()
    print(f"{name:18}{loss(m, F):9.1e}{distances[name]:10.1e}{to_prior:10.4f}{moved:20.1e}")
assert distances["gradient descent"] < 1e-10
assert distances["Adam"] > 0.1
assert distances["penalty 1e-3"] < distances["penalty 1e-2"] / 5
assert distances["the same, Adam"] < 0.1

# %% [markdown]
# ## Rates are a metric
#
# With a learning rate for each feature, as a parametrization of a network sets them for each
# layer, training ends at another perfect fit, nearest in a metric where fast features are cheap.

# %%
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
plt.show()

# %% [markdown]
# ## Classification
#
# On separable data the mean grows without bound in the max-margin direction, the variance in the
# span of the data decays as a power of time, and the rest stays. The power is known: two support
# vectors at 60 degrees have the exponent 1/3.

# %%
X = torch.tensor([[1.0, 0.0, 0.0], [-0.5, -(0.75**0.5), 0.0], [1.5, 0.75**0.5, 0.0]])
y = torch.tensor([1.0, -1.0, 1.0])
loc0, S0 = torch.tensor([0.3, -0.2, 0.5]), 0.3 * torch.eye(3)
limit = classification_limit(X, y, loc0, S0)
print(limit)

loc, S = loc0.numpy().copy(), S0.numpy().copy()
signed = (y[:, None] * X).numpy()
times, seen = np.unique(np.logspace(0, 4.5, 60).astype(int)), []
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
plt.show()
