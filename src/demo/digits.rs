//! The data: 1,797 images of handwritten digits, 8x8 pixels, shipped inside the binary.
//!
//! Source and licence: `data/ATTRIBUTION`. The layout of the file is written down in `data/pack_digits.py`.

/// Pixels of one image.
pub const PIXELS: usize = 64;
/// Classes: the digits 0 to 9.
pub const CLASSES: usize = 10;
/// Images in the file.
pub const IMAGES: usize = 1_797;
/// Of so many images in a row, the last one is held out.
pub const HELD_OUT_EVERY: usize = 5;

const PACKED: &[u8] = include_bytes!("../../data/digits.bin");
const MAGIC: &[u8; 8] = b"digits01";
const PIXEL_BITS: usize = 5;
const PIXEL_BYTES: usize = PIXELS * PIXEL_BITS / 8;
const RECORD_BYTES: usize = PIXEL_BYTES + 1;
const INK_MAX: u8 = 16;

const _: () =
    assert!(PACKED.len() == MAGIC.len() + IMAGES * RECORD_BYTES, "the file holds all images, no more");

/// One image and what it shows.
#[derive(Clone, PartialEq, Debug)]
pub struct Image {
    /// Ink of each pixel, row by row, in `[0, 1]`: a multiple of 1/16.
    pub pixels: [f32; PIXELS],
    /// The digit, below [`CLASSES`].
    pub digit: u8,
}

/// The images, split by a fixed rule: image `i` of the file is held out when `i % 5 == 4`.
#[derive(Clone, PartialEq, Debug)]
pub struct Digits {
    /// 1,438 images to learn from, in file order.
    pub train: Vec<Image>,
    /// 359 images that training never sees, in file order.
    pub held_out: Vec<Image>,
}

impl Digits {
    /// The images that ship with the library.
    ///
    /// # Panics
    /// Never: a test reads the same bytes.
    #[must_use]
    pub fn load() -> Self {
        let images = unpack(PACKED).expect("the file inside the binary is the one the tests have read");
        let mut digits = Self { train: Vec::new(), held_out: Vec::new() };
        for (place, (ink, digit)) in images.into_iter().enumerate() {
            let image = Image { pixels: ink.map(|level| f32::from(level) / f32::from(INK_MAX)), digit };
            let held_out = place % HELD_OUT_EVERY == HELD_OUT_EVERY - 1;
            if held_out { &mut digits.held_out } else { &mut digits.train }.push(image);
        }
        digits
    }
}

/// Ink levels 0 to 16 and the digit of every image in a packed file; `None` when the bytes are not such a file.
fn unpack(packed: &[u8]) -> Option<Vec<([u8; PIXELS], u8)>> {
    let records = packed.strip_prefix(MAGIC)?;
    if records.len() % RECORD_BYTES != 0 {
        return None;
    }
    records
        .chunks_exact(RECORD_BYTES)
        .map(|record| {
            let mut ink = [0_u8; PIXELS];
            for (place, level) in ink.iter_mut().enumerate() {
                let bit = place * PIXEL_BITS;
                // Five bits touch at most two bytes. The byte after the last pixel's is the digit's, so the index
                // stays inside the record, and the mask drops what is not the pixel's.
                let two = u16::from_le_bytes([record[bit / 8], record[bit / 8 + 1]]);
                *level = (two >> (bit % 8)) as u8 & 31;
            }
            let digit = record[PIXEL_BYTES];
            let is_valid = ink.iter().all(|&level| level <= INK_MAX) && usize::from(digit) < CLASSES;
            is_valid.then_some((ink, digit))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::fnv::fnv1a;
    use std::fmt::Write;

    /// The second implementation of `data/pack_digits.py`.
    fn pack(csv: &str) -> Vec<u8> {
        let mut packed = MAGIC.to_vec();
        for line in csv.lines() {
            let mut record = [0_u8; RECORD_BYTES];
            for (place, field) in line.split(',').enumerate() {
                let value: u8 = field.parse().unwrap();
                if place == PIXELS {
                    record[PIXEL_BYTES] = value;
                    continue;
                }
                for bit in 0..PIXEL_BITS {
                    let target = place * PIXEL_BITS + bit;
                    record[target / 8] |= (value >> bit & 1) << (target % 8);
                }
            }
            packed.extend(record);
        }
        packed
    }

    fn csv() -> String {
        let mut text = String::new();
        for (ink, digit) in unpack(PACKED).unwrap() {
            for level in ink {
                write!(text, "{level},").unwrap();
            }
            writeln!(text, "{digit}").unwrap();
        }
        text
    }

    #[test]
    fn the_file_is_the_published_table() {
        let text = csv();
        // FNV-1a of the unpacked digits.csv of `data/ATTRIBUTION`, computed from that file.
        assert_eq!(fnv1a(text.bytes()), 0x0b6d_b7d4_442b_bc5d);
        assert_eq!(pack(&text), PACKED);
    }

    #[test]
    fn the_split_is_fixed_and_shows_every_digit() {
        let digits = Digits::load();
        assert_eq!((digits.train.len(), digits.held_out.len()), (1_438, 359));
        // Lines 1 and 5 of the table, as its text reads.
        assert_eq!(digits.train[0].pixels[2..6], [5.0, 13.0, 9.0, 1.0].map(|ink: f32| ink / 16.0));
        assert_eq!((digits.train[0].digit, digits.held_out[0].digit), (0, 4));
        for digit in 0..CLASSES as u8 {
            let held = digits.held_out.iter().filter(|image| image.digit == digit).count();
            assert!((20..=55).contains(&held), "{held} held-out images of {digit}");
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        assert_eq!(unpack(b"digits00"), None);
        assert_eq!(unpack(&PACKED[..PACKED.len() - 1]), None);
        let mut packed = PACKED[..MAGIC.len() + RECORD_BYTES].to_vec();
        assert!(unpack(&packed).is_some());
        packed[MAGIC.len()] |= 31;
        assert_eq!(unpack(&packed), None, "an ink level of 31");
        packed[MAGIC.len()] &= !31;
        *packed.last_mut().unwrap() = 10;
        assert_eq!(unpack(&packed), None, "digit 10");
    }
}
