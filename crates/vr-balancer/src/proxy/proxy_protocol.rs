//! The PROXY protocol, versions 1 and 2 (haproxy's `doc/proxy-protocol.txt`): who the client is, said by a proxy
//! before the first byte of the connection itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::options::ProxyVersion;

/// How every header of version 2 begins.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, with its end of line.
const LONGEST_V1: usize = 107;
/// The longest header of version 2 that is taken, with all that senders add to it (certificates of clients, say).
pub(super) const LONGEST: usize = 16 + 4096;

/// What has been read so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// It may become a header with more bytes.
    Incomplete,
    /// Who the client is (none if the proxy speaks for itself, or does not know), and how many bytes say so.
    Header { client: Option<SocketAddr>, length: usize },
    /// It is no header.
    Malformed(&'static str),
}

/// Reads the header at the beginning of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let v2 = bytes.len().min(SIGNATURE.len());
    if bytes[..v2] == SIGNATURE[..v2] {
        return if v2 < SIGNATURE.len() { Parsed::Incomplete } else { parse_v2(bytes) };
    }
    let v1 = bytes.len().min(6);
    if bytes[..v1] == b"PROXY "[..v1] {
        return parse_v1(bytes);
    }
    Parsed::Malformed("the connection does not begin with a header of the PROXY protocol")
}

fn parse_v1(bytes: &[u8]) -> Parsed {
    const MALFORMED: Parsed = Parsed::Malformed("a header of the PROXY protocol, version 1, is malformed");
    let head = &bytes[..bytes.len().min(LONGEST_V1)];
    let Some(end) = head.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LONGEST_V1 { Parsed::Incomplete } else { MALFORMED };
    };
    let Ok(line) = std::str::from_utf8(&head[..end]) else {
        return MALFORMED;
    };
    let length = end + 2;
    let words: Vec<&str> = line.split(' ').collect();
    let client = match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let port = |text: &str| {
                let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
                is_plain.then(|| text.parse::<u16>().ok()).flatten()
            };
            let is_v4 = *family == "TCP4";
            let ip = |text: &str| text.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() == is_v4);
            match (ip(source), ip(destination), port(source_port), port(destination_port)) {
                (Some(ip), Some(_), Some(port), Some(_)) => Some(SocketAddr::new(ip, port)),
                _ => return MALFORMED,
            }
        }
        _ => return MALFORMED,
    };
    Parsed::Header { client, length }
}

fn parse_v2(bytes: &[u8]) -> Parsed {
    let Some(&[version_and_command, family, high, low]) = bytes.get(12..16) else {
        return Parsed::Incomplete;
    };
    let length = 16 + usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST {
        return Parsed::Malformed("a header of the PROXY protocol is too long");
    }
    let is_local = match version_and_command {
        0x20 => true,
        0x21 => false,
        _ => return Parsed::Malformed("a header of the PROXY protocol has an unknown version or command"),
    };
    let Some(addresses) = bytes.get(16..length) else {
        return Parsed::Incomplete;
    };
    if is_local {
        return Parsed::Header { client: None, length };
    }
    let short = Parsed::Malformed("a header of the PROXY protocol is too short for its addresses");
    let client = match family {
        // TCP over IPv4: source, destination, their ports.
        0x11 => match addresses.first_chunk::<12>() {
            Some([a, b, c, d, _, _, _, _, high, low, _, _]) => {
                Some(SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), u16::from_be_bytes([*high, *low])))
            }
            None => return short,
        },
        // TCP over IPv6.
        0x21 => match (addresses.first_chunk::<16>(), addresses.get(32..36)) {
            (Some(ip), Some(&[high, low, _, _])) => {
                Some(SocketAddr::new(Ipv6Addr::from(*ip).into(), u16::from_be_bytes([high, low])))
            }
            _ => return short,
        },
        // Unix sockets, datagrams, and what nobody has thought of yet: the client is not known.
        _ => None,
    };
    Parsed::Header { client, length }
}

/// A header that says that `client` connected to `server`; without a client, that the proxy speaks for itself.
pub(super) fn header(version: ProxyVersion, client: Option<SocketAddr>, server: SocketAddr) -> Vec<u8> {
    // Both of one family, as the format knows no other.
    let pair = client.map(|client| match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (IpAddr::V4(from), IpAddr::V4(to), client.port()),
        (from, to) => (as_v6(from), as_v6(to), client.port()),
    });
    match (version, pair) {
        (ProxyVersion::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (ProxyVersion::V1, Some((from, to, port))) => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {from} {to} {port} {}\r\n", server.port()).into_bytes()
        }
        (ProxyVersion::V2, None) => [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat(),
        (ProxyVersion::V2, Some((from, to, port))) => {
            let (family, ips) = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => (0x11, [from.octets(), to.octets()].concat()),
                (from, to) => (0x21, [octets(from), octets(to)].concat()),
            };
            let ports = [port.to_be_bytes(), server.port().to_be_bytes()].concat();
            let length = ((ips.len() + ports.len()) as u16).to_be_bytes();
            [&SIGNATURE[..], &[0x21, family, length[0], length[1]], &ips, &ports].concat()
        }
    }
}

fn as_v6(ip: IpAddr) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(octets(ip)))
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_read_back_and_every_part_of_it_is_incomplete() {
        let pairs = [
            (Some(address("192.0.2.7:1234")), address("10.0.0.1:80")),
            (Some(address("[2001:db8::1]:1234")), address("[::1]:80")),
            (None, address("10.0.0.1:80")),
        ];
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            for (client, server) in pairs {
                let mut bytes = header(version, client, server);
                let length = bytes.len();
                for end in 0..length {
                    assert_eq!(parse(&bytes[..end]), Parsed::Incomplete, "{version:?} {client:?} {end}");
                }
                bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
                assert_eq!(parse(&bytes), Parsed::Header { client, length });
            }
        }
        // Addresses of two families become two of one.
        let mixed = header(ProxyVersion::V2, Some(address("192.0.2.7:1")), address("[::1]:80"));
        assert_eq!(
            parse(&mixed),
            Parsed::Header { client: Some(address("[::ffff:192.0.2.7]:1")), length: mixed.len() }
        );
    }

    #[test]
    fn hostile_headers_are_malformed_and_never_more_than_their_bound() {
        let long = format!("PROXY TCP4 {}", "1".repeat(200));
        for bad in [
            "GET / HTTP/1.1\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
            "PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
            long.as_str(),
        ] {
            assert!(matches!(parse(bad.as_bytes()), Parsed::Malformed(_)), "{bad:?}");
        }
        let v2 = |rest: &[u8]| parse(&[&SIGNATURE[..], rest].concat());
        assert!(matches!(v2(&[0x21, 0x11, 0xff, 0xff]), Parsed::Malformed(_)));
        assert!(matches!(v2(&[0x31, 0x11, 0, 12]), Parsed::Malformed(_)));
        assert!(matches!(v2(&[0x22, 0x11, 0, 12]), Parsed::Malformed(_)));
        assert!(matches!(v2(&[0x21, 0x11, 0, 2, 1, 1]), Parsed::Malformed(_)));
        assert!(matches!(v2(&[0x21, 0x21, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Parsed::Malformed(_)));
        assert_eq!(v2(&[0x21, 0x31, 0, 1, 9]), Parsed::Header { client: None, length: 17 });
        assert_eq!(
            parse(b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\nrest"),
            Parsed::Header { client: None, length: 35 }
        );
    }
}
