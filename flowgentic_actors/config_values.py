"""Values that users give as settings: sizes, paths, and the names of the settings themselves."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGTP])(i?)B|B)\s*", re.IGNORECASE)
_HOW: Final = "give a number of bytes, or text such as '512 MiB' (2**20 bytes) or '1.5 GB' (10**9)"

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*:/+", re.IGNORECASE)
_VARIABLE: Final = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)


def size_in_bytes(value: Any) -> Any:
    """A size that was given as text, in bytes; other values unchanged.

    Raises:
        ValueError: If the text is no size.
    """
    if not isinstance(value, str) or value.strip().lstrip("+-").isdecimal():
        return value  # for pydantic, which takes a number as text, too
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is no size: {_HOW}")
    number, prefix, binary = match.groups()
    power = "KMGTP".index(prefix.upper()) + 1 if prefix else 0
    return int(Decimal(number) * (1024 if binary else 1000) ** power)


def user_path(value: Any) -> Any:
    """A path with `~`, `$NAME` and `${NAME}` replaced as a shell does it; other values unchanged.

    Raises:
        ValueError: If the text is empty, a URL, or has a null character in it, or names the home of
            an unknown user or a variable that is not set.
    """
    if not isinstance(value, (str, Path)):
        return value
    if not str(value).strip():
        raise ValueError("is empty, which would be the working directory: name a path")
    if "\0" in str(value):
        raise ValueError("has a null character in it, which no path can have")
    if scheme := _URL.match(str(value)):
        raise ValueError(f"begins with {scheme[0]} and is no path of a file system: name one")
    path = os.path.expandvars(value)
    if unset := _VARIABLE.search(path):
        raise ValueError(f"has the variable {unset[0]} in it, which is not set here")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{value} names the home of a user who is not known here") from error


Bytes = Annotated[int, BeforeValidator(size_in_bytes)]
"""A number of bytes, or text such as `"512 MiB"`."""


def path_of_this_process(path: Path) -> Path:
    """Check that a path can be encoded as a file name in this process.

    Raises:
        ValueError: If it cannot.
    """
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{str(path)!a} is no path in this process, whose file names are in "
            f"{sys.getfilesystemencoding()}: start it with PYTHONUTF8=1"
        ) from error
    return path


UserPath = Annotated[Path, BeforeValidator(user_path), AfterValidator(path_of_this_process)]
"""A path in which `~` is the home directory, and `$NAME` a variable of the environment."""


def type_name(value: Any) -> Any:
    """A class as (module, name), by which LangGraph's serializer finds it; else unchanged.

    Raises:
        ValueError: If it is not found in that way, or the value is text.
    """
    if isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - what pydantic reports
            f"{value!r} is no type: give the class itself, or (module, name)"
        )
    if not isinstance(value, type):
        return value
    if value.__qualname__ != value.__name__:
        raise ValueError(
            f"{value.__qualname__} is defined within something else, and LangGraph's serializer "
            "finds only what a module has under its own name: define it there"
        )
    return value.__module__, value.__name__


_Module = Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")]
_Class = Annotated[str, Field(pattern=r"^[^\W\d]\w*(\[.+\])?$")]  # pydantic's: Page[int]

TypeName = Annotated[tuple[_Module, _Class], BeforeValidator(type_name)]
"""A class, or its module and name."""


def unknown_settings(given: Iterable[object], known: Collection[str], within: str = "") -> str:
    """Text that names unknown settings and the ones that may be meant; empty when all are known.

    Args:
        given: Names that were given.
        known: All that there are.
        within: Prefix of the names in the result.
    """
    told = []
    for name in map(str, given):
        if name not in known:
            near = get_close_matches(name, known, n=1)
            told.append(f"{within + name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return f"unknown setting {', '.join(told)}" if told else ""


def known_keys(typed_dict: type) -> BeforeValidator:
    """A validator that refuses other keys than a TypedDict's, with the one that may be meant."""

    def check(value: Any, info: ValidationInfo) -> Any:
        within = f"{info.field_name}."
        if isinstance(value, dict) and (told := unknown_settings(value, keys, within)):
            raise ValueError(f"{told}; there are {', '.join(keys)}")
        return value

    keys = list(typed_dict.__annotations__)
    return BeforeValidator(check)


class Settings(BaseModel):
    """Base of what users configure: frozen, and unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, given: Any) -> Any:
        errors = [
            InitErrorDetails(
                type=PydanticCustomError("unknown_setting", "{told}", {"told": told}),
                loc=(str(name),),
                input=given[name],
            )
            for name in (given if isinstance(given, dict) else ())
            if (told := unknown_settings([name], cls.model_fields))
        ]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return given
