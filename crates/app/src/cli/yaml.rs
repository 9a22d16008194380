//! JSON values as YAML, for `--format yaml`.
//!
//! Writing only, and only what JSON can hold: that needs no library. Strings
//! that another reader could take for something else are quoted as in JSON,
//! which YAML 1.2 reads the same way.

use serde_json::Value;

pub(crate) fn text(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => block(value, 0, &mut out),
        Value::Array(items) if !items.is_empty() => block(value, 0, &mut out),
        flat => {
            out.push_str(&scalar(flat));
            out.push('\n');
        }
    }
    out
}

/// A non-empty object or list whose first line starts where `out` ends.
fn block(value: &Value, indent: usize, out: &mut String) {
    let mut first = true;
    let mut start = |out: &mut String| {
        if !std::mem::take(&mut first) {
            out.extend(std::iter::repeat_n(' ', indent));
        }
    };
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                start(out);
                out.push_str(&word(key));
                out.push(':');
                nested(value, indent, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                start(out);
                out.push_str("- ");
                if is_block(item) {
                    block(item, indent + 2, out);
                } else {
                    out.push_str(&scalar(item));
                    out.push('\n');
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&scalar(value));
        }
    }
}

fn nested(value: &Value, indent: usize, out: &mut String) {
    if !is_block(value) {
        out.push(' ');
        out.push_str(&scalar(value));
        out.push('\n');
        return;
    }
    // Lists may stand at their key's own indent, objects may not.
    let deeper = if value.is_array() { indent } else { indent + 2 };
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', deeper));
    block(value, deeper, out);
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        other => other.to_string(),
    }
}

fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    let sane =
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') && text.chars().all(plain);
    // Readers of YAML 1.1 take these for booleans and null.
    let reserved = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    if sane && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn nested_values() {
        let value = json!([
            {"name": "web", "ports": ["8080:80"], "labels": {}, "limits": {"cpus": 0.5}, "error": null},
            {"name": "no", "nested": [[1, 2], []], "labels": {"a b": "x\ny"}},
        ]);
        expect![[r#"
            - error: null
              labels: {}
              limits:
                cpus: 0.5
              name: web
              ports:
              - "8080:80"
            - labels:
                "a b": "x\ny"
              name: "no"
              nested:
              - - 1
                - 2
              - []
        "#]]
        .assert_eq(&super::text(&value));
        assert_eq!(super::text(&json!([])), "[]\n");
    }
}
