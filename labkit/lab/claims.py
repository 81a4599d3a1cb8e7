"""Every number in a lab's prose is asserted here, at the end of the lab: a claim that fails fails the lab."""

from dataclasses import dataclass, field

from labkit.errors import LabkitError
from labkit.lab.results import written
from labkit.lab.reveal import table


class ClaimFailed(LabkitError):
    """A sentence of the lab is not true on this machine."""


@dataclass
class Claims:
    """Collect claims with `equal`, `close` and `true`; `verify` shows them all and raises if any failed."""

    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def true(self, sentence: str, holds: bool, found: str = "") -> None:
        """`sentence` holds."""
        self.rows.append((sentence, "true", found or str(bool(holds)).lower(), bool(holds)))

    def equal(self, sentence: str, found, expected) -> None:
        """`found` is exactly `expected`."""
        self.rows.append((sentence, written(expected), written(found), found == expected))

    def close(self, sentence: str, found: float, expected: float, tolerance: float) -> None:
        """`found` lies within `tolerance`, a fraction of `expected`."""
        holds = abs(found - expected) <= tolerance * abs(expected)
        self.rows.append((sentence, f"{written(expected)} within {100 * tolerance:g} %", written(found), holds))

    def verify(self) -> None:
        """Show every claim; ClaimFailed names those that do not hold."""
        table(["claim", "expected", "found", "holds"], [(*row[:3], "yes" if row[3] else "**no**") for row in self.rows])
        failed = [f"{row[0]} (expected {row[1]}, found {row[2]})" for row in self.rows if not row[3]]
        if failed:
            raise ClaimFailed(f"{len(failed)} of {len(self.rows)} claims do not hold here: " + "; ".join(failed))
