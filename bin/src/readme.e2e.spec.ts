import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { pythonEnvironment, startPlatform, type TestPlatform } from '@holdfast/testing';
import { afterAll, beforeAll, expect, it } from '@jest/globals';
import { ROOT } from './settings.ts';

const run = promisify(execFile);
const readme = readFileSync(join(ROOT, 'README.md'), 'utf8');
let platform: TestPlatform;
/** Inside the checkout, so that packages are found as in a project that has them. */
let folder: string;
beforeAll(async () => {
  platform = await startPlatform();
  folder = mkdtempSync(join(ROOT, 'node_modules', '.readme-'));
}, 240_000);
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await platform.stop();
}, 60_000);

/** A code block as a reader would run it, but for the ports and the file of this platform. */
function block(language: string, holding: string): string {
  const blocks = [...readme.matchAll(/^```(\w+)\n(.*?)^```$/gms)];
  const found = blocks.find(([, tag, text]) => tag === language && text?.includes(holding))?.[2];
  if (found === undefined) throw new Error(`README.md has no ${language} block with ${holding}`);
  return found
    .replaceAll('http://127.0.0.1:8080', platform.apiUrl)
    .replaceAll('http://127.0.0.1:3000', platform.dashboardUrl)
    .replaceAll(' .env)', ` ${platform.env['HOLDFAST_ENV_FILE']})`);
}
const env = () => ({ ...process.env, HOLDFAST_API_KEY: platform.apiKey });

it('has a curl walk-through that works', async () => {
  const script = `${block('sh', 'AGENT=$(curl').replace(/KEY=\$\([^)]*\)/, `KEY=${platform.apiKey}`)}
    SESSION=$(curl -s $API/v1/sessions -H "x-api-key: $KEY" | sed 's/.*"id":"\\(sesn_[^"]*\\)".*/\\1/')
    ${block('sh', 'after=0').replace('curl -N', 'curl -sN --max-time 8')}`;
  const { stdout } = await run('bash', ['-c', script], { env: env() }).catch(
    // curl leaves with 28 when its time is up: the stream tails for ever.
    (error: unknown) => error as { stdout: string },
  );
  expect(stdout).toContain('event: session.status_idle');
  expect(stdout).toContain('hello.txt');
}, 60_000);

it('has a TypeScript example that works', async () => {
  const file = join(folder, 'example.mjs');
  writeFileSync(file, block('ts', '@anthropic-ai/sdk'));
  const { stdout } = await run(process.execPath, [file], { env: env() });
  expect(stdout).toMatch(/Linux (sandbox|sbx-)/);
}, 60_000);

it('has a Python example that works', async () => {
  const python = await pythonEnvironment('anthropic-2');
  const { stdout } = await run(python, ['-c', block('python', 'Anthropic(')], { env: env() });
  expect(stdout).toMatch(/Linux (sandbox|sbx-)/);
}, 900_000);
