//! hosts.toml as people write it.

use super::*;

fn parsed(registry: &str, text: &str) -> Result<Vec<HostOptions>, String> {
    parse(Path::new("/certs.d/x"), registry, text.as_bytes())
}

fn bases(hosts: &[HostOptions]) -> Vec<&str> {
    hosts.iter().map(|host| host.base.as_str()).collect()
}

#[test]
fn mirrors_are_asked_in_the_files_order_and_the_server_last() {
    let text = r#"
        server = "https://upstream.io"
        [host."https://z.io"]
          capabilities = ["pull"]
        [host."http://a.io:5000/prefix"]
        [host."https://m.io/root"]
          override_path = true
    "#;
    let hosts = parsed("reg.io", text).expect("hosts");
    assert_eq!(
        bases(&hosts),
        ["https://z.io/v2", "http://a.io:5000/prefix/v2", "https://m.io/root", "https://upstream.io/v2"]
    );
    assert_eq!((hosts[0].pull, hosts[0].resolve, hosts[1].resolve), (true, false, true));
    assert!(hosts.iter().all(|host| host.mirrors.as_deref() == Some("reg.io")));
}

#[test]
fn without_a_server_the_name_itself_is_asked() {
    for (registry, base) in [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("reg.io", "https://reg.io/v2"),
        ("reg.io:5000", "https://reg.io:5000/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.1.2.3:80", "http://127.1.2.3/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost", "https://localhost/v2"),
        ("localhost:443", "https://localhost/v2"),
        ("[::1]", "https://[::1]/v2"),
    ] {
        let hosts = parsed(registry, "").expect(registry);
        assert_eq!(bases(&hosts), [base], "{registry}");
        assert_eq!(hosts[0].mirrors, None, "{registry}");
    }
    let docker = parsed("docker.io", r#"server = "https://docker.io""#).expect("hosts");
    assert_eq!((bases(&docker), &docker[0].mirrors), (vec!["https://registry-1.docker.io/v2"], &None));
}

#[test]
fn a_key_says_whose_network_a_host_is_dialled_in() {
    let hosts = parsed("127.0.0.1:5000", "network = \"host\"\n[host.\"http://10.85.0.9:80\"]\nnetwork = \"node\"\n");
    let networks: Vec<_> = hosts.expect("hosts").iter().map(|host| host.network).collect();
    assert_eq!(networks, [Some(DialNetwork::Node), Some(DialNetwork::Host)]);
    assert_eq!(parsed("127.0.0.1:5000", "").expect("hosts")[0].network, None);
    assert!(parsed("reg.io", "network = \"moon\"").is_err());
}

#[test]
fn certificates_headers_and_times_are_read_in_all_their_spellings() {
    let text = r#"
        ca = "ca.pem"
        [host."https://a.io"]
          ca = ["/etc/a.pem", "b.pem"]
          client = [["c.cert", "c.key"], ["d.pem", ""]]
          skip_verify = true
          dial_timeout = "1m30s"
          proxy = "http://proxy:3128"
          [host."https://a.io".header]
            x-one = "1"
            x-two = ["2", "3"]
        [host."https://b.io"]
          client = "both.pem"
    "#;
    let hosts = parsed("reg.io", text).expect("hosts");
    let tls = &hosts[0].tls;
    assert_eq!(tls.authorities, [PathBuf::from("/etc/a.pem"), PathBuf::from("/certs.d/x/b.pem")]);
    assert_eq!(tls.client, Some(("/certs.d/x/c.cert".into(), Some("/certs.d/x/c.key".into()))));
    assert!(tls.skip_verify && hosts[0].header.get_all("x-two").iter().count() == 2);
    assert_eq!(hosts[0].dial_timeout, Some(Duration::from_secs(90)));
    assert_eq!(hosts[0].proxy.as_ref().map(Url::as_str), Some("http://proxy:3128/"));
    assert_eq!(hosts[1].tls.client, Some(("/certs.d/x/both.pem".into(), None)));
    assert_eq!(hosts[2].tls.authorities, [PathBuf::from("/certs.d/x/ca.pem")]);
}

#[test]
fn what_makes_no_sense_is_said() {
    for text in [
        "server = ",
        r#"server = "ftp://a""#,
        r#"server = "https://user:secret@a""#,
        r#"capabilities = ["fly"]"#,
        r#"dial_timeout = "soon""#,
        "[header]\n\"a b\" = \"x\"",
        "ca = 5",
    ] {
        let problem = parsed("reg.io", text).map(|_| ()).expect_err(text);
        assert!(!problem.contains("secret"), "{problem}");
    }
}

#[test]
fn the_directory_is_found_in_both_spellings_of_the_port() {
    let root = std::env::temp_dir().join(format!("cricket-hosts-{}", std::process::id()));
    for name in ["reg.io_5000_", "reg.io:5001", "[::1]_5000_", "plain.io", "_default"] {
        std::fs::create_dir_all(root.join(name)).expect("a directory");
    }
    std::fs::write(root.join("plain.io/ca.crt"), "").expect("a file");
    std::fs::write(root.join("plain.io/me.cert"), "").expect("a file");
    for (registry, name) in [
        ("reg.io:5000", "reg.io_5000_"),
        ("reg.io:5001", "reg.io:5001"),
        ("[::1]:5000", "[::1]_5000_"),
        ("[::1]", "_default"),
        ("other.io", "_default"),
    ] {
        assert_eq!(directory_of(&root, registry), Some(root.join(name)), "{registry}");
    }
    let hosts = hosts_of(&root, "plain.io").expect("hosts");
    assert_eq!(hosts[0].tls.authorities, [root.join("plain.io/ca.crt")]);
    assert_eq!(hosts[0].tls.client, Some((root.join("plain.io/me.cert"), Some(root.join("plain.io/me.key")))));
    std::fs::remove_dir_all(root).expect("removed");
}

proptest::proptest! {
    #[test]
    fn no_file_is_too_odd_to_be_read(text in r#"(server = |\[host\."|"\]|https?://|ca = |client = |\[|\]|"|a|,|\n|:|5|/|header|=){0,40}"#) {
        let _ = parsed("reg.io", &text);
    }
}
