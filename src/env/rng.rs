//! Chance, and the only place that makes it. In production it comes from the operating system; a
//! simulation seeds its thread once and everything drawn there follows from the seed.

use std::cell::RefCell;
use std::convert::Infallible;
use std::marker::PhantomData;

use rand::Rng as _;
use rand::SeedableRng as _;
use rand::TryRng;
use rand::rngs::SmallRng;
use rand::rngs::StdRng;

thread_local! {
    static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// Draws from the thread's chance. It keeps nothing itself, so it may be made anywhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chance;

impl Chance {
    /// Fills `bytes`.
    pub fn fill(self, bytes: &mut [u8]) {
        SEEDED.with_borrow_mut(|seeded| match seeded {
            Some(rng) => rng.fill_bytes(bytes),
            None => rand::rng().fill_bytes(bytes),
        });
    }

    /// So many bytes.
    pub fn bytes<const COUNT: usize>(self) -> [u8; COUNT] {
        let mut bytes = [0; COUNT];
        self.fill(&mut bytes);
        bytes
    }

    /// Any number.
    pub fn number(self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// A number below `end`; 0 when `end` is 0. The bias is below `end / 2^64`.
    pub fn below(self, end: u64) -> u64 {
        scale(self.number(), end)
    }
}

impl TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_le_bytes(self.bytes()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.number())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.fill(bytes);
        Ok(())
    }
}

/// From here until the scope is dropped everything drawn on this thread follows from `seed`: all
/// tasks of a runtime that has one thread. Scopes do not nest: an inner one ends the outer one.
#[must_use = "the scope ends when it is dropped"]
pub fn seed_thread(seed: u64) -> SeedScope {
    SEEDED.set(Some(StdRng::seed_from_u64(seed)));
    SeedScope {
        stays_on_thread: PhantomData,
    }
}

/// Whether the calling thread is a simulation's: everything on it follows from a seed.
pub fn is_seeded() -> bool {
    SEEDED.with_borrow(Option::is_some)
}

/// See [`seed_thread`].
#[derive(Debug)]
pub struct SeedScope {
    stays_on_thread: PhantomData<*const ()>,
}

impl Drop for SeedScope {
    fn drop(&mut self) {
        SEEDED.set(None);
    }
}

/// A stream of numbers of its own that follows from its seed. For test kits, which have to repeat
/// themselves without touching the thread's chance.
#[derive(Debug, Clone)]
pub struct Seeded(SmallRng);

impl Seeded {
    /// The stream of that seed.
    pub fn new(seed: u64) -> Seeded {
        Seeded(SmallRng::seed_from_u64(seed))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        scale(self.number(), end)
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

fn scale(number: u64, end: u64) -> u64 {
    let product = u128::from(number) * u128::from(end);
    u64::try_from(product >> 64).expect("a product of two 64-bit numbers has 128 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_thread_repeats_itself_and_an_unseeded_one_does_not() {
        let draw = || [Chance.number(), Chance.below(1 << 40), Chance.number()];
        let seeded = |seed| {
            let _scope = seed_thread(seed);
            draw()
        };
        assert_eq!(seeded(7), seeded(7));
        assert_ne!(seeded(7), seeded(8));
        assert_ne!(draw(), draw());
    }

    #[test]
    fn below_stays_below_and_reaches_every_number() {
        let mut stream = Seeded::new(1);
        let drawn: std::collections::BTreeSet<u64> = (0..200).map(|_| stream.below(5)).collect();
        assert_eq!(drawn, (0..5).collect());
        assert_eq!(stream.below(0), 0);
    }
}
