# %% [markdown]
# # Making a network you already have Bayesian
#
# You have a network that was trained without this package: a ResNet from a model zoo, a
# transformer of a colleague. This page makes two such networks Bayesian **without rewriting them
# and starting at their weights**: a residual network with GroupNorm, and one with
# `torch.nn.TransformerEncoder`. It shows
#
# - how trained weights get in, and how wide a distribution around them should start;
# - which learning rates go with a network that brings its own initialization;
# - what to do when a parameter is of a kind that the package does not know;
# - what it buys and what it costs: accuracy, likelihood and calibration, on clean and on shifted
#   images, beside the same network trained on as it was.

# %% tags=["hide-input"]
import argparse
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import scipy.ndimage
import torch
from pyro.infer import SVI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_ibvi as ibvi

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="out", help="folder for what is saved")
out = Path(parser.parse_known_args()[0].out)
out.mkdir(parents=True, exist_ok=True)

smoke = "PYRO_IBVI_SMOKE" in os.environ  # shortens the runs where only the code is checked
num_draws = 5 if smoke else 50  # of the weights, for a prediction
seed = 0

# %% [markdown]
# ## Data
#
# scikit-learn's handwritten digits: 1,000 images of 8x8 pixels to train on, 200 held out for
# choices, 597 to test on. The shifted test sets have noise, or are turned by 30 degrees.

# %%
digits = load_digits()
images = (torch.tensor(digits.data, dtype=torch.float32) / 16 - 0.3) / 0.37
images = images.reshape(-1, 1, 8, 8)
labels = torch.tensor(digits.target)
x_rest, x_test, y_rest, y_test = train_test_split(
    images, labels, test_size=597, random_state=0, stratify=labels
)
x_train, x_valid, y_train, y_valid = train_test_split(
    x_rest, y_rest, test_size=200, random_state=0, stratify=y_rest
)
noise = torch.randn(x_test.shape, generator=torch.Generator().manual_seed(seed))
turned = scipy.ndimage.rotate(x_test, 30, axes=(2, 3), reshape=False, order=1, mode="nearest")
test_sets = {"clean": x_test, "noise": x_test + noise, "rotation": torch.tensor(turned)}


def make_loader():
    return DataLoader(
        TensorDataset(x_train, y_train),
        batch_size=100,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )


# %% [markdown]
# ## The network, and its training
#
# Nothing in this section knows of the package. The classes are what one finds in a model zoo, but
# smaller, and `train` is the loop that the network came with.


# %%
class Block(nn.Module):
    def __init__(self, num_in, num_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(4, num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, num_out)
        self.shortcut = nn.Identity()
        if num_in != num_out:
            self.shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False)

    def forward(self, x):
        h = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(h)) + self.shortcut(x)).relu()


class ResNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, width)
        self.blocks = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x):
        h = self.blocks(self.norm(self.stem(x)).relu())
        return self.head(h.mean((2, 3)))


def cosine(num_epochs):
    return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)


def train(net, optimizer, num_epochs):
    scheduler = cosine(num_epochs)(optimizer)
    net.train()
    for _ in range(num_epochs):
        for x, y in make_loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        scheduler.step()
    return net.eval()


# %% [markdown]
# The training that made the network, and the file that you were given:

# %%
num_epochs = 1 if smoke else 20
torch.manual_seed(seed)
resnet = ResNet()
train(resnet, torch.optim.SGD(resnet.parameters(), lr=0.02, momentum=0.9), 2 * num_epochs)
torch.save(resnet.state_dict(), out / "resnet.pt")

# %% [markdown]
# ## From the file to a random network
#
# From here on you are the person with the file. Load it as always, into the class as it is; then
# `RandomModule` copies the network, values included, and replaces some of its weights by Pyro
# sites.

# %%
resnet = ResNet()
resnet.load_state_dict(torch.load(out / "resnet.pt", weights_only=True))

random_resnet = ibvi.RandomModule(
    resnet, stochastic="input+output weights", parametrization=ibvi.Standard()
)
print(ibvi.roles(random_resnet))

# %% [markdown]
# The table says what the package made of the network: the first convolution and the head are
# random, all else is a point estimate, the gains and biases of the GroupNorms too.
#
# ### Which parametrization
#
# A parametrization decides how a network starts and how fast each layer learns, as its width
# grows. A trained network has started long ago, has one width, and a learning rate that is known
# to work. So the rule for it is `Standard()`: one rate, the one that you would fine-tune at.
# `MaximalUpdate()`, the default, is an absolute table for training from scratch; its global rate
# has another meaning. `MaximalUpdate(base=...)` with the network itself as its base is the same
# as `Standard()`; choose it, with the smallest network as the base, if you have a family of
# widths and want to tune on the smallest (the page *Tune small, train wide*).

# %%
for rule in (ibvi.Standard(), ibvi.MaximalUpdate(base=resnet), ibvi.MaximalUpdate()):
    report = ibvi.roles(ibvi.RandomModule(resnet, parametrization=rule))
    rates = [weight.rate("sgd") for weight in report.values()]
    name = type(rule).__name__ + ("(base=resnet)" if rule.base is not None else "()")
    print(f"{name:28} SGD rates from {min(rates):.2g} to {max(rates):.2g} times the global one")

# %% [markdown]
# ### Start at the network's weights
#
# The point estimates start at the network's values, since the network is copied with them. The
# random weights start at a draw from the prior, which is right for a network without training and
# would throw away the training of this one. `init_to_network` starts their means at the network's
# values:

# %%
model = ibvi.SupervisedModel(random_resnet, ibvi.Categorical(), num_data=len(x_train))
guide = ibvi.AutoMuPNormal(model, init_loc_fn=ibvi.init_to_network, init_scale=0.2)

body = random_resnet.network.blocks.state_dict()
copied = all(torch.equal(body[name], value) for name, value in resnet.blocks.state_dict().items())
print("point estimates are the network's:", copied)
print("means are the network's:", torch.equal(guide.loc("net.head.weight"), resnet.head.weight))
print(f"mean of the head's standard deviations: {guide.scale('net.head.weight').mean():.3f}")

# %% [markdown]
# The standard deviations are `init_scale` times the prior's, which is `fan_in^-1/2` here: the size
# of a fresh layer's weights. Implicit-bias VI ends near where it starts, in every direction that
# the data leave free. So this start *is* the prior: a Gaussian around the trained weights, and
# `init_scale` says how far from them the truth may be.
#
# ## How wide to start
#
# Too wide, and the first draws destroy what was learned; too narrow, and nothing is random. The
# factor of a low-rank covariance learns slowly, so what is chosen here decides. Held-out data
# tell, before and after training. The rate is the one that the network was trained at.


# %%
def make_bayesian(net, stochastic, init_scale):
    pyro.set_rng_seed(seed)
    random_net = ibvi.RandomModule(net, stochastic=stochastic, parametrization=ibvi.Standard())
    model = ibvi.SupervisedModel(random_net, ibvi.Categorical(), num_data=len(x_train))
    guide = ibvi.AutoMuPNormal(model, init_loc_fn=ibvi.init_to_network, init_scale=init_scale)
    return model, guide


def train_bayesian(model, guide, optimizer, optim_args, num_epochs):
    optim = ibvi.MuPOptim(optimizer, optim_args, guide, scheduler="cosine")
    svi = SVI(model, guide, optim, loss=ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    return ibvi.fit(svi, make_loader(), num_epochs)


def held_out(model, guide):
    return ibvi.score(ibvi.predict(model, guide, x_valid, num_samples=num_draws), y_valid)


def compare_scales(net, *training):
    """Trains from several initial scales; gives the models and guides by scale."""
    print("init_scale  accuracy at the start  NLL at the start  NLL after training")
    trained = {}
    for init_scale in (1.0, 0.5, 0.2):
        model, guide = make_bayesian(net, "input+output weights", init_scale)
        start = held_out(model, guide)
        train_bayesian(model, guide, *training)
        end = held_out(model, guide)
        trained[init_scale] = model, guide
        accuracy = 100 * start["accuracy"]
        print(f"{init_scale:<10} {accuracy:22.1f} {start['nll']:17.3f} {end['nll']:19.3f}")
    return trained


sgd = torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}, num_epochs
resnet_ends = compare_scales(resnet, *sgd)

# %% [markdown]
# At the prior's own width the first draws damage the network, and training must repair that before
# anything else. At a fifth of it they do no harm. Held-out data like these favor a narrow start;
# but they are clean and say nothing of a shift, for which width is wanted, so all three are kept
# for the comparison below. Compare the NLL at the start with that of the network alone: a tenth of
# a nat is soon repaired, half a nat or more is not.
#
# ## Fine-tune it all, or freeze the body
#
# Parameters that require no gradient when the network is handed over are left alone, as anywhere
# in PyTorch. Here is the cheapest way to a Bayesian network: a frozen body under a random head.

# %%
frozen = ResNet()
frozen.load_state_dict(resnet.state_dict())
frozen.requires_grad_(False)
frozen.head.requires_grad_(True)
resnet_frozen = make_bayesian(frozen, "last weights", 1.0)
train_bayesian(*resnet_frozen, *sgd)

body = resnet_frozen[0].net.network.state_dict()
names = [name for name in body if not name.startswith("head")]
left_alone = all(torch.equal(body[name], resnet.state_dict()[name]) for name in names)
print("the frozen body is as it was:", left_alone)

resnet_last = make_bayesian(resnet, "last weights", 1.0)
_ = train_bayesian(*resnet_last, *sgd)

# %% [markdown]
# A head alone can start at the prior's own width, `init_scale=1`: its noise is averaged over the
# features and passes through no other layer.
#
# ## What it buys
#
# Beside the network as it came, the same network trained on for as many epochs as the Bayesian
# ones, so that the comparison is not one of training time. Accuracy in percent, negative
# log-likelihood (NLL, nats per image) and expected calibration error (ECE); lower is better for
# the last two.


# %%
def predict_plain(net):
    """Predictions of a network without randomness, as if from one draw of its weights."""
    with torch.no_grad():
        return {
            name: ibvi.Prediction(net(x)[None], ibvi.Categorical())
            for name, x in test_sets.items()
        }


def predict_bayesian(model, guide):
    return {
        name: ibvi.predict(model, guide, x, num_samples=num_draws) for name, x in test_sets.items()
    }


def print_scores(methods):
    for name in test_sets:
        print(f"{name:<24} accuracy    NLL    ECE")
        for method, predictions in methods.items():
            scores = ibvi.score(predictions[name], y_test)
            accuracy = 100 * scores["accuracy"]
            print(f"{method:<24} {accuracy:8.1f} {scores['nll']:6.3f} {scores['ece']:6.3f}")
        print()


def trained_on(net, optimizer, optim_args, num_epochs):
    copy = type(net)()
    copy.load_state_dict(net.state_dict())
    torch.manual_seed(seed)
    return train(copy, optimizer(copy.parameters(), **optim_args), num_epochs)


resnet_scores = {
    "as it came": predict_plain(resnet),
    "trained on": predict_plain(trained_on(resnet, *sgd)),
    "last layer, body frozen": predict_bayesian(*resnet_frozen),
    "last layer": predict_bayesian(*resnet_last),
    **{f"input + output, {s}": predict_bayesian(*pair) for s, pair in resnet_ends.items()},
}
print_scores(resnet_scores)

# %% [markdown]
# On clean images there is little to choose between the methods, but for the widest start, which
# costs likelihood and accuracy there. Under a shift the plain network is sure of itself and often
# wrong, and those with random weights are better calibrated. A random head does a part of that, on
# a frozen body too; the features below it are still those of one network. Random weights where the
# data come in do more, at the right width, since each draw sees the image differently. **Start at
# 0.2 of the prior's width**: it gives the better likelihood and calibration under both shifts, and
# takes next to nothing away on clean images. It is no cure: none of these networks is calibrated on
# turned digits, of which it has seen none, and 98 right of 100 become 60. And it is one seed, so
# look at your own network before you believe the third digit.
#
# ## A transformer, and a parameter of its own
#
# Each image is a sequence of eight rows. The network keeps a table of positions as a bare
# `nn.Parameter`, as many do, and has dropout.


# %%
class Transformer(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.02 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        tokens = self.embed(x.squeeze(1)) + self.position
        return self.head(self.encoder(tokens).mean(1))


torch.manual_seed(seed)
transformer = Transformer()
train(transformer, torch.optim.Adam(transformer.parameters(), lr=0.003), 2 * num_epochs)

print(ibvi.roles(ibvi.RandomModule(transformer, parametrization=ibvi.Standard())))

# %% [markdown]
# The package sees what the forward pass does with it: added to the tokens, a position is a bias,
# one vector of the network's width for each row. As a bias it stays a point estimate where
# `stochastic` says "weights". What a matrix of the network's own is only you can know; then an
# error shows the line to write. A role may be given for a known layer as well,
# `roles={"head": "hidden"}`, by name or pattern.
#
# `Standard()` has another reason here. muP's rates serve every width only if attention divides
# its logits by the size of a head, and PyTorch's divides by the square root of it, which
# `MaximalUpdate(attention="1/d")` makes good. At one width that is no matter, and nothing need be
# changed.

# %%
adam = torch.optim.Adam, {"lr": 0.003}, num_epochs
transformer_ends = compare_scales(transformer, *adam)

# %%
transformer_last = make_bayesian(transformer, "last weights", 1.0)
train_bayesian(*transformer_last, *adam)
transformer_scores = {
    "as it came": predict_plain(transformer),
    "trained on": predict_plain(trained_on(transformer, *adam)),
    "last layer": predict_bayesian(*transformer_last),
    **{f"input + output, {s}": predict_bayesian(*pair) for s, pair in transformer_ends.items()},
}
print_scores(transformer_scores)

# %% [markdown]
# This network is the more overconfident one under a shift, and a random head alone does nothing
# about it here. The start at 0.2 has the better likelihood on every test set than the plain network
# trained on. At 0.5 one buys far better likelihood and calibration under the shifts, and on clean
# images the plain network's. At 1.0 the start had destroyed too much, and the accuracy on clean
# images is not won back.

# %% mystnb={"image": {"alt": "Confidence against accuracy on noisy digits for two networks, before and after fine-tuning as a distribution."}}
figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for axis, title, methods in (
    (axes[0], "ResNet", resnet_scores),
    (axes[1], "Transformer", transformer_scores),
):
    for method in ("trained on", "last layer", "input + output, 0.2"):
        bins = ibvi.reliability(methods[method]["noise"], y_test, num_bins=10)
        axis.plot(bins.confidence, bins.accuracy, "o-", label=method)
    axis.plot([0, 1], [0, 1], "k:", label="calibrated")
    axis.set(xlabel="confidence", ylabel="accuracy", title=f"{title}, noisy digits")
axes[0].legend()
figure.tight_layout()

# %% [markdown]
# ## What it costs
#
# A low-rank factor holds its rank, 10 by default, times the weights of its layer, and a prediction
# is one pass through the network for each draw.

# %%
for name, net, (_, guide) in (
    ("ResNet", resnet, resnet_ends[0.2]),
    ("Transformer", transformer, transformer_ends[0.2]),
):
    plain = sum(parameter.numel() for parameter in net.parameters())
    trained = sum(parameter.numel() for _, parameter, _ in guide.named_rates("sgd"))
    print(f"{name}: {plain:,} numbers in it, {trained:,} trained for input and output")

# %% [markdown]
# ## Prediction, dropout and saving
#
# `predict` runs the network in evaluation mode whatever mode it is in, and puts it back: dropout
# is off, and the draws differ by their weights alone. What training has changed is in two places:
# the point estimates in the model, the distribution in the guide. Save both; to load, build the
# same objects from the class and fill them.

# %%
model, guide = transformer_ends[0.2]
torch.save({"model": model.state_dict(), "guide": guide.state_dict()}, out / "transformer.pt")

new_model, new_guide = make_bayesian(Transformer(), "input+output weights", 1.0)
saved = torch.load(out / "transformer.pt", weights_only=True)
new_model.load_state_dict(saved["model"])
new_guide.load_state_dict(saved["guide"])

model.train()  # with dropout, were it not for predict
new_model.eval()
before, after = (
    ibvi.predict(
        *pair, x_test, num_samples=num_draws, generator=torch.Generator().manual_seed(seed)
    )
    for pair in ((model, guide), (new_model, new_guide))
)
print(
    "the loaded network predicts the same, in either mode:",
    torch.equal(before.outputs, after.outputs),
)

# %% [markdown]
# Run as a script, this page leaves its pictures in the folder `out`.

# %% tags=["remove-cell"]
out = Path("out")
out.mkdir(exist_ok=True)
for number in plt.get_fignums():
    plt.figure(number).savefig(out / f"06_pretrained_networks_{number}.png", dpi=100)
