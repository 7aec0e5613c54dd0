//! Puts the metrics behind the CRI's calls, which do not know them.

use std::time::Duration;

use crate::cri::CallObserver;
use crate::metrics::Calls;

/// See the module.
pub struct Observer(pub Calls);

impl CallObserver for Observer {
    fn ended(&self, method: &'static str, code: &'static str, took: Duration) {
        self.0.ended(method, code, took);
    }
}
