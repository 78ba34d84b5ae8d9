-- A batch of nothing but plain additions: without delay, dedup key, time or count of their own. It is
-- what `work` would do, at half the price, and answers nothing where a caller is wrong about a queue:
-- then it has done nothing, and `work` is to be asked.
--
-- Parameters are named as those of `work`. firsts: the first position given out in each queue.
CREATE FUNCTION post(
    env bigint[],
    q_kind text[], q_project text[], q_name text[], q_added integer[],
    f_queue integer[], f_generation text[], f_version bigint[],
    a_queue integer[], a_offset integer[], a_ttl integer[], a_client text[], a_crc integer[],
    a_body bytea[], a_attributes bytea[],
    d_queue integer[], d_ttl integer[], d_number integer[]
) RETURNS TABLE (now_ms bigint, timeline bigint, firsts bigint[])
LANGUAGE plpgsql
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off
SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    begun record;
    now bigint;
    q record;
    places tid[];
    generations text[];
    versions bigint[];
    lanes bigint[];
BEGIN
    begun := enter(env, true);
    now := begun.now_ms;
    FOR q IN
        SELECT k.number, u.* FROM (
            SELECT k.* FROM unnest(q_kind, q_project, q_name)
                WITH ORDINALITY AS k (kind, project, name, number)
            ORDER BY k.kind COLLATE "C", k.project COLLATE "C", k.name COLLATE "C" OFFSET 0
        ) AS k CROSS JOIN LATERAL (
            SELECT u.ctid AS at, u.lane, u.next_position, u.seal, u.generation, u.version, u.last_ms
            FROM queues u
            WHERE u.kind = k.kind AND u.project = k.project AND u.name = k.name OFFSET 0
            FOR UPDATE
        ) AS u
    LOOP
        places[q.number] := q.at;
        lanes[q.number] := q.lane;
        firsts[q.number] := q.next_position;
        IF q.seal = '' THEN
            generations[q.number] := q.generation;
        END IF;
        versions[q.number] := q.version;
        now := greatest(now, q.last_ms);
        IF q.next_position + q_added[q.number] > 8796093022208 THEN
            RAISE EXCEPTION 'the queue has used up its positions' USING ERRCODE = 'NK004';
        END IF;
    END LOOP;
    FOR i IN 1 .. cardinality(f_queue) LOOP
        IF generations[f_queue[i]] IS DISTINCT FROM f_generation[i]
            OR versions[f_queue[i]] <> f_version[i]
        THEN
            RETURN;
        END IF;
    END LOOP;
    now := greatest(now, clock(env));
    INSERT INTO messages (lane, position, posted_ms, expires_ms, visible_ms, ready, ttl_s, count,
        crc, client, attributes, body)
    SELECT lanes[a.queue], firsts[a.queue] + a.off, now, tick(now + a.ttl * 1000::bigint), 0,
        firsts[a.queue] + a.off, a.ttl, 0, a.crc, a.client, a.attributes, a.body
    FROM unnest(a_queue, a_offset, a_ttl, a_client, a_crc, a_body, a_attributes)
        AS a (queue, off, ttl, client, crc, body, attributes);
    UPDATE queues u SET
        next_position = u.next_position + c.added, total = u.total + c.added, last_ms = now
    FROM unnest(places, q_added) AS c (at, added) WHERE u.ctid = c.at;
    INSERT INTO tallies AS t (lane, kind, at_ms, n)
    SELECT lanes[d.queue], 0, tick(now + d.ttl * 1000::bigint), d.number
    FROM unnest(d_queue, d_ttl, d_number) AS d (queue, ttl, number)
    ON CONFLICT (lane, kind, at_ms) DO UPDATE SET n = t.n + excluded.n;
    now_ms := now;
    timeline := begun.timeline;
    RETURN NEXT;
END $$;
