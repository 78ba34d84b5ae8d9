-- Queues themselves: a batch of operations on them, done in order.
--
-- o_what  'admit', 'open', 'seal', 'clear', 'drop'
-- o_flags  of a drop: 1 only if it holds no messages, 2 only if there is no later version
--
-- The answers: of 'admit', the generation that is there if it is another, and the seal; 'stale'
-- where that is what callers have to hear.
CREATE FUNCTION rule(
    env bigint[], o_what text[], o_kind text[], o_project text[], o_name text[],
    o_generation text[], o_version bigint[], o_flags integer[], o_seal text[],
    OUT answers text[], OUT seals text[]
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now bigint;
    q queues;
    mine bigint[];
BEGIN
    answers := array_fill(NULL::text, ARRAY[cardinality(o_what)]);
    seals := answers;
    SELECT e.now_ms FROM enter(env, true) AS e INTO now;
    -- New ones first, in the order of their keys, then locks in that order: nobody who does it like
    -- this can wait for somebody who waits for him.
    PERFORM create_queue(o.kind, o.project, o.name, o.generation, o.version)
    FROM (
        SELECT DISTINCT ON (
            o.kind COLLATE "C", o.project COLLATE "C", o.name COLLATE "C"
        ) o.* FROM
            unnest(o_what, o_kind, o_project, o_name, o_generation, o_version)
            WITH ORDINALITY AS o (what, kind, project, name, generation, version, number)
        WHERE o.what = 'admit'
        ORDER BY o.kind COLLATE "C", o.project COLLATE "C", o.name COLLATE "C", o.number
    ) AS o;
    mine := ARRAY(SELECT id FROM own(o_kind, o_project, o_name));
    now := greatest(now, clock(env));
    FOR i IN 1 .. cardinality(o_what) LOOP
        SELECT u.* FROM queues u
        WHERE u.kind = o_kind[i] AND u.project = o_project[i] AND u.name = o_name[i] INTO q;
        IF o_what[i] = 'admit' THEN
            IF q.id IS NULL THEN    -- dropped by one before it
                PERFORM create_queue(o_kind[i], o_project[i], o_name[i], o_generation[i], o_version[i]);
                SELECT u.* FROM queues u
                WHERE u.kind = o_kind[i] AND u.project = o_project[i] AND u.name = o_name[i] INTO q;
            END IF;
            IF q.generation <> o_generation[i] THEN
                answers[i] := q.generation;
            ELSIF q.version < o_version[i] THEN
                UPDATE queues SET version = o_version[i] WHERE id = q.id;
            END IF;
            seals[i] := q.seal;
        ELSIF q.id IS NULL OR q.generation <> o_generation[i] OR q.id <> ALL (mine) THEN
            IF o_what[i] IN ('seal', 'clear') THEN
                answers[i] := 'stale';
            END IF;
        ELSIF o_what[i] = 'open' THEN
            UPDATE queues SET seal = ''
            WHERE id = q.id AND version = o_version[i] AND seal = o_seal[i] AND seal <> '';
        ELSIF o_what[i] = 'seal' THEN
            IF q.version > o_version[i] THEN
                answers[i] := 'stale';
            ELSE
                UPDATE queues SET version = o_version[i], seal = gen_random_uuid()::text WHERE id = q.id;
            END IF;
        ELSIF o_what[i] = 'clear' THEN
            IF q.seal <> '' THEN
                answers[i] := 'stale';
            ELSIF q.total > 0 THEN
                INSERT INTO doomed VALUES (q.lane);
                UPDATE queues SET lane = nextval('lanes'), total = 0, held = 0, delayed = 0,
                    low = next_position, ready_low = next_position, due_ms = 9223372036854775807,
                    settled_ms = 0, settled_position = 0, last_ms = greatest(now, last_ms)
                WHERE id = q.id;
            END IF;
        ELSIF (o_flags[i] & 2 = 0 OR q.version <= o_version[i]) AND (
            o_flags[i] & 1 = 0
            OR q.total <= (SELECT p.expired FROM passed(q.lane, greatest(now, q.last_ms)) AS p)
        ) THEN
            INSERT INTO doomed VALUES (q.lane);
            DELETE FROM queues WHERE id = q.id;
        END IF;
    END LOOP;
END $$;

-- A queue comes to be, empty and sealed, if there is none of that name.
CREATE FUNCTION create_queue(
    a_kind text, a_project text, a_name text, a_generation text, a_version bigint
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM queues WHERE kind = a_kind AND project = a_project AND name = a_name
    ) THEN
        INSERT INTO queues (kind, project, name, generation, version, seal, lane)
        VALUES (a_kind, a_project, a_name, a_generation, a_version, gen_random_uuid()::text,
            nextval('lanes'))
        ON CONFLICT (kind, project, name) DO NOTHING;
    END IF;
END $$;

-- Change the figures of a queue by what was handed to the tallies, and its marks by what came.
CREATE FUNCTION enter_in_books(
    q queues, now bigint, kinds integer[], ats bigint[], ns bigint[],
    next bigint, lowest bigint, lowest_ready bigint, first_due bigint
) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF kinds <> '{}' THEN
        PERFORM tally(array_fill(q.lane, ARRAY[cardinality(kinds)]), kinds, ats, ns);
    END IF;
    UPDATE queues u SET total = u.total + d.total, held = u.held + d.held,
        delayed = u.delayed + d.delayed, next_position = greatest(u.next_position, next),
        low = least(u.low, lowest), ready_low = least(u.ready_low, lowest_ready),
        due_ms = least(u.due_ms, first_due), last_ms = greatest(u.last_ms, now)
    FROM (
        SELECT coalesce(sum(k.n) FILTER (WHERE k.kind = 0), 0) AS total,
            coalesce(sum(k.n) FILTER (WHERE k.kind = 1), 0) AS held,
            coalesce(sum(k.n) FILTER (WHERE k.kind = 2), 0) AS delayed
        FROM unnest(kinds, ns) AS k (kind, n)
    ) AS d
    WHERE u.id = q.id;
END $$;

-- Remove messages where it depends on all of them, or on several claims: one answer for each
-- position (0 gone, 1 unclaimed, 2 held by another, 3 claim unknown); NULL if the queue is stale.
CREATE FUNCTION remove_held(
    env bigint[], a_kind text, a_project text, a_name text, a_generation text,
    positions bigint[], claims uuid[], together boolean
) RETURNS integer[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now bigint;
    q queues;
    answers integer[];
    holders uuid[];
    live boolean;
    kinds integer[];
    ats bigint[];
    ns bigint[];
BEGIN
    SELECT e.now_ms FROM enter(env, true) AS e INTO now;
    SELECT * FROM own(ARRAY[a_kind], ARRAY[a_project], ARRAY[a_name]) INTO q;
    IF q.id IS NULL OR q.generation <> a_generation OR q.seal <> '' THEN
        RETURN NULL;
    END IF;
    now := greatest(now, clock(env), q.last_ms);
    SELECT array_agg(DISTINCT m.claim) FROM unnest(positions) AS p (position) CROSS JOIN LATERAL (
        SELECT m.* FROM messages m
        WHERE m.lane = q.lane AND m.position = p.position OFFSET 0
    ) AS m
    WHERE m.expires_ms > now AND m.visible_ms > now AND m.claim IS NOT NULL INTO holders;
    holders := coalesce(holders, '{}');
    live := EXISTS (
        SELECT FROM unnest(claims) AS c (claim) CROSS JOIN LATERAL (
            SELECT FROM messages m WHERE m.claim = c.claim AND m.lane + 0 = q.lane
                AND m.visible_ms > now AND m.expires_ms > now OFFSET 0
        ) AS m
    );
    SELECT array_agg(
        CASE
            WHEN m.position IS NULL THEN 0
            WHEN together THEN CASE WHEN holders @> claims AND claims @> holders THEN 0 ELSE 2 END
            WHEN m.claim IS NULL OR m.visible_ms <= now THEN 1
            WHEN m.claim = ANY (claims) THEN 0
            WHEN live THEN 2
            ELSE 3
        END ORDER BY p.number)
    FROM unnest(positions) WITH ORDINALITY AS p (position, number)
        LEFT JOIN LATERAL (
            SELECT m.* FROM messages m
            WHERE m.lane = q.lane AND m.position = p.position OFFSET 0
        ) AS m ON m.expires_ms > now
    INTO answers;
    WITH gone AS (
        DELETE FROM messages m USING (
            SELECT m.at FROM unnest(positions, answers) AS p (position, answer) CROSS JOIN LATERAL (
                SELECT m.ctid AS at, m.expires_ms FROM messages m
                WHERE m.lane = q.lane AND m.position = p.position OFFSET 0
            ) AS m
            WHERE p.answer = 0 AND m.expires_ms > now
        ) AS d WHERE m.ctid = d.at
        RETURNING m.expires_ms, m.visible_ms, m.claim, m.ready
    ), ended AS (
        SELECT 0 AS kind, expires_ms AS at_ms FROM gone
        UNION ALL
        SELECT CASE WHEN claim IS NULL THEN 2 ELSE 1 END, least(visible_ms, expires_ms)
        FROM gone WHERE ready IS NULL
    ), summed AS (SELECT kind, at_ms, -count(*) AS n FROM ended GROUP BY kind, at_ms)
    SELECT array_agg(kind), array_agg(at_ms), array_agg(n) FROM summed INTO kinds, ats, ns;
    IF kinds IS NOT NULL THEN
        PERFORM enter_in_books(q, now, kinds, ats, ns, NULL, NULL, NULL, NULL);
    END IF;
    RETURN answers;
END $$;

-- Take messages of one queue to the end of another: their new positions; NULL if that is stale, or
-- either is sealed.
CREATE FUNCTION move(
    env bigint[], a_kind text[], a_project text[], a_name text[], a_generation text[],
    positions bigint[], a_ttl integer, a_claim uuid, attribute_positions bigint[], a_attributes bytea[],
    -- Nodes of an older version know nothing of these.
    body_positions bigint[] DEFAULT '{}', a_crcs integer[] DEFAULT '{}', a_bodies bytea[] DEFAULT '{}'
) RETURNS bigint[]
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now bigint;
    u queues;
    source queues;
    target queues;
    given bigint[];
    kinds integer[];
    ats bigint[];
    ns bigint[];
    new_kinds integer[];
    new_ats bigint[];
    new_ns bigint[];
BEGIN
    SELECT e.now_ms FROM enter(env, true) AS e INTO now;
    FOR u IN SELECT * FROM own(a_kind, a_project, a_name) LOOP
        IF (u.kind, u.project, u.name) = (a_kind[1], a_project[1], a_name[1]) THEN
            source := u;
        END IF;
        IF (u.kind, u.project, u.name) = (a_kind[2], a_project[2], a_name[2]) THEN
            target := u;
        END IF;
        now := greatest(now, clock(env), u.last_ms);
    END LOOP;
    IF target.id IS NULL OR target.generation <> a_generation[2] OR target.seal <> '' THEN
        RETURN NULL;
    END IF;
    IF source.seal <> '' AND source.generation = a_generation[1] THEN
        RETURN NULL;
    END IF;
    IF source.id IS NULL OR source.generation <> a_generation[1] THEN
        RETURN '{}';
    END IF;
    WITH picked AS MATERIALIZED (
        SELECT m.ctid AS at, m.position, m.visible_ms, m.expires_ms, m.claim, m.ready,
            target.next_position - 1 + row_number() OVER (ORDER BY p.number) AS new_position
        FROM (SELECT position, min(number) AS number
                FROM unnest(positions) WITH ORDINALITY AS o (position, number) GROUP BY position
            ) AS p
            CROSS JOIN LATERAL (
                SELECT m.ctid, m.* FROM messages m
                WHERE m.lane = source.lane AND m.position = p.position OFFSET 0
            ) AS m
        WHERE m.expires_ms > now AND (m.visible_ms <= now OR m.claim = a_claim)
    ), moved AS (
        UPDATE messages m SET
            lane = target.lane, position = p.new_position, ready = p.new_position, claim = NULL,
            visible_ms = 0, started_ms = NULL, claim_ttl_s = NULL, dedup = NULL,
            ttl_s = coalesce(a_ttl, m.ttl_s),
            expires_ms = coalesce(tick(now + a_ttl * 1000::bigint), m.expires_ms),
            attributes = coalesce(
                (SELECT n.attributes FROM unnest(attribute_positions, a_attributes)
                    AS n (position, attributes) WHERE n.position = p.position LIMIT 1), m.attributes),
            crc = coalesce(
                (SELECT n.crc FROM unnest(body_positions, a_crcs)
                    AS n (position, crc) WHERE n.position = p.position LIMIT 1), m.crc),
            body = coalesce(
                (SELECT n.body FROM unnest(body_positions, a_bodies)
                    AS n (position, body) WHERE n.position = p.position LIMIT 1), m.body)
        FROM picked p WHERE m.ctid = p.at
        RETURNING m.expires_ms
    ), ended AS (
        SELECT 0 AS kind, expires_ms AS at_ms FROM picked
        UNION ALL
        SELECT CASE WHEN claim IS NULL THEN 2 ELSE 1 END, least(visible_ms, expires_ms)
        FROM picked WHERE ready IS NULL
    ), summed AS (
        SELECT kind, at_ms, -count(*) AS n FROM ended GROUP BY kind, at_ms
    ), added AS (
        SELECT expires_ms AS at_ms, count(*) AS n FROM moved GROUP BY expires_ms
    )
    SELECT (SELECT array_agg(new_position ORDER BY new_position) FROM picked),
        (SELECT array_agg(kind) FROM summed), (SELECT array_agg(at_ms) FROM summed),
        (SELECT array_agg(n) FROM summed), (SELECT array_agg(0) FROM added),
        (SELECT array_agg(at_ms) FROM added), (SELECT array_agg(n) FROM added)
    INTO given, kinds, ats, ns, new_kinds, new_ats, new_ns;
    IF given IS NOT NULL THEN
        PERFORM enter_in_books(source, now, kinds, ats, ns, NULL, NULL, NULL, NULL);
        PERFORM enter_in_books(target, now, new_kinds, new_ats, new_ns,
            given[cardinality(given)] + 1, NULL, given[1], NULL);
    END IF;
    RETURN coalesce(given, '{}');
END $$;

-- From one store to another

CREATE FUNCTION list_queues(
    env bigint[], after_kind text, after_project text, after_name text, most integer
) RETURNS TABLE (kind text, project text, name text, generation text, version bigint,
    next_position bigint, messages bigint, sealed boolean, now_ms bigint)
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
    SELECT u.kind, u.project, u.name, u.generation, u.version, u.next_position, (u.total - coalesce(
            (SELECT sum(t.n) FROM tallies t
                WHERE (t.lane, t.kind, t.at_ms) >= (u.lane, 0, 0)
                    AND (t.lane, t.kind, t.at_ms) <= (u.lane, 0, greatest(now, u.last_ms))
            ), 0))::bigint,
        u.seal <> '', greatest(now, u.last_ms)
    FROM queues u WHERE (u.kind, u.project, u.name) > (after_kind, after_project, after_name)
    ORDER BY u.kind, u.project, u.name LIMIT most;
END $$;

-- The queues and topics of a project that hold messages.
CREATE FUNCTION holdings(env bigint[], which text)
RETURNS TABLE (kind text, project text, name text, generation text, version bigint,
    next_position bigint, messages bigint, sealed boolean, now_ms bigint)
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
    SELECT u.kind, u.project, u.name, u.generation, u.version, u.next_position,
        (u.total - coalesce(e.n, 0))::bigint, u.seal <> '', greatest(now, u.last_ms)
    FROM unnest('{queue, topic}'::text[]) AS k (kind) CROSS JOIN LATERAL (
            SELECT q.* FROM queues q
            WHERE (q.kind, q.project) = (k.kind, which) AND q.total > 0 OFFSET 0
        ) AS u LEFT JOIN LATERAL (
            SELECT sum(t.n) AS n FROM tallies t
            WHERE (t.lane, t.kind, t.at_ms) >= (u.lane, 0, 0)
                AND (t.lane, t.kind, t.at_ms) <= (u.lane, 0, greatest(now, u.last_ms))
        ) AS e ON true
    WHERE u.total > coalesce(e.n, 0);
END $$;

-- How many live messages there are behind a position, and the bytes of their bodies, up to `through`
-- or as far as one step looks; no row if the queue is stale.
CREATE FUNCTION weigh(
    env bigint[], a_kind text, a_project text, a_name text, a_generation text, after bigint,
    through bigint
) RETURNS TABLE (messages bigint, bytes bigint, reached bigint)
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
    q queues;
    start bigint;
BEGIN
    SELECT e.now_ms FROM enter(env, false) AS e INTO now;
    SELECT u.* FROM queues u
    WHERE u.kind = a_kind AND u.project = a_project AND u.name = a_name INTO q;
    IF q.id IS NULL OR q.generation <> a_generation THEN
        RETURN;
    END IF;
    now := greatest(now, clock(env), q.last_ms);
    start := greatest(after + 1, q.low);
    reached := least(start + span, q.next_position, through + 1) - 1;
    SELECT count(*), coalesce(sum(octet_length(m.body)), 0)::bigint FROM messages m
    WHERE m.lane = q.lane AND m.position >= start AND m.position <= reached AND m.expires_ms > now
    INTO messages, bytes;
    SELECT m.position - 1 FROM messages m WHERE m.lane = q.lane AND m.position > reached
    ORDER BY m.position LIMIT 1 INTO reached;
    reached := least(coalesce(reached, through), through);
    RETURN NEXT;
END $$;

-- Live messages behind a position as they are, and first a row without one that says where the
-- search has to go on if there was too much to walk over; no row at all if the queue is stale.
CREATE FUNCTION dump(
    env bigint[], a_kind text, a_project text, a_name text, a_generation text, after bigint,
    most integer, bodies boolean
) RETURNS TABLE ("position" bigint, posted_ms bigint, ttl_s integer, expires_ms bigint, count integer,
    client text, crc integer, body bytea, attributes bytea, dedup text, hidden_ms bigint, claim uuid,
    claim_ttl_s integer, started_ms bigint)
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
    q queues;
    start bigint;
    stop bigint;
    wanted integer := most;
    got integer;
    budget integer := 10;
BEGIN
    SELECT e.now_ms FROM enter(env, false) AS e INTO now;
    SELECT u.* FROM queues u
    WHERE u.kind = a_kind AND u.project = a_project AND u.name = a_name INTO q;
    IF q.id IS NULL OR q.generation <> a_generation THEN
        RETURN;
    END IF;
    now := greatest(now, clock(env), q.last_ms);
    start := greatest(after + 1, q.low);
    LOOP
        stop := start + span;
        RETURN QUERY
        SELECT m.position, m.posted_ms, m.ttl_s, m.expires_ms, m.count, m.client, m.crc,
            CASE WHEN bodies THEN m.body END, m.attributes, m.dedup,
            CASE WHEN m.visible_ms > now THEN m.visible_ms ELSE 0 END,
            CASE WHEN m.visible_ms > now THEN m.claim END,
            CASE WHEN m.visible_ms > now AND m.claim IS NOT NULL THEN m.claim_ttl_s ELSE 0 END,
            CASE WHEN m.visible_ms > now AND m.claim IS NOT NULL THEN m.started_ms
                ELSE 0::bigint END
        FROM messages m
        WHERE m.lane = q.lane AND m.position >= start AND m.position < stop AND m.expires_ms > now
        ORDER BY m.position LIMIT wanted;
        GET DIAGNOSTICS got = ROW_COUNT;
        wanted := wanted - got;
        EXIT WHEN wanted <= 0 OR stop >= q.next_position;
        SELECT m.position FROM messages m WHERE m.lane = q.lane AND m.position >= stop
        ORDER BY m.position LIMIT 1 INTO start;
        EXIT WHEN start IS NULL;
        budget := budget - 1;
        IF budget <= 0 THEN
            posted_ms := start - 1;
            EXIT;
        END IF;
    END LOOP;
    RETURN NEXT;
END $$;

-- Between two positions a queue holds exactly these. NULL: done; else the position from which on
-- it has to be called again, so that no call works for long. -1: it is stale.
CREATE FUNCTION load(
    env bigint[], a_kind text, a_project text, a_name text, a_generation text, a_version bigint,
    next bigint, after bigint, through bigint,
    m_position bigint[], m_posted bigint[], m_ttl integer[], m_expires bigint[], m_count integer[],
    m_client text[], m_crc integer[], m_body bytea[], m_attributes bytea[], m_dedup text[],
    m_hidden bigint[], m_claim uuid[], m_claim_ttl integer[], m_started bigint[]
) RETURNS bigint
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    step CONSTANT integer := 2000;
    now bigint;
    q queues;
    kinds integer[];
    ats bigint[];
    ns bigint[];
    removed bigint;
    upto bigint;
    lowest bigint;
    lowest_ready bigint;
    first_due bigint;
    last_position bigint;
BEGIN
    SELECT e.now_ms FROM enter(env, true) AS e INTO now;
    PERFORM create_queue(a_kind, a_project, a_name, a_generation, a_version);
    SELECT * FROM own(ARRAY[a_kind], ARRAY[a_project], ARRAY[a_name]) INTO q;
    IF q.id IS NULL OR q.generation <> a_generation OR q.version > a_version THEN
        RETURN -1;
    END IF;
    IF greatest(next, through) > 8796093022208 THEN
        RAISE EXCEPTION 'the queue has used up its positions' USING ERRCODE = 'NK004';
    END IF;
    now := greatest(now, clock(env), q.last_ms);
    UPDATE queues SET version = a_version WHERE id = q.id AND version <> a_version;
    -- What is there and is not exactly that goes; where it is much, this is only the first part.
    SELECT max(p.position), count(*) FROM (
        SELECT m.position FROM messages m
        WHERE m.lane = q.lane AND m.position > after AND m.position <= through
        ORDER BY m.position LIMIT step
    ) AS p INTO upto, removed;
    IF removed < step THEN
        upto := through;
    END IF;
    WITH gone AS (
        DELETE FROM messages m USING (
            SELECT m.ctid AS at FROM messages m
            WHERE m.lane = q.lane AND m.position > after AND m.position <= upto
            ORDER BY m.position LIMIT step
        ) AS d WHERE m.ctid = d.at
        RETURNING m.expires_ms, m.visible_ms, m.claim, m.ready
    ), ended AS (
        SELECT 0 AS kind, expires_ms AS at_ms FROM gone
        UNION ALL
        SELECT CASE WHEN claim IS NULL THEN 2 ELSE 1 END, least(visible_ms, expires_ms)
        FROM gone WHERE ready IS NULL
    ), summed AS (SELECT kind, at_ms, -count(*) AS n FROM ended GROUP BY kind, at_ms)
    SELECT coalesce(array_agg(kind), '{}'), coalesce(array_agg(at_ms), '{}'),
        coalesce(array_agg(n), '{}')
    FROM summed INTO kinds, ats, ns;
    UPDATE messages m SET dedup = NULL FROM (
        SELECT m.at FROM unnest(m_position, m_dedup, m_expires) AS n (position, dedup, expires)
            CROSS JOIN LATERAL (
                SELECT m.ctid AS at FROM messages m
                WHERE m.lane = q.lane AND m.dedup = n.dedup OFFSET 0
            ) AS m
        WHERE n.dedup IS NOT NULL AND n.position > after AND n.position <= upto AND n.expires > now
    ) AS d WHERE m.ctid = d.at;
    WITH new AS (
        INSERT INTO messages (lane, position, posted_ms, expires_ms, visible_ms, ready, started_ms,
            claim, ttl_s, count, crc, claim_ttl_s, client, attributes, dedup, body)
        SELECT q.lane, n.position, n.posted, n.expires, CASE WHEN h.hidden THEN n.hidden ELSE 0 END,
            CASE WHEN NOT h.hidden THEN n.position END,
            CASE WHEN h.held THEN n.started END, CASE WHEN h.held THEN n.claim END,
            n.ttl, n.count, n.crc, CASE WHEN h.held THEN n.claim_ttl END, n.client, n.attributes,
            n.dedup, n.body
        FROM unnest(m_position, m_posted, m_ttl, m_expires, m_count, m_client, m_crc, m_body,
            m_attributes, m_dedup, m_hidden, m_claim, m_claim_ttl, m_started) AS n (position, posted,
            ttl, expires, count, client, crc, body, attributes, dedup, hidden, claim, claim_ttl,
            started),
            LATERAL (SELECT n.hidden > now AS hidden, n.hidden > now AND n.claim IS NOT NULL AS held)
                AS h
        WHERE n.position > after AND n.position <= upto AND n.expires > now
        RETURNING position, expires_ms, visible_ms, claim, ready
    ), change AS (
        SELECT 0 AS kind, expires_ms AS at_ms FROM new
        UNION ALL
        SELECT CASE WHEN claim IS NULL THEN 2 ELSE 1 END, least(visible_ms, expires_ms)
        FROM new WHERE ready IS NULL
    ), summed AS (SELECT kind, at_ms, count(*) AS n FROM change GROUP BY kind, at_ms)
    SELECT kinds || array_agg(kind), ats || array_agg(at_ms), ns || array_agg(n),
        (SELECT min(position) FROM new), (SELECT min(ready) FROM new), (SELECT max(position) FROM new),
        (SELECT min(least(visible_ms, expires_ms)) FROM new WHERE ready IS NULL)
    FROM summed INTO kinds, ats, ns, lowest, lowest_ready, last_position, first_due;
    PERFORM enter_in_books(q, now, kinds, ats, ns, greatest(next, last_position + 1), lowest,
        lowest_ready, first_due);
    IF upto < through THEN
        RETURN upto;
    END IF;
    RETURN NULL;
END $$;
