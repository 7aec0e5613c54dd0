//! A range of addresses, `10.77.0.0/16` or `fdc7:1cce:7::/64`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A text that is not a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of addresses: ADDRESS/BITS is expected, with room for two pods at least")]
pub struct CidrError(String);

/// A network address and its prefix length; host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    base: IpAddr,
    bits: u8,
}

impl Cidr {
    /// Prefix length.
    pub fn bits(self) -> u8 {
        self.bits
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
        let base = match address {
            IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() & (u32::MAX << (32 - bits))).into(),
            IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() & (u128::MAX << (128 - bits))).into(),
        };
        Ok(Self { base, bits })
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
    fn what_is_no_range_or_has_no_room_is_refused() {
        for bad in ["", "10.0.0.0", "10.0.0.0/0", "10.0.0.0/31", "10.0.0.0/33", "fd00::/127", "x/8", "10.0.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?}");
        }
    }
}
