//! One decoder, tried with what the fuzzer thinks of. `QUORATE_DECODER` names which, as its folder in the
//! corpus is called; `fuzz/run` goes through all.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use quorate::cli;
use quorate::testkit::decoders;
use quorate::testkit::decoders::Decoder;

static DECODER: LazyLock<Decoder> = LazyLock::new(|| {
    let wanted = std::env::var("QUORATE_DECODER").unwrap_or_default();
    let mut all = decoders::DECODERS.iter().chain(cli::DECODERS);
    let found = all.find(|decoder| decoder.name.replace(' ', "_") == wanted);
    *found.unwrap_or_else(|| panic!("QUORATE_DECODER is {wanted:?}, which is no decoder"))
});

fuzz_target!(|bytes: &[u8]| {
    (DECODER.read)(bytes);
});
