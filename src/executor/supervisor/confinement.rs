//! The seccomp filter of a container's first process: the specification that libcontainer gets has none, for it would
//! compile it inside every container. What libcontainer would have done is done here, in the same process.
//!
//! A filter needs `no_new_privs` or CAP_SYS_ADMIN, and everything done under it has to be allowed by it:
//!
//! ```text
//! no_new_privs      libcontainer drops the capabilities     ... wait for start ... filter, execve
//! without it        libcontainer leaves all capabilities    filter, bounding set, ids are set already, capabilities, wait ...
//! ```
//!
//! In the second case no program of the image runs while the capabilities are still there: both are gone before the
//! container counts as created. A profile with a listener stays libcontainer's.

use std::path::Path;

use super::credentials;
use super::fault::{Fault, Result};
use super::filters;
use super::process_settings::Capabilities;
use super::runtime::oci;
use super::seccomp::{self, Filter};

/// What libcontainer leaves to us.
#[derive(Debug, Clone)]
pub enum Confinement {
    /// Nothing: the container is unconfined, or libcontainer does it.
    None,
    /// The process cannot gain privileges: the filter is the last thing before execve.
    Late(Filter),
    /// The filter while there is the capability to install it; then the capabilities (`None`: all are kept).
    Early(Filter, Option<Held>),
}

/// Capabilities that the process keeps.
#[derive(Debug, Clone)]
pub struct Held {
    wanted: Capabilities,
    /// Of this kernel; read while its /proc can be seen.
    last: u32,
}

impl Confinement {
    /// Of the specification, which then has no filter, and no capabilities either where they are needed to install it.
    pub fn take_from(spec: &mut oci::Spec, store: &Path, bundle: &Path) -> Result<Self> {
        let Some(linux) = spec.linux_mut() else { return Ok(Self::None) };
        let Some(profile) = linux.seccomp().clone() else { return Ok(Self::None) };
        // Execs have this one.
        let filter = filters::provide(&profile, store, bundle)?;
        if seccomp::has_listener(&profile) {
            return Ok(Self::None);
        }
        let process =
            spec.process_mut().as_mut().ok_or_else(|| Fault::invalid("the container's spec has no process"))?;
        let confinement = if process.no_new_privileges().unwrap_or(false) {
            Self::Late(filter)
        } else {
            let held = process.capabilities().as_ref().map(held).transpose()?;
            process.set_capabilities(None);
            Self::Early(filter, held)
        };
        // Last: from here on nobody but us installs it.
        spec.linux_mut().iter_mut().for_each(|linux| {
            linux.set_seccomp(None);
        });
        Ok(confinement)
    }

    /// Whether the filter is there before libcontainer has done all of its part.
    pub fn is_early(&self) -> bool {
        matches!(self, Self::Early(..))
    }

    /// When libcontainer has done all of its part.
    pub fn begin(&self) -> Result<()> {
        let Self::Early(filter, held) = self else { return Ok(()) };
        if let Some(held) = held {
            credentials::narrow_bounding_set(&held.wanted, held.last)?;
        }
        filter.install()?;
        held.as_ref().map_or(Ok(()), |held| credentials::set_capabilities(&held.wanted))
    }

    /// Right before execve.
    pub fn complete(&self) -> Result<()> {
        match self {
            Self::Late(filter) => filter.install(),
            Self::None | Self::Early(..) => Ok(()),
        }
    }
}

/// By the names that the specification has for them.
fn held(capabilities: &oci::LinuxCapabilities) -> Result<Held> {
    let wanted = serde_json::to_value(capabilities)
        .and_then(serde_json::from_value)
        .map_err(Fault::because("cannot understand the container's capabilities"))?;
    Ok(Held { wanted, last: credentials::last_capability() })
}
