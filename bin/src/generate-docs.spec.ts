import { readFileSync } from 'node:fs';
import { expect, it } from '@jest/globals';
import { eventsPage } from './generate-docs.ts';

it('docs/events.md is what the declarations say (else: npm run generate)', () => {
  expect(readFileSync('docs/events.md', 'utf8')).toBe(eventsPage());
});
