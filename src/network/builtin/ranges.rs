//! Which ranges the bridge serves: those of which pods are given addresses now, and earlier ones for as long as a pod
//! has an address of theirs.

use super::{Builtin, is_bridge, rules_failed};
use crate::network::{Cidr, NetworkError};

impl Builtin {
    /// See [`crate::network::Network::change_ranges`]. After a refusal nothing is changed.
    pub fn change_ranges(&mut self, cidrs: Vec<Cidr>) -> Result<(), NetworkError> {
        self.refuse_others(&cidrs)?;
        self.refuse_overlap(&cidrs)?;
        self.give_addresses(&cidrs)?;
        self.cidrs = cidrs;
        // Before that it is not known which pods have what.
        if self.rules.are_written() { self.drop_unserved() } else { Ok(()) }
    }

    /// The first ranges of a daemon, which were its predecessor's perhaps.
    pub(super) fn begin_with(&mut self, cidrs: Vec<Cidr>) -> Result<(), NetworkError> {
        self.refuse_others(&cidrs)?;
        self.give_addresses(&cidrs)?;
        self.cidrs = cidrs;
        self.rules.set_ranges(self.served()).map_err(rules_failed)
    }

    /// Each once, those of new pods first.
    pub(super) fn served(&self) -> Vec<Cidr> {
        let mut served = self.cidrs.clone();
        for range in self.pods.values().flat_map(|pod| &pod.ranges) {
            if !served.contains(range) {
                served.push(*range);
            }
        }
        served
    }

    /// Gives the bridge the first address of each.
    pub(super) fn give_addresses(&mut self, cidrs: &[Cidr]) -> Result<(), NetworkError> {
        for cidr in cidrs {
            let given = self.route.add_address(self.bridge.index, cidr.gateway(), cidr.bits());
            let what = || format!("give the bridge {} the address {}", self.bridge.name, cidr.gateway());
            given.map_err(|error| NetworkError::kernel(what())(error))?;
        }
        Ok(())
    }

    /// Rules and the bridge's addresses are those of the ranges that are served, and no more.
    pub(super) fn drop_unserved(&mut self) -> Result<(), NetworkError> {
        let served = self.served();
        self.rules.set_ranges(served.clone()).map_err(rules_failed)?;
        for range in self.ranges_of_bridge()?.into_iter().filter(|range| !served.contains(range)) {
            let removed = self.route.remove_address(self.bridge.index, range.gateway(), range.bits());
            let what = || format!("take the address {} from the bridge {}", range.gateway(), self.bridge.name);
            removed.map_err(|error| NetworkError::kernel(what())(error))?;
        }
        Ok(())
    }

    /// Those of which the bridge has the first address.
    pub(super) fn ranges_of_bridge(&mut self) -> Result<Vec<Cidr>, NetworkError> {
        let found = self.route.addresses().map_err(NetworkError::kernel("look at the bridge's addresses"))?;
        let own = found.into_iter().filter(|(link, _, _)| *link == self.bridge.index);
        let ranges = own.filter_map(|(_, address, bits)| Cidr::around(address, bits).map(|range| (range, address)));
        Ok(ranges.filter(|(range, address)| range.gateway() == *address).map(|(range, _)| range).collect())
    }

    /// Another daemon's pods in this network namespace have addresses of their own.
    fn refuse_others(&mut self, cidrs: &[Cidr]) -> Result<(), NetworkError> {
        let failed = || NetworkError::kernel("look for other bridges of this network namespace");
        for (link, address, _) in self.route.addresses().map_err(failed())? {
            let Some(range) = cidrs.iter().find(|cidr| cidr.contains(address)) else { continue };
            if link == self.bridge.index {
                continue;
            }
            let name = self.route.link_name(link).map_err(failed())?.unwrap_or_default();
            if is_bridge(&name) {
                return Err(NetworkError::Shared { range: *range, bridge: name });
            }
        }
        Ok(())
    }

    /// The node reaches others by other interfaces: pods' addresses must not hide theirs. A wider route by way of a
    /// gateway hides nothing that is not meant: of two routes the narrower is taken.
    fn refuse_overlap(&mut self, cidrs: &[Cidr]) -> Result<(), NetworkError> {
        let failed = || NetworkError::kernel("look at the node's addresses and routes");
        let addresses = self.route.addresses().map_err(failed())?.into_iter();
        let mut taken: Vec<(u32, Cidr, bool)> =
            addresses.filter_map(|(link, address, bits)| Some((link, Cidr::around(address, bits)?, true))).collect();
        let routes = self.route.routes().map_err(failed())?.into_iter();
        taken.extend(routes.map(|route| (route.link, route.to, route.is_direct)));
        let hides = |range: &Cidr, network: &Cidr, is_direct: bool| {
            range.overlaps(*network) && (is_direct || range.bits() <= network.bits())
        };
        for (link, network, is_direct) in taken.into_iter().filter(|(link, _, _)| *link != self.bridge.index) {
            let Some(range) = cidrs.iter().find(|range| hides(range, &network, is_direct)) else { continue };
            let name = self.route.link_name(link).map_err(failed())?.unwrap_or_default();
            let why = format!("overlaps {network}, which the node reaches by its interface {name}");
            return Err(NetworkError::Range { range: *range, why });
        }
        Ok(())
    }
}
