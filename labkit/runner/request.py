"""What is asked of the labs, checked before anything starts: a refused request leaves no file and no folder behind."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.case import AVAILABLE_METHODS, check_field, field_of
from labkit.errors import LabFailed, RequestError
from labkit.lab.catalog import read_parameters
from labkit.lab.setup import check_preset


@dataclass(frozen=True)
class Job:
    """One lab to run. `problem` tells why it cannot be started: then it fails, and the other labs go on."""

    lab: Path
    preset: str | None
    parameters: Mapping[str, Any]
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.lab.stem

    @property
    def injected(self) -> dict[str, Any]:
        """What papermill sets in the lab."""
        return dict(self.parameters) | ({"preset": self.preset} if self.preset else {})


def parse_parameters(texts: Iterable[str]) -> dict[str, Any]:
    """`["rank=16", "model=tiny"] -> {"rank": 16, "model": "tiny"}`: values are JSON where they parse, else text."""
    parameters = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RequestError(f"-p {text}: a parameter is given as NAME=VALUE, such as -p rank=16.")
        parameters[name] = _parse(value)
    return parameters


def _parse(text: str) -> Any:
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except ValueError:
        return text
    return value


def plan(labs: Sequence[Path], preset: str = "quick", parameters: Mapping[str, Any] | None = None) -> list[Job]:
    """One Job per lab, each with those of the parameters that it has.

    Raises RequestError for a parameter that no lab has and for an impossible value, ModelNotAvailable for `model`.
    """
    given = dict(parameters or {})
    preset = given.pop("preset", preset)
    check_preset(preset)
    known, problems = {}, {}
    for lab in labs:
        try:
            known[lab] = read_parameters(lab)
        except LabFailed as error:
            problems[lab] = Job(lab, None, {}, str(error))
    if known:
        given = {name: _checked(name, value, known) for name, value in given.items()}
    jobs = {lab: _job(lab, preset, given, defaults) for lab, defaults in known.items()} | problems
    return [jobs[lab] for lab in labs]


def _job(lab: Path, preset: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Job:
    mine = {name: value for name, value in given.items() if name in defaults}
    return Job(lab, preset if "preset" in defaults else None, mine)


def _checked(name: str, value: Any, known: Mapping[Path, Mapping[str, Any]]) -> Any:
    """The value to pass on, or RequestError when no lab has the parameter or it cannot hold the value."""
    owners = {lab: defaults[name] for lab, defaults in known.items() if name in defaults}
    if not owners:
        _refuse_unknown(name, known)
    if field := field_of(name):
        check_field(field, value)
    else:
        _check_kind(name, value, owners)
    by_name = {"model": _checked_model, "task": _checked_task, "method": _checked_method}
    return by_name[name](value) if name in by_name else value


def _refuse_unknown(name: str, known: Mapping[Path, Mapping[str, Any]]) -> None:
    names = sorted(set().union(*known.values()))
    labs = ", ".join(lab.stem for lab in known)
    close = difflib.get_close_matches(name, names, 1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise RequestError(f"{labs}: there is no parameter {name!r}. {hint}The parameters are {', '.join(names)}.")


def _check_kind(name: str, value: Any, owners: Mapping[Path, Any]) -> None:
    """A parameter that is no Case field says by its default whether it is a number or a switch."""
    for lab, default in owners.items():
        for kind, words in ((bool, "true or false"), (int | float, "a number")):
            if isinstance(default, kind):
                if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, kind):
                    raise RequestError(f"{name}={value!r} is not possible: in {lab.stem} {name} is {words}.")
                break


def _checked_method(method: str) -> str:
    if method not in AVAILABLE_METHODS:
        raise RequestError(f"method={method!r} cannot be run yet; use one of {', '.join(AVAILABLE_METHODS)}.")
    return method


def _checked_model(model: Any) -> Any:
    """ModelNotAvailable, or the model: a folder as an absolute path, because a lab runs in its own folder."""
    from labkit.models.sources import EMBEDDED, check_available, local_folder

    check_available(model)
    folder = local_folder(model)
    return str(folder.resolve()) if folder and model != EMBEDDED else model


def _checked_task(task: str) -> str:
    """RequestError, or the task: a local path as an absolute one, likewise."""
    from labkit.train.tasks.files import check_available, local_path

    check_available(task)
    path = local_path(task)
    return str(path.resolve()) if path else task
