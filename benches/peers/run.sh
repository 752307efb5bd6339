#!/bin/sh
# Runs Phalanx (shm, tcp) and Gloo in turns on this machine and prints the ratio of their times, round by round and as a
# median. Below 1: Phalanx is faster.
#
# usage: benches/peers/run.sh [ROUNDS] [SIZES] [--seconds S] [--realtime]
#   ROUNDS  5; SIZES  1024,1048576,67108864
# Gloo comes with torch from its registry, into a virtual environment under target/ (about 5 GB, once).
# POLICY (abort) chooses Phalanx's policy.
set -eu
cd "$(dirname "$0")/../.."
rounds=${1:-5}
sizes=${2:-1024,1048576,67108864}
target=${CARGO_TARGET_DIR:-target}
venv=$target/peers/gloo-venv
if ! "$venv/bin/python3" -c 'import torch.distributed' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet torch==2.15.0 numpy
fi
# Some shells end the script where there is less to shift.
if [ $# -ge 2 ]; then shift 2; else shift $#; fi
cargo build --release --quiet
exec "$venv/bin/python3" benches/peers/compare.py \
    --phalanx "$target/release/phalanx" --rounds "$rounds" --sizes "$sizes" --policy "${POLICY:-abort}" "$@"
