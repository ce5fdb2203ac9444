// How a node starts and how it can be stopped while it does: what is wrong is told before the model is loaded, and a
// signal ends it at once.
//
// Loading that takes as long as a test wants: the model's tokenizer.json is a FIFO, whose reader waits until somebody
// writes. A node that told of a mistake only after loading would not tell of it here.
import { execFileSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { Checks, freePort, root, run, sleep, start, startServer, stop, temporaryDirectory, tributary, until } from './harness.mjs';

const checks = new Checks();
const dir = temporaryDirectory('startup');
const model = path.join(root, 'tests/fixtures/models/stories260K');
const adapters = path.join(root, 'tests/fixtures/adapters');
const fifo = path.join(dir, 'slow/stories260K/tokenizer.json');
const slow = path.dirname(fifo);
fs.cpSync(model, slow, { recursive: true });
fs.rmSync(fifo);
execFileSync('mkfifo', [fifo]);

const file = (name, text, mode = 0o600) => {
  const at = path.join(dir, name);
  fs.writeFileSync(at, text, { mode });
  return at;
};
const exists = (name) => fs.existsSync(path.join(dir, name));
const json = { 'content-type': 'application/json' };

// A node that is loading, and stays so.
async function loading(name, flags = []) {
  const url = `http://127.0.0.1:${await freePort()}`;
  const child = start(tributary, ['serve', '--model', slow, '--listen', url.slice(7), '--data', path.join(dir, name), ...flags]);
  await until(`${name} to answer`, () => fetch(`${url}/healthz`), { everyMs: 10 });
  await until(`${name} to load`, () => child.err.includes('loading stories260K'), { everyMs: 10 });
  await sleep(50);
  return { child, url };
}
// How long stopping takes, and with what it ends.
async function timed(child, signal) {
  const began = Date.now();
  return { code: await stop(child, signal), ms: Date.now() - began };
}

await checks.test('what is wrong with a command line or its files is told before the model is loaded', async () => {
  const taken = net.createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => taken.on('listening', resolve));
  const { port } = taken.address();
  const tls = path.join(root, 'tests/fixtures/tls');
  const key = crypto.createHash('sha256').update('sk-ann').digest('hex');
  const bad = [
    ['a port that is taken', ['--listen', `127.0.0.1:${port}`], 74, `cannot listen on 127.0.0.1:${port}`],
    ['no port', ['--listen', '127.0.0.1'], 65, 'not HOST:PORT'],
    ['no host of that name', ['--listen', 'no-such-host.invalid:80'], 65, 'no-such-host.invalid'],
    ['an address of another machine', ['--listen', '192.0.2.1:80', '--insecure-bind', '--api-keys', file('good-keys', `ann ${key}\n`)], 74, 'cannot listen on 192.0.2.1:80'],
    ['a public address without keys', ['--listen', '0.0.0.0:0'], 77, 'without API keys'],
    ['no file of keys', ['--api-keys', path.join(dir, 'no-keys')], 66, 'no-keys'],
    ['a line that is no key', ['--api-keys', file('bad-keys', 'ann sk-ann\n')], 65, 'bad-keys:1'],
    ['no admin key in their file', ['--admin-keys', file('empty-keys', '# none\n')], 65, 'empty-keys has no key'],
    ['no certificate', ['--tls-cert', path.join(dir, 'no-cert.pem'), '--tls-key', `${tls}/key.pem`], 66, 'no-cert.pem'],
    ['a certificate that is none', ['--tls-cert', `${tls}/key.pem`, '--tls-key', `${tls}/key.pem`], 74, 'certificate and key'],
    ['an adapter without a directory', ['--adapter', 'law'], 65, '"law" is not NAME=DIR'],
    ['an adapter\'s directory that isn\'t there', ['--adapter', 'law=/no/such/law'], 66, 'no such directory'],
    ['a directory that has no adapter', ['--adapter', `law=${adapters}`], 66, 'adapter_config.json'],
    ['two adapters of one name', ['--adapter', `law=${adapters}/demo-7m/law`, '--adapter', `law=${adapters}/demo-7m/med`], 65, 'two models are named "law"'],
    ['no directory of adapters', ['--adapters-dir', '/no/such/adapters'], 66, '/no/such/adapters'],
    ['no model', ['--model', adapters], 66, 'config.json'],
    ['a name that is none', ['--model-name', 'x'.repeat(200)], 65, '--model-name'],
    ['an endpoint of no chain', ['--rpc', 'http://127.0.0.1:1'], 65, '--deployment FILE'],
    ['no deployment', ['--deployment', path.join(dir, 'no-deployment')], 66, 'no-deployment'],
    ['no addresses in a deployment', ['--deployment', file('no-addresses', '{"chainId":1,"escrow":"0x1"}')], 65, '"escrow" is not an address'],
  ];
  for (const [what, flags, code, why] of bad) {
    const given = { '--model': slow, '--listen': '127.0.0.1:0', '--data': path.join(dir, 'never') };
    for (const option of Object.keys(given)) if (flags.includes(option)) delete given[option];
    const result = await run('timeout', ['10', tributary, 'serve', ...Object.entries(given).flat(), ...flags]);
    checks.ok(result.code === code && result.err.includes(why), what, `exit ${result.code}: ${result.err}`);
  }
  taken.close();
  checks.ok(!exists('never'), 'none of them leaves a data directory behind');
});

await checks.test('and so is what is wrong with the wallet and the database', async () => {
  const serve = (data, ...flags) => ['serve', '--model', model, '--listen', '127.0.0.1:0', '--data', path.join(dir, data), ...flags];
  for (const data of ['damaged', 'locked', 'wallet']) checks.equal(await (await startServer(serve(data))).stop(), 0, `${data}: a node is made`);
  for (const f of fs.readdirSync(path.join(dir, 'damaged'))) if (/^ledger.db/.test(f)) fs.rmSync(path.join(dir, 'damaged', f));
  file('damaged/ledger.db', 'no database '.repeat(1000));
  file('wallet/wallet/house.key', '{');
  const other = await startServer(serve('locked'));
  for (const [what, data, code, why] of [
    ['a database that is none', 'damaged', 65, 'ledger.db'],
    ['a database that another node has open', 'locked', 65, 'locked'],
    ['a key file that is none', 'wallet', 65, 'house'],
  ]) {
    const { code: got, err } = await run('timeout', ['10', tributary, 'serve', '--model', slow, '--listen', '127.0.0.1:0', '--data', path.join(dir, data)]);
    checks.ok(got === code && err.includes(why), what, `exit ${got}: ${err}`);
  }
  checks.equal(await other.stop(), 0, 'the other node goes on');
});

await checks.test('while the model is loaded the node is alive, not ready, and says so', async () => {
  const keys = file('keys', `ann ${crypto.createHash('sha256').update('sk-ann').digest('hex')}\n`);
  const node = await loading('early', ['--api-keys', keys]);
  const ask = async (where, options) => {
    const answer = await fetch(node.url + where, options);
    return { status: answer.status, retry: answer.headers.get('retry-after'), text: await answer.text() };
  };
  checks.equal((await ask('/healthz')).status, 200, 'alive');
  const ready = await ask('/readyz');
  checks.ok(ready.status === 503 && ready.text.includes('model is being loaded'), 'not ready', JSON.stringify(ready));
  const authorization = 'Bearer sk-ann', body = '{"model":"stories260K","prompt":"Once","max_tokens":1}';
  for (const [where, options] of [['/v1/completions', { method: 'POST', headers: { ...json, authorization }, body }], ['/v1/models', { headers: { authorization } }],
    ['/v1/completions', { method: 'POST', headers: { ...json, 'x-tributary-request': '{}' }, body }], ['/metrics'], ['/'], ['/rpc', { method: 'POST', headers: json, body: '{"jsonrpc":"2.0","id":1,"method":"node_status"}' }], ['/v1/receipts/x']]) {
    const { status, retry, text } = await ask(where, options);
    checks.ok(status === 503 && Number(retry) > 0 && JSON.parse(text).error.code === 'busy', `${where} is asked to come again`, `${status}: ${text}`);
  }
  checks.equal([(await ask('/v1/models')).status, (await ask('/v1/none')).status], [401, 404], 'no key, and no path, is what it is');
  checks.ok(!node.child.out.includes('listening'), 'it doesn\'t say that it is ready');
  fs.writeFileSync(fifo, fs.readFileSync(path.join(model, 'tokenizer.json')));
  await until('the model', async () => (await ask('/readyz')).status === 200, { everyMs: 20 });
  checks.equal((await ask('/v1/completions', { method: 'POST', headers: { ...json, authorization }, body })).status, 200, 'then it answers');
  checks.ok(node.child.out.includes(`listening on ${node.url}`), 'and says so', node.child.out);
  checks.equal(await stop(node.child), 0, 'it ends with 0');
});

await checks.test('a node that is loading ends at once when it is told to, and loses nothing', async () => {
  const epochs = async () => {
    const node = await startServer(['serve', '--model', model, '--listen', '127.0.0.1:0', '--data', path.join(dir, 'stopped')]);
    const answer = await fetch(`${node.url}/v1/completions`, { method: 'POST', headers: json, body: '{"model":"stories260K","prompt":"Once","max_tokens":2}' });
    const { receipt } = (await answer.json()).tributary;
    checks.equal(await node.stop(), 0, 'a node that serves ends with 0');
    return receipt;
  };
  const before = await epochs();
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) {
    const { child } = await loading('stopped');
    const { code, ms } = await timed(child, signal);
    checks.ok(code === 0 && ms < 1000, `${signal} ends it`, `exit ${code} after ${ms} ms: ${child.err}`);
    checks.ok(child.err.includes('stopped') && !child.out.includes('listening'), 'in order', child.err);
  }
  const after = await epochs();
  checks.equal([after.channelId, BigInt(after.index)], [before.channelId, BigInt(before.index) + 1n], 'its receipts go on where they were');
  checks.equal(fs.readdirSync(path.join(dir, 'stopped')).filter((f) => /tmp|-wal|-shm/.test(f)), [], 'no file is left behind');
});

await checks.test('nor does an endpoint that never answers keep it', async () => {
  let asked = false;
  const mute = net.createServer(() => { asked = true; }).listen(0, '127.0.0.1');
  await new Promise((resolve) => mute.on('listening', resolve));
  const address = (i) => `0x${String(i).repeat(40)}`;
  const deployment = file('deployment.json', JSON.stringify({ chainId: 31337, stakeManager: address(1), adapterRegistry: address(2), escrow: address(3), attributionLedger: address(4), token: address(5) }));
  const local = path.join(dir, 'stopped'); // its keys will do
  const flags = ['--deployment', deployment, '--rpc', `http://127.0.0.1:${mute.address().port}`, '--wallet', path.join(local, 'wallet'), '--passphrase-file', path.join(local, 'wallet.passphrase')];
  const child = start(tributary, ['serve', '--model', slow, '--listen', '127.0.0.1:0', '--data', path.join(dir, 'mute'), ...flags]);
  await until('the question', () => asked, { everyMs: 10 }); // of the ledger, before the model's turn
  const { code, ms } = await timed(child, 'SIGTERM');
  checks.ok(code === 0 && ms < 1000, 'while it is opened', `exit ${code} after ${ms} ms: ${child.err}`);
  const node = await startServer(['serve', '--model', model, '--listen', '127.0.0.1:0', '--data', path.join(dir, 'mute'), ...flags]);
  await sleep(300);
  const served = await timed(node.child, 'SIGTERM');
  checks.ok(served.code === 0 && served.ms < 1000, 'and when it serves', `exit ${served.code} after ${served.ms} ms: ${node.child.err}`);
  mute.close();
});

checks.finish();
