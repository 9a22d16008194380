//! Looks at every replica after every change, and at who leads.

use std::sync::Arc;

use warren_model::Time;

use super::host::{Host, Life, Running};
use super::world::{World, held};

/// Watches one life of one replica.
pub(crate) fn replica(
    world: &Arc<World>,
    host: &Arc<Host>,
    life: &Arc<Life>,
    running: &Arc<Running>,
) {
    let number = running.number;
    let store = running.store.clone();
    let (here, now, alive) = (Arc::clone(world), Arc::clone(host), Arc::clone(life));
    tokio::spawn(async move {
        let mut moved = store.watch();
        let mut last = (0, Time(0));
        loop {
            let view = store.view();
            let seen = (view.revision(), view.time());
            if seen.0 < last.0 || seen.1 < last.1 {
                here.fail(format!("{}: its view went from {last:?} to {seen:?}", now.name));
            }
            if view.revision() > 0 {
                let at_ms = here.now_ms();
                here.trace((now.place, view.revision()));
                // Those of before a snapshot that it was given are not there: others have told them.
                let events = store.events_after(last.0).unwrap_or_default();
                held(&here.book).laws.hear(&events);
                here.hold(held(&here.book).look(now.place, &now.name, &view, at_ms));
            }
            last = seen;
            tokio::select! {
                changed = moved.changed() => if changed.is_err() { return },
                () = alive.ended() => return,
            }
        }
    });
    let store = running.store.clone();
    let (here, now, alive) = (Arc::clone(world), Arc::clone(host), Arc::clone(life));
    tokio::spawn(async move {
        let mut leads = store.leader();
        loop {
            let leading = *leads.borrow_and_update();
            let at_ms = here.now_ms();
            // It may have stepped down by now, and know of a term that another leads in.
            if let Some(term) = store.status().leads_in.filter(|_| leading) {
                here.note(|| format!("{}: leads in term {term}", now.name));
                here.count(|counts| counts.leaders += 1);
                here.hold(held(&here.book).leads(now.place, number, term, at_ms));
            } else {
                held(&here.book).leads_no_more(now.place);
            }
            tokio::select! {
                changed = leads.changed() => if changed.is_err() { break },
                () = alive.ended() => break,
            }
        }
        held(&here.book).leads_no_more(now.place);
    });
}
