//! `cricket check`: what this machine offers and what it lacks, before anything runs.

use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use super::{Output, Settings};
use crate::config::Config;
use crate::network::{self, Cidr};
use crate::rootless::NodeKind;
use crate::rootless::probe::{self, Finding, NetworkTrial, Verdict};
use crate::sys::namespace::Namespace;

/// Arguments of `cricket check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Serialize)]
struct Report {
    will_run: bool,
    findings: Vec<Finding>,
}

/// Exit status 0 when pods will run, 1 when they will not.
pub fn run(args: Args, settings: &Settings) -> anyhow::Result<ExitCode> {
    let config = settings.load()?;
    let kind = NodeKind::here().context("reading /proc/self/uid_map")?;
    let findings = findings(&config, kind);
    let report = Report { will_run: probe::will_run(&findings), findings };
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        Output::Table => table(&report),
    };
    super::output::write(false, text.as_bytes())?;
    Ok(if report.will_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What [`run`] prints. The caller has one thread.
pub fn findings(config: &Config, kind: NodeKind) -> Vec<Finding> {
    let here = || {
        let own = Namespace::Network.open_own().map_err(|error| error.to_string())?;
        network::joinable(&own).map_err(|error| error.to_string())
    };
    let made = || {
        let cni = network::cni::installed(&config.cni_config_dir, &config.cni_plugin_dirs);
        if cni.map_err(|error| error.to_string())?.is_some() {
            return Ok(());
        }
        let cidrs = config.pod_cidrs.iter().map(|text| text.parse::<Cidr>()).collect::<Result<_, _>>();
        network::attempt(cidrs.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    };
    probe::all(config, kind, NetworkTrial { here: &here, made: &made })
}

fn table(report: &Report) -> String {
    let width = report.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (finding, next) in report.findings.iter().zip(report.findings.iter().skip(1).map(Some).chain([None])) {
        text += &line(finding, width);
        // One command often mends several things: it is said once, after the last of them.
        if !finding.mend.is_empty() && next.is_none_or(|next| next.mend != finding.mend) {
            text += &format!("{:<6}{:<width$}  -> {}\n", "", "", finding.mend);
        }
    }
    text.push_str(match (report.will_run, report.findings.iter().any(|finding| finding.verdict == Verdict::Warn)) {
        (false, _) => "\nPods will not run here until what fails is mended.\n",
        (true, true) => "\nPods will run here; the warnings say what they will lack.\n",
        (true, false) => "\nPods will run here.\n",
    });
    text
}

fn line(finding: &Finding, width: usize) -> String {
    let verdict = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    };
    format!("{verdict:<4}  {:<width$}  {}\n", finding.name, finding.meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_a_finding_and_the_way_to_mend_it_below() {
        let finding = |verdict, mend: &str| Finding {
            name: "overlay".into(),
            verdict,
            meaning: "tried".into(),
            mend: mend.into(),
        };
        let broken = || finding(Verdict::Fail, "modprobe overlay");
        let findings = vec![finding(Verdict::Ok, ""), broken(), broken()];
        let text = table(&Report { will_run: false, findings });
        assert!(
            text.starts_with(
                "ok    overlay  tried\nFAIL  overlay  tried\nFAIL  overlay  tried\n               -> modprobe overlay\n"
            ),
            "{text}"
        );
        assert!(text.contains("will not run"));
    }
}
