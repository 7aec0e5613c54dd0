//! Files that installers of networks write, and files that nobody should have written.

use super::*;

/// A directory that goes when the test does.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("cricket-cni-list-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a directory");
        for (file, text) in files {
            let file = path.join(file);
            fs::create_dir_all(file.parent().expect("it has one")).expect("a directory");
            fs::write(file, text).expect("written");
        }
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn one(name: &str) -> String {
    format!(r#"{{"cniVersion":"0.3.1","name":"{name}","type":"bridge"}}"#)
}

/// As flannel's DaemonSet installs it.
const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[
    {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

/// As kindnet writes it for a node.
const KINDNET: &str = r#"{"cniVersion":"0.3.1","name":"kindnet","plugins":[
    {"type":"ptp","ipMasq":false,"ipam":{"type":"host-local","dataDir":"/run/cni-ipam-state",
     "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],
     "ranges":[[{"subnet":"10.244.0.0/24"}],[{"subnet":"fd00:10:244::/64"}]]},"mtu":1500},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

#[test]
fn the_first_file_by_name_counts_whatever_its_ending() {
    let cases: [(&[&str], Option<&str>); 5] = [
        (&["10-b.conf", "05-a.json", "99-c.conf"], Some("05-a.json")),
        (&["20-b.conf", "10-a.conf.bak", "11-x.txt"], Some("20-b.conf")),
        (&["10-a.conf.d/inner.conf", "90-z.conf"], Some("90-z.conf")),
        (&["README"], None),
        (&[], None),
    ];
    for (names, expected) in cases {
        let texts: Vec<_> = names.iter().map(|name| (*name, one(&name.replace('/', "_")))).collect();
        let files: Vec<_> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let scratch = Scratch::new("first", &files);
        let found = find(&scratch.0).expect("readable").map(|list| list.name);
        assert_eq!(found.as_deref(), expected, "{names:?}");
    }
    assert_eq!(find(Path::new("/nowhere/net.d")).expect("no directory is no configuration"), None);
}

#[test]
fn what_flannel_and_kindnet_install_is_understood() {
    let scratch = Scratch::new("flannel", &[("10-flannel.conflist", FLANNEL)]);
    let list = find(&scratch.0).expect("understood").expect("there");
    assert_eq!((list.name.as_str(), list.version), ("cbr0", Version::V0_3_1));
    let kinds: Vec<_> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
    assert_eq!(kinds, ["flannel", "portmap"]);
    assert!(list.plugins[1].takes("portMappings") && !list.plugins[0].takes("portMappings"));
    assert_eq!(list.plugins[0].rest["delegate"]["hairpinMode"], true);
    let scratch = Scratch::new("kindnet", &[("10-kindnet.conflist", KINDNET)]);
    let list = find(&scratch.0).expect("understood").expect("there");
    assert_eq!(list.plugins[0].rest["ipam"]["ranges"][1][0]["subnet"], "fd00:10:244::/64");
}

#[test]
fn a_list_that_is_kept_is_read_back() {
    let scratch = Scratch::new("kept", &[("10-kindnet.conflist", KINDNET)]);
    let list = find(&scratch.0).expect("understood").expect("there");
    let text = serde_json::to_string(&list).expect("written");
    assert_eq!(serde_json::from_str::<NetworkList>(&text).expect("read"), list);
}

#[test]
fn plugins_in_files_of_their_own_follow_those_of_the_list() {
    let list = |only: &str| format!(r#"{{"name":"n","cniVersion":"1.1.0",{only}"plugins":[{{"type":"a"}}]}}"#);
    for (only, expected) in [("", vec!["a", "b", "c"]), (r#""loadOnlyInlinedPlugins":true,"#, vec!["a"])] {
        let text = list(only);
        let scratch = Scratch::new(
            "files",
            &[("1.conflist", &text), ("n/20.conf", r#"{"type":"c"}"#), ("n/10.conf", r#"{"type":"b"}"#)],
        );
        let found = find(&scratch.0).expect("understood").expect("there");
        assert_eq!(found.plugins.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn the_highest_version_that_is_known_is_taken() {
    for (versions, expected) in [
        (r#""cniVersion":"0.4.0","#, Some(Version::V0_4_0)),
        (r#""cniVersion":"0.4.0","cniVersions":["0.3.1","1.0.0","9.0.0"],"#, Some(Version::V1_0_0)),
        (r#""cniVersion":"9.0.0","cniVersions":["1.1.0"],"#, Some(Version::V1_1_0)),
        ("", Some(Version::V0_1_0)),
        (r#""cniVersion":"9.0.0","#, None),
    ] {
        let text = format!(r#"{{"name":"n",{versions}"plugins":[{{"type":"a"}}]}}"#);
        let scratch = Scratch::new("versions", &[("1.conflist", &text)]);
        let found = find(&scratch.0).ok().flatten().map(|list| list.version);
        assert_eq!(found, expected, "{versions}");
    }
}

#[test]
fn a_first_file_that_is_wrong_is_named_and_the_second_is_not_taken() {
    let deep = "[".repeat(100_000);
    for (name, text, expected) in [
        ("1.conf", "", "not a JSON object"),
        ("1.conf", "[]", "not a JSON object"),
        ("1.conflist", &deep, "not a JSON object"),
        ("1.conf", r#"{"name":"n"}"#, "no \"type\""),
        ("1.conf", r#"{"type":"bridge"}"#, "no \"name\""),
        ("1.conf", r#"{"name":"n","plugins":[{"type":"a"}]}"#, ".conflist"),
        ("1.conf", r#"{"name":"n","type":"../../bin/sh"}"#, "\"type\" is"),
        ("1.conf", r#"{"name":"../n","type":"a"}"#, "\"name\" is"),
        ("1.conf", r#"{"name":7,"type":"a"}"#, "not a text"),
        ("1.conflist", r#"{"name":"n","plugins":[]}"#, "0 plugins"),
        ("1.conflist", r#"{"name":"n","plugins":7}"#, "not a list"),
        ("1.conflist", r#"{"name":"n","plugins":["a"]}"#, "not a JSON object"),
        ("1.conflist", r#"{"name":"n","disableCheck":7,"plugins":[{"type":"a"}]}"#, "disableCheck"),
    ] {
        let good = one("good");
        let scratch = Scratch::new("wrong", &[(name, text), ("2.conf", &good)]);
        let error = find(&scratch.0).expect_err(text).to_string();
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_that_never_ends_or_answers_is_refused_at_once() {
    let scratch = Scratch::new("special", &[]);
    std::os::unix::fs::symlink("/dev/zero", scratch.0.join("1.conf")).expect("linked");
    assert!(find(&scratch.0).expect_err("a device").to_string().contains("regular file"));
    fs::remove_file(scratch.0.join("1.conf")).expect("removed");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let fifo = scratch.0.join("1.conf");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
    assert!(find(&scratch.0).expect_err("a FIFO").to_string().contains("regular file"));
    fs::remove_file(&fifo).expect("removed");
    fs::write(&fifo, " ".repeat(FILE_LIMIT_BYTES as usize + 1)).expect("written");
    assert!(find(&scratch.0).expect_err("too large").to_string().contains("larger"));
}
