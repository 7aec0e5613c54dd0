//! A range of addresses, `10.77.0.0/16` or `fdc7:1cce:7::/64`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of addresses: ADDRESS/BITS is expected, with room for the bridge and a pod at least")]
pub struct CidrError(String);

/// A network address and its prefix length; host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Cidr {
    base: IpAddr,
    bits: u8,
}

impl Cidr {
    /// Prefix length.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// In which `address` lies, by its prefix length; none: no address has as many bits.
    pub fn around(address: IpAddr, bits: u8) -> Option<Self> {
        let shift = |width: u32| width.checked_sub(bits.into());
        let base = match address {
            IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() & u32::MAX.checked_shl(shift(32)?).unwrap_or(0)).into(),
            IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() & u128::MAX.checked_shl(shift(128)?).unwrap_or(0)).into(),
        };
        Some(Self { base, bits })
    }

    /// The address with zero host bits.
    pub fn base(self) -> IpAddr {
        self.base
    }

    /// Whether `address` lies within.
    pub fn contains(self, address: IpAddr) -> bool {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let (address, base, mask) = (octets(address), octets(self.base()), self.mask());
        address.len() == base.len() && address.iter().zip(base).zip(mask).all(|((a, b), m)| a & m == b & m)
    }

    /// Whether any address lies within both.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    /// What the range has, in whole or in part, that no machine on a network can have; none: pods can have it.
    pub fn unusable(self) -> Option<&'static str> {
        let special = UNUSABLE.iter().map(|(base, bits, what)| (Self { base: *base, bits: *bits }, *what));
        special.filter(|(range, _)| range.overlaps(self)).map(|(_, what)| what).next()
    }

    /// Bits of a whole address of the family.
    fn width(self) -> u8 {
        if self.base.is_ipv4() { 32 } else { 128 }
    }

    /// How many addresses, capped at 2^63.
    pub fn size(self) -> u64 {
        1 << (self.width() - self.bits).min(63)
    }

    /// The address at `offset` from the base.
    pub fn at(self, offset: u64) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() | offset as u32).into(),
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() | u128::from(offset)).into(),
        }
    }

    /// The first address: the bridge's.
    pub fn gateway(self) -> IpAddr {
        self.at(1)
    }

    /// The network mask in network byte order.
    pub fn mask(self) -> Vec<u8> {
        let (bits, bytes) = (usize::from(self.bits), usize::from(self.width() / 8));
        (0..bytes).map(|i| (0xff00u16 >> bits.saturating_sub(i * 8).min(8)) as u8).collect()
    }
}

/// RFC 6890.
const UNUSABLE: [(IpAddr, u8, &str); 9] = [
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8, "loopback addresses (127.0.0.0/8)"),
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8, "addresses of no machine (0.0.0.0/8)"),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16, "link-local addresses (169.254.0.0/16)"),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4, "multicast addresses (224.0.0.0/4)"),
    (IpAddr::V4(Ipv4Addr::new(240, 0, 0, 0)), 4, "reserved addresses (240.0.0.0/4)"),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 96, "loopback and unspecified addresses (::/96)"),
    (IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), 96, "IPv4 addresses in IPv6's form (::ffff:0:0/96)"),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10, "link-local addresses (fe80::/10)"),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8, "multicast addresses (ff00::/8)"),
];

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError(text.chars().take(80).collect());
        let (address, bits) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let bits: u8 = bits.parse().map_err(|_| error())?;
        let limit = if address.is_ipv4() { 30 } else { 126 };
        if bits == 0 || bits > limit {
            return Err(error());
        }
        Self::around(address, bits).ok_or_else(error)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_host_bits_dropped() {
        let cidr: Cidr = "10.77.3.4/16".parse().expect("a range");
        assert_eq!(cidr.to_string(), "10.77.0.0/16");
        assert_eq!(cidr.gateway().to_string(), "10.77.0.1");
        assert_eq!(cidr.mask(), [255, 255, 0, 0]);
        let cidr: Cidr = "fd00::/20".parse().expect("a range");
        assert_eq!(cidr.mask()[..4], [255, 255, 240, 0]);
        assert_eq!(cidr.at(258).to_string(), "fd00::102");
    }

    #[test]
    fn a_range_of_which_no_machine_can_have_a_part_is_no_pods() {
        let what = |text: &str| text.parse::<Cidr>().expect("a range").unusable();
        for bad in ["127.0.0.0/8", "127.3.0.0/16", "0.0.0.0/1", "0.5.0.0/16", "224.0.0.0/4", "255.255.255.0/24"] {
            assert!(what(bad).is_some(), "{bad}");
        }
        for bad in ["169.254.7.0/24", "fe80::/64", "ff02::/64", "::/64", "::ffff:10.0.0.0/104", "128.0.0.0/1"] {
            assert!(what(bad).is_some(), "{bad}");
        }
        for good in ["10.85.0.0/16", "192.168.0.0/16", "100.64.0.0/10", "fd85::/64", "2001:db8::/64", "64:ff9b::/96"] {
            assert_eq!(what(good), None, "{good}");
        }
    }

    #[test]
    fn what_is_no_range_or_has_no_room_is_refused() {
        for bad in ["", "10.0.0.0", "10.0.0.0/0", "10.0.0.0/31", "10.0.0.0/33", "fd00::/127", "x/8", "10.0.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?}");
        }
    }
}
