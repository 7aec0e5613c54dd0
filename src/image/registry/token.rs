//! Answers a challenge: from credentials to the value of an `Authorization` header.
//!
//! Anonymous tokens and user names with passwords are asked for with GET, identity tokens are exchanged with POST
//! (`grant_type=refresh_token`). Values are marked sensitive, so that no log shows them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method};
use reqwest::Url;
use serde::Deserialize;

use super::auth::{Challenge, permitted_realm, pull_scope};
use super::endpoint::{Dialler, Endpoint, read_body};
use super::error::{RegistryError, Subject};
use crate::image::Credentials;

/// Longest answer of a token server.
const TOKEN_BYTES_MAX: u64 = 256 << 10;
/// A user of this name has an identity token for a password, by Docker's convention.
const IDENTITY_TOKEN_USER: &str = "<token>";
/// As which client tokens are asked for.
const CLIENT_ID: &str = "cricket";

/// Who asks for what.
pub struct Applicant<'a> {
    /// None: anonymous.
    pub credentials: Option<&'a Credentials>,
    /// `library/busybox`.
    pub repository: &'a str,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// The header value that answers the first challenge that can be answered.
pub async fn answer(
    endpoint: &Endpoint,
    challenges: &[Challenge],
    applicant: &Applicant<'_>,
    subject: &Subject,
) -> Result<HeaderValue, RegistryError> {
    for challenge in challenges {
        match (challenge, applicant.credentials) {
            (Challenge::Basic, Some(Credentials::Basic { username, password })) => {
                return basic(username, password, subject);
            }
            (Challenge::Basic, _) => {}
            (Challenge::Bearer { .. }, Some(Credentials::RegistryToken(token))) => return bearer(token, subject),
            (Challenge::Bearer { realm, service, scope }, _) => {
                let realm = permitted_realm(endpoint.base(), realm).map_err(|problem| subject.bad_answer(problem))?;
                let scope = pull_scope(scope.as_deref(), applicant.repository);
                let question = Question { realm, service: service.as_deref(), scope: &scope };
                return question.ask(endpoint, applicant, subject).await;
            }
        }
    }
    Err(subject.unauthorized(match applicant.credentials {
        None => "it asks for credentials and none were given",
        Some(_) => "it asks for credentials of another kind than those given",
    }))
}

struct Question<'a> {
    realm: Url,
    service: Option<&'a str>,
    scope: &'a str,
}

impl Question<'_> {
    async fn ask(
        self,
        endpoint: &Endpoint,
        applicant: &Applicant<'_>,
        subject: &Subject,
    ) -> Result<HeaderValue, RegistryError> {
        let dialler = endpoint.dialler(&self.realm, subject).await?;
        let request = match applicant.credentials {
            Some(Credentials::IdentityToken(token)) => self.exchange(&dialler, token),
            Some(Credentials::Basic { username, password }) if username == IDENTITY_TOKEN_USER => {
                self.exchange(&dialler, password)
            }
            Some(Credentials::Basic { username, password }) => {
                let request = dialler.request(Method::GET, self.url(&[("account", username)]));
                request.header(AUTHORIZATION, basic(username, password, subject)?)
            }
            _ => dialler.request(Method::GET, self.url(&[])),
        };
        let at = Subject { host: subject.host.clone(), what: format!("a token for {}", subject.what) };
        let (status, body) = endpoint
            .within_document_time(&at, async {
                let response = dialler.send(request, &at).await?;
                Ok((response.status(), read_body(response, TOKEN_BYTES_MAX, &at).await?))
            })
            .await?;
        if status.is_client_error() && status != http::StatusCode::TOO_MANY_REQUESTS {
            return Err(
                subject.unauthorized(&format!("its token server answers {status}{}", super::error::said(&body)))
            );
        }
        if !status.is_success() {
            return Err(at.refused(status, None, &body));
        }
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| at.bad_answer("no JSON with a token"))?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() { Err(at.bad_answer("no token in it")) } else { bearer(&token, &at) }
    }

    fn parameters(&self) -> Vec<(&str, &str)> {
        [("service", self.service), ("scope", Some(self.scope))]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    fn url(&self, more: &[(&str, &str)]) -> Url {
        let mut url = self.realm.clone();
        url.query_pairs_mut().extend_pairs(self.parameters()).extend_pairs(more);
        url
    }

    fn exchange(&self, dialler: &Dialler, token: &str) -> reqwest::RequestBuilder {
        // A form is written like a query.
        let mut form = self.realm.clone();
        let fields = [("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", token)];
        form.query_pairs_mut().clear().extend_pairs(self.parameters()).extend_pairs(fields);
        dialler
            .request(Method::POST, self.realm.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.query().unwrap_or_default().to_owned())
    }
}

fn basic(username: &str, password: &str, subject: &Subject) -> Result<HeaderValue, RegistryError> {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))), subject)
}

fn bearer(token: &str, subject: &Subject) -> Result<HeaderValue, RegistryError> {
    sensitive(&format!("Bearer {token}"), subject)
}

fn sensitive(text: &str, subject: &Subject) -> Result<HeaderValue, RegistryError> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| subject.bad_answer("a token with characters of no header"))?;
    value.set_sensitive(true);
    Ok(value)
}
