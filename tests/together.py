"""Two processes that train together, forked of one that has imported all; prints what they found.

Run as a program by ``tests/test_processes.py``, with two ports to meet at and a script, which both
run in the end as ``torchrun`` has them run it.
"""

import os
import runpy
import sys
import warnings

import pyro
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import pyro_ibvi as ibvi
from pyro_ibvi.training import seed_process

NUM_STEPS, BATCH = 6, 8
X = torch.randn(NUM_STEPS * BATCH, 4, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
COVARIANCES = {
    "default": None,
    "diagonal": ibvi.Diagonal(),
    "low rank": ibvi.LowRank(3),
    "kronecker": ibvi.Kronecker(2, 2),
    "multiplicative": ibvi.Multiplicative(0.5),
}
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.01}),
}


def make(covariance, reduction="mean", kind=ibvi.AutoMuPNormal):
    pyro.set_rng_seed(0)
    layers = nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
    model = ibvi.SupervisedModel(
        ibvi.RandomModule(nn.Sequential(*layers)), ibvi.Categorical(), num_data=len(X)
    )
    guide = kind(model, covariance=covariance)
    return ibvi.TraceExpectedLogLikelihood(reduction=reduction)(model, guide)


def make_optimizer(loss, name="sgd", lr=0.02):
    kind, options = OPTIMIZERS[name]
    groups = ibvi.mup_param_groups(loss.guide, lr=lr, optimizer=kind)
    return kind(groups, **options)


def train(loss, optimizer, part, num_parts, seed=None):
    """Steps on a part of each batch; with draws that are the same for all parts."""
    for step in range(NUM_STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        if seed is None:
            pyro.set_rng_seed(100 + step)
        optimizer.zero_grad()
        loss(X[rows].chunk(num_parts)[part], Y[rows].chunk(num_parts)[part]).backward()
        optimizer.step()


def values(loss):
    """Trained parameters, gathered where they lie in parts."""
    found = {n: p.detach().clone() for n, p in loss.named_parameters() if p.requires_grad}
    return {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in found.items()}


def distance(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


def rates(optimizer):
    return [(g["lr"], g["param_names"]) for g in optimizer.param_groups]


def spread(loss):
    """How far the processes are from one another."""
    mine = torch.cat([v.flatten() for v in values(loss).values()])
    low, high = mine.clone(), mine.clone()
    distributed.all_reduce(low, distributed.ReduceOp.MIN)
    distributed.all_reduce(high, distributed.ReduceOp.MAX)
    return (high - low).max().item()


def compare(rank, wrap, covariance, optimizer_name, reduction, kind=ibvi.AutoMuPNormal):
    """Distance of two processes from one, how far one went, and whether rates are the same."""
    lr = 0.02 if reduction == "mean" else 0.02 / len(X)
    alone = make(covariance, reduction, kind)
    start = values(alone)
    optimizer = make_optimizer(alone, optimizer_name, lr)
    alone.model.eval()  # BatchNorm would normalize parts by themselves
    train(alone, optimizer, 0, 1)
    together = make(covariance, reduction, kind)
    together.model.eval()
    wrapped = wrap(together)
    shared = make_optimizer(together, optimizer_name, lr)
    train(wrapped, shared, rank, 2)
    return (
        distance(values(together), values(alone)),
        distance(values(alone), start),
        rates(shared) == rates(optimizer),
    )


def own_draws(rank):
    """Draws of the first weights differ between processes, and the networks do not."""
    loss = make(ibvi.Diagonal())
    wrapped = DistributedDataParallel(loss)
    seed = seed_process(3)
    state = torch.get_rng_state()
    draw = loss.guide.rsample()["net.0.weight"].detach()
    torch.set_rng_state(state)
    draws = [torch.empty_like(draw) for _ in range(2)]
    distributed.all_gather(draws, draw)
    train(wrapped, make_optimizer(loss), rank, 2, seed)
    return (draws[0] - draws[1]).abs().max().item(), spread(loss)


def sharded_prediction():
    """A sharded network, gathered by ``unshard``, against its own values in another network."""
    loss = fully_shard(make(ibvi.LowRank(3)))
    train(loss, make_optimizer(loss), 0, 1)
    again = make(ibvi.LowRank(3))
    state = {
        n: v.full_tensor() if hasattr(v, "full_tensor") else v
        for n, v in loss.state_dict().items()
    }
    again.load_state_dict(state)
    loss.unshard()
    found = ibvi.predict(loss.model, loss.guide, X, num_samples=5, generator=0).mean
    loss.reshard()
    expected = ibvi.predict(again.model, again.guide, X, num_samples=5, generator=0).mean
    return (found - expected).abs().max().item()


def fit_says():
    loss = make(ibvi.Diagonal())
    optim = ibvi.MuPOptim(torch.optim.SGD, {"lr": 0.01}, loss.guide)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        svi = pyro.infer.SVI(loss.model, loss.guide, optim, loss.elbo)
        ibvi.fit(svi, [(X, Y)], 1, progress=False)
    return [str(w.message) for w in caught]


def work(rank, port, script_port, script):
    print_comparisons(rank, port)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=script_port,
    )
    runpy.run_path(script)
    # The end of a forked interpreter tears down what it did not make.
    sys.stdout.flush()
    os._exit(0)


def print_comparisons(rank, port):
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    found = {}
    for wrap in (DistributedDataParallel, fully_shard):
        for name, covariance in COVARIANCES.items():
            found[wrap.__name__, name] = compare(rank, wrap, covariance, "sgd", "mean")
        case = compare(rank, wrap, ibvi.LowRank(2), "sgd", "mean", ibvi.AutoMuPMixture)
        found[wrap.__name__, "mixture"] = case
        for optimizer, reduction in (("adamw", "mean"), ("sgd", "sum")):
            case = compare(rank, wrap, None, optimizer, reduction)
            found[wrap.__name__, f"{optimizer}, {reduction}"] = case
    found["own draws"] = own_draws(rank)
    found["sharded prediction"] = sharded_prediction()
    found["fit"] = fit_says()
    if rank == 0:
        print(found, flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.multiprocessing.start_processes(work, tuple(sys.argv[1:]), nprocs=2, start_method="fork")
