//! Calls answered, by method and gRPC code, and how long they took.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper ends of the durations' classes, in seconds: from lists out of memory to pulls of large images.
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

/// See the module. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Calls {
    answered: Family<Answered, Counter>,
    durations: Family<Method, Histogram, fn() -> Histogram>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { answered: Family::default(), durations: Family::new_with_constructor(|| Histogram::new(SECONDS)) }
    }
}

impl Calls {
    /// A call has ended; `method` and `code` are of a few words known beforehand.
    pub fn ended(&self, method: &'static str, code: &'static str, took: Duration) {
        self.answered.get_or_create(&Answered { method, code }).inc();
        self.durations.get_or_create(&Method { method }).observe(took.as_secs_f64());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("cricket_calls", "Calls answered, by method and gRPC code", self.answered.clone());
        let help = "Seconds from a call to its answer (of a stream: to its beginning)";
        registry.register("cricket_call_duration_seconds", help, self.durations.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_apart_by_method_and_code() {
        let (calls, mut registry) = (Calls::default(), Registry::default());
        calls.register(&mut registry);
        calls.ended("version", "Ok", Duration::from_millis(1));
        calls.ended("version", "Ok", Duration::from_millis(3));
        calls.ended("exec_sync", "DeadlineExceeded", Duration::from_secs(200));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encoded");
        for line in [
            "cricket_calls_total{method=\"version\",code=\"Ok\"} 2",
            "cricket_calls_total{method=\"exec_sync\",code=\"DeadlineExceeded\"} 1",
            "cricket_call_duration_seconds_count{method=\"version\"} 2",
            "cricket_call_duration_seconds_bucket{le=\"120.0\",method=\"exec_sync\"} 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
