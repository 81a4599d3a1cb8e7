"""One finding, and how findings are told."""

import json
from dataclasses import asdict, dataclass

from labkit import machine

INSTALL = "Run `pip install -c constraints.txt -e .` in the clone."


@dataclass(frozen=True)
class Check:
    """One finding: `ok`, `warn` (labkit works without it, in part) or `missing` (it does not).

    `remedy` says what to do about a state other than `ok`.
    """

    name: str
    state: str
    fact: str
    remedy: str = ""


def exit_code(checks: list[Check]) -> int:
    """0, or 1 where something required is missing."""
    return int(any(check.state == "missing" for check in checks))


def as_json(checks: list[Check]) -> str:
    """One JSON object: whether nothing required is missing, the device, the checks."""
    answer = {"ok": exit_code(checks) == 0, "device": machine.device_name(), "checks": [asdict(one) for one in checks]}
    return json.dumps(answer, indent=1)


def as_text(checks: list[Check]) -> str:
    """A line for each check; under what is not well, what to do."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:8}{check.name:{width}}  {check.fact}")
        if check.remedy and check.state != "ok":
            lines.append(f"{'':8}{'':{width}}  -> {check.remedy}")
    return "\n".join(lines)
