//! What Warren reads from a certificate: names, validity, public key.
//!
//! Total: any bytes give fields or a reason, never a panic. Nothing here says
//! that a certificate is to be trusted; that is `bundle`.

use warren_model::Time;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};
use x509_parser::time::ASN1Time;

use crate::key::{Hash, sha256};

/// Ours have about 500 bytes; a larger one is not ours and not worth parsing.
pub(crate) const CERTIFICATE_LEN_MAX: usize = 4096;
/// 9999-12-31T23:59:59Z: the last moment that X.509 can write.
const SECONDS_MAX: u64 = 253_402_300_799;

/// Fields of one certificate.
pub(crate) struct Fields {
    pub(crate) common_name: String,
    pub(crate) organization: String,
    /// Of a leaf its role, of an authority the mark of its key.
    pub(crate) unit: String,
    pub(crate) not_before: Time,
    pub(crate) not_after: Time,
    pub(crate) key_hash: Hash,
    pub(crate) is_ca: bool,
    /// Signed by the key of its own subject, as far as the names tell.
    pub(crate) self_issued: bool,
}

impl Fields {
    /// # Errors
    /// What is wrong with the certificate, to be put after a colon.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, String> {
        if der.len() > CERTIFICATE_LEN_MAX {
            return Err(format!("{} bytes, at most {CERTIFICATE_LEN_MAX} are read", der.len()));
        }
        let (rest, parsed) =
            X509Certificate::from_der(der).map_err(|_| "not an X.509 certificate".to_owned())?;
        if !rest.is_empty() {
            return Err("bytes follow the certificate".to_owned());
        }
        let subject = parsed.subject();
        let validity = parsed.validity();
        Ok(Self {
            common_name: only(subject, X509Name::iter_common_name, "common name")?,
            organization: only(subject, X509Name::iter_organization, "organization")?,
            unit: only(subject, X509Name::iter_organizational_unit, "organizational unit")?,
            not_before: time(validity.not_before),
            not_after: time(validity.not_after),
            key_hash: sha256(parsed.public_key().raw),
            is_ca: parsed.is_ca(),
            self_issued: subject.as_raw() == parsed.issuer().as_raw(),
        })
    }
}

/// The one value of an attribute; two would let two readers see two names.
fn only<'a, I>(
    name: &'a X509Name<'a>,
    values: impl Fn(&'a X509Name<'a>) -> I,
    what: &str,
) -> Result<String, String>
where
    I: Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
{
    let mut values = values(name);
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(format!("its subject needs one {what}"));
    };
    value.as_str().map(str::to_owned).map_err(|_| format!("its {what} is not text"))
}

fn time(time: ASN1Time) -> Time {
    Time(u64::try_from(time.timestamp()).map_or(0, |seconds| seconds.saturating_mul(1000)))
}

/// As X.509 writes it: whole seconds.
pub(crate) fn to_x509(time: Time) -> time::OffsetDateTime {
    let seconds = i64::try_from((time.0 / 1000).min(SECONDS_MAX)).unwrap_or(0);
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// The moment that comes back when a certificate with this time is read.
pub(crate) fn whole_seconds(time: Time) -> Time {
    Time((time.0 / 1000).min(SECONDS_MAX) * 1000)
}
