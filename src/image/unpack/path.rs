//! Names from a layer, as lists of plain components. What has `..` is refused, a leading slash means nothing.

use super::error::{UnpackError, quoted};
use super::limits::{PATH_LIMIT_BYTES, within};

/// A path beneath the layer: no empty component, no `.`, no `..`, no leading slash. Empty: the layer's root.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerPath(Vec<u8>);

impl LayerPath {
    /// Of a name as written in a tar.
    pub fn parse(name: &[u8]) -> Result<Self, UnpackError> {
        within("bytes in one path", name.len() as u64, PATH_LIMIT_BYTES as u64)?;
        if name.contains(&0) {
            return Err(UnpackError::Malformed(format!("the name {} has a NUL", quoted(name))));
        }
        let mut path = Vec::with_capacity(name.len());
        for component in components(name) {
            if component == b".." {
                return Err(UnpackError::Malformed(format!("the name {} leads outside with \"..\"", quoted(name))));
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(component);
        }
        Ok(Self(path))
    }

    /// With slashes between the components.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The layer's root directory itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Parent and last component; none for the root.
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (&[], &self.0),
        })
    }
}

/// Components of a path, `.` and empty ones left out.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|component| !component.is_empty() && *component != b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_plain_components_or_are_refused() {
        for (name, path) in [
            (&b"./a//b/./c/"[..], Some(&b"a/b/c"[..])),
            (b"/etc/passwd", Some(b"etc/passwd")),
            (b"./", Some(b"")),
            (b"", Some(b"")),
            (b"...", Some(b"...")),
            (b"..", None),
            (b"a/../b", None),
            (b"/..", None),
            (b"a\0b", None),
        ] {
            assert_eq!(LayerPath::parse(name).ok().map(|p| p.0), path.map(<[u8]>::to_vec), "{name:?}");
        }
        assert!(LayerPath::parse(&b"a/".repeat(50_000)).is_err());
    }
}
