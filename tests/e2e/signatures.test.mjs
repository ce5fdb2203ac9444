// A signature made in C over each of Receipt, Batch, Voucher, Request and Manifest is accepted by ethers and by the
// contracts; with one field altered it is refused by both. The key is the operator's hot key, a payer and a creator at
// once, so that every contract has a reason to accept it.
import fs from 'node:fs';
import path from 'node:path';
import { Checks, cli, devMnemonic, devWallet, require, root, run, startAnvil, stop, temporaryDirectory, types } from './harness.mjs';

const { ethers } = require('ethers');
const checks = new Checks();
const dir = temporaryDirectory('signatures');
const signMessages = path.join(path.dirname(path.resolve(root, process.env.TRIBUTARY ?? 'build/release/tributary')), 'tests/e2e/sign_messages');

const anvil = await startAnvil({});
const wallet = await devWallet(path.join(dir, 'wallet'), { default: 0, operator: 1, signer: 2 });
const deployment = path.join(dir, 'deployment.json');
await cli(['deploy', '--rpc', anvil.url, ...wallet.flags, '--out', deployment, '--min-stake', '1tok', '--challenge-window', 5, '--unbonding', 60]);
const contracts = JSON.parse(fs.readFileSync(deployment));
const chain = ['--rpc', anvil.url, '--deployment', deployment, ...wallet.flags];
await cli(['token', 'mint', wallet.address.operator, '100tok', ...chain]);
await cli(['token', 'mint', wallet.address.signer, '100tok', ...chain]);
await cli(['stake', 'add', '10tok', ...chain]);
await cli(['stake', 'signer', ...chain]);
await cli(['escrow', 'deposit', '50tok', '--operator', wallet.address.operator, '--key', 'signer', ...chain]);

const provider = new ethers.JsonRpcProvider(anvil.url, contracts.chainId, { staticNetwork: true, cacheTimeout: -1 });
const hot = ethers.HDNodeWallet.fromPhrase(devMnemonic, '', "m/44'/60'/0'/0/2").connect(provider);
const contract = (name, key) => new ethers.Contract(contracts[key], JSON.parse(fs.readFileSync(path.join(root, `contracts-abi/${name}.json`))).abi, hot);
const ledger = contract('AttributionLedger', 'attributionLedger'), escrow = contract('Escrow', 'escrow'), registry = contract('AdapterRegistry', 'adapterRegistry');

const typesOf = (name) => name === 'Receipt' ? { Receipt: types.types.Receipt, AdapterShare: types.types.AdapterShare } : { [name]: types.types[name] };
const domainOf = (name) => {
  const { name: title, version, verifyingContract } = types.domains[name];
  return { name: title, version, chainId: contracts.chainId, verifyingContract: contracts[verifyingContract[0].toLowerCase() + verifyingContract.slice(1)] };
};
const rejects = async (promise) => { try { await promise; return false; } catch { return true; } };

let submitted = false;
for (let seed = 1; seed <= 8; seed++) {
  const made = await run(signMessages, [contracts.chainId, contracts.attributionLedger, contracts.escrow, contracts.adapterRegistry, wallet.address.operator, seed].map(String), { input: `${hot.privateKey}\n` });
  if (made.code !== 0) throw new Error(made.err);
  const signed = JSON.parse(made.out);
  for (const [name, { message, signature, digest }] of Object.entries(signed)) {
    checks.equal(ethers.TypedDataEncoder.hash(domainOf(name), typesOf(name), message), digest, `${name} ${seed}: ethers has the same digest`);
    checks.equal(ethers.verifyTypedData(domainOf(name), typesOf(name), message, signature), hot.address, `${name} ${seed}: ethers recovers the signer`);
  }
  const altered = (message, field) => ({ ...message, [field]: (BigInt(message[field]) ^ 1n).toString() });
  const { Receipt, Batch, Voucher, Request, Manifest } = signed;
  checks.ok(await ledger.isSignedReceipt(Receipt.message, Receipt.signature), `Receipt ${seed}: AttributionLedger accepts it`);
  checks.ok(!(await ledger.isSignedReceipt(altered(Receipt.message, 'royalty'), Receipt.signature)), `Receipt ${seed}: not with another royalty`);
  checks.equal(await ledger.receiptDigest(Receipt.message), Receipt.digest, `Receipt ${seed}: AttributionLedger has the same receiptHash`);
  checks.ok(await escrow.isSignedRequest(Request.message, Request.signature), `Request ${seed}: Escrow accepts it`);
  checks.ok(!(await escrow.isSignedRequest(altered(Request.message, 'maxFee'), Request.signature)), `Request ${seed}: not with another maxFee`);
  checks.ok(await escrow.isSignedVoucher(Voucher.message, Voucher.signature), `Voucher ${seed}: Escrow accepts it`);
  checks.ok(!(await escrow.isSignedVoucher(altered(Voucher.message, 'valueAggregate'), Voucher.signature)), `Voucher ${seed}: not with another value`);
  checks.ok(await rejects(registry.registerAdapter.staticCall(altered(Manifest.message, 'version'), [[hot.address], [10000], [], []], Manifest.signature)), `Manifest ${seed}: not with another version`);
  await (await registry.registerAdapter(Manifest.message, { payees: [hot.address], bps: [10000], datanets: [], datanetBps: [] }, Manifest.signature)).wait();
  const id = await registry.adapterIdOf(hot.address, Manifest.message.modelId, Manifest.message.manifestHash);
  checks.equal((await registry.adapterOf(id)).creator, hot.address, `Manifest ${seed}: AdapterRegistry registers it`);
  if (!submitted) {
    checks.ok(await rejects(ledger.submit.staticCall(altered(Batch.message, 'leafCount'), Batch.signature)), `Batch ${seed}: not with another leafCount`);
    await (await ledger.submit(Batch.message, Batch.signature)).wait();
    checks.equal((await ledger.headOf(wallet.address.operator))[1], Batch.digest, `Batch ${seed}: AttributionLedger takes it, under the same batchHash`);
    await (await escrow.redeem(Voucher.message, 0, Voucher.signature)).wait();
    checks.equal((await escrow.redeemed(wallet.address.operator)).toString(), Voucher.message.valueAggregate, `Voucher ${seed}: Escrow redeems it`);
    submitted = true;
  }
}
provider.destroy();
await stop(anvil.child);
checks.finish();
