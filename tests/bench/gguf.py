#!/usr/bin/env python3
"""GGUF files of a model and of LoRA adapters, for the comparison with llama.cpp (compare_llama.py).

    python3 tests/bench/gguf.py model   MODEL_DIR OUT.gguf
    python3 tests/bench/gguf.py adapter MODEL_DIR ADAPTER_DIR OUT.gguf

Reads what tests/bench/make_random writes: a Llama in Hugging Face layout (bf16, no biases, no scaled
RoPE) and adapters in PEFT layout. Anything else is refused, not guessed. Writes matrices as f16,
norms as f32, nothing else changed: numbers between 2^-14 and 65504 in size are the same in f16,
since bf16 has fewer bits; smaller ones are rounded, larger ones refused. Only the standard library
is needed.

A GGUF file (version 3; the format's own description is docs/gguf.md of the ggml project):

    "GGUF", version u32, tensors u64, pairs u64
    pairs     key (u64 length, bytes), type u32, value
    tensors   name, dimensions u32, each u64 with the contiguous axis first, type u32, offset u64
    padding to 32 bytes, then the tensors' data, each padded to 32 bytes

Two things differ between the layouts. Names: LINEARS and NORMS below. And RoPE: Hugging Face turns
element j of a head together with j + head_dim / 2, llama.cpp 2j together with 2j + 1, so the output
rows of q and k change places (and so do the rows of their adapters' B).

Tokens keep their text, but for bytes from 0x80 on, alone: they become words, since llama-server ends
a request with an error where random ones don't make UTF-8.
"""
import argparse
import array
import json
import os
import struct
import sys

ALIGNMENT = 32
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # types of values
TENSOR_F32, TENSOR_F16 = 0, 1  # types of tensors
TOKEN_NORMAL = 1
FILE_MOSTLY_F16 = 1

LINEARS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down"}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class Refused(Exception):
    """A file that isn't what the head of this program says; the sentence names it."""


# ---- numbers ---------------------------------------------------------------------------------

def half_of(bits):
    """f16 of the bf16 with these bits, as bits; -1 when there is none."""
    x = struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    if x != x or abs(x) > 65504:
        return -1
    return struct.unpack("<H", struct.pack("<e", x))[0]


HALVES = [half_of(bits) for bits in range(1 << 16)]


def to_f16(data, name):
    try:
        return array.array("H", map(HALVES.__getitem__, array.array("H", data))).tobytes()
    except OverflowError:
        raise Refused(f"{name}: a number that f16 doesn't hold") from None


def to_f32(data):
    return array.array("I", (bits << 16 for bits in array.array("H", data))).tobytes()


# ---- reading ---------------------------------------------------------------------------------

def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as f:
        return json.load(f)


def read_tensors(path):
    """name -> (shape, where its bytes lie in the file) of one safetensors file."""
    with open(path, "rb") as f:
        n_header = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(n_header))
    found = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        if t["dtype"] != "BF16":
            raise Refused(f"{path}: {name} is {t['dtype']}, not BF16")
        begin, end = t["data_offsets"]
        found[name] = (t["shape"], path, 8 + n_header + begin, end - begin)
    return found


def read_bytes(tensor):
    _, path, at, n = tensor
    with open(path, "rb") as f:
        f.seek(at)
        return f.read(n)


def read_config(model_dir):
    c = read_json(model_dir, "config.json")
    if c.get("model_type") != "llama" or c.get("rope_scaling") or c.get("attention_bias") \
            or c.get("mlp_bias"):
        raise Refused(f"{model_dir}: only a Llama without biases and without scaled RoPE")
    return c


def turned(data, config, module, d_in):
    """Rows of q and k (and of their B) in llama.cpp's order; anything else as it is."""
    heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
    if module not in heads:
        return data
    n_row, d = 2 * d_in, config["head_dim"]
    rows = [data[i:i + n_row] for i in range(0, len(data), n_row)]
    if len(rows) != config[heads[module]] * d:
        raise Refused(f"{module}: {len(rows)} rows")
    return b"".join(rows[h * d + half * d // 2 + j] for h in range(config[heads[module]])
                    for j in range(d // 2) for half in range(2))


def place(name):
    """"model.layers.3.mlp.up_proj" -> "blk.3.ffn_up", "mlp.up_proj"."""
    if name in ENDS:
        return ENDS[name], None
    parts = name.split(".")
    module = ".".join(parts[3:])
    theirs = LINEARS.get(module) or NORMS.get(module)
    if parts[:2] != ["model", "layers"] or theirs is None:
        raise Refused(f"{name}: a tensor that a Llama doesn't have")
    return f"blk.{int(parts[2])}.{theirs}", module


def whole(word):
    """A token's text as tokenizer.json has it (GPT-2's alphabet of bytes); a word for a byte from
    0x80 on. Bytes to 0x20 and 0x7f are U+0100 to U+0121 there."""
    c = ord(word) if len(word) == 1 else 0
    return f"\u0120b{c}" if 0x80 < c < 0x100 or c > 0x121 else word


# ---- writing ---------------------------------------------------------------------------------

def text(s):
    data = s.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, v):
    if kind == STRING:
        return text(v)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], v)


def pair(key, kind, v):
    return text(key) + struct.pack("<I", kind) + value(kind, v)


def pair_array(key, kind, values):
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + \
        b"".join(value(kind, v) for v in values)


def write_gguf(path, pairs, tensors):
    """tensors: (name, shape with the contiguous axis last, type, a function that returns the
    bytes). Each is read when it is its turn, so memory holds one at a time."""
    infos, at = [], 0
    for name, shape, kind, _ in tensors:
        n = 4 if kind == TENSOR_F32 else 2
        for d in shape:
            n *= d
        infos.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape),
                                              kind, at))
        at += n + -n % ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs + infos)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGNMENT))
        for *_, read in tensors:
            data = read()
            f.write(data + bytes(-len(data) % ALIGNMENT))


def matrix(name, tensor, config, module=None):
    shape = tensor[0]
    return (name, shape, TENSOR_F16,
            lambda: to_f16(turned(read_bytes(tensor), config, module, shape[1]), name))


def vector(name, tensor):
    return name, tensor[0], TENSOR_F32, lambda: to_f32(read_bytes(tensor))


# ---- the two kinds of file -------------------------------------------------------------------

def write_model(model_dir, out):
    c, found, tensors = read_config(model_dir), {}, []
    shards = sorted(set(read_json(model_dir, "model.safetensors.index.json")["weight_map"]
                        .values()))
    for shard in shards:
        found.update(read_tensors(os.path.join(model_dir, shard)))
    for name, tensor in sorted(found.items()):
        at, module = place(name.removesuffix(".weight"))
        tensors.append(vector(at + ".weight", tensor) if len(tensor[0]) == 1 else
                       matrix(at + ".weight", tensor, c, module))
    words = sorted(read_json(model_dir, "tokenizer.json")["model"]["vocab"].items(),
                   key=lambda word: word[1])
    if [i for _, i in words] != list(range(c["vocab_size"])):
        raise Refused(f"{model_dir}: tokenizer.json doesn't name each id once")
    write_gguf(out, [
        pair("general.architecture", STRING, "llama"),
        pair("general.file_type", U32, FILE_MOSTLY_F16),
        pair("llama.vocab_size", U32, c["vocab_size"]),
        pair("llama.context_length", U32, c["max_position_embeddings"]),
        pair("llama.embedding_length", U32, c["hidden_size"]),
        pair("llama.block_count", U32, c["num_hidden_layers"]),
        pair("llama.feed_forward_length", U32, c["intermediate_size"]),
        pair("llama.attention.head_count", U32, c["num_attention_heads"]),
        pair("llama.attention.head_count_kv", U32, c["num_key_value_heads"]),
        pair("llama.attention.layer_norm_rms_epsilon", F32, c["rms_norm_eps"]),
        pair("llama.rope.dimension_count", U32, c["head_dim"]),
        pair("llama.rope.freq_base", F32, c["rope_theta"]),
        pair("tokenizer.ggml.model", STRING, "gpt2"),
        pair("tokenizer.ggml.pre", STRING, "gpt-2"),
        pair_array("tokenizer.ggml.tokens", STRING, [whole(word) for word, _ in words]),
        pair_array("tokenizer.ggml.token_type", I32, [TOKEN_NORMAL] * len(words)),
        pair_array("tokenizer.ggml.merges", STRING, []),
        pair("tokenizer.ggml.add_bos_token", BOOL, False),
    ], tensors)


def write_adapter(model_dir, adapter_dir, out):
    c, a = read_config(model_dir), read_json(adapter_dir, "adapter_config.json")
    if a.get("peft_type") != "LORA" or a.get("use_rslora") or a.get("use_dora") \
            or a.get("bias", "none") != "none":
        raise Refused(f"{adapter_dir}: only plain LoRA")
    tensors = []
    found = read_tensors(os.path.join(adapter_dir, "adapter_model.safetensors"))
    for name, tensor in sorted(found.items()):
        stem = name.removeprefix("base_model.model.").removesuffix(".weight")
        stem, half = stem.rsplit(".", 1)
        at, module = place(stem)
        if half not in ("lora_A", "lora_B"):
            raise Refused(f"{name}: neither an A nor a B")
        tensors.append(matrix(f"{at}.weight.{half.lower()}", tensor, c,
                              module if half == "lora_B" else None))
    write_gguf(out, [
        pair("general.architecture", STRING, "llama"),
        pair("general.type", STRING, "adapter"),
        pair("adapter.type", STRING, "lora"),
        pair("adapter.lora.alpha", F32, a["lora_alpha"]),
    ], tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("model", "adapter"):
        of = kinds.add_parser(kind)
        of.add_argument("model_dir")
        if kind == "adapter":
            of.add_argument("adapter_dir")
        of.add_argument("out")
    o = parser.parse_args()
    try:
        if o.kind == "model":
            write_model(o.model_dir, o.out)
        else:
            write_adapter(o.model_dir, o.adapter_dir, o.out)
    except Refused as why:
        sys.exit(f"gguf: {why}")


if __name__ == "__main__":
    main()
