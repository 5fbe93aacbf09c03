"""The store's tables as dspool 0.2.0 made them (schema version 2, SQLite)."""

SCHEMA = """
CREATE TABLE schema_version (version INTEGER NOT NULL);
CREATE TABLE pools (pool VARCHAR NOT NULL, epoch BIGINT NOT NULL, PRIMARY KEY (pool));
CREATE TABLE sessions (
    pool VARCHAR NOT NULL, session VARCHAR NOT NULL, principal TEXT, owner VARCHAR, last_owner VARCHAR,
    epoch BIGINT NOT NULL, moves INTEGER NOT NULL, created_at FLOAT NOT NULL, last_used_at FLOAT NOT NULL,
    PRIMARY KEY (pool, session)
);
CREATE INDEX sessions_by_owner ON sessions (pool, owner);
CREATE INDEX sessions_by_use ON sessions (pool, last_used_at);
CREATE TABLE session_items (
    pool VARCHAR NOT NULL, session VARCHAR NOT NULL, kind VARCHAR NOT NULL, name VARCHAR NOT NULL,
    payload TEXT NOT NULL, PRIMARY KEY (pool, session, kind, name),
    CONSTRAINT item_of_session FOREIGN KEY(pool, session) REFERENCES sessions (pool, session) ON DELETE CASCADE
);
CREATE TABLE dead_workers (
    pool VARCHAR NOT NULL, worker VARCHAR NOT NULL, died_at FLOAT NOT NULL, PRIMARY KEY (pool, worker)
);
CREATE TABLE records (
    pool VARCHAR NOT NULL, "key" VARCHAR NOT NULL, value TEXT NOT NULL, PRIMARY KEY (pool, "key")
);
CREATE TABLE deployments (
    pool VARCHAR NOT NULL, program VARCHAR NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (pool, program, version)
);
CREATE TABLE current_versions (
    pool VARCHAR NOT NULL, program VARCHAR NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (pool, program),
    CONSTRAINT current_is_deployed FOREIGN KEY(pool, program, version)
        REFERENCES deployments (pool, program, version)
);
CREATE TABLE idempotency (
    pool VARCHAR NOT NULL, principal VARCHAR NOT NULL, "key" VARCHAR NOT NULL, fingerprint TEXT NOT NULL,
    holder TEXT NOT NULL, lapses_at FLOAT NOT NULL, expires_at FLOAT NOT NULL, answer BLOB,
    PRIMARY KEY (pool, principal, "key")
);
CREATE INDEX idempotency_by_end ON idempotency (pool, expires_at);
"""
