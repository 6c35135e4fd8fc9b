"""Where arguments belong that a person passes to the wrong door: a line to write, by name."""

from __future__ import annotations

from collections.abc import Mapping

#: What ``VariationalNetwork(...)`` does not take itself.
OF_NETWORK: Mapping[str, str] = {
    "rank": "write covariance=LowRank(10)",
    "momentum": "it is the optimizer's, optim_args={'momentum': 0.9}",
    "weight_decay": "it is the optimizer's, optim_args={'weight_decay': 0.01}",
    "betas": "they are the optimizer's, optim_args={'betas': (0.9, 0.99)}",
    "prior": "write VariationalNetwork(RandomModule(net, prior=1.0), likelihood)",
    "roles": "write VariationalNetwork(RandomModule(net, roles={...}), likelihood)",
    "kl_weight": "write loss=TraceExpectedLogLikelihood(reduction='mean', kl_weight=1.0)",
    "num_data": "fit counts them, or takes num_data=",
    "num_epochs": "it is an argument of fit",
    "valid_loader": "it is an argument of fit",
    "batch_size": "it is an argument of fit",
    "patience": "it is an argument of fit",
    "progress": "it is an argument of fit",
    "device": "write VariationalNetwork(net, likelihood).to('cuda')",
    "seed": "write torch.manual_seed(0) before the network is made; predict takes seed=",
}

#: What ``VariationalNetwork.fit`` does not take.
OF_FIT: Mapping[str, str] = {
    name: f"it is an argument of VariationalNetwork(net, likelihood, {name}=...)"
    for name in ("lr", "optimizer", "scheduler", "clip_norm", "draws", "loss", "optim_args")
} | {
    "shuffle": "tensors and data sets are shuffled, and a DataLoader says it itself",
    "seed": "write torch.manual_seed(0) before the network is made",
}
