"""Markdown made by a lab: a guess whose answer opens on a click (without a kernel, too), and small tables."""

import html
from collections.abc import Sequence


def show(markdown: str) -> None:
    """Display Markdown."""
    from IPython.display import Markdown, display

    display(Markdown(markdown))


def guess(question: str, answer: str) -> None:
    """Show `question`; `answer` is hidden until the reader opens it. Plain HTML, so it works in a saved page."""
    from IPython.display import HTML, display

    display(
        HTML(
            f"<p><b>Guess first.</b> {html.escape(question)}</p><details><summary>Reveal the answer</summary>"
            f"<p>{html.escape(answer)}</p></details>"
        )
    )


def table(columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Display rows as a Markdown table; the first column is text, the others align right."""
    head = "| " + " | ".join(columns) + " |\n|---" + "|---:" * (len(columns) - 1) + "|\n"
    show(head + "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows))
