//! What an ADD answers: interfaces and addresses, in whichever version of the specification a plugin speaks.
//!
//! A document is kept as the plugin wrote it. Only where another version is asked for (a plugin of the chain that
//! answers an older one than the list's) is it rewritten: 0.1 and 0.2 know one address a family, 0.3 and 0.4 say the
//! family of each address, later ones do not.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Map, Value, json};

use super::version::Version;

/// Addresses and interfaces of one pod; a plugin that gives more is not believed.
const ENTRIES_LIMIT: usize = 256;

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct AddResult {
    document: Map<String, Value>,
    version: Version,
}

impl AddResult {
    /// Of a plugin's output; one without a version is of the `asked` one.
    pub fn parse(output: &[u8], asked: Version) -> Result<Self, String> {
        if output.iter().all(u8::is_ascii_whitespace) {
            return Err("it ended without an error and printed no result".to_owned());
        }
        let value = serde_json::from_slice(output).map_err(|error| format!("its output is not JSON: {error}"))?;
        Self::of(value, asked)
    }

    /// Of a document that was kept.
    pub fn of(value: Value, asked: Version) -> Result<Self, String> {
        let Value::Object(mut document) = value else { return Err("its output is not a JSON object".to_owned()) };
        let version = match document.get("cniVersion") {
            None => asked,
            Some(Value::String(text)) if text.is_empty() => asked,
            Some(Value::String(text)) => text.parse()?,
            Some(_) => return Err("the version of its result is not a text".to_owned()),
        };
        document.insert("cniVersion".to_owned(), version.to_string().into());
        for key in ["ips", "interfaces"] {
            match document.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Array(entries)) if entries.len() <= ENTRIES_LIMIT => {}
                Some(_) => return Err(format!("\"{key}\" of its result is not a list of at most {ENTRIES_LIMIT}")),
            }
        }
        let result = Self { document, version };
        result.all_addresses()?;
        Ok(result)
    }

    /// As a plugin that speaks `version` understands it.
    pub fn in_version(&self, version: Version) -> Value {
        let mut document = match (self.version < Version::V0_3_0, version < Version::V0_3_0) {
            _ if self.version == version => return Value::Object(self.document.clone()),
            (true, false) => from_families(&self.document),
            (false, true) => to_families(&self.document),
            _ => self.document.clone(),
        };
        if (Version::V0_3_0..Version::V1_0_0).contains(&version) {
            for ip in entries_mut(&mut document, "ips") {
                if let Some(family) = family_of(ip) {
                    ip["version"] = family.into();
                }
            }
        } else {
            for ip in entries_mut(&mut document, "ips").filter_map(Value::as_object_mut) {
                ip.remove("version");
            }
        }
        document.insert("cniVersion".to_owned(), version.to_string().into());
        Value::Object(document)
    }

    /// The pod's own addresses, in the plugin's order: those of interfaces inside, and those of no interface.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let interfaces = self.interfaces();
        let inside = |ip: &Value| match ip.get("interface").and_then(Value::as_u64) {
            None => true,
            Some(index) => interfaces.get(index as usize).is_none_or(|found| is_inside(found) && !is_loopback(found)),
        };
        match self.all_addresses() {
            Ok(all) if self.version >= Version::V0_3_0 => {
                all.into_iter().zip(self.ips()).filter(|(_, ip)| inside(ip)).map(|(address, _)| address).collect()
            }
            Ok(all) => all,
            Err(_) => Vec::new(),
        }
    }

    /// As [`AddResult::addresses`], as others may reach the pod by them: one at least, and none that is no host's. What
    /// the pod's own loopback interface has is not counted.
    pub fn pods_addresses(&self) -> Result<Vec<IpAddr>, String> {
        if let Some(text) = self.texts().into_iter().find(|text| has_bad_prefix(text)) {
            return Err(format!("its result has {} for an address", shown(text)));
        }
        let addresses = self.addresses();
        match addresses.iter().find(|address| !is_a_hosts(address)) {
            Some(address) => Err(format!("its result gives the pod {address}, which is no host's address")),
            None if addresses.is_empty() => Err("its result gives the pod no address".to_owned()),
            None => Ok(addresses),
        }
    }

    /// Addresses as they stand there.
    fn texts(&self) -> Vec<&str> {
        let families = ["ip4", "ip6"].into_iter().filter_map(|family| self.document.get(family)?.get("ip"));
        let listed = self.ips().iter().filter_map(|ip| ip.get("address"));
        families.chain(listed).filter_map(Value::as_str).collect()
    }

    /// The end of the pod's link that is in the node, where the plugins tell: the last of the node's, for a bridge
    /// comes before it.
    pub fn node_interface(&self) -> Option<&str> {
        self.interfaces().iter().rfind(|interface| !is_inside(interface))?.get("name")?.as_str()
    }

    fn interfaces(&self) -> &[Value] {
        self.document.get("interfaces").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn ips(&self) -> &[Value] {
        self.document.get("ips").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn all_addresses(&self) -> Result<Vec<IpAddr>, String> {
        if self.version >= Version::V0_3_0 {
            return self.ips().iter().map(|ip| address(ip.get("address"))).collect();
        }
        let families = ["ip4", "ip6"].into_iter().filter_map(|family| self.document.get(family));
        families.filter(|family| !family.is_null()).map(|family| address(family.get("ip"))).collect()
    }
}

fn is_inside(interface: &Value) -> bool {
    interface.get("sandbox").and_then(Value::as_str).is_some_and(|sandbox| !sandbox.is_empty())
}

fn is_loopback(interface: &Value) -> bool {
    interface.get("name").and_then(Value::as_str) == Some("lo")
}

/// Longer than an address is.
fn has_bad_prefix(text: &str) -> bool {
    let Some((plain, prefix)) = text.split_once('/') else { return false };
    let most = if plain.contains(':') { 128 } else { 32 };
    !prefix.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn is_a_hosts(address: &IpAddr) -> bool {
    let is_broadcast = *address == IpAddr::V4(Ipv4Addr::BROADCAST);
    let address = address.to_canonical();
    !(is_broadcast || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

/// `10.1.2.3/24`, or without the prefix.
fn address(text: Option<&Value>) -> Result<IpAddr, String> {
    let text = text.and_then(Value::as_str).ok_or("its result has an address that is not a text")?;
    let plain = text.split_once('/').map_or(text, |(plain, _)| plain);
    plain.parse().map_err(|_| format!("its result has {} for an address", shown(text)))
}

fn family_of(ip: &Value) -> Option<&'static str> {
    let parsed = address(ip.get("address")).ok()?;
    Some(if parsed.is_ipv4() { "4" } else { "6" })
}

fn entries_mut<'a>(document: &'a mut Map<String, Value>, key: &str) -> impl Iterator<Item = &'a mut Value> {
    document.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// 0.2 to 0.3 and later.
fn from_families(old: &Map<String, Value>) -> Map<String, Value> {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for family in ["ip4", "ip6"].into_iter().filter_map(|family| old.get(family)) {
        let mut ip = json!({ "address": family.get("ip") });
        if let Some(gateway) = family.get("gateway") {
            ip["gateway"] = gateway.clone();
        }
        ips.push(ip);
        routes.extend(family.get("routes").and_then(Value::as_array).into_iter().flatten().cloned());
    }
    let mut new = Map::from_iter([("ips".to_owned(), ips.into()), ("routes".to_owned(), routes.into())]);
    new.extend(old.get("dns").map(|dns| ("dns".to_owned(), dns.clone())));
    new
}

/// 0.3 and later to 0.2: the first address of each family.
fn to_families(new: &Map<String, Value>) -> Map<String, Value> {
    let list = |key: &str| new.get(key).and_then(Value::as_array).into_iter().flatten();
    let mut old = Map::new();
    for (key, wanted, colon) in [("ip4", "4", false), ("ip6", "6", true)] {
        let Some(ip) = list("ips").find(|ip| family_of(ip) == Some(wanted)) else { continue };
        let of_family = |route: &&Value| route["dst"].as_str().is_some_and(|dst| dst.contains(':') == colon);
        let routes: Vec<Value> = list("routes").filter(of_family).cloned().collect();
        let mut family = json!({ "ip": ip["address"], "routes": routes });
        if let Some(gateway) = ip.get("gateway") {
            family["gateway"] = gateway.clone();
        }
        old.insert(key.to_owned(), family);
    }
    old.extend(new.get("dns").map(|dns| ("dns".to_owned(), dns.clone())));
    old
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: &str = r#"{"cniVersion":"0.4.0","interfaces":[{"name":"cni0","mac":"aa:bb:cc:dd:ee:ff"},
        {"name":"veth1"},{"name":"eth0","sandbox":"/proc/7/ns/net"}],
        "ips":[{"version":"4","interface":2,"address":"10.1.0.5/16","gateway":"10.1.0.1"},
               {"version":"6","interface":2,"address":"fd00::5/64"},
               {"version":"4","interface":0,"address":"10.1.0.1/16"}],
        "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}],"dns":{"nameservers":["10.1.0.1"]},"unknown":{"kept":true}}"#;

    fn parse(text: &str) -> Result<AddResult, String> {
        AddResult::parse(text.as_bytes(), Version::V1_0_0)
    }

    fn texts(result: &AddResult) -> Vec<String> {
        result.addresses().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_pods_addresses_are_those_inside() {
        let result = parse(BRIDGE).expect("a result");
        assert_eq!(texts(&result), ["10.1.0.5", "fd00::5"]);
        assert_eq!(result.node_interface(), Some("veth1"));
        let bare = parse(r#"{"ips":[{"address":"10.1.0.5/16"},{"address":"fd00::5/64","interface":9}]}"#);
        assert_eq!(texts(&bare.expect("a result")), ["10.1.0.5", "fd00::5"]);
    }

    #[test]
    fn only_addresses_of_hosts_become_the_pods() {
        let given = |address: &str| {
            parse(&format!(r#"{{"ips":[{{"address":"10.1.0.5/16"}},{{"address":"{address}"}}]}}"#))
                .and_then(|r| r.pods_addresses())
        };
        assert_eq!(given("fd00::5/128").expect("addresses").len(), 2);
        assert_eq!(given("10.1.0.6").expect("addresses").len(), 2);
        for bad in [
            "127.0.0.1/8",
            "::1/128",
            "0.0.0.0/0",
            "::/0",
            "224.0.0.1/4",
            "ff02::1/128",
            "255.255.255.255/32",
            "::ffff:127.0.0.1/128",
            "10.1.0.6/99",
            "10.1.0.6/33",
            "fd00::6/129",
            "10.1.0.6/",
            "10.1.0.6/-1",
            "10.1.0.6/x",
        ] {
            let error = given(bad).expect_err(bad);
            assert!(error.starts_with("its result"), "{bad}: {error}");
        }
        let old = parse(r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.5/99"}}"#).expect("a result");
        assert!(old.pods_addresses().is_err());
        let own = r#"{"interfaces":[{"name":"lo","sandbox":"/x"}],"ips":[{"address":"127.0.0.1/8","interface":0}IPS]}"#;
        let alone = parse(&own.replace("IPS", "")).expect("a result").pods_addresses().expect_err("no address");
        assert!(alone.contains("no address"), "{alone}");
        let beside = own.replace("IPS", r#",{"address":"10.1.0.5/16"}"#);
        assert_eq!(texts(&parse(&beside).expect("a result")), ["10.1.0.5"]);
        assert!(parse(&beside).expect("a result").pods_addresses().is_ok());
    }

    #[test]
    fn a_result_of_its_own_version_stays_as_it_was_written() {
        let result = parse(BRIDGE).expect("a result");
        let same = result.in_version(Version::V0_4_0);
        assert_eq!(same, serde_json::from_str::<Value>(BRIDGE).expect("JSON"));
    }

    #[test]
    fn a_result_is_rewritten_for_each_version_and_back() {
        let result = parse(BRIDGE).expect("a result");
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V1_0_0, Version::V1_1_0] {
            let other = result.in_version(version);
            assert_eq!(other["cniVersion"], version.to_string());
            assert_eq!(other["ips"][0].get("version").is_some(), version < Version::V1_0_0, "{version}");
            assert_eq!(other["unknown"]["kept"], true);
            let back = AddResult::of(other, Version::NEWEST).expect("a result").in_version(Version::V0_4_0);
            assert_eq!(back, serde_json::from_str::<Value>(BRIDGE).expect("JSON"), "{version}");
        }
        let old = result.in_version(Version::V0_2_0);
        assert_eq!((&old["ip4"]["ip"], &old["ip6"]["ip"]), (&json!("10.1.0.5/16"), &json!("fd00::5/64")));
        assert_eq!(old["ip4"]["routes"], json!([{"dst": "0.0.0.0/0"}]));
        let old = AddResult::of(old, Version::NEWEST).expect("a result");
        assert_eq!(texts(&old), ["10.1.0.5", "fd00::5"]);
        let new = old.in_version(Version::V1_1_0);
        assert_eq!(new["ips"][0], json!({"address": "10.1.0.5/16", "gateway": "10.1.0.1"}));
        assert_eq!(new["routes"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn what_is_no_result_is_told() {
        for (text, expected) in [
            ("", "no result"),
            (" \n", "no result"),
            ("hello", "not JSON"),
            ("[]", "not a JSON object"),
            ("7", "not a JSON object"),
            (r#"{"cniVersion":"7"}"#, "no version"),
            (r#"{"cniVersion":7}"#, "not a text"),
            (r#"{"ips":7}"#, "\"ips\""),
            (r#"{"ips":[{"address":"ten"}]}"#, "\"ten\""),
            (r#"{"ips":[{"address":7}]}"#, "not a text"),
            (r#"{"ips":[{}]}"#, "not a text"),
            (r#"{"ips":[7]}"#, "not a text"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(parse(&format!(r#"{{"ips":[{}{{}}]}}"#, "{},".repeat(ENTRIES_LIMIT))).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    proptest::proptest! {
        /// Output of a plugin that somebody has changed: an answer or an error, and all that is read of the answer.
        #[test]
        fn changed_output_never_panics(
            changes in proptest::collection::vec(proptest::prelude::any::<(usize, u8)>(), 0..6),
            cut in 0..BRIDGE.len() + 1,
        ) {
            let mut bytes = BRIDGE.as_bytes().to_vec();
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            // Mostly whole: what is cut off is seldom JSON.
            bytes.truncate(if cut % 8 == 0 { cut } else { bytes.len() });
            for version in [Version::V0_2_0, Version::V0_4_0, Version::V1_0_0] {
                if let Ok(result) = AddResult::parse(&bytes, version) {
                    let _ = (result.addresses(), result.node_interface(), result.in_version(version));
                }
            }
        }
    }
}
