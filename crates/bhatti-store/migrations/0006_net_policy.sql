-- What a sandbox may reach, and what those that continue from a snapshot may: JSON, as in the HTTP
-- contract.
ALTER TABLE sandboxes ADD COLUMN net_policy TEXT NOT NULL DEFAULT '{"default":"public"}'
    CHECK (json_valid(net_policy));
ALTER TABLE snapshots ADD COLUMN net_policy TEXT NOT NULL DEFAULT '{"default":"public"}'
    CHECK (json_valid(net_policy));
