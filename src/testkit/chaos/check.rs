//! Whether one order explains what clients were told, as the checker has it. Decides only.

use crate::testkit::chaos::outcome::Order;
use crate::testkit::linear;
use crate::testkit::linear::Options;
use crate::testkit::linear::Verdict;
use crate::testkit::observed::Observed;
use crate::testkit::observed::show;

/// Looks for an order of everything that was asked, and of the final reads behind it.
pub fn check(mut history: Vec<Observed>, finals: &[Observed]) -> Order {
    history.extend_from_slice(finals);
    match linear::check(&history, &Options::default()) {
        Verdict::Linearizable(_) => Order::Linearizable,
        Verdict::Inconclusive { keys, .. } => {
            let keys: Vec<String> = keys.iter().map(show).collect();
            Order::Undecided(format!("the search was given up for {}", keys.join(", ")))
        }
        Verdict::Violated(violation) => {
            Order::Broken(violation.to_string().lines().map(str::to_owned).collect())
        }
    }
}
