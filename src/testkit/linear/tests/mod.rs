//! The checker on histories in words, and beside a slow obvious one. Decides only.

mod words;
mod cases;
mod slow;
mod compare;
