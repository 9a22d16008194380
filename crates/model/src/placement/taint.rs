//! Taints keep tasks off a node, except those of services that tolerate them.

use std::fmt;
use std::str::FromStr;

/// `gpu=yes:no-schedule`, on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taint {
    pub key: String,
    /// Empty: none.
    pub value: String,
    pub effect: TaintEffect,
}

/// What becomes of tasks of services that do not tolerate a taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaintEffect {
    /// New ones are not placed there.
    NoSchedule,
    /// New ones are placed there only if no other node fits.
    PreferNoSchedule,
    /// New ones are not placed there, and those that are move away.
    NoExecute,
}

/// Taints that do not matter to a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toleration {
    /// Empty: all taints.
    pub key: String,
    /// `None`: with any value.
    pub value: Option<String>,
    /// `None`: of any effect.
    pub effect: Option<TaintEffect>,
}

/// Why a text is no taint or toleration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaintError {
    #[error("{text:?} has no key; write KEY[=VALUE][:EFFECT], e.g. gpu=yes:no-schedule")]
    NoKey { text: String },
    #[error("{text:?} has a key or value of other than letters, digits, '-', '_', '.' and '/', or of more than {max} characters", max = Taint::WORD_MAX)]
    Word { text: String },
    #[error("{word:?} is not an effect; write no-schedule, prefer-no-schedule or no-execute")]
    Effect { word: String },
    #[error("{count} taints are more than {max}", max = Taint::COUNT_MAX)]
    TooMany { count: usize },
    #[error("{taint} is there twice")]
    Twice { taint: Taint },
}

impl Taint {
    /// Characters of a key or value.
    pub const WORD_MAX: usize = 253;
    /// On one node.
    pub const COUNT_MAX: usize = 32;

    pub fn text_len(&self) -> usize {
        self.key.len() + self.value.len() + 1
    }
}

impl TaintEffect {
    pub const ALL: [Self; 3] = [Self::NoSchedule, Self::PreferNoSchedule, Self::NoExecute];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "no-schedule",
            Self::PreferNoSchedule => "prefer-no-schedule",
            Self::NoExecute => "no-execute",
        }
    }
}

impl FromStr for TaintEffect {
    type Err = TaintError;

    /// Kubernetes' spelling is taken as well: `NoSchedule`.
    fn from_str(text: &str) -> Result<Self, TaintError> {
        let plain = |text: &str| text.replace('-', "").to_ascii_lowercase();
        let effect = Self::ALL.into_iter().find(|effect| plain(effect.as_str()) == plain(text));
        effect.ok_or_else(|| TaintError::Effect { word: text.to_owned() })
    }
}

impl Toleration {
    /// Whether a taint does not matter.
    pub fn covers(&self, taint: &Taint) -> bool {
        (self.key.is_empty() || self.key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
            && self.effect.is_none_or(|effect| effect == taint.effect)
    }

    pub fn text_len(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, String::len) + 1
    }
}

struct Parts<'a> {
    key: &'a str,
    value: Option<&'a str>,
    effect: Option<TaintEffect>,
}

fn parts(text: &str) -> Result<Parts<'_>, TaintError> {
    let (rest, effect) = match text.rsplit_once(':') {
        Some((rest, word)) => (rest, Some(word.parse()?)),
        None => (text, None),
    };
    let (key, value) = match rest.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (rest, None),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./*".contains(c);
    let good = |word: &str| word.len() <= Taint::WORD_MAX && word.chars().all(allowed);
    if key.is_empty() {
        return Err(TaintError::NoKey { text: text.to_owned() });
    }
    if !good(key) || !value.is_none_or(good) || key.contains('*') && key != "*" {
        return Err(TaintError::Word { text: text.to_owned() });
    }
    Ok(Parts { key, value, effect })
}

/// Without an effect: no-schedule.
impl FromStr for Taint {
    type Err = TaintError;

    fn from_str(text: &str) -> Result<Self, TaintError> {
        let Parts { key, value, effect } = parts(text)?;
        if key == "*" {
            return Err(TaintError::Word { text: text.to_owned() });
        }
        let value = value.unwrap_or_default().to_owned();
        let effect = effect.unwrap_or(TaintEffect::NoSchedule);
        Ok(Self { key: key.to_owned(), value, effect })
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, effect } = self;
        let equals = if value.is_empty() { "" } else { "=" };
        write!(f, "{key}{equals}{value}:{}", effect.as_str())
    }
}

/// `*` stands for all taints.
impl FromStr for Toleration {
    type Err = TaintError;

    fn from_str(text: &str) -> Result<Self, TaintError> {
        let Parts { key, value, effect } = parts(text)?;
        let key = if key == "*" { "" } else { key };
        Ok(Self { key: key.to_owned(), value: value.map(str::to_owned), effect })
    }
}

impl fmt::Display for Toleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.key.is_empty() { "*" } else { &self.key })?;
        if let Some(value) = &self.value {
            write!(f, "={value}")?;
        }
        self.effect.map_or(Ok(()), |effect| write!(f, ":{}", effect.as_str()))
    }
}

/// Rules of one node's taints together.
///
/// # Errors
/// [`TaintError`] for too many, or two of one key and effect.
pub fn check_taints(taints: &[Taint]) -> Result<(), TaintError> {
    let count = taints.len();
    if count > Taint::COUNT_MAX {
        return Err(TaintError::TooMany { count });
    }
    for (at, taint) in taints.iter().enumerate() {
        let same = |other: &Taint| other.key == taint.key && other.effect == taint.effect;
        if taints[..at].iter().any(same) {
            return Err(TaintError::Twice { taint: taint.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(taint: &str, toleration: &str, expected: &str) {
        let got = match (taint.parse::<Taint>(), toleration.parse::<Toleration>()) {
            (Err(error), _) | (_, Err(error)) => error.to_string(),
            (Ok(taint), Ok(toleration)) => {
                assert_eq!(taint.to_string().parse(), Ok(taint.clone()));
                assert_eq!(toleration.to_string().parse(), Ok(toleration.clone()));
                toleration.covers(&taint).to_string()
            }
        };
        assert!(got.starts_with(expected), "{taint} {toleration}: {got}");
    }

    #[test]
    fn tolerations() {
        check("gpu", "gpu", "true");
        check("gpu=a", "gpu", "true");
        check("gpu=a", "gpu=b", "false");
        check("gpu=a:no-execute", "gpu:no-schedule", "false");
        check("gpu=a:NoExecute", "gpu=a:no-execute", "true");
        check("gpu=a", "*", "true");
        check("gpu=a", "*:no-execute", "false");
        check("gpu", "disk", "false");
        check("gpu:never", "gpu", "\"never\" is not an effect; write no-schedule,");
        check("=a", "gpu", "\"=a\" has no key");
        check("g u", "gpu", "\"g u\" has a key or value");
        check("*", "gpu", "\"*\" has a key or value");
        check("gpu", "g*", "\"g*\" has a key or value");
    }

    #[test]
    fn one_of_each_kind() {
        let parse = |text: &str| text.parse::<Taint>().unwrap();
        let taints = [parse("a=1"), parse("a=2:no-execute"), parse("a=3")];
        assert_eq!(check_taints(&taints[..2]), Ok(()));
        assert_eq!(check_taints(&taints), Err(TaintError::Twice { taint: parse("a=3") }));
        let many: Vec<Taint> = (0..33).map(|n| parse(&format!("k{n}"))).collect();
        assert_eq!(check_taints(&many), Err(TaintError::TooMany { count: 33 }));
    }
}
