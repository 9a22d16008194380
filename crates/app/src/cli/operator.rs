//! `warren operator create|ls|rm`, `warren audit`: who may call from afar, and
//! who did what.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use warren_model::Time;
use warren_model::operator::OperatorRole;
use warren_proto::v1;
use warren_trust::NodeKey;

use super::client::request_id;
use super::context::Context;
use super::failure::Failure;
use super::listing::{ListFlags, Record, View};
use super::remote::Remote;
use super::spec::{count, duration};

/// Records that are shown without being asked for more.
const AUDIT_LIMIT: u32 = 100;

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorVerb {
    /// Let somebody call this cluster from afar
    Create(CreateArgs),
    /// List who may call
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Let them call no more
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name: a-z, 0-9, '-', '_' and '.', at most 32
    #[arg(value_name = "NAME")]
    name: String,
    /// admin: everything; deploy: services; read: looking
    #[arg(long, value_name = "ROLE", default_value = "read")]
    role: OperatorRole,
    /// Time after which it is over, e.g. 30d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expires: Option<u64>,
    /// Give a client certificate instead of a token; needs --context-file
    #[arg(long, requires = "context_file")]
    certificate: bool,
    /// Write all that is needed to call into this file: `warren context create NAME --from FILE`
    #[arg(long, value_name = "FILE")]
    context_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Records after this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0)]
    after: u64,
    /// Newest records at most
    #[arg(short = 'n', long, value_name = "N", value_parser = count, default_value_t = AUDIT_LIMIT)]
    limit: u32,
    #[command(flatten)]
    list: ListFlags,
}

pub(crate) async fn run(context: &mut Context<'_>, verb: OperatorVerb) -> Result<(), Failure> {
    match verb {
        OperatorVerb::Create(args) => create(context, args).await,
        OperatorVerb::Ls(flags) => ls(context, &flags).await,
        OperatorVerb::Rm(args) => rm(context, args).await,
    }
}

fn wire_role(role: OperatorRole) -> v1::OperatorRole {
    match role {
        OperatorRole::Admin => v1::OperatorRole::Admin,
        OperatorRole::Deploy => v1::OperatorRole::Deploy,
        OperatorRole::Read => v1::OperatorRole::Read,
    }
}

async fn create(context: &mut Context<'_>, args: CreateArgs) -> Result<(), Failure> {
    let failed = |e: &dyn std::error::Error| Failure::failed(format!("make a key: {e}"));
    let key = match args.certificate {
        true => Some(NodeKey::generate().map_err(|e| failed(&e))?),
        false => None,
    };
    let signing_request = match &key {
        Some(key) => key.signing_request(&args.name).map_err(|e| failed(&e))?,
        None => Vec::new(),
    };
    let request = v1::CreateOperatorRequest {
        name: args.name.clone(),
        role: wire_role(args.role).into(),
        expires_in_ms: args.expires,
        signing_request,
        request_id: request_id(),
    };
    let made = context
        .client
        .call(async |mut control| control.create_operator(request.clone()).await)
        .await?;
    let Some(path) = args.context_file else {
        context.printer.note(format!("operator {} calls with this token:", args.name));
        return context.printer.line(&made.token);
    };
    let remote = Remote::granted(&made, key.as_ref())?;
    remote.write(&path)?;
    let shown = path.display();
    context.printer.note(format!("{shown} holds all that is needed; bring it over in private"));
    context.printer.line(&args.name)
}

async fn rm(context: &mut Context<'_>, args: RmArgs) -> Result<(), Failure> {
    for name in args.names {
        let request = v1::RemoveOperatorRequest { name: name.clone(), request_id: request_id() };
        context
            .client
            .call(async |mut control| control.remove_operator(request.clone()).await)
            .await?;
        context.printer.line(&name)?;
    }
    Ok(())
}

async fn ls(context: &mut Context<'_>, flags: &ListFlags) -> Result<(), Failure> {
    let answer = context
        .client
        .call(async |mut control| control.list_operators(v1::ListOperatorsRequest {}).await)
        .await?;
    let rows: Vec<OperatorRow> = answer.operators.iter().map(OperatorRow::from).collect();
    let view = context.view();
    context.printer.list(&rows, flags, view)
}

pub(crate) async fn audit(context: &mut Context<'_>, args: &AuditArgs) -> Result<(), Failure> {
    let request = v1::ListAuditRequest { after: args.after, limit: args.limit };
    let answer = context.client.call(async |mut control| control.list_audit(request).await).await?;
    let rows: Vec<AuditRow> = answer.records.into_iter().map(AuditRow::from).collect();
    let view = context.view();
    context.printer.list(&rows, &args.list, view)
}

#[derive(Debug, Serialize)]
pub(crate) struct OperatorRow {
    name: String,
    role: &'static str,
    created_at: String,
    expires_at: Option<String>,
    #[serde(skip)]
    created_ms: u64,
}

impl From<&v1::Operator> for OperatorRow {
    fn from(operator: &v1::Operator) -> Self {
        Self {
            name: operator.name.clone(),
            role: match v1::OperatorRole::try_from(operator.role) {
                Ok(v1::OperatorRole::Admin) => "admin",
                Ok(v1::OperatorRole::Deploy) => "deploy",
                Ok(v1::OperatorRole::Read) => "read",
                Ok(v1::OperatorRole::Unspecified) | Err(_) => "unknown",
            },
            created_at: Time(operator.created).to_string(),
            expires_at: operator.expires.map(|at| Time(at).to_string()),
            created_ms: operator.created,
        }
    }
}

impl Record for OperatorRow {
    const COLUMNS: &'static [&'static str] = &["NAME", "ROLE", "CREATED", "EXPIRES"];
    const KEYS: &'static [&'static str] = &["name", "role", "created_at", "expires_at"];

    fn cells(&self, view: View) -> Vec<String> {
        vec![
            self.name.clone(),
            self.role.to_owned(),
            view.ago(Time(self.created_ms)),
            self.expires_at.clone().unwrap_or_default(),
        ]
    }

    fn key(&self) -> &str {
        &self.name
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct AuditRow {
    revision: u64,
    time: String,
    principal: String,
    action: String,
    object: String,
    detail: String,
}

impl From<v1::AuditRecord> for AuditRow {
    fn from(record: v1::AuditRecord) -> Self {
        Self {
            revision: record.revision,
            time: Time(record.time).to_string(),
            principal: record.principal,
            action: record.action,
            object: record.object,
            detail: record.detail,
        }
    }
}

impl Record for AuditRow {
    const COLUMNS: &'static [&'static str] =
        &["REVISION", "TIME", "WHO", "ACTION", "OBJECT", "DETAIL"];
    const KEYS: &'static [&'static str] =
        &["revision", "time", "principal", "action", "object", "detail"];

    fn cells(&self, _: View) -> Vec<String> {
        vec![
            self.revision.to_string(),
            self.time.clone(),
            self.principal.clone(),
            self.action.clone(),
            self.object.clone(),
            self.detail.clone(),
        ]
    }

    fn key(&self) -> &str {
        &self.object
    }
}
