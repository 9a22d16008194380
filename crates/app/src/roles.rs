//! Temporary.
use crate::cli::Role;
use crate::cli::failure::Failure;
use crate::cli::printer::Printer;
pub(crate) fn run(role: Role, _printer: &mut Printer) -> Result<(), Failure> {
    let (place, flags) = match role {
        Role::Init(p, f) | Role::Run(p, f) => (p, f),
    };
    let env = |key: &str| std::env::var(key).ok();
    let settings = place.resolve(&env)?.node(&flags, &env)?;
    if flags.detach {
        return crate::daemon::detach::start(&settings.data_dir);
    }
    let _held = crate::daemon::hold(&settings)?;
    Ok(())
}
