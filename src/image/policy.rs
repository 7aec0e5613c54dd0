//! Signature policy: which images must be signed, and by whom.
//!
//! The signatures are cosign's with a key: beside an image whose manifest has the digest `sha256:HEX` its repository
//! has a tag `sha256-HEX.sig`. That is a manifest each of whose layers is a payload (a JSON that names the digest) and
//! bears the signature of the payload's bytes as an annotation. All of it comes from the image's own registry and is
//! checked here, with the keys of the configuration: no other service is asked. Only a pull is checked, before any
//! layer comes.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::Deserialize;

use super::digest::Digest;
use super::manifest::{Descriptor, MediaType};
use super::reference::Reference;
use super::registry::files;
use super::registry::session::Session;
use super::{ImageError, ImageErrorKind};
use crate::config::SignatureRule;

/// A kubelet looks for this at the start of a message.
const FAILED_PREFIX: &str = "SignatureValidationFailed";
/// A rule for every image.
const EVERYTHING: &str = "*";
/// Signatures of one image that are looked at.
const SIGNATURES_MAX: usize = 50;
/// A payload; cosign's own are below 1 KiB.
const PAYLOAD_BYTES_MAX: u64 = 64 << 10;
const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const CLAIM_TYPE: &str = "cosign container image signature";
const PEM_BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const PEM_END: &str = "-----END PUBLIC KEY-----";
/// In front of the point of a P-256 key in DER (RFC 5480): the algorithm and the curve.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const P256_POINT_BYTES: usize = 65;

/// See the module. Without rules everything is accepted.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: Vec<SignatureRule>,
}

#[derive(Deserialize)]
struct Signatures {
    #[serde(default)]
    layers: Vec<Signature>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signature {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: ClaimedImage,
    r#type: String,
}

#[derive(Deserialize)]
struct ClaimedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

impl Policy {
    /// Of the configuration.
    pub fn new(rules: Vec<SignatureRule>) -> Self {
        Self { rules }
    }

    /// The keys of which one must have signed the image; none: it is accepted as it is.
    pub fn keys(&self, reference: &Reference) -> Option<&[PathBuf]> {
        let name = reference.name();
        let covers = |rule: &&SignatureRule| {
            rule.scope == EVERYTHING
                || name.strip_prefix(&rule.scope).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let length = |rule: &&SignatureRule| if rule.scope == EVERYTHING { 0 } else { rule.scope.len() };
        let rule = self.rules.iter().filter(covers).max_by_key(length)?;
        (!rule.keys.is_empty()).then_some(rule.keys.as_slice())
    }

    /// That one of the keys has signed `digest`, that of the index or manifest which the name means. `signatures` is a
    /// session for [`signatures_of`] it.
    pub async fn check(
        keys: &[PathBuf],
        reference: &Reference,
        digest: &Digest,
        signatures: &Session,
    ) -> Result<(), ImageError> {
        let keys = keys.iter().map(|path| read_key(path)).collect::<Result<Vec<_>, _>>()?;
        let document = match signatures.resolve().await.map_err(ImageError::from) {
            Err(error) if error.kind == ImageErrorKind::NotFound => {
                return Err(failed(&format!("{reference} has no signature ({})", error.message)));
            }
            other => other?,
        };
        let found: Signatures = serde_json::from_slice(&document.bytes)
            .map_err(|_| failed(&format!("the list of signatures of {reference} is malformed")))?;
        for signature in found.layers.iter().filter(|found| found.media_type == PAYLOAD_TYPE).take(SIGNATURES_MAX) {
            if signature.size > PAYLOAD_BYTES_MAX {
                continue;
            }
            let Some(bytes) = signature.annotations.get(SIGNATURE_ANNOTATION) else { continue };
            let Ok(bytes) = STANDARD.decode(bytes.trim()) else { continue };
            let payload = signatures.config(&signature.descriptor()).await.map_err(ImageError::from)?.bytes;
            if keys.iter().any(|key| is_signed(key, &payload, &bytes)) && claims(&payload, digest) {
                return Ok(());
            }
        }
        Err(failed(&format!("{reference} ({digest}) has no signature of a key that the policy names")))
    }
}

/// Where the signatures of a digest are, in the image's own repository.
pub fn signatures_of(reference: &Reference, digest: &Digest) -> Result<Reference, ImageError> {
    let tag = digest.to_string().replace(':', "-");
    Ok(format!("{}:{tag}.sig", reference.name()).parse::<Reference>()?)
}

impl Signature {
    fn descriptor(&self) -> Descriptor {
        let media_type = MediaType::Other(self.media_type.clone());
        Descriptor { media_type, digest: self.digest.clone(), size: self.size }
    }
}

fn is_signed(key: &[u8], payload: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(payload, signature).is_ok()
}

/// What was signed is a signature of this image, and nothing else that the key may have signed.
fn claims(payload: &[u8], digest: &Digest) -> bool {
    serde_json::from_slice::<Payload>(payload)
        .is_ok_and(|payload| payload.critical.r#type == CLAIM_TYPE && payload.critical.image.digest == *digest)
}

/// The point of a P-256 key in PEM, read anew for each pull so that a new key needs no new daemon.
fn read_key(path: &Path) -> Result<Vec<u8>, ImageError> {
    let unusable = |problem: &str| failed(&format!("the key {} of the policy {problem}", path.display()));
    let bytes = match files::read(path) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(unusable("is not there")),
        Err(error) => return Err(unusable(&format!("cannot be read: {error}"))),
    };
    point(&String::from_utf8_lossy(&bytes)).ok_or_else(|| {
        unusable("is no public ECDSA key of the curve P-256 in PEM (`cosign public-key`, `openssl ec -pubout`)")
    })
}

fn point(pem: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once(PEM_BEGIN)?;
    let (body, _) = rest.split_once(PEM_END)?;
    let text: String = body.split_whitespace().collect();
    let der = STANDARD.decode(text).ok()?;
    let point = der.strip_prefix(&P256_PREFIX)?;
    (point.len() == P256_POINT_BYTES).then(|| point.to_vec())
}

fn failed(problem: &str) -> ImageError {
    let advice = "see the policy table of cricket.toml";
    ImageError::new(ImageErrorKind::Untrusted, format!("{FAILED_PREFIX}: {problem}; {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_scope_decides() {
        let rule = |scope: &str, keys: &[&str]| SignatureRule {
            scope: scope.to_owned(),
            keys: keys.iter().map(PathBuf::from).collect(),
        };
        let rules = vec![rule("*", &["/all"]), rule("reg.io", &["/reg"]), rule("reg.io/free", &[])];
        let policy = Policy::new(rules);
        for (name, key) in [
            ("busybox", Some("/all")),
            ("reg.io/a:1", Some("/reg")),
            ("reg.io.evil/a:1", Some("/all")),
            ("reg.io/free/x", None),
            ("reg.io/freedom", Some("/reg")),
        ] {
            let reference: Reference = name.parse().expect(name);
            let keys = policy.keys(&reference).map(|keys| keys[0].display().to_string());
            assert_eq!(keys.as_deref(), key, "{name}");
        }
        assert!(Policy::default().keys(&"a".parse().expect("a name")).is_none());
    }

    #[test]
    fn only_p256_keys_are_keys() {
        let good = STANDARD.encode([&P256_PREFIX[..], &[4; P256_POINT_BYTES]].concat());
        let pem = |body: &str| format!("{PEM_BEGIN}\n{body}\n{PEM_END}\n");
        assert_eq!(point(&pem(&good)), Some(vec![4; P256_POINT_BYTES]));
        for bad in [String::new(), pem(""), pem("%%"), pem(&good[..40]), pem(&STANDARD.encode([0; 91])), good] {
            assert!(point(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_payload_claims_one_digest_as_an_image() {
        let digest: Digest = format!("sha256:{}", "ab".repeat(32)).parse().expect("a digest");
        let payload = |kind: &str, digest: &str| {
            format!(r#"{{"critical":{{"type":"{kind}","image":{{"docker-manifest-digest":"{digest}"}}}}}}"#)
        };
        assert!(claims(payload(CLAIM_TYPE, &digest.to_string()).as_bytes(), &digest));
        for bad in [
            payload("another", &digest.to_string()),
            payload(CLAIM_TYPE, &digest.to_string().replace("ab", "ac")),
            payload(CLAIM_TYPE, "../../etc"),
            "{}".to_owned(),
        ] {
            assert!(!claims(bad.as_bytes(), &digest), "{bad}");
        }
    }
}
