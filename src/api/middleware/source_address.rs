//! The source address of a request, behind trusted proxies.

use std::net::{IpAddr, SocketAddr};

use actix_web::HttpRequest;
use actix_web::http::header::HeaderMap;
use ipnet::IpNet;

/// Returns the peer's address. If the peer is a trusted proxy, returns the address from `X-Forwarded-For`.
pub fn source_ip(request: &HttpRequest, trusted: &[IpNet]) -> Option<IpAddr> {
    let peer = request.peer_addr()?.ip().to_canonical();
    Some(forwarded_for(peer, request.headers(), trusted))
}

/// Returns the right-most address in `X-Forwarded-For` that is not a trusted proxy.
///
/// If all are trusted proxies, returns the left-most. If one of the visited hops is not an address,
/// returns the peer.
fn forwarded_for(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    if !is_trusted(peer) {
        return peer;
    }
    let mut source = peer;
    let lines: Vec<_> = headers.get_all("x-forwarded-for").collect();
    for line in lines.into_iter().rev() {
        for hop in line.as_bytes().rsplit(|byte| *byte == b',') {
            let Some(address) = parse_hop(hop) else {
                return peer;
            };
            source = address;
            if !is_trusted(address) {
                return source;
            }
        }
    }
    source
}

/// Parses an address as proxies write it: bare, in brackets, or with a port.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?.trim();
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address: IpAddr = hop.parse().ok().or_else(with_port).or_else(bracketed)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn x_forwarded_for_counts_only_from_trusted_proxies() {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for (peer, lines, expected) in [
            ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
            ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
            (
                "10.0.0.1",
                "1.1.1.1, 198.51.100.7, 10.9.9.9",
                "198.51.100.7",
            ),
            (
                "10.0.0.1",
                "1.1.1.1, 198.51.100.7 | 10.9.9.9",
                "198.51.100.7",
            ),
            ("10.0.0.1", "198.51.100.7:4711", "198.51.100.7"),
            ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
            ("fd00::1", "[2001:db8::1]", "2001:db8::1"),
            ("10.0.0.1", "::ffff:198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "junk, 198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "198.51.100.7, junk", "10.0.0.1"),
            ("10.0.0.1", "198.51.100.7, junk, 10.2.2.2", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines.split(" | ") {
                let name = HeaderName::from_static("x-forwarded-for");
                headers.append(name, HeaderValue::from_static(line));
            }
            let source = forwarded_for(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(source, expected.parse::<IpAddr>().unwrap(), "{lines:?}");
        }
    }
}
