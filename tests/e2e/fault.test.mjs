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
// Named points, and how often one may be passed before it kills: a commit comes many times a second under load (the
// first few are the start's own), the rest once or twice a second.
const points = { 'commit.before': 25, 'commit.after': 25, 'generation.after': 25, 'seal.begin': 3, 'seal.middle': 2, 'publish.signed': 3, 'publish.stored': 3, 'publish.sent': 3 };
const names = Object.keys(points);
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

const count = (table, key) => { table[key] = (table[key] ?? 0) + 1; };

// A list of the node, all pages of it.
async function everything(method) {
  const items = [];
  for (let cursor; ;) {
    const page = await rpc(node.url, method, { limit: 500, ...(cursor && { cursor }) });
    items.push(...page.items);
    if (!page.next) return items;
    cursor = page.next;
  }
}

// ---- the client outside -----------------------------------------------------------------------------------
const held = new Map(); // requestId -> receipt object, as the client got it
let requests = 0, broken = 0, running = true;
const refused = {}; // answers of a living node that are no success
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
      if (!response.ok) count(refused, `${response.status} ${JSON.parse(text).error.message}`);
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
const hits = {}, states = {}; // of named points; of random moments
const began = Date.now();
await start();
const clients = [0, 1, 2, 3].map(client);
await until('the first receipts', () => held.size > 3, { timeoutMs: 60000 });
for (let k = 0; k < kills; k++) {
  if (k % 2 === 1) {
    // Armed from its start: the node is restarted with the fault.
    const point = names[(k >> 1) % names.length];
    nodeUp = false;
    node.child.kill('SIGKILL');
    await node.child.exited;
    try {
      await start(`${point}:${1 + Math.floor(random() * points[point])}`);
      const died = await Promise.race([node.child.exited, sleep(6000).then(() => 'alive')]);
      if (died !== 'SIGKILL' && died !== 'alive') throw new Error(`the node ended with ${died}: ${node.child.err.slice(-2000)}`);
      count(hits, died === 'SIGKILL' ? point : `not reached in 6 s, killed then: ${point}`);
    } catch (error) {
      if (!/ended with SIGKILL/.test(error.message)) throw error;
      count(hits, `${point} before it listened`);
    }
  } else {
    await sleep(50 + random() * 1000);
    // What it was at, a moment before: for the record.
    const open = (await everything('attribution_outbox')).filter((o) => !['confirmed', 'moot'].includes(o.state));
    count(states, [...new Set(open.map((o) => `${o.kind} ${o.state}`))].sort().join(' + ') || 'load alone');
  }
  nodeUp = false;
  node.child.kill('SIGKILL');
  await node.child.exited;
  await start();
}
running = false;
await Promise.all(clients);
const table = (counts) => Object.entries(counts).sort().map(([key, n]) => `${key} ${n}`).join(', ') || 'none';
console.log(`note: ${kills} kills in ${Math.round((Date.now() - began) / 1000)} s`);
console.log(`note: at named points: ${table(hits)}`);
console.log(`note: at random moments, by what the outbox held: ${table(states)}`);
console.log(`note: ${requests} requests, ${held.size} receipts held by the client, ${broken} broken by a kill`);
checks.equal(refused, {}, 'a living node refused nobody');

// ---- afterwards --------------------------------------------------------------------------------------------
checks.ok(held.size > kills, 'the load got through between the kills', `${held.size} receipts`);
await cli(['seal', '--node', node.url]);
const allFinal = await until('everything to be settled', async () => {
  await cli(['seal', '--node', node.url]);
  const items = await everything('attribution_channels');
  const batches = await everything('attribution_batches');
  return items.every((c) => c.sealed === c.receipts) && batches.length > 0 && batches.every((b) => b.state === 'final') && { items, batches };
}, { timeoutMs: 120000, everyMs: 500 }).catch((error) => { checks.ok(false, 'everything is settled in the end', error.message); return null; });

await checks.test('no receipt that the client holds is missing or changed', async () => {
  for (const [id, receipt] of held) {
    const stored = await (await fetch(`${node.url}/v1/receipts/${id}`)).json();
    if (JSON.stringify(stored) !== JSON.stringify(receipt)) throw new Error(`receipt ${id}: ${JSON.stringify(stored).slice(0, 300)}`);
  }
});

await checks.test('indexes run without a gap, chains and sums hold, and every signature is good', async () => {
  const manifests = await auditedManifests(world.registry.url, world.published);
  const items = await everything('attribution_channels');
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
  const batches = await everything('attribution_batches');
  if (onChain.length !== batches.length) throw new Error(`${onChain.length} on chain, ${batches.length} in the node`);
  onChain.forEach((b, i) => {
    if (Number(b.seq) !== i || b.batchHash.toLowerCase() !== batches[i].batchHash.toLowerCase()) throw new Error(`batch ${i}: ${b.seq} ${b.batchHash}`);
  });
  const table = await cli(['batches', '--node', node.url]);
  for (const log of logs)
    if (!table.includes(log.transactionHash)) throw new Error(`tributary batches doesn't name transaction ${log.transactionHash}:\n${table}`);
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
