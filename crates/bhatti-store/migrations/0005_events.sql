-- What happened, for an operator who asks later. Nothing here refers to other tables: an event
-- outlives what it is about.
CREATE TABLE events (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    -- UTC with milliseconds and a Z, so that text sorts as time does.
    ts         TEXT NOT NULL,
    type       TEXT NOT NULL,
    user_id    TEXT,
    sandbox_id TEXT,
    meta       TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(meta))
) STRICT;
CREATE INDEX events_ts ON events (ts);
CREATE INDEX events_type ON events (type, ts);
CREATE INDEX events_user ON events (user_id, ts);
CREATE INDEX events_sandbox ON events (sandbox_id, ts);
