"""What a model wrote before and after training, side by side."""

import html
from collections.abc import Sequence

MOST_CHARACTERS = 90
LEFT = "style='text-align: left; vertical-align: top'"


def show_samples(instructions: Sequence[str], wanted: Sequence[str], **written: Sequence[str]) -> None:
    """Display one row per instruction: what is wanted, then a column for each of `written` (its name is the heading),
    and whether the last of them is right.

    `exact`: the very text; `same value`: it evaluates to the same. Plain HTML, so it works in a saved page.
    """
    from IPython.display import HTML, display

    head = "".join(f"<th {LEFT}>{html.escape(name)}</th>" for name in ("instruction", "wanted", *written, "right?"))
    body = "".join(_row(*row) for row in zip(instructions, wanted, *written.values(), strict=True))
    display(HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"))


def _row(instruction: str, wanted: str, *written: str) -> str:
    judged = _judged(written[-1], wanted).replace(" ", "&nbsp;")
    cells = [html.escape(instruction), _code(wanted), *map(_code, written), judged]
    return "<tr>" + "".join(f"<td {LEFT}>{cell}</td>" for cell in cells) + "</tr>"


def _code(text: str) -> str:
    """The text as code, line breaks kept, long ones cut; what is empty says so."""
    if not text:
        return "<em>nothing</em>"
    shown = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"
    return f"<code style='white-space: pre-wrap; overflow-wrap: break-word'>{html.escape(shown)}</code>"


def _judged(written: str, wanted: str) -> str:
    from labkit.train.tasks.interpreter import ExpressionRefused, same_value

    if written == wanted.strip():
        return "✓ exact"
    try:
        return "✓ same value" if same_value(written, wanted) else "✗ no"
    except ExpressionRefused:  # the task's answers are no expressions
        return "✗ no"
