"""Contenders that are other libraries, where they are installed.

All of them import torchvision, whose wheel on PyPI is compiled for CUDA. Next to a CPU build of
torch its import fails at the first operator that is missing; `torchvision_stand_in` declares those
operators, which no network here uses.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.contenders import (
    NUM_DATA,
    Contender,
    Make,
    Trainer,
    mean_of_draws,
    sgd,
    torch_trainer,
)
from benchmarks.speed.names import (
    BAYESIAN_TORCH,
    INFERNO,
    MEAN_FIELD,
    RANKS,
    TORCH_UNCERTAINTY,
    family_name,
)
from benchmarks.speed.networks import NUM_CLASSES, Network, make_lenet5, make_resnet18

#: Where each peer's distribution and its module are found.
PEERS = {
    INFERNO: ("inferno-torch", "inferno"),
    BAYESIAN_TORCH: ("bayesian-torch", "bayesian_torch.models.dnn_to_bnn"),
    TORCH_UNCERTAINTY: ("torch-uncertainty", "torch_uncertainty.losses"),
}


def torchvision_stand_in() -> None:
    """Declares the operators without which torchvision's import fails beside a CPU torch."""
    if torch.version.cuda is not None or importlib.util.find_spec("torchvision") is None:
        return
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)


def find_peers() -> dict[str, dict[str, Any]]:
    """Imports the peers.

    Returns:
        By name the package, its ``version`` and what it ``needs``, or the ``reason`` why it is
        left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for who, (distribution, module) in PEERS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torchvision_stand_in()
                importlib.import_module(module)
        except Exception as error:
            # Whatever goes wrong in another library's import is the reason to leave it out.
            reason = f"{type(error).__name__}: {error}"
            found[who] = {"package": distribution, "reason": reason}
        else:
            found[who] = {
                "package": distribution,
                "version": importlib.metadata.version(distribution),
                "needs": [
                    need
                    for need in importlib.metadata.requires(distribution) or ()
                    if "extra ==" not in need
                ],
            }
    return found


def inferno_network(network: Network, rank: int | None) -> nn.Module:
    """The same architecture from inferno's layers, random where the others' are."""
    from inferno import models
    from inferno.bnn import params

    def covariance() -> params.FactorizedCovariance:
        return params.DiagonalCovariance() if rank is None else params.LowRankCovariance(rank)

    if network.hidden:
        num_hidden = len(network.hidden) - 1
        inner = [covariance() if rank is None else None for _ in range(num_hidden)]
        return models.MLP(
            in_size=network.input_shape[0],
            hidden_sizes=list(network.hidden),
            out_size=NUM_CLASSES,
            activation_layer=nn.SiLU,
            cov=[covariance(), *inner, covariance()],
        )
    if network.build is make_lenet5:
        return models.LeNet5(out_size=NUM_CLASSES, cov=covariance())
    if network.build is make_resnet18:
        return models.ResNet18(out_size=NUM_CLASSES, architecture="cifar", cov=covariance())
    raise ValueError(f"inferno's form of {network} is not known: write it here.")


def inferno(rank: int | None) -> Make:
    """Inferno as its documentation trains; draws of a prediction run at once."""

    def make(network: Network, x: Tensor, y: Tensor) -> Trainer:
        from inferno import loss_fns

        net = inferno_network(network, rank).to(x.device)
        lr = 1e-4
        optimizer = sgd(net.parameters_and_lrs(lr=lr, optimizer="SGD"), lr)
        loss_fn = loss_fns.CrossEntropyLoss()

        @torch.no_grad()
        def predict(x: Tensor, num_draws: int) -> Tensor:
            net.eval()
            logits = net(x, sample_shape=torch.Size([num_draws]))
            net.train()
            return logits.softmax(-1).mean(0)

        trainer = torch_trainer(optimizer, lambda: loss_fn(net(x), y), predict)
        return Trainer(trainer.step, lambda: trained(net), predict)

    return make


def trained(net: nn.Module) -> list[Tensor]:
    """Every tensor that is meant to be trained, whether the optimizer has it or not."""
    return [p for p in net.parameters() if p.requires_grad]


def bayesian_torch(network: Network, x: Tensor, y: Tensor) -> Trainer:
    """bayesian-torch: a network converted layer by layer, and the ELBO."""
    from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

    net = network.build()
    prior = {"prior_mu": 0.0, "prior_sigma": 1.0}
    start = {"posterior_mu_init": 0.0, "posterior_rho_init": -3.0}
    # MOPED: means start at the network's weights
    moped = {"moped_enable": True, "moped_delta": 0.2}
    dnn_to_bnn(net, {**prior, **start, **moped, "type": "Reparameterization"})
    net.to(x.device)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(net(x), y) + get_kl_loss(net) / NUM_DATA

    return torch_trainer(sgd(net.parameters(), 1e-2), loss, mean_of_draws(net))


def with_bayesian_layers(net: nn.Module) -> nn.Module:
    """Puts torch-uncertainty's layers in place of torch's, started at their weights."""
    from torch_uncertainty.layers.bayesian import BayesConv2d, BayesLinear

    for name, child in net.named_children():
        has_bias = getattr(child, "bias", None) is not None
        if isinstance(child, nn.Linear):
            layer = BayesLinear(child.in_features, child.out_features, bias=has_bias)
        elif isinstance(child, nn.Conv2d):
            layer = BayesConv2d(
                child.in_channels,
                child.out_channels,
                child.kernel_size,
                stride=child.stride,
                padding=child.padding,
                bias=has_bias,
            )
        else:
            layer = with_bayesian_layers(child)
        if layer is not child:
            layer.weight_mu.data.copy_(child.weight.data)
        setattr(net, name, layer)
    return net


def torch_uncertainty(network: Network, x: Tensor, y: Tensor) -> Trainer:
    """torch-uncertainty: its layers, and its ELBO with one draw."""
    from torch_uncertainty.losses import ELBOLoss

    net = with_bayesian_layers(network.build()).to(x.device)
    loss_fn = ELBOLoss(net, nn.CrossEntropyLoss(), kl_weight=1 / NUM_DATA, num_samples=1)
    return torch_trainer(sgd(net.parameters(), 1e-2), lambda: loss_fn(x, y), mean_of_draws(net))


def peer_contenders(who: Collection[str]) -> list[Contender]:
    """The contenders that are those peers."""
    contenders = [Contender(INFERNO, family_name(rank), inferno(rank)) for rank in (None, *RANKS)]
    contenders.append(Contender(BAYESIAN_TORCH, MEAN_FIELD, bayesian_torch))
    contenders.append(Contender(TORCH_UNCERTAINTY, MEAN_FIELD, torch_uncertainty))
    return [contender for contender in contenders if contender.who in who]
