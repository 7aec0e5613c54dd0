//! The one place where what an image says of itself becomes something the rest may rely on.
//!
//! Nothing of a config is used before it passed here: numbers are in range, paths are absolute and lead nowhere else,
//! no text has a NUL, lists are bounded. Labels are kept for showing and mean nothing to us, whatever they claim.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::digest::Digest;
use super::manifest::{CONFIG_BYTES_MAX, LAYERS_MAX};
use super::signal;
use super::{ImageConfig, ImageError, ImageErrorKind, ImageUser, Principal};

/// Entries of ENV, ENTRYPOINT, CMD, VOLUME and LABEL, each.
const LIST_LIMIT: usize = 10_000;
/// One text: the kernel's own limit for an argument.
const TEXT_LIMIT_BYTES: usize = 128 << 10;
/// A path.
const PATH_LIMIT_BYTES: usize = 4095;
/// Names of users, architectures and the like.
const NAME_LIMIT_BYTES: usize = 256;
/// First number that is no user or group id; what is signed elsewhere stays positive.
const ID_LIMIT: u32 = 1 << 31;
/// What a message repeats of a value.
const QUOTE_LIMIT_CHARS: usize = 100;
/// Kubernetes' and our only platform.
const OS: &str = "linux";

/// A config, validated.
#[derive(Debug, Clone)]
pub struct ValidConfig {
    /// How the image wants to be run.
    pub config: ImageConfig,
    /// Its layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawImage {
    architecture: Option<String>,
    os: Option<String>,
    created: Option<String>,
    config: Option<RawConfig>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
}

/// Reads and validates the bytes of a config. `BadImage` names the field and the value.
pub fn validate(bytes: &[u8]) -> Result<ValidConfig, ImageError> {
    let raw = parse(bytes)?;
    let os = name("os", raw.os)?;
    if !os.is_empty() && os != OS {
        return Err(bad(format!("the image is made for {os:?}; only {OS} runs here")));
    }
    let run = raw.config.unwrap_or_default();
    let config = ImageConfig {
        user: user(&run.user.unwrap_or_default())?,
        env: env(run.env)?,
        entrypoint: arguments("ENTRYPOINT", run.entrypoint)?,
        command: arguments("CMD", run.cmd)?,
        working_dir: working_dir(&run.working_dir.unwrap_or_default())?,
        volumes: volumes(run.volumes.unwrap_or_default())?,
        // A signal that does not exist stops nothing: the default does.
        stop_signal: run.stop_signal.as_deref().and_then(signal::number),
        labels: labels(run.labels.unwrap_or_default())?,
        architecture: name("architecture", raw.architecture)?,
        os: if os.is_empty() { OS.to_owned() } else { os },
        created: name("created", raw.created)?,
    };
    Ok(ValidConfig { config, diff_ids: diff_ids_of(raw.rootfs)? })
}

/// Only `rootfs.diff_ids`, lowest first: what a pull has to unpack.
pub fn diff_ids(bytes: &[u8]) -> Result<Vec<Digest>, ImageError> {
    diff_ids_of(parse(bytes)?.rootfs)
}

fn parse(bytes: &[u8]) -> Result<RawImage, ImageError> {
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(bad(format!("the image's config is larger than {CONFIG_BYTES_MAX} bytes")));
    }
    serde_json::from_slice(bytes).map_err(|e| bad(format!("the image's config is malformed: {}", cut(&e.to_string()))))
}

fn diff_ids_of(rootfs: RawRootfs) -> Result<Vec<Digest>, ImageError> {
    let diff_ids = rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() > LAYERS_MAX {
        return Err(bad(format!("the image has {} layers; {LAYERS_MAX} can be stacked", diff_ids.len())));
    }
    Ok(diff_ids)
}

/// `[USER][:GROUP]`, each a number below 2^31 or a name.
fn user(text: &str) -> Result<ImageUser, ImageError> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    Ok(ImageUser { user: principal(user, text)?, group: principal(group, text)? })
}

fn principal(part: &str, whole: &str) -> Result<Option<Principal>, ImageError> {
    let error = |why: &str| bad(format!("the image's USER {:?} {why}", cut(whole)));
    if part.is_empty() {
        return Ok(None);
    }
    // What looks like a number is one, or nothing: a number out of range must not become a name.
    let unsigned = part.strip_prefix(['-', '+']).unwrap_or(part);
    if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return match part.parse::<u32>() {
            Ok(id) if id < ID_LIMIT && unsigned.len() == part.len() => Ok(Some(Principal::Id(id))),
            _ => Err(error(&format!("has a number that is not below {ID_LIMIT}"))),
        };
    }
    if part.len() > NAME_LIMIT_BYTES || part.contains(':') || part.chars().any(|c| c.is_control() || c == '/') {
        return Err(error("is neither a number nor a name"));
    }
    Ok(Some(Principal::Name(part.to_owned())))
}

/// Entries without `=` set nothing anywhere and are left out.
fn env(raw: Option<Vec<String>>) -> Result<Vec<String>, ImageError> {
    let entries = texts("ENV", raw)?;
    if let Some(entry) = entries.iter().find(|entry| entry.starts_with('=')) {
        return Err(bad(format!("the image's ENV {:?} has no name", cut(entry))));
    }
    Ok(entries.into_iter().filter(|entry| entry.contains('=')).collect())
}

fn arguments(what: &str, raw: Option<Vec<String>>) -> Result<Vec<String>, ImageError> {
    texts(what, raw)
}

fn texts(what: &str, raw: Option<Vec<String>>) -> Result<Vec<String>, ImageError> {
    let texts = raw.unwrap_or_default();
    bounded(what, texts.len())?;
    texts.iter().try_for_each(|text| plain(what, text, TEXT_LIMIT_BYTES))?;
    Ok(texts)
}

fn working_dir(text: &str) -> Result<String, ImageError> {
    plain("WORKDIR", text, PATH_LIMIT_BYTES)?;
    Ok(if text.is_empty() { String::new() } else { absolute(text) })
}

fn volumes(raw: BTreeMap<String, serde::de::IgnoredAny>) -> Result<Vec<String>, ImageError> {
    bounded("VOLUME", raw.len())?;
    let mut volumes = Vec::with_capacity(raw.len());
    for text in raw.into_keys() {
        plain("VOLUME", &text, PATH_LIMIT_BYTES)?;
        let path = absolute(&text);
        if path == "/" {
            return Err(bad(format!("the image's VOLUME {:?} would hide the whole image", cut(&text))));
        }
        volumes.push(path);
    }
    volumes.sort();
    volumes.dedup();
    Ok(volumes)
}

fn labels(raw: BTreeMap<String, Option<String>>) -> Result<BTreeMap<String, String>, ImageError> {
    bounded("LABEL", raw.len())?;
    Ok(raw.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect())
}

fn name(what: &str, text: Option<String>) -> Result<String, ImageError> {
    let text = text.unwrap_or_default();
    plain(what, &text, NAME_LIMIT_BYTES)?;
    if text.chars().any(char::is_control) {
        return Err(bad(format!("the image's {what} {:?} has control characters", cut(&text))));
    }
    Ok(text)
}

/// From the image's root, without `.` and `..`: as in a file system, the root's parent is the root.
fn absolute(text: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn plain(what: &str, text: &str, limit: usize) -> Result<(), ImageError> {
    if text.contains('\0') {
        return Err(bad(format!("the image's {what} {:?} has a NUL", cut(text))));
    }
    if text.len() > limit {
        return Err(bad(format!("the image's {what} {:?} is longer than {limit} bytes", cut(text))));
    }
    Ok(())
}

fn bounded(what: &str, count: usize) -> Result<(), ImageError> {
    if count > LIST_LIMIT {
        return Err(bad(format!("the image has {count} entries of {what}; {LIST_LIMIT} are taken")));
    }
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(QUOTE_LIMIT_CHARS).collect()
}

fn bad(message: String) -> ImageError {
    ImageError::new(ImageErrorKind::BadImage, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn with(config: Value) -> Result<ValidConfig, ImageError> {
        let image = json!({"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"diff_ids": []}});
        validate(image.to_string().as_bytes())
    }

    #[test]
    fn row_28_a_user_is_a_number_below_two_to_the_31_or_a_name() {
        let id = |id| Some(Principal::Id(id));
        let named = |name: &str| Some(Principal::Name(name.to_owned()));
        for (text, expected) in [
            ("", Some((None, None))),
            ("0", Some((id(0), None))),
            ("1002:1003", Some((id(1002), id(1003)))),
            ("www-data:1004", Some((named("www-data"), id(1004)))),
            ("1002:", Some((id(1002), None))),
            (":7", Some((None, id(7)))),
            ("2147483647", Some((id(2147483647), None))),
            ("0x0", Some((named("0x0"), None))),
            ("2147483648", None),
            ("4294967296", None),
            ("99999999999999999999", None),
            ("-1", None),
            ("+0", None),
            ("1:2:3", None),
            ("a\nroot:x:0:0", None),
            ("../x", None),
        ] {
            let found = with(json!({"User": text})).ok().map(|v| (v.config.user.user, v.config.user.group));
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn paths_stay_in_the_image() {
        for (text, expected) in
            [("/../../etc", "/etc"), ("/a/./b//c/", "/a/b/c"), ("srv", "/srv"), ("/proc/self/fd/7", "/proc/self/fd/7")]
        {
            let valid = with(json!({"WorkingDir": text, "Volumes": {text: {}}})).expect("valid");
            assert_eq!(
                (valid.config.working_dir.as_str(), valid.config.volumes),
                (expected, vec![expected.to_owned()])
            );
        }
        assert!(with(json!({"Volumes": {"/..": {}}})).is_err());
    }

    #[test]
    fn fields_may_be_null_or_missing_but_not_of_another_kind() {
        let valid = with(json!({"Env": null, "Cmd": null, "Labels": null, "Volumes": null})).expect("valid");
        assert!(valid.config.env.is_empty() && valid.config.command.is_empty());
        with(Value::Null).expect("no config at all");
        for bad in [json!({"Env": "A=1"}), json!({"Env": ["A=\u{0}"]}), json!({"Env": ["=1"]}), json!({"Cmd": [1]})] {
            assert_eq!(with(bad.clone()).expect_err("refused").kind, ImageErrorKind::BadImage, "{bad}");
        }
        for bad in [&b""[..], b"[]", b"{}", b"{\"rootfs\":{\"diff_ids\":[\"../../etc\"]}}", &b"[".repeat(1 << 20)] {
            assert!(validate(bad).is_err());
        }
    }

    #[test]
    fn a_bad_stop_signal_is_the_default() {
        for (text, expected) in [("SIGQUIT", Some(3)), ("9", Some(9)), ("SIGBOGUS", None), ("70", None), ("-9", None)] {
            assert_eq!(with(json!({"StopSignal": text})).expect("valid").config.stop_signal, expected, "{text}");
        }
    }

    #[test]
    fn row_30_newlines_in_the_environment_stay_in_the_environment() {
        let valid = with(json!({"Env": ["HOME=/root\nroot::0:0::/:/bin/sh", "EMPTY"]})).expect("valid");
        assert_eq!(valid.config.env, ["HOME=/root\nroot::0:0::/:/bin/sh"]);
    }
}
