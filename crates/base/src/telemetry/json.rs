//! Log lines as JSON: one flat object a line, fields of spans included.
//!
//! An inner field wins over an outer one of the same name; the names of
//! spans are left out, since `node_id` and its like say what is needed.

use std::fmt::Debug;
use std::io::Write;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime as Stamp};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// A layer that writes lines.
pub(super) struct Lines<W> {
    to: W,
}

impl<W> Lines<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to }
    }
}

/// Fields of a span, kept while it lives.
struct Fields(Map<String, Value>);

struct Collect<'a>(&'a mut Map<String, Value>);

impl Visit for Collect<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Map::new();
        attributes.record(&mut Collect(&mut fields));
        span.extensions_mut().insert(Fields(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(Fields(fields)) = span.extensions_mut().get_mut() {
            values.record(&mut Collect(fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Map::new();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(Fields(fields)) = span.extensions().get() {
                line.extend(fields.clone());
            }
        }
        event.record(&mut Collect(&mut line));
        let about = event.metadata();
        line.insert("timestamp".to_owned(), now().into());
        line.insert("level".to_owned(), about.level().as_str().into());
        line.insert("target".to_owned(), about.target().into());
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        // Without standard error there is nobody to tell, this included.
        let _ = self.to.make_writer().write_all(text.as_bytes());
    }
}

fn now() -> String {
    let mut text = String::new();
    match Stamp.format_time(&mut Writer::new(&mut text)) {
        Ok(()) => text,
        // A formatter of ours does not fail; seconds are better than nothing.
        Err(_) => SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or_else(|_| String::new(), |since| since.as_secs().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_flat_object_a_line() {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer = Lines::new(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _node =
                tracing::info_span!("node", node_id = "n1", late = tracing::field::Empty).entered();
            tracing::Span::current().record("late", 3_u64);
            let _task = tracing::info_span!("task", task_id = %"t1", node_id = "n2").entered();
            tracing::warn!(revision = 7_u64, fits = true, "it \"is\"\nso");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        for (key, value) in [
            ("node_id", Value::from("n2")),
            ("task_id", "t1".into()),
            ("late", 3.into()),
            ("revision", 7.into()),
            ("fits", true.into()),
            ("message", "it \"is\"\nso".into()),
            ("level", "WARN".into()),
        ] {
            assert_eq!(line[key], value, "{text}");
        }
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{text}");
    }
}
