// What each adapter position, Datanet and operator is owed, recomputed from signed receipts alone.
//
// An auditor's program: it shares no code with the node. It checks each receipt's signature (EIP-712, by ethers), the
// hash chain of each channel, the receipt's own sums, and the royalty against the manifest's rates, and
// splits each adapter's royalty over the manifest's positions and Datanets (largest remainder, ties to the
// lower position, positions before Datanets). Manifests are taken on their hash: an adapterId commits to it.
import crypto from 'node:crypto';
import { require, types } from './harness.mjs';

const { ethers } = require('ethers');

const eip712 = (name) => {
  const collect = (type, into) => {
    into[type] = types.types[type];
    for (const field of types.types[type]) {
      const base = field.type.replace(/\[\]$/, '');
      if (types.types[base] && !into[base]) collect(base, into);
    }
    return into;
  };
  return collect(name, {});
};

export function domainOf(primaryType, chainId, contracts) {
  const { name, version, verifyingContract } = types.domains[primaryType];
  const key = verifyingContract[0].toLowerCase() + verifyingContract.slice(1);
  return { name, version, chainId, verifyingContract: contracts[key] ?? ethers.ZeroAddress };
}

export function digestOf(primaryType, message, chainId, contracts) {
  return ethers.TypedDataEncoder.hash(domainOf(primaryType, chainId, contracts), eip712(primaryType), message);
}

export function signerOf(primaryType, message, signature, chainId, contracts) {
  return ethers.recoverAddress(digestOf(primaryType, message, chainId, contracts), signature);
}

// Splits amount (bigint) by basis points that sum to 10,000.
export function splitByLargestRemainder(amount, bps) {
  const parts = bps.map((b) => (amount * BigInt(b)) / 10000n);
  const remainders = bps.map((b, i) => ({ i, r: (amount * BigInt(b)) % 10000n }));
  let left = amount - parts.reduce((a, b) => a + b, 0n);
  remainders.sort((a, b) => (a.r === b.r ? a.i - b.i : a.r > b.r ? -1 : 1));
  for (const { i } of remainders) {
    if (left === 0n) break;
    parts[i] += 1n;
    left -= 1n;
  }
  return parts;
}

// receipts: [{receipt: {...fields of the Receipt type}, signature}] in any order.
// manifests: {adapterId: {manifestHash, manifest}}; signers: addresses allowed to sign for the operator.
// Returns {operator: bigint, positions: Map('adapterId/position' -> {payee, amount}), datanets: Map(id -> amount),
//          byAdapter: Map(adapterId|'base' -> {requests, tokens, royalty}), total}. Throws naming the receipt.
export function owed(receipts, manifests, { chainId, contracts, signers }) {
  const result = { operator: 0n, positions: new Map(), datanets: new Map(), byAdapter: new Map(), total: 0n };
  const add = (map, key, amount) => map.set(key, (map.get(key) ?? 0n) + amount);
  const allowed = signers.map((a) => a.toLowerCase());
  const channels = new Map();
  for (const entry of receipts) {
    const { channel } = entry.receipt;
    if (!channels.has(channel)) channels.set(channel, []);
    channels.get(channel).push(entry);
  }
  for (const entries of channels.values()) {
    entries.sort((a, b) => Number(BigInt(a.receipt.index) - BigInt(b.receipt.index)));
    let previous = ethers.ZeroHash, running = 0n;
    entries.forEach(({ receipt, signature }, i) => {
      const complain = (why) => { throw new Error(`receipt ${receipt.requestId} (index ${receipt.index}): ${why}`); };
      const signer = signerOf('Receipt', receipt, signature, chainId, contracts).toLowerCase();
      if (!allowed.includes(signer)) complain(`signed by ${signer}, who is not the operator's signer`);
      if (BigInt(receipt.index) !== BigInt(i)) complain(`expected index ${i}`);
      if (receipt.prevReceiptHash !== previous) complain('does not follow its predecessor');
      previous = digestOf('Receipt', receipt, chainId, contracts);
      const computeFee = BigInt(receipt.computeFee), royalty = BigInt(receipt.royalty);
      running += computeFee + royalty;
      if (BigInt(receipt.channelTotal) !== running) complain(`channelTotal is ${receipt.channelTotal}, the fees sum to ${running}`);
      if (receipt.adapters.reduce((sum, a) => sum + BigInt(a.royalty), 0n) !== royalty) complain("royalty is not its adapters' sum");
      if (receipt.adapters.length && receipt.adapters.reduce((sum, a) => sum + Number(a.bps), 0) !== 10000) complain('shares do not sum to 10,000');
      result.operator += computeFee;
      result.total += computeFee + royalty;
      const tokens = Number(receipt.promptTokens) + Number(receipt.completionTokens);
      const count = (key, amount) => {
        const row = result.byAdapter.get(key) ?? { requests: 0, tokens: 0, royalty: 0n };
        row.requests++;
        row.tokens += tokens;
        row.royalty += amount;
        result.byAdapter.set(key, row);
      };
      if (!receipt.adapters.length) count('base', 0n);
      for (const { adapterId, royalty: share } of receipt.adapters) {
        count(adapterId, BigInt(share));
        if (BigInt(share) === 0n) continue;
        const known = manifests[adapterId] ?? complain(`adapter ${adapterId} has no manifest`);
        const { splits, datanets } = known;
        const parts = splitByLargestRemainder(BigInt(share), [...splits, ...datanets].map((s) => s.bps));
        splits.forEach((s, position) => {
          const key = `${adapterId}/${position}`;
          const row = result.positions.get(key) ?? { adapterId, position, payee: s.payee, amount: 0n };
          row.amount += parts[position];
          result.positions.set(key, row);
        });
        datanets.forEach((d, j) => add(result.datanets, d.id, parts[splits.length + j]));
      }
    });
  }
  return result;
}

export const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');
