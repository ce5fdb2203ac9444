#!/usr/bin/env python3
"""Side by side with llama.cpp on this machine's CPU, by hand:

    python3 tests/bench/compare_llama.py LLAMA_BIN [--tributary FILE] [--rounds N] [--threads N]

LLAMA_BIN is the bin folder of a release build of llama.cpp (GGML_NATIVE=ON) that has
llama-batched-bench. Both get the random 110M shape of `tributary bench` (llama.cpp as f16, ours as
bf16, both with a prompt of 128 and 64 generated tokens), and run in turns, so that a slow minute of
the machine hits both; medians and their ratios are printed as Markdown.

llama.cpp puts requests of different adapters into different batches: with 16 different adapters it
computes one request at a time. Its row "16, all different" is therefore its rate at one stream with
an adapter applied, which is the most that its server could reach. Only the standard library is
needed.
"""
import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile

LAYERS, HIDDEN, HEADS, FFN, VOCAB, RANK = 12, 768, 12, 2048, 32000, 16
PROMPT, GENERATE = 128, 64
STREAMS = (1, 8, 16)

# GGUF, version 3 (the format's own description: docs/gguf.md of the ggml project): magic, version,
# counts, key-value pairs, tensor infos, padding to 32 bytes, tensors each padded to 32 bytes.
U32, F32, STRING = 4, 6, 8
TENSOR_F32, TENSOR_F16 = 0, 1


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def pair(key, kind, value):
    if kind == STRING:
        return text(key) + struct.pack("<I", kind) + text(value)
    return text(key) + struct.pack("<I", kind) + struct.pack("<I" if kind == U32 else "<f", value)


# Random f16 between 2^-8 and 2^-5 in size, either sign: the upper byte of each from a table.
UPPER = bytes((b & 0x80) | (7 + (b >> 2) % 3) << 2 | (b & 3) for b in range(256))


def halves(n):
    out = bytearray(os.urandom(2 * n))
    out[1::2] = bytes(out[1::2]).translate(UPPER)
    return bytes(out)


def write_gguf(path, pairs, tensors):
    """tensors: (name, shape with the contiguous axis first, type)"""
    infos, at = b"", 0
    sizes = []
    for name, shape, kind in tensors:
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        size = n * (4 if kind == TENSOR_F32 else 2)
        infos += text(name) + struct.pack("<I", len(shape))
        infos += b"".join(struct.pack("<Q", d) for d in shape) + struct.pack("<IQ", kind, at)
        sizes.append((n, size, kind))
        at += (size + 31) // 32 * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + infos
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32))
        for n, size, kind in sizes:
            f.write(struct.pack("<f", 1.0) * n if kind == TENSOR_F32 else halves(n))
            f.write(bytes(-size % 32))


LINEARS = (
    ("attn_q", HIDDEN, HIDDEN), ("attn_k", HIDDEN, HIDDEN), ("attn_v", HIDDEN, HIDDEN),
    ("attn_output", HIDDEN, HIDDEN), ("ffn_gate", HIDDEN, FFN), ("ffn_up", HIDDEN, FFN),
    ("ffn_down", FFN, HIDDEN))


def write_model(path):
    tensors = [("token_embd.weight", (HIDDEN, VOCAB), TENSOR_F16),
               ("output_norm.weight", (HIDDEN,), TENSOR_F32)]
    for layer in range(LAYERS):
        tensors += [(f"blk.{layer}.{norm}.weight", (HIDDEN,), TENSOR_F32)
                    for norm in ("attn_norm", "ffn_norm")]
        tensors += [(f"blk.{layer}.{name}.weight", (d_in, d_out), TENSOR_F16)
                    for name, d_in, d_out in LINEARS]
    write_gguf(path, [
        pair("general.architecture", STRING, "llama"),
        pair("llama.context_length", U32, 2048),
        pair("llama.embedding_length", U32, HIDDEN),
        pair("llama.block_count", U32, LAYERS),
        pair("llama.feed_forward_length", U32, FFN),
        pair("llama.attention.head_count", U32, HEADS),
        pair("llama.attention.head_count_kv", U32, HEADS),
        pair("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        pair("llama.rope.dimension_count", U32, HIDDEN // HEADS),
        pair("llama.rope.freq_base", F32, 10000.0),
        pair("llama.vocab_size", U32, VOCAB),
        pair("tokenizer.ggml.model", STRING, "none"),
    ], tensors)


def write_adapter(path):
    tensors = []
    for layer in range(LAYERS):
        for name, d_in, d_out in LINEARS:
            at = f"blk.{layer}.{name}.weight"
            tensors += [(at + ".lora_a", (d_in, RANK), TENSOR_F16),
                        (at + ".lora_b", (RANK, d_out), TENSOR_F16)]
    write_gguf(path, [
        pair("general.architecture", STRING, "llama"),
        pair("general.type", STRING, "adapter"),
        pair("adapter.type", STRING, "lora"),
        pair("adapter.lora.alpha", F32, float(RANK)),
    ], tensors)


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def theirs(options, model, streams, *extra):
    """Output tokens a second, prefill, decode, by number of streams."""
    context = max(streams) * (PROMPT + GENERATE)
    out = run([os.path.join(options.llama_bin, "llama-batched-bench"), "-m", model,
               "-c", str(context), "-t", str(options.threads), "-npp", str(PROMPT),
               "-ntg", str(GENERATE), "-npl", ",".join(map(str, streams)),
               "--output-format", "jsonl", *extra])
    rates = {}
    for line in out.splitlines():
        if not line.startswith("{"):
            continue
        row = json.loads(line)
        n = row["pl"]
        rates[n] = (n * GENERATE / (row["t_pp"] + row["t_tg"]), n * PROMPT / row["t_pp"],
                    n * GENERATE / row["t_tg"])
    return rates


def ours(options, weights):
    out = run([options.tributary, "bench", "--csv", "--rounds", "1", "--weights", weights,
               "--threads", str(options.threads), "--prompt", str(PROMPT),
               "--generate", str(GENERATE), "--streams", ",".join(map(str, STREAMS)),
               "--kinds", "base,shared,distinct"])
    rows = [line.split(",") for line in out.splitlines() if line and not line.startswith("#")]
    at = {name: i for i, name in enumerate(rows[0])}
    return {(row[at["kind"]], int(row[0])):
            tuple(float(row[at[name]]) for name in ("output", "prefill", "decode"))
            for row in rows[1:]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("llama_bin")
    parser.add_argument("--tributary", default="./tributary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    found = {}

    def note(key, rates):
        found.setdefault(key, []).append(rates)

    with tempfile.TemporaryDirectory() as folder:
        model, adapter = os.path.join(folder, "110m.gguf"), os.path.join(folder, "lora.gguf")
        write_model(model)
        write_adapter(adapter)
        for _ in range(options.rounds):
            for n, rates in theirs(options, model, STREAMS).items():
                note(("llama", "base", n), rates)
            for (kind, n), rates in ours(options, "file").items():
                note(("ours", kind, n), rates)
            note(("llama", "distinct", 16),
                 theirs(options, model, (1,), "--lora", adapter)[1])
            for (kind, n), rates in ours(options, "int8").items():
                note(("int8", kind, n), rates)

    def median(key, what=0):
        return statistics.median(r[what] for r in found[key])

    def three(key):
        return " | ".join(f"{median(key, i):.0f}" for i in range(3))

    print("| streams | kind | output | prefill | decode | llama.cpp: output | prefill | decode "
          "| ratio of output | int8: output | prefill | decode |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for n in STREAMS:
        for kind in ("base", "shared", "distinct"):
            other = ("llama", kind, n)
            known = other in found
            their = three(other) if known else "| | "
            ratio = f"{median(('ours', kind, n)) / median(other):.2f}" if known else ""
            print(f"| {n} | {kind} | {three(('ours', kind, n))} | {their} | {ratio} "
                  f"| {three(('int8', kind, n))} |")
    shared = median(("ours", "shared", 16))
    print(f"\n16 different against one for all: {median(('ours', 'distinct', 16)) / shared:.2f}")


if __name__ == "__main__":
    main()
