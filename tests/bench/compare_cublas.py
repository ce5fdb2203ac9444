#!/usr/bin/env python3
"""compare_cublas.py: what cuBLAS, through PyTorch, takes for the four base products of an 8B layer on this card.

    compare_cublas.py [ROWS ...]

Beside `bench_cuda --only layer` ("four products"). One CUDA graph of many layers; two sets of weights in turn (872 MB, so
nothing stays in L2); medians of seven replays. Also each product alone, where its two weights may partly stay in L2.
"""
import sys

import torch

SHAPES = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]  # out, in: qkv, o, gate and up, down
SETS = 2


def graph_us(run, n):
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for i in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end) * 1000 / n)
    return sorted(times)[len(times) // 2]


def main():
    rows_asked = [int(a) for a in sys.argv[1:]] or [64, 128, 192, 256, 512, 2048, 8192]
    torch.manual_seed(0)
    weights = [[(torch.randn(o, k, device="cuda") * 0.02).bfloat16() for o, k in SHAPES] for _ in range(SETS)]
    flop_row = 2 * sum(o * k for o, k in SHAPES)
    print(f"# cuBLAS by PyTorch {torch.__version__} on {torch.cuda.get_device_name()}")
    print("rows,layer_us,tflop_s,qkv_us,o_us,gate_up_us,down_us")
    for rows in rows_asked:
        x = {k: (torch.randn(rows, k, device="cuda") * 0.5).bfloat16() for k in (4096, 14336)}
        y = [torch.empty(rows, o, device="cuda", dtype=torch.bfloat16) for o, _ in SHAPES]
        n = max(2, int(8000 / (rows / 2 + 100)))

        def products(which):
            for r in range(n):
                for i in which:
                    torch.mm(x[SHAPES[i][1]], weights[r % SETS][i].t(), out=y[i])

        layer = graph_us(lambda: products(range(4)), n)
        each = [graph_us(lambda i=i: products([i]), n) for i in range(4)]
        print(f"{rows},{layer:.1f},{rows * flop_row / layer / 1e6:.0f}," + ",".join(f"{e:.1f}" for e in each), flush=True)


if __name__ == "__main__":
    main()
