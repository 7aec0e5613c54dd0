//! `--volume SOURCE:DESTINATION[:ro]`.

use std::path::Path;

use anyhow::{Context, bail};

use crate::proto::cri;

/// A bind mount. The source is relative to where the command was typed, and must be there: making it silently is
/// how a mistyped path becomes an empty directory.
pub fn mount(text: &str) -> anyhow::Result<cri::Mount> {
    let fields: Vec<&str> = text.split(':').collect();
    let (source, destination, readonly) = match fields.as_slice() {
        [source, destination] => (*source, *destination, false),
        [source, destination, "ro"] => (*source, *destination, true),
        [source, destination, "rw"] => (*source, *destination, false),
        _ => bail!("--volume {text:?}: SOURCE:DESTINATION or SOURCE:DESTINATION:ro is expected"),
    };
    if !Path::new(destination).is_absolute() {
        bail!("--volume {text:?}: the destination must be an absolute path");
    }
    let host_path = std::fs::canonicalize(source).with_context(|| format!("--volume: source {source:?}"))?;
    Ok(cri::Mount {
        container_path: destination.to_owned(),
        host_path: host_path.display().to_string(),
        readonly,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_made_absolute_and_destinations_must_be() {
        let plain = mount("/:/host").expect("understood");
        assert_eq!((plain.host_path.as_str(), plain.container_path.as_str(), plain.readonly), ("/", "/host", false));
        assert!(mount("/:/host:ro").expect("understood").readonly);
        assert!(Path::new(&mount(".:/here").expect("understood").host_path).is_absolute());
        for bad in ["", "/", "/:relative", "/:/a:rx", "/:/a:ro:x", "/nowhere/at/all:/a"] {
            assert!(mount(bad).is_err(), "{bad:?}");
        }
    }
}
