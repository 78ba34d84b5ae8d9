"""The faults, by the names under which they are asked for."""

from __future__ import annotations

from tests.chaos.harness.nemesis import pools, redis, redis_double, standby
from tests.chaos.harness.nemesis.base import Nemesis, Nothing
from tests.chaos.harness.nemesis.both import Both
from tests.chaos.harness.nemesis.clock import SetClock
from tests.chaos.harness.nemesis.cut import PostgresCut, RedisCut
from tests.chaos.harness.nemesis.diskfull import DiskFull
from tests.chaos.harness.nemesis.freeze import Freeze
from tests.chaos.harness.nemesis.full import PostgresFull, RedisFull
from tests.chaos.harness.nemesis.ioerr import IOErrors
from tests.chaos.harness.nemesis.kill import Kill
from tests.chaos.harness.nemesis.limits import Limits
from tests.chaos.harness.nemesis.postgres import (
    BouncerKill,
    PostgresAll,
    PostgresKill,
    PostgresTerminate,
    Storm,
)
from tests.chaos.harness.nemesis.power import Power
from tests.chaos.harness.nemesis.replies import Replies
from tests.chaos.harness.nemesis.slowdisk import SlowDisk
from tests.chaos.harness.nemesis.term import Term

__all__ = ["NEMESES", "Nemesis"]

_ANY = (Nothing, Kill, Term, Freeze, SetClock, Limits, Both, pools.PoolKill, pools.PoolDrain)
_SQLITE = (Power, IOErrors, DiskFull, SlowDisk, Replies)
_POSTGRESQL = (
    PostgresKill,
    PostgresTerminate,
    PostgresCut,
    Storm,
    PostgresFull,
    PostgresAll,
    BouncerKill,
)
_STANDBY = (standby.Failover, standby.Waits, standby.StandbyAll)
_REDIS = (redis.RedisKill, redis.RedisAll, RedisCut, RedisFull, redis.SentinelFailover)
_CLUSTER = (
    redis.Failover,
    redis.Operators,
    redis.ClusterAll,
    redis_double.DoubleFault,
    redis_double.Everysec,
    redis_double.Rejoined,
)

NEMESES: dict[str, type[Nemesis]] = {
    kind.name: kind for kind in (*_ANY, *_SQLITE, *_POSTGRESQL, *_STANDBY, *_REDIS, *_CLUSTER)
}
