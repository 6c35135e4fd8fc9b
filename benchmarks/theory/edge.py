"""The largest stable rate of gradient descent with noise, theory beside measurement.

    python -m benchmarks.theory.edge

Scikit-learn's digits, ``NUM_ROWS`` images, all in each step, squared loss, no momentum, noise
relative to the mean with the standard deviation ``s`` and a draw for the batch or for each datum.

Linear: regression on the digit, from zero. A rate is stable if the loss averaged over the last
half of the steps and all seeds is below that at the start; found in steps of 2^(1/16). The bound
is that of :func:`pyro_ibvi.theory.max_stable_multiplicative_rate`.

Network: 64-64-64-10, one-hot targets. At a rate within the bound the curvature of the loss rises
in training, without noise to two over the rate, where it stays: the edge of stability (Cohen et
al. 2021, arXiv:2103.00065). ``sharpness`` is the largest eigenvalue of the Hessian of the expected
loss (``NUM_DRAWS`` draws of each datum's noise) by the means at the end, times half the rate.
"""

import json
import math
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyro_ibvi as ibvi
from benchmarks.provenance import provenance

FILE = Path(__file__).with_suffix(".json")
NUM_ROWS, NUM_STEPS, NUM_SEEDS, NUM_DRAWS = 300, 400, 5, 16
SCALES = (1e-6, 0.2, 0.35, 0.5, 0.7)
DRAWS = ("batch", "datum")
NETWORK_RATES = (0.05, 0.1, 0.2)
NETWORK_STEPS = 3000


def digits() -> tuple[Tensor, Tensor]:
    """Standardized images and digits."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x[:NUM_ROWS]).float(), torch.tensor(y[:NUM_ROWS])
    return (x - x.mean()) / x.std(), y


def make_svi(net: nn.Module, num_data: int, scale: float, rate: float, draws: str) -> SVI:
    weights = [name for name, _ in net.named_parameters() if name.endswith("weight")]
    random = ibvi.RandomModule(
        net, stochastic=weights, parametrization=ibvi.MaximalUpdate(base=net)
    )
    model = ibvi.SupervisedModel(random, ibvi.Normal(1.0), num_data=num_data)
    guide = ibvi.AutoMuPNormal(
        model,
        covariance=ibvi.Multiplicative(scale, rate=0.0),
        init_loc_fn=ibvi.init_to_network,
    )
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": rate}, guide)
    loss = ibvi.TraceExpectedLogLikelihood(reduction="mean", draws=draws)
    return SVI(model, guide, optim, loss)


def is_stable(x: Tensor, y: Tensor, scale: float, rate: float, draws: str) -> bool:
    """Whether the loss of the linear model is lower at the end than at the start."""
    late = []
    for seed in range(NUM_SEEDS):
        pyro.set_rng_seed(seed)
        net = nn.Linear(x.shape[1], 1, bias=False)
        nn.init.zeros_(net.weight)
        svi = make_svi(net, len(x), scale, rate, draws)
        losses = [svi.step(x, y) for _ in range(NUM_STEPS)]
        late += losses[NUM_STEPS // 2 :]
    mean = sum(late) / len(late)
    return bool(mean < losses[0])


def largest_stable(x: Tensor, y: Tensor, scale: float, draws: str) -> dict[str, object]:
    """The bound and the largest stable rate, found from below in steps of 2^(1/16)."""
    s = torch.full((x.shape[1],), scale)
    bound = ibvi.theory.max_stable_multiplicative_rate(x, s, draws=draws)
    power = -8
    while is_stable(x, y, scale, bound * 2 ** ((power + 1) / 16), draws):
        power += 1
    measured = bound * 2 ** (power / 16)
    return {"s": scale, "draws": draws, "bound": bound, "measured": measured}


def sharpness(net: nn.Sequential, x: Tensor, y: Tensor, scale: float, num_draws: int) -> float:
    """The largest eigenvalue of the Hessian of the expected loss, by power iteration."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    parameters = [parameter for layer in linear for parameter in layer.parameters()]
    noise = [1 + scale * torch.randn(num_draws, len(x), layer.in_features) for layer in linear]

    def loss() -> Tensor:
        hidden, left = x.expand(num_draws, *x.shape), iter(noise)
        for layer in net:
            hidden = layer(hidden * next(left)) if isinstance(layer, nn.Linear) else layer(hidden)
        return (hidden - y).square().sum(-1).mean() / 2

    gradient = torch.autograd.grad(loss(), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    direction, value = torch.randn_like(flat), 0.0
    for _ in range(100):
        direction = direction / direction.norm()
        product = torch.autograd.grad(flat, parameters, direction, retain_graph=True)
        image = torch.cat([p.flatten() for p in product])
        before, value = value, float(direction @ image)
        direction = image
        if abs(value - before) < 1e-4 * abs(value):
            break
    return value


def trained_sharpness(scale: float, rate: float, draws: str) -> dict[str, object]:
    """Sharpness over its limit without noise, at the end of training a network."""
    x, digit = digits()
    y = nn.functional.one_hot(digit, 10).float()
    pyro.set_rng_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)
    )
    svi = make_svi(net, len(x), scale, rate, draws)
    losses = [svi.step(x, y) for _ in range(NETWORK_STEPS)]
    with torch.no_grad():
        for name, parameter in svi.model.net.network.named_parameters():
            net.get_parameter(name).copy_(parameter)
        for name in svi.model.net.stochastic:
            site = svi.model.net.site_name(name)
            net.get_parameter(name).copy_(svi.guide.loc(site))
    row: dict[str, object] = {"s": scale, "draws": draws, "rate": rate}
    if not math.isfinite(losses[-1]):
        return row | {"loss": None, "sharpness": None}
    found = sharpness(net, x, y, scale, NUM_DRAWS)
    return row | {"loss": sum(losses[-50:]) / 50, "sharpness": found * rate / 2}


def main() -> None:
    torch.set_num_threads(1)
    x, digit = digits()
    y = (digit - digit.float().mean()) / digit.float().std()
    linear, network = [], []
    for scale in SCALES:
        for draws in DRAWS:
            linear.append(largest_stable(x, y.unsqueeze(1), scale, draws))
            print(linear[-1], flush=True)
    for rate in NETWORK_RATES:
        for scale in SCALES:
            for draws in DRAWS:
                network.append(trained_sharpness(scale, rate, draws))
                print(network[-1], flush=True)
    content = {"linear": linear, "network": network, **provenance()}
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
