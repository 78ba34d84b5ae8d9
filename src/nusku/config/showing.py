"""Showing the settings: as a file, and as a page of the documentation."""

import json
import re
from collections.abc import Iterable
from typing import get_args

from nusku.config.rules import ORDERED
from nusku.config.settings import FIELDS, LATER, SECRETS, Settings, allowed_values

_PAGE = """\
# Settings

Every setting has one flat name. Weakest first, it is taken from

1. its default, below;
2. the TOML file named by `nusku serve --config FILE` or `NUSKU_CONFIG`: `max_wait = 30`;
3. the environment: `NUSKU_MAX_WAIT=30`. Lists are comma-separated, switches are `true`, `false`,
   `1`, `0`, `yes`, `no`, `on` or `off`;
4. the options of `nusku serve`: `--host`, `--port`, `--store`, `--auth`, `--workers`,
   `--log-level`, `--log-format`.

A name that is not in this table, in the file or as a `NUSKU_` variable, stops the start, as does a
value that is not allowed: each problem is one line with the name, the value, where it came from and
what is allowed. `nusku check` tells the same without starting anything, and prints what is in force.
Keys and passwords ({secrets}) are never printed, not even when they are wrong.
Names that later versions will use are taken, and told to have no effect: {later}.

| setting | default | unit | allowed | meaning |
|---|---|---|---|---|
{rows}

And these orders hold:

{rules}
"""


def masked(uri: str) -> str:
    """The URI with passwords as ``***``. Where it cannot tell it rather hides too much."""
    uri = re.sub(r"^([^:/?#]+://[^:@/?#]*):.*@", r"\1:***@", uri, flags=re.DOTALL)
    return re.sub(
        r"([?&;]\w*(?:password|passwd|secret|token)\w*=)[^&;#]*", r"\1***", uri, flags=re.IGNORECASE
    )


def as_toml(settings: Settings) -> str:
    """The settings as a TOML file would have them, without secrets, passwords masked."""
    lines = []
    for name in FIELDS:
        value = getattr(settings, name)
        hidden = name in SECRETS and value
        lines.append(f"# {name} is set, and not shown" if hidden else f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # TOML's strings, booleans and lists are JSON's, but for the one character that JSON lets pass.
    if isinstance(value, str):
        value = masked(value)
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def document() -> str:
    """``docs/settings.md``."""
    rows = []
    for name, field in FIELDS.items():
        meta = get_args(field.type)[1]
        default, unit = _plain(field.default), (meta.extra or {}).get("unit", "")
        rows.append(
            f"| `{name}` | {f'`{default}`' if default else 'empty'} | {unit} |"
            f" {allowed_values(name)} | {meta.description} |"
        )
    rules = [f"- {' ≤ '.join(f'`{name}`' for name in order if name)}" for order in ORDERED]
    return _PAGE.format(
        rows="\n".join(rows), rules="\n".join(rules), later=_names(LATER), secrets=_names(SECRETS)
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _plain(value: object) -> str:
    """A value as it is written in the environment."""
    if isinstance(value, tuple):
        return ",".join(value)
    return value if isinstance(value, str) else _toml(value)
