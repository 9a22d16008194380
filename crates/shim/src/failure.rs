//! A failed step on its way to the daemon, which puts it into words.

use warren_shim::message::{Reply, Step};

use crate::sys::Sys;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure {
    step: Step,
    errno: i32,
    index: u32,
}

pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(step: Step, errno: i32) -> Self {
        Self { step, errno, index: 0 }
    }

    pub(crate) fn is(&self, step: Step, errno: i32) -> bool {
        self.step == step && self.errno == errno
    }

    /// As it came from the child.
    pub(crate) fn with_index(step: Step, errno: i32, index: u32) -> Self {
        Self { step, errno, index }
    }

    pub(crate) fn is_step(&self, step: Step) -> bool {
        self.step == step
    }

    pub(crate) fn reply(self) -> Reply {
        Reply::Failed { step: self.step, errno: self.errno, index: self.index }
    }
}

/// Names the step that a system call was for.
pub(crate) trait At<T> {
    fn at(self, step: Step) -> Outcome<T>;
    fn at_index(self, step: Step, index: usize) -> Outcome<T>;
}

impl<T> At<T> for Sys<T> {
    fn at(self, step: Step) -> Outcome<T> {
        self.map_err(|errno| Failure::new(step, errno))
    }

    fn at_index(self, step: Step, index: usize) -> Outcome<T> {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.map_err(|errno| Failure { step, errno, index })
    }
}
