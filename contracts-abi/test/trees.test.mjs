// The trees, across implementations: the payout trees of tests/vectors/payout against the deployed
// contract, and receipt proofs of OpenZeppelin's merkle-tree against verifyReceipt.

import { test } from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import * as ethers from 'ethers';
import { StandardMerkleTree } from '@openzeppelin/merkle-tree';
import { FILE } from '../scripts/payout-vectors.mjs';
import { packed, payoutTree } from '../scripts/payout-tree.mjs';
import { deploy, mined, sign, startChain } from './chain.mjs';

const hashOf = (text) => ethers.id(text);
const blank = {
  operator: ethers.ZeroAddress,
  seq: 0,
  leafCount: 1,
  receiptsRoot: ethers.ZeroHash,
  payoutRoot: ethers.ZeroHash,
  committed: 0n,
  periodStart: 0,
  periodEnd: 0,
  dataHash: ethers.ZeroHash,
  prevBatchHash: ethers.ZeroHash,
};

test('trees', async (t) => {
  const chain = await startChain(t);
  const c = await deploy(chain, chain.wallet(0));

  await t.test(
    'every proof of payout-trees.json is accepted by the contract, with one unit more it is not',
    async () => {
      const { trees } = JSON.parse(readFileSync(FILE, 'utf8'));
      let proofs = 0;
      for (const tree of trees) {
        const batch = { ...blank, payoutRoot: tree.payoutRoot, committed: BigInt(tree.sum) };
        assert.equal(tree.leaves.length, tree.leafCount, tree.name);
        for (const { index, siblings } of tree.proofs) {
          const payout = { ...tree.leaves[index], amount: BigInt(tree.leaves[index].amount) };
          const list = siblings.map(({ hash, sum }) => ({ hash, sum: BigInt(sum) }));
          const proof = packed({ index, leafCount: tree.leafCount, siblings: list });
          assert.equal(
            await c.ledger.verifyPayout(batch, payout, proof),
            true,
            `${tree.name}, leaf ${index}`,
          );
          const wrong = { ...payout, amount: payout.amount ^ 1n };
          assert.equal(
            await refusedOrFalse(c.ledger.verifyPayout(batch, wrong, proof)),
            false,
            `${tree.name}, inflated`,
          );
          proofs++;
        }
      }
      assert.ok(trees.length >= 40 && proofs >= 200, `${trees.length} trees, ${proofs} proofs`);
    },
  );

  await t.test('a receipt is found at its position and nowhere else', async () => {
    const [operator, hot, payer] = [1, 2, 3].map(chain.wallet);
    await mined(c.token.mint(operator.address, ethers.parseEther('100')));
    await mined(c.token.connect(operator).approve(c.stakeManager, ethers.MaxUint256));
    await mined(c.stakeManager.connect(operator).stake(ethers.parseEther('100')));
    await mined(c.stakeManager.connect(hot).offerSigner(operator.address));
    await mined(c.stakeManager.connect(operator).addSigner(hot.address));

    let prevBatchHash = ethers.ZeroHash;
    let seq = 0;
    for (const n of [1, 2, 3, 5, 8, 17, 100]) {
      const receipts = Array.from({ length: n }, (_, i) => [i, hashOf(`receipt ${n} ${i}`)]);
      const tree = StandardMerkleTree.of(receipts, ['uint32', 'bytes32'], { sortLeaves: false });
      const leaves = [
        { kind: 0, id: ethers.zeroPadValue(operator.address, 32), position: 0, amount: 0n },
      ];
      const batch = {
        ...blank,
        operator: operator.address,
        seq,
        leafCount: n,
        receiptsRoot: tree.root,
        payoutRoot: payoutTree(leaves).payoutRoot,
        prevBatchHash,
      };
      const verify = (position, hash, proof, shown = batch) =>
        c.ledger.verifyReceipt(shown, position, hash, proof);
      await assert.rejects(
        verify(0, receipts[0][1], tree.getProof(0)),
        /UnknownBatch/,
        'before it is submitted',
      );
      await mined(
        c.ledger
          .connect(payer)
          .submit(batch, await sign(hot, 'Batch', batch, chain.chainId, c.addressOf)),
      );
      for (const [i, hash] of n <= 17 ? receipts : receipts.filter(([i]) => i % 9 === 0)) {
        const proof = tree.getProof(i);
        assert.equal(await verify(i, hash, proof), true, `receipt ${i} of ${n}`);
        assert.equal(
          await verify(i + 1, hash, proof),
          false,
          `receipt ${i} of ${n}, a position off`,
        );
        assert.equal(
          await verify(i, hashOf('another'), proof),
          false,
          `another receipt at ${i} of ${n}`,
        );
        assert.equal(
          await verify(i, hash, [...proof, ethers.ZeroHash]),
          false,
          `receipt ${i} of ${n}, a sibling more`,
        );
      }
      await assert.rejects(
        verify(0, receipts[0][1], tree.getProof(0), { ...batch, receiptsRoot: hashOf('another') }),
        /WrongBatch/,
        'a batch that was not submitted',
      );
      prevBatchHash = await c.ledger.batchDigest(batch);
      seq++;
    }
  });

  await t.test('a leaf beyond leafCount does not count, though it lies in the tree', async () => {
    const [operator, hot] = [1, 2].map(chain.wallet);
    const receipts = [
      [0, hashOf('a')],
      [1, hashOf('b')],
    ];
    const tree = StandardMerkleTree.of(receipts, ['uint32', 'bytes32'], { sortLeaves: false });
    const [seq, prevBatchHash] = await c.ledger.headOf(operator.address);
    const leaves = [
      { kind: 0, id: ethers.zeroPadValue(operator.address, 32), position: 0, amount: 0n },
    ];
    const batch = {
      ...blank,
      operator: operator.address,
      seq,
      leafCount: 1,
      receiptsRoot: tree.root,
      payoutRoot: payoutTree(leaves).payoutRoot,
      prevBatchHash,
    };
    await mined(
      c.ledger.submit(batch, await sign(hot, 'Batch', batch, chain.chainId, c.addressOf)),
    );
    assert.equal(await c.ledger.verifyReceipt(batch, 0, hashOf('a'), tree.getProof(0)), true);
    assert.equal(await c.ledger.verifyReceipt(batch, 1, hashOf('b'), tree.getProof(1)), false);
  });
});

/** A sum that overflows is refused by a revert, everything else by false. */
async function refusedOrFalse(answer) {
  try {
    return await answer;
  } catch (e) {
    assert.match(e.message, /PayoutSumOverflow/);
    return false;
  }
}
