"""The rule by which the columns of a table become an instruction and an answer.

| columns | instruction | answer |
|---|---|---|
| `instruction`, `expression` | `instruction` | `expression` |
| `instruction`, `answer` | `instruction` | `answer` |
| `instruction`, `output` (Alpaca) | `instruction`, and `input` below it | `output` |
| `instruction`, `response` (Dolly) | `instruction`, and `context` below it | `response` |
| `prompt`, `completion` | `prompt` | `completion` |
| `question`, `answer` | `question`, and `context` below it | `answer` |
| `messages` or `conversations` | all turns before the last one of the assistant, a line each | that last one |

`input` and `context` may be missing or empty; other columns are ignored. A turn is `{"role": ..., "content": ...}` or
ShareGPT's `{"from": ..., "value": ...}`, by the system, the user or the assistant; what follows the assistant's last
turn is left out. A table that fits none of the rows, or more than one, is refused.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from labkit.errors import RequestError

NAMES = ("instruction", "answer")
PAIRS = (  # instruction, answer, what is put below the instruction
    ("instruction", "expression", None),
    ("instruction", "answer", None),
    ("instruction", "output", "input"),
    ("instruction", "response", "context"),
    ("prompt", "completion", None),
    ("question", "answer", "context"),
)
CHATS = ("messages", "conversations")
TURN_KEYS = (("role", "content"), ("from", "value"))
SPEAKERS = {"system": "prompt", "user": "prompt", "human": "prompt", "assistant": "answer", "gpt": "answer"}


Rule = Callable[[Mapping], tuple[str, str]]
"""Row -> instruction and answer; ValueError says what is wrong in the row."""


def rule_for(columns: Iterable[str], place: str) -> Rule:
    """The one rule that fits a table's columns. RequestError with `place`, the columns and the rules if none does."""
    columns = list(columns)
    fitting = [pair for pair in PAIRS if {*pair[:2]} <= {*columns}]
    chats = [name for name in CHATS if name in columns]
    if len(fitting) + len(chats) != 1:
        how = "fits more than one of the rules" if fitting or chats else "fits none of the rules"
        pairs = ", ".join(f"{first} + {second}" for first, second, _ in PAIRS)
        raise RequestError(
            f"{place} has the columns {', '.join(columns) or 'none'}, which {how}: {pairs}, {', '.join(CHATS)}."
        )
    if chats:
        return partial(_from_chat, column=chats[0])
    return partial(_from_pair, names=fitting[0])


def _from_pair(row: Mapping, names: tuple[str, str, str | None]) -> tuple[str, str]:
    instruction, answer, below = names
    asked, answered = _text(row, instruction), _text(row, answer)
    more = _text(row, below) if row.get(below) is not None else ""
    return (f"{asked}\n{more}" if more.strip() else asked), answered


def _text(row: Mapping, name: str) -> str:
    if name not in row:
        raise ValueError(f"has the columns {', '.join(row) or 'none'}, and {name} is wanted")
    if not isinstance(row[name], str):
        raise ValueError(f"{name} is {_shown(row[name])}, not text")
    return row[name]


def _shown(value) -> str:
    return "missing" if value is None else json.dumps(value, default=str)[:40]


def _from_chat(row: Mapping, column: str) -> tuple[str, str]:
    turns = row.get(column)
    if not isinstance(turns, list):
        raise ValueError(f"{column} is {_shown(turns)}, not a list of turns")
    said = [_turn(turn, number) for number, turn in enumerate(turns, start=1)]
    answers = [place for place, (speaker, _) in enumerate(said) if speaker == "answer"]
    if not answers:
        return "", ""
    return "\n".join(text for _, text in said[: answers[-1]] if text.strip()), said[answers[-1]][1]


def _turn(turn, number: int) -> tuple[str, str]:
    for who, what in TURN_KEYS:
        if isinstance(turn, Mapping) and turn.get(who) is not None:
            if turn[who] not in SPEAKERS:
                raise ValueError(f"turn {number} is by {_shown(turn[who])}; known are {', '.join(SPEAKERS)}")
            return SPEAKERS[turn[who]], _text(turn, what)
    raise ValueError(f"turn {number} is {_shown(turn)}, not an object with role and content")
