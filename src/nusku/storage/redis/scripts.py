"""The scripts, put together from their files.

A script is one function to the server, and all functions in it are made anew at each call. That
costs least when what they share belongs to a function around them, so there are three, one in the
other; when what is rarely needed is made where it is needed; and when constants are no variables.
"""

import re
from hashlib import sha1
from pathlib import Path

from nusku.storage.redis.keys import command, packed

_HERE = Path(__file__).parent

LANES = """\
{shared}
return (function()
{lane}{states}{tidying}{looking}
return (function()
local operations = {{}}
{storing}{reading}{claiming}{removing}
local others
local function rare()
if others then return others end
local operations = {{}}
{queues}{moving}{busy}{transfer}
others = operations
return others
end
{batch}
end)()
end)()
"""

_CONSTANT = re.compile(r"^local ([A-Z_]+) = (.+?)(?: -- .*)?$", re.MULTILINE)
_COMMENT = re.compile(r"^ *--.*\n|^\n", re.MULTILINE)


class Script:
    """A script as it is loaded, and how a call of it begins."""

    def __init__(self, source: str) -> None:
        text = source.encode()
        self.load = command("SCRIPT", "LOAD", text)
        self.sha = packed(b"EVALSHA", sha1(text, usedforsecurity=False).hexdigest().encode())


def _read(name: str) -> str:
    return _COMMENT.sub("", (_HERE / name).read_text(encoding="utf-8"))


def lanes(**others: str) -> Script:
    """The script of ``lanes/``, perhaps with other constants."""
    parts = {path.stem: _read(f"lanes/{path.name}") for path in (_HERE / "lanes").glob("*.lua")}
    source = LANES.format_map(parts)
    for name, value in reversed(_CONSTANT.findall(parts["constants"])):
        literal = f"({others.get(name, value)})".replace("\\", r"\\")
        source = re.sub(rf"\b{name}\b", literal, source)
    return Script(source)


def records() -> Script:
    return Script(_read("records.lua"))
