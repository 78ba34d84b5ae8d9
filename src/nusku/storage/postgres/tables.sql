-- The tables. Run once, by schema.py, with the search path on our own schema.

CREATE TABLE meta (name text PRIMARY KEY, value bigint NOT NULL);

CREATE TABLE records (
    kind text COLLATE "C" NOT NULL,
    project text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    doc bytea NOT NULL,
    parent text COLLATE "C" NOT NULL,
    "unique" bytea,                 -- UTF-8; a text cannot hold every character
    name bytea,                     -- SHA-256 of kind, project and that; it may be too long to index
    created_ms bigint NOT NULL,
    ends_ms bigint,
    PRIMARY KEY (kind, project, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX records_by_parent ON records (kind, project, parent, key) WHERE parent <> '';
CREATE UNIQUE INDEX records_by_name ON records (name) WHERE name IS NOT NULL;
CREATE INDEX records_by_end ON records (kind, ends_ms, key) WHERE ends_ms IS NOT NULL;

-- One row for each queue. It is the lock of all that changes the queue's messages, and it changes
-- with each of these transactions: no index has a column that does, and there is room for the next
-- version on the same page, so that old ones are cleared away on the fly (HOT).
CREATE TABLE queues (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text COLLATE "C" NOT NULL,
    project text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    generation text NOT NULL,
    version bigint NOT NULL,
    seal text NOT NULL,             -- each is another one; empty: it is open
    lane bigint NOT NULL,           -- under which number its messages are kept
    next_position bigint NOT NULL DEFAULT 1,
    -- Rows as they stand; what has ended since is in the tallies.
    total bigint NOT NULL DEFAULT 0,
    held bigint NOT NULL DEFAULT 0,
    delayed bigint NOT NULL DEFAULT 0,
    low bigint NOT NULL DEFAULT 1,          -- no live message has a position below this
    ready_low bigint NOT NULL DEFAULT 1,    -- nor a free one below this
    due_ms bigint NOT NULL DEFAULT 9223372036854775807,     -- nothing hidden ends before
    settled_ms bigint NOT NULL DEFAULT 0,           -- what was hidden until then, up to this
    settled_position bigint NOT NULL DEFAULT 0,     -- position, has been put back
    last_ms bigint NOT NULL DEFAULT 0       -- the time of the latest change
) WITH (
    fillfactor = 25,
    autovacuum_vacuum_scale_factor = 0.1,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE UNIQUE INDEX queues_by_name ON queues (kind, project, name);
CREATE UNIQUE INDEX queues_by_lane ON queues (lane);
CREATE SEQUENCE lanes;

-- What purged and deleted queues left behind.
CREATE TABLE doomed (lane bigint PRIMARY KEY);

-- A message is free while `ready` is its position, and hidden while that is NULL: until
-- `visible_ms`, by `claim`, or by a delay where that is NULL. No other index sorts by `ready`, so the
-- planner cannot look for free messages among the hidden.
CREATE TABLE messages (
    lane bigint NOT NULL,
    position bigint NOT NULL,
    posted_ms bigint NOT NULL,
    expires_ms bigint NOT NULL,
    visible_ms bigint NOT NULL,
    ready bigint,
    started_ms bigint,              -- of the claim
    claim uuid,
    ttl_s integer NOT NULL,
    count integer NOT NULL,
    crc integer NOT NULL,
    claim_ttl_s integer,
    client text COLLATE "C" NOT NULL,
    attributes bytea,
    dedup text COLLATE "C",
    body bytea NOT NULL,
    PRIMARY KEY (lane, position)
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.5,
    autovacuum_analyze_scale_factor = 0.5,
    autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.02,
    toast.autovacuum_vacuum_threshold = 2000,
    toast.autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE messages ALTER COLUMN body SET STORAGE EXTERNAL;    -- bodies are not worth compressing
CREATE INDEX messages_ready ON messages (lane, ready) WHERE ready IS NOT NULL;
CREATE INDEX messages_expiring ON messages (lane, expires_ms);
CREATE INDEX messages_hidden ON messages (lane, visible_ms, position) WHERE ready IS NULL;
CREATE INDEX messages_claimed ON messages (claim) WHERE claim IS NOT NULL;
CREATE UNIQUE INDEX messages_dedup ON messages (lane, dedup) WHERE dedup IS NOT NULL;

-- How many messages of a lane expire (kind 0), how many claims (1) and delays (2) on them end, at a
-- time. The figures of `queues` less a short range of these are exact counts of what is alive.
CREATE TABLE tallies (
    lane bigint NOT NULL,
    kind integer NOT NULL,
    at_ms bigint NOT NULL,
    n bigint NOT NULL,
    PRIMARY KEY (lane, kind, at_ms)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX tallies_by_time ON tallies (kind, at_ms);
