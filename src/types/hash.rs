//! SipHash-2-4, as published by Aumasson and Bernstein, with the key `00 01 .. 0f`. Decides only.
//!
//! Where keys are stored depends on it ([`keyspace`](super::keyspace)), so that it never changes: neither with
//! a version of this program nor with the machine. It is written out here, since a library may come to compute
//! something else; the tests hold it to the published values.

/// The first half of the key, read as the algorithm reads bytes: the lowest first.
const KEY_LOW: u64 = 0x0706_0504_0302_0100;
/// The second half.
const KEY_HIGH: u64 = 0x0f0e_0d0c_0b0a_0908;
/// Bytes that are taken in at once.
const WORD_BYTES: usize = 8;

/// The hash of some bytes.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut state = [
        KEY_LOW ^ 0x736f_6d65_7073_6575,
        KEY_HIGH ^ 0x646f_7261_6e64_6f6d,
        KEY_LOW ^ 0x6c79_6765_6e65_7261,
        KEY_HIGH ^ 0x7465_6462_7974_6573,
    ];
    let (words, rest) = bytes.as_chunks::<WORD_BYTES>();
    for word in words {
        take(&mut state, u64::from_le_bytes(*word));
    }
    let mut last = [0; WORD_BYTES];
    last[..rest.len()].copy_from_slice(rest);
    // The length's lowest byte stands above what is left, which is at most seven bytes.
    take(
        &mut state,
        u64::from_le_bytes(last) | ((bytes.len() as u64) << 56),
    );
    state[2] ^= 0xff;
    for _ in 0..4 {
        stir(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn take(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    stir(state);
    stir(state);
    state[0] ^= word;
}

fn stir([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *b = b.rotate_left(13) ^ *a;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*d);
    *d = d.rotate_left(16) ^ *c;
    *a = a.wrapping_add(*d);
    *d = d.rotate_left(21) ^ *a;
    *c = c.wrapping_add(*b);
    *b = b.rotate_left(17) ^ *c;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference implementation's values for the bytes 0, 1, 2 and so on, so many of them.
    #[test]
    fn the_published_values_come_out() {
        let bytes: Vec<u8> = (0..64).collect();
        for (count, expected) in [
            (0, 0x726f_db47_dd0e_0e31),
            (1, 0x74f8_39c5_93dc_67fd),
            (2, 0x0d6c_8009_d9a9_4f5a),
            (7, 0xab02_00f5_8b01_d137),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
            (63, 0x958a_324c_eb06_4572),
        ] {
            assert_eq!(hash(&bytes[..count]), expected, "{count} bytes");
        }
    }
}
