"""Best learning rates over batch sizes: does the rate grow as the batch, or as its square root?

    PYRO_IBVI_DATA=... python -m benchmarks.mup.batch_size [--seeds 3] [--parts means factors]

Fashion-MNIST, a 784-128-128-10 network with ReLU under ``MaximalUpdate()``, first and last weights
random with a factor of rank 10. One draw of the weights serves a batch. Trained on

examples  12,800 images once, in batches of 16, 64 or 256: as many data for all
steps     200 batches: as many steps for all

and of all parameters, of the *means* alone (with biases; the factors stay where the prior has
them), or of the *factors* alone (the means were trained before, at one rate, and stay). The loss
is the expected one on 2,000 held-out images.

Each case has a file in ``batch_size/`` beside this one, which :func:`pyro_ibvi.rate_transfer`
adds each run to: stopped and started again, the script goes on where it was. Seeds come one after
the other, so that all cases have the first before any has the second.
"""

import argparse
import copy
from functools import cache
from pathlib import Path

import torch
from pyro.infer import SVI
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import pyro_ibvi as ibvi
from benchmarks.evidence.data import raw_images
from benchmarks.mup.real_data import NUM_DRAWS, OPTIMIZERS, RANK, mlp

FOLDER = Path(__file__).with_suffix("")
WIDTH = 128
NUM_EXAMPLES, NUM_STEPS, NUM_VALID = 12_800, 200, 2_000
SIZES = (16, 64, 256)
NAMES = ("SGD", "AdamW")
#: Powers of two around the best rates.
RATES = {
    ("all", "SGD"): range(-6, 1),
    ("all", "AdamW"): range(-5, 2),
    ("means", "SGD"): range(-6, 1),
    ("means", "AdamW"): range(-5, 2),
    ("factors", "SGD"): range(-9, -1),
    ("factors", "AdamW"): range(-8, 0),
}
PARTS = ("all", "means", "factors")
CASES = [(part, optimizer, "examples") for part in PARTS for optimizer in NAMES]
CASES += [("all", optimizer, "steps") for optimizer in NAMES]


@cache
def load_data() -> tuple[Dataset, Dataset]:
    """Training and held-out images, standardized."""
    images, labels, _, _ = raw_images("fashion-mnist")
    num_train = len(images) - NUM_VALID
    x, y = torch.tensor(images), torch.tensor(labels)
    x = (x - x[:num_train].mean()) / x[:num_train].std()
    return TensorDataset(x[:num_train], y[:num_train]), TensorDataset(x[num_train:], y[num_train:])


def make() -> tuple[ibvi.SupervisedModel, ibvi.AutoMuPNormal]:
    model = ibvi.SupervisedModel(ibvi.RandomModule(mlp(WIDTH)), ibvi.Categorical(), NUM_EXAMPLES)
    return model, ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(RANK))


def freeze(model: ibvi.SupervisedModel, guide: ibvi.AutoMuPNormal, part: str) -> None:
    """Leaves nothing but a part to train."""
    factors = {p for name, p in guide.named_parameters() if name.startswith("factors.")}
    for parameter in {*model.parameters(), *guide.parameters()}:
        is_factor = parameter in factors
        parameter.requires_grad_(part == "all" or is_factor == (part == "factors"))


def first(num: int) -> Dataset:
    return Subset(load_data()[0], range(num))


@cache
def trained_means() -> tuple[dict, dict]:
    """States of model and guide after the means were trained."""
    torch.manual_seed(1_000)
    model, guide = make()
    freeze(model, guide, "means")
    optim = ibvi.MuPOptim(torch.optim.AdamW, {"lr": 0.25, "weight_decay": 0.0}, guide)
    svi = SVI(model, guide, optim, ibvi.TraceExpectedLogLikelihood(reduction="mean"))
    ibvi.fit(svi, DataLoader(first(NUM_EXAMPLES), 64, shuffle=True), 2, progress=False)
    return copy.deepcopy(model.state_dict()), copy.deepcopy(guide.state_dict())


def run(part: str, optimizer: str, fixed: str, num_seeds: int) -> ibvi.diagnostics.RateTransfer:
    def build(_: int) -> tuple[ibvi.SupervisedModel, ibvi.AutoMuPNormal]:
        model, guide = make()
        if part == "factors":
            states = trained_means()
            model.load_state_dict(states[0])
            guide.load_state_dict(states[1])
        freeze(model, guide, part)
        return model, guide

    def loader(size: int) -> DataLoader:
        num = NUM_EXAMPLES if fixed == "examples" else NUM_STEPS * size
        return DataLoader(first(num), size, shuffle=True)

    kind, arguments = OPTIMIZERS[optimizer]
    return ibvi.rate_transfer(
        build,
        SIZES,
        [2.0**power for power in RATES[part, optimizer]],
        loader,
        1,
        axis="batch_size",
        valid_loader=DataLoader(load_data()[1], 500),
        optimizer=kind,
        optim_args=arguments,
        num_seeds=num_seeds,
        num_draws=NUM_DRAWS,
        path=FOLDER / f"{part}-{optimizer}-{fixed}.json",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for num_seeds in range(1, args.seeds + 1):
        for part, optimizer, fixed in CASES:
            if part in args.parts:
                print(f"{part}, {optimizer}, {fixed}, {num_seeds} seeds")
                print(run(part, optimizer, fixed, num_seeds), flush=True)


if __name__ == "__main__":
    main()
