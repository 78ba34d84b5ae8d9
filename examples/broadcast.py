"""Telling everybody: a publisher posts events, and any number of observers read them all.

    python3 examples/broadcast.py

Reading takes nothing away. Each observer keeps a marker, its place in the queue, and nobody has to
know how many observers there are: events vanish by themselves when their ttl is over.
"""

import time
import uuid
from threading import Thread

from client import Client

EVENTS = ["doors open", "first band", "second band", "fire alarm", "doors close"]


def publish(queue: str) -> None:
    """Post the events one after the other; observers see them in this order."""
    me = Client()
    for event in EVENTS:
        me.send("POST", f"{queue}/messages", {"messages": [{"body": event, "ttl": 60}]})
        time.sleep(0.2)


def observe(queue: str, name: str, late_s: float, page_size: int) -> None:
    """Read from the first event that is still there to the last."""
    time.sleep(late_s)
    me, marker, last = Client(), "", ""
    while last != EVENTS[-1]:
        # Answered at once if there is anything behind the marker, else when something comes.
        query = f"limit={page_size}&wait=10&marker={marker}"
        _, page = me.send("GET", f"{queue}/messages?{query}")
        for message in page["messages"]:
            last = message["body"]
            print(f"{name}: {last}\n", end="", flush=True)
            # The id of a message is a marker. Stored on disk, it would survive a restart.
            marker = message["id"]


def main() -> None:
    """Run a publisher and three observers: one in time, one late, one with small pages."""
    queue = f"/v2/queues/events-{uuid.uuid4().hex[:8]}"
    observers = [("early", 0.0, 20), ("late", 0.5, 20), ("patient", 0.0, 1)]
    threads = [Thread(target=observe, args=(queue, *observer)) for observer in observers]
    for thread in threads:
        thread.start()
    publish(queue)
    for thread in threads:
        thread.join()
    Client().send("DELETE", queue)


if __name__ == "__main__":
    main()
