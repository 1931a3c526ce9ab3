//! Assembles a node and opens its doors.
