"""How much each layer's curvature grows with the width, at the start of training.

    PYRO_IBVI_DATA=... python -m benchmarks.mup.layer_curvature

The networks and data of ``real_data``, with weights drawn from the prior. For each layer the
largest eigenvalue of the Gauss-Newton matrix of the mean cross-entropy of ``NUM_ROWS`` images,
where all classes are alike probable, times the rate that a global rate of one gives the layer. Two
over the largest of a network is about the global rate up to which SGD without momentum is stable.
"""

import json
from pathlib import Path

import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_ibvi as ibvi
from benchmarks.mup.real_data import PARAMETRIZATIONS, TASKS, load_data
from benchmarks.provenance import provenance

FILE = Path(__file__).with_suffix(".json")
NUM_ROWS, NUM_SEEDS = 128, 3
WIDTHS = (64, 256, 1024, 4096)
NUM_CLASSES = 10


def weights_and_rates(net: nn.Module, rule: str, x: Tensor) -> list[tuple[Tensor, float]]:
    """Each layer's weight, drawn where it is random, with its rate at a global rate of one."""
    random = ibvi.RandomModule(net, parametrization=PARAMETRIZATIONS[rule])
    model = ibvi.SupervisedModel(random, ibvi.Categorical(), num_data=len(x))
    guide = ibvi.AutoMuPNormal(model, covariance=ibvi.LowRank(1))
    rate_of = {
        parameter: group["lr"]
        for group in ibvi.mup_param_groups(guide, 1.0, optimizer=torch.optim.SGD)
        for parameter in group["params"]
    }
    trace = poutine.trace(random).get_trace(x)
    result = []
    for name, weight in random.network.named_parameters():
        if name.endswith("bias"):
            continue
        site = random.site_name(name)
        if name in random.stochastic:
            result.append(
                (trace.nodes[site]["value"].detach(), rate_of[guide.get_parameter(f"locs.{site}")])
            )
        else:
            result.append((weight.detach(), rate_of[weight]))
    return result


def curvatures(weights: list[Tensor], x: Tensor) -> list[float]:
    """The largest eigenvalue of each layer's Gauss-Newton matrix."""
    reads, ahead = [], []
    hidden = x
    for weight in weights:
        reads.append(hidden)
        hidden = hidden @ weight.T
        ahead.append(hidden > 0)
        hidden = hidden.relu()
    back = torch.eye(NUM_CLASSES).expand(len(x), NUM_CLASSES, NUM_CLASSES)
    # The root of the softmax's Hessian, diag(p) - p p', where p is uniform.
    root = (torch.eye(NUM_CLASSES) - 1 / NUM_CLASSES) / NUM_CLASSES**0.5
    found = []
    for layer in reversed(range(len(weights))):
        gram = reads[layer] @ reads[layer].T
        kernel = torch.einsum("nm,nci,mdi->ncmd", gram, back, back)
        kernel = torch.einsum("ab,nbmd,de->name", root, kernel, root).flatten(2).flatten(0, 1)
        found.append(torch.linalg.eigvalsh(kernel / len(x))[-1].item())
        if layer:
            back = (back @ weights[layer]) * ahead[layer - 1].unsqueeze(1)
    return found[::-1]


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for task in ("fashion", "cifar-mlp"):
        x = load_data(TASKS[task])[0].tensors[0][:NUM_ROWS]
        for rule in ("MaximalUpdate", "Standard"):
            for width in WIDTHS:
                of_seeds = []
                for seed in range(NUM_SEEDS):
                    torch.manual_seed(seed)
                    layers = weights_and_rates(TASKS[task].net(width), rule, x)
                    found = curvatures([weight for weight, _ in layers], x.flatten(1))
                    of_seeds.append([c * r for c, (_, r) in zip(found, layers, strict=True)])
                means = torch.tensor(of_seeds).mean(0).tolist()
                rows.append({"data": task, "rule": rule, "width": width, "curvature": means})
                print(rows[-1], flush=True)
    content = {"rows": rows, **provenance()}
    FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
