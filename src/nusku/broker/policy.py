"""The policy file: other rules than the defaults for who may do what, in the language of oslo.policy.

Rules are asked about the caller and an empty target (contract semantics.md section 8). What is
decided for a caller is remembered until the file changes.
"""

import asyncio
import difflib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from nusku.broker.operation import OPERATIONS, by_roles, permit
from nusku.config import ConfigError, Settings
from nusku.model import Context

log = structlog.get_logger("nusku.policy")

LOOK_S = 1.0  # between two looks whether the file has changed
FILE_BYTES_MAX = 1_048_576
REMEMBERED_MAX = 10_000
SHOWN_MAX = 80
ADMIN_RULE = "context_is_admin"
# Rules that others may refer to. The second cannot hold, as there is no target; some files name it.
HELPERS = {
    ADMIN_RULE: "role:admin",
    "admin_or_owner": "is_admin:True or project_id:%(project_id)s",
}


# What rules may ask of a caller, besides roles and is_admin.
_ATTRIBUTES = (
    "user_id",
    "project_id",
    "user_domain_id",
    "project_domain_id",
    "domain_id",
    "system_scope",
    "is_admin_project",
)
_REMOTE = frozenset({"http", "https"})
_NAMED = _REMOTE | {"rule"}  # kinds of checks that lead elsewhere


class Policy:
    """The rules of one version of the file, laid over the defaults."""

    def __init__(self, data: bytes) -> None:
        """``data`` is what is in the file.

        Raises ConfigError with everything that is wrong with it, ImportError without the library.
        """
        from oslo_config import cfg
        from oslo_policy import policy as oslo

        # What is not understood is said by us, once; each decision is not worth a line.
        logging.getLogger("oslo_policy").setLevel(logging.CRITICAL)
        given = _read(data)
        defaults = {name: f"role:{role}" if role else "" for name, role in OPERATIONS.items()}
        rules = oslo.Rules.from_dict({**HELPERS, **defaults, **given})
        # Of its configuration nothing is used, and no file is read by it.
        self._enforcer = oslo.Enforcer(cfg.ConfigOpts(), use_conf=False, rules=rules)
        if problems := [*_problems(given, self._enforcer)]:
            raise ConfigError(problems)
        self._remembered: dict[tuple[Any, ...], bool] = {}

    def __call__(self, ctx: Context, action: str) -> bool:
        """Whether the rule of an operation lets the caller do it."""
        asked = (action, ctx.roles, *_known(ctx))
        decided = self._remembered.get(asked)
        if decided is None:
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            decided = self._remembered[asked] = self._decide(ctx, action)
        return decided

    def _decide(self, ctx: Context, action: str) -> bool:
        told = zip(_ATTRIBUTES, _known(ctx), strict=True)
        # What nobody knows is no empty text, for which a rule could ask.
        somebody: dict[str, Any] = {name: value for name, value in told if value != ""}
        somebody |= {"roles": sorted(filter(None, ctx.roles)), "is_admin": False}
        somebody["is_admin"] = bool(self._enforcer.enforce(ADMIN_RULE, {}, somebody))
        return bool(self._enforcer.enforce(action, {}, somebody))


def _known(ctx: Context) -> tuple[str | bool, ...]:
    """What is known of a caller, in the order of _ATTRIBUTES."""
    caller = ctx.caller
    if caller is None:
        return (ctx.user, ctx.project, "", "", "", "", False)
    return (
        ctx.user,
        ctx.project,
        caller.user_domain,
        caller.project_domain,
        caller.domain,
        caller.system,
        caller.is_admin_project,
    )


def _read(data: bytes) -> dict[str, str]:
    """The rules in the file, by name. Raises ConfigError."""
    from oslo_policy import policy as oslo

    if len(data) > FILE_BYTES_MAX:
        raise ConfigError([f"it is larger than {FILE_BYTES_MAX} bytes"])
    try:
        given: Any = oslo.parse_file_contents(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError([f"it is not UTF-8 text (byte {error.start})"]) from None
    except ValueError as error:
        raise ConfigError([f"it is not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(given, dict) or not all(
        isinstance(part, str) for pair in given.items() for part in pair
    ):
        raise ConfigError(['it must have lines of the form "name": "rule"'])
    return dict(given)


def _problems(given: dict[str, str], enforcer: Any) -> Iterator[str]:
    """What is wrong with the rules of a file, which the library would say at each request, or make a
    refusal of.
    """
    rules = enforcer.rules
    for name, text in given.items():
        if ":" in name and name not in OPERATIONS:
            near = difflib.get_close_matches(name, OPERATIONS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"there is no operation {name!r}{hint}"
        checks = [*_checks(rules[name])]
        kinds = [getattr(check, "kind", "") for check in checks]
        # In the place of what it does not understand the library puts a check that always fails.
        never = sum(type(check).__name__ == "FalseCheck" for check in checks)
        if never != text.replace("(", " ").replace(")", " ").split().count("!") or not all(
            _works(check, enforcer) for check in checks if getattr(check, "kind", "") not in _NAMED
        ):
            yield f"the rule of {name!r} cannot be understood: {text[:SHOWN_MAX]}"
        if not _REMOTE.isdisjoint(kinds):
            yield f"the rule of {name!r} asks another server, which is not done here"
        for check in checks:
            if getattr(check, "kind", "") == "rule" and check.match not in rules:
                yield f"the rule of {name!r} refers to {check.match!r}, which there is not"
        if _returns(name, rules, ()):
            yield f"the rule of {name!r} refers to itself"


def _works(check: Any, enforcer: Any) -> bool:
    """Whether a check gives an answer for somebody of whom everything is known."""
    somebody = {**dict.fromkeys(_ATTRIBUTES, "a"), "roles": ["a"], "is_admin": False}
    try:
        check({}, somebody, enforcer, None)
    except Exception:  # noqa: BLE001 - it may hold an expression of Python, and so raise anything
        return False
    return True


def _checks(check: Any) -> Iterator[Any]:
    """The parts of a rule that are joined by and, or and not."""
    parts = [*getattr(check, "rules", ())]
    if hasattr(check, "rule"):
        parts.append(check.rule)
    if not parts:
        yield check
    for part in parts:
        yield from _checks(part)


def _returns(name: str, rules: dict[str, Any], way: tuple[str, ...]) -> bool:
    """Whether following references from a rule leads to one that was on the way."""
    if name in way:
        return True
    return any(
        _returns(check.match, rules, (*way, name))
        for check in _checks(rules[name])
        if getattr(check, "kind", "") == "rule" and check.match in rules
    )


def load(path: str) -> Policy:
    """The policy in a file. Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            return Policy(file.read(FILE_BYTES_MAX + 1))
    except OSError as error:
        problems = [f"it cannot be read: {error.strerror}"]
    except ImportError as error:
        problems = [f"it takes the library {error.name}: install nusku[policy]"]
    except RecursionError:
        problems = ["it is nested too deeply"]
    except ConfigError as error:
        problems = [*error.problems]
    raise ConfigError(f"policy file {path}: {problem}" for problem in problems)


def check(settings: Settings) -> None:
    """Raise ConfigError if there is a policy file that cannot be used."""
    if settings.policy_file:
        load(settings.policy_file)


@asynccontextmanager
async def kept(settings: Settings) -> AsyncIterator[None]:
    """Ask the rules of the policy file meanwhile, if there is one, as it is from time to time.

    Raises ConfigError if it cannot be used at the start. Later ones that cannot are told in the log,
    and the rules stay as they were.
    """
    if not settings.policy_file:
        yield
        return
    path = settings.policy_file
    state = _state(path)
    permit.policy = load(path)
    watch = asyncio.create_task(_watch(path, state))
    try:
        yield
    finally:
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        permit.policy = by_roles


async def _watch(path: str, read: tuple[int, ...]) -> None:
    """Read the file again when it has changed and then stayed the same from one look to the next,
    so that one which is just being written is not taken for less than it will be.
    """
    seen = read
    while True:
        await asyncio.sleep(LOOK_S)
        before, seen = seen, _state(path)
        if seen == read or seen != before:
            continue
        read = seen
        try:
            permit.policy = await asyncio.to_thread(load, path)
        except ConfigError as error:
            log.error(
                "the policy file is not used; the rules stay as they are",
                reason="; ".join(error.problems),
            )
        else:
            log.info("the policy file was read again")


def _state(path: str) -> tuple[int, ...]:
    """What changes when the file does; empty when it is not there."""
    try:
        found = Path(path).stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)
