"""Several processes on one port: a parent that only watches, and workers that serve.

The parent opens the port, starts the workers, tells when all of them listen, starts a new one in
the place of one that dies, and hands signals on. Workers notice the end of the parent, however it
comes, and stop. Whoever is asked for the metrics asks the others for theirs.
"""

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from nusku.metrics import Metrics

REFUSED = 2  # the status of a worker that cannot start, nor could another in its place
AGAIN_S = 1.0  # a worker that dies sooner than this after its start is not followed at once
ASKED_S = 2.0  # that a worker may take to say its figures


class Worker(NamedTuple):
    """What one process knows of the others. ``alive`` ends when the parent does."""

    number: int
    ready: int
    alive: int
    directory: Path

    def listening(self) -> None:
        """Tell the parent that this one serves, if it still waits for that."""
        if self.ready >= 0:
            os.write(self.ready, b".")
            os.close(self.ready)

    def watch(self, stop: Callable[[], None]) -> None:
        """Call ``stop`` when the parent is gone."""
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(self.alive)
            stop()

        loop.add_reader(self.alive, gone)

    async def tell(self, metrics: Metrics) -> asyncio.Server:
        """Say the figures of this worker to every other that asks."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(metrics.text())
            with suppress(OSError):
                await writer.drain()
            writer.close()

        path = self.directory / str(self.number)
        path.unlink(missing_ok=True)  # of the one before
        return await asyncio.start_unix_server(answer, path)

    async def all_metrics(self, metrics: Metrics) -> bytes:
        """The figures of all workers, each with its number."""
        others = [p for p in self.directory.iterdir() if p.name != str(self.number)]
        answers = await asyncio.gather(*map(_ask, others))
        texts = {p.name: text for p, text in zip(others, answers, strict=True) if text}
        texts[str(self.number)] = metrics.text()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Together(texts))
        return generate_latest(registry)


async def _ask(path: Path) -> bytes:
    try:
        async with asyncio.timeout(ASKED_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""  # it has just died, or hangs


class _Together(Collector):
    """The figures of several workers, as one exposition."""

    def __init__(self, texts: dict[str, bytes]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for number, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text.decode()):
                whole = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "worker": number}
                    whole.add_sample(sample.name, labels, sample.value)
        yield from families.values()


def supervise(
    workers: int,
    listener: socket.socket,
    serve: Callable[[Worker], int],
    announce: Callable[[socket.socket], None],
) -> int:
    """Run ``serve`` in that many processes until told to stop; return the worst of their statuses.

    ``announce`` is called when all of them listen.
    """
    with tempfile.TemporaryDirectory(prefix="nusku-workers-") as directory:
        return _Parent(workers, listener, serve, announce, Path(directory)).run()


class _Parent:
    """The watching process."""

    def __init__(
        self,
        workers: int,
        listener: socket.socket,
        serve: Callable[[Worker], int],
        announce: Callable[[socket.socket], None],
        directory: Path,
    ) -> None:
        self._listener = listener
        self._serve = serve
        self._announce = announce
        self._directory = directory
        self._wanted = workers
        self._running: dict[int, tuple[int, float]] = {}  # by process: number, start
        self._ready_read, self._ready_write = os.pipe()
        self._alive_read, self._alive_write = os.pipe()
        self._stopping = False
        self._status = 0

    def run(self) -> int:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._signalled)
        for number in range(self._wanted):
            self._start(number)
        os.close(self._ready_write)
        self._ready_write = -1  # those that follow must not write to what has this number then
        if self._all_listen():
            self._announce(self._listener)
        while self._running:
            self._buried(*os.waitpid(-1, 0))
        return self._status

    def _start(self, number: int) -> None:
        process = os.fork()
        if process:
            self._running[process] = (number, time.monotonic())
            return
        status = 1
        try:
            for name in (signal.SIGTERM, signal.SIGINT):
                signal.signal(name, signal.SIG_DFL)
            os.close(self._alive_write)
            os.close(self._ready_read)
            worker = Worker(number, self._ready_write, self._alive_read, self._directory)
            status = self._serve(worker)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _all_listen(self) -> bool:
        """Wait until all do; False when one does not, or we are to stop."""
        listening = 0
        while listening < self._wanted and not self._stopping:
            try:
                told = os.read(self._ready_read, self._wanted)
            except InterruptedError:
                continue
            if not told:  # all have let go of it, and one without a word
                return False
            listening += len(told)
        return listening == self._wanted

    def _buried(self, process: int, code: int) -> None:
        number, started_s = self._running.pop(process)
        status = os.waitstatus_to_exitcode(code)
        if self._stopping or status == 0:
            self._status = max(self._status, abs(status))
            if not self._stopping:  # one that stops already may have no handler for another signal
                self._stop(signal.SIGTERM)
        elif status == REFUSED:
            self._status = REFUSED
            self._stop(signal.SIGTERM)
        else:
            print(  # noqa: T201 - the parent has no log of its own
                f"nusku: worker {number} ended with status {status}; starting another",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(max(AGAIN_S - (time.monotonic() - started_s), 0.0))
            if not self._stopping:
                self._start(number)

    def _signalled(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python's
        self._stop(number)

    def _stop(self, number: int) -> None:
        self._stopping = True
        for process in list(self._running):
            with suppress(ProcessLookupError):
                os.kill(process, number)
