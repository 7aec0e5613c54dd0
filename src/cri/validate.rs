//! What a request must bear before anything is done. Each refusal is InvalidArgument and names the field.

use std::time::Duration;

use tonic::Status;

use super::enums;
use crate::proto::cri::{ContainerConfig, ImageSpec, PodSandboxConfig};

/// Longest id, name prefix or reference that is looked up; longer ones are nobody's.
const NAME_LIMIT_BYTES: usize = 1024;

/// Most words of a command that a client may have run.
const COMMAND_LIMIT_WORDS: usize = 16 << 10;

/// A hundred years.
const SECONDS_MAX: u64 = 100 * 365 * 24 * 60 * 60;

/// A message field that must be there.
pub fn present<T>(value: Option<T>, field: &str) -> Result<T, Status> {
    value.ok_or_else(|| Status::invalid_argument(format!("{field} is missing")))
}

/// A text that must be there and of reasonable length.
pub fn not_empty<'a>(value: &'a str, field: &str) -> Result<&'a str, Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is empty")));
    }
    if value.len() > NAME_LIMIT_BYTES {
        return Err(Status::invalid_argument(format!("{field} is longer than {NAME_LIMIT_BYTES} bytes")));
    }
    Ok(value)
}

/// The image that a request names.
pub fn image(spec: Option<&ImageSpec>) -> Result<&str, Status> {
    not_empty(&present(spec, "image")?.image, "image.image")
}

/// A command with at least a program.
pub fn command(words: &[String]) -> Result<(), Status> {
    if words.len() > COMMAND_LIMIT_WORDS {
        return Err(Status::invalid_argument(format!("cmd has more than {COMMAND_LIMIT_WORDS} words")));
    }
    match words.first() {
        None => Err(Status::invalid_argument("cmd is empty")),
        Some(program) if program.is_empty() => Err(Status::invalid_argument("cmd[0] is empty")),
        Some(_) if words.iter().any(|word| word.contains('\0')) => {
            Err(Status::invalid_argument("cmd has a NUL byte in one of its words"))
        }
        Some(_) => Ok(()),
    }
}

/// Streams of an exec or attach: at least one, and no stderr beside a terminal.
pub fn streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<(), Status> {
    if !stdin && !stdout && !stderr {
        return Err(Status::invalid_argument("none of stdin, stdout and stderr is asked for"));
    }
    if tty && stderr {
        return Err(Status::invalid_argument(
            "stderr cannot be asked for together with tty: a terminal has one output",
        ));
    }
    Ok(())
}

/// A number of seconds; more than a century is a century, which a clock can still count to.
pub fn seconds(count: u64) -> Duration {
    Duration::from_secs(count.min(SECONDS_MAX))
}

/// A port from 1 to 65535.
pub fn port(number: i32) -> Result<u16, Status> {
    let wrong = || Status::invalid_argument(format!("port {number} is not between 1 and 65535"));
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(wrong)
}

/// A sandbox's configuration with the four parts of its name.
pub fn sandbox_config(config: Option<PodSandboxConfig>) -> Result<PodSandboxConfig, Status> {
    let config = present(config, "config")?;
    let metadata = present(config.metadata.as_ref(), "config.metadata")?;
    not_empty(&metadata.name, "config.metadata.name")?;
    not_empty(&metadata.namespace, "config.metadata.namespace")?;
    not_empty(&metadata.uid, "config.metadata.uid")?;
    enums::of_sandbox(&config)?;
    Ok(config)
}

/// A container's configuration with its name and image.
pub fn container_config(config: Option<ContainerConfig>) -> Result<ContainerConfig, Status> {
    let config = present(config, "config")?;
    not_empty(&present(config.metadata.as_ref(), "config.metadata")?.name, "config.metadata.name")?;
    let spec = present(config.image.as_ref(), "config.image")?;
    not_empty(&spec.image, "config.image.image")?;
    enums::of_container(&config)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::{ContainerMetadata, PodSandboxMetadata};
    use tonic::Code;

    fn sandbox(name: &str, namespace: &str, uid: &str) -> PodSandboxConfig {
        let metadata =
            PodSandboxMetadata { name: name.into(), namespace: namespace.into(), uid: uid.into(), attempt: 0 };
        PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
    }

    fn container(name: &str, image: Option<&str>) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: image.map(|image| ImageSpec { image: image.into(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_missing_in_a_sandbox_is_named() {
        let cases = [
            (None, "config is missing"),
            (Some(PodSandboxConfig::default()), "config.metadata is missing"),
            (Some(sandbox("", "n", "u")), "config.metadata.name is empty"),
            (Some(sandbox("p", "", "u")), "config.metadata.namespace is empty"),
            (Some(sandbox("p", "n", "")), "config.metadata.uid is empty"),
            (Some(sandbox(&"p".repeat(2000), "n", "u")), "config.metadata.name is longer"),
        ];
        for (config, expected) in cases {
            let status = sandbox_config(config).expect_err(expected);
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains(expected), "{status}");
        }
        assert!(sandbox_config(Some(sandbox("p", "n", "u"))).is_ok());
    }

    #[test]
    fn what_is_missing_in_a_container_is_named() {
        let cases = [
            (None, "config is missing"),
            (Some(ContainerConfig::default()), "config.metadata is missing"),
            (Some(container("", Some("i"))), "config.metadata.name is empty"),
            (Some(container("c", None)), "config.image is missing"),
            (Some(container("c", Some(""))), "config.image.image is empty"),
        ];
        for (config, expected) in cases {
            let status = container_config(config).expect_err(expected);
            assert_eq!((status.code(), status.message()), (Code::InvalidArgument, expected));
        }
        assert!(container_config(Some(container("c", Some("i")))).is_ok());
    }

    #[test]
    fn a_command_needs_a_program_and_no_nul() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        for bad in [words(&[]), words(&[""]), words(&["a", "b\0"]), vec!["x".to_owned(); COMMAND_LIMIT_WORDS + 1]] {
            assert_eq!(command(&bad).expect_err("bad").code(), Code::InvalidArgument);
        }
        assert!(command(&words(&["sh", "-c", ""])).is_ok());
    }

    #[test]
    fn streams_are_one_at_least_and_no_stderr_with_a_terminal() {
        assert!(streams(false, false, false, false).is_err());
        assert!(streams(true, true, true, true).is_err());
        assert!(streams(true, true, true, false).is_ok());
        assert!(streams(false, false, false, true).is_ok());
    }

    #[test]
    fn any_number_of_seconds_can_be_waited_for() {
        for count in [0, 1, u64::MAX] {
            assert!(std::time::Instant::now().checked_add(seconds(count)).is_some(), "{count}");
        }
        assert_eq!(seconds(30), Duration::from_secs(30));
    }

    #[test]
    fn ports_are_numbers_of_sixteen_bits_without_zero() {
        for bad in [0, -1, 65_536, i32::MIN] {
            assert!(port(bad).is_err(), "{bad}");
        }
        assert_eq!(port(65_535).expect("the last port"), 65_535);
    }
}
