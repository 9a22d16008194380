//! Names of services on one node: who is asked, what is answered, what is passed on.
//!
//! ```text
//! Tables ──▶ Zone (immutable, shared by pointer) ◀── Server ──▶ Forwarder ──▶ servers of the host
//! ```
//!
//! Pure: [`Zone`] says what a container may know, `answer` makes a message of it, `wire`
//! reads and writes bytes, `forward::cache` keeps what others answered. At the edge:
//! [`Server`] (sockets that are handed in), [`Forwarder`] (upstream servers).
//!
//! Names, for one who asks from a container (`shop` is a stack):
//!
//! | name | what is answered |
//! |---|---|
//! | `web` | the service of the asker's own stack, else one without a stack, else those of other stacks |
//! | `web.shop` | the service `web` of stack `shop` |
//! | `tasks.web`, `tasks.web.shop` | every task that accepts connections |
//! | `2.web`, `2.web.shop` | the tasks of one slot |
//! | `_http._tcp.web` (SRV) | the named port, at the service's address or at each task's |
//! | an alias, a task's hostname | as the service, the task |
//! | any of these below [`SUFFIX`] | the same; `web.warren.internal` is the service without a stack alone |
//! | an address's reverse name (PTR) | the name below [`SUFFIX`] of the service or slot |
//!
//! A name exists for those on a network of its service and for nobody else. What cannot be a
//! name of the cluster is forwarded; what can, never is: single labels, everything below
//! [`SUFFIX`], reverse names of the cluster's pools, and names that exist on other networks.
//!
//! The suffix is `warren.internal`: `internal` is kept from the public root for such use (ICANN,
//! 2024), and whole `internal` would hide names that clouds give their machines
//! (`metadata.google.internal`).
//!
//! Not here: binding sockets, `extra_hosts` (the hosts file of the container), encrypted
//! upstreams, DNSSEC validation (what a container asks for is passed through).

mod answer;
mod forward;
#[cfg(test)]
mod fuzz;
mod server;
mod tables;
mod wire;
mod zone;

pub use forward::resolv::{Resolv, container_file};
pub use forward::{Forwarder, HostResolver};
pub use server::{Counters, Server, Sockets};
pub use tables::{
    Addresses, Asker, Attachment, Endpoint, NamedPort, NetworkId, Prefix, Service, Tables, Task,
    Upstream,
};
pub use wire::{Data, Record, kind};
pub use zone::{Answer, Outcome, SUFFIX, Zone};
