"""Checks of exercises: they compare with a reference and say what to look at. An unanswered exercise fails nothing."""

from labkit.lab.reveal import show


def check_number(answer: float | None, reference: float, hints: dict, tolerance: float = 0.0) -> bool | None:
    """Compare `answer` with `reference`; a known wrong value in `hints` gets its own hint. None: not answered yet."""
    if answer is None:
        show("*Not answered yet: put your number in place of `None` and run the cell again.*")
        return None
    right = abs(answer - reference) <= tolerance * abs(reference)
    if right:
        show("**Right.**")
        return True
    known = [hint for wrong, hint in hints.items() if abs(answer - wrong) <= max(tolerance, 1e-9) * abs(wrong)]
    ratio = answer / reference if reference else float("nan")
    show(f"**Not yet.** {known[0] if known else f'Your answer is {ratio:.3g} times the reference.'}")
    return False
