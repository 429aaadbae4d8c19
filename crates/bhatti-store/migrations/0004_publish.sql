-- Ports of sandboxes that anybody may ask, and what they are called in a URL. A rule goes with its
-- sandbox: whoever makes the table `sandboxes` anew has to put these aside first, since dropping it
-- deletes them too.
CREATE TABLE publish_rules (
    id         TEXT PRIMARY KEY,
    sandbox    TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port       INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
    alias      TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    UNIQUE (sandbox, port)
) STRICT;
