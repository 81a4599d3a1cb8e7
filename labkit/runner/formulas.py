"""TeX in a lab's Markdown as MathML, which browsers draw without MathJax and so without a network."""

import re

# Code (fenced or in backticks) is left alone; $$...$$ stands on its own, $...$ in the line.
_PIECES = re.compile(r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|\$(?![\s$])([^$\n]+?)(?<![\s\\])\$", re.DOTALL)


def with_mathml(markdown: str) -> str:
    """`markdown` with its formulas turned into MathML; a formula that cannot be turned stays as TeX."""
    from latex2mathml.converter import convert

    def turned(found: re.Match) -> str:
        code, block, inline = found.groups()
        if code is not None:
            return code
        try:
            return convert(block or inline, display="block" if block else "inline")
        except Exception:  # the converter raises many kinds for TeX it does not know
            return found.group()

    return _PIECES.sub(turned, markdown)
