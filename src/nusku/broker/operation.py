"""Who may do what: every way into the broker passes here."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from nusku.errors import Forbidden
from nusku.model import Context, QueueKey

P = ParamSpec("P")
R = TypeVar("R")

ANYONE = ""
ADMIN = "admin"

# The default rules (contract semantics.md section 8): the role that an operation takes.
OPERATIONS: dict[str, str] = {
    **{
        f"{kind}:{verb}": ANYONE
        for kind in ("queues", "topics")
        for verb in ("get_all", "create", "get", "update", "delete", "stats", "purge")
    },
    **{f"messages:{v}": ANYONE for v in ("get_all", "create", "get", "delete", "delete_all")},
    **{f"claims:{v}": ANYONE for v in ("create", "get", "update", "delete")},
    "queues:share": ANYONE,
    **{
        f"subscription:{v}": ANYONE
        for v in ("get_all", "create", "get", "update", "delete", "confirm")
    },
    **{f"pools:{v}": ADMIN for v in ("get_all", "create", "get", "update", "delete")},
    **{f"flavors:{v}": ANYONE for v in ("get_all", "get")},
    **{f"flavors:{v}": ADMIN for v in ("create", "update", "delete")},
    "ping:get": ANYONE,
    "health:get": ADMIN,
}


def permit(ctx: Context, action: str) -> None:
    """Raise Forbidden unless the caller's roles allow the operation."""
    role = OPERATIONS[action]
    if role and role not in ctx.roles:
        raise Forbidden(f"{action} takes the role {role!r}.")


def operation(
    action: str,
) -> Callable[
    [Callable[Concatenate[Any, Context, P], Awaitable[R]]],
    Callable[Concatenate[Any, Context, P], Awaitable[R]],
]:
    """Guard a method of the broker. An action on ``*`` is on ``queues`` or ``topics``, as the
    key that follows the context says.
    """
    named = {kind: action.replace("*", f"{kind}s") for kind in ("queue", "topic")}
    for name in named.values():
        OPERATIONS[name]

    def guard(
        method: Callable[Concatenate[Any, Context, P], Awaitable[R]],
    ) -> Callable[Concatenate[Any, Context, P], Awaitable[R]]:
        @wraps(method)
        def guarded(self: Any, ctx: Context, /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
            subject = args[0] if args else None
            kind = subject.kind if isinstance(subject, QueueKey) else subject
            permit(ctx, named["topic" if kind == "topic" else "queue"])
            return method(self, ctx, *args, **kwargs)

        return cast(Callable[Concatenate[Any, Context, P], Awaitable[R]], guarded)

    return guard
