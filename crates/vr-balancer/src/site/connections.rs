//! How many TCP connections a site has to nodes, from its `/proc/net/tcp` and `tcp6`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use vr_common::names::Node;

use super::{Command, Site, SiteError};

/// How many connections there are to each node.
pub type OpenConnections = BTreeMap<Node, u64>;

/// Prints `A NAME ADDRESS` for each address of a host name, and `C ADDRESS:PORT` for each connection to one of the
/// ports that is open (01) or being opened (02), in the kernel's hexadecimal form. `$1` is the process whose network is
/// looked at, `$2` the ports as `:1F90:0050:`.
const COUNT: &str = r#"
set -u
process=$1 ports=$2
shift 2
for name; do getent ahosts "$name" | while read -r address rest; do echo "A $name $address"; done; done
[ -r "/proc/$process/net/tcp" ] || { echo "cannot read /proc/$process/net/tcp" >&2; exit 3; }
for table in "/proc/$process/net/tcp" "/proc/$process/net/tcp6"; do
    [ ! -r "$table" ] || awk -v ports="$ports" \
        '($4 == "01" || $4 == "02") && index(ports, substr($3, length($3) - 4) ":") { print "C", $3 }' "$table"
done
"#;

impl Site {
    /// Counts the connections from the site to each of these nodes. Names are resolved there; one that means nothing to the
    /// site has no connections. `process` is one in whose network namespace the balancer lives, such as its own.
    pub async fn connections(
        &self,
        process: Option<u32>,
        nodes: &[Node],
    ) -> Result<OpenConnections, SiteError> {
        let process = process.map_or_else(|| "self".to_owned(), |process| process.to_string());
        let mut ports = ":".to_owned();
        let mut names = Vec::new();
        for Node { host, port } in nodes {
            ports += &format!("{port:04X}:");
            if host.as_str().parse::<IpAddr>().is_err() && !names.contains(&host.as_str()) {
                names.push(host.as_str());
            }
        }
        let arguments = [process.as_str(), ports.as_str()].into_iter().chain(names);
        let output = self.succeed(&Command::script("counting connections", COUNT, arguments)).await?;
        let mut addresses: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
        let mut counts: BTreeMap<SocketAddr, u64> = BTreeMap::new();
        let text = output.text();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["A", name, address] => {
                    // A scope (`%eth0`) says nothing about who it is.
                    let address = address.split('%').next().unwrap_or_default().parse();
                    addresses
                        .entry(name)
                        .or_default()
                        .extend(address.into_iter().map(|ip: IpAddr| ip.to_canonical()));
                }
                ["C", address] => {
                    if let Some(address) = read_address(address) {
                        *counts.entry(address).or_default() += 1;
                    }
                }
                _ => {}
            }
        }
        let count = |Node { host, port }: &Node| {
            let mut own: Vec<IpAddr> = match host.as_str().parse::<IpAddr>() {
                Ok(address) => vec![address.to_canonical()],
                Err(_) => addresses.get(host.as_str()).cloned().unwrap_or_default(),
            };
            own.sort();
            own.dedup();
            own.iter().filter_map(|address| counts.get(&SocketAddr::new(*address, *port))).sum()
        };
        Ok(nodes.iter().map(|node| (node.clone(), count(node))).collect())
    }
}

/// Prints those of its arguments that have no address.
const UNKNOWN: &str = r#"for name; do getent ahosts "$name" >/dev/null || echo "$name"; done"#;

impl Site {
    /// The names of these nodes' hosts that mean nothing to the site.
    pub async fn unknown_names(&self, nodes: &[&Node]) -> Result<Vec<String>, SiteError> {
        let mut names: Vec<&str> = nodes.iter().map(|node| node.host.as_str()).collect();
        names.retain(|name| name.parse::<IpAddr>().is_err());
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let output = self.succeed(&Command::script("finding addresses", UNKNOWN, names)).await?;
        Ok(output.text().lines().map(str::to_owned).collect())
    }
}

/// Reads `0100007F:1F90`: 32-bit words in the byte order of the (little-endian) machine, the port in that of the network;
/// see `proc_net_tcp(5)`.
fn read_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word =
        |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_le_bytes);
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernels_addresses_are_read() {
        assert_eq!(read_address("0100007F:1F90"), Some("127.0.0.1:8080".parse().unwrap()));
        let v6 = "00000000000000000000000001000000:0050";
        assert_eq!(read_address(v6), Some("[::1]:80".parse().unwrap()));
        let mapped = "0000000000000000FFFF00000100007F:0050";
        assert_eq!(read_address(mapped), Some("127.0.0.1:80".parse().unwrap()));
        for bad in ["", "0100007F", "0100007F:", "01:50", "zz00007F:0050"] {
            assert_eq!(read_address(bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn connections_to_a_node_are_counted_by_address_and_by_name() {
        let (listener, other) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let port = listener.local_addr().unwrap().port();
        let nodes: Vec<Node> = [
            format!("127.0.0.1:{port}"),
            format!("localhost:{port}"),
            format!("127.0.0.1:{}", other.local_addr().unwrap().port()),
            format!("no-such-host.invalid:{port}"),
            format!("[::1]:{port}"),
        ]
        .iter()
        .map(|node| node.parse().unwrap())
        .collect();
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
        let site = Site::local("localhost", false);
        let open = site.connections(None, &nodes).await.unwrap();
        assert_eq!(nodes.iter().map(|node| open[node]).collect::<Vec<_>>(), [3, 3, 0, 0, 0]);
        drop(clients);
        let open = site.connections(Some(std::process::id()), &nodes).await.unwrap();
        assert_eq!(open[&nodes[0]], 0);
    }
}
