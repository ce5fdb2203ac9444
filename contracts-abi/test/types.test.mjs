// The contracts agree with types.json, and with ethers, on everything that is signed.
//
// No type string is compared with a copy of itself: ethers builds the string from types.json, the
// deployed contracts answer with the digest that they use, and random values of every member must
// give the same digest. A name, a type, an order, a domain that differs anywhere shows in every one
// of them.

import { test } from 'node:test';
import assert from 'node:assert/strict';
import * as ethers from 'ethers';
import {
  artifacts,
  deploy,
  digest,
  domainOf,
  sign,
  startChain,
  typesFile,
  typesOf,
} from './chain.mjs';

const random = (type) => {
  const m = /^(uint|bytes)(\d+)$/.exec(type);
  if (m?.[1] === 'uint') return ethers.toBigInt(ethers.randomBytes(Number(m[2]) / 8));
  if (m?.[1] === 'bytes') return ethers.hexlify(ethers.randomBytes(Number(m[2])));
  if (type === 'address') return ethers.Wallet.createRandom().address;
  if (type.endsWith('[]')) {
    return Array.from({ length: ethers.randomBytes(1)[0] % 5 }, () => random(type.slice(0, -2)));
  }
  return Object.fromEntries(typesFile.types[type].map(({ name, type }) => [name, random(type)]));
};

/** Where each signed type has its digest. */
const DIGEST = {
  Receipt: ['ledger', 'receiptDigest'],
  Batch: ['ledger', 'batchDigest'],
  Voucher: ['escrow', 'voucherDigest'],
  Request: ['escrow', 'requestDigest'],
  Manifest: ['registry', 'manifestDigest'],
};
const CONTRACT = { ledger: 'AttributionLedger', escrow: 'Escrow', registry: 'AdapterRegistry' };

test('signed types', async (t) => {
  const chain = await startChain(t);
  const c = await deploy(chain, chain.wallet(0));

  await t.test('every type with a domain has a digest in a contract', () => {
    assert.deepEqual(Object.keys(typesFile.domains).sort(), Object.keys(DIGEST).sort());
  });

  for (const [primary, [contract, method]] of Object.entries(DIGEST)) {
    await t.test(`${primary}: the ABI struct has the members of types.json in its order`, () => {
      const { inputs } = artifacts[CONTRACT[contract]].abi.find((e) => e.name === method);
      const members = inputs[0].components.map(({ name, type, internalType }) => ({
        name,
        type: type.startsWith('tuple')
          ? type.replace('tuple', internalType.match(/struct (\w+)/)[1])
          : type,
      }));
      assert.deepEqual(members, typesFile.types[primary]);
    });

    await t.test(
      `${primary}: contract and ethers give the same digest for 50 random values`,
      async () => {
        for (let i = 0; i < 50; i++) {
          const value = random(primary);
          assert.equal(
            await c[contract][method](value),
            digest(primary, value, chain.chainId, c.addressOf),
            JSON.stringify(value, (_, v) => (typeof v === 'bigint' ? v.toString() : v)),
          );
        }
      },
    );

    await t.test(
      `${primary}: the contract announces the domain of types.json (ERC-5267)`,
      async () => {
        const domain = domainOf(primary, chain.chainId, c.addressOf);
        const { fields, name, version, chainId, verifyingContract, salt, extensions } =
          await c[contract].eip712Domain();
        assert.equal(fields, '0x0f', 'name, version, chainId and verifyingContract, nothing else');
        assert.deepEqual({ name, version, chainId, verifyingContract }, domain);
        assert.deepEqual([salt, [...extensions]], [ethers.ZeroHash, []]);
        assert.deepEqual(
          typesFile.types.EIP712Domain.map((f) => f.name),
          ['name', 'version', 'chainId', 'verifyingContract'],
        );
      },
    );
  }

  await t.test(
    'a receipt, a voucher and a request signed by ethers are accepted, altered ones not',
    async () => {
      const [operator, hot, payer, payerKey] = [1, 2, 3, 4].map(chain.wallet);
      await (await c.stakeManager.connect(hot).offerSigner(operator.address)).wait();
      await (await c.stakeManager.connect(operator).addSigner(hot.address)).wait();
      await (await c.escrow.connect(payer).addSigner(payerKey.address)).wait();
      const cases = [
        ['Receipt', hot, (v, s) => c.ledger.isSignedReceipt(v, s), 'channelTotal'],
        ['Voucher', payer, (v, s) => c.escrow.isSignedVoucher(v, s), 'valueAggregate'],
        ['Voucher', payerKey, (v, s) => c.escrow.isSignedVoucher(v, s), 'valueAggregate'],
        ['Request', payer, (v, s) => c.escrow.isSignedRequest(v, s), 'maxFee'],
        ['Request', payerKey, (v, s) => c.escrow.isSignedRequest(v, s), 'nonce'],
      ];
      for (const [primary, signer, accepted, member] of cases) {
        const value = { ...random(primary), operator: operator.address, payer: payer.address };
        const signature = await sign(signer, primary, value, chain.chainId, c.addressOf);
        assert.equal(await accepted(value, signature), true, `${primary} as signed`);
        assert.equal(
          await accepted({ ...value, [member]: value[member] ^ 1n }, signature),
          false,
          `${primary} altered`,
        );
        const stranger = await sign(chain.wallet(5), primary, value, chain.chainId, c.addressOf);
        assert.equal(await accepted(value, stranger), false, `${primary} by a stranger`);
        const elsewhere = await sign(signer, primary, value, chain.chainId + 1n, c.addressOf);
        assert.equal(await accepted(value, elsewhere), false, `${primary} for another chain`);
      }
    },
  );
});
