#!/usr/bin/env python3
"""Runs `phalanx demo` in a pseudo-terminal and draws its last screen as docs/demo.svg.

    cargo build --release && python3 docs/render_demo.py target/release/phalanx docs/demo.svg [DEMO OPTIONS]

Nothing is drawn that the run did not print. Knows the sequences that the demo uses, and refuses any other.
"""

import os
import pty
import re
import sys
from xml.sax.saxutils import escape

COLOURS = {"2": "#8b949e", "32": "#3fb950", "1;31": "#ff7b72", "36": "#39c5cf", "33": "#d29922"}
TEXT, GROUND, FRAME = "#e6edf3", "#0d1117", "#30363d"
CELL_W, CELL_H, PAD = 8.43, 19, 18


def capture(command):
    """What `command` writes to a terminal, and its exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    data = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux: the other side is closed.
            break
        if not part:
            break
        data += part
    _, status = os.waitpid(pid, 0)
    return data.decode(), os.waitstatus_to_exitcode(status)


def screen(text):
    """The lines that stand there in the end: each a list of (character, colour)."""
    lines, row, column, colour = [[]], 0, 0, None
    for sequence, char in re.findall(r"\x1b\[([0-9;]*[A-Za-z])|([^\x1b])", text):
        if sequence:
            number, kind = sequence[:-1], sequence[-1]
            if kind == "A":
                row -= int(number)
            elif kind == "K":
                del lines[row][column:]
            elif kind == "J":
                del lines[row][column:]
                del lines[row + 1:]
            elif kind == "m":
                colour = None if number in ("", "0") else COLOURS[number]
            else:
                raise SystemExit(f"unknown sequence {sequence!r}")
        elif char == "\n":
            row, column = row + 1, 0
            while row >= len(lines):
                lines.append([])
        elif char == "\r":
            column = 0
        else:
            lines[row] += [(" ", None)] * (column - len(lines[row]))
            lines[row][column:column + 1] = [(char, colour)]
            column += 1
    while lines and not lines[-1]:
        lines.pop()
    return lines


def svg(prompt, lines):
    lines = [[(char, TEXT) for char in prompt]] + lines
    width = max(map(len, lines)) * CELL_W + 2 * PAD
    height = len(lines) * CELL_H + 2 * PAD
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="Screen of a run of phalanx demo">',
        f'<rect x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8" fill="{GROUND}" '
        f'stroke="{FRAME}"/>',
        '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" '
        'font-size="14" xml:space="preserve">',
    ]
    for number, line in enumerate(lines):
        y = PAD + (number + 0.75) * CELL_H
        start = 0
        while start < len(line):
            end = start + 1
            while end < len(line) and line[end][1] == line[start][1]:
                end += 1
            run = "".join(char for char, _ in line[start:end])
            # Words are placed one by one, so that columns stand under each other in any font.
            for word in re.finditer(r"\S+(?: \S+)*", run):
                x = PAD + (start + word.start()) * CELL_W
                length = len(word.group()) * CELL_W
                out.append(
                    f'<text x="{x:.1f}" y="{y:.1f}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs" '
                    f'fill="{line[start][1] or TEXT}">{escape(word.group())}</text>'
                )
            start = end
    return "\n".join(out + ["</g>", "</svg>", ""])


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    program, target, options = sys.argv[1], sys.argv[2], sys.argv[3:]
    text, code = capture([program, "demo", *options])
    if code != 0:
        raise SystemExit(f"the demo ended with {code}:\n{text}")
    with open(target, "w", encoding="utf-8") as file:
        file.write(svg("$ " + " ".join(["phalanx", "demo", *options]), screen(text)))


if __name__ == "__main__":
    main()
