//! Names of images, parsed and normalised as Docker does.
//!
//! `nginx` means `docker.io/library/nginx:latest`. A [`Reference`] is always
//! valid and normalised: two spellings of one image compare equal. `Display`
//! is the familiar form (`nginx:latest`), [`Reference::canonical`] the full one.
//!
//! Not here: which host serves `docker.io` (`registry`).

use std::fmt;
use std::str::FromStr;

use crate::digest::{self, Digest};

/// Registry meant when none is named.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// Another name of the same registry, kept by old tools.
const LEGACY_REGISTRY: &str = "index.docker.io";
/// Where Docker's official images live.
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Docker's limits: registries refuse longer ones.
const NAME_LEN_MAX: usize = 255;
const TAG_LEN_MAX: usize = 128;
/// A name of this many hex digits would be taken for an image id.
const ID_LEN: usize = 64;

/// A valid, normalised name of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("image reference is empty")]
    Empty,
    #[error("image reference {text:?}: names have no scheme such as https://")]
    Scheme { text: String },
    #[error("image reference {text:?}: repository is missing")]
    NoRepository { text: String },
    #[error(
        "image reference {text:?}: upper case letter {found:?} in the repository, only a-z, 0-9 and . _ - / are allowed"
    )]
    UpperCase { text: String, found: char },
    #[error(
        "image reference {text:?}: {found:?} in the repository, only a-z, 0-9 and . _ - / are allowed"
    )]
    BadRepositoryChar { text: String, found: char },
    #[error(
        "image reference {text:?}: part {part:?} of the repository must be letters and digits joined by one of . _ __ or dashes"
    )]
    BadPart { text: String, part: String },
    #[error(
        "image reference {text:?}: registry {registry:?} is not a host name or address with an optional port"
    )]
    BadRegistry { text: String, registry: String },
    #[error("image reference {text:?}: port {port:?} is not a number from 1 to 65535")]
    BadPort { text: String, port: String },
    #[error("image reference {text:?}: tag is empty")]
    EmptyTag { text: String },
    #[error(
        "image reference {text:?}: tag {tag:?} must be 1 to {TAG_LEN_MAX} of A-Z, a-z, 0-9, _ . -, not starting with . or -"
    )]
    BadTag { text: String, tag: String },
    #[error("image reference {text:?}")]
    BadDigest { text: String, source: digest::Malformed },
    #[error("image reference {text:?}: name has {len} characters, {NAME_LEN_MAX} are allowed")]
    TooLong { text: String, len: usize },
    #[error("image reference {text:?}: 64 hex digits are an image id, not a name")]
    LooksLikeId { text: String },
}

impl Error {
    /// What to type instead.
    pub fn hint(&self) -> String {
        match self {
            Self::Scheme { text } => {
                format!(
                    "write {:?}",
                    text.split_once("://").map_or(text.as_str(), |(_, rest)| rest)
                )
            }
            Self::UpperCase { text, .. } => format!("write {:?}", text.to_lowercase()),
            Self::BadDigest { .. } => {
                "a digest is sha256: and 64 of 0-9a-f, as in nginx@sha256:0123…".to_owned()
            }
            Self::LooksLikeId { .. } => "use the image's name; image ls shows both".to_owned(),
            Self::EmptyTag { .. } | Self::BadTag { .. } => {
                "a tag looks like 1.27 or latest; leave it out for latest".to_owned()
            }
            Self::BadRegistry { .. } | Self::BadPort { .. } => {
                "a registry looks like registry.example.org or localhost:5000".to_owned()
            }
            Self::Empty
            | Self::NoRepository { .. }
            | Self::BadRepositoryChar { .. }
            | Self::BadPart { .. }
            | Self::TooLong { .. } => {
                "write [registry[:port]/]repository[:tag][@sha256:digest], as in nginx:1.27"
                    .to_owned()
            }
        }
    }
}

impl Reference {
    /// Host and optional port, or `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The full form: `docker.io/library/nginx:latest`.
    pub fn canonical(&self) -> String {
        self.with_suffix(self.name())
    }

    /// The form people type: `nginx:latest`.
    pub fn familiar(&self) -> String {
        let name = if self.registry == DEFAULT_REGISTRY {
            self.repository.strip_prefix(OFFICIAL_PREFIX).unwrap_or(&self.repository).to_owned()
        } else {
            self.name()
        };
        self.with_suffix(name)
    }

    /// The same repository by digest alone.
    pub fn by_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same repository by another tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, Error> {
        check_tag(&format!("{}:{tag}", self.name()), tag)?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The key under which an image is kept: the digest decides if there is one.
    pub(crate) fn key(&self) -> String {
        match &self.digest {
            Some(digest) => format!("{}@{digest}", self.name()),
            None => self.canonical(),
        }
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(digest.as_str());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.familiar())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Empty);
        }
        check_scheme(text)?;
        if text.len() == ID_LEN && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Error::LooksLikeId { text: text.to_owned() });
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|source| Error::BadDigest { text: text.to_owned(), source })?;
                (rest, Some(digest))
            }
        };
        let (registry, rest) = split_registry(rest);
        // A colon after the last slash starts a tag; the registry's port is already off.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if let Some(registry) = registry {
            check_registry(text, registry)?;
        }
        if let Some(tag) = tag {
            check_tag(text, tag)?;
        }
        check_repository(text, path)?;
        let registry = match registry {
            None | Some(LEGACY_REGISTRY) => DEFAULT_REGISTRY,
            Some(registry) => registry,
        };
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{OFFICIAL_PREFIX}{path}")
        } else {
            path.to_owned()
        };
        let len = registry.len() + 1 + repository.len();
        if len > NAME_LEN_MAX {
            return Err(Error::TooLong { text: text.to_owned(), len });
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Docker's rule: the first part is a registry if it could not be a repository.
fn split_registry(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, text),
    }
}

fn check_scheme(text: &str) -> Result<(), Error> {
    match text.contains("://") {
        true => Err(Error::Scheme { text: text.to_owned() }),
        false => Ok(()),
    }
}

fn check_registry(text: &str, registry: &str) -> Result<(), Error> {
    let bad = || Error::BadRegistry { text: text.to_owned(), registry: registry.to_owned() };
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':').ok_or_else(bad)?),
            };
            (None, port)
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    if host.is_some_and(|host| !host.split('.').all(is_host_label)) {
        return Err(bad());
    }
    match port {
        None => Ok(()),
        Some(port)
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(())
        }
        Some(port) => Err(Error::BadPort { text: text.to_owned(), port: port.to_owned() }),
    }
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Checks a registry as typed for a login: a host with an optional port.
pub(crate) fn parse_registry(registry: &str) -> Result<String, Error> {
    check_scheme(registry)?;
    check_registry(registry, registry)?;
    Ok(if registry == LEGACY_REGISTRY { DEFAULT_REGISTRY } else { registry }.to_owned())
}

fn check_tag(text: &str, tag: &str) -> Result<(), Error> {
    if tag.is_empty() {
        return Err(Error::EmptyTag { text: text.to_owned() });
    }
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let valid = tag.len() <= TAG_LEN_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
    if valid { Ok(()) } else { Err(Error::BadTag { text: text.to_owned(), tag: tag.to_owned() }) }
}

fn check_repository(text: &str, path: &str) -> Result<(), Error> {
    if path.is_empty() {
        return Err(Error::NoRepository { text: text.to_owned() });
    }
    if let Some(found) = path.chars().find(char::is_ascii_uppercase) {
        return Err(Error::UpperCase { text: text.to_owned(), found });
    }
    let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(*c);
    if let Some(found) = path.chars().find(|c| !allowed(c)) {
        return Err(Error::BadRepositoryChar { text: text.to_owned(), found });
    }
    match path.split('/').find(|part| !is_repository_part(part)) {
        None => Ok(()),
        Some(part) => Err(Error::BadPart { text: text.to_owned(), part: part.to_owned() }),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_repository_part(part: &str) -> bool {
    let mut rest = part;
    loop {
        let word = rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let separator = rest.bytes().take_while(|byte| !byte.is_ascii_alphanumeric()).count();
        let (joint, after) = rest.split_at(separator);
        if !(matches!(joint, "." | "_" | "__") || joint.bytes().all(|byte| byte == b'-')) {
            return false;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str, familiar: &str) {
        let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(reference.canonical(), canonical, "{text}");
        assert_eq!(reference.to_string(), familiar, "{text}");
        assert_eq!(reference.canonical().parse(), Ok(reference.clone()), "{text}");
        assert_eq!(reference.familiar().parse(), Ok(reference), "{text}");
    }

    #[track_caller]
    fn refuse(text: &str, part: &str) {
        let error = text.parse::<Reference>().expect_err(text);
        let mut message = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            message = format!("{message}: {source}");
        }
        assert!(message.contains(part), "{text}: {message}");
        assert!(!error.hint().is_empty());
    }

    #[test]
    fn names_are_normalised_as_docker() {
        check("nginx", "docker.io/library/nginx:latest", "nginx:latest");
        check("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27");
        check("library/nginx", "docker.io/library/nginx:latest", "nginx:latest");
        check("shop/web:2", "docker.io/shop/web:2", "shop/web:2");
        check("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest");
        check("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest");
        check("localhost/x", "localhost/x:latest", "localhost/x:latest");
        check("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest");
        check("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y");
        check("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest", "127.0.0.1:5000/a/b/c:latest");
        check("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest");
        check("Registry/x", "Registry/x:latest", "Registry/x:latest");
        check("a.b/c__d--e.f_g", "a.b/c__d--e.f_g:latest", "a.b/c__d--e.f_g:latest");
        check("x:_A.b-C", "docker.io/library/x:_A.b-C", "x:_A.b-C");
        let digest = Digest::of(b"x");
        check(
            &format!("nginx@{digest}"),
            &format!("docker.io/library/nginx@{digest}"),
            &format!("nginx@{digest}"),
        );
        check(
            &format!("r.io:1/x:t@{digest}"),
            &format!("r.io:1/x:t@{digest}"),
            &format!("r.io:1/x:t@{digest}"),
        );
    }

    #[test]
    fn bad_names_say_what_is_wrong() {
        refuse("", "empty");
        refuse("Nginx", "upper case letter 'N'");
        refuse("docker.io/Nginx", "upper case letter 'N'");
        refuse("nginx:", "tag is empty");
        refuse("nginx:.x", "tag \".x\"");
        refuse(&format!("nginx:{}", "t".repeat(129)), "tag");
        refuse("nginx:a b", "tag \"a b\"");
        refuse("a b", "' ' in the repository");
        refuse("nginx@sha256:12", "sha256: and 64 hex digits");
        refuse("nginx@md5:aa", "sha256: and 64 hex digits");
        refuse("nginx@", "sha256: and 64 hex digits");
        refuse("/nginx", "part \"\"");
        refuse("a//b", "part \"\"");
        refuse("nginx/", "part \"\"");
        refuse("../../etc", "registry \"..\"");
        refuse("a/../b", "part \"..\"");
        refuse("-a", "part \"-a\"");
        refuse("a_", "part \"a_\"");
        refuse("a___b", "part \"a___b\"");
        refuse("https://r.io/x", "no scheme");
        refuse("docker://x", "no scheme");
        refuse("localhost:0/x", "port \"0\"");
        refuse("localhost:70000/x", "port \"70000\"");
        refuse("localhost:/x", "port \"\"");
        refuse("[::g]:1/x", "registry");
        refuse("-bad.host/x", "registry");
        refuse("localhost:5000/", "repository is missing");
        refuse(":tag", "repository is missing");
        refuse(&"a".repeat(64), "image id");
        refuse(&format!("x.y/{}", "a".repeat(252)), "256 characters");
        refuse("naïve", "'ï' in the repository");
    }

    #[test]
    fn a_digest_decides_the_key() {
        let digest = Digest::of(b"x");
        let both: Reference = format!("nginx:1@{digest}").parse().unwrap();
        assert_eq!(both.key(), both.by_digest(digest).key());
        assert_eq!(both.with_tag("2").unwrap().canonical(), "docker.io/library/nginx:2");
        assert!(both.with_tag("-").is_err());
    }
}
