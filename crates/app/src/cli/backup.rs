//! `warren cluster backup|backup-key`: everything the cluster agreed on, in one
//! encrypted file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use warren_base::file::sync_folder;
use warren_proto::v1;
use warren_trust::backup::BackupKey;

use super::context::Context;
use super::failure::{Exit, Failure, plain};
use super::listing::size;
use super::printer::Printer;
use super::secret;

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// File to write; - is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Public key that it is encrypted for: `warren cluster backup-key` makes one
    #[arg(long, value_name = "KEY", conflicts_with = "passphrase_file")]
    recipient: Option<String>,
    /// File with the passphrase; without it and --recipient standard input is asked
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BackupKeyArgs {
    /// File for the private key; it must not be there yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) async fn run(context: &mut Context<'_>, args: BackupArgs) -> Result<(), Failure> {
    let mut request = v1::BackupRequest::default();
    match (args.recipient, &args.passphrase_file) {
        (Some(recipient), _) => request.recipient = recipient,
        (None, Some(path)) => {
            request.passphrase = secret::file("--passphrase-file", path)?.to_string();
        }
        (None, None) => {
            request.passphrase = secret::read(context.printer, "passphrase: ")?.to_string();
        }
    }
    if args.file == Path::new("-") {
        return stream(context, request, None).await;
    }
    let partial = args.file.with_extension("partial");
    let wrong = |e: std::io::Error| {
        Failure::failed(format!("write {}: {}", args.file.display(), plain(&e)))
    };
    let mut opened = OpenOptions::new();
    opened.write(true).create(true).truncate(true).mode(0o600);
    let mut file = opened.open(&partial).map_err(wrong)?;
    let written = stream(context, request, Some(&mut file)).await;
    let kept = written.and_then(|()| {
        file.sync_all().map_err(wrong)?;
        std::fs::rename(&partial, &args.file).map_err(wrong)?;
        let folder = args.file.parent().filter(|folder| !folder.as_os_str().is_empty());
        sync_folder(folder.unwrap_or_else(|| Path::new("."))).map_err(wrong)
    });
    if kept.is_err() {
        // Half a backup is none; the first error is the one to tell.
        let _ = std::fs::remove_file(&partial);
    }
    kept
}

async fn stream(
    context: &mut Context<'_>,
    request: v1::BackupRequest,
    mut file: Option<&mut File>,
) -> Result<(), Failure> {
    let asked = context.client.warned(async |mut control| control.backup(request.clone()).await);
    let (mut chunks, warning) = asked.await?;
    if let Some(warning) = warning {
        context.printer.warning(warning);
    }
    let mut bytes = 0_u64;
    while let Some(chunk) = chunks.message().await? {
        bytes += chunk.data.len() as u64;
        match &mut file {
            Some(file) => {
                let written = file.write_all(&chunk.data);
                written.map_err(|e| Failure::failed(format!("write the backup: {}", plain(&e))))?;
                if context.printer.rewrites() {
                    context.printer.board(vec![format!("{} written", size(bytes))]);
                }
            }
            None => context.printer.raw(&chunk.data)?,
        }
    }
    context.printer.finish_board();
    if bytes == 0 {
        return Err(Failure::failed("the manager sent an empty backup"));
    }
    context.printer.note(format!("{} backed up", size(bytes)));
    Ok(())
}

/// Makes a key pair; the private part is in the file alone.
pub(crate) fn key(printer: &mut Printer, args: &BackupKeyArgs) -> Result<(), Failure> {
    let failed = |e: &dyn std::error::Error| Failure::failed(format!("make a backup key: {e}"));
    let key = BackupKey::generate().map_err(|e| failed(&e))?;
    let recipient = key.recipient().map_err(|e| failed(&e))?;
    let shown = args.file.display();
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.file);
    let mut file = opened.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::new(Exit::Conflict, format!("{shown} is there already"))
                .hint("a key that is overwritten makes its backups unreadable; choose another name")
        }
        _ => Failure::failed(format!("write {shown}: {}", plain(&e))),
    })?;
    let text = key.to_text();
    let written = file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n"));
    written
        .and_then(|()| file.sync_all())
        .map_err(|e| Failure::failed(format!("write {shown}: {}", plain(&e))))?;
    printer.note(format!("the private key is in {shown}; keep it where the cluster is not"));
    printer.line(recipient.to_string())
}
