//! Contexts: clusters that are called from afar, and the keys to them.
//!
//! One file each, mode 0600, below `$XDG_CONFIG_HOME/warren/contexts`: where
//! managers are, the fingerprint of their authority, and a token or a client
//! certificate. The name of the current one is in `current` beside them.

mod trust;

use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use warren_base::clock::RealClock;
use warren_base::file::write_atomic;
use warren_proto::v1;
use warren_trust::{ApiToken, Bundle, Credentials, Identity, NodeKey};
use zeroize::Zeroizing;

use super::failure::{Exit, Failure, plain};
use super::rows::hex;
use crate::address::Address;
use crate::settings::{Environment, PORT};

const FOLDER: &str = "warren/contexts";
const CURRENT: &str = "current";
const EXTENSION: &str = "json";
/// Two chains and a key.
const FILE_MAX: u64 = 256 << 10;
const NAME_LEN_MAX: usize = 64;
/// ALPN of gRPC.
const GRPC: &[u8] = b"h2";

/// A cluster that is called from afar.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remote {
    addresses: Vec<String>,
    /// SHA-256 of the authority's certificate, hex.
    fingerprint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<Zeroizing<String>>,
    /// DER in base 64: the private key, the chain, what is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Zeroizing<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    certificates: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    authorities: Vec<String>,
    /// Its name, and where it is kept.
    #[serde(skip)]
    kept: Option<(String, PathBuf)>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Remote {
    /// What `operator create` gave.
    ///
    /// # Errors
    /// The answer is not whole.
    pub(crate) fn granted(
        made: &v1::CreatedOperator,
        key: Option<&NodeKey>,
    ) -> Result<Self, Failure> {
        let bundle = Bundle::new(&made.authorities);
        let bundle = bundle.map_err(|e| Failure::failed(format!("read the answer: {e}")))?;
        let encode = |list: &[Vec<u8>]| list.iter().map(|der| STANDARD.encode(der)).collect();
        Ok(Self {
            addresses: made.managers.clone(),
            fingerprint: hex(&bundle.fingerprint()),
            token: key.is_none().then(|| Zeroizing::new(made.token.clone())),
            key: key.map(|key| Zeroizing::new(STANDARD.encode(key.pkcs8()))),
            certificates: encode(&made.certificates),
            authorities: encode(&made.authorities),
            kept: None,
        })
    }

    /// By hand: addresses, fingerprint, token.
    ///
    /// # Errors
    /// Naming what is wrong.
    pub(crate) fn by_token(
        addresses: Vec<String>,
        fingerprint: String,
        token: Zeroizing<String>,
    ) -> Result<Self, Failure> {
        let remote = Self {
            addresses,
            fingerprint,
            token: Some(token),
            key: None,
            certificates: Vec::new(),
            authorities: Vec::new(),
            kept: None,
        };
        remote.check()?;
        Ok(remote)
    }

    /// The same access to other addresses, or by another authority.
    ///
    /// # Errors
    /// Naming what is wrong.
    pub(crate) fn changed(
        &self,
        addresses: Vec<String>,
        fingerprint: Option<String>,
    ) -> Result<Self, Failure> {
        if fingerprint.is_some() && self.token.is_none() {
            return Err(Failure::input(
                "--fingerprint: the context has a certificate, not a token",
            )
            .hint("replace it: --from FILE"));
        }
        let mut remote = self.clone();
        if !addresses.is_empty() {
            remote.addresses = addresses;
        }
        if let Some(fingerprint) = fingerprint {
            remote.fingerprint = fingerprint;
            remote.authorities.clear();
        }
        remote.check()?;
        Ok(remote)
    }

    /// # Errors
    /// Naming what is wrong, never a secret.
    fn check(&self) -> Result<(), Failure> {
        self.addresses()?;
        let token = self.token.as_ref().map(|token| token.parse::<ApiToken>()).transpose();
        token.map_err(|e| Failure::input(format!("token: {e}")))?;
        if self.token.is_none() == self.key.is_none() {
            return Err(Failure::input("a context has a token or a key, and not both"));
        }
        self.config().map(|_| ())
    }

    pub(crate) fn addresses(&self) -> Result<Vec<Address>, Failure> {
        let parse = |text: &String| {
            let address = Address::parse(text, PORT).and_then(Address::dialled);
            address.map_err(|problem| Failure::input(format!("addresses: {problem}")))
        };
        match self.addresses.is_empty() {
            true => Err(Failure::input("addresses: there is none")),
            false => self.addresses.iter().map(parse).collect(),
        }
    }

    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_ref().map(|token| token.as_str())
    }

    pub(crate) fn shown(&self) -> String {
        self.addresses.join(",")
    }

    pub(crate) fn access(&self) -> &'static str {
        if self.token.is_some() { "token" } else { "certificate" }
    }

    /// Whom to trust, and what to show.
    pub(crate) fn config(&self) -> Result<Arc<rustls::ClientConfig>, Failure> {
        let wrong = |what: &str, e: &dyn std::fmt::Display| {
            Failure::input(format!("{what} of the context: {e}"))
        };
        let clock = Arc::new(RealClock::new());
        let Some(key) = &self.key else {
            let pinned = unhex(&self.fingerprint)
                .ok_or_else(|| Failure::input("fingerprint: 64 hex digits are expected"))?;
            return warren_trust::join_config(pinned, clock, &[GRPC]).map_err(|e| wrong("TLS", &e));
        };
        let decode = |what: &'static str, list: &[String]| {
            let decoded = list.iter().map(|text| STANDARD.decode(text));
            decoded.collect::<Result<Vec<_>, _>>().map_err(|e| wrong(what, &e))
        };
        let pkcs8 = STANDARD.decode(key.as_bytes()).map(Zeroizing::new);
        let pkcs8 = pkcs8.map_err(|_| Failure::input("key of the context: not base 64"))?;
        let key = NodeKey::from_pkcs8(&pkcs8).map_err(|e| wrong("key", &e))?;
        let bundle = Bundle::new(&decode("authorities", &self.authorities)?);
        let bundle = bundle.map_err(|e| wrong("authorities", &e))?;
        let chain = decode("certificates", &self.certificates)?;
        let identity = Identity::new(key, &chain, bundle.clone());
        let identity = identity.map_err(|e| wrong("certificates", &e))?;
        let credentials = Credentials::new(bundle, clock);
        credentials.set(&identity).map_err(|e| wrong("key", &e))?;
        warren_trust::client_config(&credentials, None, &[GRPC]).map_err(|e| wrong("TLS", &e))
    }

    pub(crate) fn to_text(&self) -> Result<Zeroizing<String>, Failure> {
        let text = serde_json::to_string_pretty(self);
        text.map(Zeroizing::new).map_err(|e| Failure::failed(format!("write a context: {e}")))
    }

    /// # Errors
    /// What is wrong with the text; secrets in it are not shown.
    pub(crate) fn parse(what: &str, text: &str) -> Result<Self, Failure> {
        let remote: Self = serde_json::from_str(text).map_err(|e| {
            Failure::input(format!("{what}: line {}: not a context", e.line()))
                .hint("`warren operator create --context-file` and `context export` write them")
        })?;
        remote.check()?;
        Ok(remote)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = self.to_text()?;
        let wrong =
            |e: std::io::Error| Failure::failed(format!("write {}: {}", path.display(), plain(&e)));
        let path = std::path::absolute(path).map_err(wrong)?;
        write_atomic(&path, text.as_bytes(), 0o600).map_err(wrong)
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let wrong = |e: std::io::Error| Failure::input(format!("{shown}: {}", plain(&e)));
        let file = std::fs::File::open(path).map_err(wrong)?;
        let mode = file.metadata().map_err(wrong)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Failure::input(format!("{shown} can be read by others (mode {mode:o})"))
                .hint(format!("chmod 600 {shown}")));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_MAX).read_to_string(&mut text).map_err(wrong)?;
        Self::parse(&shown.to_string(), &text)
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    let text: String = text.chars().filter(|c| *c != ':').collect();
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, slot) in out.iter_mut().enumerate() {
        *slot = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(out)
}

/// The contexts of a person.
pub(crate) struct Contexts {
    folder: PathBuf,
}

impl Contexts {
    /// # Errors
    /// Nobody knows where they are.
    pub(crate) fn of(env: Environment<'_>) -> Result<Self, Failure> {
        let set = |key: &str| env(key).filter(|text| !text.is_empty()).map(PathBuf::from);
        let config =
            set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        let config = config.ok_or_else(|| {
            Failure::input("neither XDG_CONFIG_HOME nor HOME is set: contexts have no place")
        })?;
        Ok(Self { folder: config.join(FOLDER) })
    }

    fn path(&self, name: &str) -> Result<PathBuf, Failure> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let right = !name.is_empty()
            && name.len() <= NAME_LEN_MAX
            && !name.starts_with('.')
            && name.chars().all(fits);
        if !right {
            return Err(Failure::input(format!("{name:?} is not a name for a context"))
                .hint("letters, digits, '-', '_' and '.' are allowed"));
        }
        Ok(self.folder.join(format!("{name}.{EXTENSION}")))
    }

    pub(crate) fn get(&self, name: &str) -> Result<Remote, Failure> {
        let path = self.path(name)?;
        if !path.exists() {
            return Err(Failure::new(Exit::NotFound, format!("there is no context {name}"))
                .hint("`warren context ls` shows all"));
        }
        let remote = Remote::read(&path)?;
        Ok(Remote { kept: Some((name.to_owned(), path)), ..remote })
    }

    /// Takes the place of a context that is there.
    pub(crate) fn replace(&self, name: &str, remote: &Remote) -> Result<(), Failure> {
        self.get(name)?;
        remote.write(&self.path(name)?)
    }

    pub(crate) fn put(&self, name: &str, remote: &Remote) -> Result<(), Failure> {
        let path = self.path(name)?;
        if path.exists() {
            return Err(Failure::new(Exit::Conflict, format!("there is a context {name} already"))
                .hint(format!("warren context rm {name} takes it away")));
        }
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|e| {
            Failure::failed(format!("make {}: {}", self.folder.display(), plain(&e)))
        })?;
        remote.write(&path)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), Failure> {
        let path = self.path(name)?;
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Failure::new(Exit::NotFound, format!("there is no context {name}")));
            }
            Err(e) => {
                return Err(Failure::failed(format!("remove {}: {}", path.display(), plain(&e))));
            }
        }
        if self.current().as_deref() == Some(name) {
            self.set_current(None)?;
        }
        Ok(())
    }

    /// In order; what is no context is left out.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == EXTENSION))
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names
    }

    pub(crate) fn current(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join(CURRENT)).ok()?;
        Some(text.trim().to_owned()).filter(|name| !name.is_empty())
    }

    pub(crate) fn set_current(&self, name: Option<&str>) -> Result<(), Failure> {
        if let Some(name) = name {
            self.get(name)?;
        }
        let path = self.folder.join(CURRENT);
        let text = format!("{}\n", name.unwrap_or_default());
        write_atomic(&path, text.as_bytes(), 0o600)
            .map_err(|e| Failure::failed(format!("write {}: {}", path.display(), plain(&e))))
    }
}

#[cfg(test)]
mod tests {
    use warren_base::rng::SeededRng;

    use super::*;

    fn contexts(dir: &Path) -> Contexts {
        let home = dir.display().to_string();
        Contexts::of(&|key| (key == "XDG_CONFIG_HOME").then(|| home.clone())).unwrap()
    }

    fn remote() -> Remote {
        let token = ApiToken::generate(&SeededRng::new(1)).to_text();
        Remote::by_token(vec!["10.0.0.1".into()], "ab".repeat(32), token).unwrap()
    }

    #[test]
    fn contexts_are_private_files() {
        let dir = tempfile::tempdir().unwrap();
        let all = contexts(dir.path());
        all.put("prod", &remote()).unwrap();
        assert_eq!(all.put("prod", &remote()).unwrap_err().exit, Exit::Conflict);
        assert_eq!(all.names(), ["prod"]);
        assert_eq!(all.get("none").unwrap_err().exit, Exit::NotFound);
        assert_eq!(all.get("../x").unwrap_err().exit, Exit::Input);
        let path = dir.path().join("warren/contexts/prod.json");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(all.get("prod").unwrap().addresses().unwrap()[0].to_string(), "10.0.0.1:2377");
        all.set_current(Some("prod")).unwrap();
        assert_eq!(all.current().as_deref(), Some("prod"));
        assert!(all.set_current(Some("none")).is_err());
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(all.get("prod").unwrap_err().message.contains("read by others"));
        all.remove("prod").unwrap();
        assert_eq!((all.current(), all.names().len()), (None, 0));
    }

    #[test]
    fn bad_contexts_are_told_and_secrets_are_not() {
        let text = remote().to_text().unwrap();
        assert!(Remote::parse("x", &text).is_ok());
        let token = remote().token().unwrap().to_owned();
        assert!(!format!("{:?}", remote()).contains(&token));
        for (from, to) in [("10.0.0.1", "0.0.0.0"), ("abab", "zz"), ("wrno1", "wrno7"), ("{", "[")]
        {
            let failure = Remote::parse("x", &text.replacen(from, to, 1)).unwrap_err();
            assert!(!failure.message.contains(&token[8..20]), "{failure}");
        }
    }
}
