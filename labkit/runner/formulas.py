"""TeX in a lab's Markdown as MathML, which browsers draw without MathJax and so without a network.

nbconvert closes tags it does not know, so formulas are taken out of the Markdown before it sees them and put into the
page that it makes.
"""

import re

# Code (fenced, in backticks or in HTML) is left alone; $$...$$ stands on its own, $...$ in the line.
_CODE = r"(?P<code>```.*?```|~~~.*?~~~|``.*?``|`[^`\n]*`|<(?P<tag>code|pre)\b.*?</(?P=tag)>)"
_FORMULA = r"\$\$(?P<block>.+?)\$\$|(?<!\\)\$(?![\s$])(?P<inline>[^$\n]+?)(?<![\s\\])\$(?!\d)"
_PIECES = re.compile(f"{_CODE}|{_FORMULA}", re.DOTALL)


class Formulas:
    """The formulas of one page, in MathML, by the mark left in their place."""

    def __init__(self) -> None:
        self._mathml: dict[str, str] = {}

    def take_out(self, markdown: str) -> str:
        """`markdown` with a mark for each formula; a formula that cannot be converted stays as TeX."""
        return _PIECES.sub(self._marked, markdown)

    def put_in(self, page: str) -> str:
        """`page` with the formulas in place of their marks."""
        for mark, mathml in self._mathml.items():
            page = page.replace(mark, mathml)
        return page

    def _marked(self, found: re.Match) -> str:
        from latex2mathml.converter import convert

        block, inline = found["block"], found["inline"]
        if found["code"] is not None:
            return found["code"]
        mark = f"labkit-formula-{len(self._mathml)}-"
        try:
            self._mathml[mark] = convert(block or inline, display="block" if block else "inline")
        except Exception:  # the converter raises many kinds for TeX it does not know
            return found.group()
        return mark
