"""How much each project may have, and how often it may ask: what the operator says.

The settings say it for all projects, the registry (``nusku quota …``) for some.
"""

from collections.abc import Callable, Mapping

import msgspec
import structlog

from nusku.broker.amounts import NO_LIMIT, Amounts
from nusku.config import Settings
from nusku.errors import StoreRefused
from nusku.storage import Registry
from nusku.storage.registry import Mirror

log = structlog.get_logger("nusku.quotas")

TABLE = "quotas"  # of the registry, by project


class Said(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is said of one project. 0: no limit; None: as for all.

    ``requests`` is for each second.
    """

    queues: int | None = None
    messages: int | None = None
    bytes: int | None = None
    subscriptions: int | None = None
    requests: int | None = None


NAMES: tuple[str, ...] = Said.__struct_fields__


def of_settings(settings: Settings) -> Said:
    """What is said of all projects."""
    return Said(*(getattr(settings, f"quota_{name}") for name in NAMES))


def joined(said: Said, default: Said) -> Said:
    """What is in force for a project."""
    pairs = ((getattr(said, name), getattr(default, name)) for name in NAMES)
    return Said(*(value if one is None else one for one, value in pairs))


async def say(registry: Registry, project: str, changes: Mapping[str, int]) -> None:
    """Change what is said of a project: by name, 0 for no limit and -1 for what is said of all."""
    new = {name: None if n < 0 else n for name, n in changes.items()}
    said = msgspec.structs.replace(_said(await registry.read(TABLE, project)), **new)
    await registry.write(TABLE, project, None if said == Said() else msgspec.json.encode(said))


async def unsay(registry: Registry, project: str) -> None:
    """Let a project have what all have."""
    await registry.write(TABLE, project, None)


async def in_force(
    registry: Registry, settings: Settings, project: str | None
) -> dict[str, dict[str, int]]:
    """What holds for a project, or for all of which something is said, and for the others (`*`)."""
    default, table = of_settings(settings), await registry.all(TABLE)
    if project is not None:
        return {project: _amounts(joined(_said(table.get(project)), default))}
    said = {name: joined(_said(doc), default) for name, doc in sorted(table.items())}
    return {name: _amounts(one) for name, one in [("*", default), *said.items()]}


def _said(doc: bytes | None) -> Said:
    try:
        return Said() if doc is None else msgspec.json.decode(doc, type=Said)
    except msgspec.MsgspecError as error:
        raise StoreRefused(f"the quotas of a project cannot be read: {error}") from None


def _amounts(said: Said) -> dict[str, int]:
    return {name: getattr(said, name) or 0 for name in NAMES}


class Limits:
    """What is in force. A change is there when ``on_change`` is called.

    Without a registry there are no limits.
    """

    def __init__(self, settings: Settings, registry: Mirror | None) -> None:
        self._default = of_settings(settings) if registry else Said()
        self._all = _quota(self._default)
        self._quotas: dict[str, Amounts | None] = {}
        self._rates: dict[str, int] = {}
        self.on_change: list[Callable[[], None]] = []
        if registry is not None:
            registry.follow(TABLE, self._told)

    def quota(self, project: str) -> Amounts | None:
        """How much a project may have; None where nothing is limited."""
        return self._quotas.get(project, self._all)

    def rate(self, project: str) -> int:
        """How many requests a second it may make; 0 where that is not limited."""
        return self._rates.get(project, self._default.requests or 0)

    @property
    def any_rate(self) -> bool:
        """Whether any project's requests are limited."""
        return bool(self._default.requests or any(self._rates.values()))

    def _told(self, table: Mapping[str, bytes]) -> None:
        quotas, rates = {}, {}
        for project, doc in table.items():
            try:
                said = joined(msgspec.json.decode(doc, type=Said), self._default)
            except msgspec.MsgspecError as error:
                # A later version's, or damaged: what is said of all is better than no limit.
                log.error("the quotas of a project cannot be read", project=project, why=str(error))
                continue
            quotas[project], rates[project] = _quota(said), said.requests or 0
        self._quotas, self._rates = quotas, rates
        for changed in self.on_change:
            changed()


def _quota(said: Said) -> Amounts | None:
    amounts = Amounts(
        *(n or NO_LIMIT for n in (said.queues, said.messages, said.bytes, said.subscriptions))
    )
    return None if all(n == NO_LIMIT for n in amounts) else amounts
