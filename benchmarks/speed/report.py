"""Tables in Markdown from the results, for the terminal and for the page of the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.names import BY_HAND, DETERMINISTIC, MEAN_FIELD, OURS_SVI
from benchmarks.speed.targets import all_targets, without_factor

RESULTS = Path(__file__).parent / "results.json"
MIB = 2**20
NOTHING = "-"
#: Milliseconds of an ordinary step below which the parts of ours can be told from noise.
SHORT_STEP = 5.0


def load(path: Path = RESULTS) -> dict[str, Any]:
    """The results of a run."""
    return json.loads(path.read_text())


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, rule, *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits, as many as times and ratios are worth."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def contenders(families: dict[str, Any]) -> list[str]:
    """Names of the contenders besides ordinary training, in the order of their turns."""
    named = {who: None for family, rows in families.items() for who in rows}
    return [who for who in named if who != DETERMINISTIC]


def family_names(families: dict[str, Any]) -> list[str]:
    """Families besides ordinary training."""
    return [family for family in families if family != DETERMINISTIC]


def step_table(results: dict[str, Any], network: str) -> str:
    """Ratios and times of a step on one network: contenders by families."""
    families = results["steps"][network]["families"]
    names = family_names(families)
    base = families[DETERMINISTIC][DETERMINISTIC]
    rows: list[list[str]] = [[DETERMINISTIC, f"1 ({number(base['ms'])} ms)", *[""] * len(names)]]
    for who in contenders(families):
        cells = [families[family].get(who) for family in names]
        texts = [f"{c['ratio']:.2f} ({number(c['ms'])} ms)" if c else NOTHING for c in cells]
        rows.append([who, "", *texts])
    return table([network, "", *names], rows)


def work_table(results: dict[str, Any], network: str) -> str:
    """What a step of each contender does on one network."""
    rows = []
    for family, entries in results["steps"][network]["families"].items():
        for who, row in entries.items():
            name = who if who == family else f"{who}, {family}"
            cells = [f"{row['num_parameters']:,}", f"{100 * row['fraction_trained']:.4g} %"]
            cells += [f"{row['random_numbers']:,}", str(row.get("host_syncs", NOTHING))]
            rows.append([name, *cells])
    header = [network, "parameters", "trained", "random numbers", "host waits for the GPU"]
    return table(header, rows)


def overhead_table(results: dict[str, Any]) -> str:
    """Where the time of our steps goes, from differences of medians, on networks of short steps.

    On others the differences are smaller than what medians of long steps vary by.
    """
    rows = []
    for network, entry in results["steps"].items():
        base = entry["families"][DETERMINISTIC][DETERMINISTIC]["ms"]
        if base > SHORT_STEP:
            continue
        for family in family_names(entry["families"]):
            found = entry["families"][family]
            if not {BY_HAND, OURS_SVI} <= set(found):
                continue
            hand, svi = (found[who]["ms"] for who in (BY_HAND, OURS_SVI))
            parts = [base, hand - base, svi - hand]
            rows.append([network, family, *(f"{part:.2f}" for part in parts)])
    header = ["network", "weights", "ordinary step", "draws and their gradients"]
    return table([*header, "Pyro and this package"], rows)


def target_table(results: dict[str, Any]) -> str:
    """Every target beside what was measured."""
    rows = []
    for target in all_targets(results):
        wanted = f"{'≤' if target.at_most else '≥'} {target.wanted:g}"
        where = f" ({target.where})" if target.where else ""
        measured = f"{target.measured:.2f}{where}"
        rows.append([target.what, wanted, measured, "yes" if target.reached else "**no**"])
    return table(["target", "wanted", "measured", "reached"], rows)


def prediction_table(results: dict[str, Any], family: str = MEAN_FIELD) -> str:
    """Times of predictions by the largest number of draws: contenders by networks."""
    entries = results["prediction"]
    columns = [(network, max(entries[network]["draws"], key=int)) for network in entries]
    found = [entries[network]["draws"][draws].get(family, {}) for network, draws in columns]
    rows = []
    for who in dict.fromkeys(who for families in found for who in families):
        cells = [number(f[who]["ms"]) if who in f else NOTHING for f in found]
        rows.append([who.removesuffix(", SVI"), *cells])
    return table(["ms", *(f"{network}, {draws} draws" for network, draws in columns)], rows)


def memory_table(results: dict[str, Any], network: str) -> str:
    """Peak memory on one network."""
    families = results["memory"][network]["families"]
    base = families[DETERMINISTIC][DETERMINISTIC]
    rows = []
    for family, entries in families.items():
        for who, row in entries.items():
            name = who if who == family else f"{who}, {family}"
            ratios = [without_factor(row, base, copies) for copies in (0, 3)]
            rows.append([name, f"{row['steps'] / MIB:.0f}", *(f"{r:.2f}" for r in ratios)])
    return table([network, "MiB", "ratio", "without S, its gradient and momentum"], rows)


def growth_table(results: dict[str, Any], axis: str) -> str:
    """Times along one axis."""
    times = results["growth"][axis]["times"]
    names = dict.fromkeys(who for row in times.values() for who in row)
    rows = [
        [who, *(number(row[who]["ms"]) if who in row else NOTHING for row in times.values())]
        for who in names
    ]
    return table([f"ms, by {axis}", *times], rows)


def per_datum_table(results: dict[str, Any]) -> str:
    """Ratios of steps with a draw per datum to ordinary ones: contenders by networks."""
    steps = results["steps"]
    header = ["step", *(f"{name}, batch {entry['batch']}" for name, entry in steps.items())]
    first, *others = next(iter(steps.values()))["rows"]
    times = [f"1 ({number(entry['rows'][first]['ms'])} ms)" for entry in steps.values()]
    ratios = [
        [who, *(f"{entry['rows'][who]['ratio']:.2f}" for entry in steps.values())]
        for who in others
    ]
    return table(header, [[first, *times], *ratios])


def per_datum_memory_table(results: dict[str, Any]) -> str:
    """Peak memory of the same steps, as ratios to ordinary training's."""
    memory = results["memory"]
    first, *others = next(iter(memory.values()))
    sizes = [f"1 ({number(peaks[first] / MIB)} MiB)" for peaks in memory.values()]
    ratios = [
        [who, *(f"{peaks[who] / peaks[first]:.2f}" for peaks in memory.values())] for who in others
    ]
    return table(["peak memory", *memory], [[first, *sizes], *ratios])


def peer_table(results: dict[str, Any]) -> str:
    """Which peers took part and what they need, or why they did not."""
    rows = [
        [
            who,
            peer["package"],
            peer.get("version", f"not importable: {peer.get('reason')}"),
            ", ".join(f"`{need}`" for need in peer.get("needs", ())),
        ]
        for who, peer in results["peers"].items()
    ]
    return table(["contender", "package", "version", "needs"], rows)


def environment_line(results: dict[str, Any]) -> str:
    """Hardware and versions in one sentence."""
    hardware, versions = results["hardware"], results["versions"]
    where = f"{hardware['processor']}, {hardware['threads']} threads"
    if hardware["device"] != "cpu":
        where = f"{hardware['device']} ({where})"
    rest = ", ".join(f"{name} {version}" for name, version in versions.items())
    line = f"{where}; {rest}; seed {results['seed']}; {results['minutes']:g} minutes."
    note = " **A check with few rounds on a busy machine, not a measurement.**"
    return line + note if results["quick"] else line


def as_text(results: dict[str, Any]) -> str:
    """Everything for the terminal."""
    parts = [environment_line(results), peer_table(results)]
    parts += [step_table(results, network) for network in results.get("steps", {})]
    if "prediction" in results:
        families = ("mean-field", "rank 10")
        parts += [f"{family}\n\n{prediction_table(results, family)}" for family in families]
    parts += [memory_table(results, network) for network in results.get("memory", {})]
    parts += [growth_table(results, axis) for axis in results.get("growth", {})]
    return "\n\n".join([*parts, target_table(results)])
