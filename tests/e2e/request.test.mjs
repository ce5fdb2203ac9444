// Payers without an API key: a signed Request as a header, against a node, a chain and its Escrow.
//
// Headers are made by our command line and by ethers; digests and signatures are compared with what the contract
// says; prices are computed here from the published rates, so that "to the unit" is not the node's own opinion.
import crypto from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { Checks, cli, devWallet, require, root, run, startServer, stop, tributary, types, until } from './harness.mjs';
import { adapters, market, model, prices } from './settlement.mjs';
import { digestOf, domainOf, signerOf } from './owed.mjs';

const { ethers } = require('ethers');
const checks = new Checks();
const sha256 = (bytes) => '0x' + crypto.createHash('sha256').update(bytes).digest('hex');
const idBytes = (ids) => Buffer.from(Uint32Array.from(ids).buffer);

const world = await market({ names: ['law', 'verse'] });
const { contracts, dir } = world;
const { chainId } = contracts;
const operator = world.node.address.operator;
const payers = await devWallet(path.join(dir, 'payers'), { alice: 10, bob: 11, carol: 12 });
const keyFile = path.join(dir, 'keys');
fs.writeFileSync(keyFile, `ann ${sha256('ann-key').slice(2)}\n`);
const escrow = new ethers.Contract(contracts.escrow, JSON.parse(fs.readFileSync(path.join(root, 'contracts-abi/Escrow.json'))).abi,
  new ethers.JsonRpcProvider(world.anvil.url, undefined, { staticNetwork: true }));
const CREDIT = 10n ** 18n;
const flags = (credit) => ['--confirmations', 1, '--chain-poll', '200ms', '--api-keys', keyFile, '--payer-credit', credit];
let node = await world.serve(flags(CREDIT));

// ---- a payer's side -------------------------------------------------------------------------------
const channelOf = (payer, epoch = 0) =>
  ethers.keccak256(ethers.AbiCoder.defaultAbiCoder().encode(['address', 'address', 'uint64'], [payer, operator, epoch]));
const account = (name) => ethers.HDNodeWallet.fromPhrase('test test test test test test test test test test test junk', '',
  `m/44'/60'/0'/0/${{ alice: 10, bob: 11, carol: 12, dave: 13 }[name]}`);
let nonce = 1;

// A Request for a body, signed by ethers; `more` replaces members before, `after` once it is signed.
async function sign(name, body, maxFee, more = {}, after = {}, domain = domainOf('Request', chainId, contracts)) {
  const wallet = account(name);
  const message = {
    payer: wallet.address, operator, channel: channelOf(wallet.address), nonce: nonce++, requestHash: sha256(body),
    maxFee: String(maxFee), deadlineMs: Date.now() + 60000, ...more,
  };
  const signature = await wallet.signTypedData(domain, { Request: types.types.Request }, message);
  return { message, header: JSON.stringify({ ...message, signature, ...after }) };
}

const post = (body, headers = {}, where = '/v1/completions') =>
  fetch(node.url + where, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body });
const ask = async (body, header, where) => {
  const response = await post(body, { 'x-tributary-request': header }, where);
  return { status: response.status, id: response.headers.get('x-request-id'), body: await response.json() };
};

async function stream(body, header) {
  const response = await post(body, { 'x-tributary-request': header });
  const text = await response.text();
  if (!response.ok) return { status: response.status, body: JSON.parse(text) };
  const chunks = text.split('\n\n').filter((e) => e.startsWith('data: {')).map((e) => JSON.parse(e.slice(6)));
  const ids = [], finish = [];
  for (const { index, token_ids: some, finish_reason: why } of chunks.flatMap((c) => c.choices ?? [])) {
    (ids[index] ??= []).push(...(some ?? []));
    if (why) finish[index] = why;
  }
  return { status: 200, ids, finish, receipt: chunks.find((c) => c.tributary)?.tributary };
}

// What an answer costs, by the operator's prices and the manifests' rates; shares: {adapter: basis points}.
function price(promptTokens, completionTokens, shares = {}) {
  const product = (rates) => BigInt(rates.prompt) * BigInt(promptTokens) + BigInt(rates.completion) * BigInt(completionTokens);
  return Object.entries(shares).reduce((sum, [name, bps]) => sum + (product(adapters[name]) * BigInt(bps)) / 10_000_000n, product(prices) / 1000n);
}
const feeOf = ({ receipt }) => BigInt(receipt.computeFee) + BigInt(receipt.royalty);
// What contradicts a Request in the receipt of its answer.
function faults(message, tributary, ids) {
  const { receipt, signature } = tributary, found = [];
  const is = (what, got, wanted) => { if (String(got).toLowerCase() !== String(wanted).toLowerCase()) found.push(`${what} is ${got}, not ${wanted}`); };
  is('signer', signerOf('Receipt', receipt, signature, chainId, contracts), world.node.address.signer);
  is('requestId', receipt.requestId, digestOf('Request', message, chainId, contracts));
  for (const member of ['payer', 'operator', 'channel', 'requestHash']) is(member, receipt[member], message[member]);
  if (feeOf(tributary) > BigInt(message.maxFee)) found.push(`it bills ${feeOf(tributary)}, allowed were ${message.maxFee}`);
  if (ids) is('responseHash', receipt.responseHash, sha256(idBytes(ids.flat())));
  return found;
}
const bodyOf = (more) => JSON.stringify({ model: 'demo-7m', prompt: 'Sing of winter', max_tokens: 8, temperature: 0, ignore_eos: true, ...more });

// ---- the way in -----------------------------------------------------------------------------------
await checks.test('a Request made by `tributary request` takes the place of an API key', async () => {
  const file = path.join(dir, 'body.json');
  const body = JSON.stringify({ model: 'law', messages: [{ role: 'user', content: 'What is a court?' }], max_tokens: 16, temperature: 0 });
  fs.writeFileSync(file, body);
  const made = await cli(['request', file, '--max-fee', '0.01tok', '--operator', operator, '--deployment', world.deployment,
    '--key', 'alice', ...payers.flags, '--json']);
  const { signature, ...message } = JSON.parse(made.value);
  checks.equal(made.requestId, digestOf('Request', message, chainId, contracts), 'its digest is ethers\' digest');
  checks.equal(made.requestId, await escrow.requestDigest(message), 'and that of Escrow.requestDigest');
  checks.ok(await escrow.isSignedRequest(message, signature), 'Escrow.isSignedRequest accepts its signature');
  const { status, id, body: answer } = await ask(body, made.value, '/v1/chat/completions');
  checks.equal(status, 200, 'it is answered');
  checks.equal(faults(message, answer.tributary, answer.choices.map((c) => c.token_ids)), [], 'the receipt says what the Request says');
  checks.equal([id, answer.id], [made.requestId, `chatcmpl-${made.requestId.slice(2)}`], 'the requestId names the answer');
  checks.equal(answer.tributary.receipt.index, 0, 'it is the first of the payer\'s channel');
  const kept = path.join(dir, 'answer.json');
  fs.writeFileSync(kept, JSON.stringify(answer));
  const verified = await cli(['verify', kept, '--node', node.url, ...world.chainFlags, '--json']);
  checks.ok(verified.ok, '`tributary verify` finds nothing wrong with it');
  const line = await cli(['request', '-', '--max-fee', '1', '--operator', operator, '--deployment', world.deployment, '--key', 'alice', ...payers.flags], { input: body });
  checks.ok(line.startsWith('x-tributary-request: {'), 'without --json it prints the header');
  const header = path.join(dir, 'header');
  fs.writeFileSync(header, await cli(['request', file, '--max-fee', '0.001tok', '--operator', operator, '--deployment', world.deployment,
    '--key', 'alice', ...payers.flags]));
  const curled = await run('curl', ['-s', `${node.url}/v1/chat/completions`, '-H', `@${header}`, '--json', `@${file}`]);
  fs.writeFileSync(kept, curled.out);
  const steps = await cli(['verify', kept, '--request', header, '--node', node.url, ...world.chainFlags, '--json']);
  checks.ok(steps.steps.some((s) => s.startsWith('answers its payer\'s Request')), 'curl sends it, and verify compares the receipt with it', JSON.stringify(steps));
  fs.writeFileSync(path.join(dir, 'other'), `x-tributary-request: ${made.value}\n`);
  const wrong = await run(tributary, ['verify', kept, '--request', path.join(dir, 'other'), '--node', node.url, ...world.chainFlags]);
  checks.ok(wrong.code === 65 && wrong.err.includes('requestId'), 'and finds that another Request\'s answer is none of this one\'s', wrong.err);
});

await checks.test('a Request made by ethers is streamed its answer, with the ids', async () => {
  const body = bodyOf({ stream: true });
  const { message, header } = await sign('alice', body, 10n ** 16n);
  const { ids, receipt } = await stream(body, header);
  checks.equal(faults(message, receipt, ids), [], 'the receipt says what the Request says');
  checks.equal(receipt.receipt.index, 2, 'the payer\'s channel goes on');
});

await checks.test('API keys are the house account\'s, as before', async () => {
  checks.equal((await post(bodyOf())).status, 401, 'neither key nor Request: 401');
  const answer = await (await post(bodyOf(), { authorization: 'Bearer ann-key' })).json();
  checks.equal(answer.tributary.receipt.payer, world.node.address.house.toLowerCase(), 'the house pays');
  checks.ok(!('token_ids' in answer.choices[0]), 'and token ids come only when asked for');
});

// ---- refusals -------------------------------------------------------------------------------------
await checks.test('each thing that is wrong is said', async () => {
  const body = bodyOf(), fee = 10n ** 15n, alice = account('alice').address;
  const mixed = alice.replace(/[a-f]/, (c) => c.toUpperCase());
  const rows = [
    ['not JSON', 400, 'invalid', () => 'Bearer me'],
    ['not an object', 400, 'invalid', () => '[]'],
    ['too long', 400, 'invalid', () => `{"payer":"${'0'.repeat(2100)}"}`],
    ['a member is missing', 400, '"maxFee"', async () => JSON.stringify({ ...JSON.parse((await sign('alice', body, fee)).header), maxFee: undefined })],
    ['a member too many', 400, 'members', async () => (await sign('alice', body, fee, {}, { tip: 1 })).header],
    ['a fee as a number', 400, '"maxFee"', async () => (await sign('alice', body, fee, {}, { maxFee: 5 })).header],
    ['a negative nonce', 400, '"nonce"', async () => (await sign('alice', body, fee, {}, { nonce: -1 })).header],
    ['a payer mistyped', 400, '"payer"', async () => (await sign('alice', body, fee, {}, { payer: mixed })).header],
    ['another operator', 401, 'operator', async () => (await sign('alice', body, fee, { operator: alice })).header],
    ['another body', 401, 'requestHash', async () => (await sign('alice', body + ' ', fee)).header],
    ['altered after it was signed', 401, 'not signed', async () => (await sign('alice', body, fee, {}, { maxFee: '1' })).header],
    ['signed by another', 401, 'not signed', async () => (await sign('bob', body, fee, { payer: alice, channel: channelOf(alice) })).header],
    ['signed for another chain', 401, 'not signed', async () => (await sign('alice', body, fee, {}, {}, domainOf('Request', 1, contracts))).header],
    ['signed for another contract', 401, 'not signed', async () => (await sign('alice', body, fee, {}, {}, domainOf('Request', chainId, { escrow: contracts.token }))).header],
    ['a malleable signature', 401, 'not signed', async () => {
      const { header } = await sign('alice', body, fee), o = JSON.parse(header), s = ethers.Signature.from(o.signature);
      const high = ethers.SECP256K1_N ?? 0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141n;
      return JSON.stringify({ ...o, signature: ethers.concat([s.r, ethers.toBeHex(high - BigInt(s.s), 32), s.v === 27 ? '0x1c' : '0x1b']) });
    }],
    ['too late', 401, 'deadline', async () => (await sign('alice', body, fee, { deadlineMs: Date.now() - 1 })).header],
    ['another payer\'s channel', 409, channelOf(alice), async () => (await sign('alice', body, fee, { channel: channelOf(account('bob').address) })).header],
    ['a channel that never was', 409, 'epoch 0', async () => (await sign('alice', body, fee, { channel: channelOf(alice, 1) })).header],
    ['above the credit', 402, 'credit', async () => (await sign('alice', body, CREDIT)).header],
    ['a fee below the prompt', 402, 'maxFee', async () => (await sign('alice', body, 1n)).header],
  ];
  for (const [what, status, says, make] of rows) {
    const { status: got, body: answer } = await ask(body, await make());
    const error = answer.error ?? {};
    checks.ok(got === status && error.param === 'x-tributary-request' && JSON.stringify(error).includes(says.replaceAll('"', '\\"')),
      `${what}: ${status}`, `got ${got} ${JSON.stringify(answer)}`);
  }
});

await checks.test('a Request is good for one answer, at once, again, and after a restart', async () => {
  const body = bodyOf();
  const { message, header } = await sign('alice', body, 10n ** 15n);
  const twice = await Promise.all([ask(body, header), ask(body, header)]);
  checks.equal(twice.map((a) => a.status).sort(), [200, 409], 'of two at once one is answered');
  const refused = async (when) => {
    const { status, body: answer } = await ask(body, header);
    checks.ok(status === 409 && answer.error.message.includes(digestOf('Request', message, chainId, contracts)), `${when}: 409 names the receipt`,
      JSON.stringify(answer));
  };
  await refused('again');
  await node.stop();
  node = await world.serve(flags(CREDIT));
  await refused('after a restart');
  // One that was refused for its fee has used nothing up.
  const poor = await sign('alice', body, 1n);
  checks.equal([(await ask(body, poor.header)).status, (await ask(body, poor.header)).status], [402, 402], 'what was refused may come again');
});

// ---- the fee --------------------------------------------------------------------------------------
await checks.test('a bill comes up to maxFee and never above it', async () => {
  const rows = [
    ['the base model', {}, {}],
    ['an adapter', { model: 'law' }, { law: 10000 }],
    ['an ensemble', { model: undefined, adapters: [{ model: 'law', weight: 0.7 }, { model: 'verse', weight: -0.3 }] }, { law: 7000, verse: 3000 }],
  ];
  for (const [what, more, shares] of rows) {
    for (const streamed of [false, true]) {
      for (const n of [1, 3]) {
        const body = bodyOf({ ...more, n, max_tokens: 64, stream: streamed, seed: 7, temperature: 0.8 });
        const answerTo = async (maxFee) => {
          const { message, header } = await sign('alice', body, maxFee);
          if (streamed) return { message, ...(await stream(body, header)) };
          const { status, body: b } = await ask(body, header);
          return { message, status, body: b, ids: b.choices?.map((c) => c.token_ids), finish: b.choices?.map((c) => c.finish_reason), receipt: b.tributary };
        };
        const name = `${what}, n = ${n}${streamed ? ', streamed' : ''}`;
        const whole = await answerTo(10n ** 17n), prompt = whole.receipt.receipt.promptTokens;
        checks.equal(whole.ids.map((i) => i.length), Array(n).fill(64), `${name}: a high maxFee changes nothing`);
        const exact = await answerTo(price(prompt, 11, shares));
        checks.equal(exact.ids.map((i) => i.length), n === 1 ? [11] : [4, 4, 3], `${name}: 11 tokens' price gives 11 tokens`);
        checks.equal(exact.finish, Array(n).fill('length'), `${name}: they end with "length"`);
        checks.equal(feeOf(exact.receipt), BigInt(exact.message.maxFee), `${name}: the bill is maxFee, to the unit`);
        checks.equal(exact.ids, whole.ids.map((ids, i) => ids.slice(0, exact.ids[i].length)), `${name}: the tokens are the same`);
        const less = await answerTo(price(prompt, 11, shares) - 1n);
        checks.equal([less.ids.flat().length, feeOf(less.receipt)], [10, price(prompt, 10, shares)], `${name}: one unit less gives 10`);
        for (const { message, receipt, ids } of [whole, exact, less]) checks.equal(faults(message, receipt, ids), [], `${name}: the receipt is true`);
        const none = await answerTo(price(prompt, n, shares) - 1n);
        checks.ok(none.status === 402 && none.body.error.message.includes('maxFee'), `${name}: not a token for each choice: 402 names maxFee`, JSON.stringify(none.body));
      }
    }
  }
});

await checks.test('what was written when the client left is billed, within maxFee', async () => {
  const body = bodyOf({ stream: true, max_tokens: 400 });
  const { message, header } = await sign('bob', body, 10n ** 17n);
  const leave = new AbortController();
  const response = await fetch(`${node.url}/v1/completions`, { method: 'POST', signal: leave.signal, body,
    headers: { 'content-type': 'application/json', 'x-tributary-request': header } });
  await response.body.getReader().read();
  leave.abort();
  const id = digestOf('Request', message, chainId, contracts);
  const receipt = await until('the receipt', async () => {
    const r = await fetch(`${node.url}/v1/receipts/${id}`);
    return r.ok && r.json();
  });
  checks.equal(faults(message, receipt), [], 'the receipt says what the Request says');
  checks.ok(receipt.receipt.completionTokens < 400, 'and bills what was written');
});

// ---- credit, and nodes that take none -------------------------------------------------------------
await checks.test('credit is each payer\'s own, and what is billed takes from it', async () => {
  const body = bodyOf();
  await node.stop();
  const first = await price(5, 8), credit = first * 100n;
  node = await world.serve(flags(credit));
  const one = await sign('carol', body, credit);
  const { status, body: answer } = await ask(body, one.header);
  checks.equal(status, 200, 'all of the credit may be asked for');
  const owed = feeOf(answer.tributary);
  checks.equal((await ask(body, (await sign('carol', body, credit - owed + 1n)).header)).status, 402, 'one unit more than is left: 402');
  checks.equal((await ask(body, (await sign('carol', body, credit - owed)).header)).status, 200, 'what is left: 200');
  const { body: debt } = await ask(body, (await sign('alice', body, 10n ** 15n)).header);
  checks.ok(debt.error?.type === 'insufficient_quota' && debt.error.message.includes('owes'), 'who owed more before is over it: 402', JSON.stringify(debt));
});

await checks.test('whatever becomes of a Request, its part of the credit comes back', async () => {
  await node.stop();
  const credit = 10n ** 16n;
  node = await world.serve(flags(credit));
  const long = { max_tokens: 480, n: 4, temperature: 1 };
  // Each may cost all of the credit, so the next is 402 if one keeps its part.
  const rows = [
    ['no JSON', 400, '{'], ['a NUL', 400, bodyOf({ user: 'a\u0000' })], ['a field that is wrong', 400, bodyOf({ n: 0 })],
    ['a priority of its own', 400, bodyOf({ priority: 5 })], ['an unknown model', 404, bodyOf({ model: 'nobody' })],
    ['an unknown model in an ensemble', 404, bodyOf({ model: undefined, adapters: [{ model: 'law', weight: 1 }, { model: 'nobody', weight: 1 }] })],
    ['a prompt beyond the context', 400, bodyOf({ prompt: 'winter '.repeat(5000) })], ['too many choices', 400, bodyOf({ n: 128, prompt: Array(64).fill('a') })],
    ['a token that there isn\'t', 400, bodyOf({ prompt: [1000000] })], ['no time', 504, bodyOf({ ...long, timeout: 0.001 })],
  ];
  for (const [what, status, body] of rows) {
    const { status: got, body: answer } = await ask(body, (await sign('dave', body, credit)).header);
    checks.equal(got, status, `${what}: ${status}`, JSON.stringify(answer));
  }
  const typed = await fetch(`${node.url}/v1/completions`, { method: 'POST', body: bodyOf(), headers: { 'content-type': 'text/plain', 'x-tributary-request': (await sign('dave', bodyOf(), credit)).header } });
  checks.equal(typed.status, 415, 'another content type: 415');
  // Clients who leave before there is an answer.
  for (const nth of [1, 2]) {
    const body = bodyOf(long), { header } = await sign('dave', body, credit), { hostname, port } = new URL(node.url);
    const another = async () => (await ask('{', (await sign('dave', '{', credit)).header)).status;
    // The one before has its answer, but may be leaving still: then this one would be refused.
    await until(`credit, ${nth}`, async () => (await another()) === 400, { everyMs: 20 });
    // It comes again when it was refused because one of the probes had the credit just then.
    let socket, refused = true;
    await until(`it to be let in, ${nth}`, async () => {
      if (refused) {
        refused = false;
        socket = net.connect(port, hostname);
        socket.once('data', () => { refused = true; socket.destroy(); });
        socket.write(`POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Tributary-Request: ${header} \r\nContent-Length: ${body.length}\r\n\r\n${body}`);
      }
      return (await another()) === 402 && !refused;
    }, { everyMs: 5 });
    socket.destroy();
    await until(`its part, ${nth}`, async () => (await another()) === 400, { everyMs: 20 });
  }
  const body = bodyOf(), { message, header } = await sign('dave', body, credit);
  const { status, body: answer } = await ask(body, header);
  checks.ok(status === 200 && faults(message, answer.tributary).length === 0, 'the whole credit buys an answer', JSON.stringify(answer));
});

await checks.test('without credit or chain the header is refused', async () => {
  const body = bodyOf(), { header } = await sign('alice', body, 10n ** 15n);
  await node.stop();
  node = await world.serve(flags(0));
  checks.equal((await ask(body, header)).status, 403, 'no credit: 403');
  const books = JSON.parse((await run(tributary, ['verify', '--all', '--data', path.join(dir, 'data'), ...world.chainFlags, '--json'])).out);
  checks.equal(books.differences, [], 'the books are right');
  await node.stop();
  node = await startServer(['serve', '--model', model, '--listen', '127.0.0.1:0', '--data', path.join(dir, 'local'), '--payer-credit', CREDIT]);
  const { status, body: answer } = await ask(body, header);
  checks.ok(status === 400 && answer.error.message.includes('no chain'), 'no chain: 400', JSON.stringify(answer));
});

await node.stop();
await stop(world.registry.child);
await world.anvil.stop();
checks.finish();
