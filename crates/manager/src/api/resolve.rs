//! Which node a text means: a hostname, an id, or the beginning of an id.
//!
//! Pure. Names win over ids, since names are what people choose; whatever fits
//! more than one node is refused with all it fits.

use warren_model::Node;
use warren_state::State;

use crate::refusal::Refusal;

/// Nodes named in a message about an ambiguity.
const SHOWN_MAX: usize = 5;

pub(crate) fn node<'a>(view: &'a State, text: &str) -> Result<&'a Node, Refusal> {
    let named: Vec<&Node> =
        view.nodes().filter(|n| !text.is_empty() && n.description.hostname == text).collect();
    if let Some(node) = one(text, "is the hostname of", &named)? {
        return Ok(node);
    }
    let begins = |node: &&Node| !text.is_empty() && node.id.to_string().starts_with(text);
    let begun: Vec<&Node> = view.nodes().filter(begins).collect();
    one(text, "begins the ids of", &begun)?.ok_or_else(|| {
        Refusal::not_found(format!("no node {text}")).hint("warren node ls shows them")
    })
}

fn one<'a>(text: &str, what: &str, found: &[&'a Node]) -> Result<Option<&'a Node>, Refusal> {
    match found {
        [] => Ok(None),
        [node] => Ok(Some(node)),
        several => {
            let ids: Vec<String> =
                several.iter().take(SHOWN_MAX).map(|node| node.id.to_string()).collect();
            let (count, ids) = (several.len(), ids.join(", "));
            let text = format!("{text:?} {what} {count} nodes: {ids}");
            Err(Refusal::bad_input(text).hint("write the id, or more of it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use warren_model::node::Description;
    use warren_state::change::Mutation;

    use super::*;
    use crate::testing::{apply, node as member, node_id, world};

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let mut view = world("");
        let description = Description { hostname: "host-b".into(), ..Description::default() };
        let twin = Node { description, ..member('c') };
        apply(&mut view, vec![Mutation::CreateNode(twin)]);
        let got = match node(&view, text) {
            Ok(node) => node.id.to_string(),
            Err(refusal) => refusal.to_string(),
        };
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn nodes() {
        let [a, b, c] = ['a', 'b', 'c'].map(|letter| node_id(letter).to_string());
        check("host-a", &a);
        check(&b, &b);
        check(&c[..8], &c);
        check("host-b", &format!("\"host-b\" is the hostname of 2 nodes: {b}, {c}"));
        check("c", &format!("\"c\" begins the ids of 3 nodes: {a}, {b}, {c}"));
        check("", "no node ");
        check("host-x", "no node host-x");
    }
}
