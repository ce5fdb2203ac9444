// The demo runs to its end, and its check is one that can fail: with one receipt altered, added or removed, or one wei
// more or less paid, it says so.
import fs from 'node:fs';
import path from 'node:path';
import { Checks, root, run, temporaryDirectory } from './harness.mjs';
import { settle } from './demo.mjs';

const checks = new Checks();
const dump = path.join(temporaryDirectory('demo-test'), 'dump.json');
const demo = await run(process.execPath, [path.join(root, 'tests/e2e/demo.mjs')], { env: { TRIBUTARY_DEMO_DUMP: dump } });
checks.equal(demo.code, 0, 'the demo runs to its end');
if (demo.code !== 0) {
  console.log(demo.out.slice(-3000), demo.err.slice(-3000));
  checks.finish();
}
checks.ok((demo.out.match(/ 0 wei/g) ?? []).length >= 6, 'four adapters and two Datanets were paid to the wei');

const load = () => JSON.parse(fs.readFileSync(dump));
// What the demo does with it: true when every difference is zero.
const balanced = ({ receipts, manifests, market, paid }) =>
  settle(receipts, manifests, market, new Map(paid.map(([who, amount]) => [who, BigInt(amount)]))).differences.every((d) => d.owed === d.claimed);
const refused = (data) => { try { return !balanced(data); } catch { return true; } };

checks.ok(balanced(load()), 'the demo\'s own receipts balance');
const plusOne = (text) => (BigInt(text) + 1n).toString();
const alterations = {
  'one wei more royalty in a receipt': (d) => { const r = d.receipts.find((e) => e.receipt.adapters.length).receipt; r.royalty = plusOne(r.royalty); r.adapters[0].royalty = plusOne(r.adapters[0].royalty); },
  'one token more in a receipt': (d) => { d.receipts[3].receipt.completionTokens++; },
  'another payer in a receipt': (d) => { d.receipts[0].receipt.payer = d.market.node.address.operator; },
  'another adapter in a receipt': (d) => { const [a, b] = Object.keys(d.manifests); const s = d.receipts.find((e) => e.receipt.adapters[0]?.adapterId === a).receipt.adapters[0]; s.adapterId = b; },
  'a receipt taken out of the middle': (d) => { d.receipts.splice(5, 1); },
  'the last receipt withheld': (d) => { d.receipts.sort((a, b) => a.receipt.index - b.receipt.index).pop(); },
  'a receipt twice': (d) => { d.receipts.push(d.receipts[2]); },
  'another signature': (d) => { d.receipts[1].signature = d.receipts[2].signature; },
  'one wei too little paid': (d) => { d.paid[0][1] = (BigInt(d.paid[0][1]) - 1n).toString(); },
  'one wei too much paid': (d) => { d.paid[1][1] = plusOne(d.paid[1][1]); },
  'somebody not paid': (d) => { d.paid.pop(); },
};
for (const [what, alter] of Object.entries(alterations)) {
  const data = load();
  alter(data);
  checks.ok(refused(data), `${what}: the check fails`);
}
checks.finish();
