// make demo: the whole value loop on one machine, without a GPU.
//
// A chain, a registry, an operator and four creators; five voices of one 7 M parameter model served in the same
// batch; receipts, a settled batch, claims; and a table that compares what signed receipts say is owed with what the
// token's Transfer events say was paid. The comparison is made by owed.mjs, which shares no code with the node.
// Everything it starts ends with it; TRIBUTARY_DEMO_KEEP=1 leaves the node running until Ctrl-C.
import fs from 'node:fs';
import path from 'node:path';
import { cli, require, rpc, sleep, stop, temporaryDirectory, until } from './harness.mjs';
import { adapters, allReceipts, auditedManifests, market, model } from './settlement.mjs';
import { owed } from './owed.mjs';
import { pathToFileURL } from 'node:url';

const { ethers } = require('ethers');

const say = (text = '') => console.log(text);
const title = (text) => say(`\n\x1b[1m${text}\x1b[0m`);

// One streamed chat; returns {text, receipt}. `more`: further fields of the body.
async function chat(url, voice, prompt, seed, maxTokens = 48, more = {}) {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: voice, stream: true, max_tokens: maxTokens, temperature: 0.7, top_p: 0.9, seed, ignore_eos: true,
      messages: [{ role: 'user', content: prompt }], ...more,
    }),
  });
  if (!response.ok) throw new Error(`${voice}: ${response.status} ${await response.text()}`);
  let text = '', receipt, buffered = '';
  for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
    buffered += bytes;
    const events = buffered.split('\n\n');
    buffered = events.pop();
    for (const event of events) {
      if (!event.startsWith('data: ') || event === 'data: [DONE]') continue;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new Error(`${voice}: ${chunk.error.message}`);
      text += chunk.choices?.[0]?.delta?.content ?? '';
      receipt = chunk.tributary ?? receipt;
    }
  }
  if (!receipt) throw new Error(`${voice}: the stream ended without a receipt`);
  return { voice, text, receipt };
}

// Compares what the receipts say with what was paid; the check that must fail when a receipt is altered.
export function settle(receipts, manifests, market, paid) {
  const books = owed(receipts, manifests, {
    chainId: market.contracts.chainId, contracts: market.contracts, signers: [market.node.address.signer],
  });
  const payees = new Map();
  const owe = (payee, amount) => payees.set(payee.toLowerCase(), (payees.get(payee.toLowerCase()) ?? 0n) + amount);
  for (const { payee, amount } of books.positions.values()) owe(payee, amount);
  for (const [id, amount] of books.datanets) {
    const name = Object.keys(market.datanets).find((n) => market.datanets[n].toLowerCase() === id.toLowerCase());
    owe(market.people.address[name], amount);
  }
  owe(market.node.address.operator, books.operator);
  return { books, payees, differences: [...payees].map(([payee, amount]) => ({ payee, owed: amount, claimed: paid.get(payee) ?? 0n })) };
}

// Sum of the token's Transfer events from the payout contract, by receiver.
export async function transfersFrom(market, payer) {
  const topic = (address) => ethers.zeroPadValue(address, 32);
  const logs = await market.anvil.rpc('eth_getLogs', [{
    fromBlock: '0x0', toBlock: 'latest', address: market.contracts.token,
    topics: [ethers.id('Transfer(address,address,uint256)'), topic(payer)],
  }]);
  const paid = new Map();
  for (const { topics, data } of logs) {
    const to = ethers.dataSlice(topics[2], 12).toLowerCase();
    paid.set(to, (paid.get(to) ?? 0n) + BigInt(data));
  }
  return paid;
}

// Each adapter of an ensemble earns its own rate, by its share of the weights.
function checkShares({ adapters: got, promptTokens, completionTokens }, ensemble, published) {
  const want = ensemble.map(({ model: name, weight }) => {
    const { prompt, completion } = adapters[name], bps = weight * 10000;
    const perThousand = BigInt(prompt) * BigInt(promptTokens) + BigInt(completion) * BigInt(completionTokens);
    return { adapterId: published[name].adapterId, bps, royalty: String((perThousand * BigInt(bps)) / 10_000_000n) };
  });
  if (JSON.stringify(got) !== JSON.stringify(want))
    throw new Error(`the ensemble's receipt says ${JSON.stringify(got)}, its manifests and weights ${JSON.stringify(want)}`);
}

const coins = (amount) => ethers.formatEther(amount);

async function main() {
  const started = Date.now();
  const dir = process.env.TRIBUTARY_DEMO_KEEP ? fs.mkdtempSync(path.resolve('demo-data-')) : temporaryDirectory('demo');
  title('1. A market: chain, contracts, registry, operator, four creators');
  const world = await market({ dir, log: say });

  title('2. The node starts knowing no adapter');
  const node = await world.serve(['--confirmations', 1, '--chain-poll', '200ms']);
  say(`node       ${node.url}, base model ${path.basename(model)}`);

  title('3. Five voices of one model and a mixture of two, streamed at once');
  const prompts = ['What should a wise man do in the winter?', 'Tell me about water.'];
  const voices = ['demo-7m', ...Object.keys(world.published)];
  // The first request for each adapter makes the node fetch it from the registry.
  await Promise.all(voices.map((voice, i) => chat(node.url, voice, prompts[0], i, 1)));
  // And two of them in one answer.
  const ensemble = [{ model: 'law', weight: 0.7 }, { model: 'verse', weight: 0.3 }];
  const answers = await Promise.all([
    ...prompts.flatMap((prompt) => voices.flatMap((voice) => [1, 2, 3].map((seed) => chat(node.url, voice, prompt, seed)))),
    chat(node.url, 'demo-7m', prompts[0], 2, 48, { adapters: ensemble }),
  ]);
  const mixed = answers.at(-1);
  for (const voice of voices) {
    const one = answers.find((a) => a.voice === voice);
    say(`  ${voice.padEnd(9)} ${one.text.replace(/\s+/g, ' ').trim().slice(0, 108)}`);
  }
  say(`  law+verse ${mixed.text.replace(/\s+/g, ' ').trim().slice(0, 107)}`);
  checkShares(mixed.receipt.receipt, ensemble, world.published);
  const status = await rpc(node.url, 'node_status');
  const entropy = status.engine.stepsByDistinctAdapters;
  const steps = Object.values(entropy).reduce((a, b) => a + b, 0);
  const high = Object.entries(entropy).filter(([n]) => parseInt(n, 10) >= 4).reduce((a, [, b]) => a + b, 0);
  say(`\n  ${steps} decode steps, ${high} of them with four or more distinct adapters in the batch`);
  if (high * 2 < steps) throw new Error('fewer than half of the decode steps held four distinct adapters');

  title('4. Settlement: vouchers redeemed, receipts sealed, batch submitted');
  await cli(['seal', '--node', node.url]);
  const { channel } = answers[0].receipt.receipt;
  const receipts = await allReceipts(node.url, channel);
  const last = answers.map((a) => a.receipt.receipt).sort((a, b) => Number(a.index) - Number(b.index)).at(-1);
  await until('every receipt to be settled and final', async () => {
    const proof = await rpc(node.url, 'attribution_proof', { requestId: last.requestId });
    return proof.batch?.state === 'final';
  }, { timeoutMs: 90000, everyMs: 500 });
  const { items: batches } = await rpc(node.url, 'attribution_batches');
  for (const b of batches) say(`  batch ${b.seq}: ${b.leafCount} receipts, committed ${coins(b.committed)}, tx ${b.txHash}`);

  title('5. Everybody claims');
  await cli(['claim', '--all', '--node', node.url, ...world.chainFlags, ...world.people.flags, '--key', 'med']);

  title('6. Owed by signed receipts, paid on chain');
  const manifests = await auditedManifests(world.registry.url, world.published);
  const paid = await transfersFrom(world, world.contracts.attributionLedger);
  const { books, differences } = settle(receipts, manifests, world, paid);
  if (process.env.TRIBUTARY_DEMO_DUMP) { // for demo.test.mjs, which alters it
    const { contracts, datanets, node: { address: node }, people: { address: people } } = world;
    fs.writeFileSync(process.env.TRIBUTARY_DEMO_DUMP, JSON.stringify({
      receipts, manifests, market: { contracts, datanets, node: { address: node }, people: { address: people } },
      paid: [...paid].map(([who, amount]) => [who, amount.toString()]),
    }));
  }
  const claimedOf = await claimedByAdapter(world);
  say('  adapter   requests   tokens   royalty owed by receipts   claimed on chain         difference');
  let wrong = 0;
  for (const name of Object.keys(world.published)) {
    const id = world.published[name].adapterId;
    const row = books.byAdapter.get(id) ?? { requests: 0, tokens: 0, royalty: 0n };
    const toPositions = [...books.positions.values()].filter((p) => p.adapterId === id).reduce((sum, p) => sum + p.amount, 0n);
    const claimed = claimedOf.get(id) ?? 0n;
    if (claimed !== toPositions) wrong++;
    say(`  ${name.padEnd(9)} ${String(row.requests).padStart(8)} ${String(row.tokens).padStart(8)}   ${coins(toPositions).padEnd(24)}   ${coins(claimed).padEnd(22)}   ${toPositions - claimed} wei`);
  }
  for (const [name, id] of Object.entries(world.datanets)) {
    const amount = books.datanets.get(id) ?? 0n, claimed = claimedOf.get(id) ?? 0n;
    if (claimed !== amount) wrong++;
    say(`  ${`data:${name}`.padEnd(27)}   ${coins(amount).padEnd(24)}   ${coins(claimed).padEnd(22)}   ${amount - claimed} wei`);
  }
  for (const { payee, owed: amount, claimed } of differences) {
    if (amount !== claimed) {
      wrong++;
      say(`  ${payee} is owed ${amount} and was paid ${claimed}`);
    }
  }
  if (wrong) throw new Error(`${wrong} rows differ`);
  say('  every payee received, to the wei, what the receipts say (Transfer events of the token)');

  title('7. One receipt, verified against the chain');
  fs.writeFileSync(path.join(dir, 'receipt.json'), JSON.stringify(answers[1].receipt));
  say((await cli(['verify', path.join(dir, 'receipt.json'), '--node', node.url, ...world.chainFlags])).replace(/^/gm, '  ').trimEnd());

  say(`\ndone in ${Math.round((Date.now() - started) / 1000)} s. To keep the node running and talk to it:`);
  say('  TRIBUTARY_DEMO_KEEP=1 make demo');
  say(`  curl -N http://127.0.0.1:PORT/v1/chat/completions --json '{"model":"verse","stream":true,"messages":[{"role":"user","content":"Sing of winter"}]}'`);
  if (process.env.TRIBUTARY_DEMO_KEEP) {
    say(`\nthe node listens on ${node.url} (Ctrl-C ends everything; data in ${dir})`);
    await new Promise(() => {});
  }
  await node.stop();
  await stop(world.registry.child);
  await stop(world.anvil.child);
  await sleep(0);
}

// Claimed events, by id: how much each adapter's positions, Datanet or operator drew.
async function claimedByAdapter(world) {
  const { abi } = JSON.parse(fs.readFileSync(new URL('../../contracts-abi/AttributionLedger.json', import.meta.url)));
  const face = new ethers.Interface(abi);
  const logs = await world.anvil.rpc('eth_getLogs', [{
    fromBlock: '0x0', toBlock: 'latest', address: world.contracts.attributionLedger, topics: [face.getEvent('Claimed').topicHash],
  }]);
  const claimed = new Map();
  for (const log of logs) {
    const { args } = face.parseLog(log);
    claimed.set(args.id, (claimed.get(args.id) ?? 0n) + args.amount);
  }
  return claimed;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main().then(() => process.exit(0));
