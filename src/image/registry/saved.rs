//! Credentials that a person's login has left on this machine: `config.json` of docker, `auth.json` of its kin, and the
//! credential helpers that they name. For the command line only; the daemon gets credentials with each pull.
//!
//! ```text
//! {"auths": {"HOST": {"auth": "BASE64 of USER:PASSWORD", "identitytoken": "...", "registrytoken": "..."}},
//!  "credHelpers": {"HOST": "NAME"}, "credsStore": "NAME"}
//! ```
//!
//! HOST may be followed by a part of the repository's path (the longest match wins) and preceded by a scheme. A helper
//! is the program `docker-credential-NAME`: `get`, the host on its input, a JSON on its output.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::files;
use crate::image::Credentials;
use crate::image::reference::Reference;

/// Docker Hub in references, and the key under which logins for it are kept.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// A user of this name has an identity token for a password.
const IDENTITY_TOKEN_USER: &str = "<token>";
/// A helper may have to ask the person.
const HELPER_LIMIT: Duration = Duration::from_secs(60);
/// Longest answer of a helper.
const HELPER_BYTES_MAX: u64 = 256 << 10;

/// A file or a helper that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the saved credentials in {source_name:?} cannot be used: {problem}")]
pub struct SavedError {
    source_name: String,
    problem: String,
}

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct SavedCredentials {
    /// First match wins.
    pub files: Vec<PathBuf>,
    /// Where helpers are; none: the environment's PATH.
    pub path: Option<OsString>,
}

impl SavedCredentials {
    /// The places that the environment names: `REGISTRY_AUTH_FILE`, `XDG_RUNTIME_DIR` and `XDG_CONFIG_HOME` (with
    /// `containers/auth.json`), `DOCKER_CONFIG`, `~/.docker/config.json`.
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = variable("HOME");
        let kin = |directory: PathBuf| directory.join("containers/auth.json");
        let places = [
            variable("REGISTRY_AUTH_FILE"),
            variable("XDG_RUNTIME_DIR").map(kin),
            variable("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config"))).map(kin),
            variable("DOCKER_CONFIG").or_else(|| Some(home?.join(".docker"))).map(|place| place.join("config.json")),
        ];
        Self { files: places.into_iter().flatten().collect(), path: None }
    }

    /// What is saved for the image's registry. Runs a helper where a file names one.
    pub async fn find(&self, reference: &Reference) -> Result<Option<Credentials>, SavedError> {
        for path in &self.files {
            let Some(file) = read(path)? else { continue };
            if let Some(helper) = file.helper(reference)
                && let Some(found) = self.ask(helper, reference).await?
            {
                return Ok(Some(found));
            }
            if let Some(login) = best(&file.auths, reference)
                && let Some(found) = login.credentials(path)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn ask(&self, helper: &str, reference: &Reference) -> Result<Option<Credentials>, SavedError> {
        let program = format!("docker-credential-{helper}");
        let failed = |problem: String| SavedError { source_name: program.clone(), problem };
        if !helper.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
            return Err(failed("no helper has such a name".to_owned()));
        }
        let mut command = Command::new(&program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                // A file that came from another machine often names a helper of that machine.
                tracing::warn!(%program, %error, "the credential helper is passed over");
                return Ok(None);
            }
        };
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let key = if reference.host() == DOCKER_HUB { DOCKER_HUB_KEY } else { reference.host() };
        let talk = async {
            if let Some(mut input) = input {
                // One that asks for nothing is fine.
                let _ = input.write_all(format!("{key}\n").as_bytes()).await;
            }
            let mut answer = Vec::new();
            if let Some(output) = output {
                output.take(HELPER_BYTES_MAX).read_to_end(&mut answer).await?;
            }
            Ok::<_, std::io::Error>((child.wait().await?, answer))
        };
        let talked = tokio::time::timeout(HELPER_LIMIT, talk).await.map_err(|e| failed(e.to_string()))?;
        let (status, answer) = talked.map_err(|e| failed(e.to_string()))?;
        if !status.success() {
            // Helpers say so where there is nothing; the pull goes on without, and the registry decides.
            return Ok(None);
        }
        let answer: HelperAnswer = serde_json::from_slice(&answer).map_err(|_| failed("no JSON".to_owned()))?;
        Ok(Some(credentials(answer.username, answer.secret)))
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    auths: BTreeMap<String, Login>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Login {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl File {
    fn helper(&self, reference: &Reference) -> Option<&str> {
        let own = best(&self.helpers, reference).map(String::as_str);
        own.or(Some(self.store.as_str())).filter(|name| !name.is_empty())
    }
}

impl Login {
    fn credentials(&self, path: &Path) -> Result<Option<Credentials>, SavedError> {
        let failed =
            || SavedError { source_name: path.display().to_string(), problem: "an \"auth\" is no login".to_owned() };
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identitytoken.clone())));
        }
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credentials::RegistryToken(self.registrytoken.clone())));
        }
        if !self.auth.is_empty() {
            let bytes = STANDARD.decode(self.auth.trim()).map_err(|_| failed())?;
            let text = String::from_utf8(bytes).map_err(|_| failed())?;
            let (username, password) = text.split_once(':').ok_or_else(failed)?;
            return Ok(Some(credentials(username.to_owned(), password.trim_end_matches('\0').to_owned())));
        }
        Ok((!self.username.is_empty()).then(|| credentials(self.username.clone(), self.password.clone())))
    }
}

fn credentials(username: String, password: String) -> Credentials {
    match username.as_str() {
        IDENTITY_TOKEN_USER => Credentials::IdentityToken(password),
        _ => Credentials::Basic { username, password },
    }
}

fn read(path: &Path) -> Result<Option<File>, SavedError> {
    let failed = |problem: String| SavedError { source_name: path.display().to_string(), problem };
    match files::read(path) {
        Ok(None) => Ok(None),
        // The parser's own words would quote the file.
        Ok(Some(bytes)) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|e| failed(format!("no such JSON, line {}", e.line())))
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The value of the longest key that is the registry or a part of the image's path in it.
fn best<'a, T>(map: &'a BTreeMap<String, T>, reference: &Reference) -> Option<&'a T> {
    let name = reference.name();
    let mut matches: Vec<_> = map.iter().filter(|(key, _)| covers(key, &name)).collect();
    matches.sort_by_key(|(key, _)| key.len());
    matches.pop().map(|(_, value)| value)
}

fn covers(key: &str, name: &str) -> bool {
    if key == DOCKER_HUB_KEY || key == "index.docker.io" {
        return name.starts_with("docker.io/");
    }
    let bare = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    // Old logins have the address of an API.
    let bare = bare.trim_end_matches("/v1").trim_end_matches("/v2");
    name.strip_prefix(bare).is_some_and(|rest| !bare.is_empty() && (rest.is_empty() || rest.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(credentials: Option<Credentials>) -> String {
        match credentials {
            None => String::new(),
            Some(Credentials::Basic { username, password }) => format!("{username}:{password}"),
            Some(Credentials::IdentityToken(token)) => format!("identity {token}"),
            Some(Credentials::RegistryToken(token)) => format!("registry {token}"),
        }
    }

    #[tokio::test]
    async fn logins_and_helpers_are_found_by_the_longest_name() {
        let directory = std::env::temp_dir().join(format!("cricket-saved-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let helper = directory.join("docker-credential-test");
        let script = "#!/bin/sh\nread key\n[ \"$key\" = helped.io ] || exit 1\nprintf '{\"Username\":\"h\",\"Secret\":\"%s\"}' \"$1\"\n";
        std::fs::write(&helper, script).expect("a script");
        std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
        let file = directory.join("config.json");
        let text = serde_json::json!({
            "credsStore": "test",
            "credHelpers": {"odd.io": "../../sh"},
            "auths": {
                "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:pass:word")},
                "reg.io": {"auth": STANDARD.encode("a:1")},
                "reg.io/team": {"auth": STANDARD.encode("b:2")},
                "https://old.io/v2/": {"username": "<token>", "password": "t"},
                "token.io:5000": {"identitytoken": "i", "auth": "x"},
                "empty.io": {},
                "bad.io": {"auth": "%%"},
            },
        });
        std::fs::write(&file, text.to_string()).expect("a file");
        let path = std::env::join_paths([directory.clone(), "/bin".into(), "/usr/bin".into()]).expect("a PATH");
        let saved = SavedCredentials { files: vec![directory.join("none"), file], path: Some(path) };
        for (name, expected) in [
            ("busybox", "hub:pass:word"),
            ("reg.io/x", "a:1"),
            ("reg.io/team/x", "b:2"),
            ("reg.io/teams/x", "a:1"),
            ("reg.io.evil/x", ""),
            ("old.io/x", "identity t"),
            ("token.io:5000/x", "identity i"),
            ("empty.io/x", ""),
            ("helped.io/x", "h:get"),
        ] {
            let found = saved.find(&name.parse().expect(name)).await.expect(name);
            assert_eq!(shown(found), expected, "{name}");
        }
        for name in ["odd.io/x", "bad.io/x"] {
            let error = saved.find(&name.parse().expect(name)).await.map(|_| ()).expect_err(name);
            assert!(!error.to_string().contains("%%"), "{error}");
        }
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
