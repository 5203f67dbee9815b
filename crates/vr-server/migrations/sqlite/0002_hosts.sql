-- How the server talks to a host: 'agent' or 'supervisor'; null lets it find out.
ALTER TABLE hosts ADD COLUMN driver TEXT;
-- What it found out, where, and when, in Unix milliseconds.
ALTER TABLE hosts ADD COLUMN found_driver TEXT;
ALTER TABLE hosts ADD COLUMN found_url TEXT;
ALTER TABLE hosts ADD COLUMN found_at BIGINT;
