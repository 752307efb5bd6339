"""Packs the digits table into data/digits.bin.

    zcat sklearn/datasets/data/digits.csv.gz | python3 data/pack_digits.py > data/digits.bin

Layout: 8 bytes `digits01`, then a record of 41 bytes per image: 64 pixels of 5 bits (row by row, the first pixel
in the lowest bits of a little-endian number of 320 bits), then one byte with the digit.
A test of `src/demo/digits.rs` unpacks the file, compares the text it came from by its hash, and packs it again.
"""

import sys

out = bytearray(b"digits01")
for line in sys.stdin:
    *pixels, digit = (int(field) for field in line.split(","))
    assert len(pixels) == 64 and all(0 <= pixel <= 16 for pixel in pixels) and 0 <= digit <= 9, line
    out += sum(pixel << (5 * place) for place, pixel in enumerate(pixels)).to_bytes(40, "little")
    out.append(digit)
sys.stdout.buffer.write(out)
