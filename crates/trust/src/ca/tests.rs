//! Issuing, rotation and verification without TLS.

use proptest::prelude::*;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::X509Certificate;

use super::*;
use crate::peer::{Peer, PeerError};
use crate::testing::{DAY_MS, LIFETIME, NOW, authority, cluster, issue, manager, node, worker};

fn verify(trusted: &Bundle, chain: &[Vec<u8>], now: Time) -> Result<Peer, PeerError> {
    trusted.verify(&to_chain(chain), now)
}

/// A leaf that says another cluster than the authority that signed it.
pub(crate) fn strayed(ca: &Authority, of: ClusterId, subject: &Subject, key: &NodeKey) -> Vec<u8> {
    let mut params = leaf_params(of, subject).unwrap();
    params.not_before = to_x509(NOW);
    params.signed_by(key, &ca.issuer).unwrap().der().to_vec()
}

#[test]
fn what_is_issued_is_what_is_read() {
    let ca = authority(1);
    let subjects = [
        manager(7),
        worker(8),
        Subject::Operator { name: "anna".parse().unwrap(), role: OperatorRole::Deploy },
    ];
    for subject in subjects {
        let key = NodeKey::generate().unwrap();
        let issued = issue(&ca, &key, &subject, NOW);
        let peer = verify(&ca.bundle(), &issued.chain, NOW).unwrap();
        let (node, operator) = match subject {
            Subject::Node { id, .. } => (Some(id), None),
            Subject::Operator { name, .. } => (None, Some(name)),
        };
        let expected = Peer {
            node,
            operator,
            role: subject.role(),
            cluster: cluster(1),
            key_hash: key.key_hash(),
            not_before: Time(NOW.0 - BACKDATED_MS),
            not_after: NOW.plus_ms(90 * DAY_MS),
            expired: false,
            issuer_hash: ca.issuer_hash(),
        };
        assert_eq!(peer, expected);
        assert_eq!(issued.key_hash, peer.key_hash);
        assert_eq!(issued.not_after, peer.not_after);
        assert_eq!(issued.issuer_hash, peer.issuer_hash);
        assert_eq!(peer.renew_at(), NOW.plus_ms(60 * DAY_MS));
    }
}

#[test]
fn only_the_key_of_a_request_counts() {
    let ca = authority(1);
    let key = NodeKey::generate().unwrap();
    // A request that asks for everything.
    let mut params = CertificateParams::new(vec!["manager.warren".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::OrganizationalUnitName, "manager");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let request = params.serialize_request(&key).unwrap();
    let issued = ca.issue(request.der(), &worker(2), LIFETIME, NOW).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(format!("{:?}", names.value).contains(&format!("{}.warren", node(2))));
    assert!(!format!("{:?}", names.value).contains("manager.warren"));
}

#[test]
fn bad_requests_are_refused() {
    let ca = authority(1);
    let issue = |bytes: &[u8], lifetime| ca.issue(bytes, &worker(2), lifetime, NOW).unwrap_err();
    let good = NodeKey::generate().unwrap().signing_request("node").unwrap();
    assert_eq!(issue(&[0; 5000], LIFETIME), IssueError::TooLong { len: 5000 });
    assert_eq!(issue(b"hello", LIFETIME), IssueError::Shape);
    let mut long = good.clone();
    long.push(0);
    assert_eq!(issue(&long, LIFETIME), IssueError::Shape);
    let mut forged = good.clone();
    // Within the name: still well formed, no longer what was signed.
    let at = good.windows(4).position(|four| four == b"node").unwrap();
    forged[at] = b'm';
    assert_eq!(issue(&forged, LIFETIME), IssueError::Signature);
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let other = CertificateParams::default().serialize_request(&other).unwrap();
    assert_eq!(issue(other.der(), LIFETIME), IssueError::Key);
    assert!(matches!(issue(&good, Duration::ZERO), IssueError::Lifetime { .. }));
    let late = NOW.plus_ms(30 * 365 * DAY_MS);
    let late = ca.issue(&good, &worker(2), LIFETIME, late);
    assert!(matches!(late, Err(IssueError::Ended { .. })));
    // Nothing outlives its authority.
    let long = ca.issue(&good, &worker(2), Duration::MAX, NOW).unwrap();
    assert_eq!(long.not_after, ca.not_after);
}

#[test]
fn verification_tells_what_is_wrong() {
    let (ca, foreign) = (authority(1), authority(1));
    let key = NodeKey::generate().unwrap();
    let chain = issue(&ca, &key, &worker(2), NOW).chain;
    let text = |bundle: &Bundle, chain: &[Vec<u8>], now: Time| {
        verify(bundle, chain, now)
            .map_or_else(|error| error.to_string(), |peer| format!("{peer:?}"))
    };
    let name = format!("worker {}", node(2));
    #[track_caller]
    fn check(got: &str, expected: &str) {
        assert!(got.contains(expected), "{got:?} is not {expected:?}");
    }
    check(&text(&ca.bundle(), &chain, NOW), "expired: false");
    check(&text(&ca.bundle(), &chain, NOW.plus_ms(365 * DAY_MS)), "expired: true");
    check(&text(&ca.bundle(), &[], NOW), "showed no certificate");
    let many = vec![chain[0].clone(); 10];
    check(&text(&ca.bundle(), &many, NOW), "showed 10 certificates, at most 9 are read");
    check(&text(&foreign.bundle(), &chain, NOW), &format!("{name} is not signed by this cluster"));
    check(&text(&authority(3).bundle(), &chain, NOW), "is not signed by this cluster");
    // An authority's own certificate is nobody's.
    check(&text(&ca.bundle(), &chain[1..], NOW), "is not one of Warren's");
    let early = Time(NOW.0 - BACKDATED_MS - crate::bundle::CLOCK_TOLERANCE_MS);
    check(&text(&ca.bundle(), &chain, early), "expired: false");
    let early = text(&ca.bundle(), &chain, Time(early.0 - 1));
    check(
        &early,
        "is valid from 2025-12-31T23:00:00.000Z on, but the clock here says 2025-12-31T22:54:59.999Z",
    );
    // Signed by the right key, for another cluster: cannot come from our code, but may be made.
    let key = NodeKey::generate().unwrap();
    let other = strayed(&ca, cluster(9), &worker(2), &key);
    let other = text(&ca.bundle(), &[other], NOW);
    check(&other, &format!("belongs to cluster {}, not to {}", cluster(9), cluster(1)));
    // A leaf does not make another leaf.
    let middle = NodeKey::generate().unwrap();
    let request = middle.signing_request("x").unwrap();
    let issued = ca.issue(&request, &manager(2), LIFETIME, NOW).unwrap().chain[0].clone();
    let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(issued.clone()), middle).unwrap();
    let mut params = leaf_params(cluster(1), &manager(3)).unwrap();
    params.not_before = to_x509(NOW);
    let forged = params.signed_by(&key, &issuer).unwrap().der().to_vec();
    check(&text(&ca.bundle(), &[forged, issued], NOW), "cannot be verified");
}

#[test]
fn rotation_is_followed_both_ways() {
    let old = authority(1);
    let key = NodeKey::generate().unwrap();
    let before = issue(&old, &key, &worker(2), NOW);
    let new = old.rotate(NOW).unwrap();
    let after = issue(&new, &key, &manager(3), NOW);
    assert_ne!(old.issuer_hash(), new.issuer_hash());
    assert!(new.is_rotating() && matches!(new.rotate(NOW), Err(AuthorityError::Rotating)));
    // Those who know the old one alone, the new one alone, or both.
    let done = new.finish_rotation().unwrap();
    assert!(!done.is_rotating());
    for (bundle, who, issuer) in [
        (old.bundle(), &before, Some(&old)),
        (old.bundle(), &after, Some(&new)),
        (new.bundle(), &before, Some(&old)),
        (new.bundle(), &after, Some(&new)),
        (done.bundle(), &before, None),
        (done.bundle(), &after, Some(&new)),
    ] {
        let peer = verify(&bundle, &who.chain, NOW);
        match issuer {
            Some(issuer) => assert_eq!(peer.unwrap().issuer_hash, issuer.issuer_hash()),
            None => assert!(matches!(peer, Err(PeerError::Foreign { .. })), "{peer:?}"),
        }
    }
    // A leaf without its chain: the bundle has the way.
    assert!(verify(&new.bundle(), &before.chain[..1], NOW).is_ok());
    let again = done.rotate(NOW).unwrap().finish_rotation().unwrap();
    assert!(verify(&again.bundle(), &after.chain, NOW).is_err());
}

#[test]
fn authorities_are_read_back() {
    let ca = authority(1).rotate(NOW).unwrap();
    let kept = ca.to_state();
    assert_eq!(kept.certificates.len(), 3);
    let again = Authority::from_state(&kept).unwrap();
    assert_eq!(again.bundle(), ca.bundle());
    assert_eq!(again.fingerprint(), sha256(&kept.certificates[0]));
    let key = NodeKey::generate().unwrap();
    let issued = issue(&again, &key, &worker(2), NOW);
    assert!(verify(&ca.bundle(), &issued.chain, NOW).is_ok());
    let error = |certificates: Vec<Vec<u8>>, key: &[u8]| {
        Authority::from_parts(certificates, key).err().unwrap()
    };
    let key = kept.key.expose();
    let all = &kept.certificates;
    let other = NodeKey::generate().unwrap();
    assert!(matches!(error(all.clone(), other.pkcs8()), AuthorityError::Mismatch));
    assert!(matches!(error(all[1..].to_vec(), key), AuthorityError::Mismatch));
    // The cross-signed one is for the right key, but does not issue.
    assert!(matches!(error(vec![all[2].clone(), all[1].clone()], key), AuthorityError::Mismatch));
    let empty = AuthorityError::Certificates(BundleError::Empty);
    assert_eq!(error(vec![], key).to_string(), empty.to_string());
    assert!(matches!(error(all.clone(), b"x"), AuthorityError::Key(KeyError::Shape)));
    let bundle = |certificates: &[Vec<u8>]| Bundle::new(certificates).unwrap_err();
    assert_eq!(bundle(&all[2..]), BundleError::Empty);
    assert_eq!(bundle(&vec![all[0].clone(); 9]), BundleError::TooMany { found: 9, max: 8 });
    assert!(matches!(bundle(&issued.chain), BundleError::Shape { at: 1, .. }));
    let foreign = authority(2).to_state().certificates.remove(0);
    assert!(matches!(bundle(&[all[0].clone(), foreign]), BundleError::Cluster { at: 2, .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damaged_certificates_never_panic_and_never_pass(
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
        which in 0..3usize,
        cut in any::<prop::sample::Index>(),
    ) {
        let ca = authority(1);
        let key = NodeKey::generate().unwrap();
        let request = key.signing_request("node").unwrap();
        let chain = ca.issue(&request, &worker(2), LIFETIME, NOW).unwrap().chain;
        let mut bytes = [chain[0].clone(), chain[1].clone(), request][which].clone();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
            match which {
                0 => {
                    let chain = [bytes.to_vec(), chain[1].clone()];
                    prop_assert!(verify(&ca.bundle(), &chain, NOW).is_err());
                }
                // A changed authority may be read, but what it was before does not verify.
                1 => {
                    let _ = Bundle::new(&[bytes]).map(|bundle| verify(&bundle, &chain, NOW));
                    // It is not needed either: the bundle has it.
                    let chain = [chain[0].clone(), bytes.to_vec()];
                    prop_assert!(verify(&ca.bundle(), &chain, NOW).is_ok());
                }
                // What is not signed may be written in other ways; the key is the one that signed.
                _ => if let Ok(issued) = ca.issue(bytes, &worker(2), LIFETIME, NOW) {
                    prop_assert_eq!(issued.key_hash, key.key_hash());
                },
            }
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Fields::parse(&bytes).is_err());
        prop_assert!(requested_key(&bytes).is_err());
        prop_assert!(NodeKey::from_pkcs8(&bytes).is_err());
        prop_assert!(Bundle::new(&[bytes]).is_err());
    }
}
