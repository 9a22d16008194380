//! The only place that prints.
//!
//! Data goes to standard output and nothing else does: progress, notes,
//! warnings and errors go to standard error. On a terminal the progress board
//! is rewritten in place, elsewhere each line is written once per change.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use super::failure::{Exit, Failure};
use super::listing::{ListFlags, Record, View};
use super::template::{Format, Template};
use super::yaml;

/// Columns of a terminal that does not tell its width.
const WIDTH_DEFAULT: usize = 80;
/// Between columns, as Docker does.
const GAP: usize = 3;

pub(crate) struct Printer {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    /// Columns of the terminal on standard error, if it is one.
    terminal: Option<usize>,
    /// Lines of the board that stand on the terminal.
    standing: usize,
    /// Lines of the board as last shown.
    shown: Vec<String>,
}

impl Printer {
    pub(crate) fn standard() -> Self {
        let err = io::stderr();
        let terminal = err.is_terminal().then(|| {
            rustix::termios::tcgetwinsize(&err)
                .map_or(WIDTH_DEFAULT, |size| usize::from(size.ws_col).max(20))
        });
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(err),
            terminal,
            standing: 0,
            shown: Vec::new(),
        }
    }

    fn out(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|e| Failure::output(&e))
    }

    /// Hands everything written so far to the system.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        // Nobody is left to tell when standard error is gone.
        let _ = self.err.flush();
        self.out.flush().map_err(|e| Failure::output(&e))
    }

    /// A line of data.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> Result<(), Failure> {
        let mut line = text.as_ref().to_owned();
        line.push('\n');
        self.out(line.as_bytes())?;
        self.flush()
    }

    /// Data as it is, such as a container's output.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out(bytes)?;
        self.flush()
    }

    /// Bytes for standard error as they are.
    pub(crate) fn raw_error(&mut self, bytes: &[u8]) {
        let _ = self.err.write_all(bytes);
        let _ = self.err.flush();
    }

    /// A line for people, on standard error.
    pub(crate) fn note(&mut self, text: impl AsRef<str>) {
        self.wipe();
        let _ = writeln!(self.err, "{}", text.as_ref());
        let _ = self.err.flush();
    }

    pub(crate) fn warning(&mut self, text: impl AsRef<str>) {
        self.note(format!("warning: {}", text.as_ref()));
    }

    /// Asks for input, on standard error, without a newline.
    pub(crate) fn prompt(&mut self, text: &str) {
        let _ = write!(self.err, "{text}");
        let _ = self.err.flush();
    }

    pub(crate) fn failure(&mut self, failure: &Failure) {
        self.finish_board();
        if let Exit::Silent(_) = failure.exit {
            return;
        }
        let _ = writeln!(self.err, "error: {}", failure.message);
        if let Some(hint) = &failure.hint {
            let _ = writeln!(self.err, "hint: {hint}");
        }
        let _ = self.err.flush();
    }

    /// Shows how things stand: replaces what the last call showed, or, without a
    /// terminal, writes the lines that were not there before.
    pub(crate) fn board(&mut self, lines: Vec<String>) {
        if lines == self.shown {
            return;
        }
        if let Some(width) = self.terminal {
            self.wipe();
            for line in &lines {
                let cut: String = line.chars().take(width - 1).collect();
                let _ = writeln!(self.err, "{cut}");
            }
            self.standing = lines.len();
        } else {
            for line in lines.iter().filter(|line| !self.shown.contains(line)) {
                let _ = writeln!(self.err, "{line}");
            }
        }
        let _ = self.err.flush();
        self.shown = lines;
    }

    /// Leaves what the board shows and starts a new one below.
    pub(crate) fn finish_board(&mut self) {
        self.standing = 0;
        self.shown.clear();
    }

    /// Whether a board is rewritten in place, so that frequent changes do no harm.
    pub(crate) fn rewrites(&self) -> bool {
        self.terminal.is_some()
    }

    fn wipe(&mut self) {
        if self.standing > 0 {
            // Up to the board's first line, then erase to the end of the screen.
            let _ = write!(self.err, "\x1b[{}A\x1b[J", self.standing);
            self.standing = 0;
            self.shown.clear();
        }
    }

    /// Rows in the form that the flags ask for.
    pub(crate) fn list<R: Record>(
        &mut self,
        rows: &[R],
        flags: &ListFlags,
        view: View,
    ) -> Result<(), Failure> {
        let view = View { whole: flags.no_trunc, ..view };
        let mut kept = Vec::with_capacity(rows.len());
        for row in rows {
            let object = row.object();
            if flags.keeps(&object, &R::filters())? {
                kept.push((row, object));
            }
        }
        if rows.is_empty() {
            flags.keeps(&Value::Null, &R::filters())?;
        }
        let cells = |row: &R| row.cells(view);
        match flags.format() {
            Format::Json => self.json(&kept.into_iter().map(|(_, o)| o).collect()),
            Format::Yaml => self.yaml(&kept.into_iter().map(|(_, o)| o).collect()),
            Format::Template(template) => {
                let rows = kept.iter().map(|(row, object)| (object, row.cells(view)));
                let text = fill_all(&template, rows, R::COLUMNS)?;
                self.raw(text.as_bytes())
            }
            Format::Table if flags.quiet => {
                let ids: String = kept.iter().map(|(row, _)| format!("{}\n", row.key())).collect();
                self.raw(ids.as_bytes())
            }
            Format::Table => {
                let rows: Vec<_> = kept.iter().map(|(row, _)| cells(row)).collect();
                self.raw(table(R::COLUMNS, &rows).as_bytes())
            }
        }
    }

    /// What was inspected, whole: a template is filled for each of them.
    pub(crate) fn inspected(
        &mut self,
        objects: Vec<Value>,
        format: &Format,
    ) -> Result<(), Failure> {
        match format {
            Format::Template(_) => objects.iter().try_for_each(|o| self.object(o, format)),
            Format::Table => Err(Failure::input("--format: inspect has no table")
                .hint("write json, yaml or a template")),
            Format::Json | Format::Yaml => self.object(&Value::Array(objects), format),
        }
    }

    /// One object: a table is `key: value` lines.
    pub(crate) fn object(&mut self, object: &Value, format: &Format) -> Result<(), Failure> {
        match format {
            Format::Json => self.json(object),
            Format::Yaml => self.yaml(object),
            Format::Template(template) => self.line(template.fill(object, &[], &[])?),
            Format::Table => {
                let mut text = String::new();
                for (key, value) in object.as_object().into_iter().flatten() {
                    let name = key.replace('_', " ");
                    text.push_str(&format!("{name}: {}\n", super::template::plain(value)));
                }
                self.raw(text.as_bytes())
            }
        }
    }

    fn json(&mut self, value: &Value) -> Result<(), Failure> {
        self.line(format!("{value:#}"))
    }

    fn yaml(&mut self, value: &Value) -> Result<(), Failure> {
        self.raw(yaml::text(value).as_bytes())
    }
}

fn fill_all<'a>(
    template: &Template,
    rows: impl Iterator<Item = (&'a Value, Vec<String>)>,
    columns: &[&str],
) -> Result<String, Failure> {
    let mut lines = Vec::new();
    for (object, cells) in rows {
        lines.push(template.fill(object, columns, &cells)?);
    }
    if let Some(titles) = template.titles() {
        let rows: Vec<Vec<String>> =
            lines.iter().map(|l| l.split('\t').map(str::to_owned).collect()).collect();
        let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
        return Ok(table(&titles, &rows));
    }
    Ok(lines.into_iter().map(|l| l + "\n").collect())
}

/// Columns aligned under their titles, no blanks at the end of lines.
pub(crate) fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = titles.iter().map(|t| t.chars().count()).collect();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            if let Some(width) = widths.get_mut(at) {
                *width = (*width).max(cell.chars().count());
            }
        }
    }
    let mut text = String::new();
    let titles: Vec<String> = titles.iter().map(|t| (*t).to_owned()).collect();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            // A newline in an error message must not break the table.
            let cell = cell.replace(['\n', '\r', '\t'], " ");
            let pad = widths.get(at).map_or(0, |w| w + GAP).saturating_sub(cell.chars().count());
            line.push_str(&cell);
            line.extend(std::iter::repeat_n(' ', pad));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
pub(crate) mod capture {
    //! A printer whose words can be read back.

    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        pub(crate) fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A printer, its standard output, its standard error.
    pub(crate) fn printer(terminal: Option<usize>) -> (Printer, Shared, Shared) {
        let (out, err) = (Shared::default(), Shared::default());
        let printer = Printer {
            out: Box::new(out.clone()),
            err: Box::new(err.clone()),
            terminal,
            standing: 0,
            shown: Vec::new(),
        };
        (printer, out, err)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn tables_align() {
        let rows = vec![
            vec!["web".to_owned(), "3/3".to_owned(), String::new()],
            vec!["a-longer-name".to_owned(), "0/1".to_owned(), "no\nimage".to_owned()],
        ];
        expect![[r#"
            NAME            REPLICAS   ERROR
            web             3/3
            a-longer-name   0/1        no image
        "#]]
        .assert_eq(&table(&["NAME", "REPLICAS", "ERROR"], &rows));
    }

    #[test]
    fn boards_without_a_terminal_write_changes() {
        let (mut printer, out, err) = capture::printer(None);
        printer.board(vec!["web: 0/1 running".into()]);
        printer.board(vec!["web: 0/1 running".into()]);
        printer.board(vec!["web: 1/1 running".into()]);
        printer.warning("slow");
        printer.failure(&Failure::failed("it broke").hint("mend it"));
        assert_eq!(out.text(), "");
        expect![[r#"
            web: 0/1 running
            web: 1/1 running
            warning: slow
            error: it broke
            hint: mend it
        "#]]
        .assert_eq(&err.text());
    }

    #[test]
    fn boards_on_a_terminal_are_rewritten_and_cut() {
        let (mut printer, _, err) = capture::printer(Some(8));
        printer.board(vec!["a".into(), "0123456789".into()]);
        printer.board(vec!["b".into()]);
        assert_eq!(err.text(), "a\n0123456\n\x1b[2A\x1b[Jb\n");
    }
}
