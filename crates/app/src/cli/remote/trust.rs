//! Whom a context trusts, and what it says when that does not fit any more.
//!
//! A context by token pins the authority that issued when it was made. Once a
//! manager that fits the pin shows that another one issues (the cluster rotates
//! its authority, or has lately), that one is pinned instead: managers show the
//! older one beside it until they renew their certificates again.
//!
//! Not here: contexts by certificate learn nothing. The cluster forgets the
//! authority that vouched for them when the rotation ends.

use rustls::pki_types::CertificateDer;
use warren_model::Time;
use warren_trust::{Bundle, PeerError};

use super::{Remote, unhex};
use crate::cli::context::now;
use crate::cli::failure::{Exit, Failure};
use crate::cli::rows::hex;
use crate::roles::dial::DialError;

impl Remote {
    /// Pins the authority that issues now, if a manager that was made sure of `shown` another one
    /// than is pinned.
    pub(crate) fn learn(&self, shown: &[CertificateDer<'_>]) {
        if let Some(fingerprint) = self.issuing(shown, now())
            && fingerprint != self.fingerprint
        {
            // A folder that cannot be written to: the next call learns it again.
            let _ = self.keep(fingerprint);
        }
    }

    /// The fingerprint of the authority that signed the first of `shown`, which lead to the one
    /// that is pinned.
    fn issuing(&self, shown: &[CertificateDer<'_>], now: Time) -> Option<String> {
        self.token.as_ref()?;
        let pinned = unhex(&self.fingerprint)?;
        let authorities = shown.get(1..)?.iter();
        let bundles: Vec<Bundle> = authorities.filter_map(|der| Bundle::new(&[der]).ok()).collect();
        let known = bundles.iter().find(|bundle| bundle.fingerprint() == pinned)?;
        let peer = known.verify(shown, now).ok()?;
        let issuing = bundles.iter().find(|bundle| bundle.issuer_hash() == peer.issuer_hash)?;
        Some(hex(&issuing.fingerprint()))
    }

    /// Writes the pin down, unless the context was changed or removed meanwhile.
    fn keep(&self, fingerprint: String) -> Result<(), Failure> {
        let Some((_, path)) = &self.kept else { return Ok(()) };
        let there = Self::read(path)?;
        if there.fingerprint == self.fingerprint && there.addresses == self.addresses {
            Self { fingerprint, ..there }.write(path)?;
        }
        Ok(())
    }

    fn name(&self) -> &str {
        self.kept.as_ref().map_or("NAME", |(name, _)| name)
    }

    /// No manager was found that this context knows.
    pub(crate) fn nobody(&self, trouble: &[DialError]) -> Failure {
        let name = self.name();
        let one = |error: &DialError| match error {
            DialError::Untrusted { address, why: PeerError::NotPinned } => {
                format!("{address} is a manager of another authority than context {name} knows")
            }
            other => other.to_string(),
        };
        let told: Vec<String> = trouble.iter().map(one).collect();
        let strange = |error: &DialError| matches!(error, DialError::Untrusted { .. });
        if !trouble.iter().all(strange) {
            return Failure::new(Exit::Unreachable, told.join("; "))
                .hint("`warren context ls` shows which cluster is meant");
        }
        let failure = Failure::failed(told.join("; "));
        match self.token {
            Some(_) => failure.hint(format!(
                "if the authority was rotated: `warren cluster settings` on a manager shows it; \
                 then: warren context update {name} --fingerprint HEX"
            )),
            None => failure.hint(self.anew()),
        }
    }

    /// Managers refuse the certificate of this context.
    pub(crate) fn distrusted(&self) -> Failure {
        let name = self.name();
        Failure::failed(format!(
            "{} does not accept the certificate of context {name}: the authority that signed it \
             was rotated away, or is another cluster's",
            self.shown()
        ))
        .hint(self.anew())
    }

    fn anew(&self) -> String {
        let name = self.name();
        format!(
            "an admin makes another: warren operator create WHO --certificate --context-file \
             FILE; then: warren context update {name} --from FILE"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use warren_base::rng::SeededRng;
    use warren_model::{ClusterId, NodeId};
    use warren_trust::{ApiToken, Authority, NodeKey, Subject};

    use super::*;
    use crate::cli::remote::Contexts;

    const NOW: Time = Time(1_800_000_000_000);

    /// What a manager shows that has a certificate by `authority`.
    fn shown(authority: &Authority) -> Vec<CertificateDer<'static>> {
        let request = NodeKey::generate().unwrap().signing_request("x").unwrap();
        let subject = Subject::Node { id: NodeId::MIN, manager: true };
        let issued = authority.issue(&request, &subject, Duration::from_secs(3600), NOW).unwrap();
        issued.chain.into_iter().map(CertificateDer::from).collect()
    }

    fn knows(authority: &Authority) -> Remote {
        let token = ApiToken::generate(&SeededRng::new(1)).to_text();
        let fingerprint = hex(&authority.fingerprint());
        Remote::by_token(vec!["10.0.0.1".into()], fingerprint, token).unwrap()
    }

    #[test]
    fn the_issuing_authority_is_learned_from_those_who_fit_the_pin() {
        let old = Authority::generate(ClusterId::MIN, NOW).unwrap();
        let new = old.rotate(NOW).unwrap();
        let done = new.finish_rotation().unwrap();
        let issuing = |remote: &Remote, shown: &[_]| remote.issuing(shown, NOW);
        let (was, is) = (Some(hex(&old.fingerprint())), Some(hex(&new.fingerprint())));
        assert_eq!(issuing(&knows(&old), &shown(&old)), was);
        assert_eq!(issuing(&knows(&old), &shown(&new)), is);
        assert_eq!(issuing(&knows(&new), &shown(&done)), is);
        // Nothing leads from the pin to these.
        assert_eq!(issuing(&knows(&old), &shown(&done)), None);
        let forger = Authority::generate(ClusterId::MIN, NOW).unwrap();
        let mut forged = shown(&forger);
        forged.extend(shown(&old).split_off(1));
        assert_eq!(issuing(&knows(&old), &forged), None);
        // An authority that did not sign is not learned, wherever it stands.
        let mut padded = shown(&old);
        padded.insert(1, shown(&forger).remove(1));
        assert_eq!(issuing(&knows(&old), &padded), was);
    }

    #[test]
    fn what_is_learned_is_kept_in_private() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().display().to_string();
        let env = |key: &str| (key == "XDG_CONFIG_HOME").then(|| home.clone());
        let contexts = Contexts::of(&env).unwrap();
        let old = Authority::generate(ClusterId::MIN, now()).unwrap();
        let new = old.rotate(now()).unwrap();
        contexts.put("shop", &knows(&old)).unwrap();
        let (first, second) = (contexts.get("shop").unwrap(), contexts.get("shop").unwrap());
        first.keep(hex(&new.fingerprint())).unwrap();
        let path = dir.path().join("warren/contexts/shop.json");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(contexts.get("shop").unwrap().fingerprint, hex(&new.fingerprint()));
        assert_eq!(contexts.get("shop").unwrap().token(), first.token());
        // Whoever comes late with what it knew before changes nothing.
        second.keep("ab".repeat(32)).unwrap();
        assert_eq!(contexts.get("shop").unwrap().fingerprint, hex(&new.fingerprint()));
        contexts.remove("shop").unwrap();
        assert!(second.keep("ab".repeat(32)).is_err() && !path.exists());
    }

    #[test]
    fn words_are_about_the_context() {
        let old = Authority::generate(ClusterId::MIN, NOW).unwrap();
        let strange =
            || DialError::Untrusted { address: "10.0.0.1:2377".into(), why: PeerError::NotPinned };
        let silent = || DialError::Silent { address: "10.0.0.2:2377".into() };
        let failure = knows(&old).nobody(&[strange()]);
        assert_eq!(failure.exit, Exit::Failed);
        assert!(!failure.message.contains("join token"), "{failure}");
        assert!(failure.hint.unwrap().contains("context update NAME --fingerprint"));
        // The other may be of the right one.
        assert_eq!(knows(&old).nobody(&[strange(), silent()]).exit, Exit::Unreachable);
    }
}
