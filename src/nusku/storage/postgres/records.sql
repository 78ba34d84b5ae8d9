-- Small documents.

-- A batch of looks, each with its answer in rows of that number, and one that says what time it is.
--
-- o_what  'get', 'find', 'page', 'count', 'ended', 'dump'; a count is answered in `version`
CREATE FUNCTION look(
    env bigint[], o_what text[], o_kind text[], o_project text[], o_key text[], o_name bytea[],
    o_parent text[], o_since bigint[], o_limit integer[], o_all boolean[]
) RETURNS TABLE (
    op integer, kind text, project text, key text, doc bytea, version bigint, parent text,
    "unique" bytea, created_ms bigint, ends_ms bigint
)
LANGUAGE plpgsql STABLE
SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now bigint;
    line bigint;
    since bigint;
BEGIN
    SELECT e.now_ms, e.timeline FROM enter(env, false) AS e INTO now, line;
    op := 0;
    version := now;
    created_ms := line;
    RETURN NEXT;
    FOR i IN 1 .. cardinality(o_what) LOOP
        since := CASE WHEN o_all[i] THEN -1 ELSE now END;
        CASE o_what[i]
        WHEN 'get' THEN
            RETURN QUERY
            SELECT i, r.kind, r.project, r.key, r.doc, r.version, r.parent, r."unique", r.created_ms,
                r.ends_ms
            FROM records r WHERE r.kind = o_kind[i] AND r.project = o_project[i] AND r.key = o_key[i]
                AND (r.ends_ms IS NULL OR r.ends_ms > since);
        WHEN 'find' THEN
            RETURN QUERY
            SELECT i, r.kind, r.project, r.key, r.doc, r.version, r.parent, r."unique", r.created_ms,
                r.ends_ms
            FROM records r WHERE r.name = o_name[i]
                AND (r.ends_ms IS NULL OR r.ends_ms > since);
        WHEN 'page' THEN
            IF o_parent[i] IS NULL THEN
                RETURN QUERY
                SELECT i, r.kind, r.project, r.key, r.doc, r.version, r.parent, r."unique",
                    r.created_ms, r.ends_ms
                FROM records r
                WHERE r.kind = o_kind[i] AND r.project = o_project[i] AND r.key > o_key[i]
                    AND (r.ends_ms IS NULL OR r.ends_ms > since)
                ORDER BY r.key LIMIT o_limit[i];
            ELSE
                RETURN QUERY
                SELECT i, r.kind, r.project, r.key, r.doc, r.version, r.parent, r."unique",
                    r.created_ms, r.ends_ms
                FROM records r
                WHERE (r.kind, r.project, r.parent, r.key)
                        > (o_kind[i], o_project[i], o_parent[i], o_key[i])
                    AND (r.kind, r.project, r.parent) <= (o_kind[i], o_project[i], o_parent[i])
                    AND r.parent <> '' AND (r.ends_ms IS NULL OR r.ends_ms > since)
                ORDER BY r.kind, r.project, r.parent, r.key LIMIT o_limit[i];
            END IF;
        WHEN 'count' THEN
            RETURN QUERY
            SELECT i, NULL, NULL, NULL, NULL::bytea, count(*), NULL, NULL::bytea, NULL::bigint,
                NULL::bigint
            FROM records r WHERE r.kind = o_kind[i] AND r.project = o_project[i]
                AND (r.ends_ms IS NULL OR r.ends_ms > now);
        WHEN 'ended' THEN
            RETURN QUERY
            SELECT i, r.kind, r.project, r.key, r.doc, r.version, r.parent, r."unique", r.created_ms,
                r.ends_ms
            FROM records r WHERE r.kind = o_kind[i] AND r.ends_ms <= now
                AND (r.ends_ms, r.key) > (o_since[i], o_key[i])
            ORDER BY r.ends_ms, r.key LIMIT o_limit[i];
        WHEN 'dump' THEN
            RETURN QUERY
            SELECT i, r.kind, r.project, r.key, r.doc, r.version, r.parent, r."unique", r.created_ms,
                r.ends_ms
            FROM records r
            WHERE (r.kind, r.project, r.key) > (o_kind[i], o_project[i], o_key[i])
            ORDER BY r.kind, r.project, r.key LIMIT o_limit[i];
        END CASE;
    END LOOP;
END $$;

-- A batch of changes, in order.
--
-- o_what  'insert', 'update', 'delete', 'delete this' (if it has that document), 'load'
-- o_ttl  its life from now on; NULL: none, or as it is; a load brings o_created and o_ends
--
-- Answers, one row for each: done; taken, if the unique name is another's; what was deleted.
CREATE FUNCTION keep(
    env bigint[], o_what text[], o_kind text[], o_project text[], o_key text[], o_version bigint[],
    o_doc bytea[], o_parent text[], o_unique bytea[], o_name bytea[], o_ttl bigint[], o_created bigint[],
    o_ends bigint[]
) RETURNS TABLE (
    op integer, done boolean, taken boolean, now_ms bigint, doc bytea, version bigint, parent text,
    "unique" bytea, created_ms bigint, ends_ms bigint
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
    the_name bytea;
    r records;
BEGIN
    SELECT e.now_ms FROM enter(env, true) AS e INTO now;
    now_ms := now;
    FOR i IN 1 .. cardinality(o_what) LOOP
        op := i;
        done := false;
        taken := false;
        the_name := o_name[i];
        r := NULL;
        IF o_what[i] IN ('insert', 'update') AND the_name IS NOT NULL THEN
            -- An ended record loses its name to whoever wants it.
            UPDATE records SET "unique" = NULL, name = NULL
            WHERE name = the_name AND ends_ms + 0 <= now
                AND NOT (o_what[i] = 'update' AND key = o_key[i]);
        END IF;
        IF o_what[i] = 'insert' THEN
            INSERT INTO records VALUES (o_kind[i], o_project[i], o_key[i], o_version[i], o_doc[i],
                o_parent[i], o_unique[i], the_name, now, now + o_ttl[i] * 1000)
            ON CONFLICT DO NOTHING;
            done := FOUND;
        ELSIF o_what[i] = 'update' THEN
            BEGIN
                taken := the_name IS NOT NULL AND EXISTS (
                    SELECT FROM records WHERE name = the_name AND key <> o_key[i]
                );
                IF NOT taken THEN
                    UPDATE records SET version = o_version[i], doc = o_doc[i], "unique" = o_unique[i],
                        name = the_name,
                        ends_ms = coalesce(now + o_ttl[i] * 1000, ends_ms)
                    WHERE kind = o_kind[i] AND project = o_project[i] AND key = o_key[i]
                        AND version = o_version[i] - 1 AND (ends_ms IS NULL OR ends_ms > now);
                    done := FOUND;
                END IF;
            EXCEPTION WHEN unique_violation THEN
                taken := true;      -- another node was quicker
                done := false;
            END;
        ELSE
            DELETE FROM records WHERE kind = o_kind[i] AND project = o_project[i] AND key = o_key[i]
                AND (o_what[i] <> 'delete this' OR doc = o_doc[i])
            RETURNING * INTO r;
            done := FOUND;
        END IF;
        IF o_what[i] = 'load' THEN
            IF the_name IS NOT NULL AND o_ends[i] <= now THEN
                IF EXISTS (SELECT FROM records WHERE name = the_name) THEN
                    the_name := NULL;
                END IF;
            ELSIF the_name IS NOT NULL THEN
                UPDATE records SET "unique" = NULL, name = NULL WHERE name = the_name;
            END IF;
            INSERT INTO records VALUES (o_kind[i], o_project[i], o_key[i], o_version[i], o_doc[i],
                o_parent[i], CASE WHEN the_name IS NOT NULL THEN o_unique[i] END, the_name,
                o_created[i], o_ends[i]);
        END IF;
        doc := r.doc;
        version := r.version;
        parent := r.parent;
        "unique" := r."unique";
        created_ms := r.created_ms;
        ends_ms := r.ends_ms;
        RETURN NEXT;
    END LOOP;
END $$;
