"""Subscriptions: who is told of what is posted to a queue or topic, and how that goes."""

import base64
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import msgspec

from nusku.addresses import Addresses
from nusku.broker import subscribers
from nusku.broker.amounts import Amounts
from nusku.broker.confirmations import Confirmations, unsigned
from nusku.broker.deliveries import Deliveries, Parcel, Recipient, delivery_key, progress_of
from nusku.broker.ids import SubscriptionIds, is_subscription_id
from nusku.broker.journal import Attempt, Journal
from nusku.broker.notices import Notices
from nusku.broker.operation import operation
from nusku.broker.queues import SUBSCRIPTION, Queues, subscriptions_of
from nusku.broker.quotas import Quotas
from nusku.config import Settings
from nusku.errors import Conflict, Invalid, NotFound, Unavailable
from nusku.model import Context, QueueKey, Record
from nusku.storage import RecordStore, Taken

ATTEMPTS = 10  # times that a change by somebody else in the meantime is put up with
SECRET_BYTES = 32
PURGED_AT_ONCE = 100


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored of a subscription. ``paused`` says why, if it is.

    ``since_ms``: when it was confirmed, where that is required; posts before are not told.
    ``live``: the subscriber is connected to a node, which tells it by itself (``listening.py``).
    """

    subscriber: str
    ttl_s: int
    options: dict[str, Any] = {}
    confirmed: bool = False
    since_ms: int = 0
    secrets: tuple[str, ...] = ()
    paused: str = ""
    live: bool = False

    def __repr__(self) -> str:
        """Without secrets."""
        return f"Document(confirmed={self.confirmed}, paused={self.paused!r})"


class Subscription(msgspec.Struct, frozen=True):
    """A subscription as it is shown; without its secrets."""

    id: str
    key: QueueKey
    subscriber: str
    ttl_s: int
    options: dict[str, Any]
    confirmed: bool
    age_s: int


class Created(msgspec.Struct, frozen=True):
    """``signing_secret`` is there if one was made; it is not shown again. ``again``: the subscription
    was there, and its subscriber was asked again whether it is wanted.
    """

    id: str
    signing_secret: str | None = None
    again: bool = False


class Status(msgspec.Struct, frozen=True):
    """How the deliveries of a subscription go; attempts newest first."""

    state: str
    reason: str
    pending: int
    failed: int
    delivered: int
    oldest_pending_age_s: int | None
    attempts: list[Attempt]


class Failed(msgspec.Struct, frozen=True):
    """A delivery that was given up. ``age_s`` counts from the post."""

    id: str
    age_s: int
    attempts: int
    reason: str
    body: bytes


class Trusts(Protocol):
    """Leave to act for a user later. Both raise Unavailable."""

    async def create(
        self, token: str, user_id: str, project_id: str, roles: Sequence[str], expires_in_s: int
    ) -> str: ...

    async def check(self, trust_id: str, user_id: str, project_id: str) -> bool: ...


class Subscriptions:
    """What can be done with the subscriptions of queues and topics."""

    def __init__(
        self,
        records: RecordStore,
        queues: Queues,
        notices: Notices,
        deliveries: Deliveries,
        journal: Journal,
        confirmations: Confirmations,
        trusts: Trusts,
        addresses: Addresses,
        quotas: Quotas,
        settings: Settings,
        ids: SubscriptionIds,
        now: Callable[[], float],
    ) -> None:
        self._records = records
        self._queues = queues
        self._notices = notices
        self._deliveries = deliveries
        self._journal = journal
        self._confirmations = confirmations
        self._trusts = trusts
        self._addresses = addresses
        self._quotas = quotas
        self._settings = settings
        self._ids = ids
        self._now = now
        # How to make an attempt at once; the notifier says so when it starts.
        self.attempt: Callable[[Recipient, Parcel], Awaitable[Attempt]] | None = None

    @operation("subscription:create")
    async def create(
        self, ctx: Context, key: QueueKey, document: Mapping[str, Any], *, live: bool = False
    ) -> Created:
        """Subscribe, creating a missing queue even if the rest is refused.

        One that is there for the same subscriber and not confirmed is asked again, and stays as
        it is. Nobody is asked about a ``live`` one, which is there for whoever makes it.

        Raises Invalid, Conflict (there, and confirmed), QuotaExceeded, Unavailable (no trust was
        made).
        """
        await self._queues.ensure(key)
        wanted = subscribers.parse(document, self._settings, self._addresses, live=live)
        name = unique_name(key, wanted.subscriber)
        for _ in range(ATTEMPTS):
            found = await self._records.find(SUBSCRIPTION, key.project, name)
            if found is not None:
                there = _document(found)
                if there.confirmed:
                    raise Conflict(f"{wanted.subscriber} has subscribed to {key.name} already.")
                # Whoever made it may have died before it told the queue.
                await self._queues.touch(key)
                await self._confirmations.subscribed(
                    key, found.key, wanted.subscriber, wanted.ttl_s
                )
                return Created(found.key, again=True)
            made, secrets_ = _secrets(wanted.signing, ())
            options = await self._trusted(ctx, wanted.subscriber, wanted.options, wanted.ttl_s)
            new = Document(
                wanted.subscriber, wanted.ttl_s, options, live, secrets=secrets_, live=live
            )
            id_ = self._ids.new(int(self._now() * 1000))
            record = Record(
                SUBSCRIPTION, key.project, id_, msgspec.json.encode(new),
                parent=subscriptions_of(key), unique=name,
            )  # fmt: skip
            insert = partial(self._records.insert, record, wanted.ttl_s)
            if await self._quotas.within(key.project, Amounts(subscriptions=1), insert):
                if not live:
                    await self._queues.touch(key)
                    await self._confirmations.subscribed(key, id_, wanted.subscriber, wanted.ttl_s)
                return Created(id_, made)
        raise Unavailable("The subscription is being changed.")

    async def _trusted(
        self, ctx: Context, subscriber: str, options: dict[str, Any], ttl_s: int
    ) -> dict[str, Any]:
        """The options with a trust in them, where the subscriber takes one."""
        if not subscribers.scheme(subscriber).startswith("trust+"):
            return options
        if not (ctx.user and ctx.token):
            raise Invalid("A trust+ subscriber takes a user who is logged in.")
        given = options.get("trust_id")
        if given is None:
            made = await self._trusts.create(
                ctx.token, ctx.user, ctx.project, sorted(ctx.roles), ttl_s
            )
            return {**options, "trust_id": made}
        if not await self._trusts.check(given, ctx.user, ctx.project):
            raise Invalid("trust_id is no trust of this user and project.")
        return options

    @operation("subscription:get_all")
    async def page(
        self, ctx: Context, key: QueueKey, marker: str, limit: int
    ) -> list[Subscription]:
        """Up to ``limit`` behind the marker, oldest first; none behind what is no marker."""
        if marker and not is_subscription_id(marker):
            return []
        records = await self._records.page(
            SUBSCRIPTION, key.project, marker, limit, parent=subscriptions_of(key)
        )
        return [_shown(key, record) for record in records]

    @operation("subscription:get")
    async def get(self, ctx: Context, key: QueueKey, id_: str) -> Subscription:
        """One subscription. Raises NotFound."""
        return _shown(key, await self._get(key, id_))

    async def _get(self, key: QueueKey, id_: str, *, ended: bool = False) -> Record:
        record = await self._records.get(SUBSCRIPTION, key.project, id_, ended=ended)
        if record is None or record.parent != subscriptions_of(key):
            raise _unknown(key, id_)
        return record

    @operation("subscription:update")
    async def update(
        self, ctx: Context, key: QueueKey, id_: str, document: Mapping[str, Any]
    ) -> None:
        """Change subscriber, ttl (its life starts anew) or options (all of them).

        Another subscriber has to confirm for itself. Raises Invalid, NotFound, Conflict.
        """
        changes = subscribers.changes(document, self._settings, self._addresses)

        async def change(record: Record, old: Document) -> Document:  # noqa: ARG001
            new = old
            if changes.subscriber is not None and changes.subscriber != old.subscriber:
                new = msgspec.structs.replace(
                    new, subscriber=changes.subscriber, paused="", live=False
                )
                if self._settings.require_confirmation:
                    new = msgspec.structs.replace(new, confirmed=False, since_ms=0)
            if changes.ttl_s is not None:
                new = msgspec.structs.replace(new, ttl_s=changes.ttl_s)
            if changes.options is not None:
                options = changes.options
                if "trust_id" in old.options:
                    options = {"trust_id": old.options["trust_id"], **options}
                if changes.signing is True and not old.secrets:
                    raise Invalid("_signing: there is no secret yet; POST to …/secret makes one.")
                _, secrets_ = _secrets(changes.signing, old.secrets)
                new = msgspec.structs.replace(new, options=options, secrets=secrets_)
            if new.subscriber != old.subscriber or changes.options is not None:
                # What is sent under a trust is for its owner to say.
                trusted = await self._trusted(ctx, new.subscriber, new.options, new.ttl_s)
                new = msgspec.structs.replace(new, options=trusted)
            return new

        old, new = await self._change(key, id_, change, changes.ttl_s)
        if old.live and not new.live:
            await self._queues.touch(key)
        if new.subscriber != old.subscriber:
            await self._confirmations.subscribed(key, id_, new.subscriber, new.ttl_s)

    async def _change(
        self,
        key: QueueKey,
        id_: str,
        change: Callable[[Record, Document], Awaitable[Document]],
        ttl_s: int | None = None,
    ) -> tuple[Document, Document]:
        """Replace what is stored; return it as it was and as it is. Raises NotFound, Conflict."""
        for _ in range(ATTEMPTS):
            record = await self._get(key, id_)
            old = _document(record)
            new = await change(record, old)
            try:
                updated = await self._records.update(
                    msgspec.structs.replace(
                        record,
                        doc=msgspec.json.encode(new),
                        version=record.version + 1,
                        unique=unique_name(key, new.subscriber),
                    ),
                    ttl_s,
                )
            except Taken:
                raise Conflict(f"{new.subscriber} has a subscription of its own.") from None
            if updated:
                self._deliveries.changed(delivery_key(key.project, id_))
                return old, new
        raise Unavailable("The subscription is being changed.")

    @operation("subscription:delete")
    async def delete(self, ctx: Context, key: QueueKey, id_: str) -> None:
        """End it, and drop what it was still to be told; nothing happens when there is none."""
        record = await self.record(key.project, id_)
        if record is not None and record.parent == subscriptions_of(key):
            await self._delete(key, id_)
            await self._queues.touch(key)

    async def _delete(self, key: QueueKey, id_: str) -> None:
        await self._records.delete(SUBSCRIPTION, key.project, id_)
        self._deliveries.changed(delivery_key(key.project, id_))
        await self._deliveries.forget(key.project, id_)
        await self._journal.forget(key.project, id_)

    async def hang_up(self, key: QueueKey, id_: str) -> None:
        """End a live one, since whoever subscribed is not connected any more."""
        record = await self.record(key.project, id_)
        if record is not None and is_live(record):
            await self._delete(key, id_)

    async def clear(self, key: QueueKey) -> None:
        """Delete all subscriptions of a queue or topic."""
        while records := await self.of_queue(key, "", PURGED_AT_ONCE):
            for record in records:
                await self._delete(key, record.key)
        await self._queues.touch(key)

    @operation("subscription:confirm")
    async def confirm(self, ctx: Context, key: QueueKey, id_: str, confirmed: bool) -> None:
        """The subscriber agrees, or does not any more. Raises NotFound."""

        async def change(record: Record, old: Document) -> Document:
            since_ms = old.since_ms if old.confirmed else record.read_ms
            return msgspec.structs.replace(old, confirmed=confirmed, since_ms=since_ms)

        old, _ = await self._change(key, id_, change)
        if old.confirmed and not confirmed:
            await self._confirmations.unsubscribed(key, id_, old.subscriber)

    # To see and repair

    # One that has ended can be looked at as long as there is anything to see.

    @operation("subscription:get")
    async def status(self, ctx: Context, key: QueueKey, id_: str) -> Status:
        """How its deliveries go. Raises NotFound."""
        record = await self._get(key, id_, ended=True)
        document = _document(record)
        pending, failed, age_s = await self._deliveries.counts(key.project, id_)
        if _over(record) and not (pending or failed):
            raise _unknown(key, id_)
        history = await self._journal.read(key.project, id_)
        state = "paused" if document.paused else "active"
        return Status(
            state, document.paused, pending, failed, history.delivered, age_s, history.attempts
        )

    @operation("subscription:update")
    async def pause(self, ctx: Context, key: QueueKey, id_: str) -> None:
        """Send nothing until resumed; what is posted meanwhile waits. Raises NotFound."""
        await self._pause(key, id_, "requested")

    @operation("subscription:update")
    async def resume(self, ctx: Context, key: QueueKey, id_: str) -> None:
        """Go on sending, what waits first. Raises NotFound."""
        await self._pause(key, id_, "")

    async def _pause(self, key: QueueKey, id_: str, why: str) -> None:
        async def change(_: Record, old: Document) -> Document:
            return msgspec.structs.replace(old, paused=why)

        await self._change(key, id_, change)

    @operation("subscription:get")
    async def failed(
        self, ctx: Context, key: QueueKey, id_: str, marker: str, limit: int
    ) -> list[Failed]:
        """What was given up and is kept, oldest first. Raises NotFound."""
        await self._get(key, id_, ended=True)
        after = _position(id_, marker) if marker else 0
        if after is None:
            return []
        found = await self._deliveries.failed(key.project, id_, after, limit)
        shown = []
        for message in found.messages:
            progress = progress_of(message)
            age_s = max(found.now_ms - progress.posted_ms, 0) // 1000
            name = _failed_id(id_, message.position)
            body = message.body
            if progress.kind == "confirmation":
                body = unsigned(body)  # the signature is for the subscriber alone
            shown.append(Failed(name, age_s, progress.attempts, progress.reason, body))
        return shown

    @operation("subscription:update")
    async def replay(self, ctx: Context, key: QueueKey, id_: str, ids: Sequence[str] | None) -> int:
        """Try given-up deliveries anew, all or these; say how many there were. Raises NotFound."""
        await self._get(key, id_, ended=True)
        positions = None if ids is None else [p for i in ids if (p := _position(id_, i))]
        return await self._deliveries.replay(key.project, id_, positions)

    @operation("subscription:update")
    async def ping(self, ctx: Context, key: QueueKey, id_: str) -> Attempt:
        """Send a test document now, once. Raises NotFound, Conflict (not confirmed)."""
        record = await self._get(key, id_)
        document = _document(record)
        if self._settings.require_confirmation and not document.confirmed:
            raise Conflict("The subscriber has not confirmed the subscription.")
        if self.attempt is None:
            raise Unavailable("Nothing is sent at the moment.")
        now_ms = int(self._now() * 1000)
        body = {
            "ttl": self._settings.default_message_ttl,
            "body": {"ping": f"A test of subscription {id_}."},
            "queue_name": key.name,
            "Message_Type": "Notification",
        }
        parcel = Parcel(f"{now_ms:x}-p", "ping", msgspec.json.encode(body), now_ms)
        return await self.attempt(recipient(record), parcel)

    @operation("subscription:update")
    async def rotate(self, ctx: Context, key: QueueKey, id_: str) -> str:
        """A new signing secret; the newest before it goes on to count. Raises NotFound."""
        made = new_secret()

        async def change(_: Record, old: Document) -> Document:
            return msgspec.structs.replace(
                old, secrets=(made, *old.secrets)[: subscribers.SECRETS_MAX]
            )

        await self._change(key, id_, change)
        return made

    # For the notifier

    async def of_queue(self, key: QueueKey, after: str, limit: int) -> list[Record]:
        """A page of the queue's subscriptions, those too that have ended since a post."""
        return await self._records.page(
            SUBSCRIPTION, key.project, after, limit, parent=subscriptions_of(key), ended=True
        )

    async def record(self, project: str, id_: str) -> Record | None:
        """A subscription, also one that has ended."""
        return await self._records.get(SUBSCRIPTION, project, id_, ended=True)

    async def pause_gone(self, recipient: Recipient) -> None:
        """The subscriber says that it is no more; unless it is another one by now."""

        async def change(_: Record, old: Document) -> Document:
            same = old.subscriber == recipient.subscriber
            return msgspec.structs.replace(old, paused="gone") if same else old

        with suppress(NotFound):
            await self._change(recipient.key, recipient.id, change)

    async def sweep(self, after: tuple[int, str], limit: int) -> tuple[int, str] | None:
        """Housekeeping: forget ended subscriptions that have nothing pending or failed. Nobody can
        resume paused ones, so what they were still to be told is given up.

        Returns where to go on, None at the end.
        """
        records = await self._records.ended(SUBSCRIPTION, after, limit)
        unspread_ms = await self._notices.survey() if records else 0
        for record in records:
            if (record.ends_ms or 0) > unspread_ms:
                continue  # it may have to be told of what is not spread yet
            pending, failed, _ = await self._deliveries.counts(record.project, record.key)
            if pending and paused(record):
                await self._deliveries.abandon(
                    record.project, record.key, self._settings.delivery_keep
                )
            elif not (pending or failed):
                await self._delete(key_of(record), record.key)
        if len(records) < limit:
            return None
        last = records[-1]
        return (last.ends_ms or 0, last.key)

    async def drop_orphans(self) -> None:
        """Housekeeping: forget what was given up for subscriptions that are no more."""
        for queue in await self._deliveries.occupied(failed=True):
            if await self.record(queue.key.project, queue.key.name) is None:
                await self._deliveries.forget(queue.key.project, queue.key.name)


def _unknown(key: QueueKey, id_: str) -> NotFound:
    return NotFound(f"There is no subscription {id_} of {key.kind} {key.name}.")


def _over(record: Record) -> bool:
    return record.ends_ms is not None and record.ends_ms <= record.read_ms


def new_secret() -> str:
    """As the Standard Webhooks specification writes them."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()}"


def _secrets(
    signing: bool | tuple[str, ...] | None, old: tuple[str, ...]
) -> tuple[str | None, tuple[str, ...]]:
    """The secrets that there will be, and the first of them if it was made here."""
    if signing is True:
        if old:
            return None, old
        made = new_secret()
        return made, (made,)
    return None, signing or ()


def _document(record: Record) -> Document:
    return msgspec.json.decode(record.doc, type=Document)


def key_of(record: Record) -> QueueKey:
    """The queue or topic of a subscription's record."""
    kind, _, name = record.parent.partition("/")
    return QueueKey("topic" if kind == "topic" else "queue", record.project, name)


def recipient(record: Record) -> Recipient:
    """Whom a subscription tells."""
    d = _document(record)
    return Recipient(record.key, key_of(record), d.subscriber, d.options, d.secrets)


def paused(record: Record) -> bool:
    """Whether nothing is to be sent."""
    return bool(_document(record).paused)


def is_live(record: Record) -> bool:
    """Whether a node tells the subscriber by itself, without deliveries."""
    return _document(record).live


def agreed(record: Record) -> bool:
    """Whether the subscriber has confirmed the subscription."""
    return _document(record).confirmed


def recipient_since_ms(record: Record, *, confirmation: bool) -> int | None:
    """When a subscription began to be told, None if it has not yet."""
    if not confirmation:
        return record.created_ms
    document = _document(record)
    return max(record.created_ms, document.since_ms) if document.confirmed else None


def _shown(key: QueueKey, record: Record) -> Subscription:
    d = _document(record)
    options = {**d.options, "_signing": True} if d.secrets else d.options
    age_s = max(record.read_ms - record.created_ms, 0) // 1000
    return Subscription(record.key, key, d.subscriber, d.ttl_s, options, d.confirmed, age_s)


def unique_name(key: QueueKey, subscriber: str) -> str:
    """By which no two subscriptions of a project may go."""
    return f"{subscriptions_of(key)}/{subscriber}"


def _failed_id(subscription: str, position: int) -> str:
    """Positions are those of one subscription, and ids are to be unknown to all others."""
    return f"{subscription}-{position:x}"


def _position(subscription: str, failed_id: str) -> int | None:
    try:
        position = int(failed_id.rpartition("-")[2], 16)
    except ValueError:
        return None
    return position if position > 0 and _failed_id(subscription, position) == failed_id else None
