#!/usr/bin/env python3
"""How much machine code each source line of a CUDA kernel became, and where registers are spilled.

    code_by_line.py SOURCE.cu [KERNEL] [--lines N]

SOURCE is compiled as the Makefile does it. Without KERNEL: every kernel's size in bytes and its spills (loads and stores
of local memory, instructions). With KERNEL, a part of the mangled name (narrow_kernelILi64E): the N (40) lines with the
most instructions, then every line that spills. Code that is run once a launch comes from L2, behind whatever the
multiprocessor is reading, when it doesn't fit the instruction cache; that is what this is for.

Needs nvcc and readelf. An instruction of sm_90 has 16 bytes.
"""
import argparse
import bisect
import collections
import os
import re
import struct
import subprocess
import sys
import tempfile

BYTES = 16
PADDING = 4096
SPILLS = {0x387: 'store', 0x983: 'load'}  # STL, LDL: the low 12 bits


def compiled(source, cubin):
    nvcc = os.environ.get('NVCC', '/usr/local/cuda/bin/nvcc')
    flags = ['-std=c++20', '-O3', '-lineinfo', '-I.', '-gencode=arch=compute_90a,code=sm_90a', '-cubin']
    subprocess.run([nvcc, *flags, source, '-o', cubin], check=True)
    with open(cubin, 'rb') as f:
        return f.read()


def kernels(elf):
    """(name, code) of each .text section."""
    at, = struct.unpack_from('<Q', elf, 0x28)
    n, names = struct.unpack_from('<HH', elf, 0x3C)
    sections = [struct.unpack_from('<IIQQQQ', elf, at + 64 * i) for i in range(n)]
    for section in sections:
        begin = sections[names][4] + section[0]
        name = elf[begin:elf.index(b'\0', begin)].decode()
        if name.startswith('.text.'):
            yield name[len('.text.'):], elf[section[4]:section[4] + section[5]]


def line_tables(cubin):
    """For each function, in some order, its [(address, file, line)]."""
    out = subprocess.run(['readelf', '--debug-dump=decodedline', cubin], stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True, check=False).stdout
    tables, table = [], []
    for text in out.splitlines():
        m = re.match(r'(\S+)\s+(\d+)\s+(0x[0-9a-f]+|0)(\s|$)', text)
        if not m:
            continue
        address = int(m.group(3), 16)
        if table and address == 0 and table[-1][0] > 0:
            tables.append(table)
            table = []
        table.append((address, m.group(1), int(m.group(2))))
    return tables + [table]


def spills_of(code):
    """(address, kind) of each instruction that spills."""
    for at in range(0, len(code), BYTES):
        kind = SPILLS.get(struct.unpack_from('<Q', code, at)[0] & 0xfff)
        if kind:
            yield at, kind


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n', maxsplit=1)[0])
    parser.add_argument('source')
    parser.add_argument('kernel', nargs='?')
    parser.add_argument('--lines', type=int, default=40)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        cubin = os.path.join(work, 'cubin')
        found = list(kernels(compiled(o.source, cubin)))
        if o.kernel is None:
            for name, code in sorted(found):
                n = collections.Counter(kind for _, kind in spills_of(code))
                print(f'{len(code):8} bytes {n["store"]:4} stores {n["load"]:4} loads  {name}')
            return
        everything = found
        found = [(name, code) for name, code in everything if o.kernel in name]
        if len(found) != 1:
            sys.exit(f'{len(found)} kernels of {o.source} are called so: {" ".join(name for name, _ in found)}')
        name, code = found[0]
        # Tables have no names, but the order of the sections; a function's end is padded.
        tables = line_tables(cubin)
        fit = len(tables) == len(everything) and all(
            0 <= len(c) - t[-1][0] <= PADDING for (_, c), t in zip(everything, tables))
        if not fit:
            sys.exit(f"readelf's tables of lines don't fit the kernels of {o.source}")
        table = tables[everything.index(found[0])]
    table.sort(key=lambda row: row[0])
    starts = [row[0] for row in table]
    size, spills = collections.Counter(), collections.Counter()
    for row, following in zip(table, starts[1:] + [len(code)]):
        size[row[1:]] += following - row[0]
    for at, kind in spills_of(code):
        spills[table[bisect.bisect_right(starts, at) - 1][1:] + (kind,)] += 1
    print(f'{name}: {len(code)} bytes')
    for (file, line), n in size.most_common(o.lines):
        print(f'{n // BYTES:6} instructions  {file}:{line}')
    for (file, line, kind), n in sorted(spills.items()):
        print(f'{n:6} spilled {kind}s  {file}:{line}')


main()
