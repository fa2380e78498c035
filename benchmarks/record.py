"""What a benchmark of figures leaves: a page of the documentation, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from figures import Figure, rst_table

DOCS = Path(__file__).resolve().parent.parent / "docs"


@dataclass
class Record:
    """Figures, and how the machine was while they were measured."""

    machine: Mapping[str, Any]
    conditions: dict[str, Mapping[str, float]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)

    def page(self) -> str:
        """Return what stands in the documentation: the machine, and the table."""
        words = measured_with(self.machine, self.conditions.values())
        return f"{words}\n\n{rst_table(self.figures)}\n"

    def as_json(self, is_quick: bool) -> str:
        """Return what the file of results says."""
        results = {
            "quick": is_quick,
            "machine": self.machine,
            "conditions": self.conditions,
            "figures": [figure.as_json() for figure in self.figures],
        }
        return json.dumps(results, indent=2) + "\n"

    def write(self, results_path: Path, page_path: Path) -> None:
        """Replace what is committed: results of everything, measured in full."""
        results_path.write_text(self.as_json(is_quick=False))
        page_path.write_text(self.page())


def measured_with(
    facts: Mapping[str, Any], conditions: Iterable[Mapping[str, float]]
) -> str:
    """Return the sentence that stands above a table."""
    words = ", ".join(f"{name} {value}" for name, value in facts.items())
    moments = list(conditions)
    busy = _range([moment["busy_percent"] for moment in moments])
    loop = _range([moment["loop_ms"] for moment in moments])
    return (
        f"Measured with {words}; others took {busy} % of the processors,"
        f" and the loop of pure Python {loop} ms."
    )


def _range(values: Sequence[float]) -> str:
    least, most = min(values), max(values)
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"
