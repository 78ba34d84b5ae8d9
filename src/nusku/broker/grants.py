"""Grants: who else may post to, claim from or read a queue or topic, by the key ``_grants`` of its
metadata.

A grant adds to what the policy allows and never takes away. It holds for single operations, on a
queue that is named: whoever enters by one gets a context for that and for nothing else.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from nusku.broker.operation import permit
from nusku.errors import Forbidden, Invalid
from nusku.model import PROJECT_MAX, Context, Granted, QueueKey

KEY = "_grants"
GRANTS_MAX = 100
NAME_MAX = 256  # characters of a project, user or role
_NOBODY: frozenset[str] = frozenset()

_STATS = {"queues:stats", "topics:stats"}
# What can be granted. Taking a message off a queue shows it, and whoever may claim all of them may
# as well delete them; what comes of either can be seen in the statistics.
Right = Literal["post", "claim", "read"]
RIGHTS: Mapping[Right, frozenset[str]] = {
    "post": frozenset({"messages:create"}),
    "claim": frozenset(
        {
            *(f"claims:{verb}" for verb in ("create", "get", "update", "delete")),
            *(f"messages:{verb}" for verb in ("get", "delete", "delete_all")),
            *_STATS,
        }
    ),
    "read": frozenset({"messages:get_all", "messages:get", *_STATS}),
}


_Name = Annotated[str, Meta(min_length=1, max_length=NAME_MAX)] | UnsetType


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may do what. A name that is missing is anybody's, but a project that is missing is the
    queue's own: users and roles of others are not known by their names alone.
    """

    may: Annotated[tuple[Right, ...], Meta(min_length=1)]
    project: _Name = UNSET
    user: _Name = UNSET
    role: _Name = UNSET

    def covers(self, ctx: Context, action: str, owner: str) -> bool:
        """Whether it lets the caller do that to a queue of the project ``owner``."""
        return (
            ctx.project == (owner if self.project is UNSET else self.project)
            and self.user in {UNSET, ctx.user}
            and (self.role is UNSET or self.role.lower() in map(str.lower, ctx.roles))
            and any(action in RIGHTS[right] for right in self.may)
        )


def read(metadata: Mapping[str, Any]) -> list[Grant]:
    """The grants in the metadata of a queue or topic. Raises Invalid."""
    given = metadata.get(KEY)
    if given is None:
        return []
    try:
        grants: list[Grant] = msgspec.convert(
            given, Annotated[list[Grant], Meta(max_length=GRANTS_MAX)]
        )
    except msgspec.ValidationError as error:
        raise Invalid(f"{KEY} must be a list of grants: {error}.") from None
    if any(grant.project is grant.user is grant.role is UNSET for grant in grants):
        raise Invalid(f"{KEY}: each grant names a project, a user or a role.")
    return grants


def _stored(metadata: Mapping[str, Any]) -> list[Grant]:
    """Those in metadata that may be older than the rules for grants."""
    try:
        return read(metadata)
    except Invalid:
        return []


def give(ctx: Context, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise Forbidden unless the caller may make the grants that the new metadata adds.

    That takes leave to share the queue, as pre-signed URLs do, and nobody gives what the policy
    does not let them do themselves.
    """
    known = _stored(before)
    added = [grant for grant in read(after) if grant not in known]
    if added:
        permit(ctx, "queues:share")
    for right in {right for grant in added for right in grant.may}:
        for action in RIGHTS[right]:
            permit(ctx, action)


class Grants:
    """Lets in by grants. ``metadata`` reads that of a queue as it is stored now, {} for none."""

    def __init__(self, metadata: Callable[[QueueKey], Awaitable[Mapping[str, Any]]]) -> None:
        self._metadata = metadata

    async def enter(
        self, ctx: Context, action: str, key: QueueKey | None, owner: str = ""
    ) -> Context:
        """The context in which the caller may do this: their own if the policy allows it, else one
        by a grant. Raises Forbidden, also where there is no such queue.

        Args:
            ctx: who asks, in their own project.
            action: the operation.
            key: the queue or topic that it is on, in that project; None if it is not on one.
            owner: whose queue it is instead, if it is another project's.
        """
        if owner in {"", ctx.project}:
            if key is None or permit.policy(ctx, action):
                permit(ctx, action)
                return ctx
        elif key is not None:
            key = key._replace(project=owner)
        if key is not None and await self._covered(ctx, action, key):
            granted = Granted(action, key, ctx.project)
            return msgspec.structs.replace(ctx, project=key.project, roles=_NOBODY, grant=granted)
        raise Forbidden(f"Neither the policy nor a grant allows you {action}.")

    async def _covered(self, ctx: Context, action: str, key: QueueKey) -> bool:
        if ctx.caller is not None and ctx.caller.scheme == "signature":
            return False  # it was given for what is in it, not for what is granted to its project
        if len(key.project) > PROJECT_MAX:
            return False
        grants = _stored(await self._metadata(key))
        return any(grant.covers(ctx, action, key.project) for grant in grants)
