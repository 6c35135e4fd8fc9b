"""Speed and memory against ordinary training, by hand, Pyro and other libraries.

    python -m benchmarks.speed.run

from the root of the repository measures everything in one process (memory in a process for each
contender), contenders in turn, prints one table and writes ``results.json`` beside this file,
from which the page of the documentation is made. On a machine with a GPU it runs there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch

import pyro_ibvi as ibvi
from benchmarks.speed import growth, memory, prediction, report, steps
from benchmarks.speed.contenders import own_contenders
from benchmarks.speed.names import DETERMINISTIC
from benchmarks.speed.networks import all_networks
from benchmarks.speed.peers import find_peers, peer_contenders

PARTS = ("steps", "prediction", "memory", "growth")


def processor() -> str:
    """Name of the processor, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    hardware = {
        "processor": processor(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    versions = {m.__name__: m.__version__ for m in (torch, pyro, ibvi)}
    return {"hardware": hardware, "versions": {"python": platform.python_version(), **versions}}


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few rounds: a check, no measurement")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders besides ordinary")
    parser.add_argument("--networks", nargs="+", choices=list(all_networks()), metavar="NAME")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, written after each part."""
    device = torch.device(args.device)
    peers = find_peers()
    importable = [who for who, peer in peers.items() if "version" in peer]
    contenders = own_contenders() + peer_contenders(importable)
    known = {c.who for c in contenders}
    if unknown := set(args.only or ()) - known:
        raise SystemExit(f"no such contender: {sorted(unknown)}; there are {sorted(known)}")
    who = {DETERMINISTIC, *(args.only or known)}
    contenders = [c for c in contenders if c.who in who]
    networks = {n: v for n, v in all_networks().items() if n in (args.networks or [n])}
    run: dict[str, Any] = {**environment(device), "seed": 0, "quick": args.quick, "peers": peers}
    measures = {
        "steps": partial(steps.measure, networks, contenders, device),
        "prediction": partial(prediction.measure, networks, contenders, device),
        "memory": partial(memory.measure, networks, contenders, device),
        "growth": partial(growth.measure, sorted(who), device),
    }
    start = time.perf_counter()
    for name in args.parts:
        run[name] = measures[name](quick=args.quick)
        run["minutes"] = round((time.perf_counter() - start) / 60, 1)
        args.out.write_text(json.dumps(run, indent=1) + "\n")  # what is there, if a part fails
    return run


def main() -> None:
    """Measures, writes the results and prints the table."""
    args = arguments()
    torch.set_num_threads(args.threads)
    pyro.enable_validation(True)  # as a user has it
    warnings.simplefilter("ignore")
    print(report.as_text(measure(args)))


if __name__ == "__main__":
    main()
