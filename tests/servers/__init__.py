"""Real servers for tests, benchmarks and runs under faults, started on loopback and thrown away.

Every class is a context manager: ``with Postgres() as server: server.create()`` is a URI of an
empty database. Servers listen on ports of 127.0.0.1 that nobody else has, keep their files in a
folder of their own, and are gone with whoever started them, however that one ends
(:mod:`tests.servers.guardian`). Starting one whose program is not on this machine raises
:class:`~tests.servers.programs.Missing`; a test that lets it through is skipped, and the summary
says so, or fails where ``TEST_STORES=all``.

``process``     ``Process``: what all have: ``start()``, ``stop()``, ``kill()``, ``pause()``,
                ``resume()``, ``restart()``, ``pid``, ``log()``, ``remove()``
``postgres``    ``Postgres``: one server; ``create()``, ``drop()``, ``execute()``, ``uri()``
``standby``     ``PrimaryAndStandby``: synchronous replication; ``cut()``, ``heal()``,
                ``promote()``, ``rejoin()``
``pgbouncer``   ``PgBouncer``: transaction mode before a ``Postgres``
``redis``       ``Redis``: one server; ``ask()``, ``flush()``
``cluster``     ``Cluster``: three masters with a replica each; ``masters()``, ``replica_of()``,
                ``failover()``, ``wait_until_whole()``
``sentinel``    ``Sentinels``: master, replica and three that watch; ``master()``,
                ``failover()``, ``wait_for_another()``
``keystone``    ``Keystone``: ``add_user()``, ``add_project()``, ``assign()``, ``token()``, ``revoke()``
``stores``      ``store_in(kind, folder)``: the URI of an empty store, by the kind's name

By default servers keep their files in memory, so that an fsync costs nothing; where the time of a
disk is the point, hand over a ``place``.
"""
