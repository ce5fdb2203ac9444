// A registry that lies, in every way issue by issue: each adapter is refused by name, the node keeps serving, and
// once the registry tells the truth the same adapter serves without a restart.
//
// The node talks to the real registry through a proxy that can be told to misbehave. What a proxy can't
// forge (a manifest that is signed and registered, and still wrong) is published here by an independent
// publisher, written with ethers.
import crypto from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { Checks, cli, devMnemonic, require, root, rpc, run, startServer, stop, tributary, types, until } from './harness.mjs';
import { market, model } from './settlement.mjs';

const { ethers } = require('ethers');
const checks = new Checks();
const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');

// ---- the proxy: behave(request path, response) returns true when it has answered itself ----------------
let behave = () => false;
let fetches = [];
function startProxy(target) {
  const server = http.createServer((request, response) => {
    fetches.push(request.url);
    if (behave(request, response)) return;
    const forward = http.request(target + request.url, { method: request.method, headers: request.headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    forward.on('error', () => response.destroy());
    request.pipe(forward);
  });
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve({ url: `http://127.0.0.1:${server.address().port}`, server })));
}
const fetchTrue = async (url) => Buffer.from(await (await fetch(url)).arrayBuffer());

async function ask(node, name) {
  const response = await fetch(`${node.url}/v1/completions`, {
    method: 'POST', headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: name, prompt: 'water', max_tokens: 4, temperature: 0 }),
  });
  return { status: response.status, body: await response.json() };
}

// The same from another address, which is another customer where a node has no keys.
const askFrom = (localAddress, node, name) => new Promise((resolve, reject) => {
  const request = http.request(`${node.url}/v1/completions`, { method: 'POST', localAddress, headers: { 'content-type': 'application/json' } }, async (response) => {
    const pieces = [];
    for await (const piece of response) pieces.push(piece);
    resolve({ status: response.statusCode, body: JSON.parse(Buffer.concat(pieces).toString()) });
  });
  request.on('error', reject);
  request.end(JSON.stringify({ model: name, prompt: 'water', max_tokens: 4, temperature: 0 }));
});

// ---- an independent publisher ---------------------------------------------------------------------------
const canonical = (value) => Array.isArray(value) ? `[${value.map(canonical).join(',')}]`
  : value && typeof value === 'object' ? `{${Object.keys(value).sort().map((k) => `${JSON.stringify(k)}:${canonical(value[k])}`).join(',')}}`
  : JSON.stringify(value);

async function publishByHand(world, { name, files, baseModel }) {
  const wallet = ethers.HDNodeWallet.fromPhrase(devMnemonic, '', "m/44'/60'/0'/0/6")
    .connect(new ethers.JsonRpcProvider(world.anvil.url, world.contracts.chainId, { staticNetwork: true, cacheTimeout: -1 }));
  const creator = wallet.address.toLowerCase();
  const listed = Object.entries(files).sort(([a], [b]) => (a < b ? -1 : 1)).map(([p, bytes]) => ({ path: p, sha256: sha256(bytes), size: bytes.length }));
  const contentDigest = sha256(listed.map((f) => `${f.sha256}  ${f.size}  ${f.path}\n`).join(''));
  const manifest = {
    baseModel, contentDigest, created: 1790000000, creator, datanets: [], files: listed, licence: 'MIT', name, rank: 16,
    royalty: { completionPer1k: '0', promptPer1k: '0' }, schema: 'tributary.adapter/1', splits: [{ bps: 10000, payee: creator }],
    targetModules: ['q_proj'], version: 1,
  };
  const text = Buffer.from(canonical(manifest));
  const hash = sha256(text);
  const message = { manifestHash: `0x${hash}`, contentDigest: `0x${contentDigest}`, modelId: `0x${baseModel.modelId}`, creator, version: 1, parent: ethers.ZeroHash };
  const { name: domainName, version } = types.domains.Manifest;
  const domain = { name: domainName, version, chainId: world.contracts.chainId, verifyingContract: world.contracts.adapterRegistry };
  const signature = await wallet.signTypedData(domain, { Manifest: types.types.Manifest }, message);
  const header = JSON.stringify({ chainId: Number(world.contracts.chainId), signature, verifyingContract: world.contracts.adapterRegistry.toLowerCase() });
  const put = (where, body, headers = {}) => fetch(`${world.registry.url}${where}`, { method: 'PUT', body, headers });
  const answer = await put(`/v1/manifests/${hash}.json`, text, { 'x-tributary-signature': header });
  if (answer.status !== 201) throw new Error(`manifest: ${answer.status} ${await answer.text()}`);
  for (const f of listed) {
    const stored = await put(`/v1/blobs/${f.sha256}`, files[f.path]);
    if (!stored.ok) throw new Error(`blob ${f.path}: ${stored.status} ${await stored.text()}`);
  }
  const { abi } = JSON.parse(fs.readFileSync(path.join(root, 'contracts-abi/AdapterRegistry.json')));
  const registry = new ethers.Contract(world.contracts.adapterRegistry, abi, wallet);
  await (await registry.registerAdapter(message, { payees: [creator], bps: [10000], datanets: [], datanetBps: [] }, signature)).wait();
  return hash;
}

const world = await market({ names: ['med', 'law', 'code'] });
const proxy = await startProxy(world.registry.url);
const node = await world.serve(['--registry-refresh', '300ms'], { registryUrl: proxy.url });
const manifestOf = async (name) => JSON.parse(await fetchTrue(`${world.registry.url}/v1/manifests/${world.published[name].manifestHash.replace(/^0x/, '')}.json`));
const med = await manifestOf('med');
const blob = med.files.find((f) => f.path.endsWith('.safetensors')).sha256;

await checks.test('the base model serves before anything was fetched', async () => {
  const { status } = await ask(node, 'demo-7m');
  if (status !== 200) throw new Error(`status ${status}`);
});

const lies = {
  'a wrong byte in a file': (request, response) => {
    if (request.url !== `/v1/blobs/${blob}`) return false;
    fetchTrue(world.registry.url + request.url).then((bytes) => { bytes[bytes.length - 5] ^= 1; response.end(bytes); });
    return true;
  },
  'a wrong byte in the manifest': (request, response) => {
    if (!/manifests.*json$/.test(request.url)) return false;
    fetchTrue(world.registry.url + request.url).then((bytes) => { bytes[bytes.indexOf('"version":1') + 10] = 0x32; response.end(bytes); });
    return true;
  },
  "another adapter's signature": (request, response) => {
    if (!request.url.endsWith('.sig')) return false;
    fetchTrue(`${world.registry.url}/v1/manifests/${world.published.law.manifestHash.replace(/^0x/, '')}.sig`).then((bytes) => response.end(bytes));
    return true;
  },
  'a signature that is no signature': (request, response) => {
    if (!request.url.endsWith('.sig')) return false;
    response.end('{"chainId":31337,"signature":"0x00","verifyingContract":"0x00"}');
    return true;
  },
  'a truncated file': (request, response) => {
    if (request.url !== `/v1/blobs/${blob}`) return false;
    fetchTrue(world.registry.url + request.url).then((bytes) => {
      response.writeHead(200, { 'content-length': bytes.length });
      response.write(bytes.subarray(0, 1000), () => response.destroy());
    });
    return true;
  },
  'a shorter file': (request, response) => {
    if (request.url !== `/v1/blobs/${blob}`) return false;
    fetchTrue(world.registry.url + request.url).then((bytes) => response.end(bytes.subarray(0, 1000)));
    return true;
  },
  'a file of ten gigabytes': (request, response) => {
    if (request.url !== `/v1/blobs/${blob}`) return false;
    response.writeHead(200, { 'content-length': 10e9 });
    response.write(Buffer.alloc(65536));
    return true;
  },
  'headers without end': (request, response) => {
    if (request.url !== `/v1/blobs/${blob}`) return false;
    const { socket } = response;
    socket.write('HTTP/1.1 200 OK\r\n');
    let sent = 0;
    const more = () => {
      for (; sent < 1e9 && !socket.destroyed; sent += 65536)
        if (!socket.write(`x-${sent}: ${'y'.repeat(65536)}\r\n`)) { socket.once('drain', more); return; }
    };
    socket.on('error', () => {});
    more();
    return true;
  },
  'a redirect loop': (request, response) => {
    if (!request.url.startsWith('/v1/blobs/')) return false;
    response.writeHead(302, { location: request.url });
    response.end();
    return true;
  },
  'a redirect to a file on disk': (request, response) => {
    if (!request.url.startsWith('/v1/blobs/')) return false;
    response.writeHead(302, { location: 'file:///etc/hostname' });
    response.end();
    return true;
  },
  'an index that is no JSON': (request, response) => {
    if (!request.url.startsWith('/v1/index.json')) return false;
    response.end('<html>');
    return true;
  },
};

for (const [what, lie] of Object.entries(lies)) {
  await checks.test(`${what}: refused by name, and the node keeps serving`, async () => {
    behave = lie;
    await new Promise((resolve) => setTimeout(resolve, 350)); // past the index's refresh
    const refused = await ask(node, 'med');
    if (what === 'an index that is no JSON') {
      // The index of before is still good: the adapter is found, and fetched from a registry that is honest otherwise.
      if (refused.status !== 200) throw new Error(`status ${refused.status}: ${JSON.stringify(refused.body)}`);
      return;
    }
    if (refused.status < 400) throw new Error(`served: ${JSON.stringify(refused.body)}`);
    const { message } = refused.body.error;
    const named = ['med', med.contentDigest, blob, world.published.med.manifestHash.replace(/^0x/, '')].some((name) => message.includes(name)) || /blobs\//.test(message);
    if (!named) throw new Error(`the refusal names nothing: ${message}`);
    const base = await ask(node, 'demo-7m');
    if (base.status !== 200) throw new Error(`the base model answers ${base.status}`);
  });
}

behave = () => false;
await checks.test('once the registry tells the truth, the adapter serves without a restart', async () => {
  const answer = await ask(node, 'med');
  if (answer.status !== 200) throw new Error(`${answer.status}: ${JSON.stringify(answer.body)}`);
  const [share] = answer.body.tributary.receipt.adapters;
  if (share.adapterId.toLowerCase() !== world.published.med.adapterId.toLowerCase()) throw new Error(`receipt names ${share.adapterId}`);
});

await checks.test('an interrupted download is taken up where it broke off', async () => {
  const law = await manifestOf('law');
  const file = law.files.find((f) => f.path.endsWith('.safetensors'));
  let ranges = [];
  behave = (request, response) => {
    if (request.url !== `/v1/blobs/${file.sha256}`) return false;
    if (request.headers.range) { ranges.push(request.headers.range); return false; }
    fetchTrue(world.registry.url + request.url).then((bytes) => {
      response.writeHead(200, { 'content-length': bytes.length });
      response.write(bytes.subarray(0, 100000), () => setTimeout(() => response.destroy(), 100));
    });
    return true;
  };
  const first = await ask(node, 'law');
  if (first.status < 400) throw new Error('served from a broken download');
  const second = await ask(node, 'law');
  if (second.status !== 200) throw new Error(`${second.status}: ${JSON.stringify(second.body)}`);
  if (!ranges.some((r) => /bytes=[1-9]/.test(r))) throw new Error(`no range was asked for: ${ranges}`);
  behave = () => false;
});

await checks.test('however many names and requests wait for a file that does not come, an adapter that is here is checked again and serves', async () => {
  const code = await manifestOf('code');
  const file = code.files.find((f) => f.path.endsWith('.safetensors'));
  let asked = 0;
  const held = [];
  behave = (request, response) => {
    if (request.url !== `/v1/blobs/${file.sha256}`) return false;
    asked++;
    held.push(response);
    return true;
  };
  const digest = code.contentDigest, id = world.published.code.adapterId;
  const names = ['code', 'code@1', digest, `sha256:${digest}`, id, ...Array.from({ length: 12 }, (_, i) => digest.slice(0, 3 * i) + digest.slice(3 * i).toUpperCase())];
  const waiting = [];
  for (const name of new Set(names)) {
    waiting.push(ask(node, name));
    await new Promise((resolve) => setTimeout(resolve, 40)); // few may read manifests at the same time
  }
  await until('the file to be asked for', async () => asked > 0); // and the refresh of what is known is past
  for (let i = 0; i < 300; i++) waiting.push(ask(node, 'code')); // more than may wait for files
  await until('one that may not wait', () => Promise.race([Promise.race(waiting).then((a) => a.status === 503), new Promise((resolve) => setTimeout(resolve, 1000, false))]));
  for (const name of ['law', 'law@1', (await manifestOf('law')).contentDigest]) {
    const late = new Promise((resolve) => setTimeout(() => resolve({ status: `nothing in 10 s from ${name}` }), 10000));
    const answer = await Promise.race([ask(node, name), late]);
    if (answer.status !== 200) throw new Error(`${answer.status}`);
  }
  // Nor does one customer's wait take all threads and places: what another wants is fetched meanwhile.
  const dir = path.join(world.dir, 'timely');
  fs.cpSync(path.join(root, 'tests/fixtures/adapters/demo-7m/verse'), dir, { recursive: true });
  fs.appendFileSync(path.join(dir, 'adapter_config.json'), '\n\n\n'); // a content of its own
  await cli(['adapter', 'publish', dir, '--name', 'timely', '--model', model, '--key', 'verse', ...world.chainFlags, ...world.people.flags, '--registry', world.registry.url]);
  await until('another customer to be served', async () => {
    const late = new Promise((resolve) => setTimeout(resolve, 10000, { status: 'nothing in 10 s' }));
    const answer = await Promise.race([askFrom('127.0.0.2', node, 'timely'), late]);
    if (answer.status !== 404 && answer.status !== 200) throw new Error(`${answer.status} ${JSON.stringify(answer.body)}`);
    return answer.status === 200;
  });
  behave = () => false;
  for (const response of held) response.destroy();
  for (const answer of await Promise.all(waiting))
    if (answer.status === 200 && answer.body.tributary.receipt.adapters[0].adapterId !== id) throw new Error(JSON.stringify(answer.body));
});

await checks.test('name, name@version, content digest and adapter id mean the same adapter', async () => {
  const code = await manifestOf('code');
  const ids = [];
  for (const name of ['code', 'code@1', code.contentDigest, world.published.code.adapterId]) {
    const answer = await ask(node, name);
    if (answer.status !== 200) throw new Error(`${name}: ${answer.status} ${JSON.stringify(answer.body)}`);
    ids.push(answer.body.tributary.receipt.adapters[0].adapterId);
  }
  if (new Set(ids).size !== 1) throw new Error(ids.join(' '));
  const unknown = await ask(node, 'code@2');
  if (unknown.status !== 404) throw new Error(`code@2: ${unknown.status}`);
});

await checks.test('a tensor file whose header claims 10 GB is refused though it is signed and registered', async () => {
  const config = fs.readFileSync(path.join(root, 'tests/fixtures/adapters/demo-7m/med/adapter_config.json'));
  const evil = Buffer.alloc(4096);
  evil.writeBigUInt64LE(10_000_000_000n);
  await publishByHand(world, { name: 'evil-header', files: { 'adapter_config.json': config, 'adapter_model.safetensors': evil }, baseModel: med.baseModel });
  const answer = await until('the index to offer it', async () => {
    const a = await ask(node, 'evil-header');
    return a.status !== 404 && a;
  });
  if (answer.status < 400 || !/evil-header/.test(answer.body.error.message) || !/header/.test(answer.body.error.message))
    throw new Error(JSON.stringify(answer));
});

await checks.test('an adapter for another base model is refused', async () => {
  const config = fs.readFileSync(path.join(root, 'tests/fixtures/adapters/demo-7m/med/adapter_config.json'));
  const tensors = fs.readFileSync(path.join(root, 'tests/fixtures/adapters/demo-7m/verse/adapter_model.safetensors'));
  await publishByHand(world, { name: 'other-base', files: { 'adapter_config.json': config, 'adapter_model.safetensors': tensors }, baseModel: { modelId: 'ab'.repeat(32), name: 'other' } });
  await until('the refusal', async () => {
    const a = await ask(node, 'other-base');
    return a.status === 404 && /other-base.*base model/.test(a.body.error.message);
  });
});

await checks.test('a published but unregistered adapter is refused', async () => {
  const dir = path.join(root, 'tests/fixtures/adapters/demo-7m/verse');
  await cli(['adapter', 'publish', dir, '--name', 'unregistered', '--model', model, '--key', 'verse', '--no-register', ...world.chainFlags, ...world.people.flags, '--registry', world.registry.url]);
  await until('the refusal', async () => {
    const a = await ask(node, 'unregistered');
    return a.status === 404 && /not registered/.test(a.body.error.message);
  });
});

await checks.test('a content digest means its earliest registration, whatever copies of it are there', async () => {
  const files = path.join(root, 'tests/fixtures/adapters/demo-7m/verse');
  const publish = (dir, name, key) => cli(['adapter', 'publish', dir, '--name', name, '--model', model, '--key', key, ...world.chainFlags, ...world.people.flags, '--registry', world.registry.url, '--json']);
  for (const known of [false, true]) { // does the node serve the copy already?
    const dir = path.join(world.dir, `poem-${known}`);
    fs.cpSync(files, dir, { recursive: true });
    fs.appendFileSync(path.join(dir, 'adapter_config.json'), known ? '\n\n' : '\n'); // a content of its own
    const original = await publish(dir, `poem-${known}`, 'verse');
    const copy = await publish(dir, `copy-${known}`, 'law');
    if (original.contentDigest !== copy.contentDigest) throw new Error('the copy is none');
    const paid = async (name) => (await until(name, async () => {
      const { status, body } = await ask(node, name);
      return status === 200 && body;
    })).tributary.receipt.adapters[0].adapterId;
    if (known && await paid(`copy-${known}`) !== copy.adapterId) throw new Error('the copy is not called by its name');
    for (let i = 0; i < 2; i++) {
      const id = await paid(original.contentDigest);
      if (id !== original.adapterId) throw new Error(`asked for by digest, ${id === copy.adapterId ? 'the copy' : id} is paid (copy known: ${known})`);
    }
    if (await paid(copy.adapterId) !== copy.adapterId) throw new Error('the copy is not called by its id');
    await cli(['adapter', 'add', `own-${known}`, dir, '--node', node.url]);
    if (await paid(`own-${known}`) !== original.adapterId) throw new Error(`the operator's own files earn for the copy (known: ${known})`);
    await cli(['adapter', 'remove', `own-${known}`, '--node', node.url]);
  }
});

await checks.test('a royalty that would empty the house account is refused by name', async () => {
  const dir = path.join(root, 'tests/fixtures/adapters/demo-7m/verse');
  for (const [name, rate, wanted] of [['dear', '1000tok', 200], ['greedy', '1000.000000000000000001tok', 403], ['absurd', (2n ** 128n - 1n).toString(), 403]]) {
    await cli(['adapter', 'publish', dir, '--name', name, '--model', model, '--key', 'verse', '--royalty-completion', rate, ...world.chainFlags, ...world.people.flags, '--registry', world.registry.url]);
    const { status, body } = await until(`${name} to be offered`, async () => {
      const a = await ask(node, name);
      return a.status !== 404 && a;
    });
    if (status !== wanted || (status === 403 && !/max_royalty_per_1k/.test(body.error.message))) throw new Error(`${name}: ${status} ${JSON.stringify(body)}`);
  }
});

await checks.test('an adapter that its creator retires is refused, without a restart', async () => {
  await cli(['adapter', 'retire', world.published.med.adapterId, '--key', 'med', ...world.chainFlags, ...world.people.flags]);
  await until('the refusal', async () => {
    const a = await ask(node, 'med');
    return a.status === 404 && /retired/.test(a.body.error.message);
  }, { timeoutMs: 10000 });
  if ((await ask(node, 'code')).status !== 200) throw new Error('another adapter no longer serves');
});

await checks.test('uploads without the creator’s signature, or of unasked files, are refused', async () => {
  const manifest = await fetchTrue(`${world.registry.url}/v1/manifests/${world.published.law.manifestHash.replace(/^0x/, '')}.json`);
  const altered = Buffer.from(manifest.toString().replace('"version":1', '"version":2'));
  const sig = await fetchTrue(`${world.registry.url}/v1/manifests/${world.published.law.manifestHash.replace(/^0x/, '')}.sig`);
  const put = (where, body, headers) => fetch(`${world.registry.url}${where}`, { method: 'PUT', body, headers }).then((r) => r.status);
  checks.equal(await put(`/v1/manifests/${sha256(altered)}.json`, altered, { 'x-tributary-signature': sig.toString() }), 401, 'an altered manifest under an old signature: 401');
  checks.equal(await put(`/v1/manifests/${sha256(manifest)}.json`, manifest, {}), 401, 'no signature: 401');
  checks.equal(await put(`/v1/blobs/${'ab'.repeat(32)}`, 'anything', {}), 403, 'a file that no manifest names: 403');
  const outside = await fetch(`${world.registry.url}/v1/blobs/..%2f..%2fdeployment.json`);
  checks.equal(outside.status, 404, 'a path that leaves the directory: 404');
});

await checks.test('an operator sees every tier, and moves adapters between them', async () => {
  const adapter = (...args) => cli(['adapter', ...args, '--node', node.url, '--json']);
  const tiers = Object.fromEntries((await adapter('list')).map((a) => [a.id, a.tier]));
  if (!['device', 'host'].includes(tiers['code@1'])) throw new Error(`code was just used: ${tiers['code@1']}`);
  if (tiers['unregistered@1'] !== 'registry') throw new Error(`unregistered is nowhere but in the index: ${tiers['unregistered@1']}`);
  const unloaded = await adapter('unload', 'code');
  if (unloaded.tier !== 'disk') throw new Error(JSON.stringify(unloaded));
  for (const bytes of [unloaded.host_bytes, unloaded.device_bytes])
    if (bytes.before - bytes.after < unloaded.bytes) throw new Error(`memory before and after: ${JSON.stringify(unloaded)}`);
  if ((await adapter('pin', 'code')).pinned !== true) throw new Error('not pinned');
  const refused = await run(tributary, ['adapter', 'unload', 'code', '--node', node.url]);
  if (refused.code === 0 || !/code is pinned/.test(refused.err)) throw new Error(refused.err);
  if ((await adapter('unpin', 'code@1')).pinned !== false) throw new Error('still pinned');
  await adapter('warm', 'code');
  await adapter('add', 'mine', path.join(root, 'tests/fixtures/adapters/demo-7m/verse'));
  const mine = await ask(node, 'mine');
  if (mine.status !== 200) throw new Error(JSON.stringify(mine));
  if ((await adapter('list', '--prefix', 'min')).length !== 1) throw new Error('mine is not listed alone');
  await adapter('remove', 'mine');
  if ((await ask(node, 'mine')).status !== 404) throw new Error('mine still serves');
  const { adapters } = await rpc(node.url, 'node_status');
  const metrics = await (await fetch(`${node.url}/metrics`)).text();
  for (const tier of ['device', 'host', 'disk', 'registry'])
    if (!metrics.includes(`tributary_adapter_requests_total{tier="${tier}"} ${adapters[tier].requests}\n`))
      throw new Error(`requests of ${tier}: ${JSON.stringify(adapters[tier])}`);
  if (adapters.registry.requests < 2 || adapters.registry.meanReadyMs <= 0) throw new Error(JSON.stringify(adapters.registry));
});

await checks.test('files that were damaged on disk are fetched again, not served', async () => {
  const dir = path.join(world.dir, 'data', 'adapters', (await manifestOf('law')).contentDigest);
  await cli(['adapter', 'unload', 'law', '--node', node.url]);
  const file = path.join(dir, 'adapter_model.safetensors');
  const bytes = fs.readFileSync(file);
  const whole = sha256(bytes);
  bytes[bytes.length - 5] ^= 1;
  fs.writeFileSync(file, bytes);
  const answer = await ask(node, 'law');
  if (answer.status !== 200) throw new Error(JSON.stringify(answer.body));
  if (sha256(fs.readFileSync(file)) !== whole) throw new Error('the damage is still there');
  fs.rmSync(dir, { recursive: true });
  await cli(['adapter', 'unload', 'law', '--node', node.url]);
  if ((await ask(node, 'law')).status !== 200) throw new Error('not served once its files were gone');
});

await checks.test('of a local copy and the registry’s files, those that are whole serve', async () => {
  const fetched = path.join(world.dir, 'data', 'adapters', (await manifestOf('law')).contentDigest);
  const copy = path.join(world.dir, 'copy-of-law');
  fs.cpSync(fetched, copy, { recursive: true });
  await cli(['adapter', 'add', 'copy-of-law', copy, '--node', node.url]);
  const damage = (dir) => fs.truncateSync(path.join(dir, 'adapter_model.safetensors'), 100);
  const serve = async (what) => {
    await run(tributary, ['adapter', 'unload', 'law', '--node', node.url]);
    const answer = await ask(node, 'law');
    if (answer.status !== 200) throw new Error(`${what}: ${JSON.stringify(answer.body)}`);
  };
  behave = (request, response) => { response.destroy(); return true; };
  damage(fetched);
  await serve('fetched files are damaged, and no registry answers');
  const unloaded = JSON.parse((await run(tributary, ['adapter', 'unload', 'law', '--node', node.url, '--json'])).out);
  if (fs.existsSync(fetched) || unloaded.tier !== 'disk')
    throw new Error(`only the local copy is there, on disk: ${JSON.stringify(unloaded)}, fetched files: ${fs.existsSync(fetched)}`);
  behave = () => false;
  damage(copy);
  await serve('the local copy is damaged, and there are no fetched files');
  if (!fs.existsSync(fetched)) throw new Error('not fetched again');
  await cli(['adapter', 'remove', 'copy-of-law', '--node', node.url]);
});

await checks.test('the node is healthy after all this', async () => {
  const ready = await fetch(`${node.url}/readyz`);
  if (ready.status !== 200) throw new Error(await ready.text());
  await rpc(node.url, 'node_status');
});

checks.equal(await node.stop(), 0, 'the node ends with status 0');

await checks.test('names without bytes, which a loss of power leaves, are fetched anew', async () => {
  const dir = path.join(world.dir, 'data', 'adapters', (await manifestOf('law')).contentDigest);
  for (const name of fs.readdirSync(dir)) fs.truncateSync(path.join(dir, name));
  const again = await world.serve(['--registry-refresh', '300ms'], { registryUrl: proxy.url });
  const answer = await ask(again, 'law');
  if (answer.status !== 200) throw new Error(JSON.stringify(answer.body));
  checks.equal(await again.stop(), 0, 'the node ends with status 0');
});

await checks.test('a registry that does not say what it has holds up nobody who asks for what is here', async () => {
  const patient = await world.serve(['--registry-refresh', '3s'], { registryUrl: proxy.url });
  if ((await ask(patient, 'law')).status !== 200) throw new Error('law does not serve');
  const held = [];
  behave = (request, response) => request.url.startsWith('/v1/index.json') && held.push(response) > 0;
  const began = Date.now();
  // Past the first refresh: the index is 3 s old, and the registration has been looked up meanwhile.
  while (Date.now() - began < 4500) {
    const asked = Date.now();
    const late = new Promise((resolve) => setTimeout(() => resolve({ status: 'nothing' }), 10000));
    const answer = await Promise.race([ask(patient, 'law'), late]);
    if (answer.status !== 200) throw new Error(`${answer.status}, asked ${asked - began} ms after the registry fell silent`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  if (held.length === 0) throw new Error('the registry was not asked again');
  behave = () => false;
  for (const response of held) response.destroy();
  checks.equal(await patient.stop(), 0, 'the node ends with status 0');
});
// ---- files that come badly, and a disk that ends: a node without a chain, which asks for signatures alone ------------
let nPublished = 0;
async function publishNew(name, from = 'verse', key = 'verse', dir = path.join(world.dir, `new-${name}`)) {
  if (!fs.existsSync(dir)) {
    fs.cpSync(path.join(root, 'tests/fixtures/adapters/demo-7m', from), dir, { recursive: true });
    const file = path.join(dir, 'adapter_model.safetensors'), bytes = fs.readFileSync(file);
    bytes[bytes.length - 8] ^= ++nPublished; // a content of its own: the last bits of a number
    fs.writeFileSync(file, bytes);
  }
  await cli(['adapter', 'publish', dir, '--name', name, '--model', model, '--key', key, '--no-register', ...world.chainFlags, ...world.people.flags, '--registry', world.registry.url]);
  return dir;
}
const plainData = path.join(world.dir, 'plain'), fetched = path.join(plainData, 'adapters');
const servePlain = () => startServer(['serve', '--model', model, '--listen', '127.0.0.1:0', '--data', plainData, '--registry', proxy.url,
  '--registry-refresh', '100ms', '--registry-cache-bytes', '1m'], { logFile: path.join(world.dir, 'plain.log') });
const askUntilKnown = (to, name) => until(`${name} to be offered`, async () => {
  const answer = await ask(to, name);
  return !/there is no model/.test(answer.body.error?.message) && answer;
});
const isTensors = (request) => request.url.startsWith('/v1/blobs/') && request.method === 'GET';
// Sends what is asked for as `change` makes it, bytes before `from` left out; large files only.
const sendChanged = (change) => (request, response) => {
  if (!isTensors(request)) return false;
  fetchTrue(world.registry.url + request.url).then((bytes) => {
    const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? '')?.[1] ?? 0);
    if (bytes.length < 10000) return response.end(bytes.subarray(from));
    response.writeHead(from ? 206 : 200, { 'content-length': bytes.length - from, ...(from && { 'content-range': `bytes ${from}-${bytes.length - 1}/${bytes.length}` }) });
    change(response, bytes.subarray(from));
  });
  return true;
};
const breakOff = (response, bytes) => response.write(bytes.subarray(0, bytes.length - 1), () => setTimeout(() => response.destroy(), 50));
const bytesIn = (dir) => fs.readdirSync(dir, { withFileTypes: true, recursive: true })
  .reduce((sum, e) => sum + (e.isFile() ? fs.statSync(path.join(e.parentPath ?? e.path, e.name)).size : 0), 0);
let plain = await servePlain();

await checks.test('two names of one content that are fetched at once both serve', async () => {
  const dir = await publishNew('twin-a');
  await publishNew('twin-b', 'verse', 'law', dir);
  behave = sendChanged((response, bytes) => { // slowly, so that both are at it
    response.write(bytes.subarray(0, 50000));
    setTimeout(() => response.end(bytes.subarray(50000)), 500);
  });
  const answers = await Promise.all(['twin-a', 'twin-b'].map((name) => askUntilKnown(plain, name)));
  behave = () => false;
  for (const { status, body } of answers)
    if (status !== 200) throw new Error(`${status}: ${JSON.stringify(body)}`);
});

await checks.test('a download that is taken up behind wrong bytes begins anew', async () => {
  await publishNew('torn');
  behave = sendChanged((response, bytes) => response.write(Buffer.alloc(1000, 7), () => setTimeout(() => response.destroy(), 50)));
  const torn = await askUntilKnown(plain, 'torn');
  behave = () => false;
  if (torn.status !== 502) throw new Error(`${torn.status}`);
  const { status, body } = await ask(plain, 'torn');
  if (status !== 200) throw new Error(`${status}: ${JSON.stringify(body)}`);
});

await checks.test('more than was said is the registry’s fault, not the client’s', async () => {
  await publishNew('fat');
  behave = (request, response) => isTensors(request) && Boolean(response.end(Buffer.alloc(3000000)));
  const { status, body } = await askUntilKnown(plain, 'fat');
  behave = () => false;
  if (status !== 502 || !/adapter fat/.test(body.error.message)) throw new Error(`${status}: ${JSON.stringify(body)}`);
});

await checks.test('a manifest that does not come is refused by the adapter’s name', async () => {
  await publishNew('unread');
  behave = (request, response) => request.url.startsWith('/v1/manifests/') && Boolean(response.writeHead(503).end());
  const { status, body } = await askUntilKnown(plain, 'unread');
  behave = () => false;
  if (status !== 502 || !/adapter unread/.test(body.error.message)) throw new Error(`${status}: ${JSON.stringify(body)}`);
});

await checks.test('where a registry fails, what it lists comes from another', async () => {
  await publishNew('mirrored');
  const mirror = await startServer(['registry', 'serve', '--listen', '127.0.0.1:0', '--root', path.join(world.dir, 'registry')], { name: 'a mirror' });
  const both = await startServer(['serve', '--model', model, '--listen', '127.0.0.1:0', '--data', path.join(world.dir, 'both'),
    '--registry', proxy.url, '--registry', mirror.url], { logFile: path.join(world.dir, 'both.log') });
  for (const [name, lie] of [
    ['mirrored', (request, response) => /manifests/.test(request.url) && Boolean(response.writeHead(500).end())],
    ['torn', sendChanged((response, bytes) => response.end(Buffer.alloc(bytes.length, 7)))],
    ['fat', sendChanged(breakOff)],
  ]) {
    behave = lie;
    const { status, body } = await ask(both, name);
    if (status !== 200) throw new Error(`${name}: ${status} ${JSON.stringify(body)}`);
  }
  behave = (request, response) => isTensors(request) && Boolean(response.writeHead(500).end());
  await stop(mirror.child);
  const { status, body } = await ask(both, 'unread'); // why the first failed is told
  behave = () => false;
  if (status !== 502 || !/adapter unread: .*answers 500/.test(body.error.message)) throw new Error(`${status}: ${JSON.stringify(body)}`);
  checks.equal(await both.stop(), 0, 'the node ends with status 0');
});

await checks.test('what broke off counts as what is kept: the longest unused leaves', async () => {
  const names = Array.from({ length: 9 }, (_, i) => `broken-${i}`), limit = 1 << 20;
  for (const name of names) await publishNew(name);
  behave = sendChanged(breakOff);
  for (const name of names) {
    if ((await askUntilKnown(plain, name)).status !== 502) throw new Error(`${name} came`);
    if (bytesIn(fetched) > limit) throw new Error(`${bytesIn(fetched)} bytes after ${name}`);
  }
  const kept = fs.readdirSync(fetched).length;
  if (kept < 4) throw new Error(`only ${kept} are left`);
  await plain.stop('SIGKILL'); // and the next start counts what this one left
  plain = await servePlain();
  let ranges = 0;
  behave = (request) => { ranges += request.headers.range !== undefined; return false; };
  for (const name of names.toReversed()) {
    if ((await ask(plain, name)).status !== 200) throw new Error(`${name} does not come`);
    await run(tributary, ['adapter', 'unload', name, '--node', plain.url]);
    if (bytesIn(fetched) > limit) throw new Error(`${bytesIn(fetched)} bytes after ${name} came`);
  }
  behave = () => false;
  if (ranges === 0) throw new Error('nothing was taken up where it broke off');
});

await checks.test('an adapter that the disk has no room for leaves it to others, and the node runs on', async () => {
  await publishNew('wide', 'law');
  const largest = async (bytes) => { // of a file, for the running node; the hard limit stays
    const { code, err } = await run('prlimit', [`--fsize=${bytes}:`, '--pid', `${plain.child.pid}`]);
    if (code !== 0) throw new Error(err);
  };
  await largest(300000);
  fs.rmSync(fetched, { recursive: true });
  const { status, body } = await askUntilKnown(plain, 'wide');
  if (status !== 500) throw new Error(`${status}: ${JSON.stringify(body)}`);
  if (bytesIn(fetched) !== 0) throw new Error(`${fs.readdirSync(fetched)} take the room`);
  await largest('unlimited');
  const again = await ask(plain, 'wide');
  if (again.status !== 200) throw new Error(`when there is room again: ${again.status} ${JSON.stringify(again.body)}`);
});
checks.equal(await plain.stop(), 0, 'the node ends with status 0');

proxy.server.close();
await stop(world.registry.child);
await stop(world.anvil.child);
checks.finish();
