//! What a PullImage request says about credentials.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tonic::Status;

use crate::image::Credentials;
use crate::proto::cri::AuthConfig;

/// Names under which Docker's own registry is known.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The credentials for pulling `reference`; none if none are given, or if they are for another registry.
pub fn credentials(auth: Option<AuthConfig>, reference: &str) -> Result<Option<Credentials>, Status> {
    let Some(auth) = auth else { return Ok(None) };
    if !auth.server_address.is_empty() && host_of_server(&auth.server_address) != host_of_reference(reference) {
        return Ok(None);
    }
    if !auth.username.is_empty() {
        return Ok(Some(Credentials::Basic { username: auth.username, password: auth.password }));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credentials::IdentityToken(auth.identity_token)));
    }
    if !auth.registry_token.is_empty() {
        return Ok(Some(Credentials::RegistryToken(auth.registry_token)));
    }
    if auth.auth.is_empty() { Ok(None) } else { basic(&auth.auth).map(Some) }
}

/// `base64(user:password)`, as in Docker's configuration; some clients pad the password with NULs.
fn basic(text: &str) -> Result<Credentials, Status> {
    let wrong = || Status::invalid_argument("auth.auth is not base64 of user:password");
    let decoded =
        STANDARD.decode(text.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong)?;
    let (username, password) = decoded.split_once(':').ok_or_else(wrong)?;
    Ok(Credentials::Basic { username: username.to_owned(), password: password.trim_matches('\0').to_owned() })
}

fn host_of_server(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    canonical(address.split('/').next().unwrap_or(address))
}

/// What is before the first slash, if it can be a host; else the short name is Docker's.
fn host_of_reference(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => canonical(host),
        _ => DOCKER_HUB[0],
    }
}

fn canonical(host: &str) -> &str {
    if DOCKER_HUB.contains(&host) { DOCKER_HUB[0] } else { host }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic_of(auth: AuthConfig, reference: &str) -> Option<(String, String)> {
        match credentials(Some(auth), reference).expect("understood") {
            Some(Credentials::Basic { username, password }) => Some((username, password)),
            _ => None,
        }
    }

    #[test]
    fn a_user_is_read_from_the_fields_or_from_base64() {
        let pair = Some(("u".to_owned(), "p:q".to_owned()));
        let fields = AuthConfig { username: "u".into(), password: "p:q".into(), ..Default::default() };
        assert_eq!(basic_of(fields, "r.example/a"), pair);
        let encoded = AuthConfig { auth: STANDARD.encode("u:p:q\0\0"), ..Default::default() };
        assert_eq!(basic_of(encoded, "r.example/a"), pair);
    }

    #[test]
    fn what_is_not_base64_of_a_pair_is_refused_without_being_quoted() {
        for bad in ["%%%", "bm9jb2xvbg=="] {
            let auth = AuthConfig { auth: bad.to_owned(), ..Default::default() };
            let status = credentials(Some(auth), "a").err().expect("refused");
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(!status.message().contains(bad));
        }
    }

    #[test]
    fn credentials_of_another_registry_are_not_used() {
        let cases = [
            ("https://r.example", "r.example/a:1", true),
            ("r.example:5000/v2/", "r.example:5000/a", true),
            ("r.example", "r.example:5000/a", false),
            ("https://index.docker.io/v1/", "busybox", true),
            ("https://index.docker.io/v1/", "docker.io/library/busybox", true),
            ("docker.io", "r.example/a", false),
            ("", "r.example/a", true),
        ];
        for (server, reference, used) in cases {
            let auth = AuthConfig { username: "u".into(), server_address: server.to_owned(), ..Default::default() };
            assert_eq!(basic_of(auth, reference).is_some(), used, "{server} {reference}");
        }
    }

    #[test]
    fn an_empty_auth_is_none() {
        assert!(credentials(Some(AuthConfig::default()), "a").expect("fine").is_none());
    }
}
