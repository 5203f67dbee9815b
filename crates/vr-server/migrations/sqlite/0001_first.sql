-- Times are Unix milliseconds, documents JSON as text, truth values 0 and 1.

CREATE TABLE users (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    username      TEXT    NOT NULL UNIQUE,
    password_hash TEXT    NOT NULL,
    created       BIGINT  NOT NULL
);

CREATE TABLE buildpacks (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    repo_url    TEXT    NOT NULL UNIQUE,
    repo_type   TEXT    NOT NULL DEFAULT 'git',
    description TEXT    NOT NULL DEFAULT '',
    position    BIGINT  NOT NULL DEFAULT 0
);

CREATE TABLE apps (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT    NOT NULL UNIQUE,
    repo_url     TEXT    NOT NULL,
    repo_type    TEXT    NOT NULL DEFAULT 'git',
    buildpack_id BIGINT  REFERENCES buildpacks (id)
);

CREATE TABLE squads (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT    NOT NULL UNIQUE
);

CREATE TABLE hosts (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    name      TEXT    NOT NULL UNIQUE,
    active    BIGINT  NOT NULL DEFAULT 1,
    squad_id  BIGINT  REFERENCES squads (id),
    -- Where its agent answers, such as unix:/var/lib/velociraptor/agent/agent.sock; null while nobody knows.
    agent_url TEXT
);

CREATE TABLE ingredients (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    name        TEXT    NOT NULL UNIQUE,
    config_yaml TEXT    NOT NULL DEFAULT '',
    env_yaml    TEXT    NOT NULL DEFAULT ''
);

CREATE TABLE builds (
    id                INTEGER PRIMARY KEY AUTOINCREMENT,
    app_id            BIGINT  NOT NULL REFERENCES apps (id),
    tag               TEXT    NOT NULL,
    os_image          TEXT,
    status            TEXT    NOT NULL DEFAULT 'pending',
    file              TEXT,
    file_md5          TEXT,
    compile_log       TEXT,
    start_time        BIGINT,
    end_time          BIGINT,
    hash              TEXT,
    env_yaml          TEXT    NOT NULL DEFAULT '',
    buildpack_url     TEXT,
    buildpack_version TEXT,
    error             TEXT,
    -- When somebody asked for it to be built; null while it only exists.
    queued            BIGINT,
    lease_owner       TEXT,
    lease_token       TEXT,
    lease_until       BIGINT
);
CREATE INDEX builds_of_app ON builds (app_id, tag);

CREATE TABLE releases (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    build_id    BIGINT  NOT NULL REFERENCES builds (id),
    config_yaml TEXT    NOT NULL DEFAULT '',
    env_yaml    TEXT    NOT NULL DEFAULT '',
    volumes     TEXT    NOT NULL DEFAULT 'null',
    run_as      TEXT    NOT NULL DEFAULT 'nobody',
    mem_limit   TEXT,
    memsw_limit TEXT,
    -- One text for all that a release is made of, so that the same one is found again.
    parts       TEXT    NOT NULL,
    hash        TEXT,
    UNIQUE (build_id, parts)
);

CREATE TABLE swarms (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    app_id      BIGINT  NOT NULL REFERENCES apps (id),
    release_id  BIGINT  REFERENCES releases (id),
    config_name TEXT    NOT NULL,
    proc_name   TEXT    NOT NULL,
    squad_id    BIGINT  NOT NULL REFERENCES squads (id),
    size        BIGINT  NOT NULL DEFAULT 1,
    pool        TEXT,
    balancer    TEXT,
    config_yaml TEXT    NOT NULL DEFAULT '',
    env_yaml    TEXT    NOT NULL DEFAULT '',
    volumes     TEXT    NOT NULL DEFAULT 'null',
    run_as      TEXT    NOT NULL DEFAULT 'nobody',
    mem_limit   TEXT,
    memsw_limit TEXT,
    UNIQUE (app_id, config_name, squad_id, proc_name)
);

CREATE TABLE swarm_ingredients (
    swarm_id      BIGINT NOT NULL REFERENCES swarms (id) ON DELETE CASCADE,
    ingredient_id BIGINT NOT NULL REFERENCES ingredients (id),
    position      BIGINT NOT NULL,
    PRIMARY KEY (swarm_id, ingredient_id)
);

CREATE TABLE dispatches (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT    NOT NULL UNIQUE,
    swarm_id     BIGINT  NOT NULL REFERENCES swarms (id) ON DELETE CASCADE,
    version      TEXT    NOT NULL,
    state        TEXT    NOT NULL DEFAULT 'queued',
    requested_by TEXT    NOT NULL,
    error        TEXT,
    -- What the conductor has to remember between two steps, JSON.
    memory       TEXT    NOT NULL DEFAULT '{}',
    created      BIGINT  NOT NULL,
    finished     BIGINT,
    lease_owner  TEXT,
    lease_token  TEXT,
    lease_until  BIGINT
);
CREATE INDEX dispatches_of_swarm ON dispatches (swarm_id, seq);

CREATE TABLE transitions (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    dispatch_id TEXT    NOT NULL REFERENCES dispatches (id) ON DELETE CASCADE,
    time        BIGINT  NOT NULL,
    from_state  TEXT    NOT NULL,
    to_state    TEXT    NOT NULL,
    who         TEXT    NOT NULL,
    why         TEXT    NOT NULL
);
CREATE INDEX transitions_of_dispatch ON transitions (dispatch_id, id);

CREATE TABLE reserved_ports (
    host        TEXT   NOT NULL,
    port        BIGINT NOT NULL,
    dispatch_id TEXT   NOT NULL,
    created     BIGINT NOT NULL,
    PRIMARY KEY (host, port)
);

-- Procs that could not be deleted at once and are tried again.
CREATE TABLE late_deletes (
    host        TEXT   NOT NULL,
    proc        TEXT   NOT NULL,
    tries       BIGINT NOT NULL,
    next_try    BIGINT NOT NULL,
    dispatch_id TEXT   NOT NULL,
    PRIMARY KEY (host, proc)
);

CREATE TABLE events (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    time BIGINT  NOT NULL,
    data TEXT    NOT NULL
);

-- Every change made by a person or a program through the API.
CREATE TABLE changes (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    time     BIGINT  NOT NULL,
    username TEXT    NOT NULL,
    resource TEXT    NOT NULL,
    object   BIGINT  NOT NULL,
    action   TEXT    NOT NULL,
    old      TEXT    NOT NULL,
    new      TEXT    NOT NULL
);
CREATE INDEX changes_of_object ON changes (resource, object, id);
