// What the JavaScript tests share: an anvil of their own, the deployment from the committed
// artifacts, and signing by ethers from types.json. Nothing here knows the C code or the Solidity
// sources.

import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import * as ethers from 'ethers';

export const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const read = (name) => JSON.parse(readFileSync(path.join(root, name), 'utf8'));
export const typesFile = read('types.json');
export const artifacts = Object.fromEntries(
  ['StakeManager', 'AdapterRegistry', 'Escrow', 'AttributionLedger', 'TestToken'].map((n) => [
    n,
    read(`${n}.json`),
  ]),
);

// anvil's default accounts
const MNEMONIC = 'test test test test test test test test test test test junk';

/** Starts anvil on a free port; `t` is node:test's context or anything with after(). */
export async function startChain(t) {
  const anvil = path.join(root, 'node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil');
  const child = spawn(anvil, ['--port', '0', '--hardfork', 'cancun', '--accounts', '30'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const url = await new Promise((resolve, reject) => {
    let seen = '';
    child.on('error', reject);
    child.on('exit', (code) => reject(new Error(`anvil ended with ${code}: ${seen}`)));
    child.stdout.on('data', (chunk) => {
      seen += chunk;
      const m = /Listening on (\S+)/.exec(seen);
      if (m) resolve(`http://${m[1]}`);
    });
  });
  const provider = new ethers.JsonRpcProvider(url, undefined, {
    cacheTimeout: -1,
    staticNetwork: true,
  });
  provider.pollingInterval = 20;
  const key = (i) => ethers.HDNodeWallet.fromPhrase(MNEMONIC, '', `m/44'/60'/0'/0/${i}`).privateKey;
  const wallet = (i) => new ethers.Wallet(key(i), provider);
  const stop = () => {
    provider.destroy();
    child.removeAllListeners('exit');
    child.kill();
  };
  t.after(stop);
  return {
    provider,
    wallet,
    stop,
    chainId: (await provider.getNetwork()).chainId,
    advance: async (seconds) => {
      await provider.send('evm_increaseTime', [seconds]);
      await provider.send('evm_mine', []);
    },
  };
}

/** Deploys all contracts from wallet `deployer`, at the addresses its nonces say. */
export async function deploy(chain, deployer, options = {}) {
  const o = {
    minStake: ethers.parseEther('100'),
    unbonding: 8 * 86400,
    window: 7 * 86400,
    thaw: 3 * 86400,
    payeeDelay: 2 * 86400,
    treasury: '0x000000000000000000000000000000000000dEaD',
    disputes: chain.wallet(9).address,
    ...options,
  };
  const make = async (name, ...args) => {
    const { abi, bytecode } = artifacts[name];
    const contract = await new ethers.ContractFactory(abi, bytecode, deployer).deploy(...args);
    await contract.waitForDeployment();
    return contract;
  };
  const token = await make('TestToken');
  const stakeManager = await make(
    'StakeManager',
    token,
    o.minStake,
    o.unbonding,
    o.treasury,
    o.disputes,
  );
  const registry = await make('AdapterRegistry', o.payeeDelay);
  const nonce = await deployer.getNonce();
  const ledgerAddress = ethers.getCreateAddress({ from: deployer.address, nonce: nonce + 1 });
  const escrow = await make('Escrow', token, stakeManager, ledgerAddress, o.thaw);
  const ledger = await make('AttributionLedger', stakeManager, registry, escrow, o.window);
  const all = { token, stakeManager, registry, escrow, ledger, options: o };
  all.addressOf = {
    StakeManager: stakeManager.target,
    AdapterRegistry: registry.target,
    Escrow: escrow.target,
    AttributionLedger: ledger.target,
  };
  return all;
}

/** The EIP-712 types that `primary` needs, from types.json. */
export function typesOf(primary) {
  const needed = {};
  const visit = (name) => {
    needed[name] = typesFile.types[name];
    for (const { type } of needed[name]) {
      const base = type.replace(/\[\d*\]$/, '');
      if (base in typesFile.types && !(base in needed)) visit(base);
    }
  };
  visit(primary);
  return needed;
}

/** The domain in which `primary` is signed, from types.json. */
export function domainOf(primary, chainId, addressOf) {
  const { name, version, verifyingContract } = typesFile.domains[primary];
  return { name, version, chainId, verifyingContract: addressOf[verifyingContract] };
}

export const digest = (primary, value, chainId, addressOf) =>
  ethers.TypedDataEncoder.hash(domainOf(primary, chainId, addressOf), typesOf(primary), value);

export const sign = (signer, primary, value, chainId, addressOf) =>
  signer.signTypedData(domainOf(primary, chainId, addressOf), typesOf(primary), value);

/** Sends a transaction and returns its receipt. */
export const mined = async (sending) => (await sending).wait();
