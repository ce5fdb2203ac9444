// Names that change what they mean while everybody asks for them: every answer is, token for token, that of an adapter
// that its name pointed at while it was made; nothing fails; and in the end no memory is left taken.
//
// Four adapters, room for two or three, four names. An operator points names at other directories, loads, unloads,
// pins and unpins, ten times a second; clients ask meanwhile, all with one long beginning, so that an entry of the
// prefix cache under the wrong adapter would show. CHURN_SECONDS=300 for the long run.
import path from 'node:path';
import { Checks, root, rpc, run, sleep, startServer, temporaryDirectory, tributary, until } from './harness.mjs';

const checks = new Checks();
const seconds = Number(process.env.CHURN_SECONDS ?? 10), clients = 8;
const dir = temporaryDirectory('churn');
const contents = ['med', 'law', 'code', 'verse'];
const where = (content) => path.join(root, 'tests/fixtures/adapters/demo-7m', content);
const names = ['n0', 'n1', 'n2', 'n3'];
const node = await startServer([
  'serve', '--model', path.join(root, 'tests/fixtures/models/demo-7m'), '--listen', '127.0.0.1:0', '--data', path.join(dir, 'data'),
  '--engine-adapter-bytes', '3m', '--engine-adapter-host-bytes', '4m',
  ...names.flatMap((n, i) => ['--adapter', `${n}=${where(contents[i])}`]),
], { logFile: path.join(dir, 'node.log') });

const call = async (method, where_, body) => {
  const response = await fetch(node.url + where_, { method, headers: { 'content-type': 'application/json' }, body: body && JSON.stringify(body) });
  return { status: response.status, body: await response.json() };
};
const admin = (method, rest, body) => call(method, `/admin/v1/adapters${rest}`, body);

const beginning = 'The people of the town came together in the great hall, for the night was cold and the river had risen, and they '
  + 'asked the oldest of them to speak of what was written and what was true, before the bells and after them. ';
const prompts = ['He said that water', 'She said that the law', 'It was known that a court', 'They sang of'].map((p) => beginning + p);
let cached = 0;
async function ask(model, prompt) {
  const { status, body } = await call('POST', '/v1/completions',
    { model, prompt: prompts[prompt], max_tokens: 12, temperature: 0, ignore_eos: true, return_token_ids: true });
  if (status !== 200) throw new Error(`${model}: ${status} ${JSON.stringify(body)}`);
  cached += body.usage.prompt_tokens_details?.cached_tokens ?? 0;
  return body.choices[0].token_ids.join(' ');
}

// ---- each adapter alone --------------------------------------------------------------------------------------------
const alone = {};
for (const [i, content] of contents.entries()) {
  alone[content] = [];
  for (const p of prompts.keys()) alone[content][p] = await ask(names[i], p);
}
checks.equal(new Set(contents.flatMap((c) => alone[c])).size, contents.length * prompts.length, 'every adapter says something else to every prompt');

await checks.test('an ensemble that the device cannot hold is refused by its adapters’ names', async () => {
  const { status, body } = await call('POST', '/v1/completions', { adapters: [{ model: names[0] }, { model: names[2] }], prompt: 'water', max_tokens: 1 });
  if (status !== 413 || !body.error.message.includes(`${names[0]}+${names[2]}: `) || body.error.param !== 'adapters') throw new Error(`${status}: ${JSON.stringify(body)}`);
});

// ---- all at once ---------------------------------------------------------------------------------------------------
// What each name may have meant, when: from the moment a change was asked for until the next one was confirmed.
const meant = Object.fromEntries(names.map((n, i) => [n, [{ content: contents[i], from: 0, to: Infinity }]]));
const draw = (n) => Math.floor(Math.random() * n);
const counts = { answers: 0, changes: 0, refused: 0 };
const wrong = [];
const end = Date.now() + seconds * 1000;

async function client() {
  while (Date.now() < end) {
    const name = names[draw(names.length)], p = draw(prompts.length), from = performance.now();
    const ids = await ask(name, p), to = performance.now();
    const possible = meant[name].filter((m) => m.from <= to && m.to >= from).map((m) => m.content);
    if (!possible.some((c) => alone[c][p] === ids))
      wrong.push(`${name}, prompt ${p}: ${ids} is ${contents.find((c) => alone[c][p] === ids) ?? 'nobody'}'s, not that of ${possible}`);
    counts.answers++;
  }
}

async function operator() {
  while (Date.now() < end) {
    const name = names[draw(names.length)], what = ['point', 'point', 'load', 'warm', 'unload', 'unload', 'pin', 'unpin'][draw(8)];
    if (what === 'point') {
      const content = contents[draw(contents.length)], last = meant[name].at(-1);
      meant[name].push({ content, from: performance.now(), to: Infinity });
      const { status, body } = await admin('POST', '', { name, dir: where(content) });
      if (status !== 200) throw new Error(`point ${name} at ${content}: ${status} ${JSON.stringify(body)}`);
      last.to = performance.now();
    } else {
      const { status, body } = await admin('POST', `/${name}/${what}`, {});
      // In use, pinned, or no room on the device just now: said so, and left alone.
      if (![200, 409, 503].includes(status)) throw new Error(`${what} ${name}: ${status} ${JSON.stringify(body)}`);
      if (status !== 200) counts.refused++;
      if (what === 'pin') await admin('POST', `/${name}/unpin`, {}); // all pinned would leave no room for the others
    }
    counts.changes++;
    await sleep(100);
  }
}

await checks.test(`names change meaning for ${seconds} s under load, and nothing fails`, () =>
  Promise.all([operator(), ...Array.from({ length: clients }, client)]));
console.log(`note: ${counts.answers} answers, ${counts.changes} changes (${counts.refused} refused), ${cached} prompt tokens from the prefix cache`);
checks.ok(counts.answers > 0 && counts.changes >= seconds, 'both sides had their turn');
checks.equal(wrong.slice(0, 5), [], 'every answer is that of an adapter that its name pointed at');

await checks.test('in the end no adapter takes memory', async () => {
  for (const name of names) {
    await admin('POST', `/${name}/unpin`, {});
    const { status, body } = await admin('POST', `/${name}/unload`, {});
    if (status !== 200) throw new Error(`${name}: ${status} ${JSON.stringify(body)}`);
  }
  // Contents that no name means any more leave memory with their last request.
  const listed = await run(tributary, ['adapter', 'list', '--tier', 'host', '--node', node.url, '--json']);
  if (listed.code !== 0 || JSON.parse(listed.out).length !== 0) throw new Error(listed.out + listed.err);
  await until('host and device to hold no byte of them', async () => {
    const { adapters } = await rpc(node.url, 'node_status');
    if (adapters.inUse !== 0) throw new Error(JSON.stringify(adapters));
    return adapters.host.bytes === 0 && adapters.device.bytes === 0;
  });
});
checks.equal(await node.stop(), 0, 'the node ends with status 0');
checks.finish();
