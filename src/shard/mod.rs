//! The replicated state machine of one key range. Decides only.
