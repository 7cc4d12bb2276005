import { readFileSync } from 'node:fs';
import { expect, it } from '@jest/globals';
import { FILE, withHash } from './generate-kubernetes-types.ts';

it('the types of agent-sandbox are as they were generated (else: node bin/src/generate-kubernetes-types.ts)', () => {
  const text = readFileSync(FILE, 'utf8');
  expect(text).toBe(withHash(text.slice(text.indexOf('\n') + 1)));
});
