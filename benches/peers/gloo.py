"""All-reduce of torch.distributed's gloo backend, measured the way `phalanx bench` measures.

Usage: gloo.py --ranks 4 --sizes 1024,1048576 [--seconds 0.5] [--buffers 16] [--realtime]
Prints one line a size: `bytes microseconds`, the mean over ranks of a block of back-to-back ops over different buffers,
divided by the number of ops; median over blocks. Rank 0 checks a result first.
"""

import argparse
import os
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

BLOCKS_MIN = 3
BLOCKS_MAX = 4000


def block(buffers):
    begun = time.perf_counter()
    for buffer in buffers:
        dist.all_reduce(buffer)
    return time.perf_counter() - begun


def schedule(policy, priority):
    """All threads of this process, gloo's own included."""
    for task in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(task), policy, os.sched_param(priority))


def measure(size, options, rank):
    if options.realtime:
        schedule(os.SCHED_RR, 1)
    micros = measure_now(size, options, rank)
    if options.realtime:
        schedule(os.SCHED_OTHER, 0)
    return micros


def measure_now(size, options, rank):
    buffers = [torch.empty(size // 4, dtype=torch.float32).fill_(0) for _ in range(options.buffers)]
    warm = torch.tensor([min(block(buffers), block(buffers))], dtype=torch.float64)
    dist.all_reduce(warm, op=dist.ReduceOp.MAX)
    blocks = min(max(int(options.seconds / warm.item()), BLOCKS_MIN), BLOCKS_MAX)
    dist.barrier()
    times = torch.tensor([block(buffers) for _ in range(blocks)], dtype=torch.float64)
    dist.all_reduce(times)
    times /= options.ranks
    buffers[0].fill_(float(rank))
    dist.all_reduce(buffers[0])
    expected = float(sum(range(options.ranks)))
    if not bool((buffers[0] == expected).all()):
        raise SystemExit(f"gloo: wrong sum at {size} bytes")
    return statistics.median(times.tolist()) / options.buffers * 1e6


def run(rank, options, port):
    torch.set_num_threads(1)
    if options.pin:
        os.sched_setaffinity(0, {rank % os.cpu_count()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=options.ranks)
    for size in (int(text) for text in options.sizes.split(",")):
        micros = measure(size, options, rank)
        if rank == 0:
            print(size, f"{micros:.3f}", flush=True)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--sizes", default="1024,1048576,67108864")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--buffers", type=int, default=16)
    parser.add_argument("--realtime", action="store_true", help="measure ahead of the machine's other jobs (needs root)")
    parser.add_argument("--pin", action="store_true", help="rank r stays on core r modulo cores")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run, args=(options, port), nprocs=options.ranks)


if __name__ == "__main__":
    main()
