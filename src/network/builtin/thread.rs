//! The thread in which the built-in network lives, and the handle by which the daemon's tasks reach it.

use std::os::fd::OwnedFd;
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::{Builtin, BuiltinOptions};
use crate::network::ports::PortMapping;
use crate::network::{Cidr, NetworkError, PodNetwork};
use crate::store::PodId;

type Job = Box<dyn FnOnce(&mut Builtin) + Send>;

/// The built-in network of the node's pods. Cheap to clone; calls are carried out one after the other.
#[derive(Debug, Clone)]
pub struct BuiltinThread {
    jobs: mpsc::Sender<Job>,
}

impl BuiltinThread {
    /// Makes the bridge and the rules where they are not there yet.
    pub async fn start(options: BuiltinOptions) -> Result<Self, NetworkError> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (started, outcome) = oneshot::channel();
        std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || match Builtin::start(options) {
                Ok(mut network) => {
                    let _ = started.send(Ok(()));
                    while let Ok(job) = todo.recv() {
                        job(&mut network);
                    }
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(NetworkError::kernel("start the network thread"))?;
        outcome.await.map_err(|_| NetworkError::Ended)??;
        Ok(Self { jobs })
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Builtin) -> T + Send + 'static,
    ) -> Result<T, NetworkError> {
        let (done, outcome) = oneshot::channel();
        let job: Job = Box::new(move |network| {
            let _ = done.send(job(network));
        });
        self.jobs.send(job).map_err(|_| NetworkError::Ended)?;
        outcome.await.map_err(|_| NetworkError::Ended)
    }

    /// See [`Builtin::set_up`].
    pub async fn set_up(
        &self,
        pod: &PodId,
        namespace: OwnedFd,
        ports: Vec<PortMapping>,
    ) -> Result<PodNetwork, NetworkError> {
        let pod = pod.clone();
        self.run(move |network| network.set_up(&pod, &namespace, &ports)).await?
    }

    /// See [`Builtin::adopt`].
    pub async fn adopt(&self, pod: &PodId, had: &PodNetwork, ports: Vec<PortMapping>) -> Result<(), NetworkError> {
        let (pod, had) = (pod.clone(), had.clone());
        self.run(move |network| network.adopt(&pod, &had, &ports)).await
    }

    /// See [`Builtin::settle`].
    pub async fn settle(&self, others: Vec<PodId>) -> Result<(), NetworkError> {
        self.run(move |network| network.settle(&others)).await?
    }

    /// See [`Builtin::tear_down`].
    pub async fn tear_down(&self, pod: &PodId) -> Result<(), NetworkError> {
        let pod = pod.clone();
        self.run(move |network| network.tear_down(&pod)).await?
    }

    /// See [`Builtin::look_after`].
    pub async fn look_after(&self) -> Result<(), NetworkError> {
        self.run(Builtin::look_after).await?
    }

    /// See [`Builtin::change_ranges`].
    pub async fn change_ranges(&self, cidrs: Vec<Cidr>) -> Result<(), NetworkError> {
        self.run(move |network| network.change_ranges(cidrs)).await?
    }
}
