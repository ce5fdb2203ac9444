#!/usr/bin/env python3
"""What was asked for, and what tests/bench/results/gpu-*.csv say.

    report_gpu.py [RESULTS]        RESULTS: tests/bench/results

Reads the files of gpu.sh (and gpu-http.csv of http_gpu.sh), as many as there are, and prints a line for each row of
the table that the GPU backend was built to. Exit status 1 if a row is there and falls short.
"""
import csv
import os
import sys

results = sys.argv[1] if len(sys.argv) > 1 else 'tests/bench/results'
short = 0


def read(part):
    """The rows of gpu-PART.csv as dictionaries; of several tables in one file, `table` counts from 0."""
    path = os.path.join(results, f'gpu-{part}.csv')
    rows, titles, table = [], None, -1
    if os.path.exists(path):
        with open(path, newline='') as f:
            for cells in csv.reader(line for line in f if not line.startswith('#')):
                if cells and cells[0] in ('streams', 'group'):
                    titles, table = cells, table + 1
                elif titles:
                    rows.append({'table': table, **dict(zip(titles, cells))})
    return rows


def pick(table_rows, **wanted):
    for row in table_rows:
        if all(str(row.get(k)) == str(v) for k, v in wanted.items()):
            return row
    return None


def tell(what, value, target, at_most=False):
    global short
    if value is None:
        print(f'{what:62} {"not measured":>12} {target:12,.5g}')
        return
    reached = value <= target if at_most else value >= target
    short += not reached
    print(f'{what:62} {value:12,.5g} {target:12,.5g} {"" if reached else "short"}')


def number(row, column):
    return None if row is None else float(row[column])


def ratio(row, base, column):
    return None if row is None or base is None or float(base[column]) == 0 else 100 * float(row[column]) / float(base[column])


print(f'{"":62} {"measured":>12} {"asked for":>12}')
decode = read('decode')
for streams, target in ((1, 180), (8, 1370), (32, 5300), (64, 10000)):
    tell(f'base decode, batch {streams}, tokens/s', number(pick(decode, streams=streams, kind='base'), 'decode'), target)
for streams in (1, 8, 32, 64, 128):
    tell(f'one shared adapter, batch {streams}, % of base',
         ratio(pick(decode, streams=streams, kind='shared'), pick(decode, streams=streams, kind='base'), 'decode'), 96)
for streams, target in ((32, 4050), (64, 6850)):
    tell(f'all different, batch {streams}, tokens/s',
         number(pick(decode, streams=streams, kind='distinct'), 'decode'), target)
operators = read('operators')
for rank, out, target in ((16, 4096, 8), (16, 14336, 17), (64, 4096, 28), (64, 14336, 60)):
    row = pick(operators, group='sgmv', rows=64, adapters=64, rank=rank, d_out=out)
    tell(f'SGMV pair, 64 rows, 64 adapters, 4096 -> {rank} -> {out}, us', number(row, 'us'), target, at_most=True)
row = pick(operators, group='lora', rows=64, adapters=1, rank=16, d_out=14336)
tell('SGMV pair, one adapter, 64 rows, 4096 -> 16 -> 14336, added, us', number(row, 'added_us'), 1.5, at_most=True)
prefill = read('prefill')
for table, prompt, target in ((0, 2048, 36000), (1, 8192, 34000)):
    tell(f'prefill, one prompt of {prompt}, tokens/s', number(pick(prefill, table=table, kind='base'), 'prefill'), target)
mixed = read('mixed')
for table, n in enumerate((1, 8, 32)):
    for streams in (32, 128):
        tell(f'prefill of {streams} x 64 tokens, {n} adapters, % of base',
             ratio(pick(mixed, table=table, streams=streams, kind='distinct'),
                   pick(mixed, table=table, streams=streams, kind='base'), 'prefill'), 96)
tell('prefill attention, 8,192 tokens, TFLOP/s',
     number(pick(operators, group='attention', op='prefill 1 x 8192'), 'tflop_s'), 400)
row = pick(operators, group='attention', op='decode batch 32', d_in=4096)
tell('decode attention, batch 32, context 4,096, % of read bandwidth', None if row is None else 100 * float(row['share']), 85)
http = read('http')
tell('HTTP, 64 streams, 32 adapters, output tokens/s', number(http[0] if http else None, 'output_tokens_s'), 5000)
tell('HTTP, time to first token, p50, ms', number(http[0] if http else None, 'ttft_p50_ms'), 150, at_most=True)
grid = [r for r in operators if r['group'] == 'sgmv' and int(r['rows']) <= 256 and float(r['ratio']) > 0]
slower = [r for r in grid if float(r['ratio']) < 1]
tell('grid: shapes where the best peer is faster, of 108', float(len(slower)) if grid else None, 0, at_most=True)
for r in sorted(slower, key=lambda r: float(r['ratio'])):
    print(f'    rows {r["rows"]:>4} adapters {r["adapters"]:>3} rank {r["rank"]:>2} out {r["d_out"]:>5}: '
          f'{float(r["us"]):8.2f} us, {r["peer"]} {float(r["peer_us"]):8.2f} us')
print(f'{short} rows fall short')
sys.exit(1 if short else 0)
