-- What opens a sandbox's web shell: the hex SHA-256 of the token; NULL = nothing does.
ALTER TABLE sandboxes ADD COLUMN shell_token_hash TEXT CHECK (length(shell_token_hash) = 64);
