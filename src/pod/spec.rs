//! The only author of an OCI runtime specification: everything that libcontainer is told comes from here.
//!
//! This is the one file beside the supervisor's `runtime.rs` that names `libcontainer`, and it names the re-exported
//! types of the specification only, never a function; the rest of the domain reaches them as [`oci`].
//!
//! What the specification leaves out, and why:
//! * network, IPC and UTS namespaces, hostname, sysctls: the supervisor lives in them already;
//! * the path of the pod's own user namespace: the supervisor has it;
//! * a shared PID namespace: the supervisor enters it (`CreateContainer.pid` says which);
//! * `noNewPrivileges: false`: libcontainer takes its presence for a yes when it loads a filter;
//! * `oomScoreAdj`, per-mount propagation, annotations, hooks: the first two are the supervisor's work, the last two
//!   are nobody's.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

pub(crate) use libcontainer::oci_spec::runtime as oci;

use crate::image::ImageConfig;
use crate::pod::args::{self, Defaults};
use crate::pod::capabilities::{self, CapabilitySet};
use crate::pod::devices;
use crate::pod::error::PodError;
use crate::pod::facts::Facts;
use crate::pod::modules;
use crate::pod::mounts::{self, Mounts};
use crate::pod::users::ContainerUser;
use crate::pod::volumes::Volumes;
use crate::pod::{resources, seccomp};
use crate::proto::{cri, supervisor as wire};
use crate::rootless::Cgroups;
use crate::sys::owners::IdRange;

/// The release of the specification that is written.
const OCI_VERSION: &str = "1.2.0";
/// Path of the root file system, from the bundle.
pub(crate) const ROOT: &str = "rootfs";

/// Which namespaces a container shares with whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Modes {
    pub(crate) network: wire::NamespaceMode,
    pub(crate) ipc: wire::NamespaceMode,
    pub(crate) pid: wire::NamespaceMode,
}

/// Everything that a specification is made of.
pub(crate) struct Container<'a> {
    pub(crate) config: &'a cri::ContainerConfig,
    pub(crate) image: &'a ImageConfig,
    pub(crate) user: &'a ContainerUser,
    pub(crate) modes: Modes,
    /// Of the pod's own user namespace.
    pub(crate) ids: Option<IdRange>,
    pub(crate) hostname: &'a str,
    /// Of the pod, with its files.
    pub(crate) state_dir: &'a Path,
    /// Where the specification goes.
    pub(crate) bundle: &'a Path,
    pub(crate) volumes: &'a Volumes,
    /// Absolute, from the cgroup file system's root.
    pub(crate) cgroup: PathBuf,
    pub(crate) cgroups: &'a Cgroups,
    pub(crate) facts: &'a Facts,
}

/// A specification, and what goes with it to the supervisor.
pub(crate) struct Specification {
    pub(crate) spec: oci::Spec,
    pub(crate) propagations: Vec<wire::Propagation>,
    /// Limits that cannot be enforced, a sentence each.
    pub(crate) not_enforced: Vec<String>,
}

impl Container<'_> {
    fn linux(&self) -> cri::LinuxContainerConfig {
        self.config.linux.clone().unwrap_or_default()
    }

    /// The request's security context, or the default one.
    pub(crate) fn security(&self) -> cri::LinuxContainerSecurityContext {
        self.linux().security_context.unwrap_or_default()
    }

    /// Writes the specification.
    pub(crate) fn specification(&self) -> Result<Specification, PodError> {
        let security = self.security();
        modules::refuse_selinux(security.selinux_options.as_ref(), self.facts)?;
        let capabilities = capabilities::resolve(&security, &self.facts.capabilities)?;
        let mounts = mounts::resolve(self)?;
        let wish = self.linux().resources.unwrap_or_default();
        let (limits, not_enforced) = resources::resolve(&wish, self.cgroups);
        let devices = devices::resolve(self.config, security.privileged)?;
        let mut list = mounts.list.clone();
        list.extend(devices.binds);
        let mut root = oci::Root::default();
        root.set_path(ROOT.into()).set_readonly(Some(security.readonly_rootfs));
        let mut linux = self.linux_part(&security, &mounts, &capabilities.held)?;
        linux.set_resources(limits).set_devices(Some(devices.nodes).filter(|d| !d.is_empty()));
        let mut spec = oci::Spec::default();
        spec.set_version(OCI_VERSION.to_owned())
            .set_hostname(None)
            .set_annotations(None)
            .set_root(Some(root))
            .set_mounts(Some(list))
            .set_process(Some(self.process(&security, &capabilities)?))
            .set_linux(Some(linux));
        Ok(Specification { spec, propagations: mounts.propagations, not_enforced })
    }

    fn process(
        &self,
        security: &cri::LinuxContainerSecurityContext,
        capabilities: &CapabilitySet,
    ) -> Result<oci::Process, PodError> {
        let mut user = oci::User::default();
        user.set_uid(self.user.uid).set_gid(self.user.gid).set_additional_gids(Some(self.user.groups.clone()));
        let defaults = Defaults { hostname: self.hostname, home: &self.user.home, terminal: self.config.tty };
        let mut process = oci::Process::default();
        process
            .set_terminal(Some(self.config.tty))
            .set_user(user)
            .set_args(Some(args::arguments(self.config, self.image)?))
            .set_env(Some(args::environment(self.config, self.image, defaults)?))
            .set_cwd(args::working_directory(self.config, self.image)?)
            .set_capabilities(Some(sets(capabilities)))
            .set_rlimits(None)
            .set_apparmor_profile(modules::apparmor(security, self.facts)?)
            .set_no_new_privileges(Some(true).filter(|_| security.no_new_privs && !security.privileged))
            .set_oom_score_adj(None);
        Ok(process)
    }

    fn linux_part(
        &self,
        security: &cri::LinuxContainerSecurityContext,
        mounts: &Mounts,
        held: &BTreeSet<&'static str>,
    ) -> Result<oci::Linux, PodError> {
        let mut kinds = vec![oci::LinuxNamespaceType::Mount, oci::LinuxNamespaceType::Cgroup];
        if self.modes.pid == wire::NamespaceMode::Container {
            kinds.push(oci::LinuxNamespaceType::Pid);
        }
        kinds.extend(self.ids.map(|_| oci::LinuxNamespaceType::User));
        let guarded = |list: &[String]| Some(list.to_vec()).filter(|l| !l.is_empty() && !security.privileged);
        let mut linux = oci::Linux::default();
        linux
            .set_namespaces(Some(kinds.into_iter().map(namespace).collect()))
            .set_uid_mappings(self.ids.map(mounts::mappings))
            .set_gid_mappings(self.ids.map(mounts::mappings))
            .set_cgroups_path(Some(self.cgroup.clone()))
            .set_seccomp(seccomp::resolve(security, held)?)
            .set_masked_paths(guarded(&security.masked_paths))
            .set_readonly_paths(guarded(&security.readonly_paths))
            .set_rootfs_propagation(Some("shared".to_owned()).filter(|_| mounts.is_shared()))
            .set_sysctl(None::<HashMap<String, String>>);
        Ok(linux)
    }
}

fn namespace(kind: oci::LinuxNamespaceType) -> oci::LinuxNamespace {
    let mut namespace = oci::LinuxNamespace::default();
    namespace.set_typ(kind).set_path(None);
    namespace
}

fn sets(capabilities: &CapabilitySet) -> oci::LinuxCapabilities {
    let set = |names: &BTreeSet<&'static str>| {
        let known = |name: &&str| serde_json::from_value(serde_json::Value::String(format!("CAP_{name}")));
        Some(names.iter().map(|name| known(name).expect("a name of our list")).collect::<oci::Capabilities>())
    };
    let mut sets = oci::LinuxCapabilities::default();
    sets.set_bounding(set(&capabilities.held))
        .set_effective(set(&capabilities.held))
        .set_permitted(set(&capabilities.held))
        .set_inheritable(set(&capabilities.ambient))
        .set_ambient(set(&capabilities.ambient));
    sets
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A container with nothing special about it.
    pub(crate) struct Fixture {
        pub(crate) config: cri::ContainerConfig,
        pub(crate) image: ImageConfig,
        pub(crate) modes: Modes,
        pub(crate) ids: Option<IdRange>,
        pub(crate) volumes: Volumes,
        user: ContainerUser,
        cgroups: Cgroups,
        facts: Facts,
    }

    impl Default for Fixture {
        fn default() -> Self {
            use wire::NamespaceMode::{Container, Pod};
            let facts = Facts {
                capabilities: capabilities::of_mask(u64::MAX),
                ..Facts::read().expect("this machine has facts")
            };
            Self {
                config: cri::ContainerConfig { command: vec!["/bin/true".into()], ..Default::default() },
                image: ImageConfig::default(),
                modes: Modes { network: Pod, ipc: Pod, pid: Container },
                ids: None,
                volumes: Volumes::default(),
                user: ContainerUser { uid: 0, gid: 0, groups: vec![0], home: "/root".into() },
                cgroups: Cgroups::default(),
                facts,
            }
        }
    }

    impl Fixture {
        pub(crate) fn container(&self) -> Container<'_> {
            Container {
                config: &self.config,
                image: &self.image,
                user: &self.user,
                modes: self.modes,
                ids: self.ids,
                hostname: "web",
                state_dir: Path::new("/run/cricket/pods/x"),
                bundle: Path::new("/run/cricket/pods/x/containers/y"),
                volumes: &self.volumes,
                cgroup: "/cricket/x/y".into(),
                cgroups: &self.cgroups,
                facts: &self.facts,
            }
        }

        fn security(&mut self) -> &mut cri::LinuxContainerSecurityContext {
            self.config.linux.get_or_insert_default().security_context.get_or_insert_default()
        }
    }

    fn json(fixture: &Fixture) -> serde_json::Value {
        let specification = fixture.container().specification().unwrap_or_else(|e| panic!("{e}"));
        serde_json::to_value(specification.spec).expect("JSON")
    }

    #[test]
    fn a_plain_container_has_what_libcontainer_must_see_and_nothing_else() {
        let spec = json(&Fixture::default());
        for absent in ["hostname", "annotations", "hooks"] {
            assert!(spec.get(absent).is_none(), "{absent}");
        }
        for absent in ["noNewPrivileges", "oomScoreAdj", "rlimits", "apparmorProfile"] {
            assert!(spec["process"].get(absent).is_none(), "{absent}");
        }
        for absent in ["seccomp", "sysctl", "resources", "devices", "uidMappings"] {
            assert!(spec["linux"].get(absent).is_none_or(|v| v.is_null()), "{absent}: {}", spec["linux"][absent]);
        }
        let kinds: Vec<_> =
            spec["linux"]["namespaces"].as_array().expect("a list").iter().map(|n| &n["type"]).collect();
        assert_eq!(kinds, ["mount", "cgroup", "pid"]);
        assert_eq!(spec["linux"]["cgroupsPath"], "/cricket/x/y");
        let env = spec["process"]["env"].as_array().expect("a list");
        assert!(env.iter().any(|v| v == "HOME=/root") && env.iter().any(|v| v == "HOSTNAME=web"));
        assert_eq!(spec["process"]["capabilities"]["inheritable"], serde_json::json!([]));
    }

    #[test]
    fn annotations_and_labels_of_request_and_image_change_nothing() {
        let plain = json(&Fixture::default());
        let mut fixture = Fixture::default();
        for key in
            ["org.systemd.property.Delegate", "run.oci.hooks.stderr", "io.kubernetes.cri-o.Devices", "cdi.k8s.io/x"]
        {
            fixture.config.annotations.insert(key.into(), "/dev/sda:/dev/sda".into());
            fixture.config.labels.insert(key.into(), "x".into());
            fixture.image.labels.insert(key.into(), "x".into());
        }
        assert_eq!(json(&fixture)["process"]["args"], plain["process"]["args"]);
        assert_eq!(json(&fixture)["mounts"], plain["mounts"]);
        assert_eq!(json(&fixture).as_object().expect("one").len(), plain.as_object().expect("one").len());
    }

    #[test]
    fn a_privileged_container_is_not_masked_or_filtered() {
        let mut fixture = Fixture::default();
        *fixture.security() = cri::LinuxContainerSecurityContext {
            privileged: true,
            no_new_privs: true,
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            ..Default::default()
        };
        let spec = json(&fixture);
        assert!(spec["linux"].get("maskedPaths").is_none_or(|v| v.is_null()));
        assert!(spec["linux"].get("readonlyPaths").is_none_or(|v| v.is_null()));
        assert!(spec["process"].get("noNewPrivileges").is_none());
    }
}
