//! What a container runs: arguments, environment and working directory, merged from the image and the request by
//! Kubernetes' rules.

use std::path::PathBuf;

use crate::image::ImageConfig;
use crate::pod::error::{PodError, quoted};
use crate::pod::paths;
use crate::proto::cri;

/// Where programs are looked for when neither the image nor the request says.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `command` takes the place of ENTRYPOINT and drops CMD; `args` takes the place of CMD.
pub(crate) fn arguments(config: &cri::ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, PodError> {
    let (head, tail) = match (config.command.as_slice(), config.args.as_slice()) {
        ([], []) => (image.entrypoint.as_slice(), image.command.as_slice()),
        ([], args) => (image.entrypoint.as_slice(), args),
        (command, args) => (command, args),
    };
    let arguments: Vec<String> = head.iter().chain(tail).cloned().collect();
    if arguments.is_empty() {
        return Err(PodError::invalid("no command is given, neither by the request nor by the image"));
    }
    match arguments.iter().find(|a| a.contains('\0')) {
        Some(bad) => Err(PodError::invalid(format!("the argument {:?} holds a NUL byte", quoted(bad)))),
        None => Ok(arguments),
    }
}

/// What the runtime adds where neither image nor request has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults<'a> {
    /// HOSTNAME.
    pub(crate) hostname: &'a str,
    /// HOME.
    pub(crate) home: &'a str,
    /// Adds TERM.
    pub(crate) terminal: bool,
}

/// The image's variables, then the request's over them, then what is missing. HOME and PATH are always there.
pub(crate) fn environment(
    config: &cri::ContainerConfig,
    image: &ImageConfig,
    defaults: Defaults<'_>,
) -> Result<Vec<String>, PodError> {
    let mut variables: Vec<(String, String)> = Vec::with_capacity(image.env.len() + config.envs.len() + 4);
    for entry in &image.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        set(&mut variables, name, value.to_owned());
    }
    for entry in &config.envs {
        let value = String::from_utf8(entry.value.clone())
            .map_err(|_| PodError::invalid(format!("the variable {:?} is not UTF-8", quoted(&entry.key))))?;
        if entry.key.is_empty() || entry.key.contains(['=', '\0']) || value.contains('\0') {
            return Err(PodError::invalid(format!("{:?} is no environment variable", quoted(&entry.key))));
        }
        set(&mut variables, &entry.key, value);
    }
    add(&mut variables, "PATH", DEFAULT_PATH);
    add(&mut variables, "HOSTNAME", defaults.hostname);
    add(&mut variables, "HOME", defaults.home);
    if defaults.terminal {
        add(&mut variables, "TERM", "xterm");
    }
    Ok(variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

fn set(variables: &mut Vec<(String, String)>, name: &str, value: String) {
    match variables.iter_mut().find(|(known, _)| known == name) {
        Some(known) => known.1 = value,
        None => variables.push((name.to_owned(), value)),
    }
}

fn add(variables: &mut Vec<(String, String)>, name: &str, value: &str) {
    if !value.is_empty() && !variables.iter().any(|(known, known_value)| known == name && !known_value.is_empty()) {
        set(variables, name, value.to_owned());
    }
}

/// The request's working directory, else the image's, else `/`.
pub(crate) fn working_directory(config: &cri::ContainerConfig, image: &ImageConfig) -> Result<PathBuf, PodError> {
    let wanted = match (config.working_dir.as_str(), image.working_dir.as_str()) {
        ("", "") => "/",
        ("", image) => image,
        (request, _) => request,
    };
    paths::inside("the working directory", wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    fn image(entrypoint: &[&str], command: &[&str]) -> ImageConfig {
        ImageConfig { entrypoint: strings(entrypoint), command: strings(command), ..Default::default() }
    }

    fn request(command: &[&str], args: &[&str]) -> cri::ContainerConfig {
        cri::ContainerConfig { command: strings(command), args: strings(args), ..Default::default() }
    }

    #[test]
    fn commands_are_merged_as_kubernetes_says() {
        type Words = &'static [&'static str];
        let table: [(Words, Words, Words, Words, Words); 6] = [
            (&["/ep"], &["cmd"], &[], &[], &["/ep", "cmd"]),
            (&["/ep"], &["cmd"], &["/x"], &[], &["/x"]),
            (&["/ep"], &["cmd"], &[], &["y"], &["/ep", "y"]),
            (&["/ep"], &["cmd"], &["/x"], &["y"], &["/x", "y"]),
            (&[], &["cmd"], &[], &[], &["cmd"]),
            (&[], &[], &[], &["y"], &["y"]),
        ];
        for (entrypoint, cmd, command, args, expected) in table {
            let got = arguments(&request(command, args), &image(entrypoint, cmd)).expect("arguments");
            assert_eq!(got, strings(expected), "{entrypoint:?} {cmd:?} {command:?} {args:?}");
        }
    }

    #[test]
    fn nothing_to_run_and_nul_bytes_are_refused() {
        assert!(arguments(&request(&[], &[]), &image(&[], &[])).is_err());
        assert!(arguments(&request(&["a\0b"], &[]), &image(&[], &[])).is_err());
    }

    fn variable(key: &str, value: &[u8]) -> cri::KeyValue {
        cri::KeyValue { key: key.into(), value: value.into() }
    }

    #[test]
    fn the_requests_variables_win_and_defaults_fill_gaps() {
        let image = ImageConfig { env: strings(&["PATH=/img", "A=1", "HOME="]), ..Default::default() };
        let mut config = request(&["x"], &[]);
        config.envs = vec![variable("A", b"2"), variable("B", b"x=y")];
        let defaults = Defaults { hostname: "web", home: "/root", terminal: true };
        let got = environment(&config, &image, defaults).expect("an environment");
        assert_eq!(got, strings(&["PATH=/img", "A=2", "HOME=/root", "B=x=y", "HOSTNAME=web", "TERM=xterm"]));
    }

    #[test]
    fn variables_that_are_none_are_refused() {
        let defaults = Defaults { hostname: "", home: "/", terminal: false };
        for bad in [variable("", b"1"), variable("A=B", b"1"), variable("A", b"\0"), variable("A", b"\xff")] {
            let mut config = request(&["x"], &[]);
            config.envs = vec![bad];
            assert!(environment(&config, &ImageConfig::default(), defaults).is_err());
        }
    }

    #[test]
    fn the_working_directory_is_absolute_and_inside() {
        let mut config = request(&["x"], &[]);
        let image = ImageConfig { working_dir: "/srv".into(), ..Default::default() };
        assert_eq!(working_directory(&config, &image).expect("a path"), PathBuf::from("/srv"));
        config.working_dir = "/a/./b//c".into();
        assert_eq!(working_directory(&config, &image).expect("a path"), PathBuf::from("/a/b/c"));
        config.working_dir = "relative".into();
        assert!(working_directory(&config, &image).is_err());
    }
}
