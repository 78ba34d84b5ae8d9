"""Gathering the settings from file, environment and command line."""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from nusku.config.rules import broken_rules
from nusku.config.settings import FIELDS, LATER, SECRETS, Settings, allowed_values
from nusku.config.showing import masked

PREFIX = "NUSKU_"
# Names the TOML file, so it cannot be a setting in it.
FILE_VARIABLE = "NUSKU_CONFIG"
# What commands that ask a server come in with.
KEY_VARIABLE = "NUSKU_KEY"
_NO_SETTINGS = frozenset({FILE_VARIABLE, KEY_VARIABLE})
FILE_BYTES_MAX = 1_048_576
SHOWN_MAX = 80
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


class _Text(str):
    """A value that has no type yet, from the environment or the command line."""

    __slots__ = ()


class ConfigError(Exception):
    """The settings are wrong; ``problems`` has one line for each thing that is."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def load(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
    notice: Callable[[str], object] = str,
) -> Settings:
    """Gather and check the settings.

    Args:
        path: the TOML file, if there is one. It must be readable then.
        environ: the process's environment; only names starting with ``NUSKU_`` are looked at.
        overrides: settings by name, from the command line. Text is read as in the environment.
        notice: is told of settings that have no effect in this version.

    Raises:
        ConfigError: with every problem found.
    """
    problems: list[str] = []
    given: dict[str, tuple[object, str]] = {}
    if path is not None:
        for name, value in _read(path, problems).items():
            # Text where a number belongs is a mistake in a file that has types of its own.
            given[name] = (value, str(path))
    for variable in sorted(v for v in environ if v.startswith(PREFIX) and v not in _NO_SETTINGS):
        name = variable.removeprefix(PREFIX).lower()
        if name in LATER and variable == PREFIX + name.upper():
            notice(f"setting {name} has no effect in this version ({variable})")
        elif variable != PREFIX + name.upper() or name not in FIELDS:
            hint = _nearest(name, lambda near: PREFIX + near.upper())
            problems.append(f"environment variable {_name(variable)} is unknown{hint}")
        else:
            given[name] = (_Text(environ[variable]), variable)
    for name, value in overrides.items():
        source = f"--{name.replace('_', '-')}"
        given[name] = (_Text(value) if isinstance(value, str) else value, source)

    values: dict[str, Any] = {}
    failed: set[str] = set()
    for name, (value, source) in given.items():
        if name in LATER:
            notice(f"setting {name} has no effect in this version ({source})")
            continue
        if name not in FIELDS:
            problems.append(f"setting {_name(name)} is unknown ({source}){_nearest(name)}")
            continue
        try:
            values[name] = _convert(name, value)
        except ValueError:
            failed.add(name)
            problems.append(_refusal(name, value, source, allowed_values(name)))
    settings = Settings(**values)
    for name, allowed, involved in broken_rules(settings):
        if failed.isdisjoint((name, *involved)):
            _, source = given.get(name, (None, "the default"))
            problems.append(_refusal(name, getattr(settings, name), source, allowed))
    if problems:
        raise ConfigError(problems)
    return settings


def _read(path: Path, problems: list[str]) -> dict[str, object]:
    """The tables of a TOML file; a problem and nothing where it cannot be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            problems.append(f"settings file {path} is larger than {FILE_BYTES_MAX} bytes")
            return {}
        return tomllib.loads(raw.decode())
    except OSError as error:
        problems.append(f"settings file {path} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.append(f"settings file {path} is not UTF-8 text (byte {error.start})")
    except tomllib.TOMLDecodeError as error:
        problems.append(f"settings file {path} is not valid TOML: {error}")
    except RecursionError:
        problems.append(f"settings file {path} is nested too deeply")
    return {}


def _convert(name: str, value: object) -> Any:
    """The value as the setting's type. Raises ValueError (ValidationError is one) otherwise."""
    wanted = FIELDS[name].type
    kind = get_args(wanted)[0]
    if get_origin(kind) is tuple and isinstance(value, str):
        value = _Text(value)  # a list of one needs no brackets in a file, either
    if not isinstance(value, _Text):
        return msgspec.convert(value, wanted)
    if name in SECRETS and kind is str:
        return str(value)  # blanks are part of it, as they are in a file
    text = value.strip()
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return msgspec.convert(text, wanted, strict=False)


def _refusal(name: str, value: object, source: str, allowed: str) -> str:
    shown = "***" if name in SECRETS else _shown(value)
    return f"setting {name} is {shown} ({source}); allowed: {allowed}"


def _shown(value: object) -> str:
    """A value on one line, shortened, with passwords masked."""
    if isinstance(value, list):
        text = f"[{', '.join(map(_shown, value))}]"
    elif isinstance(value, dict):  # what is in it may be secret
        text = f"{{{', '.join(f'{key} = …' for key in value)}}}"
    else:
        text = repr(masked(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 1]}…"


def _name(name: str) -> str:
    """A name as it is where it could be one, else quoted, so that it stays on its line."""
    return name if name.isidentifier() and len(name) <= SHOWN_MAX else _shown(name)


def _nearest(name: str, spell: Callable[[str], str] = str) -> str:
    near = difflib.get_close_matches(name, FIELDS, n=1)
    return f"; did you mean {spell(near[0])}?" if near else ""
