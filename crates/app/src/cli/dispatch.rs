//! `warren job dispatch`: a run with parameters and a payload; and the flags that declare them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use warren_model::job::{Concurrency, Inputs, JobPolicy, PayloadRule};
use warren_proto::v1;

use super::client::request_id;
use super::context::Context;
use super::failure::Failure;
use super::job::begun;
use super::service::WaitFlags;

/// What a job takes.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct InputFlags {
    /// Declare a parameter of runs, in their containers as WARREN_PARAM_NAME; without a value each
    /// run must be given one
    #[arg(long = "param", help_heading = "Jobs", value_name = "NAME[=VALUE]", value_parser = declaration)]
    params: Vec<(String, Option<String>)>,
    /// Take a parameter away
    #[arg(long = "param-rm", help_heading = "Jobs", value_name = "NAME")]
    params_rm: Vec<String>,
    /// Whether a run may have a payload: optional, required or forbidden [default: forbidden]
    #[arg(long, help_heading = "Jobs", value_name = "RULE")]
    payload: Option<PayloadRule>,
    /// Without a schedule, when a run begins while another goes on: allow, forbid or replace
    /// [default: allow if runs take parameters or a payload, else replace]
    #[arg(long, help_heading = "Jobs", value_name = "RULE")]
    job_concurrency: Option<Concurrency>,
}

fn declaration(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(format!("{text:?} is not of the form NAME or NAME=value"));
    }
    Ok((name.to_owned(), value))
}

impl InputFlags {
    pub(crate) fn apply(&self, job: &mut JobPolicy) -> Result<(), Failure> {
        let params = &mut job.inputs.params;
        for name in &self.params_rm {
            if params.remove(name).is_none() {
                return Err(Failure::input(format!("--param-rm: {name:?} is no parameter of it")));
            }
        }
        let mut given = BTreeMap::new();
        for (name, value) in &self.params {
            if given.insert(name.clone(), value.clone()).is_some() {
                return Err(Failure::input(format!("--param: {name:?} is there twice")));
            }
        }
        params.extend(given);
        job.inputs.payload = self.payload.unwrap_or(job.inputs.payload);
        job.concurrency = self.job_concurrency.or(job.concurrency);
        Ok(())
    }
}

/// In the words of the flags.
pub(crate) fn inputs_json(policy: &JobPolicy) -> [(&'static str, Value); 3] {
    let Inputs { params, payload } = &policy.inputs;
    [
        ("params", json!(params)),
        ("payload", json!(payload.as_str())),
        ("concurrency", json!(policy.concurrency().as_str())),
    ]
}

#[derive(Debug, Args)]
pub(crate) struct DispatchArgs {
    /// Name or id of the job
    #[arg(value_name = "JOB")]
    job: String,
    /// A parameter of the run
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    params: Vec<(String, String)>,
    /// A file for its containers, who find its path in WARREN_PAYLOAD; '-' is standard input
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    #[command(flatten)]
    wait: WaitFlags,
}

fn parameter(text: &str) -> Result<(String, String), String> {
    match declaration(text)? {
        (name, Some(value)) => Ok((name, value)),
        (name, None) => Err(format!("{text:?} has no value; say {name}=VALUE")),
    }
}

pub(crate) async fn dispatch(context: &mut Context<'_>, args: DispatchArgs) -> Result<(), Failure> {
    let mut params = BTreeMap::new();
    for (name, value) in args.params {
        if params.insert(name.clone(), value).is_some() {
            return Err(Failure::input(format!("--param: {name:?} is there twice")));
        }
    }
    let payload = args.payload.as_deref().map(read).transpose()?;
    let request = v1::RunJobRequest {
        service: args.job,
        request_id: request_id(),
        params: params.into_iter().collect(),
        payload,
    };
    begun(context, request, &args.wait).await
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let text = path.display();
    let wrong = |error: io::Error| Failure::input(format!("--payload: read {text}: {error}"));
    let max = Inputs::PAYLOAD_MAX;
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    let mut payload = Vec::new();
    match path == Path::new("-") {
        true => io::stdin().lock().take(limit).read_to_end(&mut payload),
        false => File::open(path).map_err(wrong)?.take(limit).read_to_end(&mut payload),
    }
    .map_err(wrong)?;
    if payload.len() > max {
        return Err(Failure::input(format!("--payload: {text} is more than {max} bytes"))
            .hint("put it where the job can fetch it, and say where with a parameter"));
    }
    Ok(payload)
}
