"""The first page of an output folder: every lab, how it went, its key results, and where its pages are."""

import html
from collections.abc import Mapping

from labkit.lab.results import show
from labkit.runner.store import FILE_NAME, LabRun
from labkit.units import format_seconds

_SHOWN_RESULTS = 6
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #c62828; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem; border-bottom: 1px solid var(--line); }
td.seconds { white-space: nowrap; }
.failed { color: var(--bad); font-weight: bold; }
ul { margin: 0; padding-left: 1rem; }
"""


def index_page(runs: Mapping[str, LabRun]) -> str:
    """The HTML of `index.html`."""
    rows = "\n".join(_row(runs[name]) for name in sorted(runs))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Labs</title><style>{_STYLE}</style></head><body>
<h1>Labs</h1>
<table><thead><tr><th>Lab</th><th>Outcome</th><th>Took</th><th>Results</th><th>Files</th></tr></thead>
<tbody>
{rows}
</tbody></table>
<p>All results: <a href="{FILE_NAME}">{FILE_NAME}</a></p>
</body></html>
"""


def _row(run: LabRun) -> str:
    name = html.escape(run.name)
    facts = ([run.preset] if run.preset else []) + [f"{key}={value}" for key, value in run.parameters.items()]
    return (
        f'<tr><td><a href="{name}.html">{name}</a><br><small>{html.escape(", ".join(facts))}</small></td>'
        f'<td class="{run.outcome}">{run.outcome}</td>'
        f'<td class="seconds">{format_seconds(run.seconds)}<br><small>{html.escape(run.created)}</small></td>'
        f'<td>{_results(run)}</td><td><a href="{name}.html">page</a> <a href="{name}.ipynb">notebook</a></td></tr>'
    )


def _results(run: LabRun) -> str:
    if run.error:
        return html.escape(run.error)
    scalars = [result for result in run.results if isinstance(result["value"], int | float | str)]
    items = [html.escape(f"{result['name']} = {show(result)}") for result in scalars[:_SHOWN_RESULTS]]
    left = len(run.results) - len(items)
    items += [f"and {left} more"] if left else []
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"
