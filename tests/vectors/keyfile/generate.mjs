// Makes keyfile.json: key files of wallet/keystore.c's drawing, built without any of our code or of
// libsodium's, by @noble/hashes (Argon2id, sha256), @noble/ciphers (XChaCha20-Poly1305) and ethers
// (addresses). MIT libraries, found among the contracts' tools. From the repository's root:
//
//   node tests/vectors/keyfile/generate.mjs > tests/vectors/keyfile/keyfile.json
import { createRequire } from 'node:module';
const require = createRequire(new URL('../../../contracts-abi/package.json', import.meta.url));
const { argon2id } = require('@noble/hashes/argon2');
const { sha256 } = require('@noble/hashes/sha256');
const { xchacha20poly1305 } = require('@noble/ciphers/chacha');
const { ethers } = require('ethers');

const u32 = (v) => { const b = Buffer.alloc(4); b.writeUInt32BE(v); return b; };
const u64 = (v) => { const b = Buffer.alloc(8); b.writeBigUInt64BE(BigInt(v)); return b; };

// Salts and nonces are counted up from a first byte: fixed, so that the output can be repeated.
const counted = (first, n) => Buffer.from(Array.from({ length: n }, (_, i) => (first + i) & 255));

function keyFile({ name, key, passphrase, passes, memoryKib, created, seed }) {
  const address = Buffer.from(ethers.computeAddress(key).slice(2), 'hex');
  const salt = counted(seed, 16), nonce = counted(seed + 100, 24);
  const padded = Buffer.alloc(32);
  padded.write(name);
  const header = Buffer.concat([Buffer.from('TRIBKEY\n'), u32(1), u32(1), u32(passes), u32(memoryKib),
    salt, nonce, padded, address, u64(created)]);
  const kek = argon2id(Buffer.from(passphrase), salt, { t: passes, m: memoryKib, p: 1, dkLen: 32, version: 0x13 });
  const sealed = xchacha20poly1305(kek, nonce, header).encrypt(Buffer.from(key.slice(2), 'hex'));
  const body = Buffer.concat([header, sealed]);
  return Buffer.concat([body, sha256(body)]).toString('hex');
}

const cases = [
  { name: 'golden', key: '0x4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318',
    passphrase: 'open sesame', passes: 1, memoryKib: 8, created: 1700000000, seed: 1 },
  { name: 'a', key: '0x' + '0'.repeat(63) + '1', passphrase: 'x', passes: 2, memoryKib: 64, created: 0, seed: 40 },
  { name: 'abcdefghijklmnopqrstuvwxyz01234', key: '0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364140',
    passphrase: 'Käse, 日本語, 🐳', passes: 3, memoryKib: 1024, created: '18446744073709551615', seed: 200 },
];
console.log(JSON.stringify(cases.map((c) => ({ ...c, file: keyFile(c) })), null, 1));
