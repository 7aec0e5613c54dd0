//! The rules of the configuration as tables.

use super::*;

fn user(variables: &[(&str, &str)]) -> Environment {
    Environment::with(1500, variables)
}

const HOME: (&str, &str) = ("HOME", "/home/u");
const RUN: (&str, &str) = ("XDG_RUNTIME_DIR", "/run/user/1500");

fn file_with(text: &str, name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("cricket-config-{name}-{}.toml", std::process::id()));
    std::fs::write(&path, text).expect("written");
    path
}

#[test]
fn defaults_follow_the_user() {
    let cases: [(Environment, &str, &str, &str); 4] = [
        (Environment::with(0, &[HOME, RUN]), "/var/lib/cricket", "/run/cricket", "/etc/cricket/certs.d"),
        (
            user(&[HOME, RUN]),
            "/home/u/.local/share/cricket",
            "/run/user/1500/cricket",
            "/home/u/.config/cricket/certs.d",
        ),
        (
            user(&[("XDG_DATA_HOME", "/d"), ("XDG_CONFIG_HOME", "/c"), RUN]),
            "/d/cricket",
            "/run/user/1500/cricket",
            "/c/cricket/certs.d",
        ),
        // Relative XDG variables are ignored, empty ones too.
        (
            user(&[HOME, ("XDG_DATA_HOME", "d"), ("XDG_CONFIG_HOME", ""), RUN]),
            "/home/u/.local/share/cricket",
            "/run/user/1500/cricket",
            "/home/u/.config/cricket/certs.d",
        ),
    ];
    for (env, root, state, certs) in cases {
        let config = resolve(&Flags::default(), &env).expect("defaults");
        assert_eq!(config.root, Path::new(root));
        assert_eq!(config.state, Path::new(state));
        assert_eq!(config.socket, Path::new(state).join("cricket.sock"));
        assert_eq!(config.registry_config_path, Path::new(certs));
        assert!(config.streaming_address.ip().is_loopback());
    }
}

#[test]
fn without_a_runtime_directory_there_is_still_a_place_of_the_users_own() {
    let mut env = Environment::with(59_999, &[HOME]);
    assert_eq!(resolve(&Flags::default(), &env).expect("resolved").state, Path::new("/tmp/cricket-59999"));
    env.user_run_dir = Some("/run/user/59999".into());
    assert_eq!(resolve(&Flags::default(), &env).expect("resolved").state, Path::new("/run/user/59999/cricket"));
}

#[test]
fn without_a_home_the_error_says_what_to_set() {
    assert!(matches!(resolve(&Flags::default(), &user(&[RUN])), Err(ConfigError::NoHome)));
}

#[test]
fn flags_win_over_variables_over_file_over_defaults() {
    let path = file_with("root = \"/file\"\nstate = \"/file-state\"\nlog_level = \"warn\"\n", "order");
    let flags = Flags { config: Some(path.clone()), root: Some("flag".into()), ..Flags::default() };
    let env = user(&[HOME, RUN, ("CRICKET_ROOT", "/variable"), ("CRICKET_STATE", "/variable-state")]);
    let config = resolve(&flags, &env).expect("resolved");
    assert_eq!(config.root, Path::new("/work/flag"), "a relative flag starts in the working directory");
    assert_eq!(config.state, Path::new("/variable-state"));
    assert_eq!(config.socket, Path::new("/variable-state/cricket.sock"));
    assert_eq!(config.log_level, "warn");
    assert_eq!(config.cgroup_driver, CgroupDriver::Cgroupfs);
    std::fs::remove_file(path).expect("removed");
}

#[test]
fn every_key_has_a_variable() {
    let env = user(&[
        HOME,
        RUN,
        ("CRICKET_SOCKET", "/s/c.sock"),
        ("CRICKET_LOG_LEVEL", "cricket::image=trace"),
        ("CRICKET_CGROUP_DRIVER", "systemd"),
        ("CRICKET_REGISTRY_CONFIG_PATH", "/certs"),
        ("CRICKET_STREAMING_ADDRESS", "[::1]:7000"),
        ("CRICKET_CNI_CONFIG_DIR", "/net.d"),
        ("CRICKET_CNI_PLUGIN_DIRS", "/a:/b"),
        ("CRICKET_CNI_TIMEOUT_SECONDS", "7"),
        ("CRICKET_POD_CIDRS", "10.1.0.0/16, fd00::/64"),
    ]);
    let config = resolve(&Flags::default(), &env).expect("resolved");
    assert_eq!(config.socket, Path::new("/s/c.sock"));
    assert_eq!(config.cgroup_driver, CgroupDriver::Systemd);
    assert_eq!(config.registry_config_path, Path::new("/certs"));
    assert_eq!(config.streaming_address.port(), 7000);
    assert_eq!(config.cni_config_dir, Path::new("/net.d"));
    assert_eq!(config.cni_plugin_dirs, [Path::new("/a"), Path::new("/b")]);
    assert_eq!(config.cni_timeout, std::time::Duration::from_secs(7));
    assert_eq!(config.pod_cidrs, ["10.1.0.0/16", "fd00::/64"]);
}

#[test]
fn values_that_cannot_be_used_are_refused_by_name() {
    let long = format!("/{}", "s".repeat(120));
    let cases = [
        (("CRICKET_CGROUP_DRIVER", "v1"), "CRICKET_CGROUP_DRIVER"),
        (("CRICKET_STREAMING_ADDRESS", "7000"), "CRICKET_STREAMING_ADDRESS"),
        (("CRICKET_CNI_TIMEOUT_SECONDS", "0"), "CRICKET_CNI_TIMEOUT_SECONDS"),
        (("CRICKET_POD_CIDRS", "10.0.0.0"), "CRICKET_POD_CIDRS"),
        (("CRICKET_POD_CIDRS", "10.0.0.0/33"), "CRICKET_POD_CIDRS"),
        (("CRICKET_POD_CIDRS", "10.0.0.0/16,10.1.0.0/16"), "CRICKET_POD_CIDRS"),
        (("CRICKET_LOG_LEVEL", "a=b=c"), "CRICKET_LOG_LEVEL"),
        (("CRICKET_SOCKET", &long), "CRICKET_SOCKET"),
        (("CRICKET_ROOT", "/run/user/1500/cricket"), "CRICKET_ROOT"),
        (("CRICKET_CONFIG", "/nowhere.toml"), "/nowhere.toml"),
    ];
    for (variable, named) in cases {
        let error = resolve(&Flags::default(), &user(&[HOME, RUN, variable])).expect_err(variable.0).to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn a_value_in_a_file_is_refused_with_its_line_and_key() {
    let cases = [
        (
            "log_level = \"info\"\n[network]\ncni_plugin_dirs = [\"/ok\", \"bin\"]\n",
            3,
            "network.cni_plugin_dirs",
            "\"bin\"",
        ),
        ("\n[network]\n# a range\npod_cidrs = [\"10.0.0.0\"]\n", 4, "network.pod_cidrs", "\"10.0.0.0\""),
        ("network = { pod_cidrs = [\"10.0.0.0\"] }\n", 1, "network.pod_cidrs", "\"10.0.0.0\""),
        ("log_level = \"a=b=c\"\n", 1, "log_level", "\"a=b=c\""),
    ];
    for (text, line, key, value) in cases {
        let path = file_with(text, "values");
        let flags = Flags { config: Some(path.clone()), ..Flags::default() };
        let error = resolve(&flags, &user(&[HOME, RUN])).expect_err(text).to_string();
        let origin = format!("{}, line {line}, key {key}: ", path.display());
        assert!(error.starts_with(&origin) && error.contains(value), "{error}");
        std::fs::remove_file(path).expect("removed");
    }
}

#[test]
fn a_flag_that_wins_is_the_one_that_is_blamed() {
    let flags = Flags { log_level: Some("a=b=c".into()), ..Flags::default() };
    let env = user(&[HOME, RUN, ("CRICKET_LOG_LEVEL", "info")]);
    assert!(resolve(&flags, &env).expect_err("refused").to_string().starts_with("--log-level: "));
}

#[test]
fn a_root_of_ones_own_has_a_network_of_its_own() {
    let share_of = |uid: u32, root: &str| {
        let env = Environment::with(uid, &[HOME, RUN, ("CRICKET_ROOT", root)]);
        let config = resolve(&Flags::default(), &env).expect("resolved");
        (config.network_name, config.pod_cidrs)
    };
    let share = |root: &str| share_of(0, root);
    let (name, ranges) = share("/var/lib/cricket");
    assert_eq!((name.as_str(), ranges[0].as_str()), ("cricket", "10.85.0.0/16"));
    // A user's node is nobody else's; earlier releases knew one name only, and left pods at that bridge.
    assert_eq!(share_of(1000, "/home/u/one"), share("/var/lib/cricket"));
    let (one, two) = (share("/one"), share("/two"));
    assert!(one.0 != two.0 && one.1[0] != two.1[0] && one.1[1] != two.1[1], "{one:?} {two:?}");
    assert_eq!(share("/one"), one);
    for (name, ranges) in [one, two] {
        // With a digit behind it an interface's name, of which the kernel takes 15 bytes.
        assert_eq!(name.len(), 14);
        let fields: Vec<u8> = ranges[0].split(['.', '/']).map(|field| field.parse().expect("a number")).collect();
        assert!(matches!(fields[..], [10, 88..=95, low, 0, 20] if low % 16 == 0), "{ranges:?}");
    }
}
