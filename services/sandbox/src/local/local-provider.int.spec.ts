import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createLogger } from '@holdfast/platform';
import { afterEach, beforeEach, describe, expect, it } from '@jest/globals';
import { LocalProvider, type LocalProviderOptions, type SandboxSpec } from './local-provider.ts';

const spec: SandboxSpec = {
  id: 'sbx_spec',
  contextId: null,
  serial: 4_242,
};
/** Stands for the runner: tells what it was handed. */
const TELLS = `
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
writeFileSync(4, 'journal');
writeFileSync(process.env.HOLDFAST_WORKSPACE + '/told.json', JSON.stringify({ token: readFileSync(3, 'utf8'), env: process.env }));
setInterval(() => {}, 1000);
`;
let folder: string;
let runnerFile: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-local-'));
  runnerFile = join(folder, 'runner.mjs');
  writeFileSync(runnerFile, TELLS);
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});
const create = (changes: Partial<LocalProviderOptions> = {}): Promise<LocalProvider> =>
  LocalProvider.create({
    stateDir: join(folder, 'state'),
    runnerFile,
    harnessDir: null,
    bubblewrap: 'bwrap',
    allowUnisolated: false,
    minFreeBytes: 1,
    memoryBytes: 1024 ** 3,
    maxProcesses: 64,
    logger: createLogger({ service: 'spec', instance: 'spec', level: 'error' }),
    ...changes,
  });

describe('without bubblewrap', () => {
  it('tools answer a named error', async () => {
    const provider = await create({ bubblewrap: 'no-bwrap-here' });
    expect(provider.isolation).toBe('unavailable');
    await expect(provider.ensure(spec, 'token')).rejects.toMatchObject({
      kind: 'forbidden',
      code: 'sandbox.isolation-unavailable',
      message: expect.stringMatching(/HOLDFAST_ALLOW_UNISOLATED=1/),
    });
    expect(await provider.observe(spec)).toBe('absent');
  });

  it('they run unprotected where that was asked for, without a proxy, and end with all they hold', async () => {
    const provider = await create({ bubblewrap: 'no-bwrap-here', allowUnisolated: true });
    expect(provider.isolation).toBe('none');
    await provider.prepareLink(spec);
    expect(await provider.ensure(spec, 'the-token')).toBe(true);
    expect(await provider.ensure(spec, 'another')).toBe(false);
    const root = join(folder, 'state', 'sandboxes', spec.id);
    const told = join(root, 'workspace', 'told.json');
    for (const deadline = Date.now() + 5_000; !existsSync(told) && Date.now() < deadline; ) await sleep(20);
    const { token, env } = JSON.parse(readFileSync(told, 'utf8')) as { token: string; env: Record<string, string> };
    expect(token).toBe('the-token\n');
    expect(env).toMatchObject({ HOME: join(root, 'home'), HOLDFAST_PROXY_PORT: '0' });
    expect(env).not.toHaveProperty('HOLDFAST_ALONE');
    expect(readFileSync(join(root, 'journal.jsonl'), 'utf8')).toBe('journal');
    expect(await provider.observe(spec)).toBe('running');
    await provider.suspend(spec);
    expect(await provider.observe(spec)).toBe('stopped');
    expect(existsSync(told)).toBe(true);
    await provider.destroy(spec);
    expect([await provider.observe(spec), await provider.kept()]).toEqual(['absent', []]);
  }, 20_000);
});

describe('the disk', () => {
  it('below its reserve starts nothing', async () => {
    const provider = await create({ minFreeBytes: Number.MAX_SAFE_INTEGER });
    expect((await provider.room()).lack).toMatch(/Tools cannot run: less than \d+ bytes are free/);
    await expect(provider.ensure(spec, 'token')).rejects.toMatchObject({
      kind: 'exhausted',
      code: 'sandbox.disk-full',
    });
    expect((await (await create()).room()).lack).toBeNull();
  });

  it('is measured with home and workspace', async () => {
    const provider = await create();
    await provider.prepareLink(spec);
    const before = await provider.usage(spec);
    writeFileSync(join(folder, 'state', 'sandboxes', spec.id, 'large'), Buffer.alloc(5_000_000));
    expect((await provider.usage(spec)) - before).toBeGreaterThanOrEqual(5_000_000);
  });
});

it('a tree of any depth is removed with its sandbox', async () => {
  const provider = await create();
  await provider.prepareLink(spec);
  const root = join(folder, 'state', 'sandboxes', spec.id);
  execFileSync('/bin/bash', ['-c', 'for i in {1..600}; do mkdir long-name && cd long-name || exit 1; done'], {
    cwd: root,
  });
  await provider.destroy(spec);
  expect(existsSync(root)).toBe(false);
});

it('the Node that runs runners can be run and not read', async () => {
  await create();
  const node = join(folder, 'state', 'runner');
  const { mode } = statSync(join(node, `node-${process.version}-${statSync(process.execPath).size}`));
  expect(mode & 0o777).toBe(0o111);
});
