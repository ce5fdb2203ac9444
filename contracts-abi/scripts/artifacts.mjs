// Writes, or with --check compares, the committed artifacts: contracts-abi/<Name>.json.
//
//   node scripts/artifacts.mjs            compile, write the files
//   node scripts/artifacts.mjs --check    compile, compare byte for byte; name what differs, exit 1
//
// An artifact is {"contractName", "abi", "bytecode"}: what a deployment needs and nothing that
// depends on the machine. foundry.toml leaves the metadata hash out of the bytecode, so it is the
// same in any folder. Every compile here is a full one (--force): a stale cache can't vouch for a
// stale artifact. It uses foundry.toml's profile "release"; the tests are compiled with the faster
// default and deploy these files.

import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync, existsSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
export const CONTRACTS = [
  'StakeManager',
  'AdapterRegistry',
  'Escrow',
  'AttributionLedger',
  'TestToken',
];

function compile() {
  const forge = path.join(root, 'node_modules/@foundry-rs/forge-linux-amd64/bin/forge');
  const env = { ...process.env, FOUNDRY_PROFILE: 'release' };
  const run = spawnSync(forge, ['build', '--force', '--skip', 'test'], {
    cwd: root,
    encoding: 'utf8',
    env,
  });
  if (run.error || run.status !== 0) {
    throw new Error(`forge build failed: ${run.error?.message ?? run.stdout + run.stderr}`);
  }
}

/** The artifact's text: keys in a fixed order, two spaces, one newline at the end. */
function artifactText(name) {
  const built = JSON.parse(
    readFileSync(path.join(root, 'out/release', `${name}.sol`, `${name}.json`), 'utf8'),
  );
  const artifact = { contractName: name, abi: built.abi, bytecode: built.bytecode.object };
  if (!/^0x([0-9a-f]{2})+$/.test(artifact.bytecode))
    throw new Error(`${name}: bytecode is not plain hex`);
  return JSON.stringify(artifact, null, 2) + '\n';
}

compile();
const check = process.argv.includes('--check');
let differ = 0;
for (const name of CONTRACTS) {
  const file = path.join(root, `${name}.json`);
  const text = artifactText(name);
  if (!check) {
    writeFileSync(file, text);
    console.log(
      `wrote ${name}.json (${(JSON.parse(text).bytecode.length - 2) / 2} bytes of bytecode)`,
    );
  } else if (!existsSync(file) || readFileSync(file, 'utf8') !== text) {
    console.error(
      `${name}.json is not what src/${name}.sol compiles to: run npm run build and commit it`,
    );
    differ++;
  } else {
    console.log(`${name}.json equals a fresh compile`);
  }
}
process.exit(differ === 0 ? 0 : 1);
