// kill -9 at many moments, restart each time: nothing that a client was told may be lost or settled twice.
//
//   FAULT_KILLS=200 node tests/e2e/fault.test.mjs       (`make fault`; `make test` runs a short campaign)
//
// Load runs against the node all the time; small batches make it seal, redeem and publish all the time. Half of
// the kills come at a random moment, half at a named point between two durable steps (node/base/fault.h). A
// client outside keeps every receipt that it got. After the last restart everything is settled, and then:
//   - no receipt that a client holds is missing or changed;
//   - every channel's indexes run from 0 without a gap, its hash chain and its sums hold, signatures included;
//   - the chain has each batch once, in order, under the digest the node has;
//   - the ledger recomputed from its receipts equals what is stored and what the contracts say.
import fs from 'node:fs';
import path from 'node:path';
import { Checks, cli, require, root, rpc, run, sleep, stop, tributary, until } from './harness.mjs';
import { allReceipts, auditedManifests, market } from './settlement.mjs';
import { owed } from './owed.mjs';

const { ethers } = require('ethers');
const kills = Number(process.env.FAULT_KILLS ?? 8);
const points = ['commit.before', 'commit.after', 'generation.after', 'seal.begin', 'seal.middle', 'publish.signed', 'publish.stored', 'publish.sent'];
const checks = new Checks();
const random = ((state) => () => { // the same campaign every time, but for scheduling
  state = (state * 1664525 + 1013904223) >>> 0;
  return state / 2 ** 32;
})(Number(process.env.FAULT_SEED ?? 7));

const world = await market({ names: ['verse', 'code'], windowSeconds: 2, chain: { blockTime: 0.25 } });
const policy = ['--batch-max-receipts', 60, '--batch-max-age', '1s', '--confirmations', 1, '--chain-poll', '100ms', '--log-level', 'warn'];

let node, nodeUp = false;
const start = async (fault) => {
  node = await world.serve(policy, { env: fault ? { TRIBUTARY_FAULT: fault } : {} });
  nodeUp = true;
};

// ---- the client outside -----------------------------------------------------------------------------------
const held = new Map(); // requestId -> receipt object, as the client got it
let requests = 0, broken = 0, running = true;
async function client(i) {
  const voices = ['demo-7m', 'verse', 'code'];
  while (running) {
    if (!nodeUp) { await sleep(20); continue; }
    requests++;
    try {
      const stream = (requests + i) % 2 === 0;
      const response = await fetch(`${node.url}/v1/completions`, {
        method: 'POST', headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: voices[requests % 3], prompt: 'In the winter', max_tokens: 4, seed: requests, stream }),
        signal: AbortSignal.timeout(20000),
      });
      const text = await response.text();
      const objects = stream ? text.split('\n\n').filter((e) => e.startsWith('data: {')).map((e) => JSON.parse(e.slice(6))) : [JSON.parse(text)];
      const receipt = objects.map((o) => o.tributary).find(Boolean);
      if (receipt) held.set(receipt.receipt.requestId, receipt);
      else broken++;
    } catch {
      broken++; // the node died under it: nothing was promised
    }
  }
}

// ---- the campaign -----------------------------------------------------------------------------------------
const hits = { random: 0 };
const states = {};
await start();
const clients = [0, 1, 2, 3].map(client);
await until('the first receipts', () => held.size > 3, { timeoutMs: 60000 });
for (let k = 0; k < kills; k++) {
  const named = k % 2 === 1 ? `${points[(k >> 1) % points.length]}:${1 + Math.floor(random() * 2)}` : null;
  if (named) {
    // Armed from its start: the node is restarted with the fault.
    nodeUp = false;
    node.child.kill('SIGKILL');
    await node.child.exited;
    const point = named.split(':')[0];
    // Some points are passed before it listens.
    const died = await start(named).then(() => Promise.race([node.child.exited, sleep(4000).then(() => 'alive')]),
      (error) => { if (!/ended with SIGKILL/.test(error.message)) throw error; return 'SIGKILL'; });
    if (died === 'SIGKILL') hits[point] = (hits[point] ?? 0) + 1;
  } else {
    await sleep(50 + random() * 1000);
    // What it was at, a moment before: for the record.
    const outbox = await rpc(node.url, 'attribution_outbox').catch(() => ({ items: [] }));
    const open = outbox.items.filter((o) => o.state !== 'confirmed');
    const state = open.length === 0 ? 'load' : open.map((o) => `${o.kind} ${o.state}`).sort()[0];
    states[state] = (states[state] ?? 0) + 1;
    hits.random++;
  }
  nodeUp = false;
  node.child.kill('SIGKILL');
  await node.child.exited;
  await start();
}
running = false;
await Promise.all(clients);
console.log(`note: ${kills} kills; at named points: ${Object.entries(hits).map(([p, n]) => `${p} ${n}`).join(', ')}`);
console.log(`note: states at random kills: ${Object.entries(states).map(([s, n]) => `${s} ${n}`).join(', ')}`);
console.log(`note: ${requests} requests, ${held.size} receipts held by the client, ${broken} broken by a kill`);

// ---- afterwards --------------------------------------------------------------------------------------------
checks.ok(held.size > kills, 'the load got through between the kills', `${held.size} receipts`);
await cli(['seal', '--node', node.url]);
const allFinal = await until('everything to be settled', async () => {
  await cli(['seal', '--node', node.url]);
  const { items } = await rpc(node.url, 'attribution_channels');
  const batches = (await rpc(node.url, 'attribution_batches', { limit: 500 })).items;
  return items.every((c) => c.open === '0' || c.sealed === c.receipts || c.sealed === c.total) && batches.length > 0 && batches.every((b) => b.state === 'final') && { items, batches };
}, { timeoutMs: 120000, everyMs: 500 }).catch((error) => { checks.ok(false, 'everything is settled in the end', error.message); return null; });

await checks.test('no receipt that the client holds is missing or changed', async () => {
  for (const [id, receipt] of held) {
    const stored = await (await fetch(`${node.url}/v1/receipts/${id}`)).json();
    if (JSON.stringify(stored) !== JSON.stringify(receipt)) throw new Error(`receipt ${id}: ${JSON.stringify(stored).slice(0, 300)}`);
  }
});

await checks.test('indexes run without a gap, chains and sums hold, and every signature is good', async () => {
  const manifests = await auditedManifests(world.registry.url, world.published);
  const { items } = await rpc(node.url, 'attribution_channels', { limit: 500 });
  let n = 0;
  for (const { channel } of items) {
    const receipts = await allReceipts(node.url, channel);
    n += receipts.length;
    owed(receipts, manifests, { chainId: world.contracts.chainId, contracts: world.contracts, signers: [world.node.address.signer] });
  }
  if (n < held.size) throw new Error(`${n} receipts in all channels, the client holds ${held.size}`);
  console.log(`note: ${n} receipts in ${items.length} channels`);
});

await checks.test('the chain has each batch once, in order, and equals the node', async () => {
  const { abi } = JSON.parse(fs.readFileSync(path.join(root, 'contracts-abi/AttributionLedger.json')));
  const face = new ethers.Interface(abi);
  const logs = await world.anvil.rpc('eth_getLogs', [{ fromBlock: '0x0', toBlock: 'latest', address: world.contracts.attributionLedger, topics: [face.getEvent('BatchSubmitted').topicHash] }]);
  const onChain = logs.map((log) => face.parseLog(log).args);
  const batches = (await rpc(node.url, 'attribution_batches', { limit: 500 })).items;
  if (onChain.length !== batches.length) throw new Error(`${onChain.length} on chain, ${batches.length} in the node`);
  onChain.forEach((b, i) => {
    if (Number(b.seq) !== i || b.batchHash.toLowerCase() !== batches[i].batchHash.toLowerCase()) throw new Error(`batch ${i}: ${b.seq} ${b.batchHash}`);
  });
  console.log(`note: ${onChain.length} batches settled`);
});

await checks.test('the ledger recomputed from its receipts equals what is stored and what the contracts say', async () => {
  const result = await run(tributary, ['verify', '--all', '--data', path.join(world.dir, 'data'), ...world.chainFlags]);
  if (result.code !== 0) throw new Error(result.out + result.err);
});

if (allFinal) checks.ok(true, 'everything is settled in the end');
await node.stop();
await stop(world.registry.child);
await stop(world.anvil.child);
checks.finish();
