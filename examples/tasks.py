"""Sharing out work: a producer posts jobs; workers claim them, do them and delete them.

    python3 examples/tasks.py [--ttl SECONDS]

A worker holds its jobs by a claim, which it renews while it works. One that dies renews nothing: its
claim lapses after the ttl, and somebody else gets its jobs. So every job is done, though one whose
worker died at the last moment may be done twice.
"""

import argparse
import os
import sys
import uuid
from multiprocessing import Process

from client import Client

JOBS = 6


def produce(queue: str) -> None:
    """Post all jobs in one request: they are stored together or not at all."""
    jobs = [{"body": {"job": number}} for number in range(1, JOBS + 1)]
    Client().send("POST", f"{queue}/messages", {"messages": jobs})
    print(f"producer: posted {JOBS} jobs", flush=True)


def work(queue: str, name: str, ttl: int, fatal_job: int | None = None) -> None:
    """Work until nothing is left; die over one of the jobs where asked to."""
    me = Client()
    while me.send("GET", f"{queue}/stats")[1]["messages"]["total"]:
        # Answered as soon as there is something to claim; 204 when there is still nothing.
        status, claimed = me.send("POST", f"{queue}/claims?limit=2&wait=5", {"ttl": ttl})
        if status == 204:
            continue
        for message in claimed["messages"]:
            # Each job gets the whole ttl. One that may take longer renews while it runs.
            claim = f"{queue}/claims/{message['href'].rpartition('=')[2]}"
            status, _ = me.send("PATCH", claim, {"ttl": ttl}, accept=(404,))
            if status == 404:
                break  # too late: somebody else may have these jobs by now
            job = message["body"]["job"]
            if job == fatal_job:
                print(f"{name}: died over job {job}\n", end="", flush=True)
                os._exit(1)  # as in a power cut: nothing is released or tidied up
            print(f"{name}: did job {job}\n", end="", flush=True)
            # The href names the claim. Is that over, then the job is somebody else's, and stays.
            me.send("DELETE", message["href"], accept=(400, 403))


def main() -> None:
    """Run it all: one worker dies over its second job, two others do the rest."""
    options = argparse.ArgumentParser(description="Share out work over a queue.")
    options.add_argument("--ttl", type=int, default=60, help="seconds that a claim lasts")
    ttl = options.parse_args().ttl
    queue = f"/v2/queues/jobs-{uuid.uuid4().hex[:8]}"
    produce(queue)
    unlucky = Process(target=work, args=(queue, "ann", ttl, 2))
    unlucky.start()
    unlucky.join()
    print(f"(what ann held is free again after {ttl} seconds)", flush=True)
    others = [Process(target=work, args=(queue, name, ttl)) for name in ("bob", "cleo")]
    for worker in others:
        worker.start()
    for worker in others:
        worker.join()
    Client().send("DELETE", queue)
    sys.exit("a worker failed" if any(w.exitcode for w in others) else None)


if __name__ == "__main__":
    main()
