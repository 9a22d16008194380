//! Jobs: which runs there are, and what is refused.

use warren_model::Time;
use warren_model::id::ServiceId;
use warren_model::job::{Given, PayloadRule, Run, RunState};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Rejection, Transaction};

use crate::script::run;

/// A job, and what is written to it.
struct Story {
    state: State,
    id: ServiceId,
}

impl Story {
    fn of(words: &str) -> Self {
        let (state, _) = run(&format!("cluster\nservice j {words}"));
        let id = state.service_by_name("j").unwrap().id;
        Self { state, id }
    }

    /// `ok`, or why not.
    fn write(&mut self, mutation: Mutation) -> String {
        let transaction = Transaction { mutations: vec![mutation], ..Transaction::default() };
        let time = self.state.time().plus_ms(1000);
        let outcome = self.state.apply(time, &[transaction], &mut vec![]).remove(0);
        assert_eq!(self.state.check(), Vec::<String>::new());
        match outcome {
            Outcome::Rejected(Rejection::Invalid(why)) => why,
            Outcome::Rejected(other) => other.to_string(),
            Outcome::Applied { .. } | Outcome::Repeated { .. } => "ok".to_owned(),
        }
    }

    fn begin(&mut self, scheduled: Option<u64>) -> String {
        let scheduled = scheduled.map(|ms| self.state.time().plus_ms(ms));
        self.write(Mutation::BeginRun { id: self.id, scheduled, given: Given::default() })
    }

    fn end(&mut self, run: u32, state: RunState) -> String {
        let (id, message) = (self.id, String::new());
        self.write(Mutation::EndRun { id, run, state, message, completed: 1, total: 1 })
    }

    /// `1 complete, 2 running`.
    fn runs(&self) -> String {
        let job = self.state.service(self.id).unwrap().job.as_ref().unwrap();
        let runs = job.runs.iter().map(|run| format!("{} {}", run.number, run.state.as_str()));
        runs.collect::<Vec<_>>().join(", ")
    }
}

#[test]
fn runs_begin_and_end() {
    let mut story = Story::of("job=2");
    assert_eq!(story.runs(), "1 running");
    assert_eq!(story.begin(None), "ok");
    assert_eq!(story.runs(), "1 stopped, 2 running");
    assert_eq!(story.end(1, RunState::Complete), "run 1 of job j does not go on");
    assert_eq!(story.end(2, RunState::Running), "run 2 of job j goes on already");
    assert_eq!(story.end(2, RunState::Complete), "ok");
    assert_eq!(
        story.begin(Some(5000)),
        "job j has no schedule, or it is suspended",
        "only a schedule has times"
    );
    for _ in 0..8 {
        assert_eq!(story.begin(None), "ok");
    }
    // Five that ended, and the last.
    assert_eq!(story.runs(), "5 stopped, 6 stopped, 7 stopped, 8 stopped, 9 stopped, 10 running");
}

#[test]
fn a_time_is_decided_once() {
    let mut story = Story::of("job=1 every=forbid");
    assert_eq!(story.runs(), "");
    assert_eq!(story.begin(Some(60_000)), "ok");
    assert!(story.begin(Some(50_000)).ends_with("is decided already"));
    assert_eq!(story.begin(Some(90_000)), "run 1 of job j goes on");
    assert_eq!(story.end(1, RunState::Complete), "ok");
    assert_eq!(story.begin(Some(90_000)), "ok");
    let (id, until) = (story.id, Time(1));
    let message = String::new();
    let passed = story.write(Mutation::PassSchedule { id, until, missed: 1, message });
    assert!(passed.ends_with("is decided already"), "{passed}");
    assert_eq!(story.write(Mutation::Suspend { id, suspended: true }), "ok");
    assert_eq!(story.begin(Some(500_000)), "job j has no schedule, or it is suspended");
    assert_eq!(
        story.write(Mutation::Suspend { id, suspended: true }),
        "job j is suspended already"
    );
    assert_eq!(story.write(Mutation::Suspend { id, suspended: false }), "ok");
}

#[test]
fn runs_beside_each_other_are_few() {
    let mut story = Story::of("job=1 every=allow");
    for n in 0..16 {
        assert_eq!(story.begin(Some(60_000 * (n + 1))), "ok");
    }
    assert_eq!(story.begin(Some(9_000_000)), "16 runs of job j go on, more may not");
    let mut story = Story::of("job=1 every=replace");
    assert_eq!(story.begin(Some(60_000)), "ok");
    assert_eq!(story.begin(Some(120_000)), "ok");
    assert_eq!(story.runs(), "1 stopped, 2 running");
}

#[test]
fn a_job_stays_one() {
    let mut story = Story::of("job=1");
    let id = story.id;
    let mut spec = story.state.service(id).unwrap().spec.clone();
    spec.mode = warren_model::service::Mode::Global;
    assert_eq!(
        story.write(Mutation::UpdateService { id, spec }),
        "service j is replicated-job and cannot become global: remove it and create another"
    );
}

#[test]
fn what_a_run_is_given_is_kept_and_its_payload_until_it_ends() {
    let mut story = Story::of("job=1");
    let mut spec = story.state.service(story.id).unwrap().spec.clone();
    let declared = [("day".to_owned(), None), ("zone".to_owned(), Some("a".to_owned()))];
    spec.job.inputs.params = declared.into();
    spec.job.inputs.payload = PayloadRule::Optional;
    spec.task.image = "b".into();
    assert_eq!(story.end(1, RunState::Complete), "ok");
    assert_eq!(story.write(Mutation::UpdateService { id: story.id, spec }), "ok");
    // A change begins none any more.
    assert_eq!(story.runs(), "1 complete");
    let params = [("day".to_owned(), "1".to_owned())].into();
    let given = Given { params, payload: Some([1, 2, 3].into()) };
    let begin = Mutation::BeginRun { id: story.id, scheduled: None, given };
    assert_eq!((story.write(begin.clone()), story.write(begin)), ("ok".into(), "ok".into()));
    let told = |story: &Story| {
        let job = story.state.service(story.id).unwrap().job.as_ref().unwrap();
        let run = |run: &Run| format!("{:?} {:?} {}", run.params, run.payload, run.payload_len);
        job.runs[1..].iter().map(run).collect::<Vec<_>>()
    };
    let params = "{\"day\": \"1\", \"zone\": \"a\"}";
    assert_eq!(told(&story), vec![format!("{params} Some([1, 2, 3]) 3"); 2]);
    let sum = story.state.checksum();
    let back = State::import(story.state.head(), story.state.export()).unwrap();
    assert_eq!(back.checksum(), sum);
    assert_eq!(story.end(2, RunState::Failed), "ok");
    let after = [format!("{params} None 3"), format!("{params} Some([1, 2, 3]) 3")];
    assert_eq!(told(&story), after);
    assert_ne!(story.state.checksum(), sum);
}
