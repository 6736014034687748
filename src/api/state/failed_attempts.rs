//! The limit of wrong credentials from one address.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;

/// The time in which failures count together.
const WINDOW: Duration = Duration::from_secs(60);
/// Failures of one address in a window after which its wrong credentials get 429.
const MAX_FAILURES: u32 = 20;
/// Maximum number of addresses with a count. Others begin again when they are forgotten.
const MAX_ADDRESSES: u64 = 10_000;

/// Counts wrong credentials by source address, in this replica. Valid credentials from the same address still work,
/// because many callers may share one.
#[derive(Debug)]
pub struct FailedAttempts(Cache<IpAddr, Arc<Failures>>);

/// The failures of one address in one window.
#[derive(Debug)]
struct Failures {
    since: Instant,
    count: AtomicU32,
}

impl Default for FailedAttempts {
    fn default() -> Self {
        let addresses = Cache::builder().max_capacity(MAX_ADDRESSES);
        FailedAttempts(addresses.time_to_live(WINDOW).build())
    }
}

impl FailedAttempts {
    /// Counts a failure. Returns the seconds until the window ends if there were too many before it.
    pub fn note(&self, address: IpAddr) -> Option<u32> {
        let first = || {
            Arc::new(Failures {
                since: Instant::now(),
                count: AtomicU32::new(0),
            })
        };
        let failures = self.0.get_with(network(address), first);
        let earlier = failures.count.fetch_add(1, Ordering::Relaxed);
        let left = WINDOW.saturating_sub(failures.since.elapsed());
        (earlier >= MAX_FAILURES).then_some(left.as_secs_f64().ceil() as u32)
    }
}

/// Returns the address, or the /64 network of an IPv6 address, because one caller usually has all addresses of it.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_an_ipv6_network_share_a_count() {
        let attempts = FailedAttempts::default();
        let note = |address: &str| attempts.note(address.parse().unwrap());
        for n in 0..MAX_FAILURES {
            assert_eq!(note(&format!("2001:db8::{n:x}")), None);
        }
        assert!(matches!(note("2001:db8::ffff:1"), Some(1..=60)));
        assert_eq!(note("2001:db8:0:1::1"), None);
        assert_eq!(note("192.0.2.1"), None);
    }
}
