"""The tables, and how a file comes to have them.

``messages.id`` is the lane's number and the position in one integer, so that a queue is one range
of the table and appending is cheap. A lane is one generation of a queue; purging a queue gives it
a new lane, and the old one is emptied in the background.

``visible_ms`` is 0 while a message is free for everybody to see; then, and only then, it is in
the index ``ready``. A hidden message names what hides it in ``claim``: a claim's number, or the
negative number of a delay. ``holds`` has a row for everything that hides messages, with their
positions, so that what has lapsed is found by its end and put back in small steps.

``tallies`` counts a lane's messages by when they expire (0), their claim ends (1) or their delay
ends (2): what has passed but was not yet tidied up is a short range, so counts are exact without
looking at messages.

``foreign_claims`` has the ids of claims that were made by another store.
"""

import sqlite3

VERSION = 3
APPLICATION_ID = 0x6E75736B  # "nusk"

LANE_BITS, POSITION_BITS = 20, 43
LANES_MAX = 1 << LANE_BITS  # POSITIONS_MAX is 1 << POSITION_BITS

EXPIRY, LAPSE, DUE = 0, 1, 2

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE records (
    kind TEXT NOT NULL, project TEXT NOT NULL, key TEXT NOT NULL,
    version INTEGER NOT NULL, doc BLOB NOT NULL,
    parent TEXT NOT NULL DEFAULT '', "unique" TEXT,
    created_ms INTEGER NOT NULL DEFAULT 0, ends_ms INTEGER,
    PRIMARY KEY (kind, project, key)
) WITHOUT ROWID;
CREATE INDEX records_by_parent ON records (kind, project, parent, key) WHERE parent <> '';
CREATE UNIQUE INDEX records_by_name ON records (kind, project, "unique")
    WHERE "unique" IS NOT NULL;
CREATE INDEX records_by_end ON records (kind, ends_ms, key) WHERE ends_ms IS NOT NULL;

CREATE TABLE lanes (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL,
    generation TEXT NOT NULL, version INTEGER NOT NULL,
    next_position INTEGER NOT NULL DEFAULT 1,
    total INTEGER NOT NULL DEFAULT 0,
    held INTEGER NOT NULL DEFAULT 0,
    delayed INTEGER NOT NULL DEFAULT 0,
    doomed INTEGER NOT NULL DEFAULT 0,
    sealed INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX lane_by_name ON lanes (kind, project, name) WHERE doomed = 0;
CREATE INDEX doomed_lanes ON lanes (id) WHERE doomed = 1;

CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    posted_ms INTEGER NOT NULL, ttl_s INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
    visible_ms INTEGER NOT NULL, claim INTEGER NOT NULL, count INTEGER NOT NULL,
    client TEXT NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL,
    attributes BLOB, dedup TEXT
);
CREATE INDEX ready ON messages (id, expires_ms) WHERE visible_ms = 0;
CREATE INDEX expiring ON messages (expires_ms);
CREATE UNIQUE INDEX dedup ON messages (id >> 43, dedup) WHERE dedup IS NOT NULL;

CREATE TABLE holds (
    claim INTEGER NOT NULL, ends_ms INTEGER NOT NULL, lane INTEGER NOT NULL,
    ttl_s INTEGER NOT NULL, started_ms INTEGER NOT NULL,
    remaining INTEGER NOT NULL, positions BLOB NOT NULL,
    PRIMARY KEY (claim, ends_ms)
) WITHOUT ROWID;
CREATE INDEX holds_by_end ON holds (lane, ends_ms);
CREATE TABLE foreign_claims (number INTEGER PRIMARY KEY, id TEXT NOT NULL);
CREATE UNIQUE INDEX foreign_claims_by_id ON foreign_claims (id);

CREATE TABLE tallies (
    lane INTEGER NOT NULL, kind INTEGER NOT NULL, at_ms INTEGER NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (lane, kind, at_ms)
) WITHOUT ROWID;
CREATE INDEX tallies_by_time ON tallies (kind, at_ms);
"""

# What leads from version n to n + 1: MIGRATIONS[n]. Each is run in one transaction.
MIGRATIONS: dict[int, str] = {
    1: """
ALTER TABLE records ADD COLUMN parent TEXT NOT NULL DEFAULT '';
ALTER TABLE records ADD COLUMN "unique" TEXT;
ALTER TABLE records ADD COLUMN created_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE records ADD COLUMN ends_ms INTEGER;
CREATE INDEX records_by_parent ON records (kind, project, parent, key) WHERE parent <> '';
CREATE UNIQUE INDEX records_by_name ON records (kind, project, "unique")
    WHERE "unique" IS NOT NULL;
CREATE INDEX records_by_end ON records (kind, ends_ms, key) WHERE ends_ms IS NOT NULL;
""",
    2: """
ALTER TABLE lanes ADD COLUMN sealed INTEGER NOT NULL DEFAULT 0;
CREATE TABLE foreign_claims (number INTEGER PRIMARY KEY, id TEXT NOT NULL);
CREATE UNIQUE INDEX foreign_claims_by_id ON foreign_claims (id);
""",
}


def create(db: sqlite3.Connection) -> None:
    """Lay out an empty file. One transaction, so that a crash leaves it empty."""
    db.executescript(
        f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID};"
        f" PRAGMA user_version = {VERSION}; COMMIT;"
    )


def migrate(db: sqlite3.Connection, found: int) -> None:
    """Bring a file of an older version to this one, a transaction a step."""
    for version in range(found, VERSION):
        db.executescript(
            f"BEGIN; {MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;"
        )
