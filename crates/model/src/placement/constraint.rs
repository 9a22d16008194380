//! What must hold of a node: `node.labels.disk==ssd`.
//!
//! Swarm's syntax, and more: `ATTRIBUTE OPERATOR VALUE`, where the operator is
//! `==`, `!=`, `=~` (a pattern with `*` and `?` over the whole value), `in`
//! (one of `a,b,c`), `<` or `>` (numbers). Letters are compared without case,
//! as Swarm does. A node without a label fails everything but `!=`.
//!
//! Patterns, not regular expressions: they cost a bounded number of steps, need
//! no engine, and mean the same in every version. The grammar only ever grows,
//! since constraints are kept as text in logs and snapshots.

use std::fmt;
use std::str::FromStr;

use crate::node::Node;

/// Bytes of one constraint.
const TEXT_MAX: usize = 512;
/// Values of one `in`.
const VALUES_MAX: usize = 64;
/// What nodes run on.
const OS: &str = "linux";

/// Something of a node that has a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attribute {
    Id,
    Hostname,
    /// `manager`, also of one that runs containers as well, or `worker`.
    Role,
    Os,
    /// As the kernel says it, or as images do: `x86_64` is `amd64`.
    Arch,
    /// Set by people.
    Label(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    attribute: Attribute,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Is(String),
    IsNot(String),
    Like(String),
    In(Vec<String>),
    Less(Number),
    More(Number),
}

/// A decimal number as it was written, and in millionths.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Number {
    text: String,
    micros: i128,
}

/// Why a text is no constraint; says what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    #[error("{len} bytes are more than {TEXT_MAX}")]
    TooLong { len: usize },
    #[error(
        "{text:?} has no operator; write ATTRIBUTE and ==, !=, =~, in, < or >, e.g. node.labels.disk==ssd"
    )]
    Operator { text: String },
    #[error(
        "{name:?} is not an attribute of nodes; there are node.id, node.hostname, node.role, node.platform.os, node.platform.arch and node.labels.NAME"
    )]
    Attribute { name: String },
    #[error("{text:?} compares with nothing; write a value after {operator}")]
    NoValue { text: String, operator: &'static str },
    #[error("{value:?} is not a role; node.role is manager or worker")]
    Role { value: String },
    #[error("{value:?} is not a number; < and > compare numbers such as 16 or 0.5")]
    Number { value: String },
    #[error("{count} values are more than {VALUES_MAX}")]
    Values { count: usize },
}

impl Attribute {
    /// Calls `test` with each spelling of the value until one is right; not at all without a
    /// value.
    fn any(&self, node: &Node, mut test: impl FnMut(&str) -> bool) -> bool {
        match self {
            Self::Id => test(&node.id.to_string()),
            Self::Hostname => test(&node.description.hostname),
            Self::Role => test(if node.manager { "manager" } else { "worker" }),
            Self::Os => test(OS),
            Self::Arch => {
                let arch = node.description.architecture.as_str();
                test(arch) || image_arch(arch).is_some_and(test)
            }
            Self::Label(name) => node.labels.get(name).is_some_and(|value| test(value)),
        }
    }

    /// The value of a node, as it says it itself; empty without one.
    pub fn value(&self, node: &Node) -> String {
        let mut found = String::new();
        self.any(node, |value| {
            value.clone_into(&mut found);
            true
        });
        found
    }

    pub(super) fn text_len(&self) -> usize {
        match self {
            Self::Label(name) => "node.labels.".len() + name.len(),
            Self::Id | Self::Hostname | Self::Role | Self::Os | Self::Arch => {
                "node.platform.arch".len()
            }
        }
    }
}

/// How images call what a kernel calls otherwise.
pub(crate) fn image_arch(kernel: &str) -> Option<&'static str> {
    match kernel {
        "x86_64" => Some("amd64"),
        "aarch64" => Some("arm64"),
        "armv7l" => Some("arm"),
        "i686" => Some("386"),
        _ => None,
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id => f.pad("node.id"),
            Self::Hostname => f.pad("node.hostname"),
            Self::Role => f.pad("node.role"),
            Self::Os => f.pad("node.platform.os"),
            Self::Arch => f.pad("node.platform.arch"),
            Self::Label(name) => write!(f, "node.labels.{name}"),
        }
    }
}

impl FromStr for Attribute {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        Ok(match text {
            "node.id" => Self::Id,
            "node.hostname" => Self::Hostname,
            "node.role" => Self::Role,
            "node.platform.os" => Self::Os,
            "node.platform.arch" => Self::Arch,
            _ => match text.strip_prefix("node.labels.") {
                Some(name) if !name.is_empty() && !name.contains(ends_attribute) => {
                    Self::Label(name.to_owned())
                }
                Some(_) | None => return Err(ConstraintError::Attribute { name: text.to_owned() }),
            },
        })
    }
}

fn ends_attribute(c: char) -> bool {
    c.is_whitespace() || "=!<>".contains(c)
}

impl Constraint {
    /// Whether it holds of a node.
    pub fn holds(&self, node: &Node) -> bool {
        let same = |value: &str, wanted: &str| value.eq_ignore_ascii_case(wanted);
        let attribute = &self.attribute;
        match &self.test {
            Test::Is(wanted) => attribute.any(node, |value| same(value, wanted)),
            Test::IsNot(unwanted) => !attribute.any(node, |value| same(value, unwanted)),
            Test::Like(pattern) => attribute.any(node, |value| is_like(value, pattern)),
            Test::In(all) => {
                attribute.any(node, |value| all.iter().any(|wanted| same(value, wanted)))
            }
            Test::Less(bound) => {
                attribute.any(node, |value| micros(value).is_some_and(|v| v < bound.micros))
            }
            Test::More(bound) => {
                attribute.any(node, |value| micros(value).is_some_and(|v| v > bound.micros))
            }
        }
    }

    pub fn attribute(&self) -> &Attribute {
        &self.attribute
    }

    /// A value that would make it hold, if the constraint names one.
    pub fn wanted(&self) -> Option<&str> {
        match &self.test {
            Test::Is(wanted) => Some(wanted),
            Test::In(all) => all.first().map(String::as_str),
            Test::IsNot(_) | Test::Like(_) | Test::Less(_) | Test::More(_) => None,
        }
    }

    pub(super) fn text_len(&self) -> usize {
        let values = match &self.test {
            Test::Is(value) | Test::IsNot(value) | Test::Like(value) => value.len(),
            Test::In(values) => values.iter().map(|value| value.len() + 1).sum(),
            Test::Less(number) | Test::More(number) => number.text.len(),
        };
        self.attribute.text_len() + values + 4
    }
}

/// As it is written: what is parsed from this is the same.
impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attribute = &self.attribute;
        match &self.test {
            Test::Is(value) => write!(f, "{attribute}=={value}"),
            Test::IsNot(value) => write!(f, "{attribute}!={value}"),
            Test::Like(pattern) => write!(f, "{attribute}=~{pattern}"),
            Test::In(values) => write!(f, "{attribute} in {}", values.join(",")),
            Test::Less(number) => write!(f, "{attribute}<{}", number.text),
            Test::More(number) => write!(f, "{attribute}>{}", number.text),
        }
    }
}

impl FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        if text.len() > TEXT_MAX {
            return Err(ConstraintError::TooLong { len: text.len() });
        }
        let no_operator = || ConstraintError::Operator { text: text.to_owned() };
        let trimmed = text.trim();
        let end = trimmed.find(ends_attribute).ok_or_else(no_operator)?;
        let (name, rest) = trimmed.split_at(end);
        let rest = rest.trim_start();
        let operators = ["==", "!=", "=~", "<", ">", "in"];
        let operator = operators.into_iter().find(|operator| rest.starts_with(operator));
        let operator = operator.ok_or_else(no_operator)?;
        let value = &rest[operator.len()..];
        if operator == "in" && !value.starts_with(|c: char| c.is_whitespace() || c == '(') {
            return Err(no_operator());
        }
        let attribute: Attribute = name.parse()?;
        let value = value.trim();
        if value.is_empty() || value.starts_with('=') {
            return Err(ConstraintError::NoValue { text: text.to_owned(), operator });
        }
        let test = match operator {
            "==" => Test::Is(value.to_owned()),
            "!=" => Test::IsNot(value.to_owned()),
            "=~" => Test::Like(value.to_owned()),
            "<" => Test::Less(number(value)?),
            ">" => Test::More(number(value)?),
            _ => Test::In(list(value, text)?),
        };
        check_role(&attribute, &test)?;
        Ok(Self { attribute, test })
    }
}

/// `a,b` or `(a, b)`.
fn list(value: &str, text: &str) -> Result<Vec<String>, ConstraintError> {
    let inner = value.strip_prefix('(').and_then(|inner| inner.strip_suffix(')'));
    let values = inner.unwrap_or(value).split(',').map(str::trim).filter(|v| !v.is_empty());
    let values: Vec<String> = values.map(str::to_owned).collect();
    match values.len() {
        0 => Err(ConstraintError::NoValue { text: text.to_owned(), operator: "in" }),
        count if count > VALUES_MAX => Err(ConstraintError::Values { count }),
        _ => Ok(values),
    }
}

/// A role that does not exist would hold of no node, ever: a slip of the pen.
fn check_role(attribute: &Attribute, test: &Test) -> Result<(), ConstraintError> {
    let is_role = |value: &str| ["manager", "worker"].iter().any(|r| value.eq_ignore_ascii_case(r));
    let values = match (attribute, test) {
        (Attribute::Role, Test::Is(value) | Test::IsNot(value)) => std::slice::from_ref(value),
        (Attribute::Role, Test::In(values)) => values,
        _ => &[],
    };
    match values.iter().find(|value| !is_role(value)) {
        Some(value) => Err(ConstraintError::Role { value: value.clone() }),
        None => Ok(()),
    }
}

fn number(value: &str) -> Result<Number, ConstraintError> {
    let micros = micros(value);
    let micros = micros.ok_or_else(|| ConstraintError::Number { value: value.to_owned() })?;
    Ok(Number { text: value.to_owned(), micros })
}

/// Millionths of a decimal number, without rounding: the same on every machine.
fn micros(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |part: &str, max: usize| {
        (1..=max).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit())
    };
    if !plain(whole, 18) || !plain(fraction, 6) {
        return None;
    }
    let fraction: i128 = format!("{fraction:0<6}").parse().ok()?;
    let micros = whole.parse::<i128>().ok()? * 1_000_000 + fraction;
    Some(if negative { -micros } else { micros })
}

/// Whether a pattern covers a whole value: `*` is anything, `?` one character. Steps are at most
/// the product of both lengths.
fn is_like(value: &str, pattern: &str) -> bool {
    let (value, pattern): (Vec<char>, Vec<char>) =
        (value.chars().collect(), pattern.chars().collect());
    let (mut v, mut p) = (0, 0);
    // Where the last `*` was, and up to where of the value it reaches.
    let mut star: Option<(usize, usize)> = None;
    while v < value.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, v));
                p += 1;
            }
            Some(c) if *c == '?' || c.eq_ignore_ascii_case(&value[v]) => (v, p) = (v + 1, p + 1),
            Some(_) | None => match star {
                Some((at, reach)) => {
                    star = Some((at, reach + 1));
                    (v, p) = (reach + 1, at + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;
    use crate::node::Description;

    fn node() -> Node {
        let description = Description {
            hostname: "Worker-12".into(),
            architecture: "x86_64".into(),
            ..Description::default()
        };
        let mut node = Node::new(NodeId::from_bytes([7; 10]), description);
        for (key, value) in [("disk", "ssd"), ("cores", "16"), ("empty", ""), ("a.b/c", "x y")] {
            node.labels.insert(key.into(), value.into());
        }
        node
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match text.parse::<Constraint>() {
            Err(error) => error.to_string(),
            Ok(constraint) => {
                let again: Constraint = constraint.to_string().parse().unwrap();
                assert_eq!(again, constraint, "{text} is not written as it is read");
                assert!(constraint.to_string().len() <= constraint.text_len(), "{text}");
                constraint.holds(&node()).to_string()
            }
        };
        assert!(got.starts_with(expected), "{text}: {got}");
    }

    #[test]
    fn swarm_writes_them_so() {
        check("node.labels.disk==ssd", "true");
        check("node.labels.disk == SSD", "true");
        check("node.labels.disk!=ssd", "false");
        check("node.labels.none != x", "true");
        check("node.labels.none==x", "false");
        check("node.role==worker", "true");
        check("node.role != manager", "true");
        check("node.hostname == worker-12", "true");
        check("node.platform.os==linux", "true");
        check("node.platform.arch==x86_64", "true");
        check("node.platform.arch == amd64", "true");
        check("node.platform.arch!=amd64", "false");
        check("node.labels.a.b/c==x y", "true");
        check(&format!("node.id=={}", NodeId::from_bytes([7; 10])), "true");
    }

    #[test]
    fn patterns_lists_and_numbers() {
        check("node.hostname=~worker-*", "true");
        check("node.hostname =~ *-1?", "true");
        check("node.hostname=~worker", "false");
        check("node.hostname=~*w*r*2*", "true");
        check("node.hostname=~?", "false");
        check("node.labels.empty=~*", "true");
        check("node.labels.none=~*", "false");
        check("node.labels.disk in hdd,ssd", "true");
        check("node.labels.disk in (hdd, nvme)", "false");
        check("node.labels.disk in(ssd)", "true");
        check("node.labels.cores>8", "true");
        check("node.labels.cores < 16", "false");
        check("node.labels.cores>15.999999", "true");
        check("node.labels.cores>-1", "true");
        check("node.labels.disk<5", "false");
    }

    #[test]
    fn what_is_wrong() {
        check("node.labels.disk", "\"node.labels.disk\" has no operator; write ATTRIBUTE and ==");
        check("node.labels.disk=ssd", "\"node.labels.disk=ssd\" has no operator");
        check("node.labels.disk inside x", "\"node.labels.disk inside x\" has no operator");
        check("node.zone==a", "\"node.zone\" is not an attribute of nodes; there are node.id,");
        check("engine.labels.x==a", "\"engine.labels.x\" is not an attribute of nodes");
        check("node.labels.==a", "\"node.labels.\" is not an attribute of nodes");
        check("==a", "\"\" is not an attribute of nodes");
        check("node.role==", "\"node.role==\" compares with nothing; write a value after ==");
        check("node.role===worker", "\"node.role===worker\" compares with nothing");
        check("node.role==boss", "\"boss\" is not a role; node.role is manager or worker");
        check("node.role in worker,x", "\"x\" is not a role");
        check("node.labels.c<big", "\"big\" is not a number; < and > compare numbers");
        check("node.labels.c<1e3", "\"1e3\" is not a number");
        check("node.labels.c in ,", "\"node.labels.c in ,\" compares with nothing");
        check(&format!("node.id in {}", "a,".repeat(65)), "65 values are more than 64");
        check(&format!("node.id=={}", "a".repeat(512)), "521 bytes are more than 512");
    }

    #[test]
    fn patterns_take_bounded_time() {
        let value = "a".repeat(5_000);
        assert!(!is_like(&value, &("*a".repeat(250) + "b")));
    }
}
