//! A network namespace in place of a pod's that is gone, or that lacks its interface. Plugins find out by the
//! interface's addresses which of their rules are the pod's: without it Debian's bridge leaves a chain of masquerading
//! rules behind.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::thread::UnshareFlags;

use crate::sys::namespaces;

use super::enter;
use super::route::RouteSocket;

/// None where `held` has the interface: then it needs nobody in its place.
pub fn stand_in(held: Option<&OwnedFd>, interface: &str, addresses: &[IpAddr]) -> io::Result<Option<OwnedFd>> {
    std::thread::scope(|scope| {
        let work = || match held {
            Some(held) if has(held, interface)? => Ok(None),
            _ => make(interface, addresses).map(Some),
        };
        // In a thread that ends with the namespace it is in.
        let thread = std::thread::Builder::new().name("stand-in".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended by a defect")))
    })
}

fn has(namespace: &OwnedFd, interface: &str) -> io::Result<bool> {
    enter(namespace)?;
    Ok(RouteSocket::open()?.link_index(interface)?.is_some())
}

/// A bridge, because it needs neither another end nor more of the kernel than the built-in network does.
fn make(interface: &str, addresses: &[IpAddr]) -> io::Result<OwnedFd> {
    namespaces::unshare(UnshareFlags::NEWNET)?;
    let mut route = RouteSocket::open()?;
    let link = route.ensure_bridge(interface, None)?;
    for address in addresses {
        let bits = if address.is_ipv4() { u32::BITS } else { u128::BITS };
        route.add_address(link, *address, bits as u8)?;
    }
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_missing_has_a_stand_in_and_one_that_is_there_has_none() {
        let address = [IpAddr::from([10, 9, 8, 7])];
        let Ok(made) = stand_in(None, "eth0", &address) else {
            // Not root of any user namespace: tests/cni.rs has one.
            return;
        };
        let made = made.expect("nothing is held");
        assert!(stand_in(Some(&made), "eth0", &address).expect("looked at").is_none());
        assert!(stand_in(Some(&made), "eth1", &address).expect("made").is_some());
    }
}
