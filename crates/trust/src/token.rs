//! Tokens that people carry: to join a cluster, and to call its API.
//!
//! `wrn1-<w|m>-<authority's fingerprint>-<secret>` lets a worker or a manager
//! join: the fingerprint tells the node whom to trust, the secret tells the
//! cluster to trust the node. `wrno1-<secret>` names an operator; the cluster
//! keeps its hash alone.
//!
//! `Debug` shows no secret, and errors show no character of the text: a
//! mistyped token is nearly a token.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use warren_base::rng::Rng;
use warren_model::Time;
use warren_model::cluster;
use zeroize::Zeroizing;

use crate::key::{Hash, sha256};
use crate::text::{Base32Error, from_base32, push_base32, text_len};

const JOIN_TAG: &str = "wrn1";
const API_TAG: &str = "wrno1";
/// `wrn1-w-`, 52 characters, `-`, 26 characters.
const JOIN_LEN: usize = 5 + 2 + text_len(32) + 1 + text_len(16);

/// Why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is empty")]
    Empty,
    #[error("this is no {kind} token: it does not begin with {tag:?}")]
    Kind { kind: &'static str, tag: &'static str },
    #[error("the {kind} token is of version {found}, this binary knows version 1")]
    Version { kind: &'static str, found: u32 },
    #[error("the token's role is written 'w' (worker) or 'm' (manager), here it is neither")]
    Role,
    #[error("the token is cut off: {len} characters, a whole one has {whole}")]
    Truncated { len: usize, whole: usize },
    #[error("the token's {part} has {len} characters, it should have {whole}")]
    Length { part: &'static str, len: usize, whole: usize },
    #[error(
        "the character at position {at} of the token cannot be there; allowed are a-z and 2-7, the last of each part only some of them"
    )]
    Character { at: usize },
}

/// Why a join token that is well formed does not let anybody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    #[error("the join token is not valid: never was, or replaced by a newer one")]
    Unknown,
    #[error("the join token expired at {at}")]
    Expired { at: Time },
}

/// What a token lets a node become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinRole {
    Worker,
    Manager,
}

impl JoinRole {
    fn letter(self) -> char {
        match self {
            Self::Worker => 'w',
            Self::Manager => 'm',
        }
    }
}

impl fmt::Display for JoinRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        })
    }
}

/// A token for joining.
#[derive(Clone)]
pub struct JoinToken {
    pub role: JoinRole,
    /// SHA-256 of the authority's certificate, [`crate::Authority::fingerprint`].
    pub fingerprint: Hash,
    secret: Zeroizing<[u8; 16]>,
}

impl JoinToken {
    /// The token for a secret that the state keeps.
    pub fn new(role: JoinRole, fingerprint: Hash, secret: &[u8; 16]) -> Self {
        Self { role, fingerprint, secret: Zeroizing::new(*secret) }
    }

    /// A secret for a new token.
    pub fn new_secret(rng: &dyn Rng) -> Zeroizing<[u8; 16]> {
        let mut secret = Zeroizing::new([0; 16]);
        rng.fill(secret.as_mut_slice());
        secret
    }

    /// Whether this token's secret is the one that the state keeps for its role. The time it
    /// takes does not tell how much of a secret was right.
    ///
    /// # Errors
    /// [`TokenRefusal`]; that it expired is told only to who has it.
    pub fn check(&self, kept: &cluster::JoinToken, now: Time) -> Result<(), TokenRefusal> {
        if !self.matches(&kept.secret) {
            return Err(TokenRefusal::Unknown);
        }
        match kept.expires {
            Some(at) if now >= at => Err(TokenRefusal::Expired { at }),
            _ => Ok(()),
        }
    }

    /// Compares in constant time.
    pub fn matches(&self, secret: &[u8; 16]) -> bool {
        verify_slices_are_equal(self.secret.as_slice(), secret).is_ok()
    }

    /// The token as text, in a buffer that is wiped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(JOIN_LEN));
        text.push_str(JOIN_TAG);
        text.push('-');
        text.push(self.role.letter());
        text.push('-');
        push_base32(&mut text, &self.fingerprint);
        text.push('-');
        push_base32(&mut text, self.secret.as_slice());
        text
    }
}

/// Writes the whole token, secret included: that is what it is for.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("role", &self.role).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let rest = after_tag(text, "join", "wrn", JOIN_TAG)?;
        let len = text.chars().count();
        let cut = TokenError::Truncated { len, whole: JOIN_LEN };
        let Some((role, rest)) = rest.split_once('-') else {
            return Err(if rest.len() > 1 { TokenError::Role } else { cut });
        };
        let role = match role {
            "w" => JoinRole::Worker,
            "m" => JoinRole::Manager,
            _ => return Err(TokenError::Role),
        };
        let at = JOIN_TAG.len() + 3;
        let (print, secret) = match rest.split_once('-') {
            Some(parts) => parts,
            None if rest.chars().count() <= text_len(32) => {
                // What is there may be wrong as well; that is told first, it is nearer.
                check_characters(rest, at)?;
                return Err(cut);
            }
            None => (rest, ""),
        };
        let fingerprint = part::<32>("fingerprint", print, at)?;
        if secret.len() < text_len(16) {
            check_characters(secret, at + print.len() + 1)?;
            return Err(cut);
        }
        let secret = part::<16>("secret", secret, at + print.len() + 1)?;
        Ok(Self { role, fingerprint: *fingerprint, secret })
    }
}

/// A token for calling the API as an operator.
#[derive(Clone)]
pub struct ApiToken(Zeroizing<[u8; 32]>);

impl ApiToken {
    pub fn generate(rng: &dyn Rng) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill(secret.as_mut_slice());
        Self(secret)
    }

    /// What the cluster keeps and looks operators up by. A plain hash is enough: the secret has
    /// 256 random bits.
    pub fn hash(&self) -> Hash {
        sha256(self.0.as_slice())
    }

    /// The token as text, in a buffer that is wiped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(API_TAG.len() + 1 + text_len(32)));
        text.push_str(API_TAG);
        text.push('-');
        push_base32(&mut text, self.0.as_slice());
        text
    }
}

/// Writes the whole token: that is what it is for.
impl fmt::Display for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiToken")
    }
}

impl FromStr for ApiToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let secret = after_tag(text, "API", "wrno", API_TAG)?;
        let whole = API_TAG.len() + 1 + text_len(32);
        if secret.len() < text_len(32) {
            check_characters(secret, API_TAG.len() + 1)?;
            return Err(TokenError::Truncated { len: text.chars().count(), whole });
        }
        part::<32>("secret", secret, API_TAG.len() + 1).map(Self)
    }
}

/// What follows `<tag>-`; tells a newer version from another kind of text.
fn after_tag<'a>(
    text: &'a str,
    kind: &'static str,
    family: &'static str,
    tag: &'static str,
) -> Result<&'a str, TokenError> {
    if text.is_empty() {
        return Err(TokenError::Empty);
    }
    let (first, rest) = text.split_once('-').unwrap_or((text, ""));
    if first == tag {
        return Ok(rest);
    }
    match first.strip_prefix(family).and_then(|version| version.parse().ok()) {
        Some(found) => Err(TokenError::Version { kind, found }),
        None => Err(TokenError::Kind { kind, tag }),
    }
}

fn check_characters(text: &str, from: usize) -> Result<(), TokenError> {
    match from_base32::<0>(text) {
        Err(Base32Error::Character(at)) => Err(TokenError::Character { at: from + at + 1 }),
        _ => Ok(()),
    }
}

fn part<const N: usize>(
    part: &'static str,
    text: &str,
    from: usize,
) -> Result<Zeroizing<[u8; N]>, TokenError> {
    from_base32(text).map_err(|error| match error {
        Base32Error::Length(len) => TokenError::Length { part, len, whole: text_len(N) },
        Base32Error::Character(at) => TokenError::Character { at: from + at + 1 },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use warren_base::rng::SeededRng;

    use super::*;

    const GOOD: &str =
        "wrn1-w-aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq-aibaeaqcaibaeaqcaibaeaqcai";

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match text.parse::<JoinToken>() {
            Ok(token) => format!("{} {:?}", token.role, token.secret[0]),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(expected), "{text:?} gave {got:?}");
    }

    #[test]
    fn join_tokens() {
        let good = JoinToken::new(JoinRole::Worker, [1; 32], &[2; 16]).to_string();
        assert_eq!(good, GOOD);
        check(GOOD, "worker 2");
        check(&format!(" {GOOD}\n"), "worker 2");
        check(&GOOD.replace("-w-", "-m-"), "manager 2");
        check("", "is empty");
        check("hello", "this is no join token");
        check("wrno1-aaaa", "this is no join token");
        check(&GOOD.replace("wrn1", "wrn2"), "version 2");
        check(&GOOD.replace("-w-", "-x-"), "is written 'w'");
        check(&GOOD.replace("-w-", "-"), "is written 'w'");
        check(&GOOD.replacen("aeaq", "aeAq", 1), "position 10 ");
        check(&GOOD.replacen("aeaq", "aé", 1), "position 9 ");
        check(&GOOD.replace("-aiba", "-aib0"), "position 64 ");
        check(&format!("{GOOD}a"), "secret has 27 characters, it should have 26");
        check(
            &GOOD.replacen("aeaq", "aeaqa", 1),
            "fingerprint has 53 characters, it should have 52",
        );
        check(&GOOD.replacen("aeaq", "aea", 1), "fingerprint has 51 characters");
        check("wrn1", "cut off: 4 characters, a whole one has 86");
    }

    #[test]
    fn every_cut_is_told() {
        for len in 4..GOOD.len() {
            check(&GOOD[..len], "cut off");
        }
    }

    #[test]
    fn secrets_and_expiry() {
        let token = JoinToken::new(JoinRole::Manager, [1; 32], &[2; 16]);
        let kept = |secret, expires| cluster::JoinToken { secret: [secret; 16], expires };
        let now = Time(1000);
        assert_eq!(token.check(&kept(2, None), now), Ok(()));
        assert_eq!(token.check(&kept(2, Some(Time(1001))), now), Ok(()));
        let at = now;
        assert_eq!(token.check(&kept(2, Some(at)), now), Err(TokenRefusal::Expired { at }));
        assert_eq!(token.check(&kept(3, Some(at)), now), Err(TokenRefusal::Unknown));
        assert_eq!(format!("{token:?}"), "JoinToken { role: Manager, .. }");
    }

    #[test]
    fn api_tokens() {
        let token = ApiToken::generate(&SeededRng::new(1));
        let text = token.to_string();
        assert_eq!(text.parse::<ApiToken>().unwrap().hash(), token.hash());
        assert_eq!(format!("{token:?}"), "ApiToken");
        let error = |text: &str| text.parse::<ApiToken>().unwrap_err().to_string();
        assert!(error(&text[..20]).contains("cut off: 20 characters, a whole one has 58"));
        assert!(error(&text.replace("wrno1", "wrno7")).contains("version 7"));
        assert!(error(&format!("{text}a")).contains("secret has 53"));
        assert!(error(GOOD).contains("this is no API token"));
        assert!(error(&text.to_uppercase()).contains("this is no API token"));
    }

    proptest! {
        #[test]
        fn whatever_the_text_nothing_panics(text in "\\PC{0,120}") {
            let _ = text.parse::<JoinToken>();
            let _ = format!("wrn1-{text}").parse::<JoinToken>();
            let _ = format!("wrn1-m-{text}").parse::<JoinToken>();
            let _ = format!("wrno1-{text}").parse::<ApiToken>();
        }

        #[test]
        fn tokens_survive(print in any::<[u8; 32]>(), secret in any::<[u8; 16]>()) {
            let text = JoinToken::new(JoinRole::Manager, print, &secret).to_string();
            let token: JoinToken = text.parse().unwrap();
            prop_assert!(token.matches(&secret));
            prop_assert_eq!(token.fingerprint, print);
            prop_assert_eq!(token.to_string(), text);
        }

        #[test]
        fn a_changed_character_is_another_token_or_none(at in 0..GOOD.len(), to in "[ -~]") {
            let mut text = GOOD.to_owned();
            text.replace_range(at..=at, &to);
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.to_string(), text.trim());
            }
        }
    }
}
