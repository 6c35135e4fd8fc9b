"""Best learning rates over widths on Fashion-MNIST: muP against the standard parametrization.

    PYRO_IBVI_DATA=... python benchmarks/mup/real_data.py [--seeds 3] [--optimizers SGD AdamW]

A 784-h-h-10 network with ReLU, first and last weights random with a low-rank factor, a few epochs
on a part of the training images (``SETTINGS``), the loss at the end on held-out ones. The data
directory holds ``fashion-mnist/*.gz``; without it the files come from torchvision.

Each case, an optimizer and a parametrization, has a file in ``real_data/`` beside this one, which
:func:`pyro_ibvi.rate_transfer` adds each run to: stopped and started again, the script goes on
where it was. Seeds come one after the other, so that all cases have the first before any has the
second.
"""

import argparse
import gzip
import os
from pathlib import Path

import torch
from torch import Tensor, nn

import pyro_ibvi as ibvi

FOLDER = Path(__file__).with_suffix("")
SETTINGS = {
    "num_train": 2048,
    "num_valid": 512,
    "num_epochs": 3,
    "batch_size": 128,
    "num_draws": 2,
}
WIDTHS = (64, 256, 1024)
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.0}),
    "Muon": (torch.optim.Muon, {"weight_decay": 0.0}),
}
PARAMETRIZATIONS = {"MaximalUpdate": ibvi.MaximalUpdate(), "Standard": ibvi.Standard()}
#: Powers of two around the best rates of the narrowest network.
RATES = {
    ("SGD", "MaximalUpdate"): range(-6, 1),
    ("SGD", "Standard"): range(-9, -2),
    ("AdamW", "MaximalUpdate"): range(-5, 2),
    ("AdamW", "Standard"): range(-13, -6),
    ("Muon", "MaximalUpdate"): range(-7, 0),
    ("Muon", "Standard"): range(-12, -5),
}


def read_idx(name: str) -> Tensor:
    """One of the four files, as torch has them."""
    folder = Path(os.environ.get("PYRO_IBVI_DATA", "data")) / "fashion-mnist"
    if not (folder / name).exists():
        from torchvision.datasets import FashionMNIST

        FashionMNIST("data", download=True)
        folder = Path("data/FashionMNIST/raw")
    content = gzip.decompress((folder / name).read_bytes())
    num_dims = content[3]
    shape = torch.tensor(list(content[4 : 4 + 4 * num_dims])).reshape(num_dims, 4)
    sizes = (shape * torch.tensor([2**24, 2**16, 2**8, 1])).sum(1).tolist()
    data = torch.frombuffer(bytearray(content[4 + 4 * num_dims :]), dtype=torch.uint8)
    return data.reshape(sizes)


def load_data() -> tuple[torch.utils.data.Dataset, torch.utils.data.Dataset]:
    """Training and held-out images, standardized by the training set's mean and deviation."""
    x = read_idx("train-images-idx3-ubyte.gz").reshape(60_000, 784).float().div(255)
    x, y = (x - 0.286) / 0.353, read_idx("train-labels-idx1-ubyte.gz").long()
    parts = x.split([SETTINGS["num_train"], len(x) - SETTINGS["num_train"]])
    labels = y.split([SETTINGS["num_train"], len(x) - SETTINGS["num_train"]])
    n = SETTINGS["num_valid"]
    return (
        torch.utils.data.TensorDataset(parts[0], labels[0]),
        torch.utils.data.TensorDataset(parts[1][-n:], labels[1][-n:]),
    )


def run(optimizer: str, rule: str, num_seeds: int) -> ibvi.diagnostics.RateTransfer:
    train, valid = load_data()

    def build(width: int) -> tuple[ibvi.SupervisedModel, ibvi.AutoMuPNormal]:
        net = nn.Sequential(
            nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 10),
        )  # fmt: skip
        random = ibvi.RandomModule(net, parametrization=PARAMETRIZATIONS[rule])
        model = ibvi.SupervisedModel(random, ibvi.Categorical(), num_data=len(train))
        return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(10))

    kind, arguments = OPTIMIZERS[optimizer]
    return ibvi.rate_transfer(
        build,
        WIDTHS,
        [2.0**power for power in RATES[optimizer, rule]],
        torch.utils.data.DataLoader(train, SETTINGS["batch_size"], shuffle=True),
        SETTINGS["num_epochs"],
        valid_loader=torch.utils.data.DataLoader(valid, SETTINGS["num_valid"]),
        optimizer=kind,
        optim_args=arguments,
        num_seeds=num_seeds,
        num_draws=SETTINGS["num_draws"],
        path=FOLDER / f"{optimizer}-{rule}.json",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for num_seeds in range(1, args.seeds + 1):
        for optimizer in args.optimizers:
            for rule in PARAMETRIZATIONS:
                print(f"{optimizer}, {rule}, {num_seeds} seeds")
                print(run(optimizer, rule, num_seeds), flush=True)


if __name__ == "__main__":
    main()
