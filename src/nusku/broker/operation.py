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


def by_roles(ctx: Context, action: str) -> bool:
    """The policy as it is where no file says otherwise: OPERATIONS."""
    role = OPERATIONS[action]
    # Whatever their case, as oslo.policy compares them.
    return not role or role in ctx.roles or role in map(str.lower, ctx.roles)


class Permit:
    """The one question that stands before every operation: may they do that?

    ``policy`` answers it for whoever acts in the project of their own. There is one for the process,
    as there is one set of settings.
    """

    def __init__(self) -> None:
        self.policy: Callable[[Context, str], bool] = by_roles

    def __call__(self, ctx: Context, action: str, key: QueueKey | None = None) -> None:
        """Raise Forbidden unless the caller may do this, to this queue if the operation is on one.

        A context made by a grant (``grants.py``) is for what was granted and for nothing else.
        """
        if ctx.grant is not None:
            if ctx.grant.action != action or ctx.grant.key != key:
                raise Forbidden(f"{action} was not granted.")
        elif not self.policy(ctx, action):
            role = OPERATIONS[action] if self.policy is by_roles else ""
            raise Forbidden(
                f"{action} takes the role {role!r}."
                if role
                else f"The policy forbids you {action}."
            )


permit = Permit()


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
            if isinstance(subject, QueueKey):
                permit(ctx, named["topic" if subject.kind == "topic" else "queue"], subject)
            else:
                permit(ctx, named["topic" if subject == "topic" else "queue"])
            return method(self, ctx, *args, **kwargs)

        return cast(Callable[Concatenate[Any, Context, P], Awaitable[R]], guarded)

    return guard
