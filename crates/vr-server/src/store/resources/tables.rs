//! Which fields each resource has, where they are in the database, and by which of them it may be filtered.
//!
//! Every piece of SQL of this table is a literal of ours; values from outside are only ever bound.

use super::Resource;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// A YAML text: shown, but nothing to filter by.
    Yaml,
    Number,
    Truth,
    /// Unix milliseconds, shown as ISO 8601.
    Time,
    /// A JSON text, shown as what it holds.
    Json,
    /// Another object: shown by its key, filtered by its number, which is at the given place.
    Link(Resource, &'static str),
    /// A JSON list of other objects' numbers.
    Links(Resource),
}

/// A field.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub name: &'static str,
    pub sql: &'static str,
    pub kind: Kind,
}

/// A resource's place in the database.
#[derive(Debug)]
pub(super) struct Table {
    /// The table's name.
    pub name: &'static str,
    /// What comes after FROM.
    pub from: &'static str,
    /// The column of its number.
    pub id: &'static str,
    /// What is read of each object.
    pub fields: &'static [Field],
    /// What else it may be filtered by.
    pub filters: &'static [Field],
}

const fn text(name: &'static str, sql: &'static str) -> Field {
    Field { name, sql, kind: Kind::Text }
}

const fn yaml(name: &'static str, sql: &'static str) -> Field {
    Field { name, sql, kind: Kind::Yaml }
}

const fn number(name: &'static str, sql: &'static str) -> Field {
    Field { name, sql, kind: Kind::Number }
}

const fn truth(name: &'static str, sql: &'static str) -> Field {
    Field { name, sql, kind: Kind::Truth }
}

const fn time(name: &'static str, sql: &'static str) -> Field {
    Field { name, sql, kind: Kind::Time }
}

const fn json(name: &'static str, sql: &'static str) -> Field {
    Field { name, sql, kind: Kind::Json }
}

const fn link(name: &'static str, to: Resource, key: &'static str, id: &'static str) -> Field {
    Field { name, sql: key, kind: Kind::Link(to, id) }
}

const fn links(name: &'static str, to: Resource, sql: &'static str) -> Field {
    Field { name, sql, kind: Kind::Links(to) }
}

static APPS: Table = Table {
    name: "apps",
    from: "apps a LEFT JOIN buildpacks p ON p.id = a.buildpack_id",
    id: "a.id",
    fields: &[
        number("id", "a.id"),
        text("name", "a.name"),
        text("repo_url", "a.repo_url"),
        text("repo_type", "a.repo_type"),
        link("buildpack", Resource::Buildpacks, "a.buildpack_id", "a.buildpack_id"),
    ],
    filters: &[number("buildpack__id", "p.id"), text("buildpack__repo_url", "p.repo_url")],
};

static BUILDPACKS: Table = Table {
    name: "buildpacks",
    from: "buildpacks b",
    id: "b.id",
    fields: &[
        number("id", "b.id"),
        text("repo_url", "b.repo_url"),
        text("repo_type", "b.repo_type"),
        text("desc", "b.description"),
        number("order", "b.position"),
    ],
    filters: &[],
};

static SQUADS: Table = Table {
    name: "squads",
    from: "squads q",
    id: "q.id",
    fields: &[number("id", "q.id"), text("name", "q.name")],
    filters: &[],
};

static HOSTS: Table = Table {
    name: "hosts",
    from: "hosts h LEFT JOIN squads q ON q.id = h.squad_id",
    id: "h.id",
    fields: &[
        number("id", "h.id"),
        text("name", "h.name"),
        truth("active", "h.active"),
        link("squad", Resource::Squads, "q.name", "h.squad_id"),
        text("driver", "h.driver"),
        text("agent_url", "h.agent_url"),
        text("found_driver", "h.found_driver"),
        time("found_at", "h.found_at"),
    ],
    filters: &[number("squad__id", "q.id"), text("squad__name", "q.name")],
};

static INGREDIENTS: Table = Table {
    name: "ingredients",
    from: "ingredients i",
    id: "i.id",
    fields: &[
        number("id", "i.id"),
        text("name", "i.name"),
        yaml("config_yaml", "i.config_yaml"),
        yaml("env_yaml", "i.env_yaml"),
        links(
            "swarms",
            Resource::Swarms,
            "(SELECT json_group_array(m.swarm_id) FROM
              (SELECT swarm_id FROM swarm_ingredients WHERE ingredient_id = i.id ORDER BY swarm_id) m)",
        ),
    ],
    filters: &[],
};

static BUILDS: Table = Table {
    name: "builds",
    from: "builds b JOIN apps a ON a.id = b.app_id",
    id: "b.id",
    fields: &[
        number("id", "b.id"),
        link("app", Resource::Apps, "a.name", "b.app_id"),
        text("tag", "b.tag"),
        text("os_image", "b.os_image"),
        text("status", "b.status"),
        text("file", "b.file"),
        text("file_md5", "b.file_md5"),
        text("compile_log", "b.compile_log"),
        time("start_time", "b.start_time"),
        time("end_time", "b.end_time"),
        text("hash", "b.hash"),
        yaml("env_yaml", "b.env_yaml"),
        text("buildpack_url", "b.buildpack_url"),
        text("buildpack_version", "b.buildpack_version"),
        text("error", "b.error"),
    ],
    filters: &[number("app__id", "a.id"), text("app__name", "a.name"), text("app__repo_url", "a.repo_url")],
};

static RELEASES: Table = Table {
    name: "releases",
    from: "releases r JOIN builds b ON b.id = r.build_id JOIN apps a ON a.id = b.app_id",
    id: "r.id",
    fields: &[
        number("id", "r.id"),
        link("build", Resource::Builds, "r.build_id", "r.build_id"),
        yaml("config_yaml", "r.config_yaml"),
        yaml("env_yaml", "r.env_yaml"),
        json("volumes", "r.volumes"),
        text("hash", "r.hash"),
        text("run_as", "r.run_as"),
        text("mem_limit", "r.mem_limit"),
        text("memsw_limit", "r.memsw_limit"),
        text("compiled_name", "a.name || '-' || b.tag || '-' || COALESCE(r.hash, 'UNKNOWN')"),
    ],
    filters: &[
        number("build__id", "b.id"),
        text("build__tag", "b.tag"),
        text("build__status", "b.status"),
        link("build__app", Resource::Apps, "a.name", "b.app_id"),
        text("build__app__name", "a.name"),
    ],
};

static SWARMS: Table = Table {
    name: "swarms",
    from: "swarms s JOIN apps a ON a.id = s.app_id JOIN squads q ON q.id = s.squad_id
           LEFT JOIN releases r ON r.id = s.release_id LEFT JOIN builds b ON b.id = r.build_id",
    id: "s.id",
    fields: &[
        number("id", "s.id"),
        link("app", Resource::Apps, "a.name", "s.app_id"),
        text("app_name", "a.name"),
        link("release", Resource::Releases, "s.release_id", "s.release_id"),
        text("version", "b.tag"),
        text("config_name", "s.config_name"),
        text("proc_name", "s.proc_name"),
        link("squad", Resource::Squads, "q.name", "s.squad_id"),
        text("squad_name", "q.name"),
        number("size", "s.size"),
        text("pool", "s.pool"),
        text("balancer", "s.balancer"),
        yaml("config_yaml", "s.config_yaml"),
        yaml("env_yaml", "s.env_yaml"),
        json("volumes", "s.volumes"),
        text("run_as", "s.run_as"),
        text("mem_limit", "s.mem_limit"),
        text("memsw_limit", "s.memsw_limit"),
        links(
            "config_ingredients",
            Resource::Ingredients,
            "(SELECT json_group_array(m.ingredient_id) FROM
              (SELECT ingredient_id FROM swarm_ingredients WHERE swarm_id = s.id ORDER BY position) m)",
        ),
    ],
    filters: &[
        number("app__id", "a.id"),
        text("app__name", "a.name"),
        text("app__repo_url", "a.repo_url"),
        number("squad__id", "q.id"),
        text("squad__name", "q.name"),
        number("release__id", "r.id"),
        text("release__hash", "r.hash"),
        link("release__build", Resource::Builds, "r.build_id", "r.build_id"),
        text("release__build__tag", "b.tag"),
        text("release__build__status", "b.status"),
    ],
};

impl Resource {
    pub(super) fn table(self) -> &'static Table {
        match self {
            Self::Apps => &APPS,
            Self::Buildpacks => &BUILDPACKS,
            Self::Squads => &SQUADS,
            Self::Hosts => &HOSTS,
            Self::Ingredients => &INGREDIENTS,
            Self::Builds => &BUILDS,
            Self::Releases => &RELEASES,
            Self::Swarms => &SWARMS,
        }
    }
}
