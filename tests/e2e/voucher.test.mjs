// A payer's way from key to paid: a deposit in Escrow, signed Requests until the credit is used up, a voucher by our
// command line, redeemed and settled on a chain, and the creator's claim. And those who don't pay, or not rightly.
//
// Vouchers are signed by our command line and by ethers; sums are taken from the receipts that the answers carried,
// and compared with what Escrow, AttributionLedger and the token say.
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { Checks, cli, devWallet, require, root, rpc, run, stop, tributary, types, until } from './harness.mjs';
import { allReceipts, auditedManifests, market, prices } from './settlement.mjs';
import { digestOf, domainOf, owed } from './owed.mjs';

const { ethers } = require('ethers');
const checks = new Checks();
const world = await market({ names: ['code'], windowSeconds: 2, chain: { blockTime: 0.5 } });
const { contracts, dir } = world;
const { chainId } = contracts;
const operator = world.node.address.operator;
const indexOf = { alice: 10, bob: 11, carol: 12, dave: 13 };
const payers = await devWallet(path.join(dir, 'payers'), indexOf);
const abi = (name) => JSON.parse(fs.readFileSync(path.join(root, `contracts-abi/${name}.json`))).abi;
const provider = new ethers.JsonRpcProvider(world.anvil.url, undefined, { staticNetwork: true, cacheTimeout: -1 });
const escrow = new ethers.Contract(contracts.escrow, abi('Escrow'), provider);
const token = new ethers.Contract(contracts.token, abi('TestToken'), provider);
const account = (name) => ethers.HDNodeWallet.fromPhrase('test test test test test test test test test test test junk', '', `m/44'/60'/0'/0/${indexOf[name]}`);
for (const name of Object.keys(indexOf)) await world.anvil.rpc('anvil_setBalance', [payers.address[name], '0x8ac7230489e80000']);
await cli(['token', 'mint', payers.address.alice, '1tok', ...world.chainFlags, ...world.deployer.flags, '--key', 'default']);

const body = JSON.stringify({ model: 'code', prompt: 'for (i = 0', max_tokens: 16, temperature: 0, ignore_eos: true });
const bodyFile = path.join(dir, 'body.json');
fs.writeFileSync(bodyFile, body);
const maxFee = 10n ** 14n, CREDIT = 4n * maxFee;
const flags = ['--confirmations', 1, '--chain-poll', '100ms', '--batch-max-age', '1s', '--payer-credit', CREDIT];
let node = await world.serve(flags);

// ---- a payer's side -------------------------------------------------------------------------------
let nFiles = 0;
async function request(name) { // the file of a header, as a payer would keep it
  const file = path.join(dir, `request-${name}-${nFiles++}`);
  fs.writeFileSync(file, await cli(['request', bodyFile, '--max-fee', maxFee, '--operator', operator, '--deployment', world.deployment,
    '--key', name, ...payers.flags]));
  return file;
}
async function ask(file) {
  const value = fs.readFileSync(file, 'utf8').replace(/^x-tributary-request: /, '').trim();
  const response = await fetch(`${node.url}/v1/completions`, { method: 'POST', body,
    headers: { 'content-type': 'application/json', 'x-tributary-request': value } });
  return { status: response.status, body: await response.json() };
}
// Asks until the node says 402: the receipts that were given, and the Requests that they answer.
async function useUp(name) {
  const receipts = [], files = [];
  for (;;) {
    const file = await request(name);
    const { status, body: answer } = await ask(file);
    if (status === 402) return { receipts, files };
    if (status !== 200) throw new Error(`${status} ${JSON.stringify(answer)}`);
    receipts.push(answer.tributary);
    files.push(file);
  }
}
const debtOf = (name) => fetch(`${node.url}/v1/payers/${payers.address[name]}`).then((r) => r.json());
const total = (receipts) => receipts.reduce((sum, { receipt: r }) => sum + BigInt(r.computeFee) + BigInt(r.royalty), 0n);
const voucherArgs = (name, most, files = []) => ['voucher', ...files, '--max-value', most, '--operator', operator, '--node', node.url,
  ...world.chainFlags, '--key', name, ...payers.flags, '--json'];

const post = async (text, type = 'application/json') => {
  const response = await fetch(`${node.url}/v1/vouchers`, { method: 'POST', headers: { 'content-type': type }, body: text });
  return { status: response.status, body: await response.json() };
};
// A voucher over a receipt, signed by ethers; `more` replaces members before, `after` once it is signed.
async function sign(name, { receipt, receiptHash }, more = {}, after = {}, domain = domainOf('Voucher', chainId, contracts)) {
  const message = { payer: account(name).address, operator, channel: receipt.channel, timestampMs: Date.now(),
    valueAggregate: receipt.channelTotal, lastReceiptHash: receiptHash, ...more };
  const signature = await account(name).signTypedData(domain, { Voucher: types.types.Voucher }, message);
  return { message, signature, text: JSON.stringify({ ...message, signature, ...after }) };
}

// ---- from key to paid -----------------------------------------------------------------------------
let paid; // what alice's first receipts came to
await checks.test('a payer deposits, asks until its credit is used up, signs, and has its credit back', async () => {
  await cli(['escrow', 'deposit', '1tok', '--operator', operator, ...world.chainFlags, ...payers.flags, '--key', 'alice']);
  const { receipts, files } = await useUp('alice');
  const sum = total(receipts);
  checks.ok(receipts.length > 3 && sum + maxFee > CREDIT, 'the node answers until what is owed and the next maxFee are above the credit', `${receipts.length}`);
  let debt = await debtOf('alice');
  checks.equal([debt.owed, debt.credit, debt.answering], [String(sum), String(CREDIT), '0'], 'it says what is owed');
  checks.equal([debt.channels[0].head, debt.channels[0].receipts, debt.channels[0].voucher], [receipts.at(-1).receiptHash, receipts.length, null], 'and up to which receipt');
  const short = await run(tributary, voucherArgs('alice', sum - 1n, files).map(String));
  checks.ok(short.code !== 0 && short.err.includes('--max-value'), 'above --max-value nothing is signed', short.err);
  const missing = await run(tributary, voucherArgs('alice', sum, files.slice(1)).map(String));
  checks.ok(missing.code === 65 && missing.err.includes('none of the Requests'), 'nor for a receipt that answers none of the Requests given', missing.err);
  checks.equal((await debtOf('alice')).channels[0].voucher, null, 'so nothing was sent');
  const [done] = await cli(voucherArgs('alice', sum, files));
  const { signature, ...message } = done.voucher;
  checks.equal([done.accepted, done.receipts, message.valueAggregate, message.lastReceiptHash], [true, receipts.length, String(sum), receipts.at(-1).receiptHash],
    'the voucher is over what the receipts sum to');
  checks.ok(await escrow.isSignedVoucher(message, signature), 'Escrow.isSignedVoucher accepts it');
  checks.equal(digestOf('Voucher', message, chainId, contracts), await escrow.voucherDigest(message), 'its digest is that of the contract');
  debt = await until('the redeem', async () => { const d = await debtOf('alice'); return d.owed === '0' && d; });
  checks.equal([debt.channels[0].redeemed, debt.channels[0].voucher.state], [String(sum), 'confirmed'], 'redeemed and confirmed');
  const [value, last] = await escrow.channelState(payers.address.alice, operator, 0);
  checks.equal([value, last], [sum, receipts.at(-1).receiptHash], 'Escrow names the sum and the receipt');
  checks.equal((await escrow.accountOf(payers.address.alice, operator)).balance, 10n ** 18n - sum, 'and has taken just that');
  checks.equal((await ask(await request('alice'))).status, 200, 'the credit is back');
  paid = { sum, receipts };
});

await checks.test('what was paid for is sealed, settled, and claimed by the creator', async () => {
  const batches = await until('the batch to be final', async () => {
    const { items } = await rpc(node.url, 'attribution_batches', {});
    return items.length > 0 && items.every((b) => b.state === 'final') && items;
  }, { timeoutMs: 60000 });
  checks.equal(batches.reduce((sum, b) => sum + BigInt(b.value), 0n), paid.sum, 'the batches are worth what was paid, without the receipt that is owed');
  const manifests = await auditedManifests(world.registry.url, world.published);
  const books = owed(paid.receipts, manifests, { chainId, contracts, signers: [world.node.address.signer] });
  const royalty = [...books.positions.values()].reduce((sum, p) => sum + BigInt(p.amount ?? p), 0n);
  const before = await token.balanceOf(world.people.address.code);
  await cli(['claim', '--all', '--node', node.url, ...world.chainFlags, ...world.people.flags, '--key', 'code']);
  checks.equal(await token.balanceOf(world.people.address.code) - before, royalty, 'the creator has its royalty, to the unit');
  checks.ok(royalty > 0n, 'which is something');
  const kept = path.join(dir, 'receipt.json');
  fs.writeFileSync(kept, JSON.stringify(paid.receipts[1]));
  const steps = await cli(['verify', kept, '--node', node.url, ...world.chainFlags, '--json']);
  checks.ok(steps.ok && steps.steps.some((s) => s.startsWith('on chain: batch')), '`tributary verify` finds a receipt of it on chain', JSON.stringify(steps));
});

await checks.test('the next voucher goes on from what was redeemed', async () => {
  const [next] = await cli(voucherArgs('alice', maxFee));
  checks.equal([next.accepted, next.receipts], [true, 1], 'one new receipt is looked at');
  await until('the redeem', async () => (await debtOf('alice')).owed === '0');
  checks.equal(await cli(voucherArgs('alice', 0)), [], 'then nothing is owed');
});

// ---- a node that lies -----------------------------------------------------------------------------
await checks.test('the command signs nothing for a node that lies', async () => {
  const { receipts, files } = await useUp('carol');
  const signer = new ethers.Wallet(ethers.HDNodeWallet.fromPhrase('test test test test test test test test test test test junk', '', "m/44'/60'/0'/0/2").privateKey);
  // The operator's own key signs what it shows, so only what it says gives it away.
  const again = async (o, more, by = signer) => {
    const receipt = { ...o.receipt, ...more };
    const { Receipt, AdapterShare } = types.types;
    const signature = await by.signTypedData(domainOf('Receipt', chainId, contracts), { Receipt, AdapterShare }, receipt);
    return { ...o, receipt, signature, receiptHash: digestOf('Receipt', receipt, chainId, contracts), signer: by.address.toLowerCase() };
  };
  const plus = (amount) => String(BigInt(amount) + 1n);
  const last = receipts.at(-1), before = receipts.slice(0, -1);
  const next = { index: last.receipt.index + 1, prevReceiptHash: last.receiptHash, requestId: ethers.id('invented'),
    channelTotal: String(BigInt(last.receipt.channelTotal) + BigInt(last.receipt.computeFee) + BigInt(last.receipt.royalty)) };
  const rows = [
    ['altered', 'altered', [...before, { ...last, receipt: { ...last.receipt, completionTokens: 1 } }]],
    ['signed by a stranger', 'no signer of operator', [...before, await again(last, {}, new ethers.Wallet(account('bob').privateKey))]],
    ['one left out', 'hash', [receipts[0], ...receipts.slice(2)]],
    ['the first left out', 'begins with 0', receipts.slice(1)],
    ['two changed about', 'hash', [receipts[0], receipts[2], receipts[1]]],
    ['one twice', 'hash', [receipts[0], receipts[0]]],
    ['a total that is too high', 'continue', [...before, await again(last, { channelTotal: plus(last.receipt.channelTotal) })]],
    ['a royalty that no adapter gets', 'royalty', [...before, await again(last, { royalty: plus(last.receipt.royalty), channelTotal: plus(last.receipt.channelTotal) })]],
    ['another payer\'s', 'another payer', [...before, await again(last, { payer: payers.address.bob })]],
    ['an invented one', 'none of the Requests', [...receipts, await again(last, next)]],
    ['a higher bill than its Request allowed', 'maxFee', [await again(receipts[0], { computeFee: String(maxFee), channelTotal: String(maxFee + BigInt(receipts[0].receipt.royalty)) })]],
  ];
  let shown = [], posted = 0;
  const liar = http.createServer(async (q, r) => {
    const json = (value) => r.setHeader('content-type', 'application/json').end(JSON.stringify(value));
    if (q.method === 'POST') { posted++; json({ accepted: true }); }
    else if (q.url.startsWith('/v1/receipts?')) json({ object: 'list', data: shown, next: null });
    else json(await (await fetch(node.url + q.url)).json());
  });
  await new Promise((resolve) => liar.listen(0, '127.0.0.1', resolve));
  const args = voucherArgs('carol', CREDIT, files).map((arg) => (arg === node.url ? `http://127.0.0.1:${liar.address().port}` : arg)).map(String);
  for (const [what, says, list] of rows) {
    shown = list;
    const result = await run(tributary, args);
    checks.ok(result.code === 65 && result.err.includes(says), `${what}: exit 65`, `${result.code} ${result.out}${result.err}`);
  }
  checks.equal(posted, 0, 'nothing was posted');
  shown = receipts;
  const honest = await run(tributary, args);
  checks.ok(honest.code === 0 && posted === 1, 'the same, honestly, is signed and posted', honest.err);
  liar.close();
});

// ---- what is refused ------------------------------------------------------------------------------
await checks.test('each thing that is wrong is said, and an old voucher does nothing', async () => {
  const { receipts } = await useUp('bob');
  const carols = await allReceipts(node.url, (await debtOf('carol')).channels[0].channel);
  const [last, first] = [receipts.at(-1), receipts[0]];
  const high = 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
  const rows = [
    ['not JSON', 400, 'invalid', () => 'me'],
    ['a member too many', 400, 'members', async () => (await sign('bob', last, {}, { epoch: 0 })).text],
    ['a value as a number', 400, 'valueAggregate', async () => (await sign('bob', last, {}, { valueAggregate: 5 })).text],
    ['too long', 413, 'larger', () => `{"payer":"${'0'.repeat(3000)}"}`],
    ['another operator', 400, 'operator', async () => (await sign('bob', last, { operator: payers.address.bob })).text],
    ['a channel that never was', 404, 'no channel', async () => (await sign('bob', last, { channel: ethers.ZeroHash })).text],
    ['somebody else\'s channel', 401, 'another payer', async () => (await sign('bob', carols.at(-1))).text],
    ['somebody else\'s, in his name', 401, 'not signed', async () => (await sign('bob', carols.at(-1), { payer: payers.address.carol })).text],
    ['a receipt of another channel', 409, 'no receipt', async () => (await sign('bob', last, { lastReceiptHash: carols[0].receiptHash })).text],
    ['a wrong total', 409, 'channelTotal', async () => (await sign('bob', last, { valueAggregate: String(BigInt(last.receipt.channelTotal) + 1n) })).text],
    ['a stale head with the newest total', 409, 'channelTotal', async () => (await sign('bob', last, { lastReceiptHash: first.receiptHash })).text],
    ['altered after it was signed', 401, 'not signed', async () => (await sign('bob', last, {}, { timestampMs: 1 })).text],
    ['signed for another chain', 401, 'not signed', async () => (await sign('bob', last, {}, {}, domainOf('Voucher', 1, contracts))).text],
    ['a malleable signature', 401, 'not signed', async () => {
      const { message, signature } = await sign('bob', last), s = ethers.Signature.from(signature);
      return JSON.stringify({ ...message, signature: ethers.concat([s.r, ethers.toBeHex(high - BigInt(s.s), 32), s.v === 27 ? '0x1c' : '0x1b']) });
    }],
  ];
  for (const [what, status, says, make] of rows) {
    const { status: got, body: answer } = await post(await make());
    checks.ok(got === status && JSON.stringify(answer.error ?? {}).includes(says), `${what}: ${status}`, `got ${got} ${JSON.stringify(answer)}`);
  }
  checks.equal((await post((await sign('bob', last)).text, 'text/plain')).status, 415, 'a form that a web page could send: 415');
  const newest = await sign('bob', last), old = await sign('bob', first);
  checks.equal((await post(newest.text)).body.accepted, true, 'the right one is taken');
  for (const text of [old.text, newest.text]) {
    const { status, body: answer } = await post(text);
    checks.equal([status, answer.accepted, answer.valueAggregate], [200, false, last.receipt.channelTotal], 'an old one, or the same again: 200 says what is held');
  }
});

// ---- without money, and with a crash --------------------------------------------------------------
await checks.test('payers without funds hold up nobody, and are paid for once they have some', async () => {
  const stranger = await debtOf('dave');
  checks.equal([stranger.owed, stranger.channels[0].open, stranger.channels[0].receipts], ['0', true, 0], 'who never was here is told of its channel');
  await useUp('dave');
  const warned = await run(tributary, voucherArgs('dave', CREDIT).map(String));
  checks.ok(warned.code === 0 && warned.err.includes('held until'), 'the command says that the escrow is short', warned.err);
  const { items: before } = await rpc(node.url, 'attribution_batches', {});
  await fetch(`${node.url}/v1/completions`, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
  await until('the house account\'s batch', async () => {
    const { items } = await rpc(node.url, 'attribution_batches', {});
    return items.length > before.length && items.every((b) => b.state === 'final');
  }, { timeoutMs: 60000 });
  checks.ok(true, 'the house account\'s batch is settled meanwhile');
  for (const name of ['bob', 'dave']) {
    const [{ voucher }] = (await debtOf(name)).channels;
    checks.ok(voucher.state === 'held' && voucher.waiting.includes('escrow balance is 0'), `${name}'s voucher is held, and says why`, JSON.stringify(voucher));
  }
  checks.equal((await ask(await request('bob'))).status, 402, 'and gives no credit back');
  checks.equal(await fetch(`${node.url}/readyz`).then((r) => r.text()), 'ready\n', 'the operator is not bothered');
  await node.stop();
  node = await world.serve(flags, { env: { TRIBUTARY_FAULT: 'publish.stored' } });
  await cli(['token', 'mint', payers.address.bob, '1tok', ...world.chainFlags, ...world.deployer.flags, '--key', 'default']);
  await cli(['escrow', 'deposit', '1tok', '--operator', operator, ...world.chainFlags, ...payers.flags, '--key', 'bob']);
  checks.equal(await node.child.exited, 'SIGKILL', 'once bob has funds its redeem is signed; the node dies before it sends it');
  node = await world.serve(flags);
  await until('bob\'s redeem', async () => (await debtOf('bob')).owed === '0', { timeoutMs: 60000 });
  checks.equal((await ask(await request('bob'))).status, 200, 'the next life sends it, and bob has credit again');
  // Killed between the answer and the first look at Escrow, too: carol's promise is kept.
  const receipts = await allReceipts(node.url, (await debtOf('carol')).channels[0].channel);
  const promise = await sign('carol', receipts.at(-1));
  checks.equal((await post(promise.text)).body.accepted, true, 'carol\'s voucher is taken');
  node.child.kill('SIGKILL');
  await node.child.exited;
  node = await world.serve(flags);
  checks.equal((await debtOf('carol')).channels[0].voucher.valueAggregate, receipts.at(-1).receipt.channelTotal, 'and is there after kill -9');
});

await checks.test('the books are right, and those of the contracts', async () => {
  await until('everything paid for to be settled', async () => {
    const { items } = await rpc(node.url, 'attribution_batches', {});
    const { items: rows } = await rpc(node.url, 'attribution_outbox', { limit: 500 });
    return items.every((b) => b.state === 'final') && rows.every((o) => ['confirmed', 'moot', 'held'].includes(o.state));
  }, { timeoutMs: 60000 });
  await node.stop();
  const books = JSON.parse((await run(tributary, ['verify', '--all', '--data', path.join(dir, 'data'), ...world.chainFlags, '--json'])).out);
  checks.equal(books.differences, [], 'nothing differs');
});

await stop(world.registry.child);
await world.anvil.stop();
checks.finish();
