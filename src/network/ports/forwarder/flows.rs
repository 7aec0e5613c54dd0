//! The flows of datagrams that there are, and which of them makes room for another: a port whose clients are too many
//! costs no other port's a flow.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::datagram::Flow;

/// Flows that are looked at to find one that nobody misses.
const LOOKS: usize = 64;

/// By their numbers. See the module.
#[derive(Debug)]
pub struct Flows {
    limit: usize,
    /// With their listeners.
    flows: BTreeMap<u64, (u64, Flow)>,
    /// Of each listener, in the order in which they began or were looked at; some are gone.
    orders: BTreeMap<u64, Order>,
}

#[derive(Debug, Default)]
struct Order {
    flows: VecDeque<(u64, Instant)>,
    /// Of those that are there.
    count: usize,
}

impl Flows {
    /// At most so many at a time.
    pub fn new(limit: usize) -> Self {
        Self { limit, flows: BTreeMap::new(), orders: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.flows.len() >= self.limit
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut (u64, Flow)> {
        self.flows.get_mut(&id)
    }

    pub fn insert(&mut self, id: u64, listener: u64, flow: Flow) {
        let order = self.orders.entry(listener).or_default();
        order.flows.push_back((id, flow.used()));
        order.count += 1;
        self.flows.insert(id, (listener, flow));
    }

    pub fn remove(&mut self, id: u64) -> Option<(u64, Flow)> {
        let (listener, flow) = self.flows.remove(&id)?;
        if let Some(order) = self.orders.get_mut(&listener) {
            order.count -= 1;
            // What is gone stands in the order until somebody looks.
            if order.flows.len() > 2 * order.count + LOOKS {
                order.flows.retain(|(id, _)| self.flows.contains_key(id));
            }
            if order.count == 0 {
                self.orders.remove(&listener);
            }
        }
        Some((listener, flow))
    }

    /// Those that have carried nothing for long.
    pub fn idle(&self, now: Instant) -> Vec<u64> {
        self.flows.iter().filter(|(_, (_, flow))| flow.is_idle(now)).map(|(id, _)| *id).collect()
    }

    /// Who makes room for another: of the port that has most, one that nobody answered before one that was, and of
    /// these one that was not used for long before one that was.
    pub fn dispensable(&mut self) -> Option<u64> {
        let order = self.orders.values_mut().max_by_key(|order| order.count)?;
        let mut answered = None;
        for _ in 0..LOOKS.min(order.flows.len()) {
            let (id, queued) = order.flows.pop_front()?;
            let Some((_, flow)) = self.flows.get(&id) else { continue };
            if !flow.is_answered() && flow.used() == queued {
                order.flows.push_front((id, queued));
                return Some(id);
            }
            if answered.is_none_or(|(_, used)| flow.used() < used) {
                answered = Some((id, flow.used()));
            }
            order.flows.push_back((id, flow.used()));
        }
        answered.map(|(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    fn flow(began: Instant) -> Flow {
        let ends = super::super::Ends { client: ([192, 0, 2, 1], 5000).into(), local: [192, 0, 2, 2].into() };
        Flow::with(File::open("/dev/null").expect("a file").into(), ends, began)
    }

    #[test]
    fn the_port_that_has_most_makes_room_and_those_that_were_answered_go_last() {
        let (mut flows, began) = (Flows::new(6), Instant::now());
        let (quiet, flooded) = (1, 2);
        flows.insert(10, quiet, flow(began));
        for id in 20..25 {
            flows.insert(id, flooded, flow(began + Duration::from_millis(id)));
        }
        assert!(flows.is_full());
        flows.get_mut(20).expect("it is there").1.answered_at(began + Duration::from_millis(20));
        flows.get_mut(21).expect("it is there").1.used_at(began + Duration::from_secs(1));
        let gone: Vec<u64> = (0..5).filter_map(|_| flows.dispensable().inspect(|id| drop(flows.remove(*id)))).collect();
        // The last of the five is as good as the other port's.
        assert_eq!(gone[..3], [22, 23, 24]);
        assert_eq!(gone[3], 21, "it spoke again, but nobody answered");
        assert!(flows.get_mut(20).is_some() || flows.get_mut(10).is_some());
    }

    #[test]
    fn what_nobody_answered_is_idle_sooner() {
        let (mut flows, began) = (Flows::new(4), Instant::now());
        flows.insert(1, 1, flow(began));
        flows.insert(2, 1, flow(began));
        flows.get_mut(2).expect("it is there").1.answered_at(began);
        let after = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(
            (flows.idle(after(29)), flows.idle(after(31)), flows.idle(after(181))),
            (vec![], vec![1], vec![1, 2])
        );
    }
}
