#!/usr/bin/env python3
"""Whole models against transformers + peft: is this engine as exact as they are in bf16?

    compare_torch.py [--backend cuda] [--device cuda] [--build build/release] [--only mid,mid-f16,8b] [--csv FILE]

For each model (random, seeded, in Hugging Face layout) transformers makes the weights and peft four adapters of
different ranks, targets and dtypes. This engine decodes greedily from prompts of 1 to 333 tokens, all in one batch
(tests/bench/dump_logits.c), and shows the logits behind every token. transformers + peft then read the same tokens in
f32, which is the oracle, and in bf16, which is the peer. An adapter saved as F32, as peft saves them, stays f32 in the
peer, too, as peft keeps it beside a bf16 model; this engine, on a GPU, holds it as bf16 then. Told for each adapter and for the base model:

  logits   ||ours - oracle|| / ||oracle|| over all positions, and the same of the peer
  delta    the same of (logits with the adapter - logits of the base model on the same tokens), over the positions
           where the oracle's delta is at least a tenth of its logits
  greedy   the share of positions where the drawn token is the oracle's best one, ours and the peer's
  decode   the share of positions whose logits from decoding are, bit by bit, those of a prefill of the same tokens

Ours may have at most 1.2 times the peer's error in logits and in delta; otherwise the exit status is 1.
"""
import argparse
import os
import random
import subprocess
import sys
import tempfile

os.environ['HF_HUB_OFFLINE'] = '1'  # before the imports that read it

import numpy
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

LIMIT = 1.2
PROMPTS, GENERATE = (1, 17, 64, 129, 200, 333), 16
ALL = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
ADAPTERS = {  # name: (LoraConfig's arguments, dtype on disk)
    'r16-all': (dict(r=16, lora_alpha=16, target_modules=ALL), torch.bfloat16),
    'r5-qv': (dict(r=5, lora_alpha=10, target_modules=['q_proj', 'v_proj']), torch.bfloat16),
    'r64-mlp': (dict(r=64, lora_alpha=8, use_rslora=True, target_modules=ALL[4:]), torch.float16),
    'r8-f32': (dict(r=8, lora_alpha=16, target_modules=ALL), torch.float32),
}
MODELS = {  # name: (LlamaConfig's arguments, dtype on disk)
    'mid': (dict(hidden_size=1024, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2,
                 intermediate_size=2816, vocab_size=32000), torch.bfloat16),
    'mid-f16': (dict(hidden_size=1024, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=4,
                     intermediate_size=2816, vocab_size=32000), torch.float16),
    '8b': (dict(hidden_size=4096, num_hidden_layers=4, num_attention_heads=32, num_key_value_heads=8,
                intermediate_size=14336, vocab_size=128256), torch.bfloat16),
}


def make_model(config, dtype, directory, device):
    """Random weights that keep activations near 1, rounded to dtype; saved. Returns what adapters can be made on."""
    generator = torch.Generator(device).manual_seed(1)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, device=device)
            if p.ndim == 1:
                p.copy_(1 + 0.1 * noise)
            else:
                p.copy_(noise if 'embed' in name else noise / p.shape[1] ** 0.5)
    model.to(dtype).save_pretrained(directory)
    return model


def make_adapters(model, directory):
    """The adapters, A and B random and not zero."""
    for i, (name, (arguments, dtype)) in enumerate(ADAPTERS.items()):
        torch.manual_seed(100 + i)
        peft = get_peft_model(model, LoraConfig(task_type='CAUSAL_LM', init_lora_weights=False, **arguments))
        for parameter_name, p in peft.named_parameters():
            if 'lora_' in parameter_name:
                p.data = p.data.to(dtype)
        peft.save_pretrained(os.path.join(directory, name), save_embedding_layers=False)
        model = peft.unload()


def load(model_dir, adapters_dir, dtype, device):
    """The model with all adapters, everything in dtype (but what transformers and peft themselves keep in f32)."""
    model = LlamaForCausalLM.from_pretrained(model_dir, dtype=dtype).to(device)
    for i, (name, (_, on_disk)) in enumerate(ADAPTERS.items()):
        where, keeps = os.path.join(adapters_dir, name), on_disk == torch.float32  # True is peft's default
        if i == 0:
            peft = PeftModel.from_pretrained(model, where, adapter_name='a0', autocast_adapter_dtype=keeps)
        else:
            peft.load_adapter(where, adapter_name=f'a{i}', autocast_adapter_dtype=keeps)
        for parameter_name, p in peft.named_parameters():
            if f'.a{i}.' in parameter_name:
                p.data = p.data.to(torch.float32 if keeps else dtype)
    return peft.eval()


def read(peft, adapter, prompt, ids):
    """The logits [GENERATE, vocab], f32 on the CPU, behind each of ids; adapter 0 is none."""
    tokens = torch.tensor([prompt + ids[:-1]], device=next(peft.parameters()).device)
    with torch.no_grad():
        if adapter == 0:
            with peft.disable_adapter():
                logits = peft(input_ids=tokens).logits
        else:
            peft.set_adapter(f'a{adapter - 1}')
            logits = peft(input_ids=tokens).logits
    return logits[0, len(prompt) - 1:].float().cpu()


def ours(o, model_dir, adapter_dirs, requests):
    """[(ids, logits)] of requests [(adapter, n_generate, prompt)]."""
    out = os.path.join(os.path.dirname(model_dir), 'logits')
    text = ''.join(f'{a} {n} {" ".join(map(str, prompt))}\n' for a, n, prompt in requests)
    done = subprocess.run([f'{o.build}/tests/bench/dump_logits', o.backend, model_dir, out, *adapter_dirs],
                          input=text, stdout=subprocess.PIPE, text=True, check=True)
    vocab = int(done.stdout.split()[-1])
    answers = []
    with open(out, 'rb') as f:
        for _, n, _ in requests:
            ids = numpy.fromfile(f, numpy.int32, n).tolist()
            logits = torch.from_numpy(numpy.fromfile(f, numpy.float32, n * vocab).reshape(n, vocab))
            answers.append((ids, logits))
    os.remove(out)
    return answers


class Error:
    """A relative L2 error, summed over calls."""

    def __init__(self):
        self.difference = self.reference = 0.0

    def add(self, x, reference):
        self.difference += float((x.double() - reference.double()).square().sum())
        self.reference += float(reference.double().square().sum())

    def value(self):
        return (self.difference / self.reference) ** 0.5 if self.reference > 0 else float('nan')


def compare(o, name):
    arguments, dtype = MODELS[name]
    config = LlamaConfig(max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=False, **arguments)
    rows = []
    with tempfile.TemporaryDirectory(dir=o.work) as work:
        model_dir, adapters_dir = os.path.join(work, 'model'), os.path.join(work, 'adapters')
        make_adapters(make_model(config, dtype, model_dir, o.device), adapters_dir)
        if o.device == 'cuda':
            torch.cuda.empty_cache()
        adapter_dirs = [os.path.join(adapters_dir, a) for a in ADAPTERS]
        rng = random.Random(5)
        prompts = [[rng.randrange(config.vocab_size) for _ in range(n)] for n in PROMPTS]
        # Decoded, all kinds in one batch; then every prefix of the same tokens again, as prompts.
        kinds = range(len(ADAPTERS) + 1)
        decoded = [(a, GENERATE, p) for a in kinds for p in prompts]
        answers = ours(o, model_dir, adapter_dirs, decoded)
        prefixes = [(with_adapter, 1, p + ids[:t])
                    for (a, _, p), (ids, _) in zip(decoded, answers) for with_adapter in sorted({0, a})
                    for t in range(GENERATE)]
        forced = {(a, tuple(p)): logits[0]
                  for (a, _, p), (_, logits) in zip(prefixes, ours(o, model_dir, adapter_dirs, prefixes))}
        read_f32, read_bf16 = {}, {}
        keys = [(a, i, with_adapter) for i, (a, _, _) in enumerate(decoded) for with_adapter in sorted({0, a})]
        for store, to in ((read_f32, torch.float32), (read_bf16, torch.bfloat16)):
            peft = load(model_dir, adapters_dir, to, o.device)
            for a, i, with_adapter in keys:
                store[i, with_adapter] = read(peft, with_adapter, decoded[i][2], answers[i][0])
            del peft
        for a in kinds:
            errors = {k: Error() for k in ('logits', 'peer logits', 'delta', 'peer delta')}
            n = best = peer_best = same_bits = n_delta = 0
            for i, (kind, _, prompt) in enumerate(decoded):
                if kind != a:
                    continue
                ids, logits = answers[i]
                oracle, peer = read_f32[i, a], read_bf16[i, a]
                errors['logits'].add(logits, oracle)
                errors['peer logits'].add(peer, oracle)
                n += GENERATE
                best += int((oracle.argmax(-1) == torch.tensor(ids)).sum())
                peer_best += int((oracle.argmax(-1) == peer.argmax(-1)).sum())
                again = torch.stack([forced[a, tuple(prompt + ids[:t])] for t in range(GENERATE)])
                same_bits += int((again == logits).all(-1).sum())
                if a == 0:
                    continue
                base = torch.stack([forced[0, tuple(prompt + ids[:t])] for t in range(GENERATE)])
                delta = oracle - read_f32[i, 0]
                counts = delta.norm(dim=-1) >= 0.1 * oracle.norm(dim=-1)
                n_delta += int(counts.sum())
                errors['delta'].add((logits - base)[counts], delta[counts])
                errors['peer delta'].add((peer - read_bf16[i, 0])[counts], delta[counts])
            rows.append({
                'model': name, 'adapter': (['base'] + list(ADAPTERS))[a], 'positions': n,
                **{k.replace(' ', '_'): e.value() for k, e in errors.items()},
                'delta_positions': n_delta, 'greedy': best / n, 'peer_greedy': peer_best / n, 'decode': same_bits / n,
            })
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--backend', default='cuda')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--build', default='build/release')
    parser.add_argument('--only', default=','.join(MODELS))
    parser.add_argument('--work', help='where the models are written; a temporary folder')
    parser.add_argument('--csv')
    o = parser.parse_args()
    torch.set_float32_matmul_precision('highest')
    torch.backends.cuda.matmul.allow_tf32 = False
    failed, all_rows = 0, []
    print(f'{"model":8} {"adapter":8} {"n":>4}  {"logits":>9} {"peer":>9} {"ratio":>6}  {"n":>4} {"delta":>9} {"peer":>9} '
          f'{"ratio":>6}  {"greedy":>6} {"peer":>6}  {"decode":>6}')
    for name in o.only.split(','):
        for r in compare(o, name):
            all_rows.append(r)
            ratio = r['logits'] / r['peer_logits']
            delta_ratio = r['delta'] / r['peer_delta'] if r['delta_positions'] > 0 else 0.0
            bad = not (ratio <= LIMIT and delta_ratio <= LIMIT)
            failed += bad
            print(f'{r["model"]:8} {r["adapter"]:8} {r["positions"]:4}  {r["logits"]:9.2e} {r["peer_logits"]:9.2e} '
                  f'{ratio:6.3f}  {r["delta_positions"]:4} {r["delta"]:9.2e} {r["peer_delta"]:9.2e} {delta_ratio:6.3f}  '
                  f'{r["greedy"]:6.1%} {r["peer_greedy"]:6.1%}  {r["decode"]:6.1%}{"  FAILED" if bad else ""}', flush=True)
    if o.csv:
        with open(o.csv, 'w') as f:
            f.write(','.join(all_rows[0]) + '\n')
            f.writelines(','.join(str(v) for v in r.values()) + '\n' for r in all_rows)
    print(f'{len(all_rows) - failed} passed, {failed} failed (at most {LIMIT} times the error of transformers + peft in bf16)')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
