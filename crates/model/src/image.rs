//! Names of images as specifications have them: `[REGISTRY/]NAME[:TAG][@sha256:DIGEST]`.
//!
//! A name with both tag and digest is *pinned*: the digest decides what runs, the tag tells people
//! what it was called when that was looked up.
//!
//! Not here: whether a name is one at all, which whoever pulls decides.

/// What separates a digest from what is before.
const AT: char = '@';
const ALGORITHM: &str = "sha256:";
const HEX_LEN: usize = 64;
/// The tag of a name without one.
const DEFAULT_TAG: &str = ":latest";

/// The name without its digest, if it has a tag beside; otherwise as it is.
pub fn without_pin(image: &str) -> &str {
    match image.split_once(AT) {
        Some((name, _)) if has_tag(name) => name,
        Some(_) | None => image,
    }
}

/// The digest of a name that has one: `sha256:…`.
pub fn digest(image: &str) -> Option<&str> {
    image.split_once(AT).map(|(_, digest)| digest)
}

/// Whether `pinned` is `image`, which has no digest, with one: by the same name and tag.
pub fn is_pin_of(pinned: &str, image: &str) -> bool {
    let Some((name, digest)) = pinned.split_once(AT) else { return false };
    let hex = digest.strip_prefix(ALGORITHM).unwrap_or_default();
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let same = name == image
        || !has_tag(image) && name.strip_suffix(DEFAULT_TAG).is_some_and(|bare| bare == image);
    same && has_tag(name) && hex.len() == HEX_LEN && hex.bytes().all(is_hex)
}

/// A colon before the last slash belongs to the registry's port.
fn has_tag(name: &str) -> bool {
    name.rsplit_once('/').map_or(name, |(_, last)| last).contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stay_and_digests_go() {
        let check = |image: &str, name: &str, of: Option<&str>| {
            assert_eq!((without_pin(image), digest(image)), (name, of), "{image}");
        };
        check("web", "web", None);
        check("web:1", "web:1", None);
        check("web:1@sha256:ab", "web:1", Some("sha256:ab"));
        check("web@sha256:ab", "web@sha256:ab", Some("sha256:ab"));
        check("r.io:5000/web@sha256:ab", "r.io:5000/web@sha256:ab", Some("sha256:ab"));
        check("r.io:5000/web:2@sha256:ab", "r.io:5000/web:2", Some("sha256:ab"));
        check("", "", None);
    }

    #[test]
    fn a_pin_is_of_one_name() {
        let at = |name: &str| format!("{name}@sha256:{}", "0a".repeat(32));
        for (pinned, image, is) in [
            (at("web:1"), "web:1", true),
            (at("web:latest"), "web", true),
            (at("r.io:5000/web:latest"), "r.io:5000/web", true),
            (at("web:1"), "web", false),
            (at("web"), "web", false),
            (at("web:2"), "web:1", false),
            (at("other:1"), "web:1", false),
            ("web:1".to_owned(), "web:1", false),
            ("web:1@sha256:0a".to_owned(), "web:1", false),
            ("web:1@sha512:0a".to_owned(), "web:1", false),
            (at("web:1").to_uppercase(), "WEB:1", false),
            (format!("web:1@sha256:{}", "é".repeat(32)), "web:1", false),
        ] {
            assert_eq!(is_pin_of(&pinned, image), is, "{pinned} of {image}");
        }
    }
}
