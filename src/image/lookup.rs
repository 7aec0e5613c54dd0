//! Which image a name means: a tag, a digest, an id, or the beginning of an id.

use std::sync::Arc;

use super::reference::{Reference, Version};
use super::{Image, ImageError, ImageErrorKind};

/// Shortest beginning of an id that is looked for.
const PREFIX_DIGITS_MIN: usize = 3;
/// What an id begins with.
const ID_PREFIX: &str = "sha256:";

/// The image `name` means. An empty name, or the beginning of more than one id, is an error.
pub fn find<'a>(
    images: impl Iterator<Item = &'a Arc<Image>> + Clone,
    name: &str,
) -> Result<Option<Arc<Image>>, ImageError> {
    if name.is_empty() {
        return Err(ImageError::new(ImageErrorKind::Invalid, "an image name is empty"));
    }
    let digits = name.strip_prefix(ID_PREFIX).unwrap_or(name);
    let by_id = |image: &&Arc<Image>| image.id.strip_prefix(ID_PREFIX) == Some(digits);
    if let Some(image) = images.clone().find(by_id).or_else(|| by_reference(images.clone(), name)) {
        return Ok(Some(image.clone()));
    }
    if digits.len() < PREFIX_DIGITS_MIN || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(None);
    }
    let mut begins = images.filter(|image| image.id.strip_prefix(ID_PREFIX).is_some_and(|id| id.starts_with(digits)));
    match (begins.next(), begins.next()) {
        (Some(_), Some(_)) => {
            let message = format!("{digits:?} is the beginning of more than one image's id; give more digits");
            Err(ImageError::new(ImageErrorKind::Invalid, message))
        }
        (found, _) => Ok(found.cloned()),
    }
}

fn by_reference<'a>(mut images: impl Iterator<Item = &'a Arc<Image>>, name: &str) -> Option<&'a Arc<Image>> {
    let reference: Reference = name.parse().ok()?;
    let full = reference.to_string();
    images.find(|image| match reference.version() {
        Version::Tag(_) => image.repo_tags.contains(&full),
        Version::Digest(_) => image.repo_digests.contains(&full),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageConfig;

    fn image(digit: &str, tags: &[&str], digests: &[String]) -> Arc<Image> {
        Arc::new(Image {
            id: format!("sha256:{}", digit.repeat(32)),
            repo_tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            repo_digests: digests.to_vec(),
            size_bytes: 1,
            pinned: false,
            config: ImageConfig::default(),
            layers: Vec::new(),
        })
    }

    #[test]
    fn a_name_means_one_image_or_none() {
        let manifest = format!("docker.io/library/busybox@sha256:{}", "ee".repeat(32));
        let images = [
            image("ab", &["docker.io/library/busybox:latest"], std::slice::from_ref(&manifest)),
            image("cd", &["reg.io/x:1"], &[]),
            image("ce", &["docker.io/library/ccc:latest"], &[]),
        ];
        for (name, found) in [
            ("busybox", Some(0)),
            ("busybox:latest", Some(0)),
            ("docker.io/busybox", Some(0)),
            (manifest.as_str(), Some(0)),
            (&format!("busybox@sha256:{}", "ee".repeat(32)), Some(0)),
            (images[1].id.as_str(), Some(1)),
            (&"cd".repeat(32), Some(1)),
            ("cdc", Some(1)),
            ("sha256:cdc", Some(1)),
            ("reg.io/x:1", Some(1)),
            ("x:1", None),
            ("cd", None),
            ("sha256:", None),
            ("busybox:1", None),
            ("c", None),
            ("..", None),
        ] {
            let image = find(images.iter(), name).expect(name);
            assert_eq!(image.map(|i| i.id.clone()), found.map(|i: usize| images[i].id.clone()), "{name}");
        }
        assert_eq!(find(images.iter(), "").expect_err("empty").kind, ImageErrorKind::Invalid);
        let twins = [image("ab", &[], &[]), {
            let mut other = Image::clone(&images[0]);
            other.id = format!("sha256:abab{}", "00".repeat(30));
            Arc::new(other)
        }];
        assert!(find(twins.iter(), "abab").expect_err("two").message.contains("more than one"));
    }
}
