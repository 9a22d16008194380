//! Credentials of registries, in the format of Docker's `config.json`.
//!
//! Asked are, in this order: the helper of the registry (`credHelpers`), its entry in
//! `auths` (`auth`, base64 `user:password`, or `identitytoken`), the helper of all others
//! (`credsStore`). Everything else in the file is kept as it is. Passwords are wiped from
//! memory and never printed.

mod helper;

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::disk;
use crate::error::Error;
use crate::reference::DEFAULT_REGISTRY;

/// What Docker calls its own registry in this file.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// Far more than a file of many registries.
const FILE_LEN_MAX: u64 = 1 << 20;

/// As whom an identity token is shown, in Docker's words.
const TOKEN_USER: &str = "<token>";

/// A user and a password or token.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: Zeroizing<String>,
}

impl Credentials {
    /// Whether the password is an identity token: good for access tokens alone.
    pub(crate) fn is_identity_token(&self) -> bool {
        self.user == TOKEN_USER
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The file.
#[derive(Debug)]
pub(crate) struct Keyring {
    path: PathBuf,
}

impl Keyring {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What to show to `registry`, if anything. Blocking: a helper may be asked.
    pub(crate) fn find(&self, registry: &str) -> Result<Option<Credentials>, Error> {
        let document = self.read()?;
        let helpers = document.get("credHelpers").and_then(Value::as_object);
        let helper = helpers.and_then(|all| all.iter().find(|(key, _)| host_of(key) == registry));
        if let Some((_, helper)) = helper {
            return self.ask(helper, registry);
        }
        if let Some(found) = self.entry(&document, registry)? {
            return Ok(Some(found));
        }
        match document.get("credsStore") {
            Some(helper) => self.ask(helper, registry),
            None => Ok(None),
        }
    }

    fn ask(&self, helper: &Value, registry: &str) -> Result<Option<Credentials>, Error> {
        let problem = |problem| self.problem(format!("{registry}: {problem}"));
        let name = helper.as_str().unwrap_or_default();
        helper::ask(name, &key_of(registry), helper::PATIENCE).map_err(problem)
    }

    fn entry(
        &self,
        document: &Map<String, Value>,
        registry: &str,
    ) -> Result<Option<Credentials>, Error> {
        let Some(auths) = document.get("auths").and_then(Value::as_object) else {
            return Ok(None);
        };
        let Some((_, entry)) = auths.iter().find(|(key, _)| host_of(key) == registry) else {
            return Ok(None);
        };
        let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|t| !t.is_empty());
        if let Some(token) = text("identitytoken") {
            let (user, password) = (TOKEN_USER.to_owned(), Zeroizing::new(token.to_owned()));
            return Ok(Some(Credentials { user, password }));
        }
        let Some(auth) = text("auth") else {
            return Ok(None);
        };
        decode(auth).map(Some).ok_or_else(|| {
            self.problem(format!("the entry of {registry} is no base64 user:password"))
        })
    }

    /// Stores credentials; the file is replaced at once.
    pub(crate) fn store(&self, registry: &str, credentials: &Credentials) -> Result<(), Error> {
        let pair =
            Zeroizing::new(format!("{}:{}", credentials.user, credentials.password.as_str()));
        let auth = BASE64.encode(pair.as_bytes());
        self.change(|auths| {
            auths.retain(|key, _| host_of(key) != registry);
            auths.insert(key_of(registry), json!({ "auth": auth }));
            Ok(())
        })
    }

    pub(crate) fn forget(&self, registry: &str) -> Result<(), Error> {
        self.change(|auths| {
            let before = auths.len();
            auths.retain(|key, _| host_of(key) != registry);
            if auths.len() < before {
                Ok(())
            } else {
                Err(Error::NotLoggedIn { registry: registry.to_owned() })
            }
        })
    }

    fn change(
        &self,
        edit: impl FnOnce(&mut Map<String, Value>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut document = self.read()?;
        let auths = document.entry("auths").or_insert_with(|| json!({}));
        let Some(auths) = auths.as_object_mut() else {
            return Err(self.problem("auths is no object".to_owned()));
        };
        edit(auths)?;
        let text = Zeroizing::new(format!("{:#}\n", Value::Object(document)));
        let write = || {
            if let Some(folder) = self.path.parent() {
                disk::make_dir(folder)?;
            }
            let mut aside = self.path.clone().into_os_string();
            aside.push(".new");
            let aside = Path::new(&aside);
            // Left by a crash.
            let _ = std::fs::remove_file(aside);
            disk::write_by(aside, &self.path, text.as_bytes())
        };
        write().map_err(|error| Error::at("write credentials to", &self.path, error))
    }

    fn read(&self) -> Result<Map<String, Value>, Error> {
        use std::io::Read;
        let file = match std::fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
            Err(error) => return Err(Error::at("open credentials", &self.path, error)),
        };
        let mut text = Zeroizing::new(Vec::new());
        file.take(FILE_LEN_MAX)
            .read_to_end(&mut text)
            .map_err(|error| Error::at("read credentials", &self.path, error))?;
        if text.is_empty() {
            return Ok(Map::new());
        }
        // serde_json's messages hold no content, only what it expected and where.
        serde_json::from_slice(&text).map_err(|error| self.problem(error.to_string()))
    }

    fn problem(&self, problem: String) -> Error {
        Error::BadCredentials { path: self.path.display().to_string(), problem }
    }
}

/// Old tools wrote keys as `https://host/v1/`.
fn host_of(key: &str) -> &str {
    let host = key.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split_once('/').map_or(host, |(host, _)| host);
    match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        host => host,
    }
}

fn key_of(registry: &str) -> String {
    if registry == DEFAULT_REGISTRY { DOCKER_KEY } else { registry }.to_owned()
}

fn decode(auth: &str) -> Option<Credentials> {
    let bytes = Zeroizing::new(BASE64.decode(auth).ok()?);
    let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
    // Docker pads old entries with zero bytes.
    let password = password.trim_end_matches('\0').to_owned();
    Some(Credentials { user: user.to_owned(), password: Zeroizing::new(password) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn pair(user: &str, password: &str) -> Credentials {
        Credentials { user: user.into(), password: Zeroizing::new(password.into()) }
    }

    #[test]
    fn the_file_is_dockers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/config.json");
        let keyring = Keyring::new(path.clone());
        assert!(keyring.find("r.io").unwrap().is_none());
        keyring.store("r.io:5000", &pair("me", "pass:word")).unwrap();
        keyring.store("docker.io", &pair("you", "p")).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("bWU6cGFzczp3b3Jk") && text.contains(DOCKER_KEY), "{text}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let found = keyring.find("r.io:5000").unwrap().unwrap();
        assert_eq!((found.user.as_str(), found.password.as_str()), ("me", "pass:word"));
        assert_eq!(keyring.find("docker.io").unwrap().unwrap().user, "you");
        assert!(!format!("{found:?}").contains("pass:word"));
        keyring.forget("r.io:5000").unwrap();
        assert!(matches!(keyring.forget("r.io:5000"), Err(Error::NotLoggedIn { .. })));
    }

    #[test]
    fn other_settings_are_kept_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let keyring = Keyring::new(path.clone());
        std::fs::write(&path, r#"{"credsStore":"x","auths":{"https://a.io/v1/":{"auth":"YTpi"}}}"#)
            .unwrap();
        assert_eq!(keyring.find("a.io").unwrap().unwrap().user, "a");
        keyring.store("b.io", &pair("u", "p")).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("credsStore"));
        // Its own entry first; of others the helper is asked, which is not there.
        assert_eq!(keyring.find("b.io").unwrap().unwrap().user, "u");
        let error = keyring.find("c.io").unwrap_err().to_string();
        assert!(error.contains("c.io: docker-credential-x: "), "{error}");
        std::fs::write(
            &path,
            r#"{"credHelpers":{"a.io":"../x"},"auths":{"b.io":{"identitytoken":"t"}}}"#,
        )
        .unwrap();
        assert!(keyring.find("a.io").unwrap_err().to_string().contains("no name of a credential"));
        assert!(keyring.find("b.io").unwrap().unwrap().is_identity_token());
        assert!(keyring.find("c.io").unwrap().is_none());
        std::fs::write(&path, r#"{"auths":{"a.io":{"auth":"%%"}}}"#).unwrap();
        assert!(matches!(keyring.find("a.io"), Err(Error::BadCredentials { .. })));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(keyring.find("a.io"), Err(Error::BadCredentials { .. })));
        std::fs::write(&path, "").unwrap();
        assert!(keyring.find("a.io").unwrap().is_none());
    }
}
