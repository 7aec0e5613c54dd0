//! Which pod has which address. Pure: no I/O, no locks.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::store::PodId;

use super::{Cidr, NetworkError};

/// Addresses below this offset are the network's own: its base and the bridge.
const FIRST_OFFSET: u64 = 2;

/// The addresses that pods have.
#[derive(Debug, Default)]
pub struct Pool {
    taken: HashMap<IpAddr, PodId>,
    /// Where the search for a free address begins, a range each: the address last freed is used last.
    next: HashMap<IpAddr, u64>,
}

impl Pool {
    /// An address of each range for `pod`. After an error it has none.
    pub fn take(&mut self, pod: &PodId, cidrs: &[Cidr]) -> Result<Vec<IpAddr>, NetworkError> {
        let mut addresses = Vec::new();
        for cidr in cidrs {
            match self.free_in(*cidr) {
                Some(address) => {
                    self.taken.insert(address, pod.clone());
                    addresses.push(address);
                }
                None => {
                    self.release(pod);
                    return Err(NetworkError::Exhausted(*cidr));
                }
            }
        }
        Ok(addresses)
    }

    fn free_in(&mut self, cidr: Cidr) -> Option<IpAddr> {
        // The last address of an IPv4 range is its broadcast address.
        let end = cidr.size() - u64::from(cidr.base().is_ipv4());
        let start = self.next.get(&cidr.base()).copied().filter(|s| *s < end).unwrap_or(FIRST_OFFSET);
        // At most as many are taken as there are pods, so the search ends soon also in a huge range.
        let offset = (start..end).chain(FIRST_OFFSET..start).find(|o| !self.taken.contains_key(&cidr.at(*o)))?;
        self.next.insert(cidr.base(), offset + 1);
        Some(cidr.at(offset))
    }

    /// `pod` has these already.
    pub fn adopt(&mut self, pod: &PodId, addresses: &[IpAddr]) {
        self.taken.extend(addresses.iter().map(|a| (*a, pod.clone())));
    }

    /// Frees whatever `pod` has.
    pub fn release(&mut self, pod: &PodId) {
        self.taken.retain(|_, owner| owner != pod);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().expect("a range")
    }

    #[test]
    fn addresses_are_given_once_and_reused_last() {
        let mut pool = Pool::default();
        let range = [cidr("10.0.0.0/29")];
        let pods: Vec<PodId> = (0..5).map(|_| PodId::random()).collect();
        let given: Vec<String> =
            pods.iter().map(|p| pool.take(p, &range).expect("an address")[0].to_string()).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert!(matches!(pool.take(&PodId::random(), &range), Err(NetworkError::Exhausted(_))));
        pool.release(&pods[1]);
        assert_eq!(pool.take(&PodId::random(), &range).expect("an address")[0].to_string(), "10.0.0.3");
    }

    #[test]
    fn adopted_addresses_are_not_given_again() {
        let mut pool = Pool::default();
        pool.adopt(&PodId::random(), &["10.0.0.2".parse().expect("an address")]);
        assert_eq!(pool.take(&PodId::random(), &[cidr("10.0.0.0/24")]).expect("an address")[0].to_string(), "10.0.0.3");
    }

    #[test]
    fn a_pod_that_gets_only_one_family_gets_none() {
        let mut pool = Pool::default();
        let (v4, v6) = (cidr("10.0.0.0/24"), cidr("fd00::/126"));
        for _ in 0..2 {
            pool.take(&PodId::random(), &[v4, v6]).expect("addresses");
        }
        assert!(pool.take(&PodId::random(), &[v4, v6]).is_err());
        assert_eq!(pool.taken.len(), 4);
    }
}
