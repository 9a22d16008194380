//! Who we are to a registry: nothing, a password, or a token from its service.
//!
//! A registry answers 401 with a challenge; the answer to it is kept for the
//! session. Tokens that expire are fetched again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_auth::parser::ChallengeParser;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use zeroize::Zeroizing;

use crate::credentials::Credentials;

/// Tokens are a few KiB; this is the whole answer.
pub(super) const TOKEN_LEN_MAX: u64 = 256 * 1024;

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The strongest challenge we can answer.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = value.to_str() else {
                continue;
            };
            for challenge in ChallengeParser::new(text).map_while(Result::ok) {
                let param = |name: &str| {
                    challenge
                        .params
                        .iter()
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) = param("realm") {
                        let (service, scope) = (param("service"), param("scope"));
                        return Some(Self::Bearer { realm, service, scope });
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

/// Where to ask for a token. A registry reached over HTTPS must not send us, and
/// our password, to a service over plain HTTP.
pub(super) fn token_url(
    realm: &str,
    service: Option<&str>,
    scope: Option<&str>,
    registry_is_plain: bool,
) -> Result<Url, String> {
    let mut url = Url::parse(realm).map_err(|error| format!("token service: {error}"))?;
    match url.scheme() {
        "https" => {}
        "http" if registry_is_plain => {}
        other => return Err(format!("token service over {other}")),
    }
    let mut query = url.query_pairs_mut();
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    if let Some(scope) = scope {
        query.append_pair("scope", scope);
    }
    drop(query);
    Ok(url)
}

/// An identity token is sent as OAuth2 has it (RFC 6749 section 6), in a form: where to, and
/// the form.
pub(super) fn refresh(mut url: Url, token: &Credentials) -> (Url, String) {
    url.query_pairs_mut()
        .append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "warren")
        .append_pair("refresh_token", token.password.as_str());
    let form = url.query().unwrap_or_default().to_owned();
    url.set_query(None);
    (url, form)
}

pub(super) fn basic(credentials: &Credentials) -> HeaderValue {
    let pair = format!("{}:{}", credentials.user, credentials.password.as_str());
    let pair = Zeroizing::new(pair);
    let text = Zeroizing::new(format!("Basic {}", BASE64.encode(pair.as_bytes())));
    sensitive(&text).unwrap_or_else(|| HeaderValue::from_static("Basic"))
}

/// The header for a token service's answer.
pub(super) fn bearer(answer: &[u8]) -> Result<HeaderValue, String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer =
        serde_json::from_slice(answer).map_err(|_| "token service sent no token".to_owned())?;
    let token = answer
        .token
        .filter(|token| !token.is_empty())
        .or(answer.access_token)
        .map(Zeroizing::new)
        .ok_or_else(|| "token service sent no token".to_owned())?;
    sensitive(&Zeroizing::new(format!("Bearer {}", token.as_str())))
        .ok_or_else(|| "token service sent a token that is no header value".to_owned())
}

/// Marked so that no log shows it.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_are_read() {
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        let bearer = Challenge::Bearer {
            realm: "https://a.io/token".into(),
            service: Some("a.io".into()),
            scope: Some("repository:x:pull".into()),
        };
        let text = r#"Bearer realm="https://a.io/token",service="a.io",scope="repository:x:pull""#;
        assert_eq!(challenge(&[text]), Some(bearer.clone()));
        assert_eq!(challenge(&["basic realm=\"x\"", text]), Some(bearer));
        assert_eq!(challenge(&["Bearer service=\"x\""]), None);
        assert_eq!(challenge(&["Negotiate", "=,="]), None);
        assert_eq!(challenge(&[]), None);
    }

    #[test]
    fn token_services_keep_the_registrys_security() {
        let url = token_url("https://a/t?x=1", Some("s p"), Some("repository:x:pull"), false);
        assert_eq!(
            url.unwrap().as_str(),
            "https://a/t?x=1&service=s+p&scope=repository%3Ax%3Apull"
        );
        assert!(token_url("http://a/t", None, None, false).is_err());
        assert!(token_url("http://a/t", None, None, true).is_ok());
        assert!(token_url("file:///etc/passwd", None, None, true).is_err());
        assert!(token_url("/t", None, None, true).is_err());
    }

    #[test]
    fn identity_tokens_are_sent_in_a_form() {
        let url = token_url("https://a/t", Some("s"), Some("repository:x:pull"), false).unwrap();
        let password = Zeroizing::new("a b&c".to_owned());
        let (url, form) = refresh(url, &Credentials { user: "<token>".into(), password });
        assert_eq!(url.as_str(), "https://a/t");
        let rest = "grant_type=refresh_token&client_id=warren&refresh_token=a+b%26c";
        assert_eq!(form, format!("service=s&scope=repository%3Ax%3Apull&{rest}"));
    }

    #[test]
    fn tokens_are_checked() {
        assert_eq!(bearer(br#"{"token":"t"}"#).unwrap(), "Bearer t");
        assert_eq!(bearer(br#"{"token":"","access_token":"a"}"#).unwrap(), "Bearer a");
        for bad in ["", "{}", r#"{"token":"a\nb"}"#] {
            assert!(bearer(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
