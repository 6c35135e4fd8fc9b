"""Layer outputs of a random network for fixed noise, for the coordinate check."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_ibvi._util.modes import module_mode
from pyro_ibvi._util.random_state import own_random_numbers
from pyro_ibvi.diagnostics.repeats import block_of, common_name
from pyro_ibvi.guides.normal import AutoMuPNormal
from pyro_ibvi.models.supervised import SupervisedModel
from pyro_ibvi.prediction.draws import draw_parameters

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
        blocks: Names that blocks have in common, by their own; those that share one are measured
            together.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: AutoMuPNormal,
        x: Any,
        num_draws: int,
        seed: int,
        blocks: Mapping[str, str],
    ) -> None:
        self.model, self.guide, self.x, self.blocks = model, guide, x, blocks
        # The last of those that share a name has what all of them added up.
        self.last_blocks = list({common: name for name, common in blocks.items()}.values())
        self.num_draws, self.seed = num_draws, seed
        net = model.net.network
        names = {p: name for name, p in net.named_parameters()}
        # The parameters of each layer that has some of its own, as it calls them and by the one
        # name that tied ones go by.
        self.layers: dict[str, dict[str, str]] = {}
        for path, module in net.named_modules():
            own = {n: names[p] for n, p in module._parameters.items() if p is not None}
            if own:
                layer, prefix = _runs(net, path)
                layer_names = self.layers.setdefault(layer, {})
                layer_names.update({prefix + n: name for n, name in own.items()})
        self.start = self._parameters()
        # Running statistics of norm layers move in training, without any parameter's doing.
        self.buffers = {name: b.detach().clone() for name, b in net.named_buffers()}
        self.values = self._draws()
        self.outputs, self.inputs = self._run(self.values)

    def measure(self, step: int) -> dict[Key, float]:
        """Every quantity of every layer.

        Args:
            step: Number of optimizer steps taken so far; 0 measures sizes alone.

        Returns:
            Root mean squares by quantity, step and name, over all blocks that share it.
        """
        parts: dict[Key, list[float]] = {}
        for (quantity, _, name), value in self._measure_each(step).items():
            key = (quantity, step, common_name(name, self.blocks))
            parts.setdefault(key, []).append(value * value)
        return {key: math.sqrt(sum(squares) / len(squares)) for key, squares in parts.items()}

    def _measure_each(self, step: int) -> dict[Key, float]:
        """Every quantity by the network's own names."""
        outputs = self._run(self._draws())[0] if step else self.outputs
        result: dict[Key, float] = {}
        for layer, now in outputs.items():
            change = now - self.outputs[layer]
            result["size", step, layer] = _rms(now)
            result["spread", step, layer] = _rms(now - now.mean(0))
            if step:
                result["change", step, layer] = _rms(change)
                result["mean change", step, layer] = _rms(change.mean(0))
        for kind in KINDS if step else ():
            draws = self._values_with_only(kind)
            result.update({(kind, step, n): v for n, v in self._change_by_blocks(draws).items()})
            values = [self.model.net.network_values(v) for v in draws]
            for layer in outputs:
                for own, name in self.layers.get(layer, {}).items():
                    change_by = self._change_by(layer, own, [draw[name] for draw in values])
                    # A point estimate has no factor, a frozen weight no change; NaN is a finding.
                    if change_by != 0:
                        result.setdefault((kind, step, name), change_by)
        return result

    @torch.no_grad()
    def _run(
        self, values: list[dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
        """Outputs of layers and blocks (draws in front), and their calls, by name."""
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
            for name in dict.fromkeys([*self.layers, *self.last_blocks])
        ]
        try:
            with module_mode(self.model, self.guide, training=False):
                for draw in values:
                    self.model.run(draw, self.x)
        finally:
            for handle in handles:
                handle.remove()
        # A layer that runs several times in a forward pass has that many outputs per draw.
        return {name: torch.stack(parts) for name, parts in outputs.items()}, inputs

    @torch.no_grad()
    def _draws(self) -> list[dict[str, Tensor]]:
        """The weights for the fixed noise, one dictionary per draw."""
        with own_random_numbers(self.seed), module_mode(self.model, self.guide, training=False):
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
    def _change_by_blocks(self, draws: list[dict[str, Tensor]]) -> dict[str, float]:
        """Change of the last block's output by what all blocks have of the given weights."""
        if not self.blocks:
            return {}
        mixed = [
            {n: v if block_of(n, self.blocks) else start[n] for n, v in draw.items()}
            for draw, start in zip(draws, self.values, strict=True)
        ]
        with self._buffers_of_the_start():
            outputs, _ = self._run(mixed)
        changes = {name: _rms(outputs[name] - self.outputs[name]) for name in self.last_blocks}
        return {name: change for name, change in changes.items() if change != 0}

    @contextmanager
    def _buffers_of_the_start(self) -> Iterator[None]:
        buffers = dict(self.model.net.network.named_buffers())
        now = {name: buffer.clone() for name, buffer in buffers.items()}
        try:
            for name, buffer in buffers.items():
                buffer.copy_(self.buffers[name])
            yield
        finally:
            for name, buffer in buffers.items():
                buffer.copy_(now[name])

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


def _runs(net: nn.Module, path: str) -> tuple[str, str]:
    """The module that runs with a module's parameters, and what they are called from there."""
    layer, prefix = path, ""
    while isinstance(net.get_submodule(layer), (nn.ParameterList, nn.ParameterDict)):
        layer, _, name = layer.rpartition(".")
        prefix = f"{name}.{prefix}"
    return layer, prefix


def _tensor_of(output: Any) -> Tensor:
    """The first tensor among what a layer returns."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output
