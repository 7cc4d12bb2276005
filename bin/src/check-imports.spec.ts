import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { checkImports, edgesOf } from './check-imports.ts';

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'holdfast-imports-'));
  write('package.json', '{"devDependencies":{"@jest/globals":"1","@kubernetes/client-node":"1"}}');
  const houses = { contracts: '"zod":"1"', bus: '"@holdfast/contracts":"1","@nestjs/core":"1"' };
  for (const [name, dependencies] of Object.entries(houses))
    write(`libs/${name}/package.json`, `{"dependencies":{${dependencies}}}`);
  write(
    'services/session/package.json',
    '{"dependencies":{"@holdfast/bus":"1","@holdfast/contracts":"1","@kubernetes/client-node":"1"}}',
  );
  write('services/sandbox/package.json', '{"dependencies":{"@kubernetes/client-node":"1"}}');
  write('services/dashboard/package.json', '{"dependencies":{"@holdfast/bus":"1","react":"1"}}');
  write('harnesses/runner/package.json', '{"dependencies":{"@holdfast/contracts":"1"}}');
});
afterEach(() => rmSync(root, { recursive: true }));

function write(file: string, text: string): void {
  mkdirSync(dirname(join(root, file)), { recursive: true });
  writeFileSync(join(root, file), text);
}

describe('the import rules', () => {
  it.each([
    ['libs/contracts/src/a.ts', `import { z } from 'zod';`],
    ['libs/contracts/src/a.spec.ts', `import 'node:fs'; import '@jest/globals'; import '@holdfast/testing';`],
    ['services/session/src/a.ts', `import '@holdfast/bus'; import 'node:fs'; export * from './b.ts';`],
    ['services/session/src/a.int.spec.ts', `import '../../../bin/src/demo.ts';`],
    ['services/sandbox/src/a.ts', `import '@kubernetes/client-node';`],
    ['bin/src/a.spec.ts', `import '../../services/session/src/config.ts';`],
    ['k8s/testbed/src/a.ts', `import '@kubernetes/client-node'; import '../../../bin/src/b.ts';`],
    ['services/sandbox/src/a.k8s.spec.ts', `import '../../../k8s/testbed/src/a.ts';`],
    ['services/dashboard/src/a.tsx', `import 'react'; export const a = <p>from 'x'</p>;`],
    [
      'harnesses/runner/src/a.ts',
      `import type { A } from '@holdfast/contracts'; import { type B } from '@holdfast/contracts';`,
    ],
    ['services/session/src/a.decider.ts', `import '@holdfast/contracts'; import type { Bus } from '@holdfast/bus';`],
  ])('allow in %s: %s', (file, text) => {
    write(file, text);
    expect(checkImports(root)).toEqual([]);
  });

  it.each([
    ['libs/contracts/src/a.ts', `import 'node:fs';`, /runs in browsers/],
    ['libs/contracts/src/a.ts', `import '@holdfast/bus';`, /may not import/],
    ['libs/contracts/src/a.ts', `import 'pino';`, /may not import/],
    ['libs/bus/src/a.ts', `import '@nestjs/core';`, /may not import/],
    ['libs/bus/src/a.ts', `const pg = await import('pg');`, /may not import/],
    ['services/session/src/a.ts', `import '@kubernetes/client-node';`, /may not import/],
    ['services/session/src/a.ts', `import '../../sandbox/src/b.ts';`, /leaves services\/session/],
    ['services/session/src/a.ts', `import '../../../bin/src/demo.ts';`, /leaves services\/session/],
    ['bin/src/a.ts', `import '../../services/session/src/config.ts';`, /leaves bin/],
    ['services/sandbox/src/a.ts', `import '../../../k8s/testbed/src/a.ts';`, /leaves services\/sandbox/],
    ['services/session/src/a.ts', `import '@holdfast/testing';`, /may not import/],
    ['services/session/src/a.ts', `import './b.spec.ts';`, /only specs/],
    ['services/session/src/a.ts', `import '@holdfast/bus/src/bus.ts';`, /past the door/],
    ['services/session/src/a.ts', `import 'undeclared';`, /not declared/],
    ['services/session/src/a.ts', `import 'fs';`, /write "node:fs"/],
    ['services/session/src/a.decider.ts', `import { randomUUID } from 'node:crypto';`, /pure file/],
    ['services/session/src/a.decider.ts', `import '@holdfast/bus';`, /pure file/],
    ['services/dashboard/src/a.tsx', `import '@holdfast/bus';`, /may not import/],
    ['harnesses/runner/src/a.ts', `import { AppError } from '@holdfast/contracts';`, /only types/],
  ])('refuse in %s: %s', (file, text, fault) => {
    write(file, `// a comment with ü\n\n${text}`);
    const faults = checkImports(root);
    expect(faults).toHaveLength(1);
    expect(faults[0]).toMatch(fault);
    expect(faults[0]?.startsWith(`${file}:3: `)).toBe(true);
  });
});

it('a file that cannot be parsed is a fault, not a pass', () => {
  write('services/session/src/a.ts', 'import {');
  expect(checkImports(root)).toEqual([expect.stringMatching(/^services\/session\/src\/a\.ts:1: cannot be parsed/)]);
});

describe('edgesOf', () => {
  it('sees every kind of import and nothing else', () => {
    const text = `
      import a from 'a'; import type { B } from 'b'; export { c } from 'c'; export * from 'd';
      type E = import('e').E; const f = await import('f'); import g = require('g');
      const text = "import x from 'not'"; // import y from 'not';
    `;
    expect(edgesOf('x.ts', text).map(({ target, typeOnly }) => `${target}${typeOnly ? ' type' : ''}`)).toEqual([
      'a',
      'b type',
      'c',
      'd',
      'e type',
      'f',
      'g',
    ]);
  });
});
