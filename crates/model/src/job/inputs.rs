//! What a job takes from whoever begins a run of it: parameters and a payload.
//!
//! Containers find a parameter as the variable `WARREN_PARAM_<NAME>`, and the payload as the file
//! [`Inputs::PAYLOAD_FILE`], never as an argument: arguments show in every list of processes.

use std::collections::{BTreeMap, BTreeSet};

use crate::service::{SpecError, wrong};

/// What a job declares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inputs {
    /// By name, with what they are if nothing is said; none: something must be said.
    pub params: BTreeMap<String, Option<String>>,
    pub payload: PayloadRule,
}

/// Whether a run may have a payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PayloadRule {
    #[default]
    Forbidden,
    Optional,
    Required,
}

impl PayloadRule {
    const ALL: [Self; 3] = [Self::Forbidden, Self::Optional, Self::Required];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forbidden => "forbidden",
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

impl std::str::FromStr for PayloadRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|rule| rule.as_str() == text);
        found.ok_or_else(|| format!("{text:?} is not one of optional, required, forbidden"))
    }
}

impl Inputs {
    /// Of one job: what takes more takes a file.
    pub const PARAMS_MAX: usize = 32;
    /// Bytes of a name.
    pub const NAME_MAX: usize = 64;
    /// Bytes of a value.
    pub const VALUE_MAX: usize = 1024;
    /// Bytes of all names and values of a run: a job keeps them with up to 66 runs in one record.
    pub const PARAMS_BYTES_MAX: usize = 4096;
    /// Bytes. A run keeps it while it goes on, and 16 runs of a job may.
    pub const PAYLOAD_MAX: usize = 16 << 10;
    /// Where a container finds the payload.
    pub const PAYLOAD_FILE: &str = "/run/warren/payload";
    /// The variable that says so.
    pub const PAYLOAD_VARIABLE: &str = "WARREN_PAYLOAD";

    /// Whether it takes anything: then runs begin when somebody says so, not with the service.
    pub fn is_any(&self) -> bool {
        !self.params.is_empty() || self.payload != PayloadRule::Forbidden
    }

    /// The variable that a parameter is in.
    pub fn variable(name: &str) -> String {
        format!("WARREN_PARAM_{}", name.to_ascii_uppercase())
    }

    /// What must be said, in words for people; none: a run may begin without a word.
    pub fn required(&self) -> Option<String> {
        let names = self.params.iter().filter(|(_, default)| default.is_none());
        let names: Vec<&str> = names.map(|(name, _)| name.as_str()).collect();
        let params = match names.as_slice() {
            [] => None,
            [one] => Some(format!("parameter {one}")),
            several => Some(format!("parameters {}", several.join(", "))),
        };
        let payload = (self.payload == PayloadRule::Required).then(|| "a payload".to_owned());
        match (params, payload) {
            (Some(params), Some(payload)) => Some(format!("{params} and {payload}")),
            (params, payload) => params.or(payload),
        }
    }

    /// The parameters of a run that is given these: what was left out is by default.
    pub fn filled(&self, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let defaults = self.params.iter();
        let defaults = defaults.filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        let mut all: BTreeMap<String, String> = defaults.collect();
        all.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
        all
    }

    pub(crate) fn text_len(&self) -> usize {
        let pairs = self.params.iter();
        pairs.map(|(name, value)| name.len() + value.as_ref().map_or(0, String::len)).sum()
    }

    /// # Errors
    /// [`SpecError`]: the first declaration that makes no sense.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.params.len() > Self::PARAMS_MAX {
            let problem = format!("is more than {}", Self::PARAMS_MAX);
            return Err(wrong("param", format!("{} of them", self.params.len()), problem));
        }
        let mut variables = BTreeSet::new();
        for (name, value) in &self.params {
            check_name(name)?;
            if !variables.insert(Self::variable(name)) {
                let problem = "is the variable of another one, too: case makes no difference";
                return Err(wrong("param", name, problem));
            }
            value.as_ref().map_or(Ok(()), |value| check_value(name, value))?;
        }
        self.check_total(&self.filled(&BTreeMap::new()))
    }

    fn check_total(&self, params: &BTreeMap<String, String>) -> Result<(), SpecError> {
        let bytes = params.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if bytes > Self::PARAMS_BYTES_MAX {
            let problem = format!(
                "is more than {} for all names and values together",
                Self::PARAMS_BYTES_MAX
            );
            return Err(wrong("param", format!("{bytes} bytes"), problem));
        }
        Ok(())
    }

    /// Whether a run may begin with these.
    ///
    /// # Errors
    /// [`SpecError`]: the first that is unknown, missing or too long, and what is allowed.
    pub fn check(
        &self,
        given: &BTreeMap<String, String>,
        payload: Option<usize>,
    ) -> Result<(), SpecError> {
        for (name, value) in given {
            if !self.params.contains_key(name) {
                return Err(wrong("param", name, format!("is unknown; {}", self.known())));
            }
            check_value(name, value)?;
        }
        let missing = self
            .params
            .iter()
            .find(|(name, default)| default.is_none() && !given.contains_key(name.as_str()));
        if let Some((name, _)) = missing {
            return Err(wrong("param", name, format!("is missing; {}", self.known())));
        }
        self.check_total(&self.filled(given))?;
        match (self.payload, payload) {
            (PayloadRule::Forbidden, Some(bytes)) => {
                let problem = "is more than the job takes: its rule for payloads is forbidden";
                Err(wrong("payload", format!("{bytes} bytes"), problem))
            }
            (PayloadRule::Required, None) => {
                let problem = "is not enough: its rule for payloads is required";
                Err(wrong("payload", "", problem))
            }
            (_, Some(bytes)) if bytes > Self::PAYLOAD_MAX => {
                let problem = format!("is more than {} bytes", Self::PAYLOAD_MAX);
                Err(wrong("payload", format!("{bytes} bytes"), problem))
            }
            (_, Some(_) | None) => Ok(()),
        }
    }

    /// `allowed are A (required), B`.
    fn known(&self) -> String {
        let word = |(name, default): (&String, &Option<String>)| match default {
            None => format!("{name} (required)"),
            Some(_) => name.clone(),
        };
        let words: Vec<String> = self.params.iter().map(word).collect();
        match words.as_slice() {
            [] => "the job takes none".to_owned(),
            words => format!("allowed are {}", words.join(", ")),
        }
    }
}

fn check_name(name: &str) -> Result<(), SpecError> {
    let fits = name.len() <= Inputs::NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if fits {
        return Ok(());
    }
    let problem = format!(
        "is not a name: a letter, then letters, digits and '_', at most {} bytes",
        Inputs::NAME_MAX
    );
    Err(wrong("param", name, problem))
}

fn check_value(name: &str, value: &str) -> Result<(), SpecError> {
    if value.len() > Inputs::VALUE_MAX {
        let problem = format!(
            "has a value of {} bytes, at most {} are allowed",
            value.len(),
            Inputs::VALUE_MAX
        );
        return Err(wrong("param", name, problem));
    }
    if value.contains('\0') {
        return Err(wrong("param", name, "has a value with a zero byte"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(params: &str, payload: PayloadRule) -> Inputs {
        let pair = |word: &str| match word.split_once('=') {
            None => (word.to_owned(), None),
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        };
        Inputs { params: params.split_whitespace().map(pair).collect(), payload }
    }

    #[track_caller]
    fn declares(params: &str, expected: &str) {
        let said = inputs(params, PayloadRule::Forbidden).validate();
        assert_eq!(said.map_or_else(|error| error.to_string(), |()| "fine".to_owned()), expected);
    }

    #[test]
    fn what_may_be_declared() {
        declares("", "fine");
        declares("DAY region=eu empty=", "fine");
        let rule = "is not a name: a letter, then letters, digits and '_', at most 64 bytes";
        for name in ["1st", "_x", "a-b", "é", &"n".repeat(65)] {
            declares(name, &format!("param: {name:?} {rule}"));
        }
        declares(
            "day DAY",
            "param: \"day\" is the variable of another one, too: case makes no difference",
        );
        declares(
            &format!("a={}", "v".repeat(1025)),
            "param: \"a\" has a value of 1025 bytes, at most 1024 are allowed",
        );
        let many: Vec<String> = (0..33).map(|n| format!("p{n}")).collect();
        declares(&many.join(" "), "param: \"33 of them\" is more than 32");
        let long: Vec<String> = (0..5).map(|n| format!("p{n}={}", "v".repeat(1000))).collect();
        declares(
            &long.join(" "),
            "param: \"5010 bytes\" is more than 4096 for all names and values together",
        );
    }

    #[track_caller]
    fn takes(declared: &Inputs, given: &str, payload: Option<usize>, expected: &str) {
        let pairs = given.split_whitespace().filter_map(|word| word.split_once('='));
        let given = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let said = match declared.check(&given, payload) {
            Err(error) => error.to_string(),
            Ok(()) => format!("{:?}", declared.filled(&given)),
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn what_a_run_may_be_given() {
        let some = inputs("DAY region=eu", PayloadRule::Optional);
        takes(&some, "DAY=1", None, "{\"DAY\": \"1\", \"region\": \"eu\"}");
        takes(&some, "DAY=1 region=us", Some(7), "{\"DAY\": \"1\", \"region\": \"us\"}");
        let known = "allowed are DAY (required), region";
        takes(&some, "", None, &format!("param: \"DAY\" is missing; {known}"));
        takes(&some, "DAY=1 zone=2", None, &format!("param: \"zone\" is unknown; {known}"));
        takes(
            &some,
            "DAY=1",
            Some(Inputs::PAYLOAD_MAX + 1),
            "payload: \"16385 bytes\" is more than 16384 bytes",
        );
        takes(&some, "DAY=1", Some(Inputs::PAYLOAD_MAX), "{\"DAY\": \"1\", \"region\": \"eu\"}");
        let nothing = Inputs::default();
        takes(&nothing, "a=1", None, "param: \"a\" is unknown; the job takes none");
        takes(
            &nothing,
            "",
            Some(1),
            "payload: \"1 bytes\" is more than the job takes: its rule for payloads is forbidden",
        );
        takes(
            &inputs("", PayloadRule::Required),
            "",
            None,
            "payload: \"\" is not enough: its rule for payloads is required",
        );
    }

    #[test]
    fn what_must_be_said() {
        let said = |params: &str, payload| inputs(params, payload).required();
        assert_eq!(said("a=1", PayloadRule::Optional), None);
        assert_eq!(said("a", PayloadRule::Optional).unwrap(), "parameter a");
        assert_eq!(said("b a", PayloadRule::Required).unwrap(), "parameters a, b and a payload");
    }
}
