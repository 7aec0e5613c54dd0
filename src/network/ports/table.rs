//! Which pod has which host ports, and the forwarder that serves them. Lives in a thread of the daemon, in the host's
//! network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use super::process::{Launch, Link, wait_for_end};
use super::wire::{Forward, Reply, Request};
use super::{Destination, Job, PodPorts, PortMapping, PortsError, PortsOptions, Protocol, sctp, sockets};
use crate::store::PodId;

const HOST: &str = "the host";
const NODE: &str = "the node";

/// What one pod has.
#[derive(Debug)]
struct Held {
    ports: PodPorts,
    /// Without addresses until the pod has a network.
    destination: Destination,
    /// Until they are handed to the forwarder.
    sockets: Vec<(PortMapping, Vec<OwnedFd>)>,
}

/// See the module.
#[derive(Debug)]
pub struct Ports {
    launch: Launch,
    jobs: mpsc::Sender<Job>,
    pods: BTreeMap<PodId, Held>,
    link: Option<Link>,
    closed: bool,
}

impl Ports {
    /// With the forwarder that runs, if one does.
    pub fn new(options: PortsOptions, jobs: mpsc::Sender<Job>) -> Self {
        let PortsOptions { state, executable, node } = options;
        let launch = Launch { state, executable, namespace: node };
        let mut ports = Self { launch, jobs, pods: BTreeMap::new(), link: None, closed: false };
        match Link::to_running(&ports.launch.state) {
            Ok(Some(link)) => ports.take(link),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the forwarder of host ports cannot be reached"),
        }
        ports
    }

    /// Nobody asks any more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// See [`Ports::close`].
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn take(&mut self, link: Link) {
        let watched = link.watch().and_then(|watch| {
            let jobs = self.jobs.clone();
            let work = move || {
                wait_for_end(&watch);
                let _ = jobs.send(Box::new(Ports::begin_again));
            };
            std::thread::Builder::new().name("ports-watch".into()).stack_size(WATCH_STACK_BYTES).spawn(work)
        });
        if let Err(error) = watched {
            tracing::warn!(%error, "the forwarder of host ports is not watched");
        }
        self.link = Some(link);
    }

    fn link(&mut self) -> Result<&Link, PortsError> {
        if self.link.is_none() {
            let failed = |source| PortsError::Forwarder { action: "started", source };
            let link = Link::start(&self.launch).map_err(failed)?;
            self.take(link);
        }
        self.link.as_ref().ok_or(PortsError::Ended)
    }

    /// The forwarder has ended: another takes its place, as far as ports are free.
    fn begin_again(&mut self) {
        if let Some(link) = self.link.take() {
            link.finish(&self.launch.state);
        }
        if self.pods.values().all(|held| held.destination.addresses.is_empty()) {
            return;
        }
        tracing::warn!("the forwarder of host ports has ended and is started again; connections through it are lost");
        if let Err(error) = self.settle() {
            tracing::error!(%error, "host ports are not served");
        }
    }

    /// See [`super::HostPorts::reserve`].
    pub fn reserve(&mut self, pod: &PodId, ports: PodPorts) -> Result<(), PortsError> {
        self.refuse_taken(pod, &ports)?;
        let mut sctp = ports.mappings.iter().filter(|port| port.protocol == Protocol::Sctp);
        sctp.try_for_each(|port| sctp::refuse_unserved(port, self.launch.namespace.is_some()))?;
        let sockets = self.listen(&ports)?;
        self.pods.insert(pod.clone(), Held { ports, destination: Destination::default(), sockets });
        Ok(())
    }

    fn refuse_taken(&self, pod: &PodId, ports: &PodPorts) -> Result<(), PortsError> {
        for port in &ports.mappings {
            let has = |held: &Held| held.ports.mappings.iter().any(|other| other.collides(port));
            if let Some((id, held)) = self.pods.iter().find(|(id, held)| *id != pod && has(held)) {
                let holder = format!("pod {} ({})", held.ports.whom, id.short());
                return Err(PortsError::Taken { port: *port, holder });
            }
        }
        Ok(())
    }

    fn listen(&self, ports: &PodPorts) -> Result<Vec<(PortMapping, Vec<OwnedFd>)>, PortsError> {
        let mut sockets = Vec::new();
        for port in ports.mappings.iter().filter(|port| port.protocol != Protocol::Sctp) {
            let mut of_port = sockets::listen(port, HOST)?;
            if let Some(node) = &self.launch.namespace {
                of_port.extend(sockets::listen_in(node, port, NODE)?);
            }
            if of_port.is_empty() {
                return Err(PortsError::NoAddress { port: *port });
            }
            sockets.push((*port, of_port));
        }
        Ok(sockets)
    }

    /// See [`super::HostPorts::publish`].
    pub fn publish(&mut self, pod: &PodId, destination: Destination) -> Result<(), PortsError> {
        let Some(held) = self.pods.get_mut(pod) else { return Ok(()) };
        held.destination = destination;
        self.hand_over(pod)
    }

    fn hand_over(&mut self, pod: &PodId) -> Result<(), PortsError> {
        let Some(held) = self.pods.get_mut(pod) else { return Ok(()) };
        let (sockets, destination) = (std::mem::take(&mut held.sockets), held.destination.clone());
        let link = self.link()?;
        for (port, sockets) in &sockets {
            let targets = destination.addresses.iter().map(|ip| SocketAddr::new(*ip, port.pod_port)).collect();
            let (protocol, answers_return) = (port.protocol, destination.answers_return);
            let (pod, ranges) = (pod.clone(), destination.ranges.clone());
            let request = Request::Add(Forward { pod, protocol, targets, answers_return, ranges });
            let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            link.ask(&request, &borrowed).map_err(asking)?;
        }
        Ok(())
    }

    /// See [`super::HostPorts::release`].
    pub fn release(&mut self, pod: &PodId) -> Result<(), PortsError> {
        self.pods.remove(pod);
        match &self.link {
            Some(link) => self.is_gone_or(link.ask(&Request::Remove { pod: pod.clone() }, &[])).map(drop),
            None => Ok(()),
        }
    }

    /// A forwarder that has ended has nothing of anybody.
    fn is_gone_or(&self, asked: io::Result<Reply>) -> Result<Reply, PortsError> {
        match asked {
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                Ok(Reply::default())
            }
            other => other.map_err(asking),
        }
    }

    /// See [`super::HostPorts::adopt`].
    pub fn adopt(&mut self, pod: &PodId, ports: PodPorts, destination: Destination) {
        self.pods.insert(pod.clone(), Held { ports, destination, sockets: Vec::new() });
    }

    /// See [`super::HostPorts::settle`].
    pub fn settle(&mut self) -> Result<(), PortsError> {
        let served: BTreeSet<PodId> = match &self.link {
            Some(link) => self.is_gone_or(link.ask(&Request::List, &[]))?.pods.into_iter().collect(),
            None => BTreeSet::new(),
        };
        for pod in served.iter().filter(|pod| !self.pods.contains_key(*pod)) {
            if let Some(link) = &self.link {
                self.is_gone_or(link.ask(&Request::Remove { pod: pod.clone() }, &[]))?;
            }
        }
        let is_missing = |(id, held): &(&PodId, &Held)| !served.contains(*id) && !held.destination.addresses.is_empty();
        let missing: Vec<PodId> = self.pods.iter().filter(is_missing).map(|(id, _)| id.clone()).collect();
        for pod in missing {
            if let Err(error) = self.serve_again(&pod) {
                tracing::error!(pod = %pod, %error, "a pod has lost its host ports");
            }
        }
        Ok(())
    }

    fn serve_again(&mut self, pod: &PodId) -> Result<(), PortsError> {
        let Some(held) = self.pods.get(pod) else { return Ok(()) };
        let sockets = self.listen(&held.ports)?;
        if let Some(held) = self.pods.get_mut(pod) {
            held.sockets = sockets;
        }
        self.hand_over(pod)
    }
}

/// The thread waits for one event.
const WATCH_STACK_BYTES: usize = 64 << 10;

fn asking(source: io::Error) -> PortsError {
    PortsError::Forwarder { action: "asked", source }
}
