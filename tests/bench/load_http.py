#!/usr/bin/env python3
"""A closed loop of streaming completions against a node, with nothing but Python's own library.

    load_http.py HOST:PORT [--streams 64] [--adapters 32] [--prompt 128] [--generate 64]
                           [--warm 10] [--seconds 60] [--processes 4] [--csv FILE] [--commit ID]

Each of `streams` connections asks, waits for the last event of the answer, and asks again; stream i always
uses adapter i modulo `adapters` of those that /v1/models lists after the base model (0: the base model).
Prompts are random token ids, all different; end-of-sequence tokens are ignored, so every answer has
`generate` tokens. Several processes share the streams, so that the load is not what is measured. After
`warm` seconds everything is counted for `seconds`:

  output   tokens that arrived, per second
  ttft     from the request's first byte to its first token, of requests sent within the window
  itl      between two events with tokens, divided by the tokens of the later one

An answer that breaks off, has another length or carries no signed receipt is an error; exit status 1.
"""
import argparse
import asyncio
import json
import multiprocessing
import random
import sys
import time
import urllib.request


class Counts:
    """What one process saw in its window."""

    def __init__(self):
        self.tokens = self.answers = 0
        self.ttft, self.itl, self.errors = [], [], []


class Stream:
    """One connection: requests one after another, each answer read as HTTP/1.1 chunks of server-sent events."""

    def __init__(self, options, index, window, counts):
        self.o, self.index, self.window, self.counts = options, index, window, counts
        self.random = random.Random(index * 7919 + 17)
        self.model = options.models[index % len(options.models)]

    def in_window(self, t):
        return self.window[0] <= t < self.window[1]

    def request(self):
        body = json.dumps({
            'model': self.model, 'stream': True, 'max_tokens': self.o.generate, 'temperature': 0,
            'ignore_eos': True, 'return_token_ids': True,
            'prompt': [self.random.randrange(self.o.vocab) for _ in range(self.o.prompt)],
        }).encode()
        return (b'POST /v1/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n'
                b'Content-Length: %d\r\n\r\n' % (self.o.address.encode(), len(body))) + body

    async def events(self, reader):
        head = await reader.readuntil(b'\r\n\r\n')
        status = head.split(b' ', 2)[1]
        chunked = b'transfer-encoding: chunked' in head.lower()
        if status != b'200' or not chunked:
            raise RuntimeError(f'HTTP status {status.decode()}')
        buffered = b''
        while True:
            n = int(await reader.readline(), 16)
            data = await reader.readexactly(n + 2)
            now = time.monotonic()
            buffered += data[:-2]
            *whole, buffered = buffered.split(b'\n\n')
            for event in whole:
                if event.startswith(b'data: ') and event != b'data: [DONE]':
                    yield now, json.loads(event[6:])
            if n == 0:
                return

    async def ask(self, reader, writer):
        sent = last = time.monotonic()
        writer.write(self.request())
        n_tokens, receipt = 0, False
        async for now, event in self.events(reader):
            if 'error' in event:
                raise RuntimeError(event['error'].get('message', 'an error event'))
            receipt |= 'tributary' in event
            n = sum(len(c.get('token_ids') or ()) for c in event.get('choices', ()))
            if n == 0:
                continue
            if n_tokens == 0 and self.in_window(sent):
                self.counts.ttft.append(now - sent)
            elif n_tokens > 0 and self.in_window(now):
                self.counts.itl.append((now - last) / n)
            if self.in_window(now):
                self.counts.tokens += n
            n_tokens += n
            last = now
        if n_tokens != self.o.generate or not receipt:
            raise RuntimeError(f'{n_tokens} tokens, {"a" if receipt else "no"} receipt')
        self.counts.answers += self.in_window(time.monotonic())

    async def run(self):
        host, port = self.o.address.rsplit(':', 1)
        writer = None
        while time.monotonic() < self.window[1]:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
                await self.ask(reader, writer)
            except (OSError, EOFError, RuntimeError, ValueError, asyncio.IncompleteReadError) as error:
                self.counts.errors.append(f'stream {self.index}: {error}')
                if writer is not None:
                    writer.close()
                writer = None
                await asyncio.sleep(0.2)
        if writer is not None:
            writer.close()


def process(options, indexes, window, results):
    counts = Counts()

    async def all_streams():
        await asyncio.gather(*(Stream(options, i, window, counts).run() for i in indexes))

    asyncio.run(all_streams())
    results.put(counts)


def percentile(values, p):
    """By nearest rank, in milliseconds."""
    values = sorted(values)
    return values[max(0, -(-len(values) * p // 100) - 1)] * 1e3 if values else float('nan')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('address')
    for name, default in (('streams', 64), ('adapters', 32), ('prompt', 128), ('generate', 64), ('vocab', 128256),
                          ('warm', 10), ('seconds', 60), ('processes', 4)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--csv')
    parser.add_argument('--commit', default='unknown')
    o = parser.parse_args()
    with urllib.request.urlopen(f'http://{o.address}/v1/models') as answer:
        names = [m['id'] for m in json.load(answer)['data']]
    o.models = names[1:1 + o.adapters] if o.adapters > 0 else names[:1]
    if len(o.models) < o.adapters:
        sys.exit(f'the node serves {len(o.models)} adapters, {o.adapters} are asked for')
    begin = time.monotonic() + 0.5 + o.warm
    window = (begin, begin + o.seconds)
    results = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=process, args=(o, range(p, o.streams, o.processes), window, results))
               for p in range(min(o.processes, o.streams))]
    for w in workers:
        w.start()
    all_counts = [results.get() for _ in workers]
    for w in workers:
        w.join()
    ttft = [t for c in all_counts for t in c.ttft]
    itl = [t for c in all_counts for t in c.itl]
    errors = [e for c in all_counts for e in c.errors]
    row = {
        'streams': o.streams, 'adapters': o.adapters, 'prompt': o.prompt, 'generate': o.generate,
        'seconds': o.seconds, 'output_tokens_s': round(sum(c.tokens for c in all_counts) / o.seconds, 1),
        'answers': sum(c.answers for c in all_counts),
        'ttft_p50_ms': round(percentile(ttft, 50), 1), 'ttft_p99_ms': round(percentile(ttft, 99), 1),
        'itl_p50_ms': round(percentile(itl, 50), 2), 'itl_p99_ms': round(percentile(itl, 99), 2),
        'errors': len(errors), 'commit': o.commit,
    }
    for name, value in row.items():
        print(f'{name:16} {value}')
    for error in errors[:5]:
        print(f'error: {error}')
    if o.csv:
        with open(o.csv, 'w') as f:
            f.write(','.join(row) + '\n' + ','.join(str(v) for v in row.values()) + '\n')
    sys.exit(1 if errors or not ttft else 0)


if __name__ == '__main__':
    main()
