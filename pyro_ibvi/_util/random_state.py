"""The random numbers that a training draws: global generators and those of data loaders."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

#: Where data loaders keep generators of their own.
_PLACES = (
    "generator",
    "dataset.generator",
    "sampler.generator",
    "batch_sampler.generator",
    "batch_sampler.sampler.generator",
)


def get_random_state() -> dict[str, Any]:
    """States of the global generators of torch (CUDA included), NumPy and Python.

    Returns:
        Tensors, numbers and strings, for :func:`set_random_state`.
    """
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        **get_torch_state(),
        # by way of NumPy, which takes a tuple of 625 numbers three times as fast
        "python": [version, torch.from_numpy(np.array(words, dtype=np.int64)), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Sets the global generators; those of CUDA devices as far as there are such devices.

    Args:
        state: What :func:`get_random_state` gave.
    """
    set_torch_state(state)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def get_torch_state() -> dict[str, Any]:
    """States of torch's global generators, those of CUDA devices in use included.

    Returns:
        Tensors, for :func:`set_torch_state`.
    """
    # A graph that is being captured has numbers of its own, and none may be asked for them.
    is_there = torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing()
    cuda = torch.cuda.get_rng_state_all() if is_there else []
    return {"torch": torch.get_rng_state(), "cuda": list(cuda)}


def set_torch_state(state: Mapping[str, Any]) -> None:
    """Sets torch's global generators; those of CUDA devices as far as there are such devices.

    Args:
        state: What :func:`get_torch_state` gave.
    """
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, device)


@contextmanager
def own_random_numbers(seed: int | None = None) -> Iterator[None]:
    """Gives torch's global generators, those of CUDA devices included, back as they were.

    Args:
        seed: A seed for them inside of the context; without one they go on from where they are.

    Yields:
        Nothing.
    """
    is_there, former = torch.cuda.is_initialized(), torch.initial_seed()
    with torch.random.fork_rng(range(torch.cuda.device_count()) if is_there else ()):
        if seed is None:
            yield
            return
        torch.manual_seed(seed)
        try:
            yield
        finally:
            if not is_there:  # devices had no state yet, but would have had the seed of all
                torch.cuda.manual_seed_all(former)


class _Numbers:
    """Generators of one seed, a device each."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


_numbers: ContextVar[_Numbers | None] = ContextVar("pyro_ibvi_numbers", default=None)


@contextmanager
def thread_random_numbers(seed: int) -> Iterator[None]:
    """Lets this thread's noise come from a seed, and leaves the global generators alone.

    Other threads neither see it nor change it. It serves what asks for :func:`thread_generator`.

    Args:
        seed: The seed.

    Yields:
        Nothing.
    """
    token = _numbers.set(_Numbers(seed))
    try:
        yield
    finally:
        _numbers.reset(token)


def thread_generator(device: torch.device) -> torch.Generator | None:
    """This thread's generator.

    Args:
        device: The device on which to draw.

    Returns:
        The generator, or None for torch's global one.
    """
    numbers = _numbers.get()
    return None if numbers is None else numbers.on(device)


def find_generators(loaders: Mapping[str, Any]) -> dict[str, torch.Generator]:
    """Generators of their own that data loaders shuffle by.

    Args:
        loaders: Data loaders by name.

    Returns:
        The generators, by the loader's name and where in it they are.
    """
    found = {}
    for name, loader in loaders.items():
        for place in _PLACES:
            value = loader
            for attribute in place.split("."):
                value = getattr(value, attribute, None)
            if isinstance(value, torch.Generator):
                found[f"{name}.{place}"] = value
    return found


@contextmanager
def own_generators(loaders: Mapping[str, Any]) -> Iterator[None]:
    """Gives the generators that data loaders shuffle by back as they were.

    Args:
        loaders: Data loaders by name; what has no generator is passed over.

    Yields:
        Nothing.
    """
    generators = find_generators(loaders)
    before = {name: generator.get_state() for name, generator in generators.items()}
    try:
        yield
    finally:
        for name, generator in generators.items():
            generator.set_state(before[name])
