//! As much YAML as device specifications are written in: block mappings and sequences, plain and
//! quoted scalars, flow collections on one line.
//!
//! No anchors, tags or texts over several lines: whoever uses them gets an error that says so.
//! Numbers are whole; `0666` and `0o666` are octal, as YAML 1.1 and 1.2 have them.

use serde_json::{Map, Value};

/// Folders in folders; a specification has six.
const DEPTH_MAX: usize = 16;

#[derive(Clone, Copy)]
struct Line<'t> {
    /// From 1.
    number: usize,
    indent: usize,
    text: &'t str,
}

struct Reader<'t> {
    lines: Vec<Line<'t>>,
    at: usize,
}

/// # Errors
/// In words, with the number of the line.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut lines = Vec::new();
    for (at, whole) in text.lines().enumerate() {
        let line = without_comment(whole).trim_end();
        let text = line.trim_start_matches(' ');
        let (number, indent) = (at + 1, line.len() - text.len());
        if text.starts_with('\t') {
            return Err(format!("line {number}: is indented by a tab"));
        }
        match text {
            "" => {}
            "---" if lines.is_empty() => {}
            "---" | "..." => return Err(format!("line {number}: begins another document")),
            text => lines.push(Line { number, indent, text }),
        }
    }
    let mut reader = Reader { lines, at: 0 };
    let Some(first) = reader.peek() else { return Ok(Value::Null) };
    let value = reader.block(first.indent, 0)?;
    match reader.peek() {
        None => Ok(value),
        Some(line) => Err(format!("line {}: {:?} is not expected here", line.number, line.text)),
    }
}

/// A `#` begins one where a word could, and not within quotes.
fn without_comment(line: &str) -> &str {
    let (mut quote, mut before, mut escaped) = (None, ' ', false);
    for (at, c) in line.char_indices() {
        match quote {
            _ if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '#' && before == ' ' => return &line[..at],
            // Elsewhere it is a letter as any.
            None if matches!(c, '"' | '\'') && matches!(before, ' ' | '[' | '{' | ',') => {
                quote = Some(c);
            }
            None => {}
        }
        before = if c == '\t' { ' ' } else { c };
    }
    line
}

impl<'t> Reader<'t> {
    fn peek(&self) -> Option<Line<'t>> {
        self.lines.get(self.at).copied()
    }

    fn block(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let Some(line) = self.peek() else { return Ok(Value::Null) };
        if depth > DEPTH_MAX {
            return Err(format!("line {}: is deeper than {DEPTH_MAX}", line.number));
        }
        if is_item(line.text) {
            return self.sequence(indent, depth);
        }
        if key_of(line.text).is_some() {
            return self.mapping(indent, depth);
        }
        self.at += 1;
        scalar(line.text).map_err(|what| format!("line {}: {what}", line.number))
    }

    fn sequence(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        while let Some(line) = self.peek().filter(|line| line.indent == indent)
            && is_item(line.text)
        {
            let rest = line.text[1..].trim_start();
            if rest.is_empty() {
                self.at += 1;
                let below = self.peek().filter(|next| next.indent > indent);
                items.push(match below {
                    Some(next) => self.block(next.indent, depth + 1)?,
                    None => Value::Null,
                });
                continue;
            }
            // What stands behind the dash is a block of its own, as far in as it stands.
            let inner = indent + line.text.len() - rest.len();
            self.lines[self.at] = Line { indent: inner, text: rest, ..line };
            items.push(self.block(inner, depth + 1)?);
        }
        Ok(Value::Array(items))
    }

    fn mapping(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let mut all = Map::new();
        while let Some(line) = self.peek().filter(|line| line.indent == indent)
            && let Some((key, rest)) = key_of(line.text)
        {
            let wrong = |what: String| format!("line {}: {what}", line.number);
            let key = match scalar(key).map_err(wrong)? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            self.at += 1;
            let value = match (rest, self.peek()) {
                ("", Some(next)) if next.indent > indent => self.block(next.indent, depth + 1)?,
                ("", Some(next)) if next.indent == indent && is_item(next.text) => {
                    self.sequence(indent, depth + 1)?
                }
                ("", _) => Value::Null,
                (rest, _) => scalar(rest).map_err(wrong)?,
            };
            if all.contains_key(&key) {
                return Err(wrong(format!("{key:?} is there twice")));
            }
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

fn is_item(text: &str) -> bool {
    text == "-" || text.starts_with("- ")
}

/// `key: value`, with what is behind the colon.
fn key_of(text: &str) -> Option<(&str, &str)> {
    let from = match text.chars().next()? {
        quote @ ('"' | '\'') => 1 + text[1..].find(quote)? + 1,
        '[' | '{' => return None,
        _ => 0,
    };
    let colon = text[from..].char_indices().find(|(at, c)| {
        let behind = text[from + at + c.len_utf8()..].chars().next();
        // Behind a quoted key, as in JSON, anything may follow.
        *c == ':' && (behind.is_none_or(|next| next == ' ') || from > 0 && *at == 0)
    });
    let at = from + colon?.0;
    Some((text[..at].trim_end(), text[at + 1..].trim()))
}

fn scalar(text: &str) -> Result<Value, String> {
    let mut flow = Flow { rest: text, depth: 0 };
    let value = flow.value(false)?;
    match flow.rest.trim() {
        "" => Ok(value),
        rest => Err(format!("{rest:?} is not expected here")),
    }
}

/// Reads one line's values.
struct Flow<'t> {
    rest: &'t str,
    depth: usize,
}

impl Flow<'_> {
    fn value(&mut self, within: bool) -> Result<Value, String> {
        self.rest = self.rest.trim_start();
        match self.rest.chars().next() {
            None => Ok(Value::Null),
            Some('"') => self.double(),
            Some('\'') => self.single(),
            Some('[') => self.collection(']'),
            Some('{') => self.collection('}'),
            Some(c @ ('&' | '*' | '!' | '|' | '>' | '@' | '`' | '%')) => {
                Err(format!("{c:?} begins what is not read here: write it out, in quotes"))
            }
            Some(_) => {
                let end = |c: char| within && matches!(c, ',' | ']' | '}');
                let end = self.rest.find(end).unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at(end);
                self.rest = rest;
                plain(word.trim())
            }
        }
    }

    fn double(&mut self) -> Result<Value, String> {
        let mut escaped = false;
        let end = self.rest[1..].find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let (text, rest) = self.rest.split_at(end.ok_or("a quote is not closed")? + 2);
        self.rest = rest;
        serde_json::from_str(text).map_err(|_| format!("{text} is no quoted text"))
    }

    fn single(&mut self) -> Result<Value, String> {
        let mut text = String::new();
        let mut rest = &self.rest[1..];
        loop {
            let (part, behind) = rest.split_once('\'').ok_or("a quote is not closed")?;
            text.push_str(part);
            match behind.strip_prefix('\'') {
                Some(more) => {
                    text.push('\'');
                    rest = more;
                }
                None => {
                    self.rest = behind;
                    return Ok(Value::String(text));
                }
            }
        }
    }

    fn collection(&mut self, close: char) -> Result<Value, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("is deeper than {DEPTH_MAX}"));
        }
        self.rest = &self.rest[1..];
        let (mut items, mut all) = (Vec::new(), Map::new());
        loop {
            self.rest = self.rest.trim_start();
            if let Some(rest) = self.rest.strip_prefix(close) {
                self.rest = rest;
                self.depth -= 1;
                return Ok(if close == ']' { Value::Array(items) } else { Value::Object(all) });
            }
            if close == '}' {
                let (key, rest) = key_of(self.rest).ok_or("a key has no colon")?;
                let Value::String(key) = scalar(key)? else {
                    return Err("a key is no text".into());
                };
                self.rest = rest;
                if all.insert(key.clone(), self.value(true)?).is_some() {
                    return Err(format!("{key:?} is there twice"));
                }
            } else {
                items.push(self.value(true)?);
            }
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix(',') {
                Some(rest) => self.rest = rest,
                None if self.rest.starts_with(close) => {}
                None => return Err(format!("{close:?} is missing")),
            }
        }
    }
}

fn plain(word: &str) -> Result<Value, String> {
    let octal = |digits: &str| u64::from_str_radix(digits, 8).ok();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = match word {
        "" | "~" | "null" => return Ok(Value::Null),
        "true" => return Ok(Value::Bool(true)),
        "false" => return Ok(Value::Bool(false)),
        _ if word.strip_prefix("0o").is_some_and(digits) => octal(&word[2..]),
        _ if digits(word) && word.len() > 1 && word.starts_with('0') => octal(word),
        _ if digits(word) => word.parse().ok(),
        _ => match word.strip_prefix('-').filter(|rest| digits(rest)) {
            Some(_) => {
                let number = word.parse::<i64>().map_err(|_| format!("{word} is too small"))?;
                return Ok(number.into());
            }
            None => return Ok(Value::String(word.to_owned())),
        },
    };
    number.map(Value::from).ok_or_else(|| format!("{word} is not a number that is read here"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match parse(text) {
            Ok(value) => value.to_string(),
            Err(problem) => problem,
        };
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn what_specifications_are_written_in() {
        check("", "null");
        check("---\na: 1 # one\nb: \"x # y\"\n", r##"{"a":1,"b":"x # y"}"##);
        check("a:\n- b: 1\n  c: 'it''s'\n-   d\n", r#"{"a":[{"b":1,"c":"it's"},"d"]}"#);
        check("a:\n  - - 1\n    - 2\n  -\n    b: x\n", r#"{"a":[[1,2],{"b":"x"}]}"#);
        check(
            "a: [ro, \"b,c\", {d: 4}]\ne: {}\nf: []",
            r#"{"a":["ro","b,c",{"d":4}],"e":{},"f":[]}"#,
        );
        check("m: 0666\nn: 0o666\nk: -1\nv: 0.5.0", r#"{"k":-1,"m":438,"n":438,"v":"0.5.0"}"#);
        check("p: /dev/a:b\nu: http://x", r#"{"p":"/dev/a:b","u":"http://x"}"#);
        check("\"a b\": ~\nc: true", r#"{"a b":null,"c":true}"#);
        check("env:\n- A=b c\nname: x", r#"{"env":["A=b c"],"name":"x"}"#);
    }

    #[test]
    fn what_is_not_read() {
        check("a: &x 1", "line 1: '&' begins what is not read here: write it out, in quotes");
        check("a: |\n  text", "line 1: '|' begins what is not read here: write it out, in quotes");
        check("a: 1\n\tb: 2", "line 2: is indented by a tab");
        check("a: 1\na: 2", "line 2: \"a\" is there twice");
        check("a: 1\n  b: 2", "line 2: \"b: 2\" is not expected here");
        check("a: [1", "line 1: ']' is missing");
        check("a: \"x", "line 1: a quote is not closed");
        check("a: 1\n---\nb: 2", "line 2: begins another document");
        check("a: 089", "line 1: 089 is not a number that is read here");
        assert!(parse(&"- ".repeat(40)).unwrap_err().contains("deeper"));
        assert!(parse(&"[".repeat(40)).unwrap_err().contains("deeper"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[-a-c:#'\"\\\\ \\n\\[\\]{},&|0-9éx~]{0,60}") {
            let _ = parse(&text);
        }

        /// What JSON says on one line is read as it says.
        #[test]
        fn json_is_read(names in prop::collection::vec("[a-z]{1,5}", 0..4), n in any::<u32>()) {
            let value = serde_json::json!({ "names": names, "n": n, "in": [{ "k": "v,]" }] });
            prop_assert_eq!(parse(&value.to_string()), Ok(value));
        }
    }
}
