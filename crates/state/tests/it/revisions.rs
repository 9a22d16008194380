//! Revisions of services, going back, and what is remembered of updates.

use warren_model::Time;
use warren_model::service::{Mode, ServiceSpec, TaskTemplate, UpdatePhase};
use warren_state::change::{Mutation, Outcome, Transaction};
use warren_state::{Object, State};

use crate::script::{run, service};

/// Of the service `web`, one mutation after another.
struct Story {
    state: State,
    now: u64,
}

impl Story {
    fn new() -> Self {
        let script = "cluster\nnetwork default\nnode a 10.128.0.0/24\nservice web";
        let (state, _) = run(script);
        Self { now: state.time().0, state }
    }

    fn spec(&self) -> ServiceSpec {
        self.state.service(service("web")).unwrap().spec.clone()
    }

    fn write(&mut self, mutation: Mutation) -> String {
        self.now += 1;
        let principal = Some("operator:anna".to_owned());
        let transaction =
            Transaction { mutations: vec![mutation], principal, ..Transaction::default() };
        let outcome = self.state.apply(Time(self.now), &[transaction], &mut vec![]).remove(0);
        assert_eq!(self.state.check(), Vec::<String>::new());
        self.import();
        match outcome {
            Outcome::Applied { .. } | Outcome::Repeated { .. } => "ok".to_owned(),
            Outcome::Rejected(rejection) => rejection.to_string(),
        }
    }

    fn import(&self) {
        let objects: Vec<Object> = self.state.export().collect();
        assert_eq!(objects.len(), self.state.object_count());
        let back = State::import(self.state.head(), objects.clone()).unwrap();
        assert_eq!((back.checksum(), back.check()), (self.state.checksum(), vec![]));
        assert!(back.export().eq(objects));
    }

    fn update(&mut self, change: impl FnOnce(&mut ServiceSpec)) -> String {
        let mut spec = self.spec();
        change(&mut spec);
        self.write(Mutation::UpdateService { id: service("web"), spec })
    }

    fn image(&mut self, image: &str) {
        assert_eq!(self.update(|spec| spec.task.image = image.into()), "ok");
    }

    fn back(&mut self, to: u32, why: &str) -> String {
        let why = why.to_owned();
        self.write(Mutation::RollBackService { id: service("web"), to, why })
    }

    fn set(&mut self, phase: UpdatePhase) -> String {
        let message = "why".to_owned();
        self.write(Mutation::SetUpdate { id: service("web"), phase, message })
    }

    /// `3/2 moving: message | 1+ 2-`: revision, template, update; those before and if good.
    fn tell(&self) -> String {
        let web = self.state.service(service("web")).unwrap();
        let update = web.update.as_ref().map_or("none".to_owned(), |update| {
            format!("{:?} {:?} {}", update.kind, update.phase, update.message)
        });
        let before = self.state.revisions(web.id).iter();
        let before = before.map(|r| format!("{}{}", r.number, if r.good { "+" } else { "-" }));
        let before: Vec<String> = before.collect();
        format!("{}/{} {} | {}", web.number, web.template, update.trim_end(), before.join(" "))
    }
}

#[test]
fn every_change_is_a_revision() {
    let mut story = Story::new();
    assert_eq!(story.tell(), "1/1 none | ");
    // One that changes nothing is none.
    assert_eq!(story.update(|_| {}), "ok");
    assert_eq!(story.tell(), "1/1 none | ");
    story.update(|spec| spec.mode = Mode::Replicated { replicas: 3 });
    assert_eq!(story.tell(), "2/1 none | 1+");
    story.image("b");
    assert_eq!(story.tell(), "3/2 Update Moving | 1+ 2+");
    // What is on its way is not known to be good; more replicas of it are no other update.
    story.update(|spec| spec.mode = Mode::Replicated { replicas: 5 });
    assert_eq!(story.tell(), "4/2 Update Moving | 1+ 2+ 3-");
    assert_eq!(story.set(UpdatePhase::Done), "ok");
    story.image("c");
    assert_eq!(story.tell(), "5/3 Update Moving | 1+ 2+ 3- 4+");
    let web = story.state.service(service("web")).unwrap();
    assert_eq!(web.change.by.as_deref(), Some("operator:anna"));
    let second = &story.state.revisions(web.id)[1];
    assert_eq!(second.spec.mode, Mode::Replicated { replicas: 3 });
    assert_eq!(second.change.by.as_deref(), Some("operator:anna"));
}

#[test]
fn going_back() {
    let mut story = Story::new();
    let image = story.spec().task.image;
    story.image("b");
    assert_eq!(story.back(2, ""), "service web has no revision 2: it has 1 to 2");
    assert_eq!(story.back(1, ""), "ok");
    // Nothing ran by the first template any more, so it is another one.
    assert_eq!(story.tell(), "3/3 Rollback Moving | 1+ 2-");
    assert_eq!(story.spec().task.image, image);
    assert_eq!(
        story.back(1, ""),
        "revision 1 of service web is what is wanted already, as revision 3"
    );
    assert_eq!(story.back(2, "web.1 is failed"), "ok");
    assert_eq!(story.tell(), "4/4 AutomaticRollback Moving web.1 is failed | 1+ 2- 3-");
    assert_eq!(story.set(UpdatePhase::Done), "ok");
    assert_eq!(story.tell(), "4/4 AutomaticRollback Done web.1 is failed | 1+ 2- 3-");
}

#[test]
fn a_template_that_tasks_have_is_known_again() {
    let (mut state, _) =
        run("cluster\nnetwork default\nnode a 10.128.0.0/24\nservice web\ntask 1 web.1 @a .5\n\
         update web image=b\ntask 2 web.2 t2 @a .6");
    let number = |state: &State| state.service(service("web")).unwrap().template;
    assert_eq!(number(&state), 2);
    let mut write = |mutation| {
        let transaction = Transaction { mutations: vec![mutation], ..Transaction::default() };
        let outcome = state.apply(Time(9), &[transaction], &mut vec![]).remove(0);
        assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
        assert_eq!(state.check(), Vec::<String>::new());
        number(&state)
    };
    let id = service("web");
    assert_eq!(write(Mutation::RollBackService { id, to: 1, why: String::new() }), 1);
    // Numbers are never given twice, whatever was gone back to.
    let task = TaskTemplate { image: "c".into(), ..TaskTemplate::default() };
    let spec = ServiceSpec::new("web".parse().unwrap(), task);
    assert_eq!(write(Mutation::UpdateService { id, spec: spec.clone() }), 3);
    let task = TaskTemplate { image: "b".into(), ..spec.task.clone() };
    assert_eq!(write(Mutation::UpdateService { id, spec: ServiceSpec { task, ..spec } }), 2);
}

#[test]
fn pausing_and_going_on() {
    let mut story = Story::new();
    for phase in [UpdatePhase::Paused, UpdatePhase::Done] {
        story.image(if phase == UpdatePhase::Paused { "b" } else { "c" });
        assert_eq!(story.set(UpdatePhase::Moving), "the update of service web is not paused");
        assert_eq!(story.set(phase), "ok");
    }
    assert_eq!(story.set(UpdatePhase::Paused), "no update of service web is under way");
    story.image("d");
    assert_eq!(story.set(UpdatePhase::Paused), "ok");
    assert_eq!(story.tell(), "4/4 Update Paused why | 1+ 2- 3+");
    assert_eq!(story.set(UpdatePhase::Paused), "the update of service web is paused already");
    let since = |story: &Story| {
        story.state.service(service("web")).unwrap().update.clone().unwrap().started
    };
    let before = since(&story);
    assert_eq!(story.set(UpdatePhase::Moving), "ok");
    assert!(since(&story) > before, "what failed before does not count");
    story.write(Mutation::RemoveService { id: service("web") });
    assert_eq!(story.set(UpdatePhase::Paused), "service web is being removed");
    assert_eq!(story.back(1, ""), "service web is being removed");
}

#[test]
fn ten_are_kept_and_few_large_ones() {
    let mut story = Story::new();
    for n in 0..30 {
        story.image(&format!("i{n}"));
    }
    let numbers = |story: &Story| {
        let all = story.state.revisions(service("web")).iter();
        all.map(|revision| revision.number).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&story), (21..=30).collect::<Vec<_>>());
    // Half a mebibyte of them, but for the newest.
    for n in 0..5 {
        let large = "x".repeat(200 << 10);
        assert_eq!(story.update(|spec| spec.task.env = vec![format!("A{n}={large}")]), "ok");
    }
    assert_eq!(numbers(&story), [34, 35]);
}
