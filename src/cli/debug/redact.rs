//! What is nobody's business is taken out: values of environments and annotations, arguments, and whatever is called a
//! secret. Names stay, for they are what a bug report needs.

use serde_json::Value;

/// In the place of what is taken out.
const MARK: &str = "(redacted)";
/// Parts of names of what is a secret.
const SECRET: [&str; 6] = ["password", "passwd", "token", "secret", "auth", "credential"];
/// Lists of words, the first of which is a program.
const WORDS: [&str; 2] = ["args", "command"];

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|part| name.contains(part))
}

/// A record, an OCI specification, an answer of the daemon.
pub fn json(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().map(|(name, value)| field(name, value)).collect(),
        Value::Array(items) => items.into_iter().map(json).collect(),
        // Verbose answers hold JSON in texts.
        Value::String(text) if text.starts_with(['{', '[']) => match serde_json::from_str(&text) {
            Ok(inner) => Value::String(json(inner).to_string()),
            Err(_) => MARK.into(),
        },
        plain => plain,
    }
}

fn field(name: String, value: Value) -> (String, Value) {
    let hidden = match name.as_str() {
        "env" | "envs" => environment(value),
        "annotations" => all(value),
        words if WORDS.contains(&words) => match value {
            Value::Array(words) => Value::Array(
                words.into_iter().enumerate().map(|(at, word)| if at == 0 { word } else { all(word) }).collect(),
            ),
            other => all(other),
        },
        secret if is_secret(secret) => all(value),
        _ => json(value),
    };
    (name, hidden)
}

/// `["NAME=VALUE"]`, or CRI's `[{"key": NAME, "value": VALUE}]`.
fn environment(value: Value) -> Value {
    let Value::Array(variables) = value else { return all(value) };
    let hide = |variable: Value| match variable {
        Value::String(text) => format!("{}={MARK}", text.split('=').next().unwrap_or_default()).into(),
        Value::Object(mut fields) => {
            fields.iter_mut().filter(|(name, _)| *name != "key").for_each(|(_, value)| *value = MARK.into());
            Value::Object(fields)
        }
        other => all(other),
    };
    variables.into_iter().map(hide).collect()
}

/// Every value; names stay.
fn all(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, all(value))).collect(),
        Value::Array(items) => items.into_iter().map(all).collect(),
        Value::Null => Value::Null,
        _ => MARK.into(),
    }
}

/// `cricket.toml`: a line whose key is a secret's keeps the key.
pub fn settings(text: &str) -> String {
    let hide = |line: &str| match line.split_once('=') {
        Some((key, _)) if is_secret(key) => format!("{key}= {MARK}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(hide).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json as of;

    use super::*;

    #[test]
    fn values_go_and_names_stay() {
        let record = of!({
            "config": {
                "envs": [{"key": "DB", "value": "hunter2"}], "command": ["sh", "hunter2"], "labels": {"app": "web"},
                "annotations": {"last-applied": "hunter2"}, "registryToken": "hunter2",
            },
            "process": {"env": ["DB=hunter2", "hunter"], "args": ["sh", "-c", "hunter2"], "cwd": "/"},
            "info": "{\"env\": [\"DB=hunter2\"]}", "broken": "{hunter2",
        });
        let text = json(record).to_string();
        assert!(!text.contains("hunter2"), "{text}");
        for kept in ["DB", "last-applied", "registryToken", "web", "\"sh\"", "\"/\""] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
    }

    #[test]
    fn a_setting_that_is_a_secret_keeps_its_key() {
        assert_eq!(settings("root = \"/r\"\nauth_token = \"x\"\n"), "root = \"/r\"\nauth_token = (redacted)\n");
    }
}
