// The payout tree in JavaScript, written from its definition and not from the Solidity or the C.
//
// RFC 6962 section 2.1 defines the tree and its audit paths by recursion on the list of leaves:
// D[n] is cut at k, the largest power of two below n. That recursion stands here as it is, with
// sums added:
//
//   leaf    keccak256(00 || kind:1 || id:32 || position:2 || amount:16)
//   node    keccak256(01 || left:32 || leftSum:16 || right:32 || rightSum:16)
//   root    keccak256(02 || top:32 || topSum:16 || leafCount:4)          integers big-endian
//
// A leaf is {kind, id, position, amount}: kind and position numbers, id 0x-hex of 32 bytes, amount
// a BigInt.

import { keccak256, concat, toBeHex, getBytes } from 'ethers';

const U128 = 1n << 128n;

export function leafHash({ kind, id, position, amount }) {
  if (getBytes(id).length !== 32) throw new Error(`leaf id ${id} is not 32 bytes`);
  return keccak256(
    concat(['0x00', toBeHex(kind, 1), id, toBeHex(position, 2), toBeHex(amount, 16)]),
  );
}

function join(left, right) {
  const sum = left.sum + right.sum;
  if (sum >= U128) throw new Error('payout tree: sum above 2^128 - 1');
  const bytes = ['0x01', left.hash, toBeHex(left.sum, 16), right.hash, toBeHex(right.sum, 16)];
  return { hash: keccak256(concat(bytes)), sum };
}

/** The largest power of two smaller than n, for n > 1. */
function cut(n) {
  let k = 1;
  while (k * 2 < n) k *= 2;
  return k;
}

/** MTH(D[n]): hash and sum of a list of leaves. */
function top(leaves) {
  if (leaves.length === 1) return { hash: leafHash(leaves[0]), sum: leaves[0].amount };
  const k = cut(leaves.length);
  return join(top(leaves.slice(0, k)), top(leaves.slice(k)));
}

/** PATH(m, D[n]): the siblings of leaf m, the lowest first. */
function path(m, leaves) {
  if (leaves.length === 1) return [];
  const k = cut(leaves.length);
  return m < k
    ? [...path(m, leaves.slice(0, k)), top(leaves.slice(k))]
    : [...path(m - k, leaves.slice(k)), top(leaves.slice(0, k))];
}

/** A proof as the contracts take it: siblings end to end, 32 bytes of hash and 16 of sum each. */
export function packed({ index, leafCount, siblings }) {
  return {
    index,
    leafCount,
    siblings: concat(siblings.flatMap(({ hash, sum }) => [hash, toBeHex(sum, 16)])),
  };
}

/** Order of leaves: by kind, then id, then position; negative if a comes first. */
export function compareLeaves(a, b) {
  if (a.kind !== b.kind) return a.kind - b.kind;
  const [x, y] = [BigInt(a.id), BigInt(b.id)];
  if (x !== y) return x < y ? -1 : 1;
  return a.position - b.position;
}

/** Builds a tree: {rootHash, sum, payoutRoot, proof(index)}. Leaves must be strictly ascending. */
export function payoutTree(leaves) {
  if (leaves.length === 0) throw new Error('payout tree: no leaves');
  for (let i = 1; i < leaves.length; i++) {
    if (compareLeaves(leaves[i - 1], leaves[i]) >= 0)
      throw new Error(`payout tree: leaf ${i} out of order`);
  }
  const { hash, sum } = top(leaves);
  return {
    rootHash: hash,
    sum,
    payoutRoot: keccak256(concat(['0x02', hash, toBeHex(sum, 16), toBeHex(leaves.length, 4)])),
    proof: (index) => ({ index, leafCount: leaves.length, siblings: path(index, leaves) }),
  };
}
