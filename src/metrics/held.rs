//! What there is when somebody asks: pods, containers, images, and what was pulled. All from memory.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::image::Images;
use crate::pod::Pods;
use crate::proto::cri;

/// See the module.
pub(super) struct Held {
    pub(super) pods: Pods,
    pub(super) images: Images,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

/// A figure with the value of its one label.
type Labelled = (&'static str, u64);

impl Held {
    fn pods(&self) -> [Labelled; 2] {
        let pods = self.pods.list_pod_sandbox(None);
        let count = |state: cri::PodSandboxState| pods.iter().filter(|pod| pod.state() == state).count() as u64;
        [
            ("ready", count(cri::PodSandboxState::SandboxReady)),
            ("not_ready", count(cri::PodSandboxState::SandboxNotready)),
        ]
    }

    fn containers(&self) -> [Labelled; 3] {
        let containers = self.pods.list_containers(None);
        let count = |state: cri::ContainerState| containers.iter().filter(|c| c.state() == state).count() as u64;
        [
            ("created", count(cri::ContainerState::ContainerCreated)),
            ("running", count(cri::ContainerState::ContainerRunning)),
            ("exited", count(cri::ContainerState::ContainerExited)),
        ]
    }
}

fn put<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<&Unit>),
    metric: impl Fn(u64) -> M,
    label: Option<&str>,
    values: &[Labelled],
) -> std::fmt::Result {
    let Some((_, first)) = values.first() else { return Ok(()) };
    let mut family = encoder.encode_descriptor(name, help, unit, metric(*first).metric_type())?;
    let Some(label) = label else { return metric(*first).encode(family) };
    for (word, value) in values {
        metric(*value).encode(family.encode_family(&[(label, *word)])?)?;
    }
    Ok(())
}

impl Collector for Held {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let gauge = |value: u64| ConstGauge::new(value as i64);
        let pulls = self.images.pull_counts();
        let ended = [("pulled", pulls.succeeded), ("failed", pulls.failed)];
        let images = [("", self.images.list().len() as u64)];
        let (pods, containers) = (self.pods(), self.containers());
        put(&mut encoder, ("cricket_pods", "Pods, by state", None), gauge, Some("state"), &pods)?;
        put(&mut encoder, ("cricket_containers", "Containers, by state", None), gauge, Some("state"), &containers)?;
        put(&mut encoder, ("cricket_images", "Images", None), gauge, None, &images)?;
        let help = "Image pulls that have ended, by outcome";
        put(&mut encoder, ("cricket_image_pulls", help, None), ConstCounter::<u64>::new, Some("outcome"), &ended)?;
        let help = "Bytes of layers fetched, compressed";
        let bytes = [("", pulls.bytes)];
        put(&mut encoder, ("cricket_image_pulled", help, Some(&Unit::Bytes)), ConstCounter::<u64>::new, None, &bytes)?;
        if let Ok((stored, written)) = self.images.usage() {
            let kept = [("images", stored.bytes), ("snapshots", written.bytes)];
            let help = "Disk in use, as last measured";
            put(&mut encoder, ("cricket_storage", help, Some(&Unit::Bytes)), gauge, Some("what"), &kept)?;
        }
        Ok(())
    }
}
