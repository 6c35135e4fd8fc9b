"""How fast may the factors of a Kronecker product learn? Both rules for ``Kronecker`` measured.

    python -m benchmarks.mup.kronecker_rate [--seeds 4] [--optimizers SGD Adam]

Part 1, the coordinate check: MLP 64-h-h-10 (ReLU), all layers random with ``Kronecker(10, 10)``,
on the first 128 of scikit-learn's digits, all of them in each step, no momentum; what each
parameter changed in its layer's output after 1 and 10 steps, over 8 draws. The biases' prior is
0.1, so that the logits of the first draws are small and the slopes can be told with few seeds.

Part 2, transfer and stability: the same network with the biases' own prior, SGD with momentum 0.9
or Adam, batches of 100, 5 epochs, one seed: the expected training loss over the learning rate. The
largest stable rate is the largest at which the loss ends below 4 nats (it starts at about 3.2).

Part 3, the start: spectral norm of the hidden layer's noise ``S z`` over widths, the mean of 8
draws. The noise of a Kronecker product has rank ``R``, and its marginals are the prior's.

The result goes to ``kronecker_rate.json`` beside this file, a table of slopes to standard output.
"""

import argparse
import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import pyro_ibvi as ibvi
from benchmarks.provenance import provenance

HERE = Path(__file__).parent
RULES = {
    "Kronecker(10, 10), maximal": (
        ibvi.Kronecker(10, 10),
        ibvi.MaximalUpdate(kronecker="maximal", inputs="reference"),
    ),
    "Kronecker(10, 10), reference": (
        ibvi.Kronecker(10, 10),
        ibvi.MaximalUpdate(kronecker="reference", inputs="reference"),
    ),
    "LowRank(10)": (ibvi.LowRank(10), ibvi.MaximalUpdate(inputs="reference")),
}
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"lr": 0.02}, {"momentum": 0.9}),
    "Adam": (torch.optim.Adam, {"lr": 0.01}, {}),
}
RATES = [10 ** (k / 4) for k in range(-16, -1)]
LAYERS = {"input": "0", "hidden": "2", "output": "4"}
QUANTITIES = {"loc": "loc", "S_in": "factor", "S_out": "layer factor"}
WIDTHS, TRANSFER_WIDTHS, EPOCHS = [64, 128, 256, 512, 1024], [64, 256, 1024], 5


def build(rule: str, width: int, prior: dict | None) -> tuple:
    covariance, parametrization = RULES[rule]
    net = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    random = ibvi.RandomModule(net, stochastic="all", prior=prior, parametrization=parametrization)
    model = ibvi.SupervisedModel(random, ibvi.Categorical())
    return model, ibvi.AutoMuPNormal(model, covariance=covariance)


def digits(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    x = (torch.tensor(data.data, dtype=torch.float32)[:number] / 16 - 0.3) / 0.37
    return x, torch.tensor(data.target)[:number]


def coordinates(rule: str, optimizer: str, seeds: int) -> dict:
    """Slopes with their standard errors, and the values that they come from."""
    kind, arguments, _ = OPTIMIZERS[optimizer]
    check = ibvi.coordinate_check(
        lambda width: build(rule, width, {"*.bias": 0.1}),
        WIDTHS,
        digits(128),
        optimizer=kind,
        optim_args=arguments,
        num_seeds=seeds,
    )
    keys = {
        f"by {name}, {layer}, step {step}": (quantity, step, f"{number}.weight")
        for name, quantity in QUANTITIES.items()
        for layer, number in LAYERS.items()
        for step in (1, 10)
    }
    keys |= {f"change, {layer}, step 10": ("change", 10, n) for layer, n in LAYERS.items()}
    result = {
        name: {
            "slope": round(check.slope(*key), 3),
            "error": round(check.slope_error(*key), 3),
            "values": [float(f"{value:.4g}") for value in check.mean(*key)],
        }
        for name, key in keys.items()
        if key in check.rms
    }
    print(optimizer, rule)
    for name, entry in result.items():
        print(f"  {name:<26} {entry['slope']:+.2f} +- {entry['error']:.2f}  {entry['values']}")
    return result


def transfer(rule: str, optimizer: str) -> dict:
    """Losses over learning rates, and the largest stable rate of each width."""
    kind, _, arguments = OPTIMIZERS[optimizer]
    data = torch.utils.data.TensorDataset(*digits(1200))
    result = ibvi.rate_transfer(
        lambda width: build(rule, width, None),
        TRANSFER_WIDTHS,
        RATES,
        torch.utils.data.DataLoader(data, batch_size=100, shuffle=True),
        EPOCHS,
        optimizer=kind,
        optim_args=arguments,
        num_seeds=1,
        num_draws=4,
    )
    stable = [
        max((r for r, loss in zip(RATES, result.mean(width), strict=True) if loss < 4), default=0)
        for width in TRANSFER_WIDTHS
    ]
    print(optimizer, rule, result, f"largest stable rates {stable}", sep="\n", flush=True)
    return {**result.to_dict(), "slope": result.slope(), "largest_stable_rates": stable}


@torch.no_grad()
def noise_norms(rule: str) -> dict:
    """Spectral norms of the hidden layer's noise, and their slope."""
    norms = []
    for width in WIDTHS:
        _, guide = build(rule, width, None)
        noise = guide.draw(8)["net.2.weight"] - guide.loc("net.2.weight")
        norms.append(torch.linalg.matrix_norm(noise, 2).mean().item())
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (WIDTHS, norms))
    slope = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y).solution[0].item()
    print(rule, "spectral norm of the noise", norms, f"slope {slope:+.2f}")
    return {"norms": [float(f"{norm:.4g}") for norm in norms], "slope": round(slope, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--parts", nargs="+", default=["coordinates", "transfer", "noise"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "kronecker_rate.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for optimizer in args.optimizers:
        for rule in RULES:
            torch.manual_seed(0)
            case = f"{optimizer}, {rule}"
            if "coordinates" in args.parts:
                entry = coordinates(rule, optimizer, args.seeds)
                results.setdefault("coordinates", {})[case] = entry
            if "transfer" in args.parts:
                results.setdefault("transfer", {})[case] = transfer(rule, optimizer)
    if "noise" in args.parts:
        torch.manual_seed(0)
        results["noise"] = {rule: noise_norms(rule) for rule in RULES if "reference" not in rule}
    results |= {
        "settings": {
            "coordinates": {
                "widths": WIDTHS,
                "seeds": args.seeds,
                "optimizers": {name: coarse for name, (_, coarse, _) in OPTIMIZERS.items()},
            },
            "transfer": {"widths": TRANSFER_WIDTHS, "epochs": EPOCHS, "seeds": 1, "batch": 100},
        },
        **provenance(),
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
