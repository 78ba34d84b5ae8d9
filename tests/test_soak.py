"""A short soak accounts for every message, and notices each that it should not lose. No timing is judged here."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.listener import Listener
from benchmarks.messages import FIRST_NUMBER, encode_post
from benchmarks.server import Server, make_directory, remove_directory
from benchmarks.soak import report
from benchmarks.soak.__main__ import main
from benchmarks.soak.accounts import CLAIMS_MAX, Accounts, Fate
from benchmarks.soak.load import Load, Plan
from benchmarks.soak.run import Soak
from benchmarks.wire import CONSUMER
from tests.servers.programs import postgres_folder

SHORT = Plan(seconds=8, rate=40, sample_s=1, claim_ttl_s=1, brief_ttl_s=2, control_s=0.2, late_s=30)
NEVER_POSTED = FIRST_NUMBER + 1_000_000


@pytest.fixture(autouse=True)
def no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading those of the system takes a fifth of each start, and nothing here speaks TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)


# ---- a whole one


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_every_message_is_accounted_for(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if store == "postgresql":
        postgres_folder()
    file = tmp_path / report.SAMPLES
    home = make_directory()
    with file.open("w") as lines:
        soak = Soak(SHORT, store, home, lines)
        asyncio.run(soak.run())
    remove_directory(home)
    assert soak.faults == []
    counts = soak.counts
    assert counts["posted"] >= SHORT.seconds * SHORT.rate * 0.9
    assert counts["posted"] == counts["deleted"] + counts["expired"] + counts["dead-lettered"]
    assert all(counts[name] > 0 for name in ("deleted", "expired", "dead-lettered", "told"))
    assert all(counts[name] == 0 for name in ("open", "untold", "in doubt", "lost", "faults"))
    record = report.read(file)
    assert record.end is not None
    parts = report.quarters(record.samples)
    assert all(parts)
    figures = report.figures(parts)
    assert all(None not in figures[name] for name in report.GOALS)
    assert main(["--report", "--keep", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "Every message is accounted for" in told
    assert all(f"| {name} |" in told for name in figures)


# ---- one that is meddled with


class Meddler:
    """Does what a store must not do, beside the load on it."""

    def __init__(self, load: Load, base: str) -> None:
        self._load = load
        self.claimed_too: set[int] = set()
        headers = {"Client-ID": CONSUMER, "X-Project-Id": "bench"}
        self._http = httpx.AsyncClient(base_url=base, headers=headers, timeout=30, verify=False)

    def _path(self, name: str) -> str:
        return self._load.queues[name].path

    async def post(self, name: str, number: int) -> None:
        body = encode_post([number], 3600)
        kind = {"Content-Type": "application/json"}
        answer = await self._http.post(f"{self._path(name)}/messages", content=body, headers=kind)
        assert answer.status_code == 201

    async def take_a_job(self) -> int:
        """A good one. Whatever else it gets has been claimed once more than the load knows."""
        while True:
            claim = await self._http.post(
                f"{self._path('jobs')}/claims?limit=1&wait=5",
                json={"ttl": self._load.plan.claim_ttl_s, "grace": 60},
            )
            if claim.status_code == 204:
                continue
            [message] = claim.json()["messages"]
            number: int = message["body"]["number"]
            account = self._load.accounts.open.get(number)
            if account is not None and account.fate is Fate.DONE:
                assert (await self._http.delete(message["href"])).status_code == 204
                return number
            self.claimed_too.add(number)

    async def take_a_brief_one(self) -> int:
        path = f"{self._path('brief')}/messages?echo=true&limit=1"
        page = (await self._http.get(f"{path}&wait=5")).json()["messages"]
        assert (await self._http.delete(page[0]["href"])).status_code == 204
        number: int = page[0]["body"]["number"]
        return number

    async def swallow_a_notification(self, listener: Listener) -> int:
        async with self._load._asking:
            await listener.wait("soak", 1, 30)
            heard = await listener.take("soak", 1, 0)
        for other in heard[1:]:
            self._load.accounts.hear(other[1])
        return heard[0][1]

    def one_that_has_ended(self) -> int:
        accounts = self._load.accounts
        return min(set(range(FIRST_NUMBER, accounts._next)) - set(accounts.open))

    async def close(self) -> None:
        await self._http.aclose()


async def meddle(folder: Path) -> tuple[dict[str, int], set[int], Load]:
    """A short load with one of each: the number of the message, by what was done to it; and those
    that were disturbed besides.
    """
    plan = replace(SHORT, seconds=4, late_s=1)
    server = Server(f"sqlite:///{folder}/nusku.db", folder / "server.log", plan.settings)
    async with Listener() as listener:
        try:
            target = await server.start()
            load = Load(plan, target, listener)
            await load.prepare()
            meddler = Meddler(load, f"http://{target.host}:{target.port}")
            running = asyncio.ensure_future(load.run())
            done = {
                "stolen": await meddler.take_a_job(),
                "taken before its end": await meddler.take_a_brief_one(),
                "not told": await meddler.swallow_a_notification(listener),
                "back": meddler.one_that_has_ended(),
                "buried": await meddler.take_a_job(),
                "made up": NEVER_POSTED,
            }
            await meddler.post("jobs", done["back"])
            await meddler.post("dead", done["buried"])
            await meddler.post("news", done["made up"])
            assert not load.posting_over.is_set(), "the meddling must happen under load"
            await running
            await load.check()
            load.accounts.close()
            await meddler.close()
            load.close()
            await server.stop()
        finally:
            await server.kill()
    return done, meddler.claimed_too, load


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_planted_fault_is_noticed(tmp_path: Path) -> None:
    done, disturbed, load = asyncio.run(meddle(tmp_path))
    expected = {
        f"message {done['stolen']} (done) is lost: acknowledged, handed out 0 times",
        f"message {done['taken before its end']} (brief) is lost: acknowledged, handed out 0 times",
        f"the subscriber was not told of message {done['not told']}",
        f"message {done['back']} came back after its end: seen by a claim",
        f"message {done['buried']} (done) is a dead letter after 0 claims",
        f"message {NEVER_POSTED} was never posted: seen by the reader",
        f"a notification of message {NEVER_POSTED}, which was never posted",
    }
    faults = set(load.accounts.faults)
    assert expected <= faults
    # What must not be there is also claimed again, or deleted: these faults are of no others.
    disturbed |= {done["back"], done["made up"]}
    others = [f"message {number} " for number in disturbed]
    assert [fault for fault in faults - expected if not any(map(fault.__contains__, others))] == []
    assert load.accounts.lost == 2
    early = f"get of message {done['taken before its end']} before its end: status 404"
    assert any(error.startswith(early) for error in load.errors)


# ---- accounts


def accounts_with(fate: Fate) -> tuple[Accounts, int]:
    accounts = Accounts()
    number = accounts.begin(fate, 0.0)
    accounts.acknowledge(number)
    return accounts, number


def test_what_was_answered_and_came_to_no_end_is_lost() -> None:
    accounts, number = accounts_with(Fate.DONE)
    accounts.hand_out(number, "a claim")
    accounts.close()
    assert accounts.lost == 1
    assert accounts.faults == [f"message {number} (done) is lost: acknowledged, handed out 1 times"]


@pytest.mark.parametrize("operation", ["post", "delete"])
def test_what_got_no_answer_is_in_doubt_and_not_lost(operation: str) -> None:
    accounts = Accounts()
    number = accounts.begin(Fate.DONE, 0.0)
    if operation == "delete":
        accounts.acknowledge(number)
    accounts.doubt(number, operation)
    accounts.close()
    assert (accounts.lost, accounts.doubtful, accounts.faults) == (0, 1, [])


def test_what_was_refused_was_never_there() -> None:
    accounts = Accounts()
    number = accounts.begin(Fate.NEWS, 0.0)
    accounts.refuse(number)
    assert accounts.even
    accounts.hand_out(number, "the reader")
    assert accounts.fault_count == 1


def test_a_message_is_not_handed_out_more_often_than_allowed() -> None:
    accounts, number = accounts_with(Fate.BAD)
    for _ in range(CLAIMS_MAX):
        accounts.hand_out(number, "a claim")
    assert accounts.faults == []
    accounts.hand_out(number, "a claim")
    assert accounts.fault_count == 1


def test_being_told_twice_is_counted_and_no_fault() -> None:
    accounts, number = accounts_with(Fate.NEWS)
    assert accounts.hear(number) == 0.0
    assert accounts.hear(number) is None
    assert (accounts.told, accounts.told_again, accounts.faults) == (1, 1, [])


# ---- report


def sample(at_s: float, mib: float, post_ms: int) -> dict[str, Any]:
    process = {"resident_mib": mib, "open_files": 10, "threads": 2, "cpu_s": at_s / 10}
    times = {"count": 100, "p99_ms": 1.0, "histogram": {"0": 99, str(post_ms): 1}}
    return {
        "sample": "load",
        "at_s": at_s,
        "server": process,
        "store": {"processes": 0},
        "space": {"file, MiB": 8.0, "log, MiB": 2.0},
        "operations": {"post": times},
        "controls": {"ping": times, "fsync": times},
        "counts": {"open": 5},
        "machine": {"busy": 0.5, "load": 1.0},
    }


def test_growth_is_the_last_quarter_against_the_second() -> None:
    growing = [sample(at_s, 100 + at_s, 0) for at_s in range(1, 401)]
    figures = report.figures(report.quarters(growing))
    assert figures[report.MEMORY] == [149.5 + 0.5, 249.5, 349.5, 450.0]
    assert report.growth(figures[report.MEMORY]) == 450.0 / 249.5
    assert figures[report.SIZE] == [10.0] * 4
    assert report.growth(figures[report.SIZE]) == 1.0
    record = report.Record({"mode": "", "plan": {}}, growing, None)
    verdicts = {line.split(" | ")[0][2:]: line for line in report.table(record)}
    assert "NOT REACHED" in verdicts[report.MEMORY]
    assert ": reached" in verdicts[report.SIZE]


def test_a_file_that_ends_in_the_middle_of_a_line_is_read(tmp_path: Path) -> None:
    file = tmp_path / "samples"
    whole = json.dumps({"plan": {}, "mode": ""}) + "\n" + json.dumps(sample(1, 1, 1))
    file.write_text(whole + '\n{"sample": "lo')
    record = report.read(file)
    assert len(record.samples) == 1
    assert record.end is None
