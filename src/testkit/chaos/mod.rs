//! Faults on a real cluster, and what became of it: `quorate chaos`.
//!
//! [`schedule`] says what happens when, from a seed alone; [`fault`] what each fault does to whom once it
//! is known who leads. [`driver`] does it to the nodes ([`nodes`]: processes behind a relay, or
//! containers), beside a mix of clients, puts everything right, and gathers what was seen. [`outcome`]
//! judges that: an order that explains every answer ([`check`]), acknowledged writes that are missing,
//! time without writes around each fault ([`gaps`]). [`report`] shows it to a person.

pub mod fault;
pub mod schedule;
pub mod gaps;
pub mod outcome;
pub mod check;
pub mod report;
pub mod containers;
pub mod nodes;
pub mod watcher;
pub mod changer;
pub mod settled;
pub mod driver;

#[cfg(test)]
pub(crate) mod sample;
