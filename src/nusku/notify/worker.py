"""Telling subscribers: what waits is claimed, sent, and removed, put off or given up."""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from nusku.broker import Attempt, Broker, retry, subscribers
from nusku.broker.deliveries import Delivery, Parcel, Progress, Recipient
from nusku.broker.subscriptions import agreed, paused, recipient
from nusku.config import Settings
from nusku.errors import NuskuError, QuotaExceeded
from nusku.metrics import Metrics
from nusku.model import QueueKey, Record
from nusku.notify.outcome import Outcome, Sender
from nusku.notify.pace import Pace
from nusku.notify.slots import FAST_S, Slot, Slots, Standing

log = structlog.get_logger("nusku.notify")

EACH = 4  # attempts at a time at one endpoint, from all workers together
AHEAD_MAX = 64  # deliveries claimed ahead for an endpoint that takes them fast
AHEAD_WITHIN_S = 0.5  # the time that it has to take what was claimed before
GATHER_S = 0.02  # for which removals are gathered; what a crash makes us send twice
CLAIM_SPARE_S = 15  # that a claim outlasts an attempt
NOTICES, NOTICES_CROWDED = 64, 2  # worked off at a time
MADE_A_TURN = 50  # deliveries, while it is crowded
LOOK_S = 5.0  # between two looks for notices that nobody told us of
SURVEY_S = 30.0  # between two looks for deliveries that nobody told us of
WRITE_S = 1.0  # between two writings of the journal
RECOVER_S = 1.0  # after the store failed
SWEPT_AT_ONCE = 100
WOKEN_AT_ONCE, WAKING_PAUSE_S = 100, 0.02
JOURNAL_PATIENCE_S = 2.0  # when the server stops

PESTERED = Outcome("refused", detail="The subscriber was asked often enough; replay it later.")
UNCONFIRMED = Outcome("refused", detail="The subscriber has not confirmed the subscription.")
UNREADABLE = Outcome("failed", "internal", detail="What was to be told cannot be decrypted.")


class Notifier:
    """Sends what waits on the queues of subscriptions, from the start to :meth:`stop`."""

    def __init__(
        self,
        broker: Broker,
        senders: Mapping[str, Sender],
        settings: Settings,
        metrics: Metrics,
        max_in_flight: int,
    ) -> None:
        self.broker = broker
        self.senders = senders
        self.metrics = metrics
        self.keep_s = settings.delivery_keep
        self.confirmation = settings.require_confirmation
        self.claim_s = math.ceil(settings.delivery_timeout) + CLAIM_SPARE_S
        self.slots = Slots(max_in_flight, max(EACH // settings.workers, 1))
        self.pace = Pace(lambda: (metrics.served, metrics.serving_s))
        self._spreading = Pace(lambda: (metrics.served, metrics.serving_s))
        self.stopping = False
        self.rng = random.Random()  # noqa: S311 - spreads retries
        self._noticed = asyncio.Event()
        self._pumps: dict[QueueKey, _Pump] = {}
        self._timers: dict[QueueKey, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._duties: list[asyncio.Task[None]] = []
        self._writing: asyncio.Future[None] | None = None
        self._pending, self._oldest_ms = 0, 0
        broker.notices.on_notice = self._noticed.set
        broker.deliveries.on_pending = self.wake
        broker.deliveries.on_changed = self.changed
        broker.subscriptions.attempt = self.ping
        metrics.gauge(
            "nusku_deliveries_pending",
            "Deliveries that wait or are under way, at the last survey.",
            lambda: self._pending,
        )
        metrics.gauge(
            "nusku_deliveries_oldest_seconds",
            "Age of the oldest delivery that waits, at the last survey; 0 if none does.",
            lambda: max(time.time() - self._oldest_ms / 1000, 0.0) if self._oldest_ms else 0.0,
        )
        metrics.gauge(
            "nusku_deliveries_in_flight", "Attempts under way.", lambda: self.slots.in_flight
        )

    def start(self) -> None:
        """Begin with what was left over from before."""
        duties = (self._spread(), self._survey(), self._write(), self._sweep())
        self._duties = [asyncio.create_task(duty) for duty in duties]

    async def stop(self, patience_s: float) -> None:
        """Finish the attempts under way, and put back what was not tried."""
        self.stopping = True
        for duty in self._duties:
            duty.cancel()
        for timer in self._timers.values():
            timer.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=patience_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1)
        await asyncio.gather(*self._duties, return_exceptions=True)
        try:
            async with asyncio.timeout(JOURNAL_PATIENCE_S):
                if self._writing is not None:
                    await asyncio.wait((self._writing,))
                await self.broker.journal.write()
        except (NuskuError, TimeoutError):
            log.warning("the last attempts are not in the journal")
        for sender in {id(sender): sender for sender in self.senders.values()}.values():
            await sender.close()

    # Duties

    async def _step(self, work: Awaitable[Any]) -> bool:
        """One step of a duty, and whether it was done; a store that is out of order is no reason
        to end the duty.
        """
        try:
            await work
            return True
        except NuskuError as error:
            log.warning("deliveries have to wait", reason=error.detail)
            await asyncio.sleep(RECOVER_S)
        except Exception as error:
            log.error("a duty of the notifier failed", exc_info=error)
            await asyncio.sleep(RECOVER_S)
        return False

    async def _spread(self) -> None:
        surveyed_s = -math.inf
        while True:
            now_s = asyncio.get_running_loop().time()
            if now_s - surveyed_s >= LOOK_S and await self._step(self.broker.notices.survey()):
                surveyed_s = now_s
            await self._step(self._spread_once())

    async def _spread_once(self) -> None:
        self._noticed.clear()
        await self._spreading.turn()  # not behind all who send
        limit = NOTICES_CROWDED if self._spreading.crowded else NOTICES
        notices, made = await self.broker.fanout.spread(limit)
        self.metrics.deliveries["queued"] += made
        for _ in range(made // MADE_A_TURN if self._spreading.crowded else 0):
            await self._spreading.turn()
        if not notices and not len(self.broker.notices):
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):  # wait_for may swallow that we are cancelled
                    await self._noticed.wait()

    async def _survey(self) -> None:
        while True:
            await self._step(self._survey_once())
            await asyncio.sleep(SURVEY_S)

    async def _survey_once(self) -> None:
        found = await self.broker.deliveries.occupied()
        self._pending = sum(one.messages for one in found)
        self._oldest_ms = min((one.oldest_ms for one in found), default=0)
        for at, one in enumerate(found, 1):
            if one.key not in self._timers:
                self.wake(one.key)
            if at % WOKEN_AT_ONCE == 0:
                await asyncio.sleep(WAKING_PAUSE_S)

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(WRITE_S)
            # Not broken off when the server stops, lest something be written twice.
            self._writing = asyncio.ensure_future(self.broker.journal.write())
            await self._step(asyncio.shield(self._writing))

    async def _sweep(self) -> None:
        await asyncio.sleep(SURVEY_S)
        while not await self._step(self.broker.subscriptions.drop_orphans()):
            pass
        while True:
            await self._step(self._sweep_once())
            await asyncio.sleep(SURVEY_S)

    async def _sweep_once(self) -> None:
        after: tuple[int, str] | None = (0, "")
        while after is not None:
            after = await self.broker.subscriptions.sweep(after, SWEPT_AT_ONCE)
        while await self.broker.journal.sweep(SWEPT_AT_ONCE):
            pass

    # Subscriptions

    def wake(self, key: QueueKey) -> None:
        """There may be something to send for this subscription."""
        if self.stopping:
            return
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        pump = self._pumps.get(key)
        if pump is not None:
            pump.again = True
            return
        self._pumps[key] = pump = _Pump(self, key)
        task = asyncio.create_task(self._run(pump))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def changed(self, key: QueueKey) -> None:
        """The subscription is not what it was: nothing more is sent as it used to be."""
        pump = self._pumps.get(key)
        if pump is not None:
            pump.changes += 1
        self.wake(key)

    def wake_in(self, key: QueueKey, seconds: float) -> None:
        """There is something to send then."""
        if self.stopping:
            return
        when = asyncio.get_running_loop().time() + seconds
        timer = self._timers.get(key)
        if timer is None or when < timer.when():
            if timer is not None:
                timer.cancel()
            loop = asyncio.get_running_loop()
            self._timers[key] = loop.call_at(when, self.wake, key)

    async def _run(self, pump: "_Pump") -> None:
        try:
            await pump.run()
        except NuskuError as error:
            log.warning("deliveries have to wait", reason=error.detail, subscription=pump.key.name)
            self.wake_in(pump.key, RECOVER_S)
        except Exception as error:
            log.error("deliveries failed", subscription=pump.key.name, exc_info=error)
            self.wake_in(pump.key, self.claim_s)
        finally:
            del self._pumps[pump.key]
        if pump.again:
            self.wake(pump.key)

    async def ping(self, to: Recipient, parcel: Parcel) -> Attempt:
        """One attempt at something that nobody waits for."""
        slot = await self.slots.enter(to.key.project, endpoint(to))
        standing: Standing | None = None
        try:
            attempt, outcome = await self.attempt(to, parcel)
            standing = _standing(attempt, outcome)
        finally:
            self.slots.leave(slot, standing)
        return attempt

    async def attempt(self, to: Recipient, parcel: Parcel) -> tuple[Attempt, Outcome]:
        """Send once, and write down how it went."""
        sender = self.senders.get(subscribers.scheme(to.subscriber))
        started = time.perf_counter()
        if sender is None:
            outcome = Outcome(
                "refused", "internal", detail="This kind of subscriber is not served."
            )
        else:
            outcome = await sender.send(to, parcel)
        seconds = time.perf_counter() - started
        attempt = Attempt(
            int((time.time() - seconds) * 1000),
            outcome.result,
            outcome.reason,
            outcome.status,
            round(seconds * 1000, 1),
            outcome.detail,
        )
        self.metrics.attempt(outcome.result, outcome.reason, seconds)
        self.broker.journal.note(
            to.key.project, to.id, attempt, counts=parcel.kind == "notification"
        )
        return attempt, outcome


class _Pump:
    """Sends what waits for one subscription, until nothing does.

    ``again``: somebody said meanwhile that there is more. ``changes``: how often somebody said that
    the subscription was changed or deleted.
    """

    def __init__(self, notifier: Notifier, key: QueueKey) -> None:
        self.key = key
        self.again = False
        self.changes = 0
        self._seen = 0  # the changes that we know of
        self._notifier = notifier
        self._deliveries = notifier.broker.deliveries
        self._ready: deque[tuple[str, float, Delivery]] = deque()
        self._fetching: asyncio.Event | None = None
        self._ahead = 1
        self._fetched_at = -math.inf
        self._smooth = False  # everything since the last fetch went well
        self._empty = False
        self._senders = 0
        self._done: dict[str, list[int]] = {}
        self._removing: asyncio.Task[None] | None = None
        self._to: Recipient | None = None
        self._agreed = False

    async def run(self) -> None:
        """Start with one sender; a good endpoint gets more when there is work for them."""
        if not await self._look_up():
            return
        try:
            await self._send_all()
        finally:
            await self._put_back()
            # One that was cancelled before it began is done, and has not said so itself.
            while self._removing is not None and not self._removing.done():
                await asyncio.wait((self._removing,))

    async def _look_up(self) -> bool:
        """Read the subscription anew; False when nothing is to be sent."""
        key, subscriptions = self.key, self._notifier.broker.subscriptions
        changes = self.changes
        record: Record | None = await subscriptions.record(key.project, key.name)
        if record is None:
            await self._deliveries.forget(key.project, key.name)
        self._to = None if record is None or paused(record) else recipient(record)
        # One that was subscribed later, or has left, is not sent what waits for the one before.
        self._agreed = not self._notifier.confirmation or (record is not None and agreed(record))
        self._seen = changes
        return self._to is not None

    async def _send_all(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._more_senders()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _more_senders(self) -> None:
        if self._to is None:  # paused or deleted while the claim was made
            return
        wanted = self._notifier.slots.places(endpoint(self._to))
        while self._senders < min(wanted, max(len(self._ready), 1)):
            self._senders += 1
            self._group.create_task(self._sender())

    async def _sender(self) -> None:
        notifier = self._notifier
        try:
            while not self._over() and (to := self._to) is not None:
                await notifier.pace.turn()
                slot = await notifier.slots.enter(to.key.project, endpoint(to))
                standing: Standing | None = None
                taken = None
                try:
                    taken = await self._next(slot)
                    if taken is not None:
                        standing = await self._deliver(*taken)
                except asyncio.CancelledError:
                    # The server stops, and what was being tried need not wait for its claim's end.
                    if taken is not None:
                        _, claim, delivery = taken
                        await self._deliveries.put_back(self.key, claim, (delivery.position,))
                    raise
                finally:
                    notifier.slots.leave(slot, standing)
                if taken is None:
                    break
        finally:
            self._senders -= 1

    def _over(self) -> bool:
        return self._notifier.stopping or self._to is None or (self._empty and not self._ready)

    async def _next(self, slot: Slot) -> tuple[Recipient, str, Delivery] | None:
        """The next delivery and its claim; None when there is none, or sending has to stop."""
        now = asyncio.get_running_loop().time
        while not self._over():
            if self.changes != self._seen:
                await self._look_up()
                continue
            if self._to is not None and endpoint(self._to) != slot.endpoint.name:
                self.again = True  # with leave for the endpoint that it is now
                return None
            if not self._ready:
                await self._fetch()
                continue
            claim, until, delivery = self._ready.popleft()
            if len(self._ready) < self._ahead // 2 and not (self._fetching or self._empty):
                self._group.create_task(self._fetch())
            if now() < until and self._to is not None:
                return self._to, claim, delivery
            await self._deliveries.put_back(self.key, claim, (delivery.position,))
        return None

    async def _fetch(self) -> None:
        """Claim more, or wait for somebody else who does."""
        if self._fetching is not None:
            await self._fetching.wait()
            return
        self._fetching = asyncio.Event()
        try:
            await self._fetch_alone()
        finally:
            self._fetching.set()
            self._fetching = None

    async def _fetch_alone(self) -> None:
        if not await self._look_up():
            return
        assert self._to is not None  # noqa: S101 - just looked up
        now = asyncio.get_running_loop().time()
        places = self._notifier.slots.places(endpoint(self._to))
        if places > 1 and self._smooth and now - self._fetched_at < AHEAD_WITHIN_S:
            self._ahead = min(max(self._ahead, places) * 2, AHEAD_MAX)
        else:
            self._ahead = places
        self._fetched_at, self._smooth = now, True
        claimed = await self._deliveries.claim(self.key, self._ahead, self._notifier.claim_s)
        if claimed.claim is None:
            self._empty = True
            if claimed.due_in_s is not None:
                self._notifier.wake_in(self.key, claimed.due_in_s + 0.01)
            return
        until = now + CLAIM_SPARE_S - 3
        self._ready.extend((claimed.claim, until, one) for one in claimed.deliveries)
        self._more_senders()

    async def _put_back(self) -> None:
        while self._ready:
            claim, _, delivery = self._ready.popleft()
            await self._deliveries.put_back(self.key, claim, (delivery.position,))

    async def _deliver(self, to: Recipient, claim: str, delivery: Delivery) -> Standing | None:
        if not delivery.readable:
            await self._try_again(to, claim, delivery, UNREADABLE)
            return None
        if delivery.parcel.kind == "notification" and not self._agreed:
            progress = msgspec.structs.replace(delivery.progress, reason=UNCONFIRMED.detail)
            await self._give_up(to, claim, delivery, progress, UNCONFIRMED)
            return None
        if (
            delivery.parcel.kind == "confirmation"
            and not delivery.progress.attempts
            and self._notifier.broker.confirmations.pesters(to.key.project, to.subscriber)
        ):
            progress = msgspec.structs.replace(delivery.progress, reason=PESTERED.detail)
            await self._give_up(to, claim, delivery, progress, PESTERED)
            return None
        attempt, outcome = await self._notifier.attempt(to, delivery.parcel)
        if outcome.result == "delivered":
            self._notifier.metrics.deliveries["delivered"] += 1
            self._done.setdefault(claim, []).append(delivery.position)
            if self._removing is None:
                self._removing = asyncio.create_task(self._remove())
        else:
            self._smooth = False
            await self._try_again(to, claim, delivery, outcome)
        return _standing(attempt, outcome)

    async def _remove(self) -> None:
        """Removals share a transaction; nobody waits for them."""
        try:
            while self._done:
                if not self._empty:
                    await asyncio.sleep(GATHER_S)
                done, self._done = self._done, {}
                for claim, positions in done.items():
                    await self._deliveries.delivered(self.key, claim, positions)
        except NuskuError as error:  # they will be sent once more
            log.warning("deliveries could not be removed", reason=error.detail)
            self._done.clear()
        finally:
            self._removing = None

    async def _try_again(
        self, to: Recipient, claim: str, delivery: Delivery, outcome: Outcome
    ) -> None:
        notifier = self._notifier
        progress = msgspec.structs.replace(
            delivery.progress,
            attempts=delivery.progress.attempts + 1,
            reason=outcome.detail or outcome.reason,
        )
        delay_s = None
        if outcome.result == "failed":
            policy = _policy(to, delivery)
            wait_s = retry.delays(policy, notifier.rng.random)(progress.attempts)
            if wait_s is not None:
                asked_s = min(outcome.retry_after_s or 0, retry.longest(policy))
                delay_s = math.ceil(max(wait_s, asked_s))
        if outcome.gone:
            await notifier.broker.subscriptions.pause_gone(to)
        if delay_s is not None:
            notifier.metrics.deliveries["retried"] += 1
            await self._deliveries.later(self.key, claim, delivery.position, delay_s, progress)
            if delay_s:
                notifier.wake_in(self.key, delay_s + 0.1)
            self._empty = self._empty and bool(delay_s)
            return
        await self._give_up(to, claim, delivery, progress, outcome)

    async def _give_up(
        self, to: Recipient, claim: str, delivery: Delivery, progress: Progress, outcome: Outcome
    ) -> None:
        notifier = self._notifier
        notifier.metrics.deliveries["given_up"] += 1
        log.warning(
            "a delivery was given up",
            subscription=to.id,
            project=to.key.project,
            attempts=progress.attempts,
            reason=outcome.reason,
            status=outcome.status,
        )
        target = to.options.get("_dead_letter_queue")
        if target and delivery.readable and delivery.parcel.kind == "notification":
            try:
                await notifier.broker.messages.dead_letter(to, delivery.parcel, target)
            except QuotaExceeded as error:
                log.warning("a dead letter has no room", subscription=to.id, reason=error.detail)
        await self._deliveries.give_up(
            self.key, claim, delivery.position, notifier.keep_s, progress
        )


def endpoint(to: Recipient) -> str:
    """What attempts are bounded for: a URL without its query, or the mail server."""
    if subscribers.scheme(to.subscriber) == "mailto":
        return "mailto"
    return subscribers.addressee(to.subscriber)


def _policy(to: Recipient, delivery: Delivery) -> retry.Policy | None:
    queue = delivery.progress.policy
    if delivery.parcel.kind == "confirmation":
        return retry.choose(None, queue)
    if subscribers.scheme(to.subscriber) == "mailto":
        return None  # retry policies are for webhooks (contract notifications.md section 6)
    return retry.choose(to.options.get("_retry_policy"), queue)


def _standing(attempt: Attempt, outcome: Outcome) -> Standing:
    """An endpoint that refuses fast costs no more than one that takes."""
    answered = outcome.result != "failed" or outcome.status is not None
    return "good" if answered and attempt.duration_ms < FAST_S * 1000 else "bad"
