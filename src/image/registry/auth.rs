//! `WWW-Authenticate`: what a registry asks for, and what of it is granted.
//!
//! A registry names the place (realm) that gives tokens; credentials go there, so not every place will do: only https,
//! except that a registry which itself is plain HTTP may name a realm on its own host. And a token is only ever asked
//! for pulling the one repository, whatever scope the registry would like.

use http::{HeaderMap, header::WWW_AUTHENTICATE};
use reqwest::Url;

/// Longest header that is read.
const CHALLENGE_BYTES_MAX: usize = 16 << 10;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password.
    Basic,
    /// A token.
    Bearer {
        /// Who gives it.
        realm: String,
        /// To be told there.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

/// The challenges of an answer, tokens first.
pub fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut found: Vec<_> = texts.filter(|text| text.len() <= CHALLENGE_BYTES_MAX).flat_map(parse).collect();
    found.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
    found
}

/// One header may hold several challenges, and their parameters are separated by the same commas.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        if end == 0 {
            break;
        }
        let word = rest[..end].to_ascii_lowercase();
        rest = rest[end..].trim_start();
        match rest.strip_prefix('=') {
            None => found.push((word, Vec::new())),
            Some(after) => {
                let (value, after) = value(after.trim_start());
                rest = after;
                if let Some((_, parameters)) = found.last_mut() {
                    parameters.push((word, value));
                }
            }
        }
    }
    found.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, parameters)).collect()
}

/// A token or a quoted string, and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

fn challenge(scheme: &str, parameters: Vec<(String, String)>) -> Option<Challenge> {
    let take = |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer { realm: take("realm")?, service: take("service"), scope: take("scope") }),
        _ => None,
    }
}

/// The realm, if credentials may go there on the word of the registry at `base`.
pub fn permitted_realm(base: &Url, realm: &str) -> Result<Url, &'static str> {
    let url: Url = realm.parse().map_err(|_| "it names a token server that is no URL")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it names a token server with credentials in the URL");
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if base.scheme() == "http" && url.host() == base.host() => Ok(url),
        _ => Err("it names a token server without https; nothing is sent there"),
    }
}

/// The scope to ask for: pulling `repository`. A mirror with a path prefix knows the repository by a longer name, which
/// is taken from its challenge.
pub fn pull_scope(asked: Option<&str>, repository: &str) -> String {
    let known_as = asked.unwrap_or_default().split(' ').find_map(|scope| {
        let (name, _actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
        name.strip_suffix(repository).filter(|prefix| prefix.is_empty() || prefix.ends_with('/')).map(|_| name)
    });
    format!("repository:{}:pull", known_as.unwrap_or(repository))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().expect("a header value"));
        }
        challenges(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn challenges_are_read_in_every_shape() {
        let scope = Some("repository:a/b:pull,push");
        for (values, expected) in [
            (vec![r#"Basic realm="x""#], vec![Challenge::Basic]),
            (
                vec![r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#],
                vec![bearer("https://a/t", Some("s"), scope)],
            ),
            (vec![r#"bearer realm=https://a/t , service = "s""#], vec![bearer("https://a/t", Some("s"), None)]),
            (vec![r#"Basic realm="x, y=\"z\"", Bearer realm="r""#], vec![bearer("r", None, None), Challenge::Basic]),
            (vec!["Basic", r#"Bearer realm="r""#], vec![bearer("r", None, None), Challenge::Basic]),
            (
                vec!["Negotiate", r#"Bearer service="no realm""#, "", "=", ",,,", r#"Bearer realm=""#],
                vec![bearer("", None, None)],
            ),
        ] {
            assert_eq!(of(&values), expected, "{values:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_header_is_too_odd_to_be_read(text in r#"[ -~é"\\,=]{0,80}"#) {
            parse(&text);
        }
    }

    #[test]
    fn row_25_only_https_realms_are_given_credentials() {
        for (base, realm, permitted) in [
            ("https://reg.io/v2", "https://auth.io/token", true),
            ("https://reg.io/v2", "http://reg.io/token", false),
            ("https://reg.io/v2", "http://auth.io/token", false),
            ("http://reg.io:5000/v2", "http://reg.io:5001/token", true),
            ("http://reg.io:5000/v2", "http://auth.io/token", false),
            ("http://reg.io:5000/v2", "https://auth.io/token", true),
            ("https://reg.io/v2", "https://u:p@auth.io/token", false),
            ("https://reg.io/v2", "file:///etc/passwd", false),
            ("https://reg.io/v2", "/token", false),
        ] {
            let base = base.parse().expect("a URL");
            assert_eq!(permitted_realm(&base, realm).is_ok(), permitted, "{realm} of {base}");
        }
    }

    #[test]
    fn a_token_is_asked_for_pulling_this_repository_only() {
        for (asked, scope) in [
            (None, "repository:a/b:pull"),
            (Some("repository:a/b:pull,push,delete"), "repository:a/b:pull"),
            (Some("registry:catalog:* repository:proxy/a/b:pull"), "repository:proxy/a/b:pull"),
            (Some("repository:secret/c:pull"), "repository:a/b:pull"),
            (Some("repository:xa/b:pull"), "repository:a/b:pull"),
        ] {
            assert_eq!(pull_scope(asked, "a/b"), scope, "{asked:?}");
        }
    }
}
