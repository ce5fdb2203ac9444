// What the calls cost, as a chain charges them: real transactions from the committed artifacts,
// gasUsed of their receipts, intrinsic gas and calldata included. DESIGN section 8 sets the
// targets; the table is printed, and the test fails where a figure exceeds its target.

import { test } from 'node:test';
import assert from 'node:assert/strict';
import * as ethers from 'ethers';
import { StandardMerkleTree } from '@openzeppelin/merkle-tree';
import { payoutTree, packed, compareLeaves } from '../scripts/payout-tree.mjs';
import { deploy, digest, mined, sign, startChain } from './chain.mjs';

const abi = ethers.AbiCoder.defaultAbiCoder();
const SPLITS = 'tuple(address[] payees, uint16[] bps, bytes32[] datanets, uint16[] datanetBps)';
const eth = ethers.parseEther;
const hashOf = (text) => ethers.id(text);

test('gas', async (t) => {
  const chain = await startChain(t);
  const c = await deploy(chain, chain.wallet(0));
  const [operator, hot, creator, payeeA, payeeB, dataOwner] = [1, 2, 3, 4, 5, 6].map(chain.wallet);
  const payers = Array.from({ length: 20 }, (_, i) => chain.wallet(10 + (i % 20)));
  const signed = (signer, type, value) => sign(signer, type, value, chain.chainId, c.addressOf);
  const table = [];
  const measure = (what, receipt, { target, share = 1 } = {}) => {
    const gas = Number(receipt.gasUsed) / share;
    table.push({ what, gas: Math.round(gas), target });
    return gas;
  };

  for (const w of [operator, ...payers]) {
    await mined(c.token.mint(w.address, eth('1000000')));
    await mined(c.token.connect(w).approve(c.escrow, ethers.MaxUint256));
    await mined(c.token.connect(w).approve(c.stakeManager, ethers.MaxUint256));
  }

  // Stake and signers.
  measure('stake, first', await mined(c.stakeManager.connect(operator).stake(eth('5000'))));
  measure('stake, again', await mined(c.stakeManager.connect(operator).stake(eth('5000'))));
  measure('offerSigner', await mined(c.stakeManager.connect(hot).offerSigner(operator.address)));
  measure('addSigner', await mined(c.stakeManager.connect(operator).addSigner(hot.address)));

  // Registry: two Datanets, adapters of two payees and two Datanets.
  const datanets = [];
  for (const name of ['prose', 'code']) {
    datanets.push(await c.registry.datanetIdOf(dataOwner.address, hashOf(name)));
    const receipt = await mined(
      c.registry.connect(dataOwner).registerDatanet(hashOf(name), dataOwner.address),
    );
    if (name === 'prose') measure('registerDatanet', receipt);
  }
  const splits = {
    payees: [payeeA.address, payeeB.address],
    bps: [5000, 2500],
    datanets,
    datanetBps: [1500, 1000],
  };
  const register = async (name, version, parent, theSplits) => {
    const manifest = {
      manifestHash: hashOf(name),
      contentDigest: hashOf(`content of ${name}`),
      modelId: hashOf('demo-7m'),
      creator: creator.address,
      version,
      parent,
    };
    const signature = await signed(creator, 'Manifest', manifest);
    const receipt = await mined(
      c.registry.connect(creator).registerAdapter(manifest, theSplits, signature),
    );
    return {
      receipt,
      id: await c.registry.adapterIdOf(creator.address, manifest.modelId, manifest.manifestHash),
    };
  };
  const one = { payees: [payeeA.address], bps: [10000], datanets: [], datanetBps: [] };
  measure('registerAdapter, 1 payee', (await register('plain', 1, ethers.ZeroHash, one)).receipt, {
    target: 155000,
  });
  const adapter = await register('med', 1, ethers.ZeroHash, splits);
  measure('registerAdapter, 2 payees, 2 Datanets', adapter.receipt, { target: 155000 });
  measure('  the same with a parent', (await register('med 2', 2, hashOf('med'), splits)).receipt, {
    target: 155000,
  });

  // Escrow: deposits, vouchers.
  measure(
    'deposit, first',
    await mined(c.escrow.connect(payers[0]).deposit(operator.address, eth('1000'))),
  );
  measure(
    'deposit, again',
    await mined(c.escrow.connect(payers[0]).deposit(operator.address, eth('1000'))),
  );
  for (const p of payers.slice(1))
    await mined(c.escrow.connect(p).deposit(operator.address, eth('1000')));
  const voucher = async (payer, value, epoch = 0) => {
    const v = {
      payer: payer.address,
      operator: operator.address,
      channel: await c.escrow.channelOf(payer.address, operator.address, epoch),
      timestampMs: 1_790_000_000_000n,
      valueAggregate: value,
      lastReceiptHash: hashOf(`${payer.address} ${epoch} ${value}`),
    };
    return { voucher: v, epoch, signature: await signed(payer, 'Voucher', v) };
  };
  const redeem = async ({ voucher: v, epoch, signature }) =>
    mined(c.escrow.connect(hot).redeem(v, epoch, signature));
  const redeemMany = async (list) =>
    mined(c.escrow.connect(hot).redeemMany(operator.address, list));
  const each = (n, make) => Promise.all(payers.slice(0, n).map(make));

  measure(
    'redeem, first of operator and channel',
    await redeem(await voucher(payers[0], eth('1'))),
    { target: 125000 },
  );
  measure('redeem, again', await redeem(await voucher(payers[0], eth('2'))));
  measure('redeem, first of a later epoch', await redeem(await voucher(payers[0], eth('1'), 1)), {
    target: 125000,
  });
  const many = await chain.provider.send('evm_snapshot', []);
  await redeemMany(await each(20, (p) => voucher(p, eth('3'))));
  measure(
    'redeemMany, each of 20 known channels',
    await redeemMany(await each(20, (p) => voucher(p, eth('4')))),
    { target: 50000, share: 20 },
  );
  await chain.provider.send('evm_revert', [many]);
  const fresh = await deployFreshChannels();
  measure('redeemMany, each of 20 new channels', fresh, { target: 50000, share: 20 });

  async function deployFreshChannels() {
    // payers[0] has redeemed above; its house account with the hot key's operator is known. A
    // depositFor gives 20 accounts that have not: payers 1 to 19 and one more.
    const other = chain.wallet(7);
    await mined(
      c.escrow.connect(payers[0]).depositFor(other.address, operator.address, eth('1000')),
    );
    return redeemMany(
      await Promise.all([...payers.slice(1), other].map((p) => voucher(p, eth('3')))),
    );
  }

  // Batches: 1 receipt and 100,000 receipts cost the same, the roots alone go on chain.
  const receiptsRoot = (n) =>
    StandardMerkleTree.of(
      Array.from({ length: n }, (_, i) => [i, hashOf(`receipt ${i}`)]),
      ['uint32', 'bytes32'],
      { sortLeaves: false },
    ).root;
  const adapterLeaf = { kind: 1, id: adapter.id, position: 0 };
  /** 1,000 leaves, proofs of 10: operator, two positions, two Datanets, other adapters. */
  const leavesFor = (round) => {
    const unit = 10n ** 12n * BigInt(round) + 12345n;
    const leaves = [
      { kind: 0, id: ethers.zeroPadValue(operator.address, 32), position: 0, amount: unit * 1000n },
      { ...adapterLeaf, amount: unit * 77n },
      { kind: 1, id: adapter.id, position: 1, amount: unit * 33n },
      ...datanets.map((id) => ({ kind: 2, id, position: 0, amount: unit * 11n })),
    ];
    for (let i = 0; leaves.length < 1000; i++) {
      leaves.push({ kind: 1, id: hashOf(`adapter ${i}`), position: 0, amount: unit + BigInt(i) });
    }
    return leaves.sort(compareLeaves);
  };
  let prevBatchHash = ethers.ZeroHash;
  const batches = [];
  const submit = async (leafCount) => {
    const seq = batches.length;
    const leaves = leavesFor(seq + 1);
    const tree = payoutTree(leaves);
    const batch = {
      operator: operator.address,
      seq,
      leafCount,
      receiptsRoot: receiptsRoot(Math.min(leafCount, 1000)),
      payoutRoot: tree.payoutRoot,
      committed: tree.sum,
      periodStart: 1_790_000_000_000n + BigInt(seq) * 3_600_000n,
      periodEnd: 1_790_003_600_000n + BigInt(seq) * 3_600_000n,
      dataHash: hashOf(`file ${seq}`),
      prevBatchHash,
    };
    prevBatchHash = digest('Batch', batch, chain.chainId, c.addressOf);
    const receipt = await mined(
      c.ledger.connect(hot).submit(batch, await signed(hot, 'Batch', batch)),
    );
    batches.push({ batch, leaves, tree });
    return receipt;
  };
  measure("submit, the operator's first", await submit(1));
  measure('submit, 1 receipt', await submit(1), { target: 125000 });
  measure('submit, 100,000 receipts', await submit(100_000), { target: 125000 });

  // Claims: the adapter's position 0 against batch 0, then against batch 1.
  await chain.advance(7 * 86400);
  const splitsBytes = abi.encode([SPLITS], [splits]);
  const claimArgs = ({ batch, leaves, tree }, wanted, shown = '0x') => {
    const index = leaves.findIndex(
      (l) => l.kind === wanted.kind && l.id === wanted.id && l.position === wanted.position,
    );
    const ref = { ...batch, batchHash: digest('Batch', batch, chain.chainId, c.addressOf) };
    return [ref, leaves[index], packed(tree.proof(index)), shown];
  };
  const claim = async (i, leaf, shown) =>
    mined(c.ledger.connect(hot).claim(...claimArgs(batches[i], leaf, shown)));
  const operatorLeaf = { kind: 0, id: ethers.zeroPadValue(operator.address, 32), position: 0 };
  const datanetLeaf = { kind: 2, id: datanets[0], position: 0 };
  assert.equal(
    claimArgs(batches[0], adapterLeaf)[2].siblings.length,
    2 + 2 * 48 * 10,
    'a proof of ten siblings',
  );
  measure('claim, first of its leaf and payee', await claim(0, adapterLeaf, splitsBytes));
  measure(
    'claim, again: adapter position, batch not yet noted as final',
    await claim(1, adapterLeaf),
  );
  await claim(0, datanetLeaf);
  await claim(0, operatorLeaf);
  await claim(2, operatorLeaf);
  measure('claim, again: adapter position', await claim(2, adapterLeaf), { target: 75000 });
  measure('claim, again: Datanet', await claim(2, datanetLeaf), { target: 75000 });
  await submit(10);
  await submit(10);
  await chain.advance(7 * 86400);
  measure('submit, noting two final batches', await submit(10), { target: 125000 });
  await claim(3, operatorLeaf);
  measure('claim, again: operator', await claim(4, operatorLeaf), { target: 75000 });
  await claim(3, { ...adapterLeaf, position: 1 }, splitsBytes);
  const three = [adapterLeaf, { ...adapterLeaf, position: 1 }, datanetLeaf].map((leaf) => {
    const [, payout, proof] = claimArgs(batches[4], leaf);
    return { payout, proof, splits: '0x' };
  });
  measure(
    'claimMany, each of 3 known leaves',
    await mined(c.ledger.claimMany(claimArgs(batches[4], adapterLeaf)[0], three)),
    { share: 3 },
  );

  // Ways out.
  measure(
    'requestThaw',
    await mined(c.escrow.connect(payers[0]).requestThaw(operator.address, eth('10'))),
  );
  measure(
    'requestUnstake',
    await mined(c.stakeManager.connect(operator).requestUnstake(eth('1000'))),
  );
  await chain.advance(8 * 86400);
  measure(
    'withdraw from escrow',
    await mined(c.escrow.connect(payers[0]).withdraw(operator.address)),
  );
  measure('withdraw stake', await mined(c.stakeManager.connect(operator).withdraw()));

  const line = (a, b, d) => `${a.padEnd(62)} ${b.padStart(9)} ${d.padStart(9)}`;
  console.log(line('gas', 'used', 'target'));
  for (const { what, gas, target } of table) {
    console.log(line(what, gas.toLocaleString('en'), target ? target.toLocaleString('en') : ''));
  }
  for (const { what, gas, target } of table) {
    if (target) assert.ok(gas <= target, `${what}: ${gas} gas, target ${target}`);
  }
});
