-- A batch of changes to messages, each of one or several queues, in one transaction.
--
-- The queues' rows are locked in the order of their keys, and until the commit, so that the order of
-- positions is the order in which they become visible. Then what has ended is put back, and the
-- operations are done set by set: removals; releases and renewals; additions; claims and pops. All
-- of them were under way at the same time, so any order is a right one.
--
-- q_  queues, by number: key, and how many positions are to be given out
-- f_  what callers take a queue to be: its number, generation, version (-1: any)
-- r_  removals, by message: who asks (f_), operation, position, mode (0 unclaimed, 1 held by r_claim,
--     2 any)
-- x_  additions: operation, and each f_ that has to be right
-- a_  additions, by message; columns that none of them needs may be empty
-- d_  additions, by queue, ttl and delay: how many
-- c_  claims with the same terms, and pops (c_ttl -1): who, first and last of k_, how many in all
-- k_  claims and pops: operation, how many go to those before it in its c_, claim id
-- y_  queues to be tidied up, and how many expired messages may be removed
-- turns  releases and renewals
--
-- Answers, by `what`:
--  0 once: position is the time, expires_ms the timeline, numbers the first position given out in
--    each queue      1 once: when something becomes visible in each queue      2 those f_ that are stale
--  3 where some have dedup keys, of all additions: op is the message's number in a_, position where
--    it is, or the one of that key
--  4 a removal that was none: ttl_s is why (1 unclaimed, 2 by another, 3 claim unknown)
--  5 operation op has to be asked for again                6 a message for operation op
--  7 operation op met those numbers, claimed too often     8 a release or renewal found something
--  9 queue op was tidied up: position rows were removed, expires_ms put back
CREATE FUNCTION work(
    env bigint[],
    q_kind text[], q_project text[], q_name text[], q_added integer[],
    f_queue integer[], f_generation text[], f_version bigint[],
    r_ref integer[], r_op integer[], r_position bigint[], r_mode integer[], r_claim uuid[],
    x_op integer[], x_ref integer[],
    a_op integer[], a_queue integer[], a_offset integer[], a_ttl integer[], a_client text[],
    a_crc integer[], a_body bytea[], a_delay integer[], a_attributes bytea[], a_dedup text[],
    a_posted bigint[], a_count integer[],
    d_queue integer[], d_ttl integer[], d_delay integer[], d_number integer[],
    c_ref integer[], c_first integer[], c_last integer[], c_want integer[], c_ttl integer[],
    c_grace integer[], c_max integer[],
    k_op integer[], k_before integer[], k_id uuid[],
    y_queue integer[], y_limit integer[],
    turns jsonb
) RETURNS TABLE (
    what integer, op integer, "position" bigint, posted_ms bigint, ttl_s integer, expires_ms bigint,
    count integer, client text, crc integer, body bytea, claim uuid, attributes bytea,
    numbers bigint[]
)
LANGUAGE plpgsql
SET search_path FROM CURRENT
-- Plans must not depend on statistics, which are never up to date here.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    span CONSTANT bigint := 4000;       -- positions looked at by one statement
    size CONSTANT integer := cardinality(q_kind);
    begun record;
    now bigint;
    locking boolean := true;
    q record;
    -- Of each queue, by number.
    places tid[] := array_fill(NULL::tid, ARRAY[size]);
    generations text[] := array_fill(NULL::text, ARRAY[size]);
    versions bigint[] := array_fill(0::bigint, ARRAY[size]);
    lanes bigint[] := versions;
    firsts bigint[] := versions;        -- the next position, before and
    nexts bigint[] := versions;         -- after what is added here
    lows bigint[] := versions;
    readies bigint[] := versions;
    dues bigint[] := versions;
    marks bigint[] := versions;
    mark_positions bigint[] := versions;
    totals bigint[] := versions;        -- by how much the figures change
    helds bigint[] := versions;
    delayeds bigint[] := versions;
    touched boolean[] := array_fill(false, ARRAY[size]);
    emptied boolean[] := touched;
    right_refs boolean[] := array_fill(false, ARRAY[cardinality(f_queue)]);
    stale bigint[];
    bad_ops integer[];
    -- What the tallies gain or lose: queue, kind, time, number.
    ds integer[] := '{}';
    dk integer[] := '{}';
    da bigint[] := '{}';
    dn bigint[] := '{}';
    dl bigint[] := '{}';
    i integer;
    k integer;
    s integer;
    n bigint;
    back record;
    gone record;
    t record;
    ends bigint;
    extended_ends bigint;
    start bigint;
    stop bigint;
    budget integer;
    last_taken bigint;
    found_at tid[];
    found_ends bigint[];
    more record;
    free_low bigint;
    befores integer[];
    again boolean;
BEGIN
    begun := enter(env, true);
    now := begun.now_ms;
    IF c_ref <> '{}' AND r_op = '{}' AND x_op = '{}' AND y_queue = '{}' AND turns IS NULL THEN
        -- Of claims alone, those that find nothing write nothing, not even a lock.
        locking := EXISTS (
            SELECT FROM unnest(q_kind, q_project, q_name) AS k (kind, project, name)
                CROSS JOIN LATERAL (
                    SELECT u.lane, u.ready_low, u.due_ms FROM queues u
                    WHERE u.kind = k.kind AND u.project = k.project AND u.name = k.name OFFSET 0
                ) AS u
            WHERE u.due_ms <= now OR (
                SELECT m.ready FROM messages m WHERE m.lane = u.lane AND m.ready >= u.ready_low
                ORDER BY m.ready LIMIT 1
            ) IS NOT NULL
        );
    END IF;
    IF locking THEN
        FOR q IN
            SELECT k.number, u.* FROM (
                SELECT k.* FROM unnest(q_kind, q_project, q_name)
                    WITH ORDINALITY AS k (kind, project, name, number)
                ORDER BY k.kind COLLATE "C", k.project COLLATE "C", k.name COLLATE "C" OFFSET 0
            ) AS k CROSS JOIN LATERAL (
                SELECT u.ctid AS at, u.* FROM queues u
                WHERE u.kind = k.kind AND u.project = k.project AND u.name = k.name OFFSET 0
                FOR UPDATE
            ) AS u
        LOOP
            s := q.number;
            places[s] := q.at;
            lanes[s] := q.lane;
            firsts[s] := q.next_position;
            nexts[s] := q.next_position + q_added[s];
            lows[s] := q.low;
            readies[s] := q.ready_low;
            dues[s] := q.due_ms;
            marks[s] := q.settled_ms;
            mark_positions[s] := q.settled_position;
            IF q.seal = '' THEN
                generations[s] := q.generation;
            END IF;
            versions[s] := q.version;
            now := greatest(now, q.last_ms);
            IF nexts[s] > 8796093022208 THEN
                RAISE EXCEPTION 'the queue has used up its positions' USING ERRCODE = 'NK004';
            END IF;
        END LOOP;
        now := greatest(now, clock(env));
    ELSE
        c_ref := '{}';
        FOR q IN
            SELECT k.number, u.* FROM unnest(q_kind, q_project, q_name)
                WITH ORDINALITY AS k (kind, project, name, number) CROSS JOIN LATERAL (
                    SELECT u.* FROM queues u
                    WHERE u.kind = k.kind AND u.project = k.project AND u.name = k.name OFFSET 0
                ) AS u
        LOOP
            dues[q.number] := q.due_ms;
            IF q.seal = '' THEN
                generations[q.number] := q.generation;
            END IF;
            versions[q.number] := q.version;
            now := greatest(now, q.last_ms);
        END LOOP;
    END IF;
    FOR i IN 1 .. cardinality(f_queue) LOOP
        s := f_queue[i];
        IF generations[s] = f_generation[i] AND (f_version[i] < 0 OR versions[s] = f_version[i]) THEN
            right_refs[i] := true;
        ELSE
            stale := stale || i::bigint;
        END IF;
    END LOOP;

    -- Tidying up

    FOR i IN 1 .. cardinality(y_queue) LOOP
        s := y_queue[i];
        CONTINUE WHEN places[s] IS NULL;
        WITH gone AS (
            DELETE FROM messages m USING (
                SELECT ctid AS at FROM messages
                WHERE lane = lanes[s] AND expires_ms <= now ORDER BY expires_ms LIMIT y_limit[i]
            ) AS d WHERE m.ctid = d.at
            RETURNING m.expires_ms, m.visible_ms, m.claim, m.ready
        ), ended AS (
            SELECT 0 AS kind, expires_ms AS at_ms FROM gone
            UNION ALL
            SELECT CASE WHEN claim IS NULL THEN 2 ELSE 1 END, least(visible_ms, expires_ms)
            FROM gone WHERE ready IS NULL
        ), summed AS (SELECT kind, at_ms, -count(*) AS n FROM ended GROUP BY kind, at_ms)
        SELECT ds || array_agg(s), dk || array_agg(kind), da || array_agg(at_ms),
            dn || array_agg(n), coalesce(-sum(n) FILTER (WHERE kind = 0), 0)
        FROM summed INTO ds, dk, da, dn, n;
        SELECT * FROM put_back(lanes[s], now, marks[s], mark_positions[s]) INTO back;
        marks[s] := back.mark_ms;
        mark_positions[s] := back.mark_position;
        IF back.moved > 0 THEN
            readies[s] := least(readies[s], back.lowest);
            ds := ds || array_fill(s, ARRAY[cardinality(back.kinds)]);
            dk := dk || back.kinds;
            da := da || back.ats;
            dn := dn || back.ns;
        END IF;
        IF back.moved < 500 AND dues[s] <= now THEN
            dues[s] := next_due(lanes[s], now);
        END IF;
        -- Walk over what is dead at the head, so that nobody has to do it again. Not over what is
        -- only going to be added below.
        FOR step IN 1 .. 10 LOOP
            SELECT m.position FROM messages m
            WHERE m.lane = lanes[s] AND m.position >= lows[s] AND m.position < lows[s] + span
                AND m.expires_ms > now
            ORDER BY m.position LIMIT 1 INTO start;
            lows[s] := coalesce(start, least(lows[s] + span, firsts[s]));
            EXIT WHEN start IS NOT NULL OR lows[s] >= firsts[s];
        END LOOP;
        FOR step IN 1 .. 10 LOOP
            SELECT m.ready FROM messages m
            WHERE m.lane = lanes[s] AND m.ready >= readies[s] AND m.ready < readies[s] + span
                AND m.expires_ms > now
            ORDER BY m.ready LIMIT 1 INTO start;
            readies[s] := coalesce(start, least(readies[s] + span, firsts[s]));
            EXIT WHEN start IS NOT NULL OR readies[s] >= firsts[s];
        END LOOP;
        touched[s] := true;
        what := 9;
        op := s;
        position := n;
        expires_ms := back.moved;
        RETURN NEXT;
    END LOOP;

    -- Removals

    IF r_op <> '{}' THEN
        WITH target AS MATERIALIZED (
            SELECT f_queue[r.ref] AS queue, r.op, m.at
            FROM unnest(r_ref, r_op, r_position, r_mode, r_claim) AS r (ref, op, position, mode, claim)
                CROSS JOIN LATERAL (
                    SELECT m.ctid AS at, m.claim, m.visible_ms, m.expires_ms FROM messages m
                    WHERE m.lane = lanes[f_queue[r.ref]] AND m.position = r.position OFFSET 0
                ) AS m
            WHERE right_refs[r.ref] AND CASE r.mode
                WHEN 0 THEN m.claim IS NULL OR m.visible_ms <= now
                WHEN 1 THEN m.claim = r.claim AND m.visible_ms > now AND m.expires_ms > now
                ELSE true END
        ), gone AS (
            DELETE FROM messages m USING target d WHERE m.ctid = d.at
            RETURNING d.queue, d.op, m.expires_ms,
                CASE WHEN m.ready IS NOT NULL THEN 0 WHEN m.claim IS NULL THEN 2 ELSE 1 END AS kind,
                least(m.visible_ms, m.expires_ms) AS ends_ms
        )
        SELECT count(*) AS n, array_agg(queue) AS queues, array_agg(op) AS ops,
            array_agg(expires_ms) AS expiries, array_agg(kind) AS kinds, array_agg(ends_ms) AS ends
        FROM gone INTO gone;
        FOR i IN 1 .. gone.n LOOP
            s := gone.queues[i];
            emptied[s] := true;
            ds := ds || s;
            dk := dk || 0;
            da := da || gone.expiries[i];
            dn := dn || -1::bigint;
            IF gone.kinds[i] > 0 THEN
                ds := ds || s;
                dk := dk || gone.kinds[i];
                da := da || gone.ends[i];
                dn := dn || -1::bigint;
            END IF;
        END LOOP;
        IF gone.n < cardinality(r_op) THEN
            RETURN QUERY
            SELECT 4, r.op, r.position, NULL::bigint,
                CASE WHEN m.claim IS NULL OR m.visible_ms <= now THEN 1
                    WHEN r.mode = 0 OR r.op = ANY (gone.ops) OR EXISTS (
                        SELECT FROM messages c WHERE c.claim = r.claim AND c.lane + 0 = m.lane
                            AND c.visible_ms > now AND c.expires_ms > now
                    ) THEN 2
                    ELSE 3 END,
                NULL::bigint, NULL::integer, NULL, NULL::integer, NULL::bytea, NULL::uuid,
                NULL::bytea, NULL::bigint[]
            FROM unnest(r_ref, r_op, r_position, r_mode, r_claim) AS r (ref, op, position, mode, claim)
                CROSS JOIN LATERAL (
                    SELECT m.lane, m.claim, m.visible_ms, m.expires_ms FROM messages m
                    WHERE m.lane = lanes[f_queue[r.ref]] AND m.position = r.position OFFSET 0
                ) AS m
            WHERE right_refs[r.ref] AND m.expires_ms > now;
        END IF;
        FOR s IN 1 .. size LOOP
            CONTINUE WHEN NOT emptied[s];
            SELECT m.position FROM messages m
            WHERE m.lane = lanes[s] AND m.position >= lows[s] AND m.position < lows[s] + span
            ORDER BY m.position LIMIT 1 INTO start;
            lows[s] := coalesce(start, least(lows[s] + span, firsts[s]));
        END LOOP;
    END IF;

    -- Releases and renewals

    IF turns IS NOT NULL THEN
        FOR t IN SELECT * FROM jsonb_to_recordset(turns) AS t (
            op integer, ref integer, claim uuid, renew boolean, seconds integer, grace integer,
            positions bigint[], attributes jsonb
        ) LOOP
            CONTINUE WHEN NOT right_refs[t.ref];
            s := f_queue[t.ref];
            ends := CASE WHEN t.seconds > 0 THEN tick(now + t.seconds * 1000::bigint) ELSE 0 END;
            WITH held AS MATERIALIZED (
                SELECT m.ctid AS at, m.position, m.visible_ms, m.expires_ms,
                    t.renew AND m.expires_ms < ends AS extended
                FROM messages m
                WHERE m.claim = t.claim AND m.lane + 0 = lanes[s] AND m.visible_ms > now
                    AND m.expires_ms > now
                    AND (t.positions IS NULL OR m.position + 0 = ANY (t.positions))
            ), turned AS (
                UPDATE messages m SET
                    ready = CASE WHEN ends = 0 THEN m.position END,
                    claim = CASE WHEN t.renew THEN m.claim END,
                    visible_ms = ends,
                    started_ms = CASE WHEN t.renew THEN now END,
                    claim_ttl_s = CASE WHEN t.renew THEN t.seconds END,
                    ttl_s = CASE WHEN h.extended THEN t.seconds + t.grace ELSE m.ttl_s END,
                    expires_ms = CASE WHEN h.extended
                        THEN tick(now + (t.seconds + t.grace) * 1000::bigint) ELSE m.expires_ms END,
                    attributes = coalesce(
                        decode(t.attributes ->> m.position::text, 'hex'), m.attributes
                    )
                FROM held h WHERE m.ctid = h.at
                RETURNING h.visible_ms AS old_visible_ms, h.expires_ms AS old_expires_ms,
                    h.extended, m.visible_ms, m.expires_ms, m.position
            ), change AS (
                SELECT 1 AS kind, least(old_visible_ms, old_expires_ms) AS at_ms, -1 AS n FROM turned
                UNION ALL
                SELECT CASE WHEN t.renew THEN 1 ELSE 2 END, least(visible_ms, expires_ms), 1
                FROM turned WHERE ends > 0
                UNION ALL
                SELECT 0, old_expires_ms, -1 FROM turned WHERE extended
                UNION ALL
                SELECT 0, expires_ms, 1 FROM turned WHERE extended
            ), summed AS (SELECT kind, at_ms, sum(n) AS n FROM change GROUP BY kind, at_ms)
            SELECT ds || array_agg(s), dk || array_agg(kind), da || array_agg(at_ms),
                dn || array_agg(n), (SELECT min(position) FROM turned)
            FROM summed INTO ds, dk, da, dn, start;
            CONTINUE WHEN start IS NULL;
            IF ends = 0 THEN
                readies[s] := least(readies[s], start);
            ELSE
                dues[s] := least(dues[s], ends);
            END IF;
            touched[s] := true;
            what := 8;
            op := t.op;
            RETURN NEXT;
        END LOOP;
    END IF;

    -- Additions

    IF x_op <> '{}' THEN
        IF stale IS NOT NULL THEN
            -- Maybe none of them, since what is stale may be a claim: then NULL would spoil all.
            SELECT coalesce(array_agg(x.op), '{}') FROM unnest(x_op, x_ref) AS x (op, ref)
            WHERE NOT right_refs[x.ref] INTO bad_ops;
            SELECT array_agg(CASE WHEN a.op <> ALL (bad_ops) THEN a.off END ORDER BY a.number)
            FROM unnest(a_op, a_offset) WITH ORDINALITY AS a (op, off, number) INTO a_offset;
        END IF;
        IF a_dedup <> '{}' THEN
            -- Dead ones make room for the new; those that live are left as they are.
            WITH gone AS (
                DELETE FROM messages m USING (
                    SELECT a.queue, m.at
                    FROM unnest(a_offset, a_queue, a_dedup) AS a (off, queue, dedup)
                        CROSS JOIN LATERAL (
                            SELECT m.ctid AS at, m.expires_ms FROM messages m
                            WHERE m.lane = lanes[a.queue] AND m.dedup = a.dedup OFFSET 0
                        ) AS m
                    WHERE a.dedup IS NOT NULL AND a.off IS NOT NULL AND m.expires_ms <= now
                ) AS d WHERE m.ctid = d.at
                RETURNING d.queue, m.expires_ms, m.visible_ms, m.claim, m.ready
            ), ended AS (
                SELECT queue, 0 AS kind, expires_ms AS at_ms FROM gone
                UNION ALL
                SELECT queue, CASE WHEN claim IS NULL THEN 2 ELSE 1 END,
                    least(visible_ms, expires_ms)
                FROM gone WHERE ready IS NULL
            ), summed AS (
                SELECT queue, kind, at_ms, -count(*) AS n FROM ended GROUP BY queue, kind, at_ms
            )
            SELECT ds || array_agg(queue), dk || array_agg(kind), da || array_agg(at_ms),
                dn || array_agg(n)
            FROM summed INTO ds, dk, da, dn;
            SELECT array_agg(
                CASE WHEN k.kept THEN k.before END ORDER BY k.number
            ) FROM (
                SELECT n.number, n.kept, (count(*) FILTER (WHERE n.kept)
                    OVER (PARTITION BY n.queue ORDER BY n.number) - 1)::integer AS before
                FROM (
                    SELECT a.number, a.queue, a.off IS NOT NULL AND (a.dedup IS NULL OR (
                        row_number() OVER (PARTITION BY a.queue, a.dedup, a.off IS NULL
                            ORDER BY a.number) = 1
                        AND NOT EXISTS (
                            SELECT FROM messages m
                            WHERE m.lane = lanes[a.queue] AND m.dedup = a.dedup OFFSET 0
                        )
                    )) AS kept
                    FROM unnest(a_queue, a_offset, a_dedup)
                        WITH ORDINALITY AS a (queue, off, dedup, number)
                ) AS n
            ) AS k INTO a_offset;
            FOR t IN
                SELECT a.queue, count(a.off) AS n FROM unnest(a_queue, a_offset) AS a (queue, off)
                GROUP BY a.queue
            LOOP
                nexts[t.queue] := firsts[t.queue] + t.n;
            END LOOP;
        END IF;
        INSERT INTO messages (lane, position, posted_ms, expires_ms, visible_ms, ready, ttl_s, count,
            crc, client, attributes, dedup, body)
        SELECT lanes[a.queue], firsts[a.queue] + a.off, coalesce(a.posted, now),
            tick(now + a.ttl * 1000::bigint),
            CASE WHEN a.delay > 0 THEN tick(now + a.delay * 1000::bigint) ELSE 0 END,
            CASE WHEN a.delay > 0 THEN NULL ELSE firsts[a.queue] + a.off END,
            a.ttl, coalesce(a.count, 0), a.crc, a.client, a.attributes, a.dedup, a.body
        FROM unnest(a_queue, a_offset, a_ttl, a_client, a_crc, a_body, a_delay, a_attributes,
            a_dedup, a_posted, a_count)
            AS a (queue, off, ttl, client, crc, body, delay, attributes, dedup, posted, count)
        WHERE a.off IS NOT NULL;
        IF stale IS NULL AND a_dedup = '{}' THEN
            FOR i IN 1 .. cardinality(d_queue) LOOP
                s := d_queue[i];
                ends := tick(now + d_ttl[i] * 1000::bigint);
                ds := ds || s;
                dk := dk || 0;
                da := da || ends;
                dn := dn || d_number[i]::bigint;
                IF d_delay[i] > 0 THEN
                    ds := ds || s;
                    dk := dk || 2;
                    da := da || least(ends, tick(now + d_delay[i] * 1000::bigint));
                    dn := dn || d_number[i]::bigint;
                END IF;
            END LOOP;
        ELSE
            WITH added AS (
                SELECT a.queue, tick(now + a.ttl * 1000::bigint) AS expires_ms,
                    tick(now + a.delay * 1000::bigint) AS visible_ms,
                    coalesce(a.delay, 0) > 0 AS delayed
                FROM unnest(a_queue, a_offset, a_ttl, a_delay) AS a (queue, off, ttl, delay)
                WHERE a.off IS NOT NULL
            ), change AS (
                SELECT queue, 0 AS kind, expires_ms AS at_ms FROM added
                UNION ALL
                SELECT queue, 2, least(visible_ms, expires_ms) FROM added WHERE delayed
            ), summed AS (
                SELECT queue, kind, at_ms, count(*) AS n FROM change GROUP BY queue, kind, at_ms
            )
            SELECT ds || array_agg(queue), dk || array_agg(kind), da || array_agg(at_ms),
                dn || array_agg(n)
            FROM summed INTO ds, dk, da, dn;
        END IF;
        IF a_dedup <> '{}' THEN
            RETURN QUERY
            SELECT 3, a.number::integer, coalesce(firsts[a.queue] + a.off, m.position), NULL::bigint,
                NULL::integer, NULL::bigint, NULL::integer, NULL, NULL::integer, NULL::bytea,
                NULL::uuid, NULL::bytea, NULL::bigint[]
            FROM unnest(a_queue, a_offset, a_dedup)
                WITH ORDINALITY AS a (queue, off, dedup, number)
                LEFT JOIN LATERAL (
                    SELECT m.position FROM messages m
                    WHERE m.lane = lanes[a.queue] AND m.dedup = a.dedup OFFSET 0
                ) AS m ON true;
        END IF;
        IF a_delay <> '{}' THEN
            FOR t IN
                SELECT a.queue, min(tick(now + a.delay * 1000::bigint)) AS due_ms
                FROM unnest(a_queue, a_offset, a_delay) AS a (queue, off, delay)
                WHERE a.delay > 0 AND a.off IS NOT NULL GROUP BY a.queue
            LOOP
                dues[t.queue] := least(dues[t.queue], t.due_ms);
            END LOOP;
        END IF;
    END IF;

    -- Claims and pops

    FOR i IN 1 .. cardinality(c_ref) LOOP
        CONTINUE WHEN NOT right_refs[c_ref[i]];
        s := f_queue[c_ref[i]];
        befores := k_before[c_first[i] : c_last[i]];
        numbers := NULL;
        found_at := '{}';
        found_ends := '{}';
        free_low := readies[s];
        last_taken := NULL;
        again := false;
        budget := 10;
        LOOP
            IF dues[s] <= now THEN
                SELECT * FROM put_back(lanes[s], now, marks[s], mark_positions[s]) INTO back;
                marks[s] := back.mark_ms;
                mark_positions[s] := back.mark_position;
                touched[s] := true;
                IF back.moved > 0 THEN
                    free_low := least(free_low, back.lowest);
                    ds := ds || array_fill(s, ARRAY[cardinality(back.kinds)]);
                    dk := dk || back.kinds;
                    da := da || back.ats;
                    dn := dn || back.ns;
                END IF;
                IF back.moved < 500 THEN
                    dues[s] := next_due(lanes[s], now);
                END IF;
                found_at := '{}';
                found_ends := '{}';
            END IF;
            start := free_low;
            LOOP
                stop := start + span;
                SELECT array_agg(f.at) AS at, array_agg(f.expires_ms) AS ends, max(f.ready) AS last
                FROM (
                    SELECT m.ctid AS at, m.expires_ms, m.ready FROM messages m
                    WHERE m.lane = lanes[s] AND m.ready >= start AND m.ready < stop
                        AND m.expires_ms > now AND (c_max[i] IS NULL OR m.count < c_max[i])
                    ORDER BY m.ready LIMIT c_want[i] - cardinality(found_at)
                ) AS f INTO more;
                IF more.last IS NOT NULL THEN
                    found_at := found_at || more.at;
                    found_ends := found_ends || more.ends;
                    last_taken := more.last;
                ELSIF found_at = '{}' THEN
                    -- What is dead is of no use to anybody, what was claimed too often may be.
                    PERFORM FROM messages m WHERE c_max[i] IS NOT NULL AND m.lane = lanes[s]
                        AND m.ready >= start AND m.ready < stop AND m.expires_ms > now
                    ORDER BY m.ready LIMIT 1;
                    IF NOT FOUND AND start = free_low THEN
                        free_low := stop;
                    END IF;
                END IF;
                EXIT WHEN cardinality(found_at) = c_want[i];
                SELECT m.ready FROM messages m WHERE m.lane = lanes[s] AND m.ready >= stop
                ORDER BY m.ready LIMIT 1 INTO start;
                IF start IS NULL THEN
                    stop := nexts[s];
                    EXIT;
                END IF;
                IF free_low = stop THEN
                    free_low := start;
                END IF;
                budget := budget - 1;
                again := budget <= 0;
                EXIT WHEN again;
            END LOOP;
            EXIT WHEN cardinality(found_at) = c_want[i] OR dues[s] > now OR again;
            budget := budget - 1;
            again := budget <= 0;
            EXIT WHEN again;
        END LOOP;
        again := again AND found_at = '{}';
        IF c_max[i] IS NOT NULL THEN
            SELECT array_agg(f.ready) FROM (
                SELECT m.ready FROM messages m
                WHERE m.lane = lanes[s] AND m.ready >= free_low AND m.expires_ms > now
                    AND m.ready < CASE WHEN cardinality(found_at) = c_want[i] THEN last_taken
                        ELSE stop END
                    AND m.count >= c_max[i]
                ORDER BY m.ready LIMIT 100
            ) AS f INTO numbers;
            IF numbers IS NOT NULL THEN
                again := false;
                what := 7;
                FOR k IN c_first[i] .. c_last[i] LOOP
                    op := k_op[k];
                    RETURN NEXT;
                END LOOP;
            END IF;
        END IF;
        IF numbers IS NULL AND NOT again THEN
            -- Nothing is left before what was taken; if that was not enough, nothing at all, unless
            -- there was so much dead among it that the search was given up.
            free_low := CASE WHEN cardinality(found_at) = c_want[i] OR budget <= 0
                THEN last_taken + 1 ELSE nexts[s] END;
        END IF;
        IF free_low <> readies[s] THEN
            readies[s] := free_low;
            touched[s] := true;
        END IF;
        numbers := NULL;
        IF again THEN
            what := 5;
            FOR k IN c_first[i] .. c_last[i] LOOP
                op := k_op[k];
                RETURN NEXT;
            END LOOP;
        ELSIF found_at <> '{}' AND c_ttl[i] < 0 THEN
            RETURN QUERY
            DELETE FROM messages m USING unnest(found_at) WITH ORDINALITY AS f (at, k)
            WHERE m.ctid = f.at
            RETURNING 6, k_op[c_first[i] - 1
                + width_bucket((f.k - 1)::integer, befores)],
                m.position, m.posted_ms, m.ttl_s, m.expires_ms, m.count, m.client, m.crc, m.body,
                NULL::uuid, m.attributes, NULL::bigint[];
            FOR k IN 1 .. cardinality(found_ends) LOOP
                ds := ds || s;
                dk := dk || 0;
                da := da || found_ends[k];
                dn := dn || -1::bigint;
            END LOOP;
        ELSIF found_at <> '{}' THEN
            ends := tick(now + c_ttl[i] * 1000::bigint);
            extended_ends := tick(now + (c_ttl[i] + c_grace[i]) * 1000::bigint);
            RETURN QUERY
            UPDATE messages m SET ready = NULL, claim = k_id[f.number], visible_ms = ends,
                started_ms = now, claim_ttl_s = c_ttl[i],
                count = m.count + CASE WHEN c_max[i] IS NULL THEN 0 ELSE 1 END,
                ttl_s = CASE WHEN m.expires_ms < ends THEN c_ttl[i] + c_grace[i] ELSE m.ttl_s END,
                expires_ms = CASE WHEN m.expires_ms < ends THEN extended_ends ELSE m.expires_ms END
            FROM (
                SELECT u.at, c_first[i] - 1
                    + width_bucket((u.k - 1)::integer, befores) AS number
                FROM unnest(found_at) WITH ORDINALITY AS u (at, k)
            ) AS f WHERE m.ctid = f.at
            RETURNING 6, k_op[f.number], m.position, m.posted_ms, m.ttl_s, m.expires_ms, m.count,
                m.client, m.crc, m.body, m.claim, m.attributes, NULL::bigint[];
            ds := ds || s;
            dk := dk || 1;
            da := da || ends;
            dn := dn || cardinality(found_at)::bigint;
            IF ends > ANY (found_ends) THEN
                FOR k IN 1 .. cardinality(found_ends) LOOP
                    CONTINUE WHEN found_ends[k] >= ends;
                    ds := ds || s || s;
                    dk := dk || 0 || 0;
                    da := da || found_ends[k] || extended_ends;
                    dn := dn || -1::bigint || 1::bigint;
                END LOOP;
            END IF;
            dues[s] := least(dues[s], ends);
        END IF;
    END LOOP;

    -- The figures

    IF locking THEN
        FOR i IN 1 .. cardinality(ds) LOOP
            s := ds[i];
            dl := dl || lanes[s];
            touched[s] := true;
            IF dk[i] = 0 THEN
                totals[s] := totals[s] + dn[i];
            ELSIF dk[i] = 1 THEN
                helds[s] := helds[s] + dn[i];
            ELSE
                delayeds[s] := delayeds[s] + dn[i];
            END IF;
        END LOOP;
        IF ds <> '{}' THEN
            PERFORM tally(dl, dk, da, dn);
        END IF;
        UPDATE queues u SET
            next_position = c.next_position, total = u.total + c.total, held = u.held + c.held,
            delayed = u.delayed + c.delayed, low = c.low, ready_low = c.ready_low,
            due_ms = c.due_ms, settled_ms = c.settled_ms, settled_position = c.settled_position,
            last_ms = now
        FROM unnest(places, nexts, totals, helds, delayeds, lows, readies, dues, marks,
            mark_positions, touched) AS c (at, next_position, total, held, delayed, low, ready_low,
            due_ms, settled_ms, settled_position, touched)
        WHERE u.ctid = c.at AND (c.touched OR u.next_position <> c.next_position);
    END IF;
    what := 0;
    op := NULL;
    position := now;
    expires_ms := begun.timeline;
    numbers := firsts;
    RETURN NEXT;
    what := 1;
    numbers := dues;
    RETURN NEXT;
    IF stale IS NOT NULL THEN
        what := 2;
        numbers := stale;
        RETURN NEXT;
    END IF;
END $$;
