//! Which images are pinned: those with a name that the configuration lists. Kubelets leave them alone, and nothing of
//! ours removes them.

use super::reference::normalize;

/// At the end of a name: any rest of it.
const ANY: char = '*';

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Pins(Vec<Pin>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pin {
    Name(String),
    Beginning(String),
}

impl Pins {
    /// `registry.example/pause:3.10`, or `registry.example/base/*`. What is no name pins nothing.
    pub fn new(names: &[String]) -> Self {
        let pin = |name: &String| match name.strip_suffix(ANY) {
            Some(beginning) => Some(Pin::Beginning(beginning.to_owned())),
            None => match normalize(name) {
                Ok(name) => Some(Pin::Name(name)),
                Err(error) => {
                    tracing::warn!("images.pinned: {error}");
                    None
                }
            },
        };
        Self(names.iter().filter_map(pin).collect())
    }

    /// Whether an image with these names is pinned.
    pub fn cover(&self, names: &[String]) -> bool {
        self.0.iter().any(|pin| match pin {
            Pin::Name(name) => names.contains(name),
            Pin::Beginning(beginning) => names.iter().any(|name| name.starts_with(beginning)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_pins_itself_and_a_star_what_begins_so() {
        let pins = Pins::new(&["busybox".to_owned(), "reg.io/base/*".to_owned(), "NO NAME".to_owned()]);
        for (name, covered) in [
            ("docker.io/library/busybox:latest", true),
            ("docker.io/library/busybox:1", false),
            ("reg.io/base/a:1", true),
            ("reg.io/other:1", false),
        ] {
            assert_eq!(pins.cover(&[name.to_owned()]), covered, "{name}");
        }
        assert!(!Pins::default().cover(&["a".to_owned()]));
    }
}
