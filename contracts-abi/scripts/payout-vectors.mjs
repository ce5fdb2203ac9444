// Writes, or with --check compares, tests/vectors/payout/payout-trees.json: payout trees made by
// payout-tree.mjs, for the C implementation and for the contracts to agree with.
//
// Sizes 1 to 33 (every shape of a last, half-full subtree up to five levels), 1000, and a few trees
// at the edges of the types. Leaves are drawn from keccak256(size, counter), so the file is the
// same everywhere.

import { readFileSync, writeFileSync, mkdirSync, existsSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { keccak256, toBeHex, concat, toUtf8Bytes } from 'ethers';
import { payoutTree, compareLeaves } from './payout-tree.mjs';

const here = path.dirname(fileURLToPath(import.meta.url));
export const FILE = path.join(here, '../../tests/vectors/payout/payout-trees.json');
const OPERATOR = '0x' + '00'.repeat(12) + '70997970c51812dc3a010c7d01b50e0d17dc79c8';
const MAX128 = (1n << 128n) - 1n;

function drawer(seed) {
  let counter = 0;
  return () => keccak256(concat([toUtf8Bytes(seed), toBeHex(counter++, 4)]));
}

/** A tree as a batch has it: the operator, adapters with several positions each, some Datanets. */
function ordinaryLeaves(n) {
  const draw = drawer(`ordinary ${n}`);
  const amount = () => BigInt(draw()) % 10n ** BigInt(1 + Number(BigInt(draw()) % 24n));
  const leaves = [{ kind: 0, id: OPERATOR, position: 0, amount: amount() }];
  while (leaves.length < n) {
    const id = draw();
    if (BigInt(draw()) % 4n === 0n) leaves.push({ kind: 2, id, position: 0, amount: amount() });
    else
      for (let p = 0, m = Number(BigInt(draw()) % 3n); p <= m && leaves.length < n; p++) {
        leaves.push({ kind: 1, id, position: p, amount: amount() });
      }
  }
  return leaves.sort(compareLeaves);
}

const word = (n) => toBeHex(n, 32);
const edges = {
  'one leaf of nothing': [{ kind: 0, id: OPERATOR, position: 0, amount: 0n }],
  'one leaf of everything': [{ kind: 0, id: OPERATOR, position: 0, amount: MAX128 }],
  'zeros only': [0, 1, 2].map((kind) => ({ kind, id: word(kind), position: 0, amount: 0n })),
  'sum is 2^128 - 1': [
    { kind: 0, id: OPERATOR, position: 0, amount: 1n << 127n },
    { kind: 1, id: word(1), position: 0, amount: (1n << 127n) - 2n },
    { kind: 2, id: word(1), position: 0, amount: 1n },
  ],
  'same id, every kind, first and last position': [
    { kind: 0, id: word(7), position: 0, amount: 1n },
    { kind: 1, id: word(7), position: 0, amount: 20n },
    { kind: 1, id: word(7), position: 65535, amount: 300n },
    { kind: 2, id: word(7), position: 0, amount: 4000n },
  ],
  'ids compare as numbers, big-endian': [
    { kind: 1, id: word(1), position: 9, amount: 5n },
    { kind: 1, id: word(256), position: 3, amount: 6n },
    { kind: 1, id: word(1n << 255n), position: 0, amount: 7n },
    { kind: 1, id: word((1n << 256n) - 1n), position: 0, amount: 8n },
    { kind: 2, id: word(0), position: 0, amount: 9n },
  ],
};

/** First, last, and the places where the shape is uneven. */
function proofIndices(n) {
  if (n <= 9) return [...Array(n).keys()];
  const k = 2 ** Math.floor(Math.log2(n - 1));
  return [...new Set([0, 1, k - 1, k, n - 2, n - 1])].sort((a, b) => a - b);
}

function entry(name, leaves) {
  const tree = payoutTree(leaves);
  return {
    name,
    leafCount: leaves.length,
    leaves: leaves.map((l) => ({ ...l, amount: l.amount.toString() })),
    rootHash: tree.rootHash,
    sum: tree.sum.toString(),
    payoutRoot: tree.payoutRoot,
    proofs: proofIndices(leaves.length).map((index) => ({
      index,
      siblings: tree.proof(index).siblings.map(({ hash, sum }) => ({ hash, sum: sum.toString() })),
    })),
  };
}

/** One line a leaf and a sibling: readable, and a change shows in a diff. */
function text(trees) {
  const line = (value) => JSON.stringify(value).replace(/","/g, '", "').replace(/,"/g, ', "');
  const list = (items, pad) =>
    items.length === 0 ? '[]' : `[\n${items.map((i) => `${pad}  ${i}`).join(',\n')}\n${pad}]`;
  const proof = (p) =>
    `{"index": ${p.index}, "siblings": ${list(p.siblings.map(line), '        ')}}`;
  const tree = (t) => `{
      "name": ${JSON.stringify(t.name)},
      "leafCount": ${t.leafCount},
      "leaves": ${list(t.leaves.map(line), '      ')},
      "rootHash": "${t.rootHash}",
      "sum": "${t.sum}",
      "payoutRoot": "${t.payoutRoot}",
      "proofs": ${list(t.proofs.map(proof), '      ')}
    }`;
  const about =
    'payout trees of contracts-abi/src/lib/PayoutTree.sol; amounts and sums are decimal; ' +
    'siblings ' +
    'from the leaf upwards; made by contracts-abi/scripts/payout-vectors.mjs (npm run vectors), ' +
    'an ' +
    "implementation of its own on ethers' keccak256";
  return `{\n  "about": ${JSON.stringify(about)},\n  "trees": ${list(trees.map(tree), '  ')}\n}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const trees = [];
  for (let n = 1; n <= 33; n++)
    trees.push(entry(n === 1 ? '1 leaf' : `${n} leaves`, ordinaryLeaves(n)));
  for (const [name, leaves] of Object.entries(edges)) trees.push(entry(name, leaves));
  trees.push(entry('1000 leaves', ordinaryLeaves(1000)));
  const fresh = text(trees);
  JSON.parse(fresh);
  if (process.argv.includes('--check')) {
    if (!existsSync(FILE) || readFileSync(FILE, 'utf8') !== fresh) {
      console.error('payout-trees.json is not what payout-vectors.mjs makes: run npm run vectors');
      process.exit(1);
    }
    console.log(`payout-trees.json: ${trees.length} trees, as made by payout-vectors.mjs`);
  } else {
    mkdirSync(path.dirname(FILE), { recursive: true });
    writeFileSync(FILE, fresh);
    console.log(
      `wrote ${trees.length} trees, ${trees.reduce((s, t) => s + t.proofs.length, 0)} proofs`,
    );
  }
}
