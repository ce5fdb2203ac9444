// What every end-to-end program needs: child processes that never outlive it, a local chain, nodes on free
// ports, the tributary command line, and a way to count checks.
//
// Everything a program starts is started here and is killed when it ends, whatever the reason. Nothing
// listens beyond 127.0.0.1.
import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
// ES modules don't look at NODE_PATH: the node modules live in contracts-abi/.
export const require = createRequire(path.join(root, 'contracts-abi/package.json'));
export const tributary = path.resolve(root, process.env.TRIBUTARY ?? 'build/release/tributary');
export const types = JSON.parse(fs.readFileSync(path.join(root, 'contracts-abi/types.json')));

const children = new Set();
const temporary = new Set();

const cleanUp = () => {
  for (const child of children) child.kill('SIGKILL');
  for (const dir of temporary) fs.rmSync(dir, { recursive: true, force: true });
};
process.on('exit', cleanUp);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(130));
for (const event of ['uncaughtException', 'unhandledRejection'])
  process.on(event, (error) => {
    console.error(error);
    process.exit(1);
  });

export function temporaryDirectory(name) {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), `tributary-${name}-`));
  temporary.add(dir);
  return dir;
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Thrown by a probe of until(): waiting on makes no sense.
export class Hopeless extends Error {}

// Calls probe until it returns something truthy; fails with what was awaited.
export async function until(what, probe, { timeoutMs = 30000, everyMs = 100 } = {}) {
  const deadline = Date.now() + timeoutMs;
  let last;
  for (;;) {
    try {
      const value = await probe();
      if (value) return value;
    } catch (error) {
      if (error instanceof Hopeless) throw error;
      last = error;
    }
    if (Date.now() > deadline)
      throw new Error(`waited ${timeoutMs} ms for ${what}${last ? `; last error: ${last.message}` : ''}`);
    await sleep(everyMs);
  }
}

// A child with its output kept. `exited` resolves to its exit code (or the signal's name).
export function start(command, args, { env = {}, cwd = root, onLine, logFile } = {}) {
  const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'pipe'] });
  children.add(child);
  child.out = '';
  child.err = '';
  const log = logFile ? fs.openSync(logFile, 'a') : undefined;
  let partial = '';
  child.stdout.on('data', (bytes) => {
    child.out += bytes;
    if (log !== undefined) fs.writeSync(log, bytes);
    if (onLine) {
      const lines = (partial + bytes).split('\n');
      partial = lines.pop();
      lines.forEach(onLine);
    }
  });
  child.stderr.on('data', (bytes) => {
    child.err = (child.err + bytes).slice(-65536);
    if (log !== undefined) fs.writeSync(log, bytes);
  });
  child.exited = new Promise((resolve) => {
    child.on('error', (error) => { child.err += error.message; resolve(127); });
    child.on('close', (code, signal) => {
      children.delete(child);
      if (log !== undefined) fs.closeSync(log);
      resolve(code ?? signal);
    });
  });
  return child;
}

// Runs a command to its end: {code, out, err}.
export async function run(command, args, { input = '', ...options } = {}) {
  const child = start(command, args, options);
  child.stdin.on('error', () => {}); // it may end before it has read everything
  child.stdin.end(input);
  const code = await child.exited;
  return { code, out: child.out, err: child.err };
}

// Runs `tributary ...`; throws with what it printed unless it exits 0. `--json` output is parsed.
export async function cli(args, options = {}) {
  const result = await run(tributary, args.map(String), options);
  if (result.code !== 0)
    throw new Error(`tributary ${args.join(' ')}: exit ${result.code}\n${result.out}${result.err}`);
  return args.includes('--json') ? JSON.parse(result.out) : result.out;
}

export async function freePort() {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

// A local chain. options: blockTime (seconds) or noMining; further anvil flags in `flags`.
export async function startAnvil({ blockTime, noMining, port, flags = [], logFile } = {}) {
  port ??= await freePort();
  const binary = path.join(root, 'contracts-abi/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil');
  const args = ['--host', '127.0.0.1', '--port', port, '--slots-in-an-epoch', 2];
  if (blockTime) args.push('--block-time', blockTime);
  if (noMining) args.push('--no-mining');
  const child = start(binary, [...args, ...flags].map(String), { logFile });
  const url = `http://127.0.0.1:${port}`;
  const rpc = async (method, params = []) => {
    const answer = await fetch(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
    }).then((response) => response.json());
    if (answer.error) throw new Error(`${method}: ${answer.error.message}`);
    return answer.result;
  };
  await until('anvil', () => rpc('eth_chainId'), { everyMs: 50 });
  return { child, url, port, rpc, stop: () => stop(child) };
}

// `tributary serve` or `tributary registry serve`; resolves when it says where it listens.
export async function startServer(args, { name = args[0], timeoutMs = 60000, ...options } = {}) {
  let url;
  const child = start(tributary, args.map(String), {
    ...options,
    onLine: (line) => { url ??= /listening on (http:\/\/\S+)/.exec(line)?.[1]; },
  });
  let exit;
  child.exited.then((code) => { exit = code; });
  await until(`${name} to listen`, () => {
    if (exit !== undefined) throw new Hopeless(`${name} ended with ${exit}: ${child.err.slice(-2000)}`);
    return url;
  }, { timeoutMs, everyMs: 20 }).catch((error) => { child.kill('SIGKILL'); throw error; });
  return { child, url, stop: (signal) => stop(child, signal) };
}

export async function stop(child, signal = 'SIGTERM', patienceMs = 15000) {
  child.kill(signal);
  const code = await Promise.race([child.exited, sleep(patienceMs).then(() => 'late')]);
  if (code === 'late') {
    child.kill('SIGKILL');
    throw new Error(`process ${child.spawnargs.slice(0, 3).join(' ')} did not end on ${signal}`);
  }
  return code;
}

// A node's JSON-RPC.
export async function rpc(nodeUrl, method, params = {}, headers = {}) {
  const response = await fetch(`${nodeUrl}/rpc`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
  });
  const answer = await response.json();
  if (answer.error) throw new Error(`${method}: ${answer.error.message}`);
  return answer.result;
}

// Anvil's well-known accounts: public keys to nobody's money.
export const devMnemonic = 'test test test test test test test test test test test junk';

// A wallet directory with dev keys: keys = {name: account index}. Returns {dir, passphraseFile, flags, address}.
export async function devWallet(dir, keys) {
  const { ethers } = require('ethers');
  fs.mkdirSync(dir, { recursive: true, mode: 0o700 });
  const passphraseFile = path.join(dir, '..', `${path.basename(dir)}.passphrase`);
  fs.writeFileSync(passphraseFile, 'a test passphrase that protects nothing\n', { mode: 0o600 });
  const flags = ['--wallet', dir, '--passphrase-file', passphraseFile];
  const address = {};
  for (const [name, index] of Object.entries(keys)) {
    const account = ethers.HDNodeWallet.fromPhrase(devMnemonic, '', `m/44'/60'/0'/0/${index}`);
    await cli(['wallet', 'import', name, ...flags], { input: account.privateKey + '\n' });
    address[name] = account.address;
  }
  return { dir, passphraseFile, flags, address };
}

// Counts checks; finish() prints the closing line that `make test` reads and sets the exit code.
export class Checks {
  passed = 0;
  failed = 0;
  skipped = 0;
  ok(condition, sentence, detail = '') {
    if (condition) {
      this.passed++;
      console.log(`ok      ${sentence}`);
    } else {
      this.failed++;
      console.log(`FAILED  ${sentence}${detail ? `\n        ${detail}` : ''}`);
    }
    return Boolean(condition);
  }
  equal(got, expected, sentence) {
    const text = (value) => JSON.stringify(value, (_, v) => (typeof v === 'bigint' ? `${v}` : v));
    return this.ok(text(got) === text(expected), sentence, `expected ${text(expected)}, got ${text(got)}`);
  }
  async test(sentence, body) {
    try {
      await body();
      return this.ok(true, sentence);
    } catch (error) {
      return this.ok(false, sentence, error.stack);
    }
  }
  finish() {
    console.log(`${this.passed} passed, ${this.failed} failed${this.skipped ? `, ${this.skipped} skipped` : ''}`);
    process.exit(this.failed ? 1 : 0);
  }
}
