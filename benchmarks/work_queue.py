"""One queue under load: its operations as parts of scripts, every answer checked against the ledger.

The operations are sub-generators: a script says `messages = yield from queue.claim(1)`.
"""

from collections.abc import Generator, Sequence

import msgspec

from benchmarks.messages import (
    FIRST_NUMBER,
    Counts,
    Ledger,
    Message,
    Page,
    decode_claimed,
    decode_message,
    decode_page,
    decode_posted,
    decode_stats,
    decode_waiting,
    encode_post,
    post_bytes,
    verified_number,
)
from benchmarks.wire import PRODUCER, Answer, Target, WrongAnswerError

SUBSCRIPTION_TTL_S = 86_400

Step = Generator[bytes, Answer, "list[Message]"]


def expect(status: int, expected: int, operation: str, body: bytes = b"") -> None:
    """Raise unless the status is the expected one."""
    if status != expected:
        raise WrongAnswerError(
            f"{operation}: status {status} instead of {expected}: {body[:200]!r}"
        )


class WorkQueue:
    """A queue, what was posted to it, and the requests on it."""

    def __init__(
        self, target: Target, name: str, *, first: int = FIRST_NUMBER, ttl_s: int = 3600
    ) -> None:
        self.path = f"/v2/queues/{name}"
        self.ledger = Ledger(first)
        self.ordered = True
        """Whether messages are posted in the order of their numbers: by one connection at a time."""
        self._target = target
        self._tail = target.tail()
        self._ttl_s = ttl_s
        self._message_prefix = f"{self.path}/messages/"
        self._heads: dict[int, bytes] = {}

    def aim_at(self, target: Target) -> None:
        """The same queue after its server came back at another address."""
        self._target, self._tail = target, target.tail()
        self._heads.clear()

    def post_request(self, count: int) -> bytes:
        """A post of `count` messages to be sent again and again, of which nobody keeps count."""
        body = encode_post(range(FIRST_NUMBER, FIRST_NUMBER + count), self._ttl_s)
        return self._target.head("POST", f"{self.path}/messages", len(body), PRODUCER) + body

    def body(self, number: int) -> bytes:
        """The body of a post of this message."""
        return encode_post([number], self._ttl_s)

    def post(self, count: int, numbers: range | None = None) -> Generator[bytes, Answer, list[str]]:
        """Post `count` messages in one request; their hrefs."""
        head = self._heads.get(count)
        if head is None:
            length = post_bytes(count, self._ttl_s)
            head = self._target.head("POST", f"{self.path}/messages", length, PRODUCER)
            self._heads[count] = head
        if numbers is None:
            numbers = self.ledger.take(count)
        status, body = yield head + encode_post(numbers, self._ttl_s)
        expect(status, 201, "post", body)
        resources = decode_posted(body).resources
        prefix = self._message_prefix
        if len(set(resources)) != count or not all(href.startswith(prefix) for href in resources):
            raise WrongAnswerError(f"post of {count}: resources {body[:200]!r}")
        self.ledger.posted += count
        return resources

    def claim_request(self, limit: int, *, ttl_s: int = 300, wait_s: int = 0) -> bytes:
        """A ready-made claim."""
        wait = f"&wait={wait_s}" if wait_s else ""
        body = b'{"ttl":%d,"grace":60}' % ttl_s
        return self._target.request("POST", f"{self.path}/claims?limit={limit}{wait}", body)

    def claim(self, request: bytes, limit: int, rivals: int = 0) -> Step:
        """Claim up to `limit`; an empty list for 204, which is wrong where more are free than `rivals` may hold."""
        posted = self.ledger.posted
        status, body = yield request
        if status == 204:
            free = posted - self.ledger.claimed - rivals * limit
            if free > 0:
                raise WrongAnswerError(
                    f"claim: nothing to claim, but at least {free} messages are free"
                )
            return []
        return self.claimed(status, body, limit)

    def claimed(self, status: int, body: bytes, limit: int) -> list[Message]:
        """The messages of the answer to a claim, noted in the ledger."""
        expect(status, 201, "claim", body)
        messages = decode_claimed(body).messages
        if not 1 <= len(messages) <= limit:
            raise WrongAnswerError(f"claim of {limit}: {len(messages)} messages")
        previous = 0
        for message in messages:
            if "?claim_id=" not in message.href:
                raise WrongAnswerError(f"claim: an href without claim id: {message.href}")
            number = self.ledger.claim(message)
            if number < previous and self.ordered:
                raise WrongAnswerError(f"claim: message {number} after {previous}")
            previous = number
        return messages

    def delete(self, messages: Sequence[Message]) -> Step:
        """Delete claimed messages of one claim: a single one by its href, several in one request."""
        if len(messages) == 1:
            path = messages[0].href
        else:
            claim = messages[0].href.partition("?claim_id=")[2]
            path = (
                f"{self.path}/messages?ids={','.join([m.id for m in messages])}&claim_ids={claim}"
            )
        status, body = yield b"DELETE " + path.encode() + self._tail
        expect(status, 204, "delete", body)
        for message in messages:
            self.ledger.delete(message.body.number)
        return []

    def page(self, path: str) -> Generator[bytes, Answer, Page]:
        """One page of messages, by the path of the first page or of a link."""
        status, body = yield b"GET " + path.encode() + self._tail
        expect(status, 200, "list", body)
        return decode_page(body)

    def check_kept(self, href: str, number: int) -> Generator[bytes, Answer, None]:
        """Get one message by its href and compare."""
        status, body = yield b"GET " + href.encode() + self._tail
        expect(status, 200, "get", body)
        if verified_number(decode_message(body)) != number:
            raise WrongAnswerError(f"get: {href} is not message {number}")

    def counts(self) -> Generator[bytes, Answer, Counts]:
        """The queue's stats."""
        status, body = yield f"GET {self.path}/stats".encode() + self._tail
        expect(status, 200, "stats", body)
        return decode_stats(body).messages

    def subscribe(self, subscriber: str) -> Generator[bytes, Answer, str | None]:
        """Subscribe; the path of the subscription, or None where the server refuses the subscriber."""
        path = f"{self.path}/subscriptions"
        body = msgspec.json.encode({"subscriber": subscriber, "ttl": SUBSCRIPTION_TTL_S})
        status, answer = yield self._target.request("POST", path, body)
        if status == 400:
            return None
        expect(status, 201, "subscribe", answer)
        return f"{path}/{msgspec.json.decode(answer)['subscription_id']}"

    def unsubscribe(self, subscription: str) -> Generator[bytes, Answer, None]:
        """End a subscription, by its path."""
        status, body = yield b"DELETE " + subscription.encode() + self._tail
        expect(status, 204, "unsubscribe", body)

    def pause(self, subscription: str) -> Generator[bytes, Answer, bool]:
        """Let what is posted wait; False where the server knows no such thing."""
        status, body = yield self._target.request("POST", f"{subscription}/pause")
        if status in (404, 405):
            return False
        expect(status, 204, "pause", body)
        return True

    def resume(self, subscription: str) -> Generator[bytes, Answer, None]:
        """Deliver what waits."""
        status, body = yield self._target.request("POST", f"{subscription}/resume")
        expect(status, 204, "resume", body)

    def pending(self, subscription: str) -> Generator[bytes, Answer, int]:
        """How many deliveries wait."""
        status, body = yield f"GET {subscription}/status".encode() + self._tail
        expect(status, 200, "status of a subscription", body)
        return decode_waiting(body).pending

    def create(self, metadata: bytes = b"{}") -> Generator[bytes, Answer, None]:
        """Create the queue, which must be new."""
        status, body = yield self._target.request("PUT", self.path, metadata, PRODUCER)
        expect(status, 201, "create queue", body)

    def drop(self) -> Generator[bytes, Answer, None]:
        """Delete the queue with all that it holds."""
        status, body = yield b"DELETE " + self.path.encode() + self._tail
        expect(status, 204, "delete queue", body)


def check_numbers(page: Page, expected: int) -> int:
    """The page must hold the messages from `expected` on, in order; the number that follows."""
    for message in page.messages:
        if verified_number(message) != expected:
            raise WrongAnswerError(f"list: message {message.body.number} where {expected} was due")
        expected += 1
    return expected
