//! CRC32C (Castagnoli), the checksum of chunks on the wire.
//!
//! Reflected polynomial 0x82F63B78, register and result inverted, as in RFC 3720 appendix B.4.

use super::simd;
use crate::device::Span;

/// Returns the CRC32C of the bytes of `values`.
#[must_use]
pub fn checksum(values: Span) -> u32 {
    !simd::crc(simd::detected_crc(), !0, values)
}

const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What one byte does to the register, after 0 to 7 further zero bytes: eight bytes become eight look-ups.
static BYTES: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut register = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            register = (register >> 1) ^ if register & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        tables[0][byte] = register;
        byte += 1;
    }
    let mut zeros = 1;
    while zeros < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before: u32 = tables[zeros - 1][byte];
            tables[zeros][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        zeros += 1;
    }
    tables
};

/// Takes the next byte into the register.
#[inline(always)]
pub(super) fn take_byte(register: u32, byte: u8) -> u32 {
    (register >> 8) ^ BYTES[0][usize::from(register as u8 ^ byte)]
}

/// Takes the next eight bytes, a little-endian word, into the register.
#[inline(always)]
pub(super) fn take_word(register: u32, word: u64) -> u32 {
    let bytes = (word ^ u64::from(register)).to_le_bytes();
    bytes.iter().rev().zip(&BYTES).fold(0, |sum, (&byte, table)| sum ^ table[usize::from(byte)])
}

/// Bytes of each of the three lanes that the processor's instruction works on at once: it takes three cycles, but one
/// can start in every cycle.
#[cfg(target_arch = "x86_64")]
pub(super) const LANE_BYTES: usize = 1024;

/// What a register becomes after `LANE_BYTES` zero bytes, for each of its four bytes: lanes are joined with it.
#[cfg(target_arch = "x86_64")]
static LANE: [[u32; 256]; 4] = {
    // The step is linear over xor: 32 one-bit registers say everything.
    let mut columns = [0; 32];
    let mut bit = 0;
    while bit < 32 {
        let mut register = 1_u32 << bit;
        let mut zeros = 0;
        while zeros < LANE_BYTES {
            register = (register >> 8) ^ BYTES[0][(register & 0xff) as usize];
            zeros += 1;
        }
        columns[bit] = register;
        bit += 1;
    }
    let mut tables = [[0; 256]; 4];
    let mut index = 0;
    while index < 4 * 256 {
        let (table, byte) = (index / 256, index % 256);
        let mut bit = 0;
        while bit < 8 {
            if (byte >> bit) & 1 == 1 {
                tables[table][byte] ^= columns[8 * table + bit];
            }
            bit += 1;
        }
        index += 1;
    }
    tables
};

/// The register after `LANE_BYTES` zero bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn skip_lane(register: u32) -> u32 {
    register.to_le_bytes().iter().zip(&LANE).fold(0, |sum, (&byte, table)| sum ^ table[usize::from(byte)])
}
