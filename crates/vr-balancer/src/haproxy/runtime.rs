//! What HAProxy's runtime interface (its "stats socket") answers; see the chapter "Unix Socket commands" of its
//! management guide. Pure.

use std::collections::BTreeMap;

use vr_common::names::{Node, PoolName};

use super::section::{Server, server_name};

/// A server as it runs, a line of `show servers state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Running {
    pub name: String,
    /// The address in use; `-` or empty if it has none.
    pub address: String,
    pub port: u16,
    /// The host name that it was configured with; `-` if it was none.
    pub host: String,
    /// Bits: why it is kept from traffic; 0 if it is not.
    pub admin: u32,
    /// 0 if it is down.
    pub operational: u32,
}

/// The bits of `srv_admin_state` for maintenance: by command, by inheritance, by configuration, by resolution, and
/// because of a host name that means nothing.
const MAINTENANCE: u32 = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;

impl Running {
    pub fn is_in_maintenance(&self) -> bool {
        self.admin & MAINTENANCE != 0
    }

    /// Whether it is this node's server, by the name that we give or by its address.
    pub fn is_of(&self, node: &Node) -> bool {
        let (host, port) = (node.host.as_str(), node.port);
        let is_there = self.port == port && (self.host == host || self.has_address(host));
        self.name == server_name(node) || is_there
    }

    /// Whether it runs where a line of the configuration says.
    pub fn is_as(&self, server: &Server) -> bool {
        let (host, port) = (server.node.host.as_str(), server.node.port);
        // A host name may have meant another address then; and one that was added at run time has none.
        let is_name = host.parse::<std::net::IpAddr>().is_err();
        self.name == server.name && self.port == port && (is_name || self.has_address(host))
    }

    fn has_address(&self, host: &str) -> bool {
        match (host.parse::<std::net::IpAddr>(), self.address.parse::<std::net::IpAddr>()) {
            (Ok(wanted), Ok(own)) => wanted == own,
            _ => false,
        }
    }
}

/// Which process answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Info {
    pub pid: u32,
    /// Connections of clients.
    pub connections: u64,
}

/// Reads the answer to `show info`, and gives what other commands in the same line were answered; none if it is none.
pub(super) fn read_info(text: &str) -> Option<(Info, &str)> {
    let (info, rest) = text.split_once("\n\n")?;
    let number = |key: &str| {
        let value = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        value?.trim().parse::<u64>().ok()
    };
    Some((Info { pid: number("Pid")?.try_into().ok()?, connections: number("CurrConns")? }, rest))
}

/// What a process serves.
#[derive(Debug, Default)]
pub(super) struct State {
    pub pid: u32,
    /// Its backends with their servers.
    pub backends: BTreeMap<String, Vec<Running>>,
}

/// The commands whose answers together are a [`State`].
pub(super) const SHOW_STATE: &str = "show backend;show servers state";

/// The command whose answer says what is open on servers: of all proxies only the servers (4), and all of them.
pub(super) const SHOW_OPEN: &str = "show stat -1 4 -1";

impl State {
    /// Reads a process's answers to [`SHOW_STATE`]; none if they are something else.
    pub fn read(pid: u32, text: &str) -> Option<Self> {
        let mut state = Self { pid, backends: BTreeMap::new() };
        let mut lines = text.lines().skip_while(|line| *line != "# name").skip(1);
        for name in lines.by_ref().take_while(|line| !line.is_empty()) {
            state.backends.insert(name.to_owned(), Vec::new());
        }
        let mut columns: Vec<&str> = Vec::new();
        for line in lines {
            if let Some(names) = line.strip_prefix("# ") {
                columns = names.split(' ').collect();
                continue;
            }
            let fields: Vec<&str> = line.split(' ').collect();
            // The first line is the version of the format.
            if columns.is_empty() || fields.len() < 2 {
                continue;
            }
            let field = |name: &str| {
                columns.iter().position(|column| *column == name).and_then(|at| fields.get(at).copied())
            };
            let server = Running {
                name: field("srv_name")?.to_owned(),
                address: field("srv_addr")?.to_owned(),
                port: field("srv_port")?.parse().ok()?,
                host: field("srv_fqdn")?.to_owned(),
                admin: field("srv_admin_state")?.parse().ok()?,
                operational: field("srv_op_state")?.parse().ok()?,
            };
            state.backends.entry(field("be_name")?.to_owned()).or_default().push(server);
        }
        (!columns.is_empty()).then_some(state)
    }

    /// A pool's servers; none if there is no such backend.
    pub fn pool(&self, pool: &PoolName) -> Option<&[Running]> {
        self.backends.get(pool.as_str()).map(Vec::as_slice)
    }
}

/// What is open on each server: requests that are being answered or wait for their turn, by the names of backend and
/// server. Reads the answer to [`SHOW_OPEN`].
pub(super) fn read_open(text: &str) -> BTreeMap<(String, String), u64> {
    let mut lines = text.lines();
    let header = lines.find_map(|line| line.strip_prefix("# ")).unwrap_or_default();
    let columns: Vec<&str> = header.split(',').collect();
    let read = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |name: &str| {
            columns.iter().position(|column| *column == name).and_then(|at| fields.get(at).copied())
        };
        let number = |name: &str| field(name)?.parse::<u64>().ok();
        let open = number("scur")? + number("qcur").unwrap_or(0);
        Some(((field("pxname")?.to_owned(), field("svname")?.to_owned()), open))
    };
    lines.filter_map(read).collect()
}

/// Whether a request, in whatever state, still knows a server. Reads the answer to `show sess`.
pub(super) fn is_referred_to(sessions: &str, pool: &PoolName, server: &str) -> bool {
    let (backend, server) = (format!(" be={pool} "), format!(" srv={server} "));
    sessions.lines().any(|line| line.contains(&backend) && line.contains(&server))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "Name: HAProxy\nVersion: 2.6.12\nPid: 25438\nCurrConns: 3\n\n";
    const HEAD: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
         srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
         bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr \
         srv_agent_addr srv_agent_port\n";

    #[test]
    fn the_state_is_read() {
        let text = format!(
            "# name\nweb\nempty\n\n{HEAD}3 web 1 ::1:18001 ::1 2 0 1 1 1 1 0 2 0 0 0 0 - 18001 - 0 0 - - 0\n\
             3 web 2 big 127.0.0.1 0 1 5 5 1 1 0 2 0 0 0 0 host.a 80 - 0 0 - - 0\n\n"
        );
        let answer = format!("{INFO}{text}");
        let (info, rest) = read_info(&answer).unwrap();
        assert_eq!((info, rest), (Info { pid: 25438, connections: 3 }, text.as_str()));
        let state = State::read(info.pid, rest).unwrap();
        assert_eq!((state.pid, state.backends.len()), (25438, 2));
        assert_eq!(state.pool(&"empty".parse().unwrap()), Some(&[][..]));
        assert_eq!(state.pool(&"other".parse().unwrap()), None);
        let [one, two] = state.pool(&"web".parse().unwrap()).unwrap() else { panic!("{state:?}") };
        let is_of = |server: &Running, node: &str| server.is_of(&node.parse().unwrap());
        assert!(is_of(one, "[::1]:18001") && !is_of(one, "[::1]:18002") && !one.is_in_maintenance());
        assert!(is_of(two, "host.a:80") && is_of(two, "127.0.0.1:80") && !is_of(two, "127.0.0.2:80"));
        assert!(two.is_in_maintenance() && two.operational == 0);
        for bad in ["", "Permission denied\n", "Unknown command\n\n# name\n\n1\n"] {
            assert!(State::read(1, bad).is_none() && read_info(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_open_is_read() {
        let text = "# pxname,svname,qcur,qmax,scur,smax\nweb,a:1,1,1,2,9\nweb,b:1,0,0,0,9\n\n";
        let open = read_open(text);
        let of = |server: &str| open[&("web".to_owned(), server.to_owned())];
        assert_eq!((of("a:1"), of("b:1"), open.len()), (3, 0, 2));
        assert!(read_open("Permission denied\n").is_empty());
        let sessions = "0x1: proto=tcpv4 src=1.2.3.4:5 fe=http be=web srv=a:1 ts=00 age=1s\n";
        let web = "web".parse().unwrap();
        assert!(is_referred_to(sessions, &web, "a:1") && !is_referred_to(sessions, &web, "a:"));
        assert!(!is_referred_to(sessions, &"we".parse().unwrap(), "a:1"));
    }
}
