"""What a server is set up to keep, and whether that is enough.

What it takes, and what it is worth:

* *replicated*: ``appendonly yes`` and the setting ``redis_replicas`` of 1 or more. An answer is
  given when so many replicas have the change (WAIT).
* *single*: ``appendonly yes`` and ``appendfsync always``. An answer is given when the change is on
  the master's disk. That is no durability where a replica may take the master's place.
* *unreliable*: anything less, and only where the setting ``unreliable`` allows it.
"""

from typing import Any, NamedTuple

from hiredis import ReplyError

from nusku.storage import CAPABILITIES, StoreOptions
from nusku.storage.redis.keys import command

OLDEST = (6, 2)

_WITHOUT_DURABILITY = tuple(one for one in CAPABILITIES if one != "DURABILITY")

QUESTIONS = (command("INFO"), command("CONFIG", "GET", "appendfsync"))
"""What :func:`facts` needs the answers to."""


class Facts(NamedTuple):
    """What a server says of itself. ``fsync`` is empty where it may not be asked."""

    version: tuple[int, int]
    role: str
    run_id: bytes
    cluster: bool
    loading: bool
    appendonly: bool
    fsync: str
    policy: str
    replicas: int


class Broken(Exception):
    """A server answers, but can't be used: the text is a sentence."""


def facts(replies: list[Any]) -> Facts:
    """Raises Broken when the server does not answer the questions."""
    info, config = replies
    if isinstance(info, ReplyError):
        raise Broken(f"Redis refuses us: {info}")
    says = dict(
        line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line
    )
    major, minor, *_ = (says.get("redis_version", "") + ".0.0").split(".")
    fsync = b"" if isinstance(config, ReplyError) or len(config) < 2 else config[1]
    return Facts(
        version=(int(major or 0), int(minor or 0)),
        role=says.get("role", ""),
        run_id=says.get("run_id", "")[:8].ljust(8, "0").encode(),
        cluster=says.get("cluster_enabled") == "1",
        loading=says.get("loading") == "1",
        appendonly=says.get("aof_enabled") == "1",
        fsync=fsync.decode(),
        policy=says.get("maxmemory_policy", ""),
        replicas=int(says.get("connected_slaves", 0)),
    )


class Promise(NamedTuple):
    """What an answer is worth on this server."""

    mode: str
    guarantee: str
    capabilities: tuple[str, ...]


def promise(found: Facts, options: StoreOptions) -> Promise:
    """Raises Broken with what has to be set where it is not enough."""
    if found.version < OLDEST:
        raise Broken("Redis 6.2 or newer, or Valkey, is needed")
    kept = found.policy == "noeviction"
    if not kept and not options.unreliable:
        raise Broken(
            f"with maxmemory-policy {found.policy or '(unknown)'} Redis may throw messages away:"
            " set `maxmemory-policy noeviction`, or `unreliable = true` to accept that"
        )
    if kept and found.appendonly and options.replicas > 0:
        some = "a replica has" if options.replicas == 1 else f"{options.replicas} replicas have"
        weaker = (
            ""
            if found.fsync == "always"
            else " A master that loses its power and is back before a replica took its place may"
            " have forgotten the last second, as its appendfsync is not `always`."
        )
        return Promise(
            "replicated",
            f"Replicated: an answered change is in Redis's log and {some} it, so it outlives the"
            f" loss of the master, if that is all that fails at a time.{weaker}",
            CAPABILITIES,
        )
    if kept and found.appendonly and found.fsync == "always":
        single = (
            "Single: an answered change is on the disk of Redis's machine; it outlives a crash and"
            " a power cut, but not the loss of that disk."
        )
        if found.replicas == 0:
            return Promise("single", single, CAPABILITIES)
        return Promise(
            "single",
            f"{single} If a replica takes the master's place, what it had not received is lost: set"
            " `redis_replicas` to change that.",
            _WITHOUT_DURABILITY,
        )
    if options.unreliable:
        return Promise(
            "unreliable",
            "Unreliable: Redis may lose changes that were already answered when it crashes.",
            _WITHOUT_DURABILITY,
        )
    if not found.appendonly:
        what = (
            "without `appendonly yes` Redis forgets answered changes when it crashes: set it, and"
        )
        what += " `appendfsync always`" if options.replicas == 0 else ""
        raise Broken(
            (what.removesuffix(", and") if options.replicas else what)
            + ", or `unreliable = true` to accept the loss"
        )
    if not found.fsync:
        raise Broken(
            "Redis does not let us see `appendfsync` (CONFIG GET is forbidden), so it is unknown"
            " what a crash may cost: allow it, or have replicas and set `redis_replicas`, or"
            " `unreliable = true` to accept a loss"
        )
    raise Broken(
        f"with `appendfsync {found.fsync}` Redis forgets the last answered changes when its machine"
        " crashes: set `appendfsync always`, or have replicas and set `redis_replicas`, or"
        " `unreliable = true` to accept the loss"
    )
