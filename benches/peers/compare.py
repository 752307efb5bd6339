"""Runs the peers in turns and prints medians of the ratios taken round by round. Started by run.sh."""

import argparse
import json
import os
import statistics
import subprocess
import sys


def gloo(options, sizes):
    script = os.path.join(os.path.dirname(__file__), "gloo.py")
    command = [sys.executable, script, "--ranks", str(options.ranks), "--sizes", ",".join(map(str, sizes))]
    command += ["--seconds", str(options.seconds)]
    command += ["--realtime"] if options.realtime else []
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {int(line.split()[0]): float(line.split()[1]) for line in out.splitlines()}


def phalanx(options, sizes, transport):
    times = {}
    for size in sizes:
        command = [options.phalanx, "bench", "all_reduce", "--json", "--ranks", str(options.ranks)]
        command += ["--transport", transport, "--policy", options.policy, "--min", str(size), "--max", str(size)]
        command += ["--seconds", str(options.seconds)]
        # `phalanx` starts in no time: the whole run may go ahead of other jobs.
        command = ["chrt", "--rr", "1", *command] if options.realtime else command
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if row["wrong"]:
            raise SystemExit(f"phalanx: {row['wrong']} wrong values at {size} bytes over {transport}")
        times[size] = row["median_us"]
    return times


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--phalanx", required=True)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="1024,1048576,67108864")
    parser.add_argument("--policy", default="abort")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--realtime", action="store_true", help="on a shared machine: ahead of its other jobs (needs root)")
    options = parser.parse_args()
    sizes = [int(text) for text in options.sizes.split(",")]
    runs = {
        "gloo": lambda: gloo(options, sizes),
        "shm": lambda: phalanx(options, sizes, "shm"),
        "tcp": lambda: phalanx(options, sizes, "tcp"),
    }
    rounds = []
    for number in range(options.rounds):
        # Another one goes first each time.
        names = list(runs)
        names = names[number % len(names) :] + names[: number % len(names)]
        rounds.append({name: runs[name]() for name in names})
        for size in sizes:
            print(f"round {number} {size:>9}: " + ", ".join(f"{n} {rounds[-1][n][size]:.1f} us" for n in runs), flush=True)
    print(f"\nall_reduce f32, {options.ranks} ranks, policy {options.policy}, {options.rounds} rounds in turns")
    print(f"{'bytes':>10} {'transport':>10} {'phalanx us':>12} {'gloo us':>12} {'ratio':>7} {'range':>15}")
    for size in sizes:
        for transport in ("shm", "tcp"):
            ratios = [r[transport][size] / r["gloo"][size] for r in rounds]
            own = statistics.median(r[transport][size] for r in rounds)
            peer = statistics.median(r["gloo"][size] for r in rounds)
            ratio = statistics.median(ratios)
            span = f"{min(ratios):.3f}-{max(ratios):.3f}"
            print(f"{size:>10} {transport:>10} {own:>12.1f} {peer:>12.1f} {ratio:>7.3f} {span:>15}")


if __name__ == "__main__":
    main()
