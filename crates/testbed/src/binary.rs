//! Where the program under test is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Names another build of it.
const VARIABLE: &str = "WARREN";

/// `$WARREN`, else `warren` of the build that this program belongs to.
///
/// # Errors
/// It was never built; says how.
pub fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        let full = path.canonicalize();
        return full.with_context(|| format!("{VARIABLE}: {}", path.display()));
    }
    let own = std::env::current_exe().context("find this program")?;
    match beside(&own).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "the program under test is not built: run `cargo build -p warren`, or name another \
             by {VARIABLE}=PATH"
        ),
    }
}

/// Tests are in `target/PROFILE/deps`, programs one above.
fn beside(own: &Path) -> impl Iterator<Item = PathBuf> {
    own.ancestors().skip(1).take(2).map(|folder| folder.join("warren"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let own = Path::new("/t/debug/deps/it-1234");
        let all: Vec<PathBuf> = beside(own).collect();
        assert_eq!(all, [Path::new("/t/debug/deps/warren"), Path::new("/t/debug/warren")]);
    }
}
