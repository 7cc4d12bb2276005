import { readFileSync } from 'node:fs';
import { expect, it } from '@jest/globals';
import { readRecipe } from './image.ts';

it("the runner's Dockerfile says all that the test bed makes the same image from", () => {
  const { release, packages, settings } = readRecipe(readFileSync('harnesses/runner/Dockerfile', 'utf8'));
  expect(release).toMatch(/^[a-z]+$/);
  expect(packages).toEqual(expect.arrayContaining(['ca-certificates', 'git', 'python3', 'ripgrep', 'xz-utils']));
  expect(packages.filter((name) => !/^[a-z][a-z\d.+-]+$/.test(name))).toEqual([]);
  expect(settings).toMatchObject({ User: '1000:1000', WorkingDir: '/workspace' });
  expect(settings.Entrypoint.slice(0, 3)).toEqual(['/usr/bin/tini', '--', '/opt/holdfast/node']);
  expect(packages).toContain('tini');
  expect(settings.Entrypoint.at(-1)).toBe('/opt/holdfast/runner.mjs');
  expect(settings.Env).toContain('HOME=/home/agent');
});

it('a Dockerfile that cannot be followed is refused', () => {
  expect(() => readRecipe('FROM node:24.21.0-alpine\n')).toThrow(/nothing fits/);
});
