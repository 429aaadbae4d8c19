-- Goldens: machines of one image and size, frozen right after boot. Only complete ones are here.
CREATE TABLE goldens (
    id         TEXT PRIMARY KEY,
    -- Everything its use depends on: the image's content, the size, the engine's fingerprint.
    key        TEXT NOT NULL UNIQUE,
    image      TEXT NOT NULL,
    vcpus      INTEGER NOT NULL,
    memory_mb  INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    disk       TEXT NOT NULL CHECK (json_valid(disk)),
    created_at TEXT NOT NULL,
    used_at    TEXT NOT NULL
) STRICT;

-- SQLite cannot change a CHECK: the table is made anew and its rows are copied. Nothing refers
-- to it.
CREATE TABLE sandboxes_new (
    id            TEXT PRIMARY KEY,
    owner         TEXT NOT NULL REFERENCES users (id),
    name          TEXT NOT NULL,
    -- What the guest is called inside: set at create, unchanged by a rename.
    hostname      TEXT NOT NULL,
    engine_id     TEXT NOT NULL UNIQUE,
    phase         TEXT NOT NULL
                  CHECK (phase IN ('creating', 'hot', 'warm', 'cold', 'stopped', 'unknown',
                                   'destroying')),
    -- Why it is in this phase, one sentence, and since when.
    reason        TEXT NOT NULL DEFAULT '',
    changed_at    TEXT NOT NULL,
    ip            TEXT NOT NULL,
    image         TEXT NOT NULL,
    milli_cpus    INTEGER NOT NULL,
    memory_mb     INTEGER NOT NULL,
    disk_size_mb  INTEGER NOT NULL,
    hugepages     INTEGER NOT NULL DEFAULT 0,
    keep_hot      INTEGER NOT NULL,
    labels        TEXT NOT NULL,          -- JSON object
    env           TEXT NOT NULL,          -- JSON object
    init          TEXT NOT NULL,
    files_digest  TEXT NOT NULL,          -- of what create was given; '' for none
    vmm_uid       INTEGER NOT NULL UNIQUE,
    root_disk     TEXT,                   -- JSON, once made
    vm            TEXT,                   -- JSON, while a machine runs
    -- Whose memory the machine and what it is saved as stand on; NULL = its own.
    golden        TEXT REFERENCES goldens (id),
    -- What it can continue from: JSON array, newest first. The older one is kept until a wake
    -- from the newer one has been proven.
    generations   TEXT NOT NULL DEFAULT '[]'
                  CHECK (json_valid(generations) AND json_type(generations) = 'array'
                         AND json_array_length(generations) <= 2),
    -- The last generation number given out; numbers are never used again.
    serial        INTEGER NOT NULL DEFAULT 0 CHECK (serial BETWEEN 0 AND 4294967295),
    created_at    TEXT NOT NULL,
    stopped_at    TEXT,
    UNIQUE (owner, name),
    UNIQUE (owner, ip)
) STRICT;

INSERT INTO sandboxes_new (id, owner, name, hostname, engine_id, phase, reason, changed_at, ip,
    image, milli_cpus, memory_mb, disk_size_mb, keep_hot, labels, env, init, files_digest,
    vmm_uid, root_disk, vm, created_at, stopped_at)
SELECT id, owner, name, hostname, engine_id, phase, reason, created_at, ip,
    image, milli_cpus, memory_mb, disk_size_mb, keep_hot, labels, env, init, files_digest,
    vmm_uid, root_disk, vm, created_at, stopped_at
FROM sandboxes;

DROP TABLE sandboxes;
ALTER TABLE sandboxes_new RENAME TO sandboxes;

-- Named snapshots. The row appears before the first file ('creating').
CREATE TABLE snapshots (
    id             TEXT PRIMARY KEY,
    owner          TEXT NOT NULL REFERENCES users (id),
    name           TEXT NOT NULL,
    -- Whence it came; that sandbox may be gone.
    source_sandbox TEXT NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('creating', 'ready')),
    image          TEXT NOT NULL,
    milli_cpus     INTEGER NOT NULL,
    memory_mb      INTEGER NOT NULL,
    disk_size_mb   INTEGER NOT NULL,
    hugepages      INTEGER NOT NULL,
    env            TEXT NOT NULL,         -- JSON object
    init           TEXT NOT NULL,
    hostname       TEXT NOT NULL,
    golden         TEXT REFERENCES goldens (id),
    disk           TEXT,                  -- JSON, once made
    bytes          INTEGER NOT NULL DEFAULT 0,
    created_at     TEXT NOT NULL,
    UNIQUE (owner, name),
    CHECK (state = 'creating' OR disk IS NOT NULL)
) STRICT;
