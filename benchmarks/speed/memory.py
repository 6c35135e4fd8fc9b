"""Peak memory of training, each contender in a process of its own.

On the processor it is the resident memory at its peak, above what it was with the libraries, the
data and a first step on a tiny network loaded: the kernel's high-water mark, which is reset for
it (Linux). On a GPU it is what torch's allocator held at its peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.resident_memory import resident, restart_peak
from benchmarks.speed.contenders import Contender, own_contenders
from benchmarks.speed.names import OURS_TORCH
from benchmarks.speed.networks import Network, all_networks, mlp
from benchmarks.speed.peers import find_peers, peer_contenders
from benchmarks.speed.steps import make_trainers

ROOT = Path(__file__).parents[2]
NETWORKS = ("MLP 2048", "ResNet-18")
NUM_STEPS = 2


class Peak:
    """Memory at its peak since the last ``restart``, above what it was when this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self.restart()

    def restart(self) -> int:
        """Forgets the peak so far, and returns what is in use now, in bytes."""
        if self.device.type != "cuda":
            return restart_peak()
        gc.collect()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def bytes(self) -> int:
        """The peak."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return resident("VmHWM") - self.before


def peak_here(network: Network, contender: Contender, device: torch.device) -> dict[str, int]:
    """Peaks in this process: while the contender is made, and over later steps."""
    # libraries load what they load
    (trainer,) = make_trainers(mlp((8, 8), rounds=1), [contender], device).values()
    trainer.step()
    del trainer
    peak = Peak(device)
    (trainer,) = make_trainers(network, [contender], device).values()
    trainer.step()
    making = peak.bytes()
    peak.restart()
    for _ in range(NUM_STEPS):
        trainer.step()
    num_parameters = sum(p.numel() for p in trainer.parameters())
    return {"making": making, "steps": peak.bytes(), "num_parameters": num_parameters}


def measure(
    networks: Mapping[str, Network],
    contenders: Sequence[Contender],
    device: torch.device,
    *,
    quick: bool,
) -> dict[str, Any]:
    """Peaks in bytes by network, family and contender, each from a process of its own."""
    results: dict[str, Any] = {}
    for name in [n for n in NETWORKS if n in networks][: 1 if quick else None]:
        families: dict[str, dict[str, Any]] = {}
        for contender in contenders:
            if contender.who == OURS_TORCH:
                continue  # the same tensors as through SVI
            choice = [name, contender.family, contender.who, str(device)]
            threads = ["--threads", str(torch.get_num_threads())]
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed.memory", *threads]
            run = subprocess.run(
                [*command, *choice], cwd=ROOT, capture_output=True, text=True, check=False
            )
            if run.returncode != 0:
                raise RuntimeError(f"{choice} failed:\n{run.stderr}")
            row = json.loads(run.stdout.splitlines()[-1])
            families.setdefault(contender.family, {})[contender.who] = row
            print(f"memory, {name}, {contender.who}, {contender.family}", row, flush=True)
        results[name] = {"batch": networks[name].batch, "families": families}
    return results


def main() -> None:
    """Measures one contender on one network and prints the peaks as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("network", "family", "who", "device"):
        parser.add_argument(name)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    contenders = own_contenders()
    if args.who not in {c.who for c in contenders}:
        find_peers()
        contenders = peer_contenders([args.who])
    (contender,) = (c for c in contenders if (c.family, c.who) == (args.family, args.who))
    device = torch.device(args.device)
    print(json.dumps(peak_here(all_networks()[args.network], contender, device)))


if __name__ == "__main__":
    main()
