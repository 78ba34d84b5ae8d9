-- What the other functions share.

-- Each function that is called from outside begins with this: may it act here, and what time is it?
-- `env` is, in this order: a time that the caller has seen; its clock (-1: go by ours); the highest
-- timeline it has seen; 1 if a standby has to confirm commits; how long to wait for a lock, in ms.
-- Refusals have SQLSTATEs of ours, which connection.py knows.
--
-- Assignments of plain expressions, as here, cost a tenth of what a statement does.
CREATE FUNCTION enter(env bigint[], writing boolean, OUT now_ms bigint, OUT timeline bigint)
LANGUAGE plpgsql AS $$
DECLARE
    setting text;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'this is a standby' USING ERRCODE = 'NK001';
    END IF;
    timeline := ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint;
    IF timeline < env[3] THEN
        RAISE EXCEPTION 'this was the primary once' USING ERRCODE = 'NK001';
    END IF;
    IF writing THEN
        IF env[4] = 1 AND current_setting('synchronous_standby_names') = '' THEN
            RAISE EXCEPTION 'commits do not wait for a standby' USING ERRCODE = 'NK002';
        END IF;
        IF current_setting('transaction_isolation') <> 'read committed' THEN
            RAISE EXCEPTION 'transactions are not read committed' USING ERRCODE = 'NK003';
        END IF;
        IF current_setting('synchronous_commit') NOT IN ('on', 'remote_apply') THEN
            setting := set_config('synchronous_commit', 'on', true);
        END IF;
        setting := set_config('lock_timeout', env[5]::text, true);
    END IF;
    now_ms := greatest(env[1], clock(env));
END $$;

-- The time. Who has waited for a lock reads it again.
CREATE FUNCTION clock(env bigint[]) RETURNS bigint
LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN env[2] < 0 THEN floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
        ELSE env[2] END
$$;

-- Lock queues by their keys, in the order of these, as everybody does; say which there are.
--
-- Here and elsewhere every statement is written so that one index only can serve it, whatever the
-- planner happens to believe of sizes: LATERAL (… OFFSET 0) makes a look-up of what could otherwise
-- become a walk over the table; rows are compared as a whole, or asked for in an order, that one index
-- has; a column to which 0 is added has no index. What is to be changed is named by its ctid: nobody
-- else can have moved it while we hold its queue.
CREATE FUNCTION own(kinds text[], projects text[], names text[]) RETURNS SETOF queues
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT q.* FROM (
        SELECT k.* FROM unnest(kinds, projects, names) AS k (kind, project, name)
        GROUP BY k.kind, k.project, k.name
        ORDER BY k.kind COLLATE "C", k.project COLLATE "C", k.name COLLATE "C" OFFSET 0
    ) AS k CROSS JOIN LATERAL (
        SELECT u.* FROM queues u
        WHERE u.kind = k.kind AND u.project = k.project AND u.name = k.name OFFSET 0 FOR UPDATE
    ) AS q;
END $$;

-- The tick at or after a time: few distinct ends keep the tallies short.
CREATE FUNCTION tick(at_ms bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT (at_ms + 99) / 100 * 100';

-- So many more, or fewer, messages of these lanes end in these ways at these times.
CREATE FUNCTION tally(lanes bigint[], kinds integer[], ats bigint[], ns bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    nothing_left tid[];
BEGIN
    WITH changed AS (
        INSERT INTO tallies AS t (lane, kind, at_ms, n)
        SELECT d.lane, d.kind, d.at_ms, sum(d.n)
        FROM unnest(lanes, kinds, ats, ns) AS d (lane, kind, at_ms, n)
        GROUP BY d.lane, d.kind, d.at_ms HAVING sum(d.n) <> 0
        ON CONFLICT (lane, kind, at_ms) DO UPDATE SET n = t.n + excluded.n
        RETURNING t.ctid AS at, t.n
    )
    SELECT array_agg(c.at) FROM changed c WHERE c.n = 0 INTO nothing_left;
    IF nothing_left IS NOT NULL THEN
        DELETE FROM tallies WHERE ctid = ANY (nothing_left);
    END IF;
END $$;

-- How many rows of a lane have expired, lapsed and become due, but have not been tidied up.
CREATE FUNCTION passed(
    which bigint, now_ms bigint, OUT expired bigint, OUT lapsed bigint, OUT due bigint
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    SELECT coalesce(sum(t.n) FILTER (WHERE k.kind = 0), 0),
        coalesce(sum(t.n) FILTER (WHERE k.kind = 1), 0),
        coalesce(sum(t.n) FILTER (WHERE k.kind = 2), 0)
    FROM unnest('{0, 1, 2}'::integer[]) AS k (kind) CROSS JOIN LATERAL (
        SELECT sum(n) AS n FROM tallies
        WHERE (lane, kind, at_ms) >= (which, k.kind, 0)
            AND (lane, kind, at_ms) <= (which, k.kind, now_ms)
    ) AS t INTO expired, lapsed, due;
END $$;

-- Put back up to 500 messages of a lane whose claim or delay has ended, those behind this mark;
-- say how many there were, the new mark, the lowest position, and what the tallies lose.
CREATE FUNCTION put_back(
    which bigint, now_ms bigint, INOUT mark_ms bigint, INOUT mark_position bigint,
    OUT moved bigint, OUT lowest bigint,
    OUT kinds integer[], OUT ats bigint[], OUT ns bigint[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    WITH due AS MATERIALIZED (
        SELECT ctid AS at, position, visible_ms, expires_ms, claim FROM messages
        WHERE lane = which AND ready IS NULL
            AND (visible_ms, position) > (mark_ms, mark_position) AND visible_ms <= now_ms
        ORDER BY visible_ms, position LIMIT 500
    ), back AS (
        UPDATE messages m SET ready = m.position, claim = NULL, visible_ms = 0,
            started_ms = NULL, claim_ttl_s = NULL
        FROM due WHERE m.ctid = due.at
    ), ended AS (
        SELECT CASE WHEN claim IS NULL THEN 2 ELSE 1 END AS kind,
            least(visible_ms, expires_ms) AS at_ms, -count(*) AS n
        FROM due GROUP BY 1, 2
    )
    SELECT d.moved, d.lowest, e.kinds, e.ats, e.ns, l.visible_ms, l.position
    FROM (SELECT count(*) AS moved, min(position) AS lowest FROM due) AS d,
        (SELECT array_agg(kind) AS kinds, array_agg(at_ms) AS ats, array_agg(n) AS ns
            FROM ended) AS e
        LEFT JOIN (SELECT visible_ms, position FROM due
            ORDER BY visible_ms DESC, position DESC LIMIT 1) AS l ON true
    INTO moved, lowest, kinds, ats, ns, mark_ms, mark_position;
    IF moved < 500 THEN
        mark_ms := now_ms;
        mark_position := 9223372036854775807;
    END IF;
END $$;

-- When the first of what hides messages of a lane ends after a time.
CREATE FUNCTION next_due(which bigint, after_ms bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN (
        SELECT coalesce(min(f.at_ms), 9223372036854775807)
        FROM unnest('{1, 2}'::integer[]) AS k (kind) CROSS JOIN LATERAL (
            SELECT t.lane, t.kind, t.at_ms FROM tallies t
            WHERE (t.lane, t.kind, t.at_ms) > (which, k.kind, after_ms)
            ORDER BY t.lane, t.kind, t.at_ms LIMIT 1
        ) AS f
        WHERE f.lane = which AND f.kind = k.kind
    );
END $$;

-- Pass words on to whoever listens. If they get lost in a crash, it was not in vain to ask again.
CREATE FUNCTION tell(channel text, words text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM pg_notify(channel, word) FROM unnest(words) AS w (word);
END $$;

CREATE FUNCTION ping(env bigint[]) RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    RETURN (SELECT e.now_ms FROM enter(env, true) AS e);
END $$;
