"""Records of runs as lines of a file: each run is made once and written at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance

HERE = Path(__file__).parent
#: What was committed.
RESULTS = HERE / "results"
Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The records of a file, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def versions() -> dict[str, str]:
    """Versions and hardware, without names of machines."""
    found = provenance()
    return {**found["versions"], "hardware": found["hardware"]}


class Records:
    """What was run already.

    Args:
        name: Name of the file, without its ending, in the folder of the environment variable
            ``PYRO_IBVI_RESULTS``, by default that of what was committed.
        identity: Keys of a record that tell one run from another.
    """

    def __init__(self, name: str, identity: tuple[str, ...]) -> None:
        folder = Path(os.environ.get("PYRO_IBVI_RESULTS", RESULTS))
        folder.mkdir(exist_ok=True)
        self.path, self.identity = folder / f"{name}.jsonl", identity

    def _key(self, record: Record) -> str:
        return json.dumps([record[name] for name in self.identity], sort_keys=True)

    def find(self, run: Record) -> Record | None:
        """The record of a run. The file is read anew, since another process may write too."""
        key = self._key(run)
        return next((r for r in read(self.path) if self._key(r) == key), None)

    def get(self, run: Record, make: Callable[[], Record]) -> Record:
        """The record of a run, which is made and written where it is not there."""
        found = self.find(run)
        return self.add({**run, **make()}) if found is None else found

    def add(self, record: Record) -> Record:
        """Writes the record of a run, with the versions."""
        record = {**record, "versions": versions()}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return record
