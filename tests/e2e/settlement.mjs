// A whole market in one process tree, used by the demo and by the end-to-end tests: a chain with the contracts,
// an operator with stake, four creators with published adapters, Datanets with owners, a registry, a node.
//
// Who is who (anvil's dev accounts):
//   0 deployer   1 operator (stake key)   2 signer (hot key)   3 house account (payer)
//   4..7 creators of med, law, code, verse   8 owner of Datanet "medquad"   9 owner of Datanet "federalist"
import fs from 'node:fs';
import path from 'node:path';
import { cli, devWallet, root, startAnvil, startServer, temporaryDirectory } from './harness.mjs';

export const model = path.join(root, 'tests/fixtures/models/demo-7m');
const adapterDir = (name) => path.join(root, 'tests/fixtures/adapters/demo-7m', name);

// Royalty rates are per 1,000 tokens, in the smallest unit; splits name accounts of the wallet "people".
export const adapters = {
  med: { creator: 'med', prompt: '1000000000000003', completion: '3000000000000001', splits: { med: 7001 }, datanets: { medquad: 2999 } },
  law: { creator: 'law', prompt: '500000000000007', completion: '2500000000000009', splits: { law: 5000, med: 1667 }, datanets: { federalist: 3333 } },
  code: { creator: 'code', prompt: '700000000000000', completion: '4000000000000000', splits: { code: 10000 }, datanets: {} },
  verse: { creator: 'verse', prompt: '100000000000001', completion: '900000000000000', splits: { verse: 3333, law: 3333 }, datanets: { medquad: 1, federalist: 3333 } },
};
export const prices = { prompt: '200000000000000', completion: '600000000000000' };

// Builds everything up to a staked operator, a funded house account and published adapters.
export async function market({ dir = temporaryDirectory('market'), chain = {}, windowSeconds = 3, log = () => {}, names = Object.keys(adapters) } = {}) {
  const anvil = await startAnvil({ blockTime: 1, logFile: path.join(dir, 'anvil.log'), ...chain });
  log(`chain      anvil at ${anvil.url}`);
  const [deployer, node, people] = await Promise.all([
    devWallet(path.join(dir, 'deployer'), { default: 0 }),
    devWallet(path.join(dir, 'operator'), { operator: 1, signer: 2, house: 3 }),
    devWallet(path.join(dir, 'people'), { med: 4, law: 5, code: 6, verse: 7, medquad: 8, federalist: 9 }),
  ]);
  const deployment = path.join(dir, 'deployment.json');
  await cli(['deploy', '--rpc', anvil.url, ...deployer.flags, '--key', 'default', '--out', deployment,
    '--challenge-window', windowSeconds, '--unbonding', windowSeconds * 4, '--thaw', windowSeconds * 2, '--payee-delay', 60, '--min-stake', '100tok']);
  const contracts = JSON.parse(fs.readFileSync(deployment));
  log(`contracts  AttributionLedger ${contracts.attributionLedger}, Escrow ${contracts.escrow}`);
  const chainFlags = ['--rpc', anvil.url, '--deployment', deployment];

  const registry = await startServer(['registry', 'serve', '--listen', '127.0.0.1:0', '--root', path.join(dir, 'registry'), '--allow-upload-from', 'any'],
    { name: 'the registry', logFile: path.join(dir, 'registry.log') });
  log(`registry   ${registry.url}`);

  const operator = async () => {
    for (const account of ['operator', 'house'])
      await cli(['token', 'mint', node.address[account], '100000tok', ...chainFlags, ...deployer.flags, '--key', 'default']);
    await cli(['stake', 'add', '50000tok', ...chainFlags, ...node.flags]);
    await cli(['stake', 'signer', ...chainFlags, ...node.flags]);
    await cli(['escrow', 'deposit', '50000tok', '--operator', node.address.operator, ...chainFlags, ...node.flags]);
    log(`operator   ${node.address.operator} staked 50,000 and funded the house account's escrow`);
  };
  const publish = async () => {
    const datanets = {};
    for (const name of ['medquad', 'federalist']) {
      const made = await cli(['datanet', 'create', '--name', name, '--key', name, ...chainFlags, ...people.flags, '--registry', registry.url, '--json']);
      datanets[name] = made.datanetId;
    }
    const published = {};
    for (const name of names) {
      const a = adapters[name];
      const args = ['adapter', 'publish', adapterDir(name), '--name', name, '--model', model, '--key', a.creator,
        '--royalty-prompt', a.prompt, '--royalty-completion', a.completion];
      for (const [who, bps] of Object.entries(a.splits)) args.push('--split', `${people.address[who]}:${bps}`);
      for (const [net, bps] of Object.entries(a.datanets)) args.push('--datanet', `${datanets[net]}:${bps}`);
      published[name] = await cli([...args, ...chainFlags, ...people.flags, '--registry', registry.url, '--json']);
      log(`published  ${name.padEnd(6)} ${published[name].adapterId.slice(0, 18)}…  by ${people.address[a.creator]}`);
    }
    return { datanets, published };
  };
  const [, { datanets, published }] = await Promise.all([operator(), publish()]);

  return {
    dir, anvil, registry, contracts, deployment, chainFlags, deployer, node, people, datanets, published,
    // Starts (or restarts) the node on the same data directory.
    serve: (extra = [], { registryUrl = registry.url, ...options } = {}) =>
      startServer(['serve', '--model', model, '--listen', '127.0.0.1:0', '--data', path.join(dir, 'data'), ...node.flags, ...chainFlags,
        '--registry', registryUrl, '--price-prompt', prices.prompt, '--price-completion', prices.completion, ...extra],
      { name: 'the node', logFile: path.join(dir, 'node.log'), ...options }),
  };
}

// Manifests of published adapters as the auditor wants them: {adapterId: {splits, datanets, ...}}, read from the
// registry and taken on their hash.
export async function auditedManifests(registryUrl, published) {
  const { sha256 } = await import('./owed.mjs');
  const result = {};
  for (const { adapterId, manifestHash } of Object.values(published)) {
    const hash = manifestHash.replace(/^0x/, '');
    const text = Buffer.from(await (await fetch(`${registryUrl}/v1/manifests/${hash}.json`)).arrayBuffer());
    if (sha256(text) !== hash) throw new Error(`registry answered other bytes for manifest ${hash}`);
    const manifest = JSON.parse(text);
    result[adapterId] = { manifest, splits: manifest.splits, datanets: manifest.datanets };
  }
  return result;
}

// All receipts of a node, by channel, as anyone may fetch them.
export async function allReceipts(nodeUrl, channel) {
  const receipts = [];
  for (;;) {
    const page = await (await fetch(`${nodeUrl}/v1/receipts?channel=${channel}&from=${receipts.length}`)).json();
    if (!page.data?.length) return receipts;
    receipts.push(...page.data);
  }
}
