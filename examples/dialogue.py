"""Point to point: an asker and a calculator talk over one queue, in both directions.

    python3 examples/dialogue.py

Each posts what it has to say and reads what the other says. Neither hears itself, since a list leaves
out what was posted under the same Client-ID; and each keeps a marker, so it hears everything once.
"""

import uuid
from collections.abc import Iterator
from threading import Thread
from typing import Any

from client import Client


class Party:
    """One end of the line."""

    def __init__(self, queue: str) -> None:
        self._messages = f"{queue}/messages"
        self._me = Client()

    def say(self, body: Any) -> str:
        """Post it; return its id, by which the other can refer to it."""
        _, answer = self._me.send("POST", self._messages, {"messages": [{"body": body}]})
        path: str = answer["resources"][0]
        return path.rpartition("/")[2]

    def hear(self) -> Iterator[dict[str, Any]]:
        """What the other says, from the beginning and for ever."""
        marker = ""
        while True:
            _, page = self._me.send("GET", f"{self._messages}?wait=10&marker={marker}")
            for message in page["messages"]:
                marker = message["id"]
                yield message


def calculator(queue: str) -> None:
    """Do sums until told to stop."""
    party = Party(queue)
    for message in party.hear():
        command = message["body"]
        if command["do"] == "stop":
            return
        result = sum(command["numbers"])
        party.say({"reply_to": message["id"], "result": result})


def asker(queue: str) -> None:
    """Give sums to do, and wait for the reply to each."""
    party = Party(queue)
    replies = party.hear()
    for numbers in ([1, 2], [3, 4, 5], [6]):
        id_ = party.say({"do": "add", "numbers": numbers})
        reply = next(m["body"] for m in replies if m["body"]["reply_to"] == id_)
        print(f"{' + '.join(map(str, numbers))} = {reply['result']}")
    party.say({"do": "stop"})


def main() -> None:
    """Run both parties."""
    queue = f"/v2/queues/line-{uuid.uuid4().hex[:8]}"
    other = Thread(target=calculator, args=(queue,))
    other.start()
    asker(queue)
    other.join()
    Client().send("DELETE", queue)


if __name__ == "__main__":
    main()
