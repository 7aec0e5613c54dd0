//! Two calls about one container at once, in every pairing: each answer is a legal one, and so is what comes of it.

use cricket::proto::cri;
use tonic::{Code, Status};

use crate::node::{Node, container, pod, processes_with};

/// Each pairing, so often.
const ROUNDS: usize = 2;
const GRACE_SECONDS: i64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Start,
    Stop,
    Remove,
    Exec,
    Update,
    Reopen,
    StopPod,
    RemovePod,
}

const CALLS: [Call; 8] =
    [Call::Start, Call::Stop, Call::Remove, Call::Exec, Call::Update, Call::Reopen, Call::StopPod, Call::RemovePod];

impl Call {
    async fn make(self, node: &Node, pod: &str, id: &str) -> Result<(), Status> {
        let mut runtime = node.runtime().await;
        let (container_id, pod_sandbox_id) = (id.to_owned(), pod.to_owned());
        match self {
            Self::Start => runtime.start_container(cri::StartContainerRequest { container_id }).await.map(drop),
            Self::Stop => {
                let request = cri::StopContainerRequest { container_id, timeout: GRACE_SECONDS };
                runtime.stop_container(request).await.map(drop)
            }
            Self::Remove => runtime.remove_container(cri::RemoveContainerRequest { container_id }).await.map(drop),
            Self::Exec => node.exec(id, &["demo", "echo", "fine"], GRACE_SECONDS).await.map(drop),
            Self::Update => {
                let linux = Some(cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() });
                let request = cri::UpdateContainerResourcesRequest { container_id, linux, ..Default::default() };
                runtime.update_container_resources(request).await.map(drop)
            }
            Self::Reopen => {
                runtime.reopen_container_log(cri::ReopenContainerLogRequest { container_id }).await.map(drop)
            }
            Self::StopPod => runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id }).await.map(drop),
            Self::RemovePod => {
                runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await.map(drop)
            }
        }
    }

    /// Stops and removals succeed whatever else happens; others may come too late. A pod that ends takes the connection
    /// of whoever is in it.
    fn may_answer(self, code: Code, other: Self) -> bool {
        match self {
            Self::Stop | Self::Remove | Self::StopPod | Self::RemovePod => code == Code::Ok,
            _ => {
                matches!(code, Code::Ok | Code::NotFound | Code::FailedPrecondition)
                    || (code == Code::Unavailable && matches!(other, Self::StopPod | Self::RemovePod))
            }
        }
    }
}

#[tokio::test]
async fn two_calls_at_once_end_legally_in_every_pairing() {
    let node = Node::start().await;
    node.load_demo().await;
    let mut wrong = Vec::new();
    let pairings = CALLS.iter().enumerate().flat_map(|(at, a)| CALLS[at..].iter().map(move |b| (*a, *b)));
    for (number, (first, second)) in pairings.enumerate() {
        for round in 0..ROUNDS {
            // Of one that runs, and of one that is only created.
            let name = format!("race-{number}-{round}");
            let pod_config = pod(&node, &name);
            let pod_id = node.run_pod(&pod_config).await;
            let config = container("main", &["demo", "sleep", "inf", &name]);
            let id = match round % 2 {
                0 => node.start_container(&pod_id, config, &pod_config).await,
                _ => node.create_container(&pod_id, config, &pod_config).await,
            };
            let (a, b) = tokio::join!(first.make(&node, &pod_id, &id), second.make(&node, &pod_id, &id));
            for (call, other, answer) in [(first, second, a), (second, first, b)] {
                let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
                if !call.may_answer(code, other) {
                    wrong.push(format!("{call:?} beside {other:?}, round {round}: {answer:?}"));
                }
            }
            node.remove_pod(&pod_id).await;
            if !processes_with(&name).is_empty() {
                wrong.push(format!("{first:?} beside {second:?}, round {round}: a process is left"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    node.stop_and_account().await;
}
