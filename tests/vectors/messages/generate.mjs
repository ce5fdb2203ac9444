// Makes messages.json: the messages of contracts-abi/types.json with extreme and ordinary values, hashed
// and signed by ethers 6 (RFC 6979, so the bytes can be compared). Values come from a counter, so that the
// output can be repeated. From the repository's root, after npm ci in contracts-abi/:
//
//   node tests/vectors/messages/generate.mjs | gzip -9n > tests/vectors/messages/messages.json.gz
import { createRequire } from 'node:module';
import fs from 'node:fs';
const require = createRequire(new URL('../../../contracts-abi/package.json', import.meta.url));
const { ethers } = require('ethers');
const { types, domains } = JSON.parse(fs.readFileSync(new URL('../../../contracts-abi/types.json', import.meta.url)));
const { EIP712Domain, ...messageTypes } = types;

let counter = 0;
const bytes = (n) => ethers.getBytes(ethers.keccak256(ethers.toBeHex(++counter, 32))).slice(0, n);

// kind: 'zero', 'max', or 'mixed'
function value(type, kind) {
  const array = /^(.*)\[\]$/.exec(type);
  if (array) {
    const n = kind === 'zero' ? 0 : kind === 'max' ? 8 : counter % 4;
    return Array.from({ length: n }, () => value(array[1], kind));
  }
  const sized = /^(uint|bytes)(\d+)$/.exec(type);
  const size = type === 'address' ? 20 : sized ? Number(sized[2]) / (sized[1] === 'uint' ? 8 : 1) : 0;
  if (size > 0) {
    const b = kind === 'zero' ? new Uint8Array(size) : kind === 'max' ? new Uint8Array(size).fill(255) : bytes(size);
    return sized?.[1] === 'uint' ? ethers.toBigInt(b).toString() : ethers.hexlify(b);
  }
  return Object.fromEntries(messageTypes[type].map((f) => [f.name, value(f.type, kind)]));
}

function only(primary) {
  const out = {};
  const add = (t) => { out[t] = messageTypes[t]; messageTypes[t].forEach((f) => { const b = f.type.replace('[]', ''); if (messageTypes[b]) add(b); }); };
  add(primary);
  return out;
}

const cases = [];
for (const primary of Object.keys(domains)) {
  for (const kind of ['zero', 'max', ...Array(10).fill('mixed')]) {
    const chainId = kind === 'zero' ? 0 : kind === 'max' ? Number.MAX_SAFE_INTEGER : 1612;
    const verifyingContract = kind === 'zero' ? ethers.ZeroAddress : ethers.hexlify(bytes(20));
    const domain = { name: domains[primary].name, version: domains[primary].version, chainId, verifyingContract };
    const message = value(primary, kind);
    const key = ethers.hexlify(bytes(32));
    const wallet = new ethers.Wallet(key);
    const t = only(primary);
    cases.push({ primary, chainId, verifyingContract, message, key, address: wallet.address.toLowerCase(),
      digest: ethers.TypedDataEncoder.hash(domain, t, message),
      signature: wallet.signingKey.sign(ethers.TypedDataEncoder.hash(domain, t, message)).serialized });
  }
}
console.log(JSON.stringify(cases, null, 1));
