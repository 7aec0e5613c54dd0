//! What plugins are told of a pod: CNI_ARGS and capability arguments, as the plugins of Kubernetes expect them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::network::Cidr;
use crate::proto::cri;
use crate::store::PodId;

use super::error::CniError;

/// Longest value in CNI_ARGS.
const VALUE_LIMIT_BYTES: usize = 1024;
/// Annotations that limit a pod's traffic, and the least and most bits a second that are reasonable.
const BANDWIDTH: [(&str, &str); 2] =
    [("ingress", "kubernetes.io/ingress-bandwidth"), ("egress", "kubernetes.io/egress-bandwidth")];
const BANDWIDTH_LIMITS: (f64, f64) = (1e3, 1e15);
/// Bits that may go at once: the most that the bandwidth plugin takes.
const BURST_BITS: u32 = u32::MAX;
/// Multiples in a quantity of Kubernetes.
const SUFFIXES: [(&str, f64); 15] = [
    ("Ki", 1024.0),
    ("Mi", 1048576.0),
    ("Gi", 1073741824.0),
    ("Ti", 1099511627776.0),
    ("Pi", 1125899906842624.0),
    ("Ei", 1152921504606846976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
];

/// Kept with the pod's network, for its DEL is told the same as its ADD.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arguments {
    /// CNI_ARGS.
    pub text: String,
    /// By capability; a plugin is given those that it says it takes.
    pub capabilities: Map<String, Value>,
}

impl Arguments {
    /// Of a pod of which nothing else is known any more.
    pub fn unknown(pod: &PodId) -> Self {
        Self { text: format!("IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={pod}"), capabilities: Map::new() }
    }

    /// Of a pod in `network`. `ranges` are those that a kubelet named.
    pub fn of(pod: &PodId, config: &cri::PodSandboxConfig, network: &str, ranges: &[Cidr]) -> Result<Self, CniError> {
        let metadata = config.metadata.clone().unwrap_or_default();
        let pairs = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &metadata.namespace),
            ("K8S_POD_NAME", &metadata.name),
            ("K8S_POD_INFRA_CONTAINER_ID", pod.as_str()),
            ("K8S_POD_UID", &metadata.uid),
        ];
        let pairs = pairs.map(|(key, value)| pair(key, value)).into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(Self { text: pairs.join(";"), capabilities: capabilities(config, network, ranges)? })
    }
}

/// A value with a separator in it would be another pair, or another pod's name.
fn pair(key: &str, value: &str) -> Result<String, CniError> {
    let plain = |c: char| !matches!(c, ';' | '=') && !c.is_control();
    match value.len() <= VALUE_LIMIT_BYTES && value.chars().all(plain) {
        true => Ok(format!("{key}={value}")),
        false => {
            let shown: String = value.chars().take(80).collect();
            Err(CniError::Request(format!("{shown:?} cannot be told to CNI plugins as {key}")))
        }
    }
}

fn capabilities(
    config: &cri::PodSandboxConfig,
    network: &str,
    ranges: &[Cidr],
) -> Result<Map<String, Value>, CniError> {
    let mut all = Map::new();
    let mut add = |name: &str, value: Value| drop(all.insert(name.to_owned(), value));
    add("io.kubernetes.cri.pod-annotations", json!(config.annotations));
    let ports: Vec<Value> = config.port_mappings.iter().filter(|port| port.host_port > 0).map(port).collect();
    if !ports.is_empty() {
        add("portMappings", ports.into());
    }
    if let Some(limits) = bandwidth(config)? {
        add("bandwidth", limits);
    }
    if let Some(dns) = &config.dns_config {
        add("dns", json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options }));
    }
    if !ranges.is_empty() {
        let sets: Vec<Value> = ranges.iter().map(|range| json!([{ "subnet": range.to_string() }])).collect();
        add("ipRanges", sets.into());
    }
    let mut aliases = vec![config.metadata.as_ref().map_or("", |m| m.name.as_str()), config.hostname.as_str()];
    aliases.retain(|alias| !alias.is_empty());
    aliases.dedup();
    if !aliases.is_empty() {
        add("aliases", json!({ network: aliases }));
    }
    if let Some(linux) = config.linux.as_ref().filter(|linux| !linux.cgroup_parent.is_empty()) {
        add("cgroupPath", linux.cgroup_parent.as_str().into());
    }
    Ok(all)
}

fn port(port: &cri::PortMapping) -> Value {
    let mut told = json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol().as_str_name().to_ascii_lowercase(),
    });
    if !port.host_ip.is_empty() {
        told["hostIP"] = port.host_ip.as_str().into();
    }
    told
}

fn bandwidth(config: &cri::PodSandboxConfig) -> Result<Option<Value>, CniError> {
    let mut limits = Map::new();
    for (direction, annotation) in BANDWIDTH {
        let Some(text) = config.annotations.get(annotation) else { continue };
        let bits = quantity(text).filter(|bits| (BANDWIDTH_LIMITS.0..=BANDWIDTH_LIMITS.1).contains(bits));
        let bits = bits.ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            CniError::Request(format!("the annotation {annotation} is {shown:?}: 1k to 1P bits a second are expected"))
        })?;
        limits.insert(format!("{direction}Rate"), (bits as u64).into());
        limits.insert(format!("{direction}Burst"), BURST_BITS.into());
    }
    Ok((!limits.is_empty()).then_some(Value::Object(limits)))
}

/// A quantity of Kubernetes (`10M`, `1.5Gi`, `2e6`), rounded up.
fn quantity(text: &str) -> Option<f64> {
    let suffix = SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)));
    let (number, factor) = suffix.unwrap_or((text, 1.0));
    // Not what else a float may be written as: inf, nan.
    let plain = number.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E'));
    plain.then_some(())?;
    number.parse::<f64>().ok().map(|number| (number * factor).ceil())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(annotations: &[(&str, &str)]) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "u-1".into(),
                namespace: "shop".into(),
                attempt: 0,
            }),
            hostname: "web".into(),
            annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Default::default()
        }
    }

    fn told(config: &cri::PodSandboxConfig) -> Map<String, Value> {
        let ranges = ["10.1.0.0/24", "fd00::/64"].map(|range| range.parse().expect("a range"));
        Arguments::of(&PodId::random(), config, "net", &ranges).expect("arguments").capabilities
    }

    #[test]
    fn plugins_are_told_whose_pod_it_is() {
        let pod = PodId::random();
        let arguments = Arguments::of(&pod, &config(&[]), "net", &[]).expect("arguments");
        let expected = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={pod};K8S_POD_UID=u-1"
        );
        assert_eq!(arguments.text, expected);
        let mut hostile = config(&[]);
        hostile.metadata.as_mut().expect("it has one").name = "a;K8S_POD_NAMESPACE=kube-system".into();
        assert!(Arguments::of(&pod, &hostile, "net", &[]).is_err());
    }

    #[test]
    fn capabilities_are_as_the_plugins_read_them() {
        let mut config = config(&[("kubernetes.io/ingress-bandwidth", "10M"), ("a", "b")]);
        config.port_mappings = vec![
            cri::PortMapping { protocol: 1, container_port: 53, host_port: 5353, host_ip: "127.0.0.1".into() },
            cri::PortMapping { protocol: 0, container_port: 80, host_port: 0, host_ip: String::new() },
        ];
        config.dns_config = Some(cri::DnsConfig { servers: vec!["9.9.9.9".into()], ..Default::default() });
        config.linux = Some(cri::LinuxPodSandboxConfig { cgroup_parent: "/kubepods/x".into(), ..Default::default() });
        let told = told(&config);
        let port = json!([{ "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1" }]);
        assert_eq!(told["portMappings"], port);
        assert_eq!(told["bandwidth"], json!({ "ingressRate": 10_000_000, "ingressBurst": u32::MAX }));
        assert_eq!(told["ipRanges"], json!([[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00::/64" }]]));
        assert_eq!(told["dns"], json!({ "servers": ["9.9.9.9"], "searches": [], "options": [] }));
        assert_eq!(told["aliases"], json!({ "net": ["web"] }));
        assert_eq!(told["cgroupPath"], "/kubepods/x");
        assert_eq!(told["io.kubernetes.cri.pod-annotations"]["a"], "b");
    }

    #[test]
    fn a_bandwidth_is_a_quantity_within_reason() {
        for (text, expected) in [("1k", 1e3), ("1.5Mi", 1572864.0), ("2e6", 2e6), ("1000", 1e3), ("1500m", 2.0)] {
            assert_eq!(quantity(text), Some(expected), "{text}");
        }
        for bad in ["", "x", "10", "2P", "-1M", "inf", "nan", "1MM", "0x10"] {
            let config = config(&[("kubernetes.io/egress-bandwidth", bad)]);
            assert!(Arguments::of(&PodId::random(), &config, "net", &[]).is_err(), "{bad:?}");
        }
    }
}
