//! What a configuration depends on besides flags and file: variables, the user, the working directory.
//!
//! A type of its own so that the rules can be tested without touching the process.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// The effective user.
    pub uid: u32,
    /// Relative paths on the command line start here.
    pub working_dir: PathBuf,
    /// `/run/user/UID` where it is there and ours.
    pub user_run_dir: Option<PathBuf>,
}

impl Environment {
    /// As this process sees it.
    pub fn of_this_process() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self {
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            uid,
            working_dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            user_run_dir: Some(PathBuf::from(format!("/run/user/{uid}")))
                .filter(|dir| super::defaults::owner(dir) == Some(uid)),
        }
    }

    /// For tests: these variables and nothing else.
    #[cfg(test)]
    pub fn with(uid: u32, variables: &[(&str, &str)]) -> Self {
        Self {
            variables: variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            uid,
            working_dir: PathBuf::from("/work"),
            user_run_dir: None,
        }
    }

    /// A variable that is set and not empty.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A variable that holds an absolute path; the XDG specification has relative ones ignored.
    pub fn directory(&self, name: &str) -> Option<PathBuf> {
        self.variable(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }
}
