#!/usr/bin/env python3
"""Side by side with llama.cpp's server, over HTTP, on this machine's CPU; by hand, one command:

    make bench-programs
    python3 tests/bench/compare_llama.py LLAMA_SERVER > tests/bench/results/cpu-llama-server.md

LLAMA_SERVER is the server of a release build of llama.cpp for this CPU (GGML_NATIVE=ON, or the
same instruction sets by name). Nothing else may run on the cores: its threads wait for each other
by spinning, so a neighbour costs it far more than us. Only Python's standard library is needed.
Five rounds take half an hour; `--rounds 1 --requests 0.1` shows within minutes that it works.
Progress goes to standard error, every single run to --csv FILE.

Both servers get the same random numbers of the 110M shape of `make bench` and the same 16 adapters
of rank 16 on all linear modules: make_random writes them, gguf.py converts them (ours bf16, llama.cpp
f16). Before anything is timed, both must find the same likeliest first tokens after the same prompt,
with nearly the same probabilities, without an adapter and with each of the 16; and what an adapter
changes must be far more than what the servers differ by. So the conversion is right, and
llama-server applies what it is asked for.

Then they run in turns, each started anew and alone, on the same cores (--cores) with a thread a core,
under the same closed loop from this program (on the other cores, if there are any): every stream
sends a prompt of 128 random token ids, none sent twice, reads 64 tokens as they are streamed, and
begins again on a new connection, until each has had its number of answers. Tokens are chosen
greedily. After an uncounted short answer for each stream everything counts:

    output   tokens / time from the first sending to the last token
    ttft     from the sending of a request to its first token
    cores    processor time of the server / that time

No request is left out, since llama-server serves unfairly: requests with different adapters go into
different batches, the lowest slot is served first, and a stream in a higher one may wait until the
lower ones have no more to ask.

llama-server gets its best: no prompt cache (nothing repeats), no Web UI, one sampler, as many slots
as streams, and no adapters where none is asked for; --llama-flag adds or overrides. Ours runs as it
always does: every answer is metered, signed and on disk before its last event.
"""
import argparse
import contextlib
import http.client
import json
import math
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import gguf

ADAPTERS, RANK, VOCAB = 16, 16, 32000
PROMPT, GENERATE, GENERATE_WARM = 128, 64, 8
TOP = 20  # likeliest first tokens that are compared
# kind, streams, answers a stream: about as long each. llama-server has no "shared" to be compared.
CELLS = (("base", 1, 24), ("base", 8, 6), ("base", 16, 4), ("shared", 16, 4), ("distinct", 16, 4))
KINDS = {"base": "no adapter", "shared": "one adapter for all", "distinct": "all different"}


def say(text):
    print(text, file=sys.stderr, flush=True)


def adapter_name(i):
    return f"adapter-{i:02d}"


def adapter_of(kind, stream):
    return {"base": None, "shared": 0, "distinct": stream % ADAPTERS}[kind]


# ---- the two servers -------------------------------------------------------------------------

class Server:
    """A server as a child process, pinned to `cores`; ends with the `with` that it belongs to."""
    name, path, address, process = "", "", None, None

    def start(self, command, work, cores):
        self.log_path = os.path.join(work, self.name + ".log")
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.sched_setaffinity(0, cores))
        try:
            for _ in range(1200):
                if self.process.poll() is not None:
                    sys.exit(f"{self.name} ended:\n{self.log()[-3000:]}")
                if self.is_ready():
                    return
                time.sleep(0.05)
            sys.exit(f"{self.name} isn't ready after a minute:\n{self.log()[-3000:]}")
        except BaseException:
            self.stop()
            raise

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as f:
            fields = f.read().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @contextlib.contextmanager
    def answer(self, body):
        """The answer to a request, on a connection of its own."""
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=900)) as c:
            c.request("POST", self.path, body, {"Content-Type": "application/json"})
            answer = c.getresponse()
            if answer.status != 200:
                raise OSError(f"{self.name}: status {answer.status}, {answer.read(500)}")
            with answer:
                yield answer

    def first_tokens(self, ids, adapter):
        """text -> logarithm of its probability, of the likeliest tokens after a prompt."""
        body = self.body(ids, adapter, 1, stream=False, **{self.top_field: TOP})
        with self.answer(body) as answer:
            return self.top(json.load(answer))


class Tributary(Server):
    name, path, top_field = "tributary", "/v1/completions", "logprobs"

    def __init__(self, o, cores):
        self.data = tempfile.mkdtemp(dir=o.work)
        command = [os.path.join(o.build, "tributary"), "serve", "--listen", "127.0.0.1:0",
                   "--model", os.path.join(o.work, "model"), "--threads", str(len(cores)),
                   "--data", self.data, "--log-level", "warn"]
        for i in range(ADAPTERS):
            name = adapter_name(i)
            command += ["--adapter", f"{name}={os.path.join(o.work, name)}"]
        self.start(command, o.work, cores)

    def stop(self):
        super().stop()
        shutil.rmtree(self.data)

    def is_ready(self):
        said = self.log().partition("listening on http://")[2]
        self.address = said.split("\n")[0].strip()
        return "\n" in said

    def body(self, ids, adapter, n, **more):
        return json.dumps({
            "model": "model" if adapter is None else adapter_name(adapter), "prompt": ids,
            "max_tokens": n, "temperature": 0, "ignore_eos": True, "return_token_ids": True,
            "stream": True, **more})

    def n_tokens(self, event):
        return sum(len(c.get("token_ids") or ()) for c in event["choices"])

    def top(self, answer):
        return answer["choices"][0]["logprobs"]["top_logprobs"][0]


class Llama(Server):
    name, path, top_field = "llama-server", "/completion", "n_probs"

    def __init__(self, o, cores, n_streams, with_adapters):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        command = [o.llama_server, "-m", os.path.join(o.work, "model.gguf"),
                   "--host", "127.0.0.1", "--port", str(port), "-t", str(len(cores)),
                   "-tb", str(len(cores)), "-np", str(n_streams), "-c", str(n_streams * 256),
                   "--cache-ram", "0", "--ctx-checkpoints", "0", "--no-ui"]
        if with_adapters:
            command += ["--lora-init-without-apply", "--lora", ",".join(
                os.path.join(o.work, adapter_name(i) + ".gguf") for i in range(ADAPTERS))]
        self.address = f"127.0.0.1:{port}"
        self.start(command + o.llama_flag, o.work, cores)

    def is_ready(self):
        try:
            with contextlib.closing(http.client.HTTPConnection(self.address, timeout=5)) as c:
                c.request("GET", "/health")
                return c.getresponse().status == 200
        except OSError:
            return False

    def body(self, ids, adapter, n, **more):
        # An adapter that isn't named has scale 0, but when none is named all are applied at 1, in
        # spite of --lora-init-without-apply: "no adapter" is one of them at 0.
        lora = [{"id": adapter or 0, "scale": 0.0 if adapter is None else 1.0}]
        return json.dumps({
            "lora": lora, "prompt": ids, "n_predict": n, "temperature": 0, "top_k": 1,
            "samplers": ["top_k"], "ignore_eos": True, "cache_prompt": False, "stream": True, **more})

    def n_tokens(self, event):
        return 0 if event["stop"] else len(event["tokens"])

    def top(self, answer):
        return {t["token"]: t["logprob"]
                for t in answer["completion_probabilities"][0]["top_logprobs"]}


# ---- do they compute the same? ---------------------------------------------------------------

def distance(a, b):
    """Root mean square difference of the logarithms, over the tokens that both name; infinite when
    these are fewer than three in four."""
    both = [t for t in a if t in b]
    if len(both) * 4 < 3 * len(a):
        return math.inf
    return math.sqrt(sum((a[t] - b[t]) ** 2 for t in both) / len(both))


def check_same(o, cores):
    ids = [random.randrange(VOCAB) for _ in range(PROMPT)]
    asked = [None, *range(ADAPTERS)]
    with Tributary(o, cores) as server:
        ours = [server.first_tokens(ids, a) for a in asked]
    with Llama(o, cores, ADAPTERS, True) as server:
        theirs = [server.first_tokens(ids, a) for a in asked]
    apart = max(distance(a, b) for a, b in zip(ours, theirs))
    changed = min(distance(a, b) for i, a in enumerate(ours) for b in theirs[:i])
    same = (f"First tokens after one prompt, without and with each of {ADAPTERS} adapters: the "
            f"logarithms of the {TOP} likeliest tokens' probabilities differ between the servers by "
            f"{apart:.4f} at most (root mean square), between any two of the {ADAPTERS + 1} by "
            f"{changed:.4f} at least (inf: fewer than three in four are the same tokens).")
    say(same)
    if not (apart < 0.05 and changed > 4 * apart):
        sys.exit("they don't compute the same")
    return same


# ---- the load --------------------------------------------------------------------------------

class Load:
    """A closed loop of streams; what it saw."""

    def __init__(self, server, kind, n_streams, n_answers, n_generate):
        self.server, self.kind, self.n_generate = server, kind, n_generate
        self.ttft, self.last, self.n_tokens, self.wrong = [], 0.0, 0, None
        self.lock = threading.Lock()
        streams = [threading.Thread(target=self.stream, args=(i, n_answers))
                   for i in range(n_streams)]
        cpu, own, begin = server.cpu_seconds(), time.process_time(), time.monotonic()
        for s in streams:
            s.start()
        for s in streams:
            s.join()
        if self.wrong is not None:
            sys.exit(f"{server.name}: {self.wrong!r}\n{server.log()[-2000:]}")
        self.seconds = self.last - begin
        self.cores = (server.cpu_seconds() - cpu) / self.seconds
        self.own_cores = (time.process_time() - own) / self.seconds

    def stream(self, i, n_answers):
        try:
            for _ in range(n_answers):
                if self.wrong is None:
                    self.ask(adapter_of(self.kind, i))
        except Exception as wrong:  # whatever it is, the run is void; main thread says so
            self.wrong = wrong

    def ask(self, adapter):
        ids = [random.randrange(VOCAB) for _ in range(PROMPT)]
        body = self.server.body(ids, adapter, self.n_generate)
        n, ttft, sent = 0, None, time.monotonic()
        with self.server.answer(body) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise OSError(str(event["error"]))
                n += self.server.n_tokens(event)
                now = time.monotonic()
                if n > 0 and ttft is None:
                    ttft = now - sent
        if n != self.n_generate:
            raise OSError(f"{n} tokens, {self.n_generate} were asked for")
        with self.lock:
            self.ttft.append(ttft * 1e3)
            self.n_tokens += n
            self.last = max(self.last, now)


def percentile(values, p):
    return sorted(values)[math.ceil(p / 100 * len(values)) - 1]


def measure(o, make, kind, n_streams, n_answers):
    with make() as server:
        Load(server, kind, n_streams, 1, GENERATE_WARM)
        load = Load(server, kind, n_streams, max(1, round(n_answers * o.requests)), GENERATE)
    row = {"server": server.name, "kind": kind, "streams": n_streams, "answers": len(load.ttft),
           "output": load.n_tokens / load.seconds, "ttft_p50_ms": percentile(load.ttft, 50),
           "ttft_p99_ms": percentile(load.ttft, 99), "cores": load.cores,
           "client_cores": load.own_cores}
    say("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}"
                  for k, v in row.items()))
    return row


# ---- telling ---------------------------------------------------------------------------------

def first_line(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return ((done.stdout + done.stderr).strip().splitlines() or ["unknown"])[0]


def cpu_text():
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
        lines = [line.partition(":") for line in f.read().split("\n\n")[0].splitlines()]
    info = {k.strip(): v.strip() for k, _, v in lines}
    told = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
            "amx_bf16")
    flags = info.get("flags", "").split()
    return (f"{info.get('model name', 'unknown')} (family {info.get('cpu family')}, model "
            f"{info.get('model')}; {', '.join(t for t in told if t in flags)})")


def tell(o, rows, same, cores, client_cores):
    def median(server, kind, n, what):
        return statistics.median(r[what] for r in rows if (r["server"], r["kind"], r["streams"])
                                 == (server, kind, n))

    ours, theirs = Tributary.name, Llama.name
    version = first_line(o.llama_server, "--version").removeprefix("version: ")
    print("# CPU: side by side with llama.cpp's server\n")
    print(f"Device: {cpu_text()}, {os.cpu_count()} cores in all; each server on cores "
          f"{','.join(map(str, cores))} with {len(cores)} threads, the client on "
          f"{','.join(map(str, client_cores))}. "
          f"Commit {o.commit}; llama.cpp {version}. "
          f"{time.strftime('%Y-%m-%d', time.gmtime())}. Medians of {o.rounds} alternating rounds:\n")
    print("    python3 tests/bench/compare_llama.py LLAMA_SERVER " + " ".join(o.told) + "\n")
    print(same + "\n")
    print("| streams | adapters | answers a run | output, tokens/s | llama-server | ratio | ttft p50, "
          "ms | llama-server | ttft p99, ms | llama-server | cores used | llama-server |")
    print("|" + "---|" * 12)
    for kind, n, _ in CELLS:
        def cell(what, digits=0):
            if kind == "shared":
                return f"{median(ours, kind, n, what):.{digits}f} | "
            return " | ".join(f"{median(s, kind, n, what):.{digits}f}" for s in (ours, theirs))
        ratio = "" if kind == "shared" else \
            f"{median(ours, kind, n, 'output') / median(theirs, kind, n, 'output'):.2f}"
        print(f"| {n} | {KINDS[kind]} | {median(ours, kind, n, 'answers'):.0f} | {cell('output')} "
              f"| {ratio} | {cell('ttft_p50_ms')} | {cell('ttft_p99_ms')} | {cell('cores', 2)} |")
    print(f"\nThe client took {max(r['client_cores'] for r in rows):.2f} cores at most.\n")

    def out(server, kind, n):
        return median(server, kind, n, "output")

    print("| asked for | bound | measured | |\n|---|---|---|---|")
    all_met = True
    for text, found, least in (
            *((f"no adapter, streams {n}, output / llama-server's",
               out(ours, "base", n) / out(theirs, "base", n), 1.0) for n in (1, 8, 16)),
            ("16 different, output / one adapter for all",
             out(ours, "distinct", 16) / out(ours, "shared", 16), 0.9),
            ("16 different, output / llama-server's",
             out(ours, "distinct", 16) / out(theirs, "distinct", 16), 3.0),
            ("16 different, llama-server's ttft p99 / ours",
             median(theirs, "distinct", 16, "ttft_p99_ms")
             / median(ours, "distinct", 16, "ttft_p99_ms"), 3.0)):
        all_met &= found >= least
        print(f"| {text} | at least {least} | {found:.2f} | {'met' if found >= least else 'NOT met'}"
              " |")
    return all_met


def write_csv(path, rows):
    with open(path, "w", encoding="ascii") as f:
        f.write(",".join(rows[0]) + "\n")
        for r in rows:
            f.write(",".join(f"{v:.3f}" if isinstance(v, float) else str(v)
                             for v in r.values()) + "\n")


def prepare(o):
    """The model and the adapters, in both forms, in the work folder."""
    if os.path.exists(os.path.join(o.work, "complete")):
        return
    subprocess.run([os.path.join(o.build, "tests/bench/make_random"), "110m", o.work,
                    str(ADAPTERS), str(RANK)], check=True)
    model = os.path.join(o.work, "model")
    say("converting")
    gguf.write_model(model, os.path.join(o.work, "model.gguf"))
    for i in range(ADAPTERS):
        at = os.path.join(o.work, adapter_name(i))
        gguf.write_adapter(model, at, at + ".gguf")
    with open(os.path.join(o.work, "complete"), "w", encoding="ascii"):
        pass


def run(o, cores, client_cores):
    prepare(o)
    same, rows = check_same(o, cores), []
    for i in range(o.rounds):
        for kind, n, n_answers in CELLS:
            turn = [lambda: Tributary(o, cores)]
            if kind != "shared":
                turn.append(lambda: Llama(o, cores, n, kind == "distinct"))
            for make in turn if i % 2 == 0 else reversed(turn):
                rows.append({"round": i} | measure(o, make, kind, n, n_answers))
                if o.csv:
                    write_csv(o.csv, rows)
    return tell(o, rows, same, cores, client_cores)


def core_list(text):
    return sorted(int(c) for c in text.split(","))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("llama_server")
    parser.add_argument("--build", default="build/release", help="our release build")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=float, default=1,
                        help="times the usual number of answers a stream; at least one each")
    parser.add_argument("--cores", type=core_list, help="of the servers; the first two")
    parser.add_argument("--llama-flag", action="append", default=[],
                        help="a further flag for llama-server (--llama-flag=--kv-unified)")
    parser.add_argument("--work", help="folder for models and logs, 500 MB, kept and used again; "
                        "else a temporary one")
    parser.add_argument("--csv", help="file for every run")
    parser.add_argument("--commit", help="ours, told beside the numbers; else git says it")
    o = parser.parse_args()
    o.told = [f"--{name} {getattr(o, name)}" for name in ("rounds", "requests")] + \
        [f"--llama-flag={flag}" for flag in o.llama_flag]
    o.commit = o.commit or first_line("git", "describe", "--always", "--dirty")
    there = sorted(os.sched_getaffinity(0))
    cores = o.cores or there[:2]
    client_cores = [c for c in there if c not in cores] or there
    os.sched_setaffinity(0, client_cores)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # and the servers, too
    with contextlib.ExitStack() as stack:
        if o.work is None:
            o.work = stack.enter_context(tempfile.TemporaryDirectory())
        os.makedirs(o.work, exist_ok=True)
        o.work = os.path.abspath(o.work)
        all_met = run(o, cores, client_cores)
    sys.exit(0 if all_met else 1)


if __name__ == "__main__":
    main()
