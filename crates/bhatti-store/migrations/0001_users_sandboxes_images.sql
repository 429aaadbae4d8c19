-- Accounts. The key itself is never here, only the hex SHA-256 of it.
CREATE TABLE users (
    id                    TEXT PRIMARY KEY,
    name                  TEXT NOT NULL UNIQUE,
    api_key_hash          TEXT NOT NULL UNIQUE,
    max_sandboxes         INTEGER NOT NULL DEFAULT 5,
    max_cpus_per_sandbox  INTEGER NOT NULL DEFAULT 4,
    max_memory_mb_per_sandbox INTEGER NOT NULL DEFAULT 4096,
    max_volume_storage_mb INTEGER NOT NULL DEFAULT 20480,
    max_images            INTEGER NOT NULL DEFAULT 10,
    max_snapshots         INTEGER NOT NULL DEFAULT 5,
    -- Which /24 is theirs.
    subnet_index          INTEGER NOT NULL UNIQUE CHECK (subnet_index >= 1),
    created_at            TEXT NOT NULL
) STRICT;

-- What should exist. A row appears before the first effect ('creating') and goes after the
-- last one was undone.
CREATE TABLE sandboxes (
    id            TEXT PRIMARY KEY,
    owner         TEXT NOT NULL REFERENCES users (id),
    name          TEXT NOT NULL,
    -- What the guest is called inside: set at create, unchanged by a rename.
    hostname      TEXT NOT NULL,
    engine_id     TEXT NOT NULL UNIQUE,
    phase         TEXT NOT NULL
                  CHECK (phase IN ('creating', 'hot', 'stopped', 'unknown', 'destroying')),
    -- Why it is in this phase, one sentence.
    reason        TEXT NOT NULL DEFAULT '',
    ip            TEXT NOT NULL,
    image         TEXT NOT NULL,
    milli_cpus    INTEGER NOT NULL,
    memory_mb     INTEGER NOT NULL,
    disk_size_mb  INTEGER NOT NULL,
    keep_hot      INTEGER NOT NULL,
    labels        TEXT NOT NULL,          -- JSON object
    env           TEXT NOT NULL,          -- JSON object
    init          TEXT NOT NULL,
    files_digest  TEXT NOT NULL,          -- of what create was given; '' for none
    vmm_uid       INTEGER NOT NULL UNIQUE,
    root_disk     TEXT,                   -- JSON, once made
    vm            TEXT,                   -- JSON, while a machine runs
    created_at    TEXT NOT NULL,
    stopped_at    TEXT,
    UNIQUE (owner, name),
    UNIQUE (owner, ip)
) STRICT;

CREATE TABLE images (
    id         TEXT PRIMARY KEY,
    owner      TEXT NOT NULL DEFAULT '',  -- '' = built in, everybody's
    name       TEXT NOT NULL,
    source     TEXT NOT NULL,
    file_path  TEXT NOT NULL,
    size_mb    INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (owner, name)
) STRICT;
