"""The task `expressions`: short English instructions, each with the one Python expression it asks for.

A family is a list of rules, `phrase | phrase | ... => expression`. Words in capitals are slots (`SLOTS`); a rule's
phrase and expression are filled with the same values. Most of what is asked is copying in the right order: "easy" rules
apply one operation, "hard" ones compose two or three. The files in `data/tasks/` are what

    python -m labkit.train.tasks.grammar

writes: distinct items, no instruction and no expression twice in a family, so that the splits are disjoint by both.
"""

import json
import random
import re
from pathlib import Path
from typing import TypedDict

SIZES = {"train": 4000, "validation": 400, "test": 800}
MAX_INSTRUCTION_CHARACTERS, MAX_EXPRESSION_CHARACTERS = 60, 48
ATTEMPTS = 30  # fillings tried for one rule before another is drawn

EASY = """
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
the length of TEXT | how long is TEXT | count the letters of TEXT => len(TEXT)
TEXT in upper case | make TEXT upper case | capital letters for TEXT => TEXT.upper()
TEXT as a title | a capital for each word of TEXT => TEXT.title()
the words of TEXT | split TEXT into words => TEXT.split()
the first letter of TEXT | how does TEXT begin => TEXT[0]
the last letter of TEXT | how does TEXT end => TEXT[-1]
reverse TEXT | TEXT backwards => TEXT[::-1]
repeat TEXT K times | write TEXT K times => TEXT * K
WORD followed by OTHER | join WORD and OTHER | put OTHER after WORD => WORD + OTHER
is LETTER in TEXT | does TEXT contain LETTER => LETTER in TEXT
count LETTER in TEXT | how many LETTER are in TEXT => TEXT.count(LETTER)
"""

HARD = """
add A and B, then multiply by C | C times the sum of A and B => (A + B) * C
subtract B from A, then multiply by C | C times the difference of A and B => (A - B) * C
multiply A by B, then add C | C more than the product of A and B => A * B + C
A plus the product of B and C | add the product of B and C to A => A + B * C
A minus the sum of B and C | take the sum of B and C away from A => A - (B + C)
the remainder of A times B divided by C | multiply A by B, modulo C => A * B % C
the square of the sum of A and B | add A and B, then square => (A + B) ** 2
the sum of the squares of A and B | square A and B, then add => A ** 2 + B ** 2
the digits of A times B | multiply A by B, write it as text => str(A * B)
is A between B and C | is A over B and under C => B < A < C
WORD if A is more than B, else OTHER | if A beats B, WORD, or else OTHER => WORD if A > B else OTHER
K times each of NUMBERS | multiply each of NUMBERS by K => [x * K for x in [NUMBERS]]
those of NUMBERS over LIMIT | keep what is over LIMIT in NUMBERS => [x for x in [NUMBERS] if x > LIMIT]
those of NUMBERS that K divides | keep multiples of K in NUMBERS => [x for x in [NUMBERS] if x % K == 0]
add up those of NUMBERS under LIMIT | the total of NUMBERS under LIMIT => sum(x for x in [NUMBERS] if x < LIMIT)
how many of NUMBERS are over LIMIT | count NUMBERS over LIMIT => sum(x > LIMIT for x in [NUMBERS])
the squares of NUMBERS | square each of NUMBERS => [x ** 2 for x in [NUMBERS]]
map NUMBERS to their squares | a dict from NUMBERS to squares => {x: x ** 2 for x in [NUMBERS]}
multiples of K below A | numbers below A that K divides => [x for x in range(A) if x % K == 0]
count from A in steps of K, LIMIT times | LIMIT numbers from A, each K more => [A + K * i for i in range(LIMIT)]
the FEW largest of NUMBERS | NUMBERS from large to small, first FEW => sorted([NUMBERS])[::-1][:FEW]
the FEW smallest of NUMBERS | sort NUMBERS, keep the first FEW => sorted([NUMBERS])[:FEW]
the second largest of NUMBERS | sort NUMBERS, last but one => sorted([NUMBERS])[-2]
the spread of NUMBERS | the largest minus the smallest of NUMBERS => max(NUMBERS) - min(NUMBERS)
the mean of NUMBERS | the average of NUMBERS => sum([NUMBERS]) / len([NUMBERS])
skip the first FEW of NUMBERS | NUMBERS without the first FEW => [NUMBERS][FEW:]
the first K letters of TEXT, in upper case | TEXT cut to K letters, upper case => TEXT[:K].upper()
the last K letters of TEXT, reversed | reverse the last K letters of TEXT => TEXT[-K:][::-1]
replace LETTER by MARK in TEXT | TEXT with MARK for every LETTER => TEXT.replace(LETTER, MARK)
the parts of TEXT between LETTER | split TEXT at every LETTER => TEXT.split(LETTER)
the letters of TEXT in order | sort the letters of TEXT => ''.join(sorted(TEXT))
how many different letters in WORD and OTHER => len(set(WORD + OTHER))
join WORDS with MARK | WORDS with MARK between them => MARK.join([WORDS])
the longest of WORDS | which of WORDS is longest => max([WORDS], key=len)
the lengths of WORDS | how long is each of WORDS => [len(w) for w in [WORDS]]
those of WORDS with LETTER | keep WORDS that have LETTER => [w for w in [WORDS] if LETTER in w]
map WORDS to their lengths | a dict from WORDS to lengths => {w: len(w) for w in [WORDS]}
where WORD is A and OTHER is B, get WORD | WORD, if WORD is A and OTHER is B => {WORD: A, OTHER: B}[WORD]
the sum of values, WORD is A and OTHER is B | WORD is A, OTHER is B, add up => sum({WORD: A, OTHER: B}.values())
"""

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


def _number(draw: random.Random) -> str:
    return str(draw.randrange(2, 100))


def _word(draw: random.Random) -> str:
    return f"'{draw.choice(NOUNS.split())}'"


def _text(draw: random.Random) -> str:
    return "'" + " ".join(draw.choice(NOUNS.split()) for _ in range(draw.randrange(1, 3))) + "'"


SLOT = re.compile(r"\b[A-Z]+\b")
SLOTS = {
    "A": _number,
    "B": _number,
    "C": _number,
    "K": lambda draw: str(draw.randrange(2, 6)),
    "FEW": lambda draw: str(draw.randrange(2, 4)),
    "LIMIT": lambda draw: str(draw.randrange(10, 40)),
    "NUMBERS": lambda draw: ", ".join(str(draw.randrange(1, 50)) for _ in range(draw.randrange(3, 5))),
    "WORD": _word,
    "OTHER": _word,
    "TEXT": _text,
    "WORDS": lambda draw: ", ".join(_word(draw) for _ in range(draw.randrange(2, 4))),
    "LETTER": lambda draw: f"'{draw.choice('aeioulnrst')}'",
    "MARK": lambda draw: f"'{draw.choice('-+_.:/')}'",
}


def rules(family: str) -> list[tuple[list[str], str]]:
    """Each rule of "easy" or "hard" as its phrases and its expression, slots unfilled."""
    lines = {"easy": EASY, "hard": HARD}[family].strip().splitlines()
    pairs = [line.split(" => ") for line in lines]
    return [(phrases.split(" | "), expression) for phrases, expression in pairs]


def _fill(phrase: str, expression: str, draw: random.Random) -> Example:
    """One item: the same values in the slots of both."""
    values = {name: SLOTS[name](draw) for name in dict.fromkeys(SLOT.findall(phrase))}
    instruction, answer = (SLOT.sub(lambda slot: values[slot[0]], text) for text in (phrase, expression))
    return Example(instruction=instruction, expression=answer)


def _is_short(example: Example) -> bool:
    return (
        len(example["instruction"]) <= MAX_INSTRUCTION_CHARACTERS
        and len(example["expression"]) <= MAX_EXPRESSION_CHARACTERS
    )


def _distinct(family: str, count: int, draw: random.Random) -> list[Example]:
    """`count` short items without repetition; rules are equally likely, until one has no new filling to offer."""
    choices, examples, seen = rules(family), [], set()
    while len(examples) < count:
        phrases, expression = draw.choice(choices)
        fillings = (_fill(draw.choice(phrases), expression, draw) for _ in range(ATTEMPTS))
        new = next((one for one in fillings if _is_short(one) and seen.isdisjoint(one.values())), None)
        if new:
            seen.update(new.values())
            examples.append(new)
    return examples


def generate(family: str, seed: int = 0) -> dict[str, list[Example]]:
    """The splits "train", "validation" and "test" (`SIZES`) of family "easy" or "hard"; a seed fixes every item."""
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

    for family in ("easy", "hard"):
        folder = TASKS / f"expressions-{family}"
        folder.mkdir(parents=True, exist_ok=True)
        for split, examples in generate(family).items():
            write_atomically(Path(folder, f"{split}.jsonl"), to_jsonl(examples))


if __name__ == "__main__":
    main()
