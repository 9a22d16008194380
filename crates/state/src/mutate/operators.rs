//! Operators: who may call from afar.

use warren_model::event::{Action, Kind};
use warren_model::operator::{Operator, OperatorName};

use super::{Step, invalid};
use crate::change::{Key, Rejection};

/// People and programs of one cluster; each call from afar looks through them all.
pub(crate) const OPERATORS_MAX: usize = 1024;

impl Step<'_> {
    pub(super) fn put_operator(&mut self, operator: &Operator) -> Result<(), Rejection> {
        let before = self.state.operators.get(&operator.name);
        let operator = match before {
            // The same again changes nothing.
            Some(before) if same(before, operator) => return Ok(()),
            Some(before) => {
                let created = before.created;
                Operator { created, revision: self.revision, ..operator.clone() }
            }
            None => {
                let created = self.state.time;
                Operator { created, revision: self.revision, ..operator.clone() }
            }
        };
        if before.is_none() && self.state.operators.len() >= OPERATORS_MAX {
            return invalid(format!("there are {OPERATORS_MAX} operators, more are not allowed"));
        }
        for other in self.state.operators().filter(|other| other.name != operator.name) {
            let shared = |ours: Option<_>, theirs| ours.is_some() && ours == theirs;
            if shared(operator.token_hash, other.token_hash)
                || shared(operator.key_hash, other.key_hash)
            {
                let name = operator.name;
                return invalid(format!("operator {name} would be let in as {}", other.name));
            }
        }
        let action = if before.is_some() { Action::Update } else { Action::Create };
        let (name, message) = (operator.name, operator.role.to_string());
        self.state.set_operator(self.journal, name, Some(operator));
        self.emit(Kind::Operator, action, name.to_string(), name.to_string(), message);
        Ok(())
    }

    pub(super) fn remove_operator(&mut self, name: OperatorName) -> Result<(), Rejection> {
        if self.state.operator(name).is_none() {
            return Err(Rejection::NotFound { key: Key::Operator(name) });
        }
        self.state.set_operator(self.journal, name, None);
        let text = name.to_string();
        self.emit(Kind::Operator, Action::Remove, text.clone(), text, String::new());
        Ok(())
    }
}

/// Whether both let the same one in to the same things.
fn same(a: &Operator, b: &Operator) -> bool {
    (a.role, a.token_hash, a.key_hash, a.expires) == (b.role, b.token_hash, b.key_hash, b.expires)
}
