//! Which pod has which host ports, and the forwarder that serves them. Lives in a thread of the daemon, in the host's
//! network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};

use super::process::{AskError, Launch, Link, PATIENCE, wait_for_end};
use super::wire::{Forward, Reply, Request};
use super::{Destination, Job, PodPorts, PortMapping, PortsError, PortsOptions, Protocol, sctp, sockets};
use crate::store::PodId;
use crate::sys::lookout::Lookout;

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
    lookout: Option<Arc<Lookout>>,
    jobs: mpsc::Sender<Job>,
    pods: BTreeMap<PodId, Held>,
    link: Option<Link>,
    /// Of the link, to tell the end of one before it.
    number: u64,
    closed: bool,
}

impl Ports {
    /// With the forwarder that runs, if one does.
    pub fn new(options: PortsOptions, jobs: mpsc::Sender<Job>) -> Self {
        let PortsOptions { state, executable, node, lookout } = options;
        Self::with(Launch { state, executable, namespace: node, patience: PATIENCE }, lookout, jobs)
    }

    fn with(launch: Launch, lookout: Option<Arc<Lookout>>, jobs: mpsc::Sender<Job>) -> Self {
        let mut ports = Self { launch, lookout, jobs, pods: BTreeMap::new(), link: None, number: 0, closed: false };
        match Link::find(&ports.launch) {
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
        self.number += 1;
        let number = self.number;
        let watched = link.watch().and_then(|watch| {
            let jobs = self.jobs.clone();
            let work = move || {
                wait_for_end(&watch);
                let _ = jobs.send(Box::new(move |ports| ports.on_end(number)));
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
            let found = Link::find(&self.launch).map_err(failed)?;
            let link = found.map_or_else(|| Link::start(&self.launch), Ok).map_err(failed)?;
            self.take(link);
        }
        self.link.as_ref().ok_or(PortsError::Ended)
    }

    fn on_end(&mut self, number: u64) {
        if number == self.number && self.link.is_some() {
            let _ = self.drop_link();
            self.serve_all_again();
        }
    }

    /// What is left of the forwarder goes with it.
    fn drop_link(&mut self) -> Result<(), PortsError> {
        let Some(link) = self.link.take() else { return Ok(()) };
        let finished = link.finish(&self.launch.state);
        finished.map_err(|source| {
            tracing::warn!(error = %source, "what is left of the forwarder of host ports cannot be ended");
            PortsError::Forwarder { action: "ended", source }
        })
    }

    /// The forwarder has ended: another takes its place, as far as ports are free.
    fn serve_all_again(&mut self) {
        if self.pods.values().all(|held| held.destination.addresses.is_empty()) {
            return;
        }
        tracing::warn!("the forwarder of host ports has ended and is started again; connections through it are lost");
        if let Err(error) = self.settle() {
            tracing::error!(%error, "host ports are not served");
        }
    }

    /// A forwarder that does not answer is ended, and another takes its place.
    fn ask(&mut self, request: &Request, sockets: &[BorrowedFd<'_>]) -> Result<Reply, PortsError> {
        let source = match self.link()?.ask(request, sockets) {
            Ok(reply) => return Ok(reply),
            Err(AskError::Refused(why)) => {
                return Err(PortsError::Forwarder { action: "asked", source: io::Error::other(why) });
            }
            Err(AskError::Unanswered(source)) => source,
        };
        tracing::warn!(error = %source, "the forwarder of host ports does not answer");
        self.drop_link()?;
        // After what asked for this, which has pods that others wait for.
        let _ = self.jobs.send(Box::new(Self::serve_all_again));
        Err(PortsError::Unanswered(source))
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
        let lookout = self.lookout.as_deref();
        let mut sockets = Vec::new();
        for port in ports.mappings.iter().filter(|port| port.protocol != Protocol::Sctp) {
            let mut of_port = sockets::listen(port, HOST, lookout)?;
            if let Some(node) = &self.launch.namespace {
                of_port.extend(sockets::listen_in(node, port, NODE, lookout)?);
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
        match self.give(pod, &sockets, &destination) {
            // The next one has nothing of this pod.
            Err(PortsError::Unanswered(_)) => self.give(pod, &sockets, &destination),
            other => other,
        }
    }

    fn give(
        &mut self,
        pod: &PodId,
        sockets: &[(PortMapping, Vec<OwnedFd>)],
        destination: &Destination,
    ) -> Result<(), PortsError> {
        for (port, sockets) in sockets {
            let targets = destination.addresses.iter().map(|ip| SocketAddr::new(*ip, port.pod_port)).collect();
            let (protocol, answers_return) = (port.protocol, destination.answers_return);
            let (pod, ranges) = (pod.clone(), destination.ranges.clone());
            let request = Request::Add(Forward { pod, protocol, targets, answers_return, ranges });
            let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            self.ask(&request, &borrowed)?;
        }
        Ok(())
    }

    /// See [`super::HostPorts::release`].
    pub fn release(&mut self, pod: &PodId) -> Result<(), PortsError> {
        self.pods.remove(pod);
        self.ask_if_there(&Request::Remove { pod: pod.clone() }).map(drop)
    }

    /// A forwarder that has ended has nothing of anybody.
    fn ask_if_there(&mut self, request: &Request) -> Result<Reply, PortsError> {
        if self.link.is_none() {
            return Ok(Reply::default());
        }
        match self.ask(request, &[]) {
            Err(PortsError::Unanswered(_)) => Ok(Reply::default()),
            other => other,
        }
    }

    /// See [`super::HostPorts::adopt`].
    pub fn adopt(&mut self, pod: &PodId, ports: PodPorts, destination: Destination) {
        self.pods.insert(pod.clone(), Held { ports, destination, sockets: Vec::new() });
    }

    /// See [`super::HostPorts::settle`].
    pub fn settle(&mut self) -> Result<(), PortsError> {
        let served: BTreeSet<PodId> = self.ask_if_there(&Request::List)?.pods.into_iter().collect();
        for pod in served.iter().filter(|pod| !self.pods.contains_key(*pod)).cloned().collect::<Vec<_>>() {
            self.ask_if_there(&Request::Remove { pod })?;
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

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
