"""The task `expressions`: short English instructions, each with the one Python expression it asks for.

A rule is `phrase | phrase | ... => expression`, and its words in capitals are slots. Small slots (`TERMINALS`) are said
as they are written: numbers, words, lists of them. The others name a group of `RULES`, from which a rule is chosen in
turn. So an "easy" item applies one rule, mostly copying, and a "hard" one nests two or three: the order of operations
is stated in words, and every phrase takes its operands after itself, which leaves one way to read it.

The files in `data/tasks/` are what `python -m labkit.train.tasks.grammar` writes: in a family no instruction and no
expression occurs twice, so that the splits are disjoint by both.
"""

import ast
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

from labkit.errors import RequestError
from labkit.train.tasks.interpreter import ExpressionRefused, evaluate

SIZES = {"train": 4000, "validation": 400, "test": 800}
MAX_INSTRUCTION_CHARACTERS, MAX_EXPRESSION_CHARACTERS = 60, 44
FAMILIES = ("easy", "hard")
ATTEMPTS = 30  # fillings tried for one rule before another is drawn

RULES_TEXT = """
EASY
add A and B | A plus B | the sum of A and B => A + B
subtract B from A | A minus B | take B away from A => A - B
multiply A by B | A times B | the product of A and B => A * B
divide A by B | A divided by B | A over B => A / B
A divided by B, rounded down | how many times B fits into A => A // B
A modulo B | the remainder of A divided by B => A % B
A to the power K | raise A to the power K => A ** K
is A more than B | is A greater than B => A > B
is A less than B | is A below B => A < B
the largest of NUMBERS | the maximum of NUMBERS | the biggest of NUMBERS => max(NUMBERS)
the smallest of NUMBERS | the minimum of NUMBERS | the least of NUMBERS => min(NUMBERS)
add up NUMBERS | the total of NUMBERS | sum NUMBERS => sum([NUMBERS])
sort NUMBERS | put NUMBERS in order | NUMBERS from small to large => sorted([NUMBERS])
reverse NUMBERS | NUMBERS backwards => [NUMBERS][::-1]
the first of NUMBERS | the first item of NUMBERS => [NUMBERS][0]
the last of NUMBERS | the last item of NUMBERS => [NUMBERS][-1]
how many items in NUMBERS | count the items NUMBERS => len([NUMBERS])
is A one of NUMBERS | is A among NUMBERS => A in [NUMBERS]
the length of PHRASE | how long is PHRASE | count the letters of PHRASE => len(PHRASE)
PHRASE in upper case | make PHRASE upper case | capital letters for PHRASE => PHRASE.upper()
PHRASE as a title | a capital for each word of PHRASE => PHRASE.title()
the words of PHRASE | split PHRASE into words => PHRASE.split()
the first letter of PHRASE | how does PHRASE begin => PHRASE[0]
the last letter of PHRASE | how does PHRASE end => PHRASE[-1]
reverse PHRASE | PHRASE backwards => PHRASE[::-1]
repeat PHRASE K times | write PHRASE K times => PHRASE * K
NOUN followed by OTHER | join NOUN and OTHER | put OTHER after NOUN => NOUN + OTHER
is LETTER in PHRASE | does PHRASE contain LETTER => LETTER in PHRASE
count LETTER in PHRASE | how many LETTER are in PHRASE => PHRASE.count(LETTER)

NUMBER
the sum of NUMBER1 and NUMBER2 => NUMBER1 + NUMBER2
the product of NUMBER1 and NUMBER2 => NUMBER1 * NUMBER2
the difference of NUMBER1 and NUMBER2 => NUMBER1 - NUMBER2
the remainder of NUMBER by A => NUMBER % A
the larger of NUMBER1 and NUMBER2 => max(NUMBER1, NUMBER2)
the smaller of NUMBER1 and NUMBER2 => min(NUMBER1, NUMBER2)
the square of NUMBER => NUMBER ** 2
twice NUMBER => 2 * NUMBER
the total of LIST => sum(LIST)
the largest of LIST => max(LIST)
the smallest of LIST => min(LIST)
the first of LIST => LIST[0]
the last of LIST => LIST[-1]
the length of TEXT => len(TEXT)
the count of LETTER in TEXT => TEXT.count(LETTER)

LIST
the squares of LIST => [x ** 2 for x in LIST]
FEW times each of LIST => [x * FEW for x in LIST]
LIMIT more than each of LIST => [x + LIMIT for x in LIST]
the even ones of LIST => [x for x in LIST if x % 2 == 0]
those over LIMIT of LIST => [x for x in LIST if x > LIMIT]
those under LIMIT of LIST => [x for x in LIST if x < LIMIT]
the sorted form of LIST => sorted(LIST)
the reverse of LIST => LIST[::-1]
the first FEW of LIST => LIST[:FEW]
all but the first of LIST => LIST[1:]
the lengths of WORDS => [len(w) for w in WORDS]

TEXT
the upper case of TEXT => TEXT.upper()
the reverse of TEXT => TEXT[::-1]
the first FEW letters of TEXT => TEXT[:FEW]
the last FEW letters of TEXT => TEXT[-FEW:]
the sorted letters of TEXT => ''.join(sorted(TEXT))
FEW copies of TEXT => TEXT * FEW
the chain of TEXT1 and TEXT2 => TEXT1 + TEXT2
MARK for every LETTER in TEXT => TEXT.replace(LETTER, MARK)
MARK between WORDS => MARK.join(WORDS)
the longest of WORDS => max(WORDS, key=len)
the last of WORDS => WORDS[-1]
the digits of NUMBER => str(NUMBER)

WORDS
the words of TEXT => TEXT.split()
the parts at LETTER of TEXT => TEXT.split(LETTER)
those with LETTER of WORDS => [w for w in WORDS if LETTER in w]
the upper case of each of WORDS => [w.upper() for w in WORDS]
the sorted form of WORDS => sorted(WORDS)
the reverse of WORDS => WORDS[::-1]
the first FEW of WORDS => WORDS[:FEW]

ANSWER
is NUMBER1 over NUMBER2 => NUMBER1 > NUMBER2
is NUMBER among LIST => NUMBER in LIST
is LETTER in TEXT => LETTER in TEXT
map LIST to squares => {x: x ** 2 for x in LIST}
map WORDS to lengths => {w: len(w) for w in WORDS}
if NUMBER is over A, NOUN, else OTHER => NOUN if NUMBER > A else OTHER
"""
LEAVES_TEXT = {
    "NUMBER": "A => A",
    "LIST": "NUMBERS => [NUMBERS]",
    "TEXT": "PHRASE => PHRASE",
    "WORDS": "NAMES => [NAMES]",
}
EMPTY = ("", [], {})
HARD = ("NUMBER", "LIST", "TEXT", "WORDS", "ANSWER")

NOUNS = """
apple arm bag ball bank bat bear bed bell bird boat book box bread brick bus cake camp car cat chair city class clock
cloud coat code corn cow cup data day desk dog door drum duck ear earth egg eye farm file fire fish flag floor food
foot fox frog game gate glass goat gold grass green hand hat heart hill home horse house ice ink iron island jacket
key king kite lake lamp leaf letter light line lion list map milk moon mouse music nail name nest night node nose note
ocean paper park path pen pig pin plane plant pond queen rain red ring river road rock roof room root rope rose salt
sand school sea seed ship shoe silver sky snow song spoon star stone street sugar sun table tail tent test tiger time
tool tower train tree truck type value wall water wave wheel wind wing winter wolf wood word yard
"""


class Example(TypedDict):
    """One item of a task: what is asked, and the expression that answers it."""

    instruction: str
    expression: str


class Rule(NamedTuple):
    """`phrases`: ways to say it. `expression`: how it is written. Slots are words in capitals."""

    phrases: list[str]
    expression: str


def _noun(draw: random.Random) -> str:
    return f"'{draw.choice(NOUNS.split())}'"


def _number(draw: random.Random) -> str:
    return str(draw.randrange(2, 100))


TERMINALS = {
    "A": _number,
    "B": _number,
    "K": lambda draw: str(draw.randrange(2, 6)),
    "FEW": lambda draw: str(draw.randrange(2, 4)),
    "LIMIT": lambda draw: str(draw.randrange(10, 40)),
    "NUMBERS": lambda draw: ", ".join(str(draw.randrange(1, 50)) for _ in range(draw.randrange(3, 5))),
    "NOUN": _noun,
    "OTHER": _noun,
    "PHRASE": lambda draw: "'" + " ".join(draw.choice(NOUNS.split()) for _ in range(draw.randrange(1, 3))) + "'",
    "NAMES": lambda draw: ", ".join(_noun(draw) for _ in range(draw.randrange(2, 4))),
    "LETTER": lambda draw: f"'{draw.choice('aeioulnrst')}'",
    "MARK": lambda draw: f"'{draw.choice('-+_.:/')}'",
}
SLOT = re.compile(r"\b[A-Z]+[12]?\b")


def _rule(line: str) -> Rule:
    phrases, expression = line.split(" => ")
    return Rule(phrases.split(" | "), expression)


RULES = {
    group.splitlines()[0]: [_rule(line) for line in group.splitlines()[1:]]
    for group in RULES_TEXT.strip().split("\n\n")
}
LEAVES = {group: _rule(line) for group, line in LEAVES_TEXT.items()}


def _derive(rule: Rule, depth: int, draw: random.Random) -> Example:
    """One filling of `rule`. One of its operands nests `depth - 1` rules, the others are literals."""
    phrase = draw.choice(rule.phrases)
    slots = dict.fromkeys(SLOT.findall(phrase))
    operands = [slot for slot in slots if slot not in TERMINALS]
    deepest = draw.choice(operands) if operands else None
    said, written = {}, {}
    for slot in slots:
        if slot in TERMINALS:
            said[slot] = written[slot] = TERMINALS[slot](draw)
        else:
            group = slot.rstrip("12")
            nested = [other for other in RULES[group] if other is not rule]  # no reverse of a reverse
            inner = draw.choice(nested) if depth > 1 and slot == deepest else LEAVES[group]
            inner = _derive(inner, depth - 1, draw)
            said[slot], written[slot] = inner["instruction"], f"({inner['expression']})"
    return Example(
        instruction=SLOT.sub(lambda slot: said[slot[0]], phrase),
        expression=SLOT.sub(lambda slot: written[slot[0]], rule.expression),
    )


def _is_usable(example: Example) -> bool:
    """Short, and with a value: an empty one would be too easily guessed."""
    try:
        return len(example["expression"]) <= MAX_EXPRESSION_CHARACTERS and evaluate(example["expression"]) not in EMPTY
    except ExpressionRefused:  # the first of no items
        return False


def _fillings(family: str, draw: random.Random) -> Iterator[Example]:
    """Items of one rule drawn from the family, short ones among `ATTEMPTS`, without needless parentheses."""
    group, depth = ("EASY", 1) if family == "easy" else (draw.choice(HARD), draw.choice((2, 3)))
    rule = draw.choice(RULES[group])
    for _ in range(ATTEMPTS):
        example = _derive(rule, depth, draw)
        if len(example["instruction"]) <= MAX_INSTRUCTION_CHARACTERS:
            expression = ast.unparse(ast.parse(example["expression"], mode="eval"))
            yield Example(instruction=example["instruction"], expression=expression)


def _distinct(family: str, count: int, draw: random.Random) -> list[Example]:
    """`count` items without repetition; rules are equally likely, until one has nothing new to offer."""
    examples, seen = [], set()
    while len(examples) < count:
        for example in _fillings(family, draw):
            if seen.isdisjoint(example.values()) and _is_usable(example):
                seen.update(example.values())
                examples.append(example)
                break
    return examples


def generate(family: str, seed: int = 0) -> dict[str, list[Example]]:
    """The splits "train", "validation" and "test" (`SIZES`) of family "easy" or "hard"; a seed fixes every item."""
    if family not in FAMILIES:
        raise RequestError(f"There is no family {family}; families are {', '.join(FAMILIES)}.")
    draw = random.Random(f"{family} {seed}")
    examples = _distinct(family, sum(SIZES.values()), draw)
    draw.shuffle(examples)  # rules with few fillings run dry early
    return {split: [examples.pop() for _ in range(size)] for split, size in SIZES.items()}


def to_jsonl(examples: list[Example]) -> bytes:
    return "".join(json.dumps(example) + "\n" for example in examples).encode()


def main() -> None:
    """Write the files of both families at seed 0 below `data/tasks/`."""
    from labkit.record import write_atomically
    from labkit.train.tasks.files import TASKS

    for family in FAMILIES:
        folder = TASKS / f"expressions-{family}"
        folder.mkdir(parents=True, exist_ok=True)
        for split, examples in generate(family).items():
            write_atomically(Path(folder, f"{split}.jsonl"), to_jsonl(examples))


if __name__ == "__main__":
    main()
