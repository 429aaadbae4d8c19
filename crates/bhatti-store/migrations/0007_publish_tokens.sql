-- What opens a published port that is not for anybody; NULL: it is. Lower-case hex of the SHA-256.
ALTER TABLE publish_rules ADD COLUMN token_hash TEXT;
