"""Tables in Markdown from the committed runs, for the page *Results* of the documentation."""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from .records import HERE, RESULTS, Record, read

Protocol = Literal["last", "best"]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, which is NaN for one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def shown(values: Sequence[float], digits: int, factor: float = 1.0) -> str:
    """Mean ± standard error."""
    mean, error = mean_and_error([factor * value for value in values])
    text = f"{mean:.{digits}f}"
    return text if math.isnan(error) else f"{text}\u00a0±\u00a0{error:.{digits}f}"


def task_names() -> list[str]:
    """Tasks with results."""
    found = (path.stem for path in RESULTS.glob("*.jsonl"))
    return sorted(name for name in found if (HERE / "tasks" / f"{name}.toml").exists())


def title(task: str) -> str:
    """What a task is called."""
    return tomllib.loads((HERE / "tasks" / f"{task}.toml").read_text())["title"]


def chosen_runs(task: str, protocol: Protocol) -> dict[str, list[Record]]:
    """By contender the test runs of the settings that validation chose for a protocol.

    Runs on the test seeds exist for the settings of either protocol. Where these differ, those of
    the other protocol are told apart by the validation losses of the grid.
    """
    grid: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    tests: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in read(RESULTS / f"{task}.jsonl"):
        settings = json.dumps(record["settings"], sort_keys=True)
        if "last" in record:
            tests[record["contender"]][settings].append(record)
        else:
            course = [v if math.isfinite(v) else math.inf for v in record["valid_nll"]]
            loss = course[-1] if protocol == "last" else min(course)
            grid[record["contender"]][settings].append(loss)
    result = {}
    for contender, runs in tests.items():
        of_grid = grid[contender]
        scored = {s: statistics.fmean(of_grid[s]) if s in of_grid else math.inf for s in runs}
        result[contender] = runs[min(scored, key=scored.__getitem__)]
    return result


def image_table(task: str, protocol: Protocol) -> str:
    """Error, likelihood and calibration on test images, and time, by contender."""
    chosen = chosen_runs(task, protocol)
    base = statistics.fmean(r["seconds"] for r in chosen["deterministic"])
    rows = []
    for contender, runs in chosen.items():
        found = [run[protocol] for run in runs]
        rows.append(
            [
                contender,
                shown([f["test"]["error"] for f in found], 2, 100),
                shown([f["test"]["nll"] for f in found], 3),
                shown([f["test_tempered"]["nll"] for f in found], 3),
                shown([f["test"]["ece"] for f in found], 1, 100),
                f"{statistics.fmean(r['seconds'] for r in runs) / base:.2f}",
            ]
        )
    return table(["", "error %", "NLL", "NLL, tempered", "ECE %", "CPU time"], rows)


def shift_table(task: str, protocol: Protocol) -> str:
    """Likelihood on corrupted images and how well strangers are told, by contender."""
    rows = []
    for contender, runs in chosen_runs(task, protocol).items():
        found = [run[protocol] for run in runs]
        rows.append(
            [
                contender,
                shown([f["corrupted"]["nll"] for f in found], 2),
                shown([f["corrupted_tempered"]["nll"] for f in found], 2),
                shown([f["ood_entropy"]["auroc"] for f in found], 3),
                shown([f["ood_mutual"]["auroc"] for f in found], 3),
            ]
        )
    header = ["", "NLL, corrupted", "the same, tempered", "AUROC, entropy", "AUROC, disagreement"]
    return table(header, rows)


#: What is compared over tasks: heading, path in a record, digits and factor.
DIFFERENCES = (
    ("error %", ("test", "error"), 2, 100.0),
    ("NLL", ("test", "nll"), 3, 1.0),
    ("NLL, tempered", ("test_tempered", "nll"), 3, 1.0),
    ("ECE %", ("test", "ece"), 1, 100.0),
    ("NLL, corrupted", ("corrupted", "nll"), 2, 1.0),
    ("AUROC, entropy", ("ood_entropy", "auroc"), 3, 1.0),
)


def differences_table(
    contender: str, others: Sequence[str], protocol: Protocol, num_seeds: int = 3
) -> str:
    """A contender less others on each image task, over the seeds that both were trained on.

    Args:
        contender: The one.
        others: The others, those that a task has.
        protocol: The epoch that is scored.
        num_seeds: Number of common seeds from which on a comparison is worth a row.

    Returns:
        The table, a row for each task and other contender.
    """
    rows = []
    for task in task_names():
        by_seed = {
            name: {run["seed"]: run[protocol] for run in runs}
            for name, runs in chosen_runs(task, protocol).items()
        }
        for other in others:
            seeds = sorted(by_seed.get(contender, {}).keys() & by_seed.get(other, {}).keys())
            if len(seeds) < num_seeds:
                continue
            cells = [f"{title(task)}: {other}"]
            for _, (group, score), digits, factor in DIFFERENCES:
                values = [
                    by_seed[contender][seed][group][score] - by_seed[other][seed][group][score]
                    for seed in seeds
                ]
                cells.append(shown(values, digits, factor))
            rows.append(cells)
    return table(["", *(heading for heading, *_ in DIFFERENCES)], rows)


def settings_table(task: str, protocol: Protocol) -> str:
    """What validation chose."""
    rows = []
    for contender, runs in chosen_runs(task, protocol).items():
        settings = {k: v for k, v in runs[0]["settings"].items() if k not in {"covariance"}}
        text = ", ".join(f"{name} {value}" for name, value in settings.items())
        rows.append([contender, text, str(len(runs))])
    return table(["", "settings", "seeds"], rows)


#: Mixtures of four that differ in their noise, of which validation may choose one.
FOUR = (
    "four components, two draws a step",
    "four components, less noise for more data",
    "four components with relative noise",
)
CHOSEN_FOUR = "four components, noise chosen by validation"


def uci_runs() -> dict[str, dict[str, list[Record]]]:
    """By table and contender the runs of the chosen settings, of which there is one per split."""
    groups: dict[tuple[str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in read(RESULTS / "uci.jsonl"):
        settings = json.dumps(record["settings"], sort_keys=True)
        groups[record["data"], record["contender"]][settings].append(record)
    result: dict[str, dict[str, list[Record]]] = defaultdict(dict)
    for (data, contender), runs in groups.items():
        result[data][contender] = max(runs.values(), key=lambda r: (len(r), _valid_of_two(r)))
    for runs_of in result.values():
        fours = [runs_of[name] for name in FOUR if name in runs_of]
        if fours:
            runs_of[CHOSEN_FOUR] = max(fours, key=_valid_of_two)
    return result


def _valid_of_two(runs: list[Record]) -> float:
    """Validation log-likelihood on the two splits by which settings are chosen."""
    return statistics.fmean(r["valid"]["log_likelihood"] for r in runs if r["split"] < 2)


def uci_differences_table(contender: str, others: Sequence[str]) -> str:
    """Log-likelihood of a contender less that of others, over the splits that both have."""
    runs = uci_runs()
    rows = []
    for other in others:
        cells = [other]
        for by_contender in runs.values():
            first, second = (
                {r["split"]: r["test"]["log_likelihood"] for r in by_contender.get(name, [])}
                for name in (contender, other)
            )
            gaps = [first[split] - second[split] for split in sorted(first.keys() & second.keys())]
            cells.append(shown(gaps, 3) if len(gaps) > 1 else "-")
        rows.append(cells)
    return table(["", *runs], rows)


def uci_table(score: Literal["log_likelihood", "rmse"]) -> str:
    """A score on each table by contender, over its splits."""
    runs = uci_runs()
    contenders = list(dict.fromkeys(c for by_contender in runs.values() for c in by_contender))
    rows = []
    for contender in contenders:
        cells = [contender]
        for by_contender in runs.values():
            found = [r["test"][score] for r in by_contender.get(contender, [])]
            cells.append(shown(found, 2 if score == "log_likelihood" else 3) if found else "-")
        rows.append(cells)
    return table(["", *runs], rows)


def estimators_table() -> str:
    """Log-likelihood of the estimators' default by one Gaussian and by four, over the splits."""
    groups: dict[str, dict[int, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
    for record in read(RESULTS / "estimators.jsonl"):
        groups[record["data"]][record["num_components"]][record["split"]] = record
    rows = []
    for data, by_number in groups.items():
        splits = sorted(by_number[1].keys() & by_number[4].keys())
        one, four = ([by_number[number][split] for split in splits] for number in (1, 4))
        scores = [[r["log_likelihood"] for r in runs] for runs in (one, four)]
        gaps = [b - a for a, b in zip(*scores, strict=True)]
        price = sum(r["seconds"] for r in four) / sum(r["seconds"] for r in one)
        rows.append([data, *(shown(values, 3) for values in (*scores, gaps)), f"{price:.1f}"])
    return table(["", "one Gaussian", "four", "four less one", "CPU time"], rows)


def falling_rate_table() -> str:
    """Log-likelihood of numbers at a constant and at a falling rate, by the number of steps."""
    groups: dict[str, dict[tuple[int, str], dict[int, float]]] = {}
    for record in read(RESULTS / "falling_rate.jsonl"):
        of_kind = groups.setdefault(record["data"], {})
        of_split = of_kind.setdefault((record["num_steps"], record["scheduler"]), {})
        of_split[record["split"]] = record["log_likelihood"]
    lengths = sorted({length for of_kind in groups.values() for length, _ in of_kind})
    rows = []
    for data, of_kind in groups.items():
        cells = []
        for length in lengths:
            constant, falling = (of_kind.get((length, k), {}) for k in ("constant", "cosine"))
            splits = sorted(constant.keys() & falling.keys())
            gaps = [falling[split] - constant[split] for split in splits]
            cells += [shown(values, 3) for values in (list(falling.values()), gaps)]
        rows.append([data, *cells])
    header = [f"{length:,} steps{more}" for length in lengths for more in ("", ", less constant")]
    return table(["", *header], rows)


def first_layer_table() -> str:
    """What noise on the features does to the loss on data held out for that choice."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in read(RESULTS / "first_layer.jsonl"):
        of_data = values.setdefault(record["data"], {})
        of_data.setdefault(str(record["scale"]), []).append(record["nll"])
    scales = list(next(iter(values.values())))
    rows = [
        [name, *(shown(of_data[scale], 3) for scale in scales)]
        for name, of_data in values.items()
        if list(of_data) == scales
    ]
    header = ["", *(s if s == "recipe" else f"s = {float(s):g}" for s in scales)]
    return table(header, rows)


def many_data_table() -> str:
    """Loss of relative noise on tables, by the number of data for each feature."""
    values: dict[tuple[float, str], dict[str, list[float]]] = {}
    for record in read(RESULTS / "many_data.jsonl"):
        of_data = values.setdefault((record["density"], record["data"]), {})
        of_data.setdefault(record["noise"], []).append(record["nll"])
    names = list(next(iter(values.values()), {}))
    rows = [
        [name, f"{density:.0f}", *(shown(of_data[noise], 3) for noise in names)]
        for (density, name), of_data in sorted(values.items())
        if list(of_data) == names
    ]
    return table(["", "data for each feature", *names], rows)


def relative_noise_table() -> str:
    """What each choice of the recipe of relative noise does to the loss on validation images."""
    rows = []
    for record in read(RESULTS / "relative_noise.jsonl"):
        choices = dict(record["choices"])
        layers = choices["layers"]
        if isinstance(layers, list):
            choices["layers"] = "the last two" if len(layers) == 2 else "convolution too"
        cells = [str(choices[name]) for name in ("layers", "start", "rates", "lr", "scale")]
        kept = statistics.fmean(record["s"].values()) / choices["scale"]
        rows.append([*cells, f"{kept:.2f}", f"{record['valid_nll'][-1]:.3f}"])
    rows.sort(key=lambda row: row[-1])
    header = ["layers", "start", "rates", "rate", "s", "of s left", "NLL"]
    return table(header, rows)


_CONTENDERS = ("default", "before", "ordinary network")


def other_targets_table() -> str:
    """Loss where a datum has several targets or is a sequence, of three contenders."""
    return _losses_table("other_targets", ["data"])


def small_batches_table() -> str:
    """Loss of class labels by the number of data in a step, of three contenders."""
    return _losses_table("small_batches", ["data", "batch_size"])


def _losses_table(name: str, keys: list[str]) -> str:
    """Mean losses by keys and contender, and how many runs diverged."""
    values: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for record in read(RESULTS / f"{name}.jsonl"):
        of_data = values.setdefault(tuple(record[key] for key in keys), {})
        of_data.setdefault(record["contender"], []).append(record["nll"])

    def cell(losses: Sequence[float]) -> str:
        num_diverged = sum(map(math.isinf, losses))
        return f"{num_diverged} of {len(losses)} diverged" if num_diverged else shown(losses, 3)

    rows = [
        [*map(str, row), *(cell(found[name]) for name in _CONTENDERS)]
        for row, found in values.items()
    ]
    return table([*("" if key == "data" else "batch" for key in keys), *_CONTENDERS], rows)
