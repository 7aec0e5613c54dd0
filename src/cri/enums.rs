//! Enumerations of a request. A value that this version does not know would be read as the first one, which may be
//! the less safe one: it is refused, as InvalidArgument that names field and value.

use tonic::Status;

use crate::proto::cri::security_profile::ProfileType;
use crate::proto::cri::{
    ContainerConfig, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, MountPropagation, NamespaceMode,
    NamespaceOption, PodSandboxConfig, Protocol, SecurityProfile, Signal, SupplementalGroupsPolicy,
};

/// Every enumeration of a sandbox's configuration.
pub fn of_sandbox(config: &PodSandboxConfig) -> Result<(), Status> {
    for mapping in &config.port_mappings {
        known::<Protocol>(mapping.protocol, "port_mappings.protocol")?;
    }
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.map_or(Ok(()), of_sandbox_context)
}

/// Every enumeration of a container's configuration.
pub fn of_container(config: &ContainerConfig) -> Result<(), Status> {
    known::<Signal>(config.stop_signal, "stop_signal")?;
    for mount in &config.mounts {
        known::<MountPropagation>(mount.propagation, "mounts.propagation")?;
    }
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.map_or(Ok(()), of_container_context)
}

fn of_sandbox_context(context: &LinuxSandboxSecurityContext) -> Result<(), Status> {
    of_namespaces(context.namespace_options.as_ref())?;
    of_profile(context.seccomp.as_ref(), "seccomp.profile_type")?;
    of_profile(context.apparmor.as_ref(), "apparmor.profile_type")?;
    known::<SupplementalGroupsPolicy>(context.supplemental_groups_policy, "supplemental_groups_policy")
}

fn of_container_context(context: &LinuxContainerSecurityContext) -> Result<(), Status> {
    of_namespaces(context.namespace_options.as_ref())?;
    of_profile(context.seccomp.as_ref(), "seccomp.profile_type")?;
    of_profile(context.apparmor.as_ref(), "apparmor.profile_type")?;
    known::<SupplementalGroupsPolicy>(context.supplemental_groups_policy, "supplemental_groups_policy")
}

fn of_namespaces(options: Option<&NamespaceOption>) -> Result<(), Status> {
    let Some(options) = options else { return Ok(()) };
    known::<NamespaceMode>(options.network, "namespace_options.network")?;
    known::<NamespaceMode>(options.pid, "namespace_options.pid")?;
    known::<NamespaceMode>(options.ipc, "namespace_options.ipc")?;
    let user = options.userns_options.as_ref();
    user.map_or(Ok(()), |user| known::<NamespaceMode>(user.mode, "namespace_options.userns_options.mode"))
}

fn of_profile(profile: Option<&SecurityProfile>, field: &str) -> Result<(), Status> {
    profile.map_or(Ok(()), |profile| known::<ProfileType>(profile.profile_type, field))
}

fn known<T: TryFrom<i32>>(value: i32, field: &str) -> Result<(), Status> {
    let unknown = |_| Status::invalid_argument(format!("{field}: {value} is not a value that cricket knows"));
    T::try_from(value).map(|_| ()).map_err(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::cri::{LinuxContainerConfig, LinuxPodSandboxConfig, Mount, PortMapping, UserNamespace};

    const UNKNOWN: i32 = 99;

    fn sandbox(context: LinuxSandboxSecurityContext) -> PodSandboxConfig {
        let linux = LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
        PodSandboxConfig { linux: Some(linux), ..Default::default() }
    }

    fn container(context: LinuxContainerSecurityContext) -> ContainerConfig {
        let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
        ContainerConfig { linux: Some(linux), ..Default::default() }
    }

    #[test]
    fn an_unknown_value_of_a_sandbox_is_refused_by_field() {
        let profile = Some(SecurityProfile { profile_type: UNKNOWN, ..Default::default() });
        let options = |options| Some(options);
        let user = Some(UserNamespace { mode: UNKNOWN, ..Default::default() });
        let cases = [
            (
                PodSandboxConfig {
                    port_mappings: vec![PortMapping { protocol: UNKNOWN, ..Default::default() }],
                    ..Default::default()
                },
                "port_mappings.protocol",
            ),
            (sandbox(LinuxSandboxSecurityContext { seccomp: profile.clone(), ..Default::default() }), "seccomp"),
            (sandbox(LinuxSandboxSecurityContext { apparmor: profile, ..Default::default() }), "apparmor"),
            (
                sandbox(LinuxSandboxSecurityContext {
                    namespace_options: options(NamespaceOption { network: UNKNOWN, ..Default::default() }),
                    ..Default::default()
                }),
                "namespace_options.network",
            ),
            (
                sandbox(LinuxSandboxSecurityContext {
                    namespace_options: options(NamespaceOption { userns_options: user, ..Default::default() }),
                    ..Default::default()
                }),
                "userns_options.mode",
            ),
        ];
        for (config, field) in cases {
            let status = of_sandbox(&config).expect_err(field);
            assert!(status.code() == tonic::Code::InvalidArgument && status.message().contains(field), "{status}");
        }
        assert!(of_sandbox(&sandbox(LinuxSandboxSecurityContext::default())).is_ok());
    }

    #[test]
    fn an_unknown_value_of_a_container_is_refused_by_field() {
        let profile = Some(SecurityProfile { profile_type: -1, ..Default::default() });
        let cases = [
            (ContainerConfig { stop_signal: 4711, ..Default::default() }, "stop_signal"),
            (
                ContainerConfig {
                    mounts: vec![Mount { propagation: UNKNOWN, ..Default::default() }],
                    ..Default::default()
                },
                "mounts.propagation",
            ),
            (container(LinuxContainerSecurityContext { seccomp: profile, ..Default::default() }), "seccomp"),
            (
                container(LinuxContainerSecurityContext {
                    namespace_options: Some(NamespaceOption { pid: UNKNOWN, ..Default::default() }),
                    ..Default::default()
                }),
                "namespace_options.pid",
            ),
            (
                container(LinuxContainerSecurityContext { supplemental_groups_policy: 2, ..Default::default() }),
                "supplemental_groups_policy",
            ),
        ];
        for (config, field) in cases {
            let status = of_container(&config).expect_err(field);
            assert!(status.code() == tonic::Code::InvalidArgument && status.message().contains(field), "{status}");
        }
        assert!(of_container(&container(LinuxContainerSecurityContext::default())).is_ok());
    }
}
