"""Layer outputs of a random network for fixed noise, for the coordinate check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.guides.normal import AutoMuPNormal
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.prediction.predictive import draw_parameters

Key: TypeAlias = tuple[str, int, str]

#: Kinds of parameters, those of the model that are no sites among the means.
KINDS = ("loc", "factor", "layer factor")


class Probe:
    """Layer outputs of a network for fixed noise, compared with those of the start.

    Args:
        model: The model.
        guide: Its guide.
        x: Inputs.
        num_draws: Number of weight draws.
        seed: Seed of their noise.
    """

    def __init__(
        self, model: SupervisedModel, guide: AutoMuPNormal, x: Any, num_draws: int, seed: int
    ) -> None:
        self.model, self.guide, self.x = model, guide, x
        self.num_draws, self.seed = num_draws, seed
        net = model.net.network
        names = {p: name for name, p in net.named_parameters()}
        # The parameters of each layer that has some of its own, as it calls them and by the one
        # name that tied ones go by.
        self.layers = {
            layer: {own: names[p] for own, p in module._parameters.items() if p is not None}
            for layer, module in net.named_modules()
            if any(p is not None for p in module._parameters.values())
        }
        self.start = self._parameters()
        # Running statistics of norm layers move in training, without any parameter's doing.
        self.buffers = {name: b.detach().clone() for name, b in net.named_buffers()}
        self.outputs, self.inputs, self.values = self._run()

    def measure(self, step: int) -> dict[Key, float]:
        """Every quantity of every layer.

        Args:
            step: Number of optimizer steps taken so far; 0 measures sizes alone.

        Returns:
            Root mean squares by quantity, step and name.
        """
        outputs, _, _ = self._run() if step else (self.outputs, None, None)
        result: dict[Key, float] = {}
        for layer, now in outputs.items():
            change = now - self.outputs[layer]
            result["size", step, layer] = _rms(now)
            result["spread", step, layer] = _rms(now - now.mean(0))
            if step:
                result["change", step, layer] = _rms(change)
                result["mean change", step, layer] = _rms(change.mean(0))
        for kind in KINDS if step else ():
            values = [self.model.net.network_values(v) for v in self._values_with_only(kind)]
            for layer in outputs:
                for own, name in self.layers[layer].items():
                    change_by = self._change_by(layer, own, [draw[name] for draw in values])
                    # A point estimate has no factor, a frozen weight no change; NaN is a finding.
                    if change_by != 0:
                        result.setdefault((kind, step, name), change_by)
        return result

    @torch.no_grad()
    def _run(self) -> tuple[dict[str, Tensor], dict[str, list[Any]], list[dict[str, Tensor]]]:
        """Outputs by layer (draws in front), the calls of the layers, and the weights."""
        outputs: dict[str, list[Tensor]] = {}
        inputs: dict[str, list[Any]] = {}
        net = self.model.net.network

        def hook(name: str, args: Any, kwargs: Any, output: Any) -> None:
            inputs.setdefault(name, []).append((args, kwargs))
            outputs.setdefault(name, []).append(_tensor_of(output).detach().clone())

        handles = [
            net.get_submodule(name).register_forward_hook(
                lambda m, a, k, o, name=name: hook(name, a, k, o), with_kwargs=True
            )
            for name in self.layers
        ]
        try:
            with module_mode(self.model, self.guide, training=False):
                values = self._draws()
                for draw in values:
                    self.model.run(draw, self.x)
        finally:
            for handle in handles:
                handle.remove()
        # A layer that runs several times in a forward pass has that many outputs per draw.
        return {name: torch.stack(parts) for name, parts in outputs.items()}, inputs, values

    def _draws(self) -> list[dict[str, Tensor]]:
        """The weights for the fixed noise, one dictionary per draw."""
        with own_random_numbers(self.seed):
            values = draw_parameters(self.model, self.guide, self.x, self.num_draws)
        own = {name: p.dim() for name, p in self.model.net.network.named_parameters()}
        return [
            {n: v[i] if v.dim() > own[n] else v.clone() for n, v in values.items()}
            for i in range(self.num_draws)
        ]

    def _parameters(self) -> dict[str, dict[str, Tensor]]:
        """Copies of all parameters by kind; point estimates count as means."""
        result: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
        for kind, name, parameter in self._named():
            result[kind][name] = parameter.detach().clone()
        return result

    def _named(self) -> list[tuple[str, str, nn.Parameter]]:
        kinds = {
            id(p): kind
            for kind, tree in (("factor", "factors"), ("layer factor", "layer_factors"))
            for p in self.guide._modules[tree].parameters()  # type: ignore[union-attr]
        }
        roots = (("guide", self.guide), ("model", self.model))
        return [
            (kinds.get(id(p), "loc"), f"{root}.{name}", p)
            for root, module in roots
            for name, p in module.named_parameters()
            if p.requires_grad
        ]

    @torch.no_grad()
    def _values_with_only(self, kind: str) -> list[dict[str, Tensor]]:
        """The weights of now, for one kind of parameter, and of the start for the others."""
        now = self._parameters()
        try:
            for its_kind, name, parameter in self._named():
                if its_kind != kind:
                    parameter.copy_(self.start[its_kind][name])
            return self._draws()
        finally:
            for its_kind, name, parameter in self._named():
                parameter.copy_(now[its_kind][name])

    @torch.no_grad()
    def _change_by(self, layer: str, own: str, draws: list[Tensor]) -> float:
        """Change of a layer's output at its inputs of the start, by one of its parameters."""
        module, prefix = self.model.net.network.get_submodule(layer), f"{layer}." if layer else ""
        calls_per_draw = len(self.inputs[layer]) // self.num_draws
        changes = []
        with module_mode(module, training=False):
            for i, (args, kwargs) in enumerate(self.inputs[layer]):
                weights = self.model.net.network_values(self.values[i // calls_per_draw])
                values = {**self.buffers, **weights}
                inner = {
                    n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)
                }
                for its_own, name in self.layers[layer].items():
                    if name in values:
                        inner[its_own] = values[name]
                inner[own] = draws[i // calls_per_draw]
                output = functional_call(module, inner, args, kwargs)
                changes.append(_tensor_of(output) - self.outputs[layer][i])
        return _rms(torch.stack(changes))


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt().item())


def _tensor_of(output: Any) -> Tensor:
    """The first tensor among what a layer returns."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output
