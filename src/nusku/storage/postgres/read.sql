-- A batch of looks at messages. They take no locks: all that a queue shows was committed in the
-- order of the positions, and this function, being STABLE, sees one moment.
--
-- o_what  1 page, 2 get, 3 claimed, 4 count
-- o_flags  of a page: 1 with held ones, 2 with delayed ones, 4 even if something waits to be put back
-- g_  positions asked for: operation, position
--
-- Answers, by `what`:
--  0 operation op: position is the time, numbers when something becomes visible; then, of a claim,
--    its ttl and start; of a count, how many are free, held and delayed
--  1 once: expires_ms is the timeline      2 stale     5 too much to walk over for this budget
--  6 a message     9 something has to be put back first
CREATE FUNCTION read(
    env bigint[],
    o_what integer[], o_kind text[], o_project text[], o_name text[], o_generation text[],
    o_after bigint[], o_limit integer[], o_flags integer[], o_client text[], o_claim uuid[],
    o_budget integer[],
    g_op integer[], g_position bigint[]
) RETURNS TABLE (
    what integer, op integer, "position" bigint, posted_ms bigint, ttl_s integer, expires_ms bigint,
    count integer, client text, crc integer, body bytea, claim uuid, attributes bytea,
    numbers bigint[]
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    span CONSTANT bigint := 4000;
    now bigint;
    line bigint;
    at bigint;
    q queues;
    gone record;
    live bigint;
    start bigint;
    stop bigint;
    wanted integer;
    got integer;
    budget integer;
    everything boolean;
BEGIN
    SELECT e.now_ms, e.timeline FROM enter(env, false) AS e INTO now, line;
    what := 1;
    expires_ms := line;
    RETURN NEXT;
    FOR i IN 1 .. cardinality(o_what) LOOP
        op := i;
        SELECT u.* FROM queues u
        WHERE u.kind = o_kind[i] AND u.project = o_project[i] AND u.name = o_name[i] INTO q;
        IF q.id IS NULL OR q.generation <> o_generation[i] OR q.seal <> '' THEN
            what := 2;
            RETURN NEXT;
            CONTINUE;
        END IF;
        at := greatest(now, q.last_ms);
        what := 0;
        position := at;
        numbers := ARRAY[q.due_ms];
        budget := o_budget[i];
        CASE o_what[i]
        WHEN 1 THEN
            IF q.due_ms <= at AND o_flags[i] & 4 = 0 THEN
                what := 9;
                RETURN NEXT;
                CONTINUE;
            END IF;
            everything := o_flags[i] & 3 <> 0 OR q.due_ms <= at;
            start := greatest(o_after[i] + 1, CASE WHEN everything THEN q.low ELSE q.ready_low END);
            wanted := o_limit[i];
            LOOP
                stop := start + span;
                IF everything THEN
                    RETURN QUERY
                    SELECT 6, i, m.position, m.posted_ms, m.ttl_s, m.expires_ms, m.count, m.client,
                        m.crc, m.body, CASE WHEN m.visible_ms > at THEN m.claim END, m.attributes,
                        NULL::bigint[]
                    FROM messages m
                    WHERE m.lane = q.lane AND m.position >= start AND m.position < stop
                        AND m.expires_ms > at
                        AND (o_client[i] IS NULL OR m.client <> o_client[i])
                        AND (m.visible_ms <= at
                            OR o_flags[i] & CASE WHEN m.claim IS NULL THEN 2 ELSE 1 END <> 0)
                    ORDER BY m.position LIMIT wanted;
                ELSE
                    RETURN QUERY
                    SELECT 6, i, m.position, m.posted_ms, m.ttl_s, m.expires_ms, m.count, m.client,
                        m.crc, m.body, NULL::uuid, m.attributes, NULL::bigint[]
                    FROM messages m
                    WHERE m.lane = q.lane AND m.ready >= start AND m.ready < stop
                        AND m.expires_ms > at
                        AND (o_client[i] IS NULL OR m.client <> o_client[i])
                    ORDER BY m.ready LIMIT wanted;
                END IF;
                GET DIAGNOSTICS got = ROW_COUNT;
                wanted := wanted - got;
                EXIT WHEN wanted <= 0 OR stop >= q.next_position;
                IF everything THEN
                    SELECT m.position FROM messages m WHERE m.lane = q.lane AND m.position >= stop
                    ORDER BY m.position LIMIT 1 INTO start;
                ELSE
                    SELECT m.ready FROM messages m WHERE m.lane = q.lane AND m.ready >= stop
                    ORDER BY m.ready LIMIT 1 INTO start;
                END IF;
                EXIT WHEN start IS NULL;
                budget := budget - 1;
                IF budget <= 0 THEN
                    what := 5;
                    EXIT;
                END IF;
            END LOOP;
        WHEN 2 THEN
            RETURN QUERY
            SELECT 6, i, m.position, m.posted_ms, m.ttl_s, m.expires_ms, m.count, m.client, m.crc,
                m.body, CASE WHEN m.visible_ms > at THEN m.claim END, m.attributes, NULL::bigint[]
            FROM unnest(g_op, g_position) AS g (op, position) CROSS JOIN LATERAL (
                SELECT m.* FROM messages m
                WHERE m.lane = q.lane AND m.position = g.position OFFSET 0
            ) AS m
            WHERE g.op = i AND m.expires_ms > at;
        WHEN 3 THEN
            RETURN QUERY
            SELECT 6, i, m.position, m.posted_ms, m.ttl_s, m.expires_ms, m.count, m.client, m.crc,
                m.body, m.claim, m.attributes, NULL::bigint[]
            FROM messages m
            WHERE m.claim = o_claim[i] AND m.lane + 0 = q.lane AND m.visible_ms > at
                AND m.expires_ms > at;
            SELECT ARRAY[q.due_ms, m.claim_ttl_s, m.started_ms] FROM messages m
            WHERE m.claim = o_claim[i] AND m.lane + 0 = q.lane AND m.visible_ms > at
                AND m.expires_ms > at
            ORDER BY m.visible_ms DESC LIMIT 1 INTO numbers;
        ELSE
            SELECT * FROM passed(q.lane, at) INTO gone;
            live := q.total - gone.expired;
            numbers := ARRAY[
                q.due_ms, live - (q.held - gone.lapsed) - (q.delayed - gone.due),
                q.held - gone.lapsed, q.delayed - gone.due
            ];
            IF live > 0 THEN
                -- The oldest, from the front, and the newest, from the end.
                start := q.low;
                LOOP
                    stop := start + span;
                    RETURN QUERY
                    SELECT 6, i, m.position, m.posted_ms, m.ttl_s, m.expires_ms, m.count, m.client,
                        m.crc, m.body, CASE WHEN m.visible_ms > at THEN m.claim END, m.attributes,
                        NULL::bigint[]
                    FROM messages m
                    WHERE m.lane = q.lane AND m.position >= start AND m.position < stop
                        AND m.expires_ms > at
                    ORDER BY m.position LIMIT 1;
                    EXIT WHEN FOUND;
                    SELECT m.position FROM messages m WHERE m.lane = q.lane AND m.position >= stop
                    ORDER BY m.position LIMIT 1 INTO start;
                    EXIT WHEN start IS NULL;
                    budget := budget - 1;
                    EXIT WHEN budget <= 0;
                END LOOP;
                stop := q.next_position;
                WHILE budget > 0 LOOP
                    start := stop - span;
                    RETURN QUERY
                    SELECT 6, i, m.position, m.posted_ms, m.ttl_s, m.expires_ms, m.count, m.client,
                        m.crc, m.body, CASE WHEN m.visible_ms > at THEN m.claim END, m.attributes,
                        NULL::bigint[]
                    FROM messages m
                    WHERE m.lane = q.lane AND m.position >= start AND m.position < stop
                        AND m.expires_ms > at
                    ORDER BY m.position DESC LIMIT 1;
                    EXIT WHEN FOUND;
                    SELECT m.position + 1 FROM messages m
                    WHERE m.lane = q.lane AND m.position < start AND m.position >= q.low
                    ORDER BY m.position DESC LIMIT 1 INTO stop;
                    EXIT WHEN stop IS NULL;
                    budget := budget - 1;
                END LOOP;
                IF budget <= 0 THEN
                    what := 5;
                END IF;
            END IF;
        END CASE;
        RETURN NEXT;
    END LOOP;
END $$;

-- The same over all queues and topics: free, held, delayed, and the time.
CREATE FUNCTION volume(env bigint[]) RETURNS bigint[]
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT SET enable_seqscan = on SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now bigint;
    late bigint;
    figures bigint[];
    ended bigint[];
BEGIN
    SELECT e.now_ms FROM enter(env, false) AS e INTO now;
    SELECT ARRAY[coalesce(sum(total), 0), coalesce(sum(held), 0), coalesce(sum(delayed), 0)],
        max(last_ms)
    FROM queues WHERE kind IN ('queue', 'topic') INTO figures, late;
    now := greatest(now, late);
    SELECT ARRAY[coalesce(sum(t.n) FILTER (WHERE t.kind = 0), 0),
        coalesce(sum(t.n) FILTER (WHERE t.kind = 1), 0),
        coalesce(sum(t.n) FILTER (WHERE t.kind = 2), 0)]
    FROM tallies t JOIN queues u ON u.lane = t.lane AND u.kind IN ('queue', 'topic')
    WHERE t.kind IN (0, 1, 2) AND t.at_ms <= now INTO ended;
    figures := ARRAY[figures[1] - ended[1], figures[2] - ended[2], figures[3] - ended[3]];
    RETURN ARRAY[figures[1] - figures[2] - figures[3], figures[2], figures[3], now];
END $$;

CREATE FUNCTION occupied(env bigint[], which text)
RETURNS TABLE (project text, name text, messages bigint, oldest_ms bigint)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now bigint;
BEGIN
    SELECT e.now_ms FROM enter(env, false) AS e INTO now;
    RETURN QUERY
    SELECT u.project, u.name, (u.total - coalesce(e.n, 0))::bigint, m.posted_ms
    FROM queues u
        LEFT JOIN LATERAL (
            SELECT sum(t.n) AS n FROM tallies t
            WHERE (t.lane, t.kind, t.at_ms) >= (u.lane, 0, 0)
                AND (t.lane, t.kind, t.at_ms) <= (u.lane, 0, greatest(now, u.last_ms))
        ) AS e ON true
        JOIN LATERAL (
            SELECT m.posted_ms FROM messages m
            WHERE m.lane = u.lane AND m.position >= u.low
                AND m.expires_ms > greatest(now, u.last_ms)
            ORDER BY m.position LIMIT 1
        ) AS m ON true
    WHERE u.kind = which AND u.total > 0;
END $$;

-- Queues in which something has ended and waits to be tidied up, and how many messages have
-- expired there; a row without a kind says that doomed lanes are to be emptied.
CREATE FUNCTION backlog(env bigint[], most integer)
RETURNS TABLE (kind text, project text, name text, expired bigint)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now bigint;
BEGIN
    SELECT e.now_ms FROM enter(env, false) AS e INTO now;
    RETURN QUERY
    SELECT u.kind, u.project, u.name, e.expired FROM (
        SELECT t.lane, (coalesce(sum(t.n) FILTER (WHERE t.kind = 0), 0))::bigint AS expired
        FROM (
            (SELECT * FROM tallies WHERE kind = 0 AND at_ms <= now ORDER BY at_ms LIMIT 1000)
            UNION ALL
            (SELECT * FROM tallies WHERE kind = 1 AND at_ms <= now ORDER BY at_ms LIMIT 1000)
            UNION ALL
            (SELECT * FROM tallies WHERE kind = 2 AND at_ms <= now ORDER BY at_ms LIMIT 1000)
        ) AS t GROUP BY t.lane
    ) AS e CROSS JOIN LATERAL (
        SELECT q.kind, q.project, q.name FROM queues q WHERE q.lane = e.lane OFFSET 0
    ) AS u LIMIT most;
    RETURN QUERY SELECT NULL, NULL, NULL, 0::bigint WHERE EXISTS (SELECT FROM doomed);
END $$;

-- Remove up to so many rows of doomed lanes; several nodes do it at once, each for another lane.
CREATE FUNCTION sweep(env bigint[], most integer) RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    which bigint;
    done bigint;
    n bigint;
BEGIN
    PERFORM enter(env, true);
    SELECT d.lane FROM doomed d ORDER BY d.lane LIMIT 1 FOR UPDATE SKIP LOCKED INTO which;
    IF which IS NULL THEN
        RETURN 0;
    END IF;
    DELETE FROM messages m USING (
        SELECT ctid AS at FROM messages WHERE lane = which ORDER BY position LIMIT most
    ) AS d WHERE m.ctid = d.at;
    GET DIAGNOSTICS done = ROW_COUNT;
    IF done < most THEN
        DELETE FROM tallies t USING (
            SELECT ctid AS at FROM tallies WHERE (lane, kind) >= (which, 0) AND (lane, kind) <= (which, 2)
            ORDER BY lane, kind, at_ms LIMIT most - done
        ) AS d WHERE t.ctid = d.at;
        GET DIAGNOSTICS n = ROW_COUNT;
        done := done + n;
    END IF;
    IF done < most THEN
        DELETE FROM doomed WHERE lane = which;
    END IF;
    RETURN greatest(done, 1);
END $$;

-- Note how far the clock has come, so that it does not go back when servers start anew.
CREATE FUNCTION remember(env bigint[]) RETURNS void
LANGUAGE plpgsql
SET search_path FROM CURRENT
AS $$
BEGIN
    PERFORM enter(env, true);
    UPDATE meta SET value = env[1] WHERE name = 'last_ms' AND value < env[1];
END $$;
